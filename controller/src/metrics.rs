//! What the control plane counts and measures in a process, under the names that Kafka's
//! own have behind the JMX exporter.
//!
//! One [`ControllerMetrics`] belongs to one service's loop. What the loop does is counted in
//! every process; what is true of the cluster is told by the one that holds the seal, so
//! that a sum over all processes is right. It is read off the image at the scrape.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use yuxi_protocol::ids::BrokerId;

use crate::{
    admin::{Histogram, Kind, Metric, Page},
    image::{ClusterImage, TopicChange},
    keys::{LeaderRecovery, PartitionState},
};

/// The counters and timings of one loop.
#[derive(Debug)]
pub(crate) struct ControllerMetrics {
    queue_time: Histogram,
    processing_time: Histogram,
    commands: AtomicU64,
    errors: AtomicU64,
    silent_brokers: AtomicU64,
    reigns: AtomicU64,
    unclean_elections: AtomicU64,
}

type Counter = (Metric, fn(&ControllerMetrics) -> &AtomicU64);
type Gauge = (Metric, fn(&ClusterImage) -> usize);

const fn metric(name: &'static str, kind: Kind, help: &'static str) -> Metric {
    Metric { name, kind, help }
}

const IS_ACTIVE: Metric = metric(
    "kafka_controller_kafkacontroller_activecontrollercount",
    Kind::Gauge,
    "1 if this process is the controller.",
);
const REVISION: Metric = metric(
    "kafka_controller_kafkacontroller_lastappliedrecordoffset",
    Kind::Gauge,
    "The revision of the metadata store up to which this process knows it.",
);
const QUEUE_TIME: Metric = metric(
    "kafka_controller_controllereventmanager_eventqueuetimems",
    Kind::Summary,
    "Milliseconds that a command waited until the controller took it up; quantiles over the last \
     5 to 10 minutes.",
);
const PROCESSING_TIME: Metric = metric(
    "kafka_controller_controllereventmanager_eventqueueprocessingtimems",
    Kind::Summary,
    "Milliseconds that the control plane's loop was busy with one event; quantiles over the last \
     5 to 10 minutes.",
);

const COUNTERS: [Counter; 5] = [
    (
        metric(
            "kafka_controller_kafkacontroller_eventqueueoperationsstartedcount",
            Kind::Counter,
            "Commands that the controller took up or passed on.",
        ),
        |metrics| &metrics.commands,
    ),
    (
        metric(
            "kafka_controller_kafkacontroller_metadataerrorcount",
            Kind::Counter,
            "How often the metadata store failed, or held what can't be read.",
        ),
        |metrics| &metrics.errors,
    ),
    (
        metric(
            "kafka_controller_kafkacontroller_timedoutbrokerheartbeatcount",
            Kind::Counter,
            "How often a process was taken for dead by this one, for its silence or its closed port.",
        ),
        |metrics| &metrics.silent_brokers,
    ),
    (
        metric(
            "kafka_controller_kafkacontroller_newactivecontrollerscount",
            Kind::Counter,
            "How often this process has seen the seal change hands.",
        ),
        |metrics| &metrics.reigns,
    ),
    (
        metric(
            "kafka_controller_controllerstats_uncleanleaderelections_total",
            Kind::Counter,
            "How often this process, as the controller, has made a replica the leader that may lack \
             acknowledged records.",
        ),
        |metrics| &metrics.unclean_elections,
    ),
];

const GAUGES: [Gauge; 7] = [
    (
        metric(
            "kafka_controller_kafkacontroller_globaltopiccount",
            Kind::Gauge,
            "Topics of the cluster.",
        ),
        ClusterImage::topic_count,
    ),
    (
        metric(
            "kafka_controller_kafkacontroller_globalpartitioncount",
            Kind::Gauge,
            "Partitions of the cluster.",
        ),
        |image| image.topics().map(|topic| topic.partition_count()).sum(),
    ),
    (
        metric(
            "kafka_controller_kafkacontroller_offlinepartitionscount",
            Kind::Gauge,
            "Partitions of the cluster without a leader.",
        ),
        |image| {
            let states = image.topics().flat_map(|topic| topic.partitions());
            states
                .filter(|(_, state)| state.leader == BrokerId::NONE)
                .count()
        },
    ),
    (
        metric(
            "kafka_controller_kafkacontroller_preferredreplicaimbalancecount",
            Kind::Gauge,
            "Partitions of the cluster that another than their first replica leads.",
        ),
        |image| {
            let states = image.topics().flat_map(|topic| topic.partitions());
            states
                .filter(|(_, state)| state.replicas.first() != Some(&state.leader))
                .count()
        },
    ),
    (
        metric(
            "kafka_controller_kafkacontroller_activebrokercount",
            Kind::Gauge,
            "Brokers of the cluster that are alive and let in.",
        ),
        |image| image.brokers().count(),
    ),
    (
        metric(
            "kafka_controller_kafkacontroller_fencedbrokercount",
            Kind::Gauge,
            "Brokers of the cluster that are away or not let in yet, and were not unregistered.",
        ),
        |image| {
            let known = image.known_brokers();
            let arriving = image.registrations().map(|broker| broker.id);
            let all: BTreeSet<BrokerId> = known.chain(arriving).collect();
            all.into_iter()
                .filter(|&id| image.broker(id).is_none())
                .count()
        },
    ),
    (
        metric(
            "kafka_controller_kafkacontroller_controlledshutdownbrokercount",
            Kind::Gauge,
            "Brokers of the cluster that are alive and shutting down.",
        ),
        |image| {
            let alive = image.brokers();
            alive.filter(|broker| !image.is_active(broker.id)).count()
        },
    ),
];

impl ControllerMetrics {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            queue_time: Histogram::new(now),
            processing_time: Histogram::new(now),
            commands: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            silent_brokers: AtomicU64::new(0),
            reigns: AtomicU64::new(0),
            unclean_elections: AtomicU64::new(0),
        }
    }

    /// A command was taken up after it had waited so long.
    pub(crate) fn command_taken(&self, waited: Duration) {
        self.commands.fetch_add(1, Relaxed);
        self.queue_time.record(waited);
    }

    /// The loop has dealt with one event.
    pub(crate) fn event_handled(&self, took: Duration) {
        self.processing_time.record(took);
    }

    /// The metadata store failed.
    pub(crate) fn store_failed(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// A process was taken for dead.
    pub(crate) fn taken_for_dead(&self) {
        self.silent_brokers.fetch_add(1, Relaxed);
    }

    /// The seal changed hands.
    pub(crate) fn reign_began(&self) {
        self.reigns.fetch_add(1, Relaxed);
    }

    /// The cluster has come from `old` to `new`, under this process as the controller. Seen in
    /// the states rather than counted by those who decide, of whom there are many.
    pub(crate) fn decided(&self, old: &ClusterImage, new: &ClusterImage) {
        let changes = new.changes_since(old).topics.into_iter();
        let unclean: usize = changes
            .map(|change| match change {
                TopicChange::Changed { old, new } => new
                    .changed_partitions(old)
                    .filter(|&(id, state)| is_unclean(old.partition(id), state))
                    .count(),
                TopicChange::Created(_) | TopicChange::Deleted(_) => 0,
            })
            .sum();
        self.unclean_elections.fetch_add(unclean as u64, Relaxed);
    }

    /// Writes it all, with what is true of `image` if `node_id` is its controller.
    pub(crate) fn render(
        &self,
        page: &mut Page,
        image: &ClusterImage,
        node_id: BrokerId,
        now: Instant,
    ) {
        let controller = image.controller();
        let is_active = controller.is_some_and(|controller| controller.node_id == node_id);
        page.single(&IS_ACTIVE, u8::from(is_active));
        page.single(&REVISION, image.revision());
        for (metric, counter) in &COUNTERS {
            page.single(metric, counter(self).load(Relaxed));
        }
        for (metric, timing) in [
            (&QUEUE_TIME, &self.queue_time),
            (&PROCESSING_TIME, &self.processing_time),
        ] {
            page.family(metric);
            page.summary(metric, &[], timing, now);
        }
        if is_active {
            for (metric, read) in &GAUGES {
                page.single(metric, read(image));
            }
        }
    }
}

/// Whether a leader was elected that has to recover what it may lack.
fn is_unclean(old: Option<&PartitionState>, new: &PartitionState) -> bool {
    let has_to = |state: &PartitionState| state.leader_recovery == LeaderRecovery::Recovering;
    new.leader != BrokerId::NONE
        && has_to(new)
        && old.is_some_and(|old| !has_to(old) || old.leader != new.leader)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::testing::{Cluster, registration},
        keys::{ControllerValue, Key, print_partitions, print_value},
        processes::{Process, all_ok, topic},
        store::{EmbeddedStore, MetadataStore as _, Operation, Transaction},
    };

    fn rendered(metrics: &ControllerMetrics, image: &ClusterImage, node: i32) -> String {
        let mut page = Page::default();
        metrics.render(&mut page, image, BrokerId::new(node), Instant::now());
        page.into_text()
    }

    #[track_caller]
    fn has(text: &str, metric: &str, value: usize) {
        let sample = format!("kafka_controller_{metric} {value}");
        assert!(
            text.lines().any(|line| line == sample),
            "{sample} is not in:\n{text}"
        );
    }

    #[test]
    fn the_controller_tells_of_the_cluster_and_others_only_of_themselves() {
        let mut cluster = Cluster::of(3);
        cluster.create("t", &[&[1, 2, 3], &[2, 3, 1], &[3, 1, 2]]);
        cluster.create("u", &[&[3]]);
        let seal = ControllerValue {
            node_id: BrokerId::new(1),
            incarnation: "a life".to_owned(),
            session: "1".to_owned(),
            endpoint: None,
        };
        cluster.put(&Key::Controller, print_value(&seal));
        cluster.unregister(3);
        cluster.reconcile();
        // Registered, and not let in yet.
        cluster.register(4, &registration());
        let metrics = ControllerMetrics::new();
        metrics.command_taken(Duration::from_millis(1));
        metrics.event_handled(Duration::from_millis(1));
        let text = rendered(&metrics, &cluster.image, 1);
        for (metric, value) in [
            ("kafkacontroller_activecontrollercount", 1),
            ("kafkacontroller_globaltopiccount", 2),
            ("kafkacontroller_globalpartitioncount", 4),
            // The one whose only replica is on the broker that went.
            ("kafkacontroller_offlinepartitionscount", 1),
            // That one, and the one whose first replica went.
            ("kafkacontroller_preferredreplicaimbalancecount", 2),
            ("kafkacontroller_activebrokercount", 2),
            ("kafkacontroller_fencedbrokercount", 2),
            ("kafkacontroller_controlledshutdownbrokercount", 0),
            ("kafkacontroller_eventqueueoperationsstartedcount", 1),
            ("controllereventmanager_eventqueuetimems_count", 1),
            ("controllereventmanager_eventqueueprocessingtimems_count", 1),
        ] {
            has(&text, metric, value);
        }
        let text = rendered(&metrics, &cluster.image, 2);
        has(&text, "kafkacontroller_activecontrollercount", 0);
        assert!(!text.contains("globaltopiccount"), "{text}");
    }

    #[tokio::test]
    async fn the_controller_alone_counts_unclean_elections_and_all_count_its_reign() {
        let store = EmbeddedStore::in_memory();
        let one = Process::start(&store, 1).await;
        let two = Process::start(&store, 2).await;
        all_ok(
            one.controller
                .create_topics(vec![topic("t", 1, 2)], false)
                .await,
        );
        let image = one.controller.image();
        let created = image.topic("t").expect("it was created");
        let mut state = created.partition(0.into()).expect("its first").clone();
        state.leader_recovery = LeaderRecovery::Recovering;
        let uncleanly = Operation::Put {
            key: Key::Partitions(created.id, 0).to_string(),
            value: print_partitions(0, [&state]),
            session: None,
        };
        let elected = store.commit(Transaction {
            guards: Vec::new(),
            operations: vec![uncleanly],
        });
        elected.await.expect("the store takes it");
        for (process, unclean) in [(&one, 1), (&two, 0)] {
            process
                .until(|image| image.partition("t", 0.into()) == Some(&state))
                .await;
            let mut page = Page::default();
            process.controller.render_metrics(&mut page);
            let text = page.into_text();
            has(
                &text,
                "controllerstats_uncleanleaderelections_total",
                unclean,
            );
            has(&text, "kafkacontroller_newactivecontrollerscount", 1);
        }
    }

    #[test]
    fn elections_that_may_lose_records_are_counted_and_no_others() {
        let metrics = ControllerMetrics::new();
        let mut cluster = Cluster::of(2);
        cluster.create("t", &[&[1, 2]]);
        let mut step = |change: fn(&mut Cluster), expected| {
            let before = cluster.image.clone();
            change(&mut cluster);
            cluster.reconcile();
            metrics.decided(&before, &cluster.image);
            let text = rendered(&metrics, &cluster.image, 1);
            has(
                &text,
                "controllerstats_uncleanleaderelections_total",
                expected,
            );
        };
        step(|cluster| cluster.unregister(1), 0);
        step(
            |cluster| {
                cluster.register(1, &registration());
            },
            0,
        );
        step(|cluster| cluster.unregister(2), 0);
        // The last in sync comes back after a power failure.
        step(
            |cluster| {
                let value = crate::keys::BrokerValue {
                    boot_id: "another boot".to_owned(),
                    ..registration()
                };
                cluster.register(2, &value);
            },
            1,
        );
        // It still recovers.
        step(
            |cluster| {
                cluster.register(3, &registration());
            },
            1,
        );
    }
}
