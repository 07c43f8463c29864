//! What a topic can override, and what holds for a topic.
//!
//! Each row names the daemon's settings that give its default, in their order of
//! precedence: the first that is set holds, in whichever unit it counts.
//!
//! Invariant: every field of `TopicSettings` has passed its row's type.

use std::collections::BTreeMap;

use super::{
    broker::{self, ServerSettings},
    error::Problem,
    names,
    row::{
        Range::{Any, AtLeast, Between, Fraction, MinusOneOrAtLeast, MinusOneOrBetween},
        Setting, Update,
    },
    value::{CleanupPolicy, CompressionType, SettingValue, TimestampType},
};

/// A setting of topics and where its default comes from.
#[derive(Debug)]
pub struct TopicSetting {
    /// The row itself.
    pub setting: Setting,
    /// The daemon's settings that give the default, the first that is set before the others.
    pub synonyms: &'static [Synonym],
}

/// A daemon's setting that gives a topic's default.
#[derive(Clone, Copy, Debug)]
pub struct Synonym {
    /// The daemon's setting.
    pub name: &'static str,
    /// How many of the topic's units one of the daemon's is: 3,600,000 for hours.
    pub unit: i64,
}

/// The topic's unit is the daemon's.
const SAME: i64 = 1;
const MINUTES: i64 = 60_000;
const HOURS: i64 = 3_600_000;

macro_rules! topic_settings {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident: $type:ty = $name:literal, $range:expr,
            [ $( $synonym:literal in $unit:expr ),+ ];
    )+) => {
        /// The table: every setting that a topic can override.
        pub static ROWS: &[TopicSetting] = &[ $( TopicSetting {
            setting: Setting::new::<$type>(
                $name, None, $range, Update::PerTopic, concat!($($doc),+),
            ),
            synonyms: &[ $( Synonym { name: $synonym, unit: $unit } ),+ ],
        }, )+ ];

        /// The values that hold for one topic.
        #[derive(Clone, Debug, PartialEq)]
        pub struct TopicSettings {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl TopicSettings {
            /// What holds for a topic with these `overrides` on a broker with these
            /// settings.
            ///
            /// The overrides were checked by [`validate`] when they were set. One that is
            /// not of its type (another version wrote it) does not hold, and the log says
            /// so.
            pub fn resolve(
                broker: &ServerSettings,
                overrides: &BTreeMap<String, String>,
            ) -> Self {
                Self { $( $field: resolve::<$type>(row($name), broker, overrides), )+ }
            }
        }

        /// Whether `text` is of the type of the setting `name`.
        fn parses(name: &str, text: &str) -> bool {
            match name {
                $( $name => <$type>::parse(text).is_some(), )+
                _ => false,
            }
        }
    };
}

topic_settings! {
    /// What becomes of old records: delete removes them by age and size, compact keeps only the
    /// last record of each key, and delete,compact does both.
    cleanup_policy: CleanupPolicy = "cleanup.policy", Any, ["log.cleanup.policy" in SAME];
    /// The level with which the broker compresses if `compression.type` is gzip; -1 for the
    /// codec's own.
    compression_gzip_level: i32 = "compression.gzip.level", MinusOneOrBetween(1, 9),
        ["compression.gzip.level" in SAME];
    /// How batches are compressed on disk; `producer` keeps what the producer chose.
    compression_type: CompressionType = "compression.type", Any, ["compression.type" in SAME];
    /// The level with which the broker compresses if `compression.type` is zstd.
    compression_zstd_level: i32 = "compression.zstd.level", Between(-131_072, 22),
        ["compression.zstd.level" in SAME];
    /// How long a compacted topic keeps a record without value, and the mark of a transaction
    /// whose records are gone, after the compaction that found them. Within this time a
    /// consumer that began at the start must have come to the end to see them.
    delete_retention_ms: i64 = "delete.retention.ms", AtLeast(0),
        ["log.cleaner.delete.retention.ms" in SAME];
    /// How long a deleted segment's files stay on disk, so that readers can finish.
    file_delete_delay_ms: i64 = "file.delete.delay.ms", AtLeast(0),
        ["log.segment.delete.delay.ms" in SAME];
    /// After how many records the log is forced to disk. 1 forces every write before it is
    /// acknowledged.
    flush_messages: i64 = "flush.messages", AtLeast(1), ["log.flush.interval.messages" in SAME];
    /// The longest time that a record is not forced to disk.
    flush_ms: i64 = "flush.ms", AtLeast(0),
        ["log.flush.interval.ms" in SAME, "log.flush.scheduler.interval.ms" in SAME];
    /// How many bytes of records lie between two entries of an index.
    index_interval_bytes: i32 = "index.interval.bytes", AtLeast(0),
        ["log.index.interval.bytes" in SAME];
    /// After this time a record of a compacted topic is compacted whatever
    /// `min.cleanable.dirty.ratio` says; its segment is closed for that.
    max_compaction_lag_ms: i64 = "max.compaction.lag.ms", AtLeast(1),
        ["log.cleaner.max.compaction.lag.ms" in SAME];
    /// The largest batch of records that is accepted, in bytes after compression.
    max_message_bytes: i32 = "max.message.bytes", AtLeast(0), ["message.max.bytes" in SAME];
    /// How far a record's timestamp may lie after the broker's clock; more is refused. Has no
    /// effect with LogAppendTime.
    message_timestamp_after_max_ms: i64 = "message.timestamp.after.max.ms", AtLeast(0),
        ["log.message.timestamp.after.max.ms" in SAME];
    /// How far a record's timestamp may lie before the broker's clock; more is refused. Has no
    /// effect with LogAppendTime.
    message_timestamp_before_max_ms: i64 = "message.timestamp.before.max.ms", AtLeast(0),
        ["log.message.timestamp.before.max.ms" in SAME];
    /// Whether a record keeps the producer's timestamp or gets the time of its append.
    message_timestamp_type: TimestampType = "message.timestamp.type", Any,
        ["log.message.timestamp.type" in SAME];
    /// How much of a compacted partition's log must be new for it to be compacted, from 0 to 1.
    min_cleanable_dirty_ratio: f64 = "min.cleanable.dirty.ratio", Fraction,
        ["log.cleaner.min.cleanable.ratio" in SAME];
    /// How long a record of a compacted topic stays in any case.
    min_compaction_lag_ms: i64 = "min.compaction.lag.ms", AtLeast(0),
        ["log.cleaner.min.compaction.lag.ms" in SAME];
    /// How many in-sync replicas must have a write before a producer with acks=all is told that
    /// it succeeded; with fewer in sync such writes are refused. A topic with fewer replicas than
    /// that needs only as many as it has.
    min_insync_replicas: i32 = "min.insync.replicas", AtLeast(1), ["min.insync.replicas" in SAME];
    /// Whether a new segment's file gets its full size at once.
    preallocate: bool = "preallocate", Any, ["log.preallocate" in SAME];
    /// The size to which a partition's log is cut by deleting its oldest segments; -1 for no
    /// limit.
    retention_bytes: i64 = "retention.bytes", MinusOneOrAtLeast(0), ["log.retention.bytes" in SAME];
    /// How long records are kept; -1 for ever.
    retention_ms: i64 = "retention.ms", MinusOneOrAtLeast(0),
        ["log.retention.ms" in SAME, "log.retention.minutes" in MINUTES,
         "log.retention.hours" in HOURS];
    /// The largest size of a segment file.
    segment_bytes: i32 = "segment.bytes", AtLeast(14), ["log.segment.bytes" in SAME];
    /// The size of an offset or time index file; a segment whose index is full is closed.
    segment_index_bytes: i32 = "segment.index.bytes", AtLeast(12),
        ["log.index.size.max.bytes" in SAME];
    /// Up to how much earlier a segment may be closed, chosen at random, so that not all are
    /// closed at once.
    segment_jitter_ms: i64 = "segment.jitter.ms", AtLeast(0),
        ["log.roll.jitter.ms" in SAME, "log.roll.jitter.hours" in HOURS];
    /// The time after which a segment is closed and a new one begun even if it is not full.
    segment_ms: i64 = "segment.ms", AtLeast(1),
        ["log.roll.ms" in SAME, "log.roll.hours" in HOURS];
    /// Whether a replica that is not in sync may lead when no other is left, at the price of
    /// losing records.
    unclean_leader_election_enable: bool = "unclean.leader.election.enable", Any,
        ["unclean.leader.election.enable" in SAME];
}

/// Checks one override of a topic, as a user gives it, before it is stored.
///
/// # Errors
/// If topics have no such setting or the value is not one that it accepts.
pub fn validate(name: &str, value: &str) -> Result<(), Problem> {
    let row = &names::topic(name)?.setting;
    row.check(value, parses(row.name, value.trim()))
}

/// Checks what will hold for a topic with these `overrides`, each of which is valid alone.
///
/// # Errors
/// If they contradict one another or the broker's settings.
pub fn check_together(
    broker: &ServerSettings,
    overrides: &BTreeMap<String, String>,
) -> Result<(), Problem> {
    let topic = TopicSettings::resolve(broker, overrides);
    if topic.min_compaction_lag_ms > topic.max_compaction_lag_ms {
        return Err(Problem::Conflict(format!(
            "min.compaction.lag.ms={} is more than max.compaction.lag.ms={}",
            topic.min_compaction_lag_ms, topic.max_compaction_lag_ms
        )));
    }
    Ok(())
}

/// The row of the topic's setting `name`, if there is one.
pub fn find(name: &str) -> Option<&'static TopicSetting> {
    ROWS.iter().find(|row| row.setting.name == name)
}

/// The row that a field of [`TopicSettings`] was declared by.
fn row(name: &str) -> &'static TopicSetting {
    find(name).expect("the table declares the field and the row together")
}

fn resolve<T: SettingValue>(
    row: &'static TopicSetting,
    broker: &ServerSettings,
    overrides: &BTreeMap<String, String>,
) -> T {
    if let Some(text) = overrides.get(row.setting.name) {
        if let Some(value) = T::parse(text.trim()) {
            return value;
        }
        let problem = row.setting.refuse(text);
        tracing::warn!(%problem, "a topic's config is ignored");
    }
    T::parse(&row.inherited(broker)).expect("a topic's type takes what the broker's setting holds")
}

impl TopicSetting {
    /// The text that holds for a topic that overrides nothing.
    pub(super) fn inherited(&self, broker: &ServerSettings) -> String {
        let given = self.synonyms.iter().find_map(|synonym| {
            let (_, text) = broker.given(broker::row(synonym.name)).next()?;
            Some(synonym.in_topic_units(text))
        });
        let default = || {
            self.synonyms.iter().find_map(|synonym| {
                Some(synonym.in_topic_units(broker::row(synonym.name).default?))
            })
        };
        given
            .or_else(default)
            .expect("one of the synonyms of a topic's setting has a default")
    }

    /// The rows of the daemon's settings that give the default.
    pub(super) fn broker_rows(&self) -> impl Iterator<Item = &'static Setting> {
        self.synonyms
            .iter()
            .map(|synonym| broker::row(synonym.name))
    }
}

impl Synonym {
    fn in_topic_units(self, text: &str) -> String {
        match text.parse::<i64>() {
            // Anything below 0 means "no limit" in every unit.
            Ok(number) if self.unit != SAME => if number < 0 {
                -1
            } else {
                number.saturating_mul(self.unit)
            }
            .to_string(),
            _ => text.to_owned(),
        }
    }
}
