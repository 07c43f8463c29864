//! What the broker counts and measures, and how Prometheus reads it.
//!
//! Every metric is declared once here, with its help. The names are those under which
//! Kafka's own appear behind the JMX exporter, so that existing dashboards work; what
//! Kafka has no name for begins with `yuxi_`. Call sites say what happened
//! ([`Metrics::records_in`]) and know no metric.
//!
//! One [`Metrics`] belongs to one broker and is shared by everything in it. Counters
//! only rise, also when a topic is deleted: its own go, the broker's total stays.
//! What is a state and not an event (partitions, connections) is gathered at the
//! scrape as a [`Gathered`].

mod exposition;
mod histogram;
mod process;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use exposition::{Kind, Metric, Page};
use histogram::{BOUNDS, Histogram};
use yuxi_protocol::error_code::ErrorCode;

/// A version past the last of these is counted with it; no API has so many.
const VERSIONS: usize = 32;

/// The counters and timings of one broker.
#[derive(Debug)]
pub(crate) struct Metrics {
    apis: Box<[ApiMetrics]>,
    errors: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    broker: BrokerCounters,
    all_topics: TopicCounters,
    topics: RwLock<HashMap<Arc<str>, Arc<TopicCounters>>>,
    flushes: Histogram,
}

#[derive(Debug)]
struct ApiMetrics {
    key: i16,
    name: &'static str,
    requests: [AtomicU64; VERSIONS],
    answer_bytes: AtomicU64,
    took: Histogram,
}

/// What is true of the broker at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gathered {
    /// How far the broker is.
    pub(crate) readiness: Readiness,
    /// Every partition that has a replica here.
    pub(crate) partitions: Vec<PartitionState>,
    /// The cluster, if this broker is its controller.
    pub(crate) controls: Option<ClusterState>,
    /// Consumer groups that this broker coordinates.
    pub(crate) groups: usize,
    /// Incremental fetch sessions that are remembered.
    pub(crate) fetch_sessions: usize,
    /// Compaction.
    pub(crate) cleaner: CleanerState,
}

/// How compaction gets on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CleanerState {
    /// How full the memory for keys was in the last compaction, in percent.
    pub(crate) buffer_percent: i64,
    /// How much of what the last compaction read it wrote again, in percent.
    pub(crate) recopy_percent: i64,
    /// How long the last compaction took.
    pub(crate) clean_seconds: i64,
    /// How long the oldest record is past `max.compaction.lag.ms` that is not compacted.
    pub(crate) delay_seconds: i64,
    /// How much of the dirtiest log is dirty, in percent.
    pub(crate) max_dirty_percent: i64,
    /// Since when no log was looked for that should be compacted.
    pub(crate) ms_since_last_run: i64,
    /// Logs that can't be compacted.
    pub(crate) uncleanable: usize,
    /// Their dirty bytes.
    pub(crate) uncleanable_bytes: u64,
}

/// How far the broker is in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Logs are being opened; clients can't connect yet.
    #[default]
    Starting,
    /// Clients are served.
    Ready,
    /// A controlled shutdown is under way.
    Stopping,
    /// Something is broken that a restart or an operator must mend, in words.
    Failed(String),
}

/// One replica on this broker.
#[derive(Clone, Debug)]
pub(crate) struct PartitionState {
    /// The topic's name.
    pub(crate) topic: Arc<str>,
    /// The partition's number within the topic.
    pub(crate) partition: i32,
    /// Whether this broker leads it.
    pub(crate) is_leader: bool,
    /// Whether its log can't be read or written.
    pub(crate) is_offline: bool,
    /// Whether this broker leads it and some replica is not in sync.
    pub(crate) is_under_replicated: bool,
    /// Whether this broker leads it and fewer than `min.insync.replicas` are in sync.
    pub(crate) is_under_min_isr: bool,
    /// How many committed records a follower lacks.
    pub(crate) lag: i64,
    /// How many committed records an open transaction hides from readers of committed ones.
    pub(crate) last_stable_lag: i64,
    /// How many idempotent producers are remembered.
    pub(crate) producers: usize,
    /// Whether a transaction is open for longer than its coordinator lets it.
    pub(crate) has_late_transaction: bool,
    /// The first offset.
    pub(crate) log_start_offset: i64,
    /// The offset that the next record gets.
    pub(crate) log_end_offset: i64,
    /// The size of its segments.
    pub(crate) size_bytes: u64,
    /// How many segments it has.
    pub(crate) segments: usize,
}

/// The cluster as its controller sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterState {
    /// Topics in all.
    pub(crate) topics: usize,
    /// Partitions in all.
    pub(crate) partitions: usize,
    /// Partitions without a leader.
    pub(crate) offline_partitions: usize,
    /// Brokers that are registered.
    pub(crate) brokers: usize,
}

/// A metric and where its value is found.
type Read<T, V> = (Metric, fn(&T) -> V);

macro_rules! counters {
    ($owner:ident { $( #[doc = $help:literal] $field:ident = $name:literal; )+ }) => {
        #[derive(Debug, Default)]
        struct $owner {
            $( #[doc = $help] $field: AtomicU64, )+
        }

        impl $owner {
            const ALL: &'static [Read<Self, u64>] = &[ $( (
                Metric { name: $name, kind: Kind::Counter, help: $help },
                |counters| counters.$field.load(Relaxed),
            ), )+ ];
        }
    };
}

macro_rules! gauges {
    ($table:ident of $owner:ty { $( #[doc = $help:literal] $name:literal = $read:expr; )+ }) => {
        const $table: &[Read<$owner, i64>] = &[ $( (
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
        Readiness::Starting => 1,
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
        |state| state.count(|p| p.is_under_replicated);
    /// Partitions led here with fewer replicas in sync than min.insync.replicas.
    "kafka_server_replicamanager_underminisrpartitioncount" =
        |state| state.count(|p| p.is_under_min_isr);
    /// How many committed records the follower here lacks that lacks most.
    "kafka_server_replicafetchermanager_maxlag" =
        |state| state.partitions.iter().map(|p| p.lag).max().unwrap_or(0);
    /// Idempotent producers that the partitions here remember, each counted once a partition.
    "kafka_server_replicamanager_produceridcount" =
        |state| state.partitions.iter().map(|p| p.producers as i64).sum();
    /// Partitions here with a transaction that should have been ended minutes ago.
    "kafka_server_replicamanager_partitionswithlatetransactionscount" =
        |state| state.count(|p| p.has_late_transaction);
    /// 1 if this broker is the controller.
    "kafka_controller_kafkacontroller_activecontrollercount" =
        |state| i64::from(state.controls.is_some());
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

gauges!(CLUSTER_GAUGES of ClusterState {
    /// Topics of the cluster.
    "kafka_controller_kafkacontroller_globaltopiccount" = |cluster| cluster.topics as i64;
    /// Partitions of the cluster.
    "kafka_controller_kafkacontroller_globalpartitioncount" = |cluster| cluster.partitions as i64;
    /// Partitions of the cluster without a leader.
    "kafka_controller_kafkacontroller_offlinepartitionscount" =
        |cluster| cluster.offline_partitions as i64;
    /// Brokers of the cluster.
    "kafka_controller_kafkacontroller_activebrokercount" = |cluster| cluster.brokers as i64;
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
});

const CONNECTIONS: Metric = Metric {
    name: "kafka_server_socketservermetrics_connection_count",
    kind: Kind::Gauge,
    help: "Open connections of clients.",
};
const REQUESTS: Metric = Metric {
    name: "kafka_network_requestmetrics_requests_total",
    kind: Kind::Counter,
    help: "Requests that were answered, by API and version.",
};
const ERRORS: Metric = Metric {
    name: "kafka_network_requestmetrics_errors_total",
    kind: Kind::Counter,
    help: "Errors in answers, by API and Kafka's name of the error.",
};
const ANSWER_BYTES: Metric = Metric {
    name: "yuxi_answer_bytes_total",
    kind: Kind::Counter,
    help: "Bytes of answers, by API.",
};
const TOTAL_TIME: Metric = Metric {
    name: "kafka_network_requestmetrics_totaltimems",
    kind: Kind::Summary,
    help: "Milliseconds from a request's arrival to its answer; quantiles over the last 5 to 10 \
           minutes.",
};
const REQUEST_DURATION: Metric = Metric {
    name: "yuxi_request_duration_seconds",
    kind: Kind::Histogram,
    help: "Time from a request's arrival to its answer, by API.",
};
const FLUSH_DURATION: Metric = Metric {
    name: "kafka_log_logflushstats_logflushrateandtimems",
    kind: Kind::Summary,
    help: "Milliseconds that forcing a log to disk took; quantiles over the last 5 to 10 minutes.",
};
const BUILD: Metric = Metric {
    name: "yuxi_build_info",
    kind: Kind::Gauge,
    help: "1, with the version of the broker.",
};

/// The quantiles that Kafka reports of a timing.
const QUANTILES: [(f64, &str); 6] = [
    (0.5, "0.50"),
    (0.75, "0.75"),
    (0.95, "0.95"),
    (0.98, "0.98"),
    (0.99, "0.99"),
    (0.999, "0.999"),
];

impl Metrics {
    /// Metrics of a broker that serves `apis`, by key and name. A request of another API is
    /// not counted.
    pub(crate) fn new(apis: impl IntoIterator<Item = (i16, &'static str)>) -> Arc<Self> {
        let now = Instant::now();
        let mut apis: Box<[ApiMetrics]> = apis
            .into_iter()
            .map(|(key, name)| ApiMetrics {
                key,
                name,
                requests: Default::default(),
                answer_bytes: AtomicU64::new(0),
                took: Histogram::new(now),
            })
            .collect();
        apis.sort_by_key(|api| api.key);
        Arc::new(Self {
            apis,
            errors: Mutex::default(),
            broker: BrokerCounters::default(),
            all_topics: TopicCounters::default(),
            topics: RwLock::default(),
            flushes: Histogram::new(now),
        })
    }

    /// A request was answered: `took` since it arrived, with an answer of that size.
    pub(crate) fn request_answered(
        &self,
        key: i16,
        version: i16,
        took: Duration,
        answer_bytes: usize,
    ) {
        let Some(api) = self.api(key) else { return };
        let version = usize::try_from(version).unwrap_or(0).min(VERSIONS - 1);
        api.requests[version].fetch_add(1, Relaxed);
        api.answer_bytes.fetch_add(answer_bytes as u64, Relaxed);
        api.took.record(took);
    }

    /// An answer says that something in the request failed.
    pub(crate) fn request_failed(&self, key: i16, error: ErrorCode) {
        let Some(api) = self.api(key) else { return };
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        *errors.entry((api.name, error.name())).or_default() += 1;
    }

    /// A frame could not be read as a request, and its connection was ended.
    pub(crate) fn request_malformed(&self) {
        add(&self.broker.malformed_requests, 1);
    }

    /// A client connected.
    pub(crate) fn connection_opened(&self) {
        add(&self.broker.connections_opened, 1);
    }

    /// A client's connection ended.
    pub(crate) fn connection_closed(&self) {
        add(&self.broker.connections_closed, 1);
    }

    /// A client was turned away because of a limit.
    pub(crate) fn connection_refused(&self) {
        add(&self.broker.connections_refused, 1);
    }

    /// A producer asked for an append to a partition of `topic`, which exists.
    pub(crate) fn produce_requested(&self, topic: &str) {
        self.count(topic, |counters| &counters.produces, 1);
    }

    /// An append failed.
    pub(crate) fn produce_failed(&self, topic: &str) {
        self.count(topic, |counters| &counters.failed_produces, 1);
    }

    /// A batch was refused for its form.
    pub(crate) fn produce_rejected(&self, topic: &str) {
        self.count(topic, |counters| &counters.rejected_batches, 1);
    }

    /// Records were appended.
    pub(crate) fn records_in(&self, topic: &str, records: i32, bytes: usize) {
        let counters = self.topic(topic);
        for counters in [&self.all_topics, &counters] {
            add(&counters.messages_in, u64::try_from(records).unwrap_or(0));
            add(&counters.bytes_in, bytes as u64);
        }
    }

    /// A consumer asked to read a partition of `topic`, which exists.
    pub(crate) fn fetch_requested(&self, topic: &str) {
        self.count(topic, |counters| &counters.fetches, 1);
    }

    /// A read failed.
    pub(crate) fn fetch_failed(&self, topic: &str) {
        self.count(topic, |counters| &counters.failed_fetches, 1);
    }

    /// Records were read.
    pub(crate) fn bytes_out(&self, topic: &str, bytes: usize) {
        self.count(topic, |counters| &counters.bytes_out, bytes as u64);
    }

    /// A follower here took records from its leader.
    pub(crate) fn replication_bytes_in(&self, topic: &str, bytes: u64) {
        if bytes > 0 {
            self.count(topic, |counters| &counters.replication_bytes_in, bytes);
        }
    }

    /// Another broker's follower was given records.
    pub(crate) fn replication_bytes_out(&self, topic: &str, bytes: usize) {
        if bytes > 0 {
            self.count(
                topic,
                |counters| &counters.replication_bytes_out,
                bytes as u64,
            );
        }
    }

    /// The in-sync replicas of a partition led here grew by so many, or shrank.
    pub(crate) fn isr_changed(&self, by: isize) {
        if by > 0 {
            add(&self.broker.isr_expands, 1);
        } else if by < 0 {
            add(&self.broker.isr_shrinks, 1);
        }
    }

    /// A topic is gone, and with it its own counters.
    pub(crate) fn topic_deleted(&self, topic: &str) {
        self.topics
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(topic);
    }

    /// A log was forced to disk.
    pub(crate) fn log_flushed(&self, took: Duration) {
        self.flushes.record(took);
    }

    /// Everything in Prometheus' text format, with what is true at `now`.
    pub(crate) fn render(&self, state: &Gathered, now: Instant) -> String {
        let mut page = Page::default();
        self.render_topics(&mut page);
        self.render_requests(&mut page, now);
        self.render_broker(&mut page, state, now);
        for (metric, read) in PARTITION_GAUGES {
            page.family(metric);
            for partition in &state.partitions {
                let number = partition.partition.to_string();
                let labels = [("topic", &*partition.topic), ("partition", &number)];
                page.sample(metric, "", &labels, read(partition));
            }
        }
        process::render(&mut page);
        page.into_text()
    }

    /// Each counter for the whole broker without a label, as Kafka has it, and by topic.
    fn render_topics(&self, page: &mut Page) {
        let mut topics: Vec<(Arc<str>, Arc<TopicCounters>)> = self
            .topics
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(name, counters)| (Arc::clone(name), Arc::clone(counters)))
            .collect();
        topics.sort_by(|a, b| a.0.cmp(&b.0));
        for (metric, read) in TopicCounters::ALL {
            page.family(metric);
            page.sample(metric, "", &[], read(&self.all_topics));
            for (name, counters) in &topics {
                page.sample(metric, "", &[("topic", name)], read(counters));
            }
        }
    }

    fn render_requests(&self, page: &mut Page, now: Instant) {
        page.family(&REQUESTS);
        for api in &self.apis {
            for (version, count) in api.requests.iter().enumerate() {
                let count = count.load(Relaxed);
                if count > 0 {
                    let version = version.to_string();
                    let labels = [("request", api.name), ("version", &version)];
                    page.sample(&REQUESTS, "", &labels, count);
                }
            }
        }
        page.family(&ERRORS);
        for (&(api, error), count) in &*self.errors.lock().unwrap_or_else(PoisonError::into_inner) {
            page.sample(&ERRORS, "", &[("request", api), ("error", error)], count);
        }
        page.family(&ANSWER_BYTES);
        for api in &self.apis {
            let bytes = api.answer_bytes.load(Relaxed);
            page.sample(&ANSWER_BYTES, "", &[("request", api.name)], bytes);
        }
        page.family(&TOTAL_TIME);
        for api in &self.apis {
            summary(page, &TOTAL_TIME, &[("request", api.name)], &api.took, now);
        }
        page.family(&REQUEST_DURATION);
        for api in &self.apis {
            buckets(page, &REQUEST_DURATION, ("api", api.name), &api.took);
        }
    }

    fn render_broker(&self, page: &mut Page, state: &Gathered, now: Instant) {
        let opened = self.broker.connections_opened.load(Relaxed);
        let closed = self.broker.connections_closed.load(Relaxed);
        page.single(&CONNECTIONS, opened.saturating_sub(closed));
        for (metric, read) in BrokerCounters::ALL {
            page.single(metric, read(&self.broker));
        }
        for (metric, read) in BROKER_GAUGES {
            page.single(metric, read(state));
        }
        if let Some(cluster) = &state.controls {
            for (metric, read) in CLUSTER_GAUGES {
                page.single(metric, read(cluster));
            }
        }
        page.family(&FLUSH_DURATION);
        summary(page, &FLUSH_DURATION, &[], &self.flushes, now);
        page.family(&BUILD);
        page.sample(&BUILD, "", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    }

    fn api(&self, key: i16) -> Option<&ApiMetrics> {
        let at = self.apis.binary_search_by_key(&key, |api| api.key).ok()?;
        self.apis.get(at)
    }

    fn count(&self, topic: &str, counter: fn(&TopicCounters) -> &AtomicU64, amount: u64) {
        add(counter(&self.all_topics), amount);
        add(counter(&self.topic(topic)), amount);
    }

    fn topic(&self, name: &str) -> Arc<TopicCounters> {
        let known = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = known.get(name) {
            return Arc::clone(counters);
        }
        drop(known);
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(topics.entry(name.into()).or_default())
    }
}

impl Gathered {
    fn count(&self, which: fn(&PartitionState) -> bool) -> i64 {
        self.partitions.iter().filter(|p| which(p)).count() as i64
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}

/// The samples of a timing in milliseconds, as Kafka reports it.
fn summary(
    page: &mut Page,
    metric: &Metric,
    labels: &[(&str, &str)],
    timing: &Histogram,
    now: Instant,
) {
    let counts = timing.counts();
    let recent = timing.recent(&counts, now);
    for (quantile, label) in QUANTILES {
        if let Some(took) = histogram::quantile(&recent, quantile) {
            let labels: Vec<_> = labels
                .iter()
                .copied()
                .chain([("quantile", label)])
                .collect();
            page.sample(metric, "", &labels, millis(took));
        }
    }
    page.sample(metric, "_sum", labels, millis(timing.sum()));
    page.sample(metric, "_count", labels, counts.iter().sum::<u64>());
}

/// The samples of a timing in seconds, as Prometheus' own clients report it.
fn buckets(page: &mut Page, metric: &Metric, label: (&str, &str), timing: &Histogram) {
    let counts = timing.counts();
    let total: u64 = counts.iter().sum();
    // An API that nobody calls is not worth its buckets.
    if total == 0 {
        return;
    }
    let mut reached = 0;
    for ((_, bound), count) in BOUNDS.iter().zip(&counts) {
        reached += count;
        page.sample(metric, "_bucket", &[label, ("le", bound)], reached);
    }
    page.sample(metric, "_bucket", &[label, ("le", "+Inf")], total);
    page.sample(metric, "_sum", &[label], timing.sum().as_secs_f64());
    page.sample(metric, "_count", &[label], total);
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests;
