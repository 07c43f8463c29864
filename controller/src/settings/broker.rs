//! A daemon's own settings: the one table of them, and what it becomes.
//!
//! `ServerSettings` is immutable. It holds the texts in the order in which they
//! take precedence (this broker's dynamic configs, the cluster's dynamic
//! defaults, what the daemon was started with, the defaults of the table) and the
//! typed values that follow from them; a dynamic change makes a new one with
//! [`ServerSettings::with_dynamic`].
//!
//! Invariant: every typed field has passed its row's type and range.

use std::{collections::BTreeMap, fmt, path::Path};

use super::{
    describe::Source,
    error::{Problem, SettingsError},
    names, properties,
    row::{
        Range::{AboveZero, Any, AtLeast, Between, Fraction, MinusOneOrAtLeast, MinusOneOrBetween},
        Setting, Update,
    },
    value::{
        CleanupPolicy, CompressionType, ConsumerAssignors, Directory, EtcdEndpoints, File,
        GroupMigrationPolicy, HostPort, Listener, LogFormat, LogLevel, Password, ReplicaSelector,
        SettingValue, TimestampType,
    },
};

/// Settings that belong together, under the heading that the documents give them.
#[derive(Debug)]
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// The rows, in the order of the documents.
    pub settings: &'static [Setting],
}

macro_rules! server_settings {
    ($( $title:literal {
        $( $(#[doc = $doc:literal])+
           $field:ident: $type:ty = $name:literal, $default:expr, $range:expr, $update:ident; )+
    } )+) => {
        /// The table: every setting that a daemon takes.
        pub static SECTIONS: &[Section] = &[ $( Section {
            title: $title,
            settings: &[ $( Setting::new::<$type>(
                $name, $default, $range, Update::$update, concat!($($doc),+),
            ), )+ ],
        }, )+ ];

        /// The values that hold for one daemon.
        #[derive(Clone, Debug)]
        pub struct ServerSettings {
            layers: Layers,
            $( $( $(#[doc = $doc])+ pub $field: $type, )+ )+
        }

        impl ServerSettings {
            fn from_layers(layers: Layers) -> Result<Self, Vec<Problem>> {
                let mut problems = Vec::new();
                $( $(
                    let $field = {
                        let row = row($name);
                        keep(&mut problems, typed::<$type>(row, layers.text(row)))
                    };
                )+ )+
                $( $(
                    let Some($field) = $field else { return Err(problems) };
                )+ )+
                Ok(Self { layers, $( $( $field, )+ )+ })
            }
        }

        /// Whether `text` is of the type of the setting `name`.
        fn parses(name: &str, text: &str) -> bool {
            match name {
                $( $( $name => <$type>::parse(text).is_some(), )+ )+
                _ => false,
            }
        }
    };
}

server_settings! {
    "Identity and addresses" {
        /// The number of this broker, unique in its cluster. A data directory belongs to one
        /// number for good.
        node_id: i32 = "node.id", Some("1"), AtLeast(0), AtStart;
        /// The address that clients connect to, as PLAINTEXT://HOST:PORT. An empty host or
        /// 0.0.0.0 listens on every address of the machine, and port 0 picks a free one. There
        /// is one listener, without encryption.
        listeners: Listener = "listeners", Some("PLAINTEXT://localhost:9092"), Any, AtStart;
        /// The address that clients are told to connect to, where it is not the one in
        /// `listeners`: behind a proxy or in a container, or when listening on every address.
        /// Port 0 stands for the port really bound.
        advertised_listeners: Option<Listener> = "advertised.listeners", None, Any, AtStart;
        /// The rack or zone that this broker stands in, as clients see it in the metadata.
        broker_rack: Option<String> = "broker.rack", None, Any, AtStart;
        /// Where /healthz, /readyz and /metrics (Prometheus) are served over HTTP, as HOST:PORT.
        /// Empty serves them nowhere. There is no authentication, so name a loopback or an
        /// inside address, such as 127.0.0.1:9644.
        admin_listener: Option<HostPort> = "admin.listener", None, Any, AtStart;
    }
    "The cluster's etcd" {
        /// The members of the etcd that holds the cluster's metadata, as http://HOST:PORT or
        /// https://HOST:PORT with commas between them; one is used at a time, and the next when
        /// that one fails. If it is not set, the broker keeps its metadata in its data directory
        /// and is a complete cluster by itself.
        etcd_endpoints: Option<EtcdEndpoints> = "etcd.endpoints", None, Any, AtStart;
        /// What all keys of this cluster begin with in etcd, so that several clusters can share
        /// one. It must be the same on every broker of the cluster.
        etcd_prefix: String = "etcd.prefix", Some("/yuxi/default/"), Any, AtStart;
        /// The user as whom the broker uses etcd, where etcd's authentication is enabled. It
        /// needs to read and write the keys under `etcd.prefix`.
        etcd_user: Option<String> = "etcd.user", None, Any, AtStart;
        /// The password of `etcd.user`.
        etcd_password: Option<Password> = "etcd.password", None, Any, AtStart;
        /// A PEM file with the certificate of the authority that etcd's certificates are to be
        /// signed by. https endpoints need it.
        etcd_tls_ca: Option<File> = "etcd.tls.ca", None, Any, AtStart;
        /// A PEM file with the certificate that the broker shows to etcd, where etcd asks for one
        /// (--client-cert-auth).
        etcd_tls_certificate: Option<File> = "etcd.tls.certificate", None, Any, AtStart;
        /// A PEM file with the private key to `etcd.tls.certificate`.
        etcd_tls_key: Option<File> = "etcd.tls.key", None, Any, AtStart;
        /// How long a member of etcd may take to answer before the next one is asked.
        etcd_request_timeout_ms: i32 =
            "etcd.request.timeout.ms", Some("2000"), AtLeast(1), AtStart;
        /// How long the broker may be out of touch with etcd before the cluster takes it for
        /// dead. etcd counts whole seconds, and at least 2. Has no effect without
        /// `etcd.endpoints`.
        broker_session_timeout_ms: i32 =
            "broker.session.timeout.ms", Some("9000"), AtLeast(1), AtStart;
    }
    "The controller" {
        /// Whether this broker competes for being the cluster's controller. At least one process
        /// must. Has no effect on a broker that is a cluster by itself.
        controller_candidate: bool = "controller.candidate", Some("true"), Any, AtStart;
        /// How often the controller asks every broker for a sign of life.
        broker_heartbeat_interval_ms: i32 =
            "broker.heartbeat.interval.ms", Some("200"), AtLeast(1), AtStart;
        /// How long a broker may give no sign of life before others lead its partitions; one
        /// whose process is seen to be gone is not waited for. Should be several times
        /// `broker.heartbeat.interval.ms`.
        broker_heartbeat_timeout_ms: i32 =
            "broker.heartbeat.timeout.ms", Some("1000"), AtLeast(1), AtStart;
    }
    "Data" {
        /// The directory that holds the partitions. Takes precedence over `log.dir`. One
        /// directory is supported, not a list.
        log_dirs: Option<Directory> = "log.dirs", None, Any, AtStart;
        /// The directory that holds the partitions if `log.dirs` is not set. The default is
        /// relative to the directory in which the broker is started.
        log_dir: Directory = "log.dir", Some("yuxi-data"), Any, AtStart;
        /// How often the positions up to which logs are known to be on disk are written to
        /// recovery-point-offset-checkpoint; a start after a crash checks what lies beyond.
        log_flush_offset_checkpoint_interval_ms: i32 =
            "log.flush.offset.checkpoint.interval.ms", Some("60000"), AtLeast(1), AtStart;
        /// How often the positions at which logs begin are written to
        /// log-start-offset-checkpoint.
        log_flush_start_offset_checkpoint_interval_ms: i32 =
            "log.flush.start.offset.checkpoint.interval.ms", Some("60000"), AtLeast(1), AtStart;
        /// How often logs are checked for segments that are past their retention.
        log_retention_check_interval_ms: i64 =
            "log.retention.check.interval.ms", Some("300000"), AtLeast(1), AtStart;
        /// The value of `log.flush.interval.ms` where that is not set. Logs are checked for
        /// records that must be on disk every second, however this is set.
        log_flush_scheduler_interval_ms: i64 =
            "log.flush.scheduler.interval.ms", Some("9223372036854775807"), AtLeast(1), AtStart;
    }
    "Topics" {
        /// Whether a topic that a client asks for and that does not exist is created.
        auto_create_topics_enable: bool =
            "auto.create.topics.enable", Some("true"), Any, AtStart;
        /// Whether topics can be deleted.
        delete_topic_enable: bool = "delete.topic.enable", Some("true"), Any, AtStart;
        /// How many partitions a topic gets that is created without saying.
        num_partitions: i32 = "num.partitions", Some("1"), AtLeast(1), AtStart;
        /// How many replicas a topic gets that is created without saying.
        default_replication_factor: i16 =
            "default.replication.factor", Some("1"), AtLeast(1), AtStart;
    }
    "Leaders" {
        /// Whether leaders go back to their preferred replicas by themselves once these are in
        /// sync again.
        auto_leader_rebalance_enable: bool =
            "auto.leader.rebalance.enable", Some("true"), Any, AtStart;
        /// How often the controller looks whether leaders should go back.
        leader_imbalance_check_interval_seconds: i64 =
            "leader.imbalance.check.interval.seconds", Some("300"), AtLeast(1), AtStart;
        /// How many percent of the partitions that a broker should lead may be led by others
        /// before they go back to it.
        leader_imbalance_per_broker_percentage: i32 =
            "leader.imbalance.per.broker.percentage", Some("10"), AtLeast(0), AtStart;
    }
    "Compaction" {
        /// Whether topics with cleanup.policy=compact are compacted. Without it they grow for
        /// ever, the topic of committed offsets among them.
        log_cleaner_enable: bool = "log.cleaner.enable", Some("true"), Any, AtStart;
        /// How many logs are compacted at once.
        log_cleaner_threads: i32 = "log.cleaner.threads", Some("1"), AtLeast(0), Running;
        /// The most memory that the keys of the logs take that are being compacted, all
        /// together, at 24 bytes a key. A log with more keys is compacted in several rounds. At
        /// least 1 MiB for each of `log.cleaner.threads`.
        log_cleaner_dedupe_buffer_size: i64 =
            "log.cleaner.dedupe.buffer.size", Some("134217728"), AtLeast(1_048_576), Running;
        /// How full that memory may become. The fuller, the more keys fit and the slower it is.
        log_cleaner_io_buffer_load_factor: f64 =
            "log.cleaner.io.buffer.load.factor", Some("0.9"), Fraction, Running;
        /// The most bytes that compaction reads and writes in a second, on average.
        log_cleaner_io_max_bytes_per_second: f64 = "log.cleaner.io.max.bytes.per.second",
            Some("1.7976931348623157E308"), AboveZero, Running;
        /// How long compaction rests when no log is due.
        log_cleaner_backoff_ms: i64 =
            "log.cleaner.backoff.ms", Some("15000"), AtLeast(0), Running;
    }
    "What a topic has that does not say otherwise" {
        /// The largest batch of records that is accepted, in bytes after compression.
        message_max_bytes: i32 = "message.max.bytes", Some("1048588"), AtLeast(0), Running;
        /// The largest size of a segment file.
        log_segment_bytes: i32 = "log.segment.bytes", Some("1073741824"), AtLeast(14), Running;
        /// The time after which a segment is closed and a new one begun even if it is not full.
        /// Takes precedence over `log.roll.hours`.
        log_roll_ms: Option<i64> = "log.roll.ms", None, AtLeast(1), Running;
        /// As `log.roll.ms`, in hours, if that is not set.
        log_roll_hours: i32 = "log.roll.hours", Some("168"), AtLeast(1), AtStart;
        /// Up to how much earlier a segment may be closed, chosen at random, so that not all are
        /// closed at once. Takes precedence over `log.roll.jitter.hours`.
        log_roll_jitter_ms: Option<i64> = "log.roll.jitter.ms", None, AtLeast(0), Running;
        /// As `log.roll.jitter.ms`, in hours, if that is not set.
        log_roll_jitter_hours: i32 = "log.roll.jitter.hours", Some("0"), AtLeast(0), AtStart;
        /// How long records are kept; -1 for ever. Takes precedence over `log.retention.minutes`.
        log_retention_ms: Option<i64> =
            "log.retention.ms", None, MinusOneOrAtLeast(1), Running;
        /// As `log.retention.ms`, in minutes, if that is not set. Takes precedence over
        /// `log.retention.hours`.
        log_retention_minutes: Option<i32> =
            "log.retention.minutes", None, MinusOneOrAtLeast(1), AtStart;
        /// As `log.retention.ms`, in hours, if neither that nor `log.retention.minutes` is set.
        log_retention_hours: i32 =
            "log.retention.hours", Some("168"), MinusOneOrAtLeast(1), AtStart;
        /// The size to which a partition's log is cut by deleting its oldest segments; -1 for
        /// no limit.
        log_retention_bytes: i64 =
            "log.retention.bytes", Some("-1"), MinusOneOrAtLeast(0), Running;
        /// What becomes of old records: delete removes them by age and size, compact keeps only
        /// the last record of each key, and delete,compact does both.
        log_cleanup_policy: CleanupPolicy =
            "log.cleanup.policy", Some("delete"), Any, Running;
        /// How much of a compacted partition's log must be new for it to be compacted, from 0
        /// to 1.
        log_cleaner_min_cleanable_ratio: f64 =
            "log.cleaner.min.cleanable.ratio", Some("0.5"), Fraction, Running;
        /// How long a record of a compacted topic stays in any case.
        log_cleaner_min_compaction_lag_ms: i64 =
            "log.cleaner.min.compaction.lag.ms", Some("0"), AtLeast(0), Running;
        /// After this time a record of a compacted topic is compacted whatever
        /// `log.cleaner.min.cleanable.ratio` says; its segment is closed for that.
        log_cleaner_max_compaction_lag_ms: i64 = "log.cleaner.max.compaction.lag.ms",
            Some("9223372036854775807"), AtLeast(1), Running;
        /// How long a compacted topic keeps a record without value, and the mark of a
        /// transaction whose records are gone, after the compaction that found them. Within
        /// this time a consumer that began at the start must have come to the end to see them.
        log_cleaner_delete_retention_ms: i64 =
            "log.cleaner.delete.retention.ms", Some("86400000"), AtLeast(0), Running;
        /// The size of an offset or time index file; a segment whose index is full is closed.
        log_index_size_max_bytes: i32 =
            "log.index.size.max.bytes", Some("10485760"), AtLeast(12), Running;
        /// How many bytes of records lie between two entries of an index.
        log_index_interval_bytes: i32 =
            "log.index.interval.bytes", Some("4096"), AtLeast(0), Running;
        /// How long a deleted segment's files stay on disk, so that readers can finish.
        log_segment_delete_delay_ms: i64 =
            "log.segment.delete.delay.ms", Some("60000"), AtLeast(0), Running;
        /// After how many records a log is forced to disk. The default leaves it to the
        /// operating system.
        log_flush_interval_messages: i64 =
            "log.flush.interval.messages", Some("9223372036854775807"), AtLeast(1), Running;
        /// The longest time that a record is not forced to disk. If it is not set,
        /// `log.flush.scheduler.interval.ms` holds.
        log_flush_interval_ms: Option<i64> = "log.flush.interval.ms", None, AtLeast(0), Running;
        /// Whether a new segment's file gets its full size at once.
        log_preallocate: bool = "log.preallocate", Some("false"), Any, Running;
        /// Whether a record keeps the producer's timestamp or gets the time of its append.
        log_message_timestamp_type: TimestampType =
            "log.message.timestamp.type", Some("CreateTime"), Any, Running;
        /// How far a record's timestamp may lie before the broker's clock; more is refused.
        /// Has no effect with LogAppendTime.
        log_message_timestamp_before_max_ms: i64 = "log.message.timestamp.before.max.ms",
            Some("9223372036854775807"), AtLeast(0), Running;
        /// How far a record's timestamp may lie after the broker's clock; more is refused.
        /// Has no effect with LogAppendTime.
        log_message_timestamp_after_max_ms: i64 =
            "log.message.timestamp.after.max.ms", Some("3600000"), AtLeast(0), Running;
        /// How batches are compressed on disk; `producer` keeps what the producer chose.
        compression_type: CompressionType = "compression.type", Some("producer"), Any, Running;
        /// The level with which the broker compresses if `compression.type` is gzip; -1 for the
        /// codec's own.
        compression_gzip_level: i32 =
            "compression.gzip.level", Some("-1"), MinusOneOrBetween(1, 9), Running;
        /// The level with which the broker compresses if `compression.type` is zstd.
        compression_zstd_level: i32 =
            "compression.zstd.level", Some("3"), Between(-131_072, 22), Running;
        /// How many in-sync replicas must have a write before a producer with acks=all is told
        /// that it succeeded; with fewer in sync such writes are refused. A topic with fewer
        /// replicas than that needs only as many as it has.
        min_insync_replicas: i32 = "min.insync.replicas", Some("1"), AtLeast(1), Running;
        /// Whether a replica that is not in sync may lead when no other is left, at the price
        /// of losing records.
        unclean_leader_election_enable: bool =
            "unclean.leader.election.enable", Some("false"), Any, Running;
    }
    "Replication" {
        /// How long a follower may be behind its leader's log end before it is taken out of
        /// the in-sync replicas.
        replica_lag_time_max_ms: i64 =
            "replica.lag.time.max.ms", Some("30000"), AtLeast(1), AtStart;
        /// The most bytes of records that a follower asks for from one partition at once. A
        /// first batch that is larger comes all the same.
        replica_fetch_max_bytes: i32 =
            "replica.fetch.max.bytes", Some("1048576"), AtLeast(0), AtStart;
        /// The most bytes of records that a follower asks for in one request.
        replica_fetch_response_max_bytes: i32 =
            "replica.fetch.response.max.bytes", Some("10485760"), AtLeast(0), AtStart;
        /// How long a leader that has nothing new keeps a follower waiting. It is also how
        /// long a follower may not know that records it has are committed. At most
        /// `replica.lag.time.max.ms`.
        replica_fetch_wait_max_ms: i32 =
            "replica.fetch.wait.max.ms", Some("500"), AtLeast(1), AtStart;
        /// How many bytes of records a leader waits for before it answers a follower.
        replica_fetch_min_bytes: i32 =
            "replica.fetch.min.bytes", Some("1"), AtLeast(0), AtStart;
        /// The longest time that a follower rests after a fetch that failed; the first few
        /// times it rests much less.
        replica_fetch_backoff_ms: i32 =
            "replica.fetch.backoff.ms", Some("1000"), AtLeast(0), AtStart;
        /// How long a follower waits for its leader's answer before it connects anew.
        replica_socket_timeout_ms: i32 =
            "replica.socket.timeout.ms", Some("30000"), AtLeast(1), AtStart;
        /// Which replica consumers are told to read from: by default the leader, with
        /// org.apache.kafka.common.replica.RackAwareReplicaSelector an in-sync one in the
        /// consumer's own rack (its `client.rack`, the broker's `broker.rack`).
        replica_selector_class: ReplicaSelector = "replica.selector.class",
            Some("org.apache.kafka.common.replica.LeaderSelector"), Any, AtStart;
        /// How often high watermarks are written to replication-offset-checkpoint, so that a
        /// restarted broker knows what was committed.
        replica_high_watermark_checkpoint_interval_ms: i64 =
            "replica.high.watermark.checkpoint.interval.ms", Some("5000"), AtLeast(1), AtStart;
    }
    "Consumer groups" {
        /// How many partitions the topic of committed offsets is created with. Can't be changed
        /// once it exists.
        offsets_topic_num_partitions: i32 =
            "offsets.topic.num.partitions", Some("50"), AtLeast(1), AtStart;
        /// How many replicas the topic of committed offsets is created with. Groups have to
        /// wait until that many brokers are there. A broker that is a cluster by itself takes
        /// one.
        offsets_topic_replication_factor: i16 =
            "offsets.topic.replication.factor", Some("3"), AtLeast(1), AtStart;
        /// The largest size of a segment of the topic of committed offsets.
        offsets_topic_segment_bytes: i32 =
            "offsets.topic.segment.bytes", Some("104857600"), AtLeast(14), AtStart;
        /// How long the offsets of a group without members are kept.
        offsets_retention_minutes: i32 =
            "offsets.retention.minutes", Some("10080"), AtLeast(1), AtStart;
        /// How often groups are checked for offsets that are past their retention.
        offsets_retention_check_interval_ms: i64 =
            "offsets.retention.check.interval.ms", Some("600000"), AtLeast(1), AtStart;
        /// The longest text that may be committed with an offset.
        offset_metadata_max_bytes: i32 =
            "offset.metadata.max.bytes", Some("4096"), AtLeast(0), AtStart;
        /// The shortest session time-out that a consumer may ask for.
        group_min_session_timeout_ms: i32 =
            "group.min.session.timeout.ms", Some("6000"), AtLeast(1), AtStart;
        /// The longest session time-out that a consumer may ask for.
        group_max_session_timeout_ms: i32 =
            "group.max.session.timeout.ms", Some("1800000"), AtLeast(1), AtStart;
        /// How long the first rebalance of an empty group waits for more members.
        group_initial_rebalance_delay_ms: i32 =
            "group.initial.rebalance.delay.ms", Some("3000"), AtLeast(0), AtStart;
        /// How many members a group can have.
        group_max_size: i32 = "group.max.size", Some("2147483647"), AtLeast(1), AtStart;
        /// How long a member may be silent that speaks the consumer protocol (KIP-848).
        group_consumer_session_timeout_ms: i32 =
            "group.consumer.session.timeout.ms", Some("45000"), AtLeast(1), AtStart;
        /// The shortest session time-out that can be set for one group.
        group_consumer_min_session_timeout_ms: i32 =
            "group.consumer.min.session.timeout.ms", Some("45000"), AtLeast(1), AtStart;
        /// The longest session time-out that can be set for one group.
        group_consumer_max_session_timeout_ms: i32 =
            "group.consumer.max.session.timeout.ms", Some("60000"), AtLeast(1), AtStart;
        /// How often a member is told to be heard from that speaks the consumer protocol.
        group_consumer_heartbeat_interval_ms: i32 =
            "group.consumer.heartbeat.interval.ms", Some("5000"), AtLeast(1), AtStart;
        /// The shortest heartbeat interval that can be set for one group.
        group_consumer_min_heartbeat_interval_ms: i32 =
            "group.consumer.min.heartbeat.interval.ms", Some("5000"), AtLeast(1), AtStart;
        /// The longest heartbeat interval that can be set for one group.
        group_consumer_max_heartbeat_interval_ms: i32 =
            "group.consumer.max.heartbeat.interval.ms", Some("15000"), AtLeast(1), AtStart;
        /// How many members a group of the consumer protocol can have.
        group_consumer_max_size: i32 =
            "group.consumer.max.size", Some("2147483647"), AtLeast(1), AtStart;
        /// The assignors that members of the consumer protocol can choose from; the first is
        /// taken where none is chosen.
        group_consumer_assignors: ConsumerAssignors =
            "group.consumer.assignors", Some("uniform,range"), Any, AtStart;
        /// Which groups may become ones of the other protocol while they have members: classic
        /// groups when a member of the consumer protocol joins (upgrade), groups of the consumer
        /// protocol when the last such member leaves (downgrade).
        group_consumer_migration_policy: GroupMigrationPolicy =
            "group.consumer.migration.policy", Some("bidirectional"), Any, AtStart;
    }
    "Transactions" {
        /// How many partitions the topic of transactions is created with. Can't be changed
        /// once it exists.
        transaction_state_log_num_partitions: i32 =
            "transaction.state.log.num.partitions", Some("50"), AtLeast(1), AtStart;
        /// How many replicas the topic of transactions is created with. Transactions have to
        /// wait until that many brokers are there. A broker that is a cluster by itself takes
        /// one.
        transaction_state_log_replication_factor: i16 =
            "transaction.state.log.replication.factor", Some("3"), AtLeast(1), AtStart;
        /// The min.insync.replicas that the topic of transactions is created with.
        transaction_state_log_min_isr: i32 =
            "transaction.state.log.min.isr", Some("2"), AtLeast(1), AtStart;
        /// The largest size of a segment of the topic of transactions.
        transaction_state_log_segment_bytes: i32 =
            "transaction.state.log.segment.bytes", Some("104857600"), AtLeast(1_048_576), AtStart;
        /// The longest transaction.timeout.ms that a producer may ask for.
        transaction_max_timeout_ms: i32 =
            "transaction.max.timeout.ms", Some("900000"), AtLeast(1), AtStart;
        /// How often transactions are looked at for having been open longer than that.
        transaction_abort_timed_out_transaction_cleanup_interval_ms: i32 =
            "transaction.abort.timed.out.transaction.cleanup.interval.ms",
            Some("10000"), AtLeast(1), AtStart;
        /// How long a transactional id is remembered that begins and ends no transaction.
        transactional_id_expiration_ms: i32 =
            "transactional.id.expiration.ms", Some("604800000"), AtLeast(1), AtStart;
        /// How often transactional ids are looked at for that.
        transaction_remove_expired_transaction_cleanup_interval_ms: i32 =
            "transaction.remove.expired.transaction.cleanup.interval.ms",
            Some("3600000"), AtLeast(1), AtStart;
        /// Whether a transaction's coordinator is asked before its first records are written to
        /// a partition, for producers that speak transaction.version 1 or less. For others it
        /// always is.
        transaction_partition_verification_enable: bool =
            "transaction.partition.verification.enable", Some("true"), Any, Running;
    }
    "Idempotent producers" {
        /// How long a producer that writes nothing is remembered for telling duplicates.
        producer_id_expiration_ms: i32 =
            "producer.id.expiration.ms", Some("86400000"), AtLeast(1), Running;
        /// How often producers are checked for having been silent that long.
        producer_id_expiration_check_interval_ms: i32 =
            "producer.id.expiration.check.interval.ms", Some("600000"), AtLeast(1), AtStart;
    }
    "Connections and limits" {
        /// How many connections are accepted in all; more are closed at once.
        max_connections: i32 = "max.connections", Some("16384"), AtLeast(1), Running;
        /// How many connections are accepted from one address; more are closed at once.
        max_connections_per_ip: i32 =
            "max.connections.per.ip", Some("8192"), AtLeast(1), Running;
        /// How long a connection may be silent before it is closed; -1 for ever.
        connections_max_idle_ms: i64 =
            "connections.max.idle.ms", Some("600000"), MinusOneOrAtLeast(1), AtStart;
        /// The largest request, in bytes; the connection of a larger one is closed.
        socket_request_max_bytes: i32 =
            "socket.request.max.bytes", Some("104857600"), AtLeast(1), AtStart;
        /// How many bytes of requests may be in memory at once, over all connections; beyond
        /// it no more are read until some are answered. -1 for no limit.
        queued_max_request_bytes: i64 =
            "queued.max.request.bytes", Some("268435456"), MinusOneOrAtLeast(1), AtStart;
        /// How many bytes of requests of one connection may be unanswered; beyond it no more are
        /// read from that connection. One request is always let in.
        connection_in_flight_max_bytes: i64 =
            "connection.in.flight.max.bytes", Some("67108864"), AtLeast(1), AtStart;
        /// The kernel's send buffer of a connection (SO_SNDBUF); -1 leaves it to the system.
        socket_send_buffer_bytes: i32 =
            "socket.send.buffer.bytes", Some("-1"), MinusOneOrAtLeast(1), AtStart;
        /// The kernel's receive buffer of a connection (SO_RCVBUF); -1 leaves it to the system.
        socket_receive_buffer_bytes: i32 =
            "socket.receive.buffer.bytes", Some("-1"), MinusOneOrAtLeast(1), AtStart;
        /// The most bytes of records in one answer to a Fetch, whatever the client asks for.
        fetch_max_bytes: i32 = "fetch.max.bytes", Some("57671680"), AtLeast(1024), AtStart;
        /// How many incremental fetch sessions are remembered (KIP-227); 0 remembers none.
        max_incremental_fetch_session_cache_slots: i32 =
            "max.incremental.fetch.session.cache.slots", Some("1000"), AtLeast(0), AtStart;
        /// The most partitions in one answer to DescribeTopicPartitions.
        max_request_partition_size_limit: i32 =
            "max.request.partition.size.limit", Some("2000"), AtLeast(1), AtStart;
    }
    "The daemon's own log lines" {
        /// Whether log lines are text for people or one JSON object each.
        log_format: LogFormat = "log.format", Some("text"), Any, AtStart;
        /// The least severe log lines that are written.
        log_level: LogLevel = "log.level", Some("info"), Any, AtStart;
    }
}

/// What the settings were given as, each layer taking precedence over the next.
#[derive(Clone, Default)]
struct Layers {
    broker: BTreeMap<String, String>,
    cluster_defaults: BTreeMap<String, String>,
    fixed: BTreeMap<String, String>,
}

/// Without the texts: one of them may be a password.
impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layers").finish_non_exhaustive()
    }
}

impl Layers {
    /// The texts that were given for `row`, the one that holds first.
    fn given(&self, row: &'static Setting) -> impl Iterator<Item = (Source, &str)> {
        [
            (Source::DynamicBroker, &self.broker),
            (Source::DynamicDefaultBroker, &self.cluster_defaults),
            (Source::StaticBroker, &self.fixed),
        ]
        .into_iter()
        .filter_map(|(source, layer)| Some((source, layer.get(row.name)?.trim())))
    }

    fn text(&self, row: &'static Setting) -> Option<&str> {
        self.given(row).next().map(|(_, text)| text).or(row.default)
    }
}

impl ServerSettings {
    /// Reads the text of a `.properties` file and then `overrides` (from
    /// [`parse_override`](super::parse_override)), of which the last holds.
    ///
    /// # Errors
    /// Everything that is wrong, each with its key, value and what is accepted.
    pub fn from_properties(
        text: &str,
        overrides: &[(String, String)],
    ) -> Result<Self, SettingsError> {
        let mut fixed = properties::parse(text)?;
        fixed.extend(overrides.iter().cloned());
        let mut problems: Vec<Problem> = fixed
            .keys()
            .filter_map(|name| names::broker(name).err())
            .collect();
        let layers = Layers {
            fixed,
            ..Layers::default()
        };
        match Self::from_layers(layers) {
            Ok(settings) => {
                problems.extend(settings.conflicts());
                if problems.is_empty() {
                    return Ok(settings);
                }
            }
            Err(more) => problems.extend(more),
        }
        Err(SettingsError::new(problems))
    }

    /// The settings that hold once the dynamic configs are laid over what this daemon
    /// was started with: those of this broker over those of the whole cluster. What an
    /// earlier call laid over it no longer holds.
    ///
    /// The configs were checked by [`validate_dynamic`] when they were set. One that is
    /// not valid (another version wrote it) is left out, and the log says so.
    #[must_use]
    pub fn with_dynamic(
        &self,
        cluster_defaults: &BTreeMap<String, String>,
        broker: &BTreeMap<String, String>,
    ) -> Self {
        let layers = Layers {
            broker: valid_dynamic(broker),
            cluster_defaults: valid_dynamic(cluster_defaults),
            fixed: self.layers.fixed.clone(),
        };
        Self::from_layers(layers).expect("every text of these layers has passed its row")
    }

    /// Checks dynamic configs, each of which is valid alone, together with what this daemon
    /// was started with.
    ///
    /// # Errors
    /// If what would hold contradicts itself.
    pub fn check_dynamic_together(
        &self,
        cluster_defaults: &BTreeMap<String, String>,
        broker: &BTreeMap<String, String>,
    ) -> Result<(), Problem> {
        let conflicts = self.with_dynamic(cluster_defaults, broker).conflicts();
        conflicts.into_iter().next().map_or(Ok(()), Err)
    }

    /// The directory that holds the partitions.
    pub fn data_dir(&self) -> &Path {
        &self.log_dirs.as_ref().unwrap_or(&self.log_dir).0
    }

    /// The address that clients are told to connect to, given the port really bound.
    pub fn advertised(&self, bound_port: u16) -> HostPort {
        let Listener(address) = self
            .advertised_listeners
            .as_ref()
            .unwrap_or(&self.listeners);
        HostPort {
            host: address.host.clone(),
            port: match address.port {
                0 => bound_port,
                port => port,
            },
        }
    }

    /// The texts that were given for `row` and where, the one that holds first.
    pub(super) fn given(&self, row: &'static Setting) -> impl Iterator<Item = (Source, &str)> {
        self.layers.given(row)
    }

    /// A time-out and an interval must lie between what they may be, and a member must have
    /// time for more than one heartbeat.
    fn consumer_group_conflicts(&self) -> Vec<String> {
        let mut found = Vec::new();
        let bounds = [
            (
                "group.consumer.{}session.timeout.ms",
                self.group_consumer_min_session_timeout_ms,
                self.group_consumer_session_timeout_ms,
                self.group_consumer_max_session_timeout_ms,
            ),
            (
                "group.consumer.{}heartbeat.interval.ms",
                self.group_consumer_min_heartbeat_interval_ms,
                self.group_consumer_heartbeat_interval_ms,
                self.group_consumer_max_heartbeat_interval_ms,
            ),
        ];
        for (name, low, value, high) in bounds {
            if !(low..=high).contains(&value) {
                found.push(format!(
                    "{}={value} does not lie between {}={low} and {}={high}",
                    name.replace("{}", ""),
                    name.replace("{}", "min."),
                    name.replace("{}", "max.")
                ));
            }
        }
        let session = self.group_consumer_session_timeout_ms;
        let heartbeat = self.group_consumer_heartbeat_interval_ms;
        if heartbeat >= session {
            found.push(format!(
                "group.consumer.heartbeat.interval.ms={heartbeat} is not less than \
                 group.consumer.session.timeout.ms={session}"
            ));
        }
        found
    }

    fn conflicts(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        if self.group_min_session_timeout_ms > self.group_max_session_timeout_ms {
            found.push(format!(
                "group.min.session.timeout.ms={} is more than group.max.session.timeout.ms={}",
                self.group_min_session_timeout_ms, self.group_max_session_timeout_ms
            ));
        }
        found.extend(self.consumer_group_conflicts());
        match &self.advertised_listeners {
            Some(Listener(address)) if address.is_wildcard() => found.push(format!(
                "advertised.listeners={} is not an address that a client can connect to: name a \
                 host",
                Listener(address.clone())
            )),
            None if self.listeners.0.is_wildcard() => found.push(format!(
                "listeners={} listens on every address of the machine: set advertised.listeners \
                 to the PLAINTEXT://HOST:PORT that clients are to connect to",
                self.listeners
            )),
            _ => {}
        }
        if i64::from(self.replica_fetch_wait_max_ms) > self.replica_lag_time_max_ms {
            found.push(format!(
                "replica.fetch.wait.max.ms={} is more than replica.lag.time.max.ms={}",
                self.replica_fetch_wait_max_ms, self.replica_lag_time_max_ms
            ));
        }
        let request_max_bytes = i64::from(self.socket_request_max_bytes);
        if (1..request_max_bytes).contains(&self.queued_max_request_bytes) {
            found.push(format!(
                "queued.max.request.bytes={} could never let in a request of \
                 socket.request.max.bytes={request_max_bytes}: make it as large, or -1",
                self.queued_max_request_bytes
            ));
        }
        if self.log_cleaner_min_compaction_lag_ms > self.log_cleaner_max_compaction_lag_ms {
            found.push(format!(
                "log.cleaner.min.compaction.lag.ms={} is more than \
                 log.cleaner.max.compaction.lag.ms={}",
                self.log_cleaner_min_compaction_lag_ms, self.log_cleaner_max_compaction_lag_ms
            ));
        }
        let per_thread =
            self.log_cleaner_dedupe_buffer_size / i64::from(self.log_cleaner_threads.max(1));
        if self.log_cleaner_enable && per_thread < 1 << 20 {
            found.push(format!(
                "log.cleaner.dedupe.buffer.size={} is less than 1 MiB for each of \
                 log.cleaner.threads={}",
                self.log_cleaner_dedupe_buffer_size, self.log_cleaner_threads
            ));
        }
        found.extend(self.etcd_conflicts());
        found.into_iter().map(Problem::Conflict).collect()
    }
}

impl ServerSettings {
    fn etcd_conflicts(&self) -> Vec<String> {
        let mut found = Vec::new();
        let Some(endpoints) = &self.etcd_endpoints else {
            return found;
        };
        if endpoints.are_encrypted() && self.etcd_tls_ca.is_none() {
            found.push(
                "etcd.endpoints has https and etcd.tls.ca is not set: name the PEM file of the \
                 authority that signed etcd's certificates"
                    .to_owned(),
            );
        }
        let given = [
            ("etcd.tls.ca", &self.etcd_tls_ca),
            ("etcd.tls.certificate", &self.etcd_tls_certificate),
            ("etcd.tls.key", &self.etcd_tls_key),
        ];
        if let Some((name, _)) = given.iter().find(|(_, file)| file.is_some())
            && !endpoints.are_encrypted()
        {
            found.push(format!(
                "{name} has no effect with http in etcd.endpoints: use https, or remove it"
            ));
        }
        if self.etcd_tls_certificate.is_some() != self.etcd_tls_key.is_some() {
            found.push(
                "etcd.tls.certificate and etcd.tls.key belong together: set both, or neither"
                    .to_owned(),
            );
        }
        if self.etcd_user.is_some() != self.etcd_password.is_some() {
            found.push(
                "etcd.user and etcd.password belong together: set both, or neither".to_owned(),
            );
        }
        if self.etcd_request_timeout_ms > self.broker_session_timeout_ms / 2 {
            found.push(format!(
                "etcd.request.timeout.ms={} is more than half of broker.session.timeout.ms={}: one \
                 silent member of etcd would cost the broker its session",
                self.etcd_request_timeout_ms, self.broker_session_timeout_ms
            ));
        }
        found
    }
}

/// Checks a dynamic config of a broker or of the whole cluster before it is stored.
///
/// # Errors
/// If there is no such setting, if it is only read at the start, or if the value is not
/// one that it accepts.
pub fn validate_dynamic(name: &str, value: &str) -> Result<(), Problem> {
    let row = names::broker(name)?;
    match row.update {
        Update::Running => row.check(value, parses(row.name, value.trim())),
        Update::AtStart | Update::PerTopic | Update::PerGroup => {
            Err(Problem::ReadOnly { key: row.name })
        }
    }
}

/// The row of the daemon's setting `name`, if there is one.
pub fn find(name: &str) -> Option<&'static Setting> {
    rows().find(|row| row.name == name)
}

/// Every row of the table, in the order of the documents.
pub fn rows() -> impl Iterator<Item = &'static Setting> {
    SECTIONS.iter().flat_map(|section| section.settings)
}

/// The row that a field of [`ServerSettings`] was declared by.
pub(super) fn row(name: &str) -> &'static Setting {
    find(name).expect("the table declares the field and the row together")
}

fn valid_dynamic(configs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let valid = |(name, value): &(&String, &String)| {
        validate_dynamic(name, value)
            .inspect_err(|problem| tracing::warn!(%problem, "a dynamic config is ignored"))
            .is_ok()
    };
    let owned = |(name, value): (&String, &String)| (name.clone(), value.clone());
    configs.iter().filter(valid).map(owned).collect()
}

fn typed<T: SettingValue>(row: &'static Setting, text: Option<&str>) -> Result<T, Problem> {
    match text {
        Some(text) => row.parse(text),
        None => T::unset().ok_or_else(|| Problem::Missing {
            key: row.name,
            expected: row.expected(),
        }),
    }
}

fn keep<T>(problems: &mut Vec<Problem>, result: Result<T, Problem>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}
