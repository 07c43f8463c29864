//! Every metric, once, with its help: what is counted as it happens, what is a state and
//! is gathered at the scrape, and what is timed.

use super::state::{Gathered, PartitionState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use yuxi_controller::admin::{Kind, Metric, Readiness};

/// A metric and where its value is found.
pub(super) type Read<T, V> = (Metric, fn(&T) -> V);

macro_rules! counters {
    ($owner:ident { $( #[doc = $help:literal] $field:ident = $name:literal; )+ }) => {
        #[derive(Debug, Default)]
        pub(super) struct $owner {
            $( #[doc = $help] pub(super) $field: AtomicU64, )+
        }

        impl $owner {
            pub(super) const ALL: &'static [Read<Self, u64>] = &[ $( (
                Metric { name: $name, kind: Kind::Counter, help: $help },
                |counters| counters.$field.load(Relaxed),
            ), )+ ];
        }
    };
}

macro_rules! gauges {
    ($table:ident of $owner:ty { $( #[doc = $help:literal] $name:literal = $read:expr; )+ }) => {
        pub(super) const $table: &[Read<$owner, i64>] = &[ $( (
            Metric { name: $name, kind: Kind::Gauge, help: $help },
            $read,
        ), )+ ];
    };
}

counters!(TopicCounters {
    /// Bytes of record batches that producers wrote.
    bytes_in = "kafka_server_brokertopicmetrics_bytesin_total";
    /// Bytes of record batches that consumers read.
    bytes_out = "kafka_server_brokertopicmetrics_bytesout_total";
    /// Records that producers wrote.
    messages_in = "kafka_server_brokertopicmetrics_messagesin_total";
    /// Appends to a partition that were asked for.
    produces = "kafka_server_brokertopicmetrics_totalproducerequests_total";
    /// Appends to a partition that failed.
    failed_produces = "kafka_server_brokertopicmetrics_failedproducerequests_total";
    /// Reads of a partition that were asked for.
    fetches = "kafka_server_brokertopicmetrics_totalfetchrequests_total";
    /// Reads of a partition that failed.
    failed_fetches = "kafka_server_brokertopicmetrics_failedfetchrequests_total";
    /// Batches that were refused for their form: size, checksum, timestamps, missing keys.
    rejected_batches = "kafka_server_brokertopicmetrics_invalidrecords_total";
    /// Bytes of record batches that followers here took from their leaders.
    replication_bytes_in = "kafka_server_brokertopicmetrics_replicationbytesin_total";
    /// Bytes of record batches that other brokers' followers took from leaders here.
    replication_bytes_out = "kafka_server_brokertopicmetrics_replicationbytesout_total";
});

counters!(BrokerCounters {
    /// Connections that were accepted.
    connections_opened = "yuxi_connections_opened_total";
    /// Connections that have ended.
    connections_closed = "yuxi_connections_closed_total";
    /// Connections that were turned away because of a limit.
    connections_refused = "yuxi_connections_refused_total";
    /// Connections that were ended for a frame that could not be read.
    malformed_requests = "yuxi_malformed_requests_total";
    /// How often a replica joined the in-sync replicas of a partition led here.
    isr_expands = "kafka_server_replicamanager_isrexpands_total";
    /// How often a replica that fell behind left the in-sync replicas of a partition led here.
    isr_shrinks = "kafka_server_replicamanager_isrshrinks_total";
});

gauges!(BROKER_GAUGES of Gathered {
    /// 1 starting, 3 running, 7 shutting down, 4 failed.
    "kafka_server_kafkaserver_brokerstate" = |state| match state.readiness {
        Readiness::Starting | Readiness::Waiting(_) => 1,
        Readiness::Ready => 3,
        Readiness::Failed(_) => 4,
        Readiness::Stopping => 7,
    };
    /// Partitions that have a replica here.
    "kafka_server_replicamanager_partitioncount" = |state| state.partitions.len() as i64;
    /// Partitions that this broker leads.
    "kafka_server_replicamanager_leadercount" = |state| state.count(|p| p.is_leader);
    /// Replicas here whose log can't be read or written.
    "kafka_server_replicamanager_offlinereplicacount" = |state| state.count(|p| p.is_offline);
    /// Partitions led here of which some replica is not in sync.
    "kafka_server_replicamanager_underreplicatedpartitions" =
        |state| state.count(PartitionState::is_under_replicated);
    /// Partitions led here with fewer replicas in sync than min.insync.replicas.
    "kafka_server_replicamanager_underminisrpartitioncount" =
        |state| state.count(PartitionState::is_under_min_isr);
    /// Partitions led here with just as many replicas in sync as min.insync.replicas.
    "kafka_server_replicamanager_atminisrpartitioncount" =
        |state| state.count(PartitionState::is_at_min_isr);
    /// How many committed records the follower here lacks that lacks most.
    "kafka_server_replicafetchermanager_maxlag" =
        |state| state.partitions.iter().map(|p| p.lag).max().unwrap_or(0);
    /// Idempotent producers that the partitions here remember, each counted once a partition.
    "kafka_server_replicamanager_produceridcount" =
        |state| state.partitions.iter().map(|p| p.producers as i64).sum();
    /// Partitions here with a transaction that should have been ended minutes ago.
    "kafka_server_replicamanager_partitionswithlatetransactionscount" =
        |state| state.count(|p| p.has_late_transaction);
    /// Consumer groups that this broker coordinates.
    "kafka_coordinator_group_groupmetadatamanager_numgroups" = |state| state.groups as i64;
    /// Incremental fetch sessions that are remembered.
    "kafka_server_fetchsessioncache_numincrementalfetchsessions" =
        |state| state.fetch_sessions as i64;
    /// How full the memory for keys was in the last compaction, in percent.
    "kafka_log_logcleaner_max_buffer_utilization_percent" =
        |state| state.cleaner.buffer_percent;
    /// How much of what the last compaction read it wrote again, in percent.
    "kafka_log_logcleaner_cleaner_recopy_percent" = |state| state.cleaner.recopy_percent;
    /// How many seconds the last compaction took.
    "kafka_log_logcleaner_max_clean_time_secs" = |state| state.cleaner.clean_seconds;
    /// How many seconds the oldest record is past max.compaction.lag.ms that is not compacted.
    "kafka_log_logcleaner_max_compaction_delay_secs" = |state| state.cleaner.delay_seconds;
    /// How much of the dirtiest compacted log is dirty, in percent.
    "kafka_log_logcleanermanager_max_dirty_percent" = |state| state.cleaner.max_dirty_percent;
    /// For how long no log was looked for that should be compacted, in milliseconds.
    "kafka_log_logcleanermanager_time_since_last_run_ms" =
        |state| state.cleaner.ms_since_last_run;
    /// Logs that can't be compacted because they are damaged; the broker's own log says why.
    "kafka_log_logcleanermanager_uncleanable_partitions_count" =
        |state| state.cleaner.uncleanable as i64;
    /// Bytes of these that should have been compacted.
    "kafka_log_logcleanermanager_uncleanable_bytes" =
        |state| state.cleaner.uncleanable_bytes as i64;
});

gauges!(PARTITION_GAUGES of PartitionState {
    /// The size of the partition's segments in bytes.
    "kafka_log_log_size" = |partition| partition.size_bytes as i64;
    /// How many segments the partition has.
    "kafka_log_log_numlogsegments" = |partition| partition.segments as i64;
    /// The partition's first offset.
    "kafka_log_log_logstartoffset" = |partition| partition.log_start_offset;
    /// The offset that the partition's next record gets.
    "kafka_log_log_logendoffset" = |partition| partition.log_end_offset;
    /// How many records below the high watermark transactions hide from readers of committed ones.
    "kafka_cluster_partition_laststableoffsetlag" = |partition| partition.last_stable_lag;
    /// How many replicas the partition has, where it is led.
    "kafka_cluster_partition_replicascount" = |partition| partition.as_leader(partition.replicas);
    /// How many of them are in sync, where it is led.
    "kafka_cluster_partition_insyncreplicascount" =
        |partition| partition.as_leader(partition.in_sync);
    /// 1 where the partition is led and some replica is not in sync.
    "kafka_cluster_partition_underreplicated" =
        |partition| i64::from(partition.is_under_replicated());
    /// 1 where the partition is led and fewer are in sync than min.insync.replicas.
    "kafka_cluster_partition_underminisr" = |partition| i64::from(partition.is_under_min_isr());
    /// 1 where the partition is led and just as many are in sync as min.insync.replicas.
    "kafka_cluster_partition_atminisr" = |partition| i64::from(partition.is_at_min_isr());
});

pub(super) const CONNECTIONS: Metric = Metric {
    name: "kafka_server_socketservermetrics_connection_count",
    kind: Kind::Gauge,
    help: "Open connections of clients.",
};
pub(super) const REQUESTS: Metric = Metric {
    name: "kafka_network_requestmetrics_requests_total",
    kind: Kind::Counter,
    help: "Requests that were answered, by API and version.",
};
pub(super) const ERRORS: Metric = Metric {
    name: "kafka_network_requestmetrics_errors_total",
    kind: Kind::Counter,
    help: "Errors in answers, by API and Kafka's name of the error.",
};
pub(super) const ANSWER_BYTES: Metric = Metric {
    name: "yuxi_answer_bytes_total",
    kind: Kind::Counter,
    help: "Bytes of answers, by API.",
};
pub(super) const TOTAL_TIME: Metric = Metric {
    name: "kafka_network_requestmetrics_totaltimems",
    kind: Kind::Summary,
    help: "Milliseconds from a request's arrival to its answer; quantiles over the last 5 to 10 \
           minutes.",
};
pub(super) const REQUEST_DURATION: Metric = Metric {
    name: "yuxi_request_duration_seconds",
    kind: Kind::Histogram,
    help: "Time from a request's arrival to its answer, by API.",
};
pub(super) const FLUSH_DURATION: Metric = Metric {
    name: "kafka_log_logflushstats_logflushrateandtimems",
    kind: Kind::Summary,
    help: "Milliseconds that forcing a log to disk took; quantiles over the last 5 to 10 minutes.",
};
