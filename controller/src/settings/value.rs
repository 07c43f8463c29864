//! The types that a setting's value can have, and how each is written.

use std::fmt;

use super::row::Kind;

/// A type that a setting can have: how its text is read, and what
/// DescribeConfigs calls it.
pub trait SettingValue: Sized {
    /// The type that DescribeConfigs reports.
    const KIND: Kind;
    /// What is accepted, in words.
    const EXPECTED: &'static str;
    /// The only texts that are accepted; empty if others are.
    const ALLOWED: &'static [&'static str] = &[];

    /// Reads a text without white space around it; `None` if it is no such value.
    fn parse(text: &str) -> Option<Self>;

    /// The value of a setting that is not given and has no default.
    fn unset() -> Option<Self> {
        None
    }
}

macro_rules! number {
    ($($type:ty => $kind:ident $expected:literal),+) => {$(
        impl SettingValue for $type {
            const KIND: Kind = Kind::$kind;
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )+};
}

number!(
    i16 => Short "a 16-bit whole number",
    i32 => Int "a 32-bit whole number",
    i64 => Long "a 64-bit whole number"
);

impl SettingValue for f64 {
    const KIND: Kind = Kind::Double;
    const EXPECTED: &'static str = "a number";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number: &f64| number.is_finite())
    }
}

/// As Kafka reads it: the case of the letters doesn't matter.
impl SettingValue for bool {
    const KIND: Kind = Kind::Boolean;
    const EXPECTED: &'static str = "true or false";

    fn parse(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("true") {
            Some(true)
        } else if text.eq_ignore_ascii_case("false") {
            Some(false)
        } else {
            None
        }
    }
}

impl SettingValue for String {
    const KIND: Kind = Kind::String;
    const EXPECTED: &'static str = "text";

    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

/// An empty text leaves an optional setting unset, as if it were not given.
impl<T: SettingValue> SettingValue for Option<T> {
    const KIND: Kind = T::KIND;
    const EXPECTED: &'static str = T::EXPECTED;
    const ALLOWED: &'static [&'static str] = T::ALLOWED;

    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            Some(None)
        } else {
            T::parse(text).map(Some)
        }
    }

    fn unset() -> Option<Self> {
        Some(None)
    }
}

macro_rules! choice {
    (
        $(#[$doc:meta])* $name:ident: $kind:ident {
            $( $(#[$variant_doc:meta])* $variant:ident = $text:literal ),+ $(,)?
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $( $(#[$variant_doc])* $variant ),+
        }

        impl SettingValue for $name {
            const KIND: Kind = Kind::$kind;
            const EXPECTED: &'static str = "one of its names";
            const ALLOWED: &'static [&'static str] = &[$($text),+];

            fn parse(text: &str) -> Option<Self> {
                match text {
                    $( $text => Some(Self::$variant), )+
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $( Self::$variant => $text ),+
                })
            }
        }
    };
}

choice! {
    /// How a topic's batches are compressed on disk (`compression.type`).
    CompressionType: String {
        /// As the producer sent them.
        Producer = "producer",
        /// Not at all.
        Uncompressed = "uncompressed",
        /// With gzip.
        Gzip = "gzip",
        /// With snappy, in xerial's framing.
        Snappy = "snappy",
        /// With LZ4 frames.
        Lz4 = "lz4",
        /// With Zstandard.
        Zstd = "zstd",
    }
}

choice! {
    /// Whose clock a record's timestamp comes from (`message.timestamp.type`).
    TimestampType: String {
        /// The producer's.
        CreateTime = "CreateTime",
        /// The broker's, at the append.
        LogAppendTime = "LogAppendTime",
    }
}

/// What becomes of old records (`cleanup.policy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// Whole segments are deleted by age and size.
    Delete,
    /// The last record of each key is kept.
    Compact,
    /// Both.
    CompactAndDelete,
}

impl CleanupPolicy {
    /// Whether segments are deleted by age and size.
    pub fn deletes(self) -> bool {
        match self {
            Self::Delete | Self::CompactAndDelete => true,
            Self::Compact => false,
        }
    }

    /// Whether the log is compacted by key.
    pub fn compacts(self) -> bool {
        match self {
            Self::Compact | Self::CompactAndDelete => true,
            Self::Delete => false,
        }
    }
}

choice! {
    /// Which consumer groups may become ones of the other kind while they have members
    /// (`group.consumer.migration.policy`).
    GroupMigrationPolicy: String {
        /// None.
        Disabled = "disabled",
        /// Classic groups may become consumer groups.
        Upgrade = "upgrade",
        /// Consumer groups may become classic ones.
        Downgrade = "downgrade",
        /// Both.
        Bidirectional = "bidirectional",
    }
}

/// A way in which the coordinator divides partitions among the members of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumerAssignor {
    /// As evenly as can be, moving as little as that takes.
    Uniform,
    /// In ranges, each topic by itself.
    Range,
}

/// The assignors that consumers may choose from, the one that is taken otherwise first
/// (`group.consumer.assignors`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerAssignors(pub Vec<ConsumerAssignor>);

impl SettingValue for ConsumerAssignors {
    const KIND: Kind = Kind::List;
    const EXPECTED: &'static str = "uniform or range or both";

    /// By their short names, or those of Kafka's own classes.
    fn parse(text: &str) -> Option<Self> {
        let mut assignors = Vec::new();
        for name in text.split(',') {
            let assignor = match name.trim() {
                "uniform" | "org.apache.kafka.coordinator.group.assignor.UniformAssignor" => {
                    ConsumerAssignor::Uniform
                }
                "range" | "org.apache.kafka.coordinator.group.assignor.RangeAssignor" => {
                    ConsumerAssignor::Range
                }
                _ => return None,
            };
            if assignors.contains(&assignor) {
                return None;
            }
            assignors.push(assignor);
        }
        Some(Self(assignors))
    }
}

impl SettingValue for CleanupPolicy {
    const KIND: Kind = Kind::List;
    const EXPECTED: &'static str = "delete or compact or both";

    fn parse(text: &str) -> Option<Self> {
        let (mut deletes, mut compacts) = (false, false);
        for policy in text.split(',') {
            match policy.trim() {
                "delete" => deletes = true,
                "compact" => compacts = true,
                _ => return None,
            }
        }
        match (deletes, compacts) {
            (true, true) => Some(Self::CompactAndDelete),
            (true, false) => Some(Self::Delete),
            (false, true) => Some(Self::Compact),
            (false, false) => None,
        }
    }
}

choice! {
    /// Which replica a consumer is sent to (`replica.selector.class`), by Kafka's names.
    ReplicaSelector: String {
        /// The leader.
        Leader = "org.apache.kafka.common.replica.LeaderSelector",
        /// An in-sync replica in the consumer's own rack, if there is one (KIP-392).
        RackAware = "org.apache.kafka.common.replica.RackAwareReplicaSelector",
    }
}

choice! {
    /// How the daemon's own log lines look (`log.format`).
    LogFormat: String {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

choice! {
    /// The least severe log lines that are written (`log.level`).
    LogLevel: String {
        /// Only failures that need somebody.
        Error = "error",
        /// And what looks wrong.
        Warn = "warn",
        /// And what happens in the ordinary course.
        Info = "info",
        /// And what helps to find a fault.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

/// `HOST:PORT`; an IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A name or an address, without brackets; empty for every address of the machine.
    pub host: String,
    /// The port; 0 picks a free one.
    pub port: u16,
}

impl HostPort {
    /// Whether this listens on every address of the machine, so that it is not an
    /// address that a client could connect to.
    pub fn is_wildcard(&self) -> bool {
        matches!(self.host.as_str(), "" | "0.0.0.0" | "::")
    }
}

impl SettingValue for HostPort {
    const KIND: Kind = Kind::String;
    const EXPECTED: &'static str = "HOST:PORT";

    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner
                .strip_suffix(']')
                .filter(|inner| inner.contains(':'))?,
            None if host.contains(':') => return None,
            None => host,
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if !host.chars().all(legal) || !port.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        Some(Self {
            host: host.to_owned(),
            port: port.parse().ok()?,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A listener as Kafka writes it, `PLAINTEXT://HOST:PORT`. There is one, and it is
/// not encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener(pub HostPort);

impl Listener {
    /// The name under which clients and brokers know this listener.
    pub const NAME: &'static str = "PLAINTEXT";
}

impl SettingValue for Listener {
    const KIND: Kind = Kind::List;
    const EXPECTED: &'static str = "one PLAINTEXT://HOST:PORT";

    fn parse(text: &str) -> Option<Self> {
        let (name, address) = text.split_once("://")?;
        if !name.eq_ignore_ascii_case(Self::NAME) {
            return None;
        }
        HostPort::parse(address).map(Self)
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", Self::NAME, self.0)
    }
}

/// A directory. Kafka takes a list with commas; here there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(pub std::path::PathBuf);

impl SettingValue for Directory {
    const KIND: Kind = Kind::String;
    const EXPECTED: &'static str = "one directory";

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && !text.contains(',')).then(|| Self(text.into()))
    }
}

/// A file that is read when the daemon starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File(pub std::path::PathBuf);

impl SettingValue for File {
    const KIND: Kind = Kind::String;
    const EXPECTED: &'static str = "a file";

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.into()))
    }
}

/// A text that is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The text, for whoever has to prove that it is known here.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl SettingValue for Password {
    const KIND: Kind = Kind::Password;
    const EXPECTED: &'static str = "text";

    fn parse(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// The members of one etcd, all with encryption or all without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdEndpoints(pub Vec<String>);

impl EtcdEndpoints {
    /// Whether they are https.
    pub fn are_encrypted(&self) -> bool {
        self.0.iter().any(|url| url.starts_with("https://"))
    }
}

impl SettingValue for EtcdEndpoints {
    const KIND: Kind = Kind::List;
    const EXPECTED: &'static str =
        "http://HOST:PORT or https://HOST:PORT, or several of one kind with commas between them";

    fn parse(text: &str) -> Option<Self> {
        let endpoint = |url: &str| {
            let url = url.trim().trim_end_matches('/');
            let (scheme, address) = url.split_once("://")?;
            let named = HostPort::parse(address).is_some_and(|at| !at.host.is_empty());
            (named && matches!(scheme, "http" | "https")).then(|| url.to_owned())
        };
        let endpoints: Vec<String> = text.split(',').map(endpoint).collect::<Option<_>>()?;
        let encrypted = endpoints.iter().filter(|url| url.starts_with("https://"));
        let alike = matches!(encrypted.count(), n if n == 0 || n == endpoints.len());
        alike.then_some(Self(endpoints))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_read_as_kafka_writes_it() {
        for (text, host, port) in [
            ("PLAINTEXT://localhost:9092", "localhost", 9092),
            ("plaintext://10.0.0.1:0", "10.0.0.1", 0),
            ("PLAINTEXT://:9092", "", 9092),
            ("PLAINTEXT://[::1]:9092", "::1", 9092),
        ] {
            let Listener(address) = Listener::parse(text).expect(text);
            assert_eq!(
                (address.host.as_str(), address.port),
                (host, port),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_listener_is_refused() {
        for text in [
            "",
            "localhost:9092",
            "SSL://localhost:9092",
            "PLAINTEXT://localhost",
            "PLAINTEXT://localhost:99999",
            "PLAINTEXT://localhost:+92",
            "PLAINTEXT://a b:9092",
            "PLAINTEXT://::1:9092",
            "PLAINTEXT://[::1:9092",
            "PLAINTEXT://a:1,PLAINTEXT://b:2",
        ] {
            assert_eq!(Listener::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_members_of_etcd_are_urls_of_one_scheme() {
        for (text, endpoints) in [
            ("http://a:2379", vec!["http://a:2379"]),
            (
                "https://a:1, https://[::1]:2/",
                vec!["https://a:1", "https://[::1]:2"],
            ),
        ] {
            let parsed = EtcdEndpoints::parse(text).expect(text);
            assert_eq!(parsed.0, endpoints, "{text}");
        }
        for text in [
            "",
            "a:2379",
            "htp://a:2379",
            "HTTP://a:2379",
            "http://a",
            "http://:2379",
            "http://a:2379/v3",
            "http://a:2379,",
            "http://a:2379,https://b:2379",
        ] {
            assert_eq!(EtcdEndpoints::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let password = Password::parse("s3cret").expect("any text");
        assert!(!format!("{password:?}").contains("s3cret"));
    }

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for text in ["localhost:1", "[fe80::1%eth0]:9092", "0.0.0.0:0"] {
            assert_eq!(HostPort::parse(text).expect(text).to_string(), text);
        }
    }
}
