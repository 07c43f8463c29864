//! Settings as DescribeConfigs reports them: each with its value, where that
//! comes from, and what else would have given it, in order of precedence.

use std::collections::BTreeMap;

use super::{
    broker::{self, ServerSettings},
    group::{self, GroupSetting},
    row::{Kind, Setting, Update},
    topic::{self, TopicSetting},
};

/// Where a value comes from, by the number that DescribeConfigs gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum Source {
    /// The topic's own override.
    DynamicTopic = 1,
    /// A dynamic config of this broker.
    DynamicBroker = 2,
    /// A dynamic config of the whole cluster.
    DynamicDefaultBroker = 3,
    /// The properties file or an `--override`.
    StaticBroker = 4,
    /// Nobody set it.
    Default = 5,
    /// The group's own setting.
    DynamicGroup = 8,
}

/// One setting with its value; that of a secret is hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedConfig {
    /// The setting's name.
    pub name: &'static str,
    /// Its value; `None` if it is not set and has no default, or is a secret.
    pub value: Option<String>,
    /// Where the value comes from.
    pub source: Source,
    /// Whether it can only be changed by restarting the broker.
    pub read_only: bool,
    /// Its type.
    pub kind: Kind,
    /// What it does.
    pub documentation: &'static str,
    /// Everything that gives a value, the one that holds first.
    pub synonyms: Vec<ConfigSynonym>,
}

/// One place that gives a setting a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSynonym {
    /// The name under which the value was given there.
    pub name: &'static str,
    /// The value as it was given, in that setting's unit.
    pub value: String,
    /// Where it was given.
    pub source: Source,
}

/// The settings of a topic with these `overrides`.
pub fn topic(
    broker: &ServerSettings,
    overrides: &BTreeMap<String, String>,
) -> Vec<DescribedConfig> {
    let describe = |row: &'static TopicSetting| {
        let own = overrides.get(row.setting.name);
        let mut synonyms = synonyms(row.broker_rows(), broker);
        let value = match own {
            Some(text) => {
                let own = ConfigSynonym::new(&row.setting, text, Source::DynamicTopic);
                synonyms.insert(0, own);
                text.trim().to_owned()
            }
            None => row.inherited(broker),
        };
        DescribedConfig::new(&row.setting, Some(value), synonyms)
    };
    topic::ROWS.iter().map(describe).collect()
}

/// The settings of a group with these `overrides`.
pub fn group(
    settings: &ServerSettings,
    overrides: &BTreeMap<String, String>,
) -> Vec<DescribedConfig> {
    let describe = |row: &'static GroupSetting| {
        let mut synonyms = synonyms(broker::find(row.synonym).into_iter(), settings);
        let value = match overrides.get(row.setting.name) {
            Some(text) => {
                let own = ConfigSynonym::new(&row.setting, text, Source::DynamicGroup);
                synonyms.insert(0, own);
                text.trim().to_owned()
            }
            None => row.inherited(settings),
        };
        DescribedConfig::new(&row.setting, Some(value), synonyms)
    };
    group::ROWS.iter().map(describe).collect()
}

/// The settings of the broker itself.
pub fn broker(settings: &ServerSettings) -> Vec<DescribedConfig> {
    let describe = |row: &'static Setting| {
        // What takes a setting's place when it is not set is listed after it (as Kafka has
        // it: log.retention.minutes and log.retention.hours after log.retention.ms).
        let mut synonyms = match topic::ROWS
            .iter()
            .find(|topic| topic.broker_rows().any(|other| other.name == row.name))
        {
            Some(topic) => synonyms(topic.broker_rows(), settings),
            None => synonyms(std::iter::once(row), settings),
        };
        let own = synonyms.iter().position(|synonym| synonym.name == row.name);
        synonyms.drain(..own.unwrap_or(synonyms.len()));
        let value = synonyms.first().map(|own| own.value.clone());
        DescribedConfig::new(row, value, synonyms)
    };
    broker::rows().map(describe).collect()
}

/// The dynamic configs of the whole cluster: only those that are set.
pub fn cluster_defaults(configs: &BTreeMap<String, String>) -> Vec<DescribedConfig> {
    let describe = |(name, text): (&String, &String)| {
        let row = broker::find(name)?;
        let synonym = ConfigSynonym::new(row, text, Source::DynamicDefaultBroker);
        Some(DescribedConfig::new(
            row,
            Some(synonym.value.clone()),
            vec![synonym],
        ))
    };
    configs.iter().filter_map(describe).collect()
}

/// Every text that the daemon's settings `rows` have: by its source, and within a source in
/// the order of the rows.
fn synonyms(
    rows: impl Iterator<Item = &'static Setting>,
    settings: &ServerSettings,
) -> Vec<ConfigSynonym> {
    let mut found: Vec<ConfigSynonym> = rows
        .flat_map(|row| {
            settings
                .given(row)
                .chain(row.default.map(|text| (Source::Default, text)))
                .map(move |(source, text)| ConfigSynonym::new(row, text, source))
        })
        .collect();
    found.sort_by_key(|synonym| synonym.source as i8);
    found
}

impl ConfigSynonym {
    fn new(row: &'static Setting, text: &str, source: Source) -> Self {
        let is_secret = row.kind == Kind::Password;
        Self {
            name: row.name,
            value: if is_secret {
                String::new()
            } else {
                text.trim().to_owned()
            },
            source,
        }
    }
}

impl DescribedConfig {
    fn new(row: &'static Setting, value: Option<String>, synonyms: Vec<ConfigSynonym>) -> Self {
        Self {
            name: row.name,
            value: value.filter(|_| row.kind != Kind::Password),
            source: synonyms
                .first()
                .map_or(Source::Default, |first| first.source),
            read_only: row.update == Update::AtStart,
            kind: row.kind,
            documentation: row.documentation(),
            synonyms,
        }
    }

    /// Whether its value is not shown.
    pub fn is_sensitive(&self) -> bool {
        self.kind == Kind::Password
    }

    /// Whether nobody set it: what version 0 of the API reports instead of the source.
    pub fn is_default(&self) -> bool {
        self.source == Source::Default
    }
}
