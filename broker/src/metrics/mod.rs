//! What the broker counts and measures, and how Prometheus reads it.
//!
//! Every metric is declared once, in `declared.rs`, with its help. The names are those under which
//! Kafka's own appear behind the JMX exporter, so that existing dashboards work; what
//! Kafka has no name for begins with `yuxi_`. Call sites say what happened
//! ([`Metrics::records_in`]) and know no metric.
//!
//! One [`Metrics`] belongs to one broker and is shared by everything in it. Counters
//! only rise, also when a topic is deleted: its own go, the broker's total stays.
//! What is a state and not an event (partitions, connections) is gathered at the
//! scrape as a [`Gathered`].

mod coordinators;
mod declared;
mod state;

pub(crate) use coordinators::TransactionsState;
pub(crate) use state::{CleanerState, Gathered, PartitionState};

use crate::sync::{lock, read, write};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use coordinators::CoordinatorMetrics;
use declared::{
    ANSWER_BYTES, BROKER_GAUGES, BrokerCounters, CONNECTIONS, ERRORS, FLUSH_DURATION,
    PARTITION_GAUGES, REQUEST_DURATION, REQUESTS, TOTAL_TIME, TopicCounters,
};
use yuxi_controller::admin::{Histogram, Page};
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
    coordinators: CoordinatorMetrics,
}

#[derive(Debug)]
struct ApiMetrics {
    key: i16,
    name: &'static str,
    requests: [AtomicU64; VERSIONS],
    answer_bytes: AtomicU64,
    took: Histogram,
}

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
            coordinators: CoordinatorMetrics::new(now),
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
        let mut errors = lock(&self.errors);
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
        write(&self.topics).remove(topic);
    }

    /// A log was forced to disk.
    pub(crate) fn log_flushed(&self, took: Duration) {
        self.flushes.record(took);
    }

    /// A coordinator has taken in a partition of its topic.
    pub(crate) fn shard_loaded(&self, topic: &str, took: Duration) {
        self.coordinators.loaded(topic, took, Instant::now());
    }

    /// A transaction's coordinator was asked about partitions, of which it let so many not in.
    pub(crate) fn partitions_verified(&self, took: Duration, refused: usize) {
        self.coordinators.verified(took, refused);
    }

    /// Writes everything, with what is true at `now`.
    pub(crate) fn render(&self, page: &mut Page, state: &Gathered, now: Instant) {
        self.render_topics(page);
        self.render_requests(page, now);
        self.render_broker(page, state, now);
        for (metric, read) in PARTITION_GAUGES {
            page.family(metric);
            for partition in &state.partitions {
                let number = partition.partition.to_string();
                let labels = [("topic", &*partition.topic), ("partition", &number)];
                page.sample(metric, "", &labels, read(partition));
            }
        }
    }

    /// Each counter for the whole broker without a label, as Kafka has it, and by topic.
    fn render_topics(&self, page: &mut Page) {
        let mut topics: Vec<(Arc<str>, Arc<TopicCounters>)> = read(&self.topics)
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
        for (&(api, error), count) in &*lock(&self.errors) {
            page.sample(&ERRORS, "", &[("request", api), ("error", error)], count);
        }
        page.family(&ANSWER_BYTES);
        for api in &self.apis {
            let bytes = api.answer_bytes.load(Relaxed);
            page.sample(&ANSWER_BYTES, "", &[("request", api.name)], bytes);
        }
        page.family(&TOTAL_TIME);
        for api in &self.apis {
            page.summary(&TOTAL_TIME, &[("request", api.name)], &api.took, now);
        }
        page.family(&REQUEST_DURATION);
        for api in &self.apis {
            page.buckets(&REQUEST_DURATION, ("api", api.name), &api.took);
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
        self.coordinators.render(page, &state.transactions, now);
        page.family(&FLUSH_DURATION);
        page.summary(&FLUSH_DURATION, &[], &self.flushes, now);
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
        let known = read(&self.topics);
        if let Some(counters) = known.get(name) {
            return Arc::clone(counters);
        }
        drop(known);
        let mut topics = write(&self.topics);
        Arc::clone(topics.entry(name.into()).or_default())
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}

#[cfg(test)]
mod tests;
