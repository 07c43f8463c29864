//! What can be set for one consumer group (KIP-848), in place of the broker's settings.
//!
//! Each row names the broker's setting that holds otherwise, and those between which a
//! group's own value must lie.

use std::collections::BTreeMap;

use super::{
    broker::ServerSettings,
    error::Problem,
    names,
    row::{Range::AtLeast, Setting, Update},
    value::SettingValue,
};

/// A setting of groups, and the broker's settings that it is held against.
#[derive(Debug)]
pub struct GroupSetting {
    /// The row itself.
    pub setting: Setting,
    /// The broker's setting that holds where the group does not say.
    pub synonym: &'static str,
    bounds: fn(&ServerSettings) -> (i32, i32),
    inherited: fn(&ServerSettings) -> i32,
}

/// The table: every setting that a group can have.
pub static ROWS: &[GroupSetting] = &[
    GroupSetting {
        setting: Setting::new::<i32>(
            "consumer.session.timeout.ms",
            None,
            AtLeast(1),
            Update::PerGroup,
            "How long a member of the group that speaks the consumer protocol may be silent before \
             it is taken out.",
        ),
        synonym: "group.consumer.session.timeout.ms",
        bounds: |settings| {
            (
                settings.group_consumer_min_session_timeout_ms,
                settings.group_consumer_max_session_timeout_ms,
            )
        },
        inherited: |settings| settings.group_consumer_session_timeout_ms,
    },
    GroupSetting {
        setting: Setting::new::<i32>(
            "consumer.heartbeat.interval.ms",
            None,
            AtLeast(1),
            Update::PerGroup,
            "How often members of the group that speak the consumer protocol are told to be heard \
             from.",
        ),
        synonym: "group.consumer.heartbeat.interval.ms",
        bounds: |settings| {
            (
                settings.group_consumer_min_heartbeat_interval_ms,
                settings.group_consumer_max_heartbeat_interval_ms,
            )
        },
        inherited: |settings| settings.group_consumer_heartbeat_interval_ms,
    },
];

/// The row of the group's setting `name`, if there is one.
pub fn find(name: &str) -> Option<&'static GroupSetting> {
    ROWS.iter().find(|row| row.setting.name == name)
}

/// Checks one setting of a group by itself.
///
/// # Errors
/// A name that no setting of groups has, or a value that is none of its own.
pub fn check_one(name: &str, text: &str) -> Result<(), Problem> {
    names::group(name)?.setting.parse::<i32>(text).map(|_| ())
}

/// Checks all settings of a group, each by itself and against each other.
///
/// # Errors
/// A name that no setting of groups has, or a value that is none of its own or not within
/// the broker's bounds.
pub fn validate(
    settings: &ServerSettings,
    values: &BTreeMap<String, String>,
) -> Result<(), Problem> {
    for (name, text) in values {
        let row = names::group(name)?;
        let value: i32 = row.setting.parse(text)?;
        let (low, high) = (row.bounds)(settings);
        if !(low..=high).contains(&value) {
            return Err(Problem::Value {
                key: row.setting.name,
                value: text.trim().to_owned(),
                expected: format!(
                    "{}, {low} to {high} by the broker's settings",
                    i32::EXPECTED
                ),
            });
        }
    }
    let number = |name: &str| -> Option<i32> {
        let row = find(name)?;
        let own = values.get(name).and_then(|text| text.trim().parse().ok());
        own.or_else(|| Some((row.inherited)(settings)))
    };
    let session = number("consumer.session.timeout.ms");
    let heartbeat = number("consumer.heartbeat.interval.ms");
    match (session, heartbeat) {
        (Some(session), Some(heartbeat)) if session <= heartbeat => Err(Problem::Value {
            key: "consumer.session.timeout.ms",
            value: session.to_string(),
            expected: format!("more than consumer.heartbeat.interval.ms={heartbeat}"),
        }),
        _ => Ok(()),
    }
}

impl GroupSetting {
    /// The value that holds where the group does not say.
    pub(super) fn inherited(&self, settings: &ServerSettings) -> String {
        (self.inherited)(settings).to_string()
    }
}
