//! What the coordinators of groups and of transactions measure.

use crate::{
    internal_topics::{CONSUMER_OFFSETS, TRANSACTION_STATE},
    sync::lock,
};
use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use yuxi_controller::admin::{Histogram, Kind, Metric, Page};

/// Kafka tells of what was loaded in the last half minute.
const LOADS_WINDOW: Duration = Duration::from_secs(30);

/// The most loads that are remembered.
const LOADS: usize = 1000;

#[derive(Debug)]
pub(super) struct CoordinatorMetrics {
    groups: Loads,
    transactions: Loads,
    verifications: Histogram,
    refused: AtomicU64,
}

/// When a partition was loaded, and how long that took.
#[derive(Debug, Default)]
struct Loads(Mutex<VecDeque<(Instant, Duration)>>);

/// How many transactional ids this broker coordinates, by the name of their state, and how
/// many markers it has yet to write.
#[derive(Clone, Debug, Default)]
pub(crate) struct TransactionsState {
    pub(crate) ids: Vec<(&'static str, usize)>,
    pub(crate) unwritten_markers: usize,
}

const GROUPS_LOAD_MAX: Metric = Metric {
    name: "kafka_server_group_coordinator_metrics_partition_load_time_max",
    kind: Kind::Gauge,
    help: "Milliseconds that loading a partition of __consumer_offsets took at most, of those loaded \
           in the last 30 s.",
};
const GROUPS_LOAD_AVG: Metric = Metric {
    name: "kafka_server_group_coordinator_metrics_partition_load_time_avg",
    kind: Kind::Gauge,
    help: "The same on average.",
};
const TRANSACTIONS_LOAD_MAX: Metric = Metric {
    name: "kafka_server_transaction_coordinator_metrics_partition_load_time_max",
    kind: Kind::Gauge,
    help: "Milliseconds that loading a partition of __transaction_state took at most, of those loaded \
           in the last 30 s.",
};
const TRANSACTIONS_LOAD_AVG: Metric = Metric {
    name: "kafka_server_transaction_coordinator_metrics_partition_load_time_avg",
    kind: Kind::Gauge,
    help: "The same on average.",
};
const VERIFICATION_TIME: Metric = Metric {
    name: "kafka_server_addpartitionstotxnmanager_verificationtimems",
    kind: Kind::Summary,
    help: "Milliseconds that asking the coordinator of a transaction about its partitions took.",
};
const VERIFICATION_FAILURES: Metric = Metric {
    name: "kafka_server_addpartitionstotxnmanager_verificationfailurerate_count",
    kind: Kind::Counter,
    help: "Partitions that the coordinator of a transaction did not let in, or could not be asked about.",
};
const IDS: Metric = Metric {
    name: "yuxi_transactional_ids",
    kind: Kind::Gauge,
    help: "Transactional ids that this broker coordinates, by the state of their last transaction.",
};
const UNWRITTEN_MARKERS: Metric = Metric {
    name: "yuxi_transaction_markers_unwritten",
    kind: Kind::Gauge,
    help: "Ends of transactions that this broker coordinates, by partition, which are decided and not \
           written yet.",
};

impl CoordinatorMetrics {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            groups: Loads::default(),
            transactions: Loads::default(),
            verifications: Histogram::new(now),
            refused: AtomicU64::new(0),
        }
    }

    pub(super) fn loaded(&self, topic: &str, took: Duration, now: Instant) {
        match topic {
            CONSUMER_OFFSETS => self.groups.add(took, now),
            TRANSACTION_STATE => self.transactions.add(took, now),
            _ => {}
        }
    }

    pub(super) fn verified(&self, took: Duration, refused: usize) {
        self.verifications.record(took);
        self.refused.fetch_add(refused as u64, Relaxed);
    }

    pub(super) fn render(&self, page: &mut Page, state: &TransactionsState, now: Instant) {
        for (loads, max, avg) in [
            (&self.groups, &GROUPS_LOAD_MAX, &GROUPS_LOAD_AVG),
            (
                &self.transactions,
                &TRANSACTIONS_LOAD_MAX,
                &TRANSACTIONS_LOAD_AVG,
            ),
        ] {
            let recent = loads.recent(now);
            let total: Duration = recent.iter().sum();
            let count = recent.len().max(1) as f64;
            page.single(
                max,
                millis(recent.iter().max().copied().unwrap_or_default()),
            );
            page.single(avg, millis(total) / count);
        }
        page.family(&VERIFICATION_TIME);
        page.summary(&VERIFICATION_TIME, &[], &self.verifications, now);
        page.single(&VERIFICATION_FAILURES, self.refused.load(Relaxed));
        page.family(&IDS);
        for (name, count) in &state.ids {
            page.sample(&IDS, "", &[("state", name)], count);
        }
        page.single(&UNWRITTEN_MARKERS, state.unwritten_markers);
    }
}

impl Loads {
    fn add(&self, took: Duration, now: Instant) {
        let mut loads = lock(&self.0);
        loads.push_back((now, took));
        if loads.len() > LOADS {
            loads.pop_front();
        }
    }

    fn recent(&self, now: Instant) -> Vec<Duration> {
        let mut loads = lock(&self.0);
        loads.retain(|(at, _)| now.saturating_duration_since(*at) < LOADS_WINDOW);
        loads.iter().map(|(_, took)| *took).collect()
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
