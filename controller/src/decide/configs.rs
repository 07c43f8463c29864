//! Configuration overrides of topics, of brokers and of the whole cluster:
//! incremental changes (KIP-339) and full replacements, all checked by the settings table
//! before anything is stored.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use yuxi_protocol::ids::BrokerId;

use super::{
    ChangeSet, PartitionEdits,
    leaders::{Circumstances, Target, next_state},
};
use crate::{
    ControllerError,
    image::ClusterImage,
    keys::{ConfigScope, ConfigValue, Key, print_value},
    settings::{Kind, ServerSettings, broker, group, topic},
};

pub(crate) const MIN_ISR: &str = "min.insync.replicas";

/// The overrides of one scope to change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigAlteration {
    /// What they apply to.
    pub scope: ConfigScope,
    /// How they change.
    pub change: ConfigChange,
}

/// How the overrides of a scope change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ConfigChange {
    /// These steps; what they don't name stays.
    Incremental(Vec<(String, ConfigStep)>),
    /// These and no others.
    Full(Vec<(String, Option<String>)>),
}

/// A change to one override.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigStep {
    /// This value.
    Set(String),
    /// No override any more.
    Delete,
    /// These too, with commas between them.
    Append(String),
    /// Not these, with commas between them.
    Subtract(String),
}

/// Decides on changes of overrides, one answer for each scope.
///
/// Where `min.insync.replicas` falls, those who were eligible because of the old value
/// lose that first: by the new one the ISR may acknowledge without them (I9).
pub fn alter(
    image: &ClusterImage,
    settings: &ServerSettings,
    alterations: &[ConfigAlteration],
) -> (Vec<ChangeSet>, Vec<Result<(), ControllerError>>) {
    let mut seen = BTreeSet::new();
    let repeated: BTreeSet<&ConfigScope> = alterations
        .iter()
        .map(|alteration| &alteration.scope)
        .filter(|&scope| !seen.insert(scope))
        .collect();
    let mut changes = Vec::new();
    let mut new_values = BTreeMap::new();
    let answers = alterations
        .iter()
        .map(|alteration| {
            if repeated.contains(&alteration.scope) {
                return Err(ControllerError::InvalidRequest(
                    "Each resource must appear at most once.".to_owned(),
                ));
            }
            if let Some((new, change)) = alter_scope(image, settings, alteration)? {
                new_values.insert(&alteration.scope, new);
                changes.push(change);
            }
            Ok(())
        })
        .collect();
    let mut all = with_new_min_isr(image, settings, &new_values);
    all.append(&mut changes);
    (all, answers)
}

/// Makes the controller's own `min.insync.replicas` the cluster's, if the cluster has none
/// yet: by it the leaders acknowledge and the controller tells who is eligible (I9), so it
/// must not be what each process was started with. As in Kafka from the day that a
/// cluster has the ELR.
pub(crate) fn settle_min_isr(image: &ClusterImage, settings: &ServerSettings) -> Vec<ChangeSet> {
    if image.config_value(&ConfigScope::Cluster, MIN_ISR).is_some() {
        return Vec::new();
    }
    let own = settings.min_insync_replicas.to_string();
    let settling = ConfigAlteration {
        scope: ConfigScope::Cluster,
        change: ConfigChange::Incremental(vec![(MIN_ISR.to_owned(), ConfigStep::Set(own))]),
    };
    alter(image, settings, &[settling]).0
}

/// Takes from the ELR who is no longer eligible by the new values.
fn with_new_min_isr(
    image: &ClusterImage,
    settings: &ServerSettings,
    new_values: &BTreeMap<&ConfigScope, ConfigValue>,
) -> Vec<ChangeSet> {
    let changed = |scope: &ConfigScope| {
        let new = new_values.get(scope)?;
        (new.get(MIN_ISR).map(String::as_str) != image.config_value(scope, MIN_ISR)).then_some(new)
    };
    let of_cluster = changed(&ConfigScope::Cluster);
    let mut edits = PartitionEdits::new(image);
    for topic in image.topics() {
        let of_topic = changed(&ConfigScope::Topic(topic.name.clone()));
        if of_topic.is_none() && of_cluster.is_none() {
            continue;
        }
        let value = |scope: ConfigScope, new: Option<&ConfigValue>| {
            let text = match new {
                Some(new) => new.get(MIN_ISR).map(String::as_str),
                None => image.config_value(&scope, MIN_ISR),
            };
            text?.trim().parse::<usize>().ok()
        };
        let min_isr = value(ConfigScope::Topic(topic.name.clone()), of_topic)
            .or_else(|| value(ConfigScope::Cluster, of_cluster))
            .or_else(|| usize::try_from(settings.min_insync_replicas).ok())
            .unwrap_or(1);
        let circumstances = Circumstances {
            is_active: &|id| image.is_active(id),
            is_alive: &|id| image.broker(id).is_some(),
            min_isr,
            unclean_election: false,
        };
        for (partition, state) in topic
            .partitions()
            .filter(|(_, state)| !state.elr.is_empty())
        {
            if let Some(next) = next_state(state, Target::same(state), &circumstances) {
                edits.set(topic, partition, next);
            }
        }
    }
    edits.into_changes()
}

/// The overrides that a new topic is created with, if any.
pub(super) fn of_new_topic(
    image: &ClusterImage,
    settings: &ServerSettings,
    name: &str,
    configs: &[(String, Option<String>)],
) -> Result<Option<ConfigValue>, ControllerError> {
    let scope = ConfigScope::Topic(name.into());
    check_distinct(configs.iter().map(|(name, _)| name.as_str()))?;
    let values = given_values(configs)?;
    for (name, value) in &values {
        validate(&scope, name, value)?;
    }
    check_together(image, settings, &scope, &values)?;
    Ok((!values.is_empty()).then_some(values))
}

fn alter_scope(
    image: &ClusterImage,
    settings: &ServerSettings,
    alteration: &ConfigAlteration,
) -> Result<Option<(ConfigValue, ChangeSet)>, ControllerError> {
    let scope = &alteration.scope;
    check_exists(image, scope)?;
    let current = image.config(scope);
    let old = current
        .map(|config| config.values.clone())
        .unwrap_or_default();
    let new = match &alteration.change {
        ConfigChange::Incremental(steps) => {
            check_distinct(steps.iter().map(|(name, _)| name.as_str()))?;
            let mut new = old.clone();
            for (name, step) in steps {
                apply_step(scope, &mut new, name, step)?;
            }
            new
        }
        ConfigChange::Full(values) => {
            check_distinct(values.iter().map(|(name, _)| name.as_str()))?;
            given_values(values)?
        }
    };
    if matches!(scope, ConfigScope::Broker(_)) && new.get(MIN_ISR) != old.get(MIN_ISR) {
        // The controller must know by which number a leader acknowledges (I9).
        return Err(ControllerError::InvalidConfig(format!(
            "Broker-level {MIN_ISR} cannot be altered while ELR is enabled."
        )));
    }
    if *scope == ConfigScope::Cluster && old.contains_key(MIN_ISR) && !new.contains_key(MIN_ISR) {
        // Each process would fall back on what it was started with.
        return Err(ControllerError::InvalidConfig(format!(
            "Cluster-level {MIN_ISR} cannot be removed while ELR is enabled."
        )));
    }
    // What stood there before was valid when it was set; a later version that knows
    // less must not make the other overrides unchangeable.
    for (name, value) in &new {
        if old.get(name) != Some(value) {
            validate(scope, name, value)?;
        }
    }
    if new == old {
        return Ok(None);
    }
    check_together(image, settings, scope, &new)?;
    let key = Key::Config(scope.clone());
    let mut changes = ChangeSet::default();
    if let ConfigScope::Topic(name) = scope
        && let Some(topic) = image.topic(name)
    {
        // Overrides of a topic that is gone would wait for the next of its name.
        changes.require_modified(&Key::Topic(name.clone()), topic.mod_revision);
    }
    changes.require_as_seen(&key, current.map(|config| config.mod_revision));
    if new.is_empty() {
        changes.delete(&key);
    } else {
        changes.put(&key, print_value(&new));
    }
    Ok(Some((new, changes)))
}

fn check_exists(image: &ClusterImage, scope: &ConfigScope) -> Result<(), ControllerError> {
    match scope {
        ConfigScope::Topic(name) if image.topic(name).is_none() => {
            Err(ControllerError::UnknownTopic(name.to_string()))
        }
        ConfigScope::Broker(id) if !is_known(image, *id) => {
            Err(ControllerError::BrokerIdNotRegistered(id.value()))
        }
        ConfigScope::Group(id) if id.is_empty() => Err(ControllerError::InvalidRequest(
            "Default group resources are not allowed.".to_owned(),
        )),
        // A group may be set up before its first member comes.
        ConfigScope::Topic(_)
        | ConfigScope::Broker(_)
        | ConfigScope::Cluster
        | ConfigScope::Group(_) => Ok(()),
    }
}

fn is_known(image: &ClusterImage, broker: BrokerId) -> bool {
    image.registration(broker).is_some() || image.admission(broker).is_some()
}

fn check_distinct<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), ControllerError> {
    let mut seen = BTreeSet::new();
    let repeated: BTreeSet<&str> = names.filter(|&name| !seen.insert(name)).collect();
    if repeated.is_empty() {
        return Ok(());
    }
    let names = repeated.into_iter().collect::<Vec<_>>().join(",");
    Err(ControllerError::InvalidRequest(format!(
        "Error due to duplicate config keys : {names}"
    )))
}

fn given_values(configs: &[(String, Option<String>)]) -> Result<ConfigValue, ControllerError> {
    let nulls: Vec<&str> = configs
        .iter()
        .filter(|(_, value)| value.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    if !nulls.is_empty() {
        return Err(ControllerError::InvalidConfig(format!(
            "Null value not supported for configs: {}",
            nulls.join(",")
        )));
    }
    Ok(configs
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
        .collect())
}

fn apply_step(
    scope: &ConfigScope,
    values: &mut ConfigValue,
    name: &str,
    step: &ConfigStep,
) -> Result<(), ControllerError> {
    match step {
        ConfigStep::Set(value) => {
            values.insert(name.to_owned(), value.clone());
        }
        ConfigStep::Delete => {
            if values.remove(name).is_none() {
                // Deleting what was never set is no error, but a name that does not
                // exist is most likely a misspelt one.
                check_known(scope, name)?;
            }
        }
        ConfigStep::Append(given) | ConfigStep::Subtract(given) => {
            check_known(scope, name)?;
            let appends = matches!(step, ConfigStep::Append(_));
            let Some(default) = list_default(scope, name) else {
                return Err(ControllerError::InvalidConfig(format!(
                    "Can't {} to key {name} because its type is not LIST.",
                    if appends { "APPEND" } else { "SUBTRACT" }
                )));
            };
            let current = values.get(name).map_or(default, String::as_str);
            let mut items: Vec<&str> = items(current).collect();
            for item in self::items(given) {
                if !appends {
                    items.retain(|&other| other != item);
                } else if !items.contains(&item) {
                    items.push(item);
                }
            }
            let joined = items.join(",");
            values.insert(name.to_owned(), joined);
        }
    }
    Ok(())
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// The default of a setting that is a list; `None` for one that isn't.
fn list_default(scope: &ConfigScope, name: &str) -> Option<&'static str> {
    let (kind, source) = match scope {
        ConfigScope::Topic(_) => {
            let row = topic::find(name)?;
            (
                row.setting.kind,
                row.synonyms.first().map(|synonym| synonym.name),
            )
        }
        ConfigScope::Broker(_) | ConfigScope::Cluster => (broker::find(name)?.kind, Some(name)),
        ConfigScope::Group(_) => (group::find(name)?.setting.kind, None),
    };
    let default = source.and_then(broker::find).and_then(|row| row.default);
    (kind == Kind::List).then(|| default.unwrap_or(""))
}

fn check_known(scope: &ConfigScope, name: &str) -> Result<(), ControllerError> {
    let known = match scope {
        ConfigScope::Topic(_) => topic::find(name).is_some(),
        ConfigScope::Broker(_) | ConfigScope::Cluster => broker::find(name).is_some(),
        ConfigScope::Group(_) => group::find(name).is_some(),
    };
    if known {
        Ok(())
    } else {
        // The table knows best how to say so.
        validate(scope, name, "")
    }
}

fn validate(scope: &ConfigScope, name: &str, value: &str) -> Result<(), ControllerError> {
    let checked = match scope {
        ConfigScope::Topic(_) => topic::validate(name, value),
        ConfigScope::Broker(_) | ConfigScope::Cluster => broker::validate_dynamic(name, value),
        ConfigScope::Group(_) => group::check_one(name, value),
    };
    checked.map_err(|problem| ControllerError::InvalidConfig(problem.to_string()))
}

/// Checks all overrides that `scope` would have against each other, and against what holds
/// where they say nothing.
fn check_together(
    image: &ClusterImage,
    settings: &ServerSettings,
    scope: &ConfigScope,
    values: &ConfigValue,
) -> Result<(), ControllerError> {
    let none = ConfigValue::new();
    let of_cluster = image
        .config(&ConfigScope::Cluster)
        .map_or(&none, |config| &config.values);
    let checked = match scope {
        ConfigScope::Topic(_) => {
            topic::check_together(&settings.with_dynamic(of_cluster, &none), values)
        }
        ConfigScope::Cluster => settings.check_dynamic_together(values, &none),
        ConfigScope::Broker(_) => settings.check_dynamic_together(of_cluster, values),
        ConfigScope::Group(_) => group::validate(settings, values),
    };
    checked.map_err(|problem| ControllerError::InvalidConfig(problem.to_string()))
}

#[cfg(test)]
#[path = "configs_tests.rs"]
mod tests;
