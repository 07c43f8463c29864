//! What a name that somebody gave means: one of our settings, one of Kafka's
//! that would have no effect here, or a slip of the keyboard.

use super::{
    broker,
    error::Problem,
    group::{self, GroupSetting},
    row::Setting,
    topic::{self, TopicSetting},
};

/// Kafka's settings that Yuxi does not have, and what to do about each. A name that ends in a
/// dot stands for all that begin with it; the first that fits holds.
pub(super) const NOT_HERE: &[(&str, &str)] = &[
    ("broker.id", "use node.id"),
    ("broker.id.generation.enable", "set node.id"),
    ("reserved.broker.max.id", REMOVE),
    ("process.roles", NO_QUORUM),
    ("controller.quorum.", NO_QUORUM),
    ("controller.listener.names", NO_QUORUM),
    ("controller.quota.", NO_QUOTAS),
    ("controller.performance.", REMOVE),
    ("metadata.", NO_QUORUM),
    ("initial.broker.registration.timeout.ms", NO_QUORUM),
    (
        "zookeeper.",
        "there is no ZooKeeper; a cluster uses etcd (etcd.endpoints)",
    ),
    (
        "inter.broker.",
        "brokers speak one protocol over the one listener; remove it",
    ),
    ("security.inter.broker.protocol", NO_SECURITY),
    ("listener.", NO_SECURITY),
    (
        "control.plane.listener.name",
        "there is one listener; remove it",
    ),
    ("early.start.listeners", NO_SECURITY),
    ("ssl.", NO_SECURITY),
    ("sasl.", NO_SECURITY),
    ("security.", NO_SECURITY),
    ("password.encoder.", NO_SECURITY),
    ("principal.builder.class", NO_SECURITY),
    ("connections.max.reauth.ms", NO_SECURITY),
    ("connection.failed.authentication.delay.ms", NO_SECURITY),
    ("authorizer.class.name", NO_SECURITY),
    ("super.users", NO_SECURITY),
    ("allow.everyone.if.no.acl.found", NO_SECURITY),
    ("delegation.token.", NO_SECURITY),
    ("num.network.threads", NO_POOLS),
    ("num.io.threads", NO_POOLS),
    ("background.threads", NO_POOLS),
    ("num.recovery.threads.per.data.dir", NO_POOLS),
    ("num.replica.alter.log.dirs.threads", NO_POOLS),
    (
        "queued.max.requests",
        "use queued.max.request.bytes, which bounds bytes instead",
    ),
    ("socket.listen.backlog.size", REMOVE),
    ("socket.connection.setup.", REMOVE),
    (
        "max.connections.per.ip.overrides",
        "use max.connections.per.ip",
    ),
    (
        "max.connection.creation.rate",
        "use max.connections and max.connections.per.ip",
    ),
    ("request.timeout.ms", REMOVE),
    ("auto.include.jmx.reporter", NO_JMX),
    ("metric.reporters", NO_JMX),
    ("metrics.", NO_JMX),
    ("kafka.metrics.", NO_JMX),
    (
        "telemetry.max.bytes",
        "clients' metrics are not collected; remove it",
    ),
    ("replica.socket.receive.buffer.bytes", REMOVE),
    ("replica.alter.log.dirs.", NO_QUOTAS),
    (
        "num.replica.fetchers",
        "there is one fetcher for each leader; remove it",
    ),
    (
        "controlled.shutdown.",
        "a broker always shuts down in order; remove it",
    ),
    ("unclean.leader.election.interval.ms", REMOVE),
    ("leader.replication.throttled.", NO_QUOTAS),
    ("follower.replication.throttled.", NO_QUOTAS),
    ("replication.quota.", NO_QUOTAS),
    ("alter.log.dirs.replication.quota.", NO_QUOTAS),
    ("quota.", NO_QUOTAS),
    ("client.quota.callback.class", NO_QUOTAS),
    ("producer.purgatory.", REMOVE),
    ("fetch.purgatory.", REMOVE),
    ("delete.records.purgatory.", REMOVE),
    (
        "log.cleaner.io.buffer.size",
        "compaction reads and writes 1 MiB at a time; remove it",
    ),
    ("remote.", NO_TIERS),
    ("log.local.retention.", NO_TIERS),
    ("local.retention.", NO_TIERS),
    ("log.dir.failure.timeout.ms", REMOVE),
    ("log.initial.task.delay.ms", REMOVE),
    ("log.message.format.version", ONE_FORMAT),
    ("message.format.version", ONE_FORMAT),
    ("log.message.downconversion.enable", ONE_FORMAT),
    ("message.downconversion.enable", ONE_FORMAT),
    (
        "log.message.timestamp.difference.max.ms",
        TIMESTAMP_DIFFERENCE,
    ),
    ("message.timestamp.difference.max.ms", TIMESTAMP_DIFFERENCE),
    ("compression.lz4.level", "LZ4 has one level here; remove it"),
    ("transaction.state.log.load.buffer.size", REMOVE),
    (
        "transaction.two.phase.commit.enable",
        "transactions are coordinated here; remove it",
    ),
    ("offsets.topic.compression.codec", REMOVE),
    ("offsets.load.buffer.size", REMOVE),
    ("offsets.commit.", REMOVE),
    ("group.coordinator.", REMOVE),
    (
        "group.consumer.regex.refresh.interval.ms",
        "regular expressions are matched again when there are other topics; remove it",
    ),
    ("group.share.", NO_SHARE_GROUPS),
    ("group.streams.", NO_SHARE_GROUPS),
    ("share.", NO_SHARE_GROUPS),
    ("create.topic.policy.class.name", NO_PLUGINS),
    ("alter.config.policy.class.name", NO_PLUGINS),
    ("config.providers", NO_PLUGINS),
    ("unstable.", REMOVE),
    ("eligible.leader.replicas.enable", REMOVE),
    ("server.max.startup.time.ms", REMOVE),
];

const REMOVE: &str = "remove it";
const NO_QUORUM: &str = "there is no KRaft quorum; remove it";
const NO_SECURITY: &str = "the listener is neither encrypted nor authenticated; remove it";
const NO_POOLS: &str = "threads follow the number of processors; remove it";
const NO_JMX: &str = "metrics are served for Prometheus (admin.listener); remove it";
const NO_QUOTAS: &str = "there are no quotas; remove it";
const NO_TIERS: &str = "there is no tiered storage; remove it";
const ONE_FORMAT: &str = "there is one record format (magic 2); remove it";
const TIMESTAMP_DIFFERENCE: &str =
    "Kafka 4 dropped it; use the settings timestamp.before.max.ms and timestamp.after.max.ms";
const NO_SHARE_GROUPS: &str = "there are no such groups; remove it";
const NO_PLUGINS: &str = "there are no Java plug-ins; remove it";

/// The daemon's setting of this name.
///
/// # Errors
/// What the name was probably meant to be, or why Yuxi has no such setting.
pub(super) fn broker(name: &str) -> Result<&'static Setting, Problem> {
    if let Some(row) = broker::find(name) {
        return Ok(row);
    }
    let suggestion = if let Some(topic) = topic::find(name) {
        topic.synonyms.first().map(|synonym| synonym.name)
    } else {
        refuse(name)?;
        nearest(name, broker::rows().map(|row| row.name))
    };
    Err(unknown("broker", name, suggestion))
}

/// The topic's setting of this name.
///
/// # Errors
/// What the name was probably meant to be, or why Yuxi has no such setting.
pub(super) fn group(name: &str) -> Result<&'static GroupSetting, Problem> {
    if let Some(row) = group::find(name) {
        return Ok(row);
    }
    refuse(name)?;
    let nearest = nearest(name, group::ROWS.iter().map(|row| row.setting.name));
    Err(unknown("group", name, nearest))
}

pub(super) fn topic(name: &str) -> Result<&'static TopicSetting, Problem> {
    if let Some(row) = topic::find(name) {
        return Ok(row);
    }
    let inherits = |row: &&TopicSetting| row.synonyms.iter().any(|synonym| synonym.name == name);
    let suggestion = if let Some(row) = topic::ROWS.iter().find(inherits) {
        Some(row.setting.name)
    } else {
        refuse(name)?;
        nearest(name, topic::ROWS.iter().map(|row| row.setting.name))
    };
    Err(unknown("topic", name, suggestion))
}

fn unknown(what: &'static str, name: &str, suggestion: Option<&str>) -> Problem {
    Problem::Unknown {
        what,
        key: name.to_owned(),
        suggestion: suggestion.map(str::to_owned),
    }
}

fn refuse(name: &str) -> Result<(), Problem> {
    let fits = |known: &str| name == known || (known.ends_with('.') && name.starts_with(known));
    match NOT_HERE.iter().find(|(known, _)| fits(known)) {
        Some(&(_, remedy)) => Err(Problem::NotHere {
            key: name.to_owned(),
            remedy,
        }),
        None => Ok(()),
    }
}

/// The name that the fewest letters tell from `name`, unless it is another word altogether.
fn nearest(name: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    // A name from outside may be of any length; one that is far too long is like none.
    const LONGEST: usize = 100;
    if name.len() > LONGEST {
        return None;
    }
    names
        .map(|known| (edit_distance(name, known), known))
        .min()
        .filter(|&(distance, known)| distance <= known.len() / 3)
        .map(|(_, known)| known)
}

/// How many letters must be put in, left out or changed to make `b` of `a` (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (row, a) in a.chars().enumerate() {
        let mut corner = row;
        above[0] = row + 1;
        for (column, &b) in b.iter().enumerate() {
            let changed = corner + usize::from(a != b);
            corner = above[column + 1];
            above[column + 1] = changed.min(corner + 1).min(above[column] + 1);
        }
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_the_letters_that_differ() {
        for (a, b, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("num.partition", "num.partitions", 1),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }

    #[test]
    fn an_unknown_name_is_met_with_the_nearest() {
        for (given, expected) in [
            ("num.partition", Some("num.partitions")),
            ("log.retention.hour", Some("log.retention.hours")),
            ("retention.ms", Some("log.retention.ms")),
            ("max.message.bytes", Some("message.max.bytes")),
            ("frobnicate", None),
        ] {
            assert_eq!(
                broker(given).unwrap_err(),
                unknown("broker", given, expected)
            );
        }
        for (given, expected) in [
            ("retention.m", Some("retention.ms")),
            ("log.retention.hours", Some("retention.ms")),
            ("message.max.bytes", Some("max.message.bytes")),
            ("frobnicate", None),
        ] {
            assert_eq!(topic(given).unwrap_err(), unknown("topic", given, expected));
        }
        assert_eq!(
            nearest(
                &"num.partitions".repeat(1000),
                broker::rows().map(|r| r.name)
            ),
            None
        );
    }

    #[test]
    fn a_setting_of_kafkas_that_would_have_no_effect_is_refused_by_name() {
        for name in ["zookeeper.connect", "broker.id", "ssl.keystore.location"] {
            assert!(
                matches!(broker(name), Err(Problem::NotHere { .. })),
                "{name}"
            );
        }
        for name in ["remote.storage.enable", "local.retention.ms"] {
            assert!(
                matches!(topic(name), Err(Problem::NotHere { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn no_setting_that_yuxi_has_is_refused() {
        let ours = broker::rows().chain(topic::ROWS.iter().map(|row| &row.setting));
        for name in ours.map(|row| row.name) {
            assert_eq!(refuse(name), Ok(()), "{name}");
        }
    }
}
