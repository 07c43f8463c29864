//! What the admin listener tells of the broker at one moment.

use crate::{
    metrics::{Gathered, Metrics, PartitionState, TransactionsState},
    node::Node,
    partition::{Partition, Status},
    time,
};
use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};
use yuxi_controller::{
    Waiting,
    admin::{Observed, Page, Readiness, render_process},
    image::ClusterImage,
};
use yuxi_coordinator::transactions::TransactionState;

/// How long after the largest time-out of transactions one counts as late, as in Kafka.
const LATE_AFTER_MS: i64 = 5 * 60_000;

/// The broker as the admin listener tells of it, from its very start.
pub(crate) struct Observer {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) store: Waiting,
    node: OnceLock<Arc<Node>>,
}

impl Observer {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            store: Waiting::default(),
            node: OnceLock::new(),
        }
    }

    /// From here on the broker serves clients.
    pub(crate) fn serves(&self, node: &Arc<Node>) {
        let _ = self.node.set(Arc::clone(node));
    }
}

impl Observed for Observer {
    fn readiness(&self) -> Readiness {
        match (self.node.get(), self.store.why()) {
            (Some(node), _) => node.readiness(),
            (None, Some(why)) => Readiness::Waiting(why),
            (None, None) => Readiness::Starting,
        }
    }

    fn metrics(&self) -> String {
        let mut page = Page::default();
        let state = match self.node.get() {
            Some(node) => {
                node.controller.render_metrics(&mut page);
                gather(node)
            }
            None => Gathered::default(),
        };
        self.metrics.render(&mut page, &state, Instant::now());
        render_process(&mut page);
        page.into_text()
    }
}

/// Looks at every partition, one lock at a time.
fn gather(node: &Node) -> Gathered {
    let image = node.image();
    let longest_ms = i64::from(node.settings.transaction_max_timeout_ms) + LATE_AFTER_MS;
    let late_before_ms = time::wall_ms() - longest_ms;
    Gathered {
        readiness: node.readiness(),
        partitions: node
            .replicas
            .all()
            .iter()
            .map(|partition| describe(partition, &image, late_before_ms))
            .collect(),
        groups: node.groups.count(),
        transactions: transactions(node),
        fetch_sessions: node.fetch_sessions.len() + node.follower_sessions.len(),
        cleaner: node.cleaner.report(node),
    }
}

fn describe(partition: &Partition, image: &ClusterImage, late_before_ms: i64) -> PartitionState {
    let id = partition.id();
    let Status {
        is_leader,
        lag,
        is_offline,
        in_sync,
        min_in_sync,
        offsets,
        size_bytes,
        segments,
        producers,
        oldest_transaction_ms,
    } = partition.status();
    let replicas = image
        .partition(&id.topic, id.partition)
        .map_or(0, |state| state.replicas.len());
    PartitionState {
        topic: Arc::clone(&id.topic),
        partition: id.partition.value(),
        is_leader,
        is_offline,
        replicas,
        in_sync,
        min_in_sync,
        lag,
        last_stable_lag: offsets.high_watermark.since(offsets.last_stable),
        producers,
        has_late_transaction: oldest_transaction_ms.is_some_and(|last| last < late_before_ms),
        log_start_offset: offsets.log_start.value(),
        log_end_offset: offsets.log_end.value(),
        size_bytes,
        segments,
    }
}

fn transactions(node: &Node) -> TransactionsState {
    let counts = node.transactions.counts();
    let states = (0..).map_while(TransactionState::from_code);
    TransactionsState {
        ids: states
            .map(|state| (state.name(), counts.get(&state).copied().unwrap_or(0)))
            .collect(),
        unwritten_markers: node.transactions.unwritten_markers(),
    }
}

/// How far the broker is, in the order in which one state takes precedence.
impl Node {
    pub(crate) fn readiness(&self) -> Readiness {
        if let Some(why) = self.failure() {
            return Readiness::Failed(why);
        }
        if self.is_stopping() {
            return Readiness::Stopping;
        }
        Readiness::Ready
    }
}
