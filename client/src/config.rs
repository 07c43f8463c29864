//! Client settings, declared once.
//!
//! [`SETTINGS`] is the only list: name (librdkafka's), other names, default and
//! documentation stand in one row with the code that reads the value, and
//! [`ClientConfig::default`] is built by applying every row's default.

use std::time::Duration;

use yuxi_protocol::record::Compression;

use crate::error::{Error, Result};

/// Settings of a connection, a producer and a consumer. Fields may be set
/// directly, or by name with [`ClientConfig::set`].
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs)] // Each field is documented by its row in `SETTINGS`.
pub struct ClientConfig {
    pub bootstrap: Vec<String>,
    pub client_id: String,
    pub metadata_max_age: Duration,
    pub topic_propagation: Duration,
    pub auto_create_topics: bool,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
    pub reconnect_backoff: Duration,
    pub reconnect_backoff_max: Duration,
    pub retry_backoff: Duration,
    pub retry_backoff_max: Duration,
    pub receive_max_bytes: usize,
    pub acks: Option<Acks>,
    pub linger: Duration,
    pub batch_bytes: usize,
    pub message_max_bytes: usize,
    pub compression: Compression,
    pub compression_level: Option<i32>,
    pub idempotence: Option<bool>,
    pub delivery_timeout: Duration,
    pub buffer_bytes: usize,
    pub max_block: Duration,
    pub max_in_flight: usize,
    pub retries: u32,
    pub transactional_id: Option<String>,
    pub transaction_timeout: Duration,
    pub group_id: Option<String>,
    pub group_instance_id: Option<String>,
    pub group_protocol: GroupProtocol,
    pub remote_assignor: Option<String>,
    pub offset_reset: OffsetReset,
    pub auto_commit: bool,
    pub auto_commit_interval: Duration,
    pub session_timeout: Option<Duration>,
    pub heartbeat_interval: Option<Duration>,
    pub max_poll_interval: Duration,
    pub max_poll_records: usize,
    pub assignors: Option<Vec<Assignor>>,
    pub fetch_min_bytes: i32,
    pub fetch_max_bytes: i32,
    pub partition_max_bytes: i32,
    pub fetch_max_wait: Duration,
    pub read_committed: bool,
    pub check_crcs: bool,
}

/// How many replicas must have a record before the broker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// No answer at all: records can be lost unnoticed.
    None,
    /// The leader only.
    Leader,
    /// Every in-sync replica.
    All,
}

impl Acks {
    /// As the wire has it.
    pub const fn code(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Leader => 1,
            Self::All => -1,
        }
    }
}

/// Where a consumer begins when it has no position, or one that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetReset {
    /// At the first record that the log still has.
    Earliest,
    /// Behind the last record.
    Latest,
    /// Not at all: report an error.
    Error,
}

/// How a group's leader spreads partitions over its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignor {
    /// Consecutive partitions of each topic.
    Range,
    /// All partitions of all topics in turn.
    RoundRobin,
    /// Balanced, moving as little as possible, without stopping the others (KIP-429).
    CooperativeSticky,
}

impl Assignor {
    /// The name that members agree on.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Range => "range",
            Self::RoundRobin => "roundrobin",
            Self::CooperativeSticky => "cooperative-sticky",
        }
    }
}

/// How a member and its group's coordinator talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupProtocol {
    /// Members join together, and one of them assigns.
    Classic,
    /// The coordinator assigns, and nobody waits for the others (KIP-848).
    Consumer,
}

/// One row of [`SETTINGS`].
#[derive(Debug)]
pub struct Setting {
    /// librdkafka's name.
    pub name: &'static str,
    /// Other names for the same, Java's among them.
    pub aliases: &'static [&'static str],
    /// The value that holds unless it is set; empty for "not set".
    pub default: &'static str,
    /// One line for people.
    pub doc: &'static str,
    apply: fn(&mut ClientConfig, &str) -> Result<(), String>,
}

macro_rules! settings {
    ($($name:literal $([$($alias:literal),+])? = $default:literal, $doc:literal, |$c:ident, $v:ident| $body:expr;)+) => {
        /// Every client setting.
        pub static SETTINGS: &[Setting] = &[$(Setting {
            name: $name,
            aliases: &[$($($alias),+)?],
            default: $default,
            doc: $doc,
            apply: |$c, $v| { $body; Ok(()) },
        }),+];
    };
}

settings! {
    "bootstrap.servers" ["metadata.broker.list"] = "localhost:9092",
        "Brokers to begin with, HOST:PORT separated by commas.",
        |c, v| c.bootstrap = addresses(v)?;
    "client.id" = "yuxi", "The name that brokers log and account for.", |c, v| v.clone_into(&mut c.client_id);
    "metadata.max.age.ms" ["topic.metadata.refresh.interval.ms"] = "300000",
        "Ask again for leaders and partitions after this time.",
        |c, v| c.metadata_max_age = millis(v, 10, 86_400_000)?;
    "topic.metadata.propagation.max.ms" = "10000",
        "How long an unknown topic may take to appear before that is an error.",
        |c, v| c.topic_propagation = millis(v, 0, 3_600_000)?;
    "allow.auto.create.topics" = "false", "Whether consuming a missing topic may create it.",
        |c, v| c.auto_create_topics = boolean(v)?;
    "socket.connection.setup.timeout.ms" = "10000", "Limit for opening a connection.",
        |c, v| c.connect_timeout = millis(v, 1, 2_147_483_647)?;
    "request.timeout.ms" ["socket.timeout.ms"] = "30000", "Limit for one request and its answer.",
        |c, v| c.request_timeout = millis(v, 1, 900_000)?;
    "reconnect.backoff.ms" = "50", "First pause before connecting again.",
        |c, v| c.reconnect_backoff = millis(v, 0, 3_600_000)?;
    "reconnect.backoff.max.ms" = "1000", "Longest pause before connecting again.",
        |c, v| c.reconnect_backoff_max = millis(v, 0, 3_600_000)?;
    "retry.backoff.ms" = "100", "First pause before a request is tried again.",
        |c, v| c.retry_backoff = millis(v, 1, 300_000)?;
    "retry.backoff.max.ms" = "1000", "Longest pause before a request is tried again.",
        |c, v| c.retry_backoff_max = millis(v, 1, 300_000)?;
    "receive.message.max.bytes" = "100000000", "Largest answer that is accepted.",
        |c, v| c.receive_max_bytes = number(v, 1000, 2_147_483_647)? as usize;
    "acks" ["request.required.acks"] = "", "0, 1 or all; all unless set.",
        |c, v| c.acks = optional(v, acks)?;
    "linger.ms" ["queue.buffering.max.ms"] = "5", "How long a batch waits for more records.",
        |c, v| c.linger = millis(v, 0, 900_000)?;
    "batch.size" = "1000000", "A batch is sent when it holds this many bytes.",
        |c, v| c.batch_bytes = number(v, 1, 1_000_000_000)? as usize;
    "message.max.bytes" ["max.request.size"] = "1000000", "Largest record or batch to send.",
        |c, v| c.message_max_bytes = number(v, 1000, 1_000_000_000)? as usize;
    "compression.type" ["compression.codec"] = "none", "none, gzip, snappy, lz4 or zstd.",
        |c, v| c.compression = codec(v)?;
    "compression.level" = "", "The codec's own level; its default unless set.",
        |c, v| c.compression_level = optional(v, |v| number(v, -131_072, 22).map(|n| n as i32))?;
    "enable.idempotence" = "", "No duplicates and no reordering on retries; on unless acks is not all.",
        |c, v| c.idempotence = optional(v, boolean)?;
    "delivery.timeout.ms" ["message.timeout.ms"] = "120000", "A record not delivered by then has failed.",
        |c, v| c.delivery_timeout = millis(v, 1, 2_147_483_647)?;
    "buffer.memory" = "67108864", "Bytes that may wait for delivery; then send waits.",
        |c, v| c.buffer_bytes = number(v, 1000, 1 << 40)? as usize;
    "max.block.ms" = "60000", "How long send may wait for room or for metadata.",
        |c, v| c.max_block = millis(v, 0, 2_147_483_647)?;
    "max.in.flight.requests.per.connection" ["max.in.flight"] = "5",
        "Produce requests that may be unanswered at once, per broker.",
        |c, v| c.max_in_flight = number(v, 1, 1_000_000)? as usize;
    "retries" ["message.send.max.retries"] = "2147483647", "How often a batch is sent again.",
        |c, v| c.retries = number(v, 0, 2_147_483_647)? as u32;
    "transactional.id" = "", "A name for a transactional producer; the newest with it fences the others.",
        |c, v| c.transactional_id = optional(v, |v| Ok(v.to_owned()))?;
    "transaction.timeout.ms" = "60000", "The coordinator aborts a transaction that is open for so long.",
        |c, v| c.transaction_timeout = millis(v, 1000, 2_147_483_647)?;
    "group.id" = "", "The consumer group.",
        |c, v| c.group_id = optional(v, |v| Ok(v.to_owned()))?;
    "group.instance.id" = "", "A name that survives restarts: static membership (KIP-345).",
        |c, v| c.group_instance_id = optional(v, |v| Ok(v.to_owned()))?;
    "group.protocol" = "classic", "classic, or consumer for groups whose coordinator assigns (KIP-848).",
        |c, v| c.group_protocol = match v {
            "classic" => GroupProtocol::Classic,
            "consumer" => GroupProtocol::Consumer,
            _ => return Err("expected classic or consumer".to_owned()),
        };
    "group.remote.assignor" = "", "With group.protocol=consumer: the coordinator's assignor, uniform or range; its choice unless set.",
        |c, v| c.remote_assignor = optional(v, |v| Ok(v.to_owned()))?;
    "auto.offset.reset" = "latest", "Where to begin without a position: earliest, latest or error.",
        |c, v| c.offset_reset = reset(v)?;
    "enable.auto.commit" = "true", "Whether the consumer commits what poll handed out.",
        |c, v| c.auto_commit = boolean(v)?;
    "auto.commit.interval.ms" = "5000", "Time between such commits.",
        |c, v| c.auto_commit_interval = millis(v, 0, 86_400_000)?;
    "session.timeout.ms" = "", "With group.protocol=classic: a member silent for so long is out of its group; 45000 unless set.",
        |c, v| c.session_timeout = optional(v, |v| millis(v, 1, 3_600_000))?;
    "heartbeat.interval.ms" = "", "With group.protocol=classic: time between signs of life to the group's coordinator; 3000 unless set.",
        |c, v| c.heartbeat_interval = optional(v, |v| millis(v, 1, 3_600_000))?;
    "max.poll.interval.ms" = "300000", "A member that does not poll for so long leaves its group.",
        |c, v| c.max_poll_interval = millis(v, 1, 86_400_000)?;
    "max.poll.records" = "10000", "Most records that one poll returns.",
        |c, v| c.max_poll_records = number(v, 1, 2_147_483_647)? as usize;
    "partition.assignment.strategy" = "",
        "With group.protocol=classic: range, roundrobin, cooperative-sticky, in order of preference; range,roundrobin unless set.",
        |c, v| c.assignors = optional(v, assignors)?;
    "fetch.min.bytes" = "1", "The broker waits until it has so many bytes…",
        |c, v| c.fetch_min_bytes = number(v, 1, 100_000_000)? as i32;
    "fetch.wait.max.ms" ["fetch.max.wait.ms"] = "500", "…or this time has passed.",
        |c, v| c.fetch_max_wait = millis(v, 0, 300_000)?;
    "fetch.max.bytes" = "52428800", "Most bytes in one answer.",
        |c, v| c.fetch_max_bytes = number(v, 1, 2_147_483_135)? as i32;
    "fetch.message.max.bytes" ["max.partition.fetch.bytes"] = "1048576", "Most bytes of one partition in one answer.",
        |c, v| c.partition_max_bytes = number(v, 1, 1_000_000_000)? as i32;
    "isolation.level" = "read_committed", "read_committed or read_uncommitted.",
        |c, v| c.read_committed = match v {
            "read_committed" => true,
            "read_uncommitted" => false,
            _ => return Err("expected read_committed or read_uncommitted".to_owned()),
        };
    "check.crcs" = "true", "Whether the checksums of fetched batches are verified.",
        |c, v| c.check_crcs = boolean(v)?;
    "security.protocol" = "plaintext", "Only plaintext so far.",
        |_c, v| if !v.eq_ignore_ascii_case("plaintext") { return Err("only plaintext is supported".to_owned()); };
    "partitioner" = "murmur2_random", "Keys are placed by murmur2, as Java's client does it.",
        |_c, v| if v != "murmur2_random" && v != "murmur2" { return Err("only murmur2_random is supported".to_owned()); };
}

impl Default for ClientConfig {
    fn default() -> Self {
        let mut config = Self {
            bootstrap: Vec::new(),
            client_id: String::new(),
            metadata_max_age: Duration::ZERO,
            topic_propagation: Duration::ZERO,
            auto_create_topics: false,
            connect_timeout: Duration::ZERO,
            request_timeout: Duration::ZERO,
            reconnect_backoff: Duration::ZERO,
            reconnect_backoff_max: Duration::ZERO,
            retry_backoff: Duration::ZERO,
            retry_backoff_max: Duration::ZERO,
            receive_max_bytes: 0,
            acks: None,
            linger: Duration::ZERO,
            batch_bytes: 0,
            message_max_bytes: 0,
            compression: Compression::None,
            compression_level: None,
            idempotence: None,
            delivery_timeout: Duration::ZERO,
            buffer_bytes: 0,
            max_block: Duration::ZERO,
            max_in_flight: 0,
            retries: 0,
            transactional_id: None,
            transaction_timeout: Duration::ZERO,
            group_id: None,
            group_instance_id: None,
            group_protocol: GroupProtocol::Classic,
            remote_assignor: None,
            offset_reset: OffsetReset::Latest,
            auto_commit: false,
            auto_commit_interval: Duration::ZERO,
            session_timeout: None,
            heartbeat_interval: None,
            max_poll_interval: Duration::ZERO,
            max_poll_records: 0,
            assignors: None,
            fetch_min_bytes: 0,
            fetch_max_bytes: 0,
            partition_max_bytes: 0,
            fetch_max_wait: Duration::ZERO,
            read_committed: false,
            check_crcs: false,
        };
        for setting in SETTINGS {
            let applied = (setting.apply)(&mut config, setting.default);
            assert!(
                applied.is_ok(),
                "the default of {} is not a valid value",
                setting.name
            );
        }
        config
    }
}

impl ClientConfig {
    /// The defaults, with other brokers to begin with (`HOST:PORT`, comma separated).
    pub fn new(bootstrap: &str) -> Result<Self> {
        let mut config = Self::default();
        config.set("bootstrap.servers", bootstrap)?;
        Ok(config)
    }

    /// Sets one setting by its name or one of its other names.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let setting = SETTINGS
            .iter()
            .find(|setting| setting.name == name || setting.aliases.contains(&name))
            .ok_or_else(|| unknown(name))?;
        (setting.apply)(self, value.trim()).map_err(|why| {
            Error::Config(format!("setting {name}: '{value}' is not valid: {why}"))
        })?;
        Ok(())
    }

    /// The `transactional.id`, if the other settings allow transactions.
    pub(crate) fn transactional_id(&self) -> Result<std::sync::Arc<str>> {
        let id = self.transactional_id.as_deref().ok_or_else(|| {
            Error::Config("a transactional producer needs a name; set transactional.id".to_owned())
        })?;
        if self.acknowledgement()?.1 {
            Ok(id.into())
        } else {
            Err(Error::Config(
                "transactions need idempotence; leave acks, enable.idempotence and max.in.flight.requests.per.connection at their defaults".to_owned(),
            ))
        }
    }

    pub(crate) fn session_timeout(&self) -> Duration {
        self.session_timeout.unwrap_or(Duration::from_secs(45))
    }

    pub(crate) fn heartbeat_interval(&self) -> Duration {
        self.heartbeat_interval.unwrap_or(Duration::from_secs(3))
    }

    pub(crate) fn assignors(&self) -> &[Assignor] {
        const UNLESS_SET: &[Assignor] = &[Assignor::Range, Assignor::RoundRobin];
        self.assignors.as_deref().unwrap_or(UNLESS_SET)
    }

    /// Refuses what the group's protocol has no use for, as Java's client does.
    pub(crate) fn check_group_settings(&self) -> Result<()> {
        match self.group_protocol {
            GroupProtocol::Classic if self.remote_assignor.is_some() => Err(Error::Config(
                "group.remote.assignor has no effect in a classic group; set partition.assignment.strategy, or group.protocol=consumer".to_owned(),
            )),
            GroupProtocol::Classic => Ok(()),
            GroupProtocol::Consumer => self.check_left_to_the_coordinator(),
        }
    }

    fn check_left_to_the_coordinator(&self) -> Result<()> {
        for (name, is_set, instead) in [
            (
                "session.timeout.ms",
                self.session_timeout.is_some(),
                "consumer.session.timeout.ms of the group, or group.consumer.session.timeout.ms of the brokers",
            ),
            (
                "heartbeat.interval.ms",
                self.heartbeat_interval.is_some(),
                "consumer.heartbeat.interval.ms of the group, or group.consumer.heartbeat.interval.ms of the brokers",
            ),
            (
                "partition.assignment.strategy",
                self.assignors.is_some(),
                "group.remote.assignor",
            ),
        ] {
            if is_set {
                return Err(Error::Config(format!(
                    "{name} has no effect with group.protocol=consumer, where the coordinator decides; set {instead}"
                )));
            }
        }
        Ok(())
    }

    /// What a producer acknowledges by, and whether it is idempotent, once both
    /// settings have been looked at together.
    pub fn acknowledgement(&self) -> Result<(Acks, bool)> {
        let acks = self.acks.unwrap_or(Acks::All);
        let idempotent = match self.idempotence {
            None => acks == Acks::All && self.max_in_flight <= MAX_IDEMPOTENT_IN_FLIGHT,
            Some(true) if acks != Acks::All => {
                return Err(Error::Config(
                    "enable.idempotence needs acks=all; set acks=all or enable.idempotence=false"
                        .to_owned(),
                ));
            }
            Some(true) if self.max_in_flight > MAX_IDEMPOTENT_IN_FLIGHT => {
                return Err(Error::Config(format!(
                    "enable.idempotence allows at most {MAX_IDEMPOTENT_IN_FLIGHT} requests in flight; lower max.in.flight.requests.per.connection"
                )));
            }
            Some(chosen) => chosen,
        };
        Ok((acks, idempotent))
    }
}

/// A broker remembers this many batches of a producer (KIP-98).
pub(crate) const MAX_IDEMPOTENT_IN_FLIGHT: usize = 5;

fn unknown(name: &str) -> Error {
    let names = SETTINGS
        .iter()
        .flat_map(|setting| std::iter::once(&setting.name).chain(setting.aliases));
    let nearest = nearest(name, names.copied());
    Error::Config(match nearest {
        Some(near) => format!("there is no setting '{name}'; did you mean '{near}'?"),
        None => format!("there is no setting '{name}'"),
    })
}

/// The candidate with the smallest edit distance, if one is near enough to be meant.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 2 + candidate.len() / 3)
        .map(|(_, candidate)| candidate)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn number(value: &str, low: i64, high: i64) -> Result<i64, String> {
    let expected = || format!("expected a whole number from {low} to {high}");
    let number: i64 = value.parse().map_err(|_| expected())?;
    if (low..=high).contains(&number) {
        Ok(number)
    } else {
        Err(expected())
    }
}

fn millis(value: &str, low: i64, high: i64) -> Result<Duration, String> {
    // librdkafka takes fractions of a millisecond for linger.ms.
    if let Ok(fraction) = value.parse::<f64>()
        && fraction.fract() != 0.0
        && fraction >= low as f64
        && fraction <= high as f64
    {
        return Ok(Duration::from_secs_f64(fraction / 1000.0));
    }
    number(value, low, high).map(|ms| Duration::from_millis(ms as u64))
}

fn boolean(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn optional<T>(
    value: &str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    if value.is_empty() {
        Ok(None)
    } else {
        read(value).map(Some)
    }
}

fn acks(value: &str) -> Result<Acks, String> {
    match value {
        "0" => Ok(Acks::None),
        "1" => Ok(Acks::Leader),
        "all" | "-1" => Ok(Acks::All),
        _ => Err("expected 0, 1 or all".to_owned()),
    }
}

fn codec(value: &str) -> Result<Compression, String> {
    Compression::from_name(value)
        .ok_or_else(|| "expected none, gzip, snappy, lz4 or zstd".to_owned())
}

fn reset(value: &str) -> Result<OffsetReset, String> {
    match value {
        "earliest" | "smallest" | "beginning" => Ok(OffsetReset::Earliest),
        "latest" | "largest" | "end" => Ok(OffsetReset::Latest),
        "error" | "none" => Ok(OffsetReset::Error),
        _ => Err("expected earliest, latest or error".to_owned()),
    }
}

fn assignors(value: &str) -> Result<Vec<Assignor>, String> {
    let chosen: Vec<Assignor> = value
        .split(',')
        .map(|name| match name.trim() {
            "range" => Ok(Assignor::Range),
            "roundrobin" => Ok(Assignor::RoundRobin),
            "cooperative-sticky" => Ok(Assignor::CooperativeSticky),
            other => Err(format!(
                "'{other}' is none of range, roundrobin, cooperative-sticky"
            )),
        })
        .collect::<Result<_, _>>()?;
    let cooperative = chosen.contains(&Assignor::CooperativeSticky);
    if cooperative && chosen.len() > 1 {
        return Err("cooperative-sticky cannot be mixed with the others: members would disagree on when to give partitions up".to_owned());
    }
    Ok(chosen)
}

fn addresses(value: &str) -> Result<Vec<String>, String> {
    let addresses: Vec<String> = value
        .split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty())
        .map(|address| {
            let plain = address.strip_prefix("PLAINTEXT://").unwrap_or(address);
            // An IPv6 address in brackets has colons of its own.
            let has_port = plain.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && (!host.contains(':') || host.ends_with(']'))
                    && port.parse::<u16>().is_ok()
            });
            match (has_port, plain.contains(':')) {
                (true, _) => Ok(plain.to_owned()),
                (false, false) => Ok(format!("{plain}:9092")),
                (false, true) => Err(format!("'{address}' is not HOST:PORT")),
            }
        })
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        Err("expected HOST:PORT".to_owned())
    } else {
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_known_by_each_of_its_names() {
        for name in ["linger.ms", "queue.buffering.max.ms"] {
            let mut config = ClientConfig::default();
            config.set(name, "17").expect("a valid value");
            assert_eq!(config.linger, Duration::from_millis(17), "{name}");
        }
    }

    #[test]
    fn an_unknown_setting_names_the_nearest() {
        let error = ClientConfig::default()
            .set("lingerms", "1")
            .expect_err("no such setting");
        assert_eq!(
            error.to_string(),
            "there is no setting 'lingerms'; did you mean 'linger.ms'?"
        );
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_the_range() {
        let error = ClientConfig::default()
            .set("linger.ms", "-1")
            .expect_err("out of range");
        assert!(error.to_string().contains("from 0 to 900000"), "{error}");
    }

    #[test]
    fn idempotence_is_the_default_and_acks_turn_it_off() {
        let mut config = ClientConfig::default();
        assert_eq!(config.acknowledgement().expect("valid"), (Acks::All, true));
        config.set("acks", "1").expect("valid");
        assert_eq!(
            config.acknowledgement().expect("valid"),
            (Acks::Leader, false)
        );
        config.set("enable.idempotence", "true").expect("valid");
        assert!(config.acknowledgement().is_err());
    }

    #[test]
    fn bootstrap_addresses_take_a_default_port_and_refuse_nonsense() {
        let read = |text: &str| ClientConfig::new(text).map(|c| c.bootstrap);
        assert_eq!(read("a:1, b").expect("valid"), ["a:1", "b:9092"]);
        assert_eq!(read("[::1]:9093").expect("valid"), ["[::1]:9093"]);
        for bad in ["", "a:b", ":1", "a:70000"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
