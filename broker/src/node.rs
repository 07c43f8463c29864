//! What all connections of one broker share: the way from a request to the partitions,
//! the groups, the controller and the limits.

use crate::{
    api::{FetchSessions, FollowerSessions},
    cleaner::Cleaner,
    groups::Groups,
    internal_topics,
    metrics::Metrics,
    net::limits::ByteBudget,
    partition::Partition,
    producer_ids::ProducerIds,
    replicas::Replicas,
    replication::Replication,
    sync::{read, write},
    transactions::Transactions,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::task::TaskTracker;
use yuxi_controller::{
    Controller, ControllerError,
    decide::topics::NewTopic,
    image::{ClusterImage, TopicChange, TopicImage},
    keys::ConfigScope,
    settings::{Listener, ServerSettings},
    store::Revision,
};
use yuxi_protocol::ids::{BrokerId, TopicId};

/// Where a partition is.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// On this broker.
    Here(Arc<Partition>),
    /// It exists, but not on this broker, or its log could not be opened.
    Elsewhere,
    /// There is no such topic or partition.
    Unknown,
}

/// A topic as a request names it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TopicName<'a> {
    Name(&'a str),
    Id(TopicId),
}

impl TopicName<'_> {
    pub(crate) fn find(self, image: &ClusterImage) -> Option<&Arc<TopicImage>> {
        match self {
            Self::Name(name) => image.topic(name),
            Self::Id(id) => image.topic_by_id(id),
        }
    }
}

/// A broker's address as clients are told it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: BrokerId,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) rack: Option<String>,
}

impl Endpoint {
    /// As a connection is opened to it.
    pub(crate) fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// The shared parts of one broker.
pub(crate) struct Node {
    /// As the broker was started. What may change at run time is read by
    /// [`Node::live_settings`].
    pub(crate) settings: ServerSettings,
    pub(crate) broker_id: BrokerId,
    /// The metadata store is this broker's alone, so no other will ever join.
    pub(crate) is_alone: bool,
    pub(crate) controller: Controller,
    pub(crate) replicas: Replicas,
    pub(crate) replication: Replication,
    pub(crate) cleaner: Cleaner,
    pub(crate) groups: Groups,
    pub(crate) transactions: Transactions,
    pub(crate) fetch_sessions: FetchSessions,
    pub(crate) follower_sessions: FollowerSessions,
    pub(crate) producer_ids: ProducerIds,
    pub(crate) byte_budget: ByteBudget,
    pub(crate) metrics: Arc<Metrics>,
    live: RwLock<Arc<ServerSettings>>,
    /// The image that the partitions here follow.
    applied: watch::Sender<Arc<ClusterImage>>,
    /// What runs where blocking is allowed.
    jobs: TaskTracker,
    storage_failed: AtomicBool,
    stopping: AtomicBool,
    /// Why the broker must end, once something is wrong that it cannot serve with.
    fatal: watch::Sender<Option<String>>,
}

/// The parts that a [`Node`] is put together from.
pub(crate) struct Parts {
    pub(crate) settings: ServerSettings,
    pub(crate) is_alone: bool,
    pub(crate) controller: Controller,
    pub(crate) replicas: Replicas,
    pub(crate) metrics: Arc<Metrics>,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            settings,
            is_alone,
            controller,
            replicas,
            metrics,
        } = parts;
        let budget = usize::try_from(settings.queued_max_request_bytes).unwrap_or(usize::MAX);
        Arc::new(Self {
            broker_id: BrokerId::new(settings.node_id),
            replication: Replication::default(),
            cleaner: Cleaner::default(),
            groups: Groups::new(&settings),
            transactions: Transactions::new(&settings),
            fetch_sessions: FetchSessions::new(
                usize::try_from(settings.max_incremental_fetch_session_cache_slots).unwrap_or(0),
            ),
            follower_sessions: FollowerSessions::default(),
            producer_ids: ProducerIds::default(),
            byte_budget: ByteBudget::new(budget),
            live: RwLock::new(Arc::new(settings.clone())),
            applied: watch::Sender::new(Arc::default()),
            jobs: TaskTracker::new(),
            storage_failed: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            fatal: watch::Sender::new(None),
            settings,
            is_alone,
            controller,
            replicas,
            metrics,
        })
    }

    /// The cluster as the partitions here already are.
    pub(crate) fn image(&self) -> Arc<ClusterImage> {
        Arc::clone(&self.applied.borrow())
    }

    /// [`Node::image`] as it is and comes to be.
    pub(crate) fn images(&self) -> watch::Receiver<Arc<ClusterImage>> {
        self.applied.subscribe()
    }

    /// The settings with the dynamic configs laid over them.
    pub(crate) fn live_settings(&self) -> Arc<ServerSettings> {
        Arc::clone(&read(&self.live))
    }

    /// Follows the controller's images until the broker ends: partitions first, then the
    /// settings and groups that rest on them, then everyone who reads the image.
    pub(crate) async fn follow_images(self: Arc<Self>) {
        let mut images = self.controller.subscribe();
        loop {
            let new = Arc::clone(&images.borrow_and_update());
            self.apply(new).await;
            if images.changed().await.is_err() {
                return;
            }
        }
    }

    async fn apply(self: &Arc<Self>, new: Arc<ClusterImage>) {
        let old = self.image();
        if new.revision() <= old.revision() {
            return;
        }
        let settings = self.settings_at(&new);
        *write(&self.live) = Arc::clone(&settings);
        let node = Arc::clone(self);
        let before = Arc::clone(&old);
        let applied = self.run_blocking(move || {
            let roles = node.replicas.apply(&before, &new, &settings);
            node.replication.follow(&node, roles);
            node.groups.follow(&node, &before, &new);
            node.transactions.follow(&node, &new);
            new
        });
        match applied.await {
            Ok(new) => {
                for change in new.changes_since(&old).topics {
                    if let TopicChange::Deleted(topic) = change {
                        self.metrics.topic_deleted(&topic.name);
                    }
                }
                self.applied.send_replace(new);
            }
            Err(error) => self.fail(format!("following the cluster's state failed: {error}")),
        }
    }

    fn settings_at(&self, image: &ClusterImage) -> Arc<ServerSettings> {
        let none = BTreeMap::new();
        let values = |scope| image.config(&scope).map_or(&none, |config| &config.values);
        Arc::new(self.settings.with_dynamic(
            values(ConfigScope::Cluster),
            values(ConfigScope::Broker(self.broker_id)),
        ))
    }

    /// Waits until the partitions here are as the controller's image at `revision` says.
    pub(crate) async fn applied(&self, revision: Revision) {
        // The sender lives as long as the node, so this ends only by the condition.
        let _ = self
            .applied
            .subscribe()
            .wait_for(|image| image.revision() >= revision)
            .await;
    }

    /// As [`Node::applied`], but no longer than until `deadline`.
    pub(crate) async fn applied_by(&self, revision: Revision, deadline: Instant) {
        let _ = tokio::time::timeout_at(deadline, self.applied(revision)).await;
    }

    /// The revision at which this broker leads one of these partitions, if the controller
    /// has made it the leader and the replica here does not know yet. Who is told by others
    /// to come here may be faster than the image, and would be sent away for nothing.
    pub(crate) fn arriving<'a>(
        &self,
        partitions: impl IntoIterator<Item = (TopicName<'a>, i32)>,
    ) -> Option<Revision> {
        if self.controller.revision() <= self.applied.borrow().revision() {
            return None;
        }
        let (applied, newest) = (self.image(), self.controller.image());
        partitions
            .into_iter()
            .any(|partition| begins_to_lead(self.broker_id, partition, &applied, &newest))
            .then(|| newest.revision())
    }

    /// Waits until whatever the controller has shown so far is done here.
    pub(crate) async fn caught_up(&self) {
        self.applied(self.controller.image().revision()).await;
    }

    /// The largest request that is accepted.
    pub(crate) fn max_frame_bytes(&self) -> usize {
        usize::try_from(self.settings.socket_request_max_bytes).unwrap_or(0)
    }

    /// Creates topics that a client asked for, with the broker's defaults. Failures are
    /// logged: the client is told that the topic does not exist.
    pub(crate) async fn auto_create(&self, names: BTreeSet<Arc<str>>) {
        let settings = self.live_settings();
        let topics = names
            .into_iter()
            .map(|name| {
                internal_topics::new_topic(&name, &settings, self.is_alone).unwrap_or_else(|| {
                    NewTopic {
                        adopted: None,
                        name: name.to_string(),
                        partitions: settings.num_partitions,
                        replication_factor: settings.default_replication_factor,
                        assignments: Vec::new(),
                        configs: Vec::new(),
                    }
                })
            })
            .collect();
        for created in self.controller.create_topics(topics, false).await {
            // Several clients may ask at once.
            if let Err(error) = created
                && !matches!(error, ControllerError::TopicAlreadyExists(_))
            {
                tracing::warn!(%error, "a topic was not created automatically");
            }
        }
        self.caught_up().await;
    }

    /// Runs what changes logs or takes long on a thread where it may block. It can't be
    /// aborted: a shutdown waits for it, whoever else does.
    pub(crate) fn run_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.jobs.spawn_blocking(job)
    }

    /// Waits for the end of all jobs that [`Node::run_blocking`] began, once nobody begins others.
    pub(crate) async fn jobs_done(&self) {
        self.jobs.close();
        self.jobs.wait().await;
    }

    /// Runs the fsync that appends to `partition` wait for.
    pub(crate) fn start_flush(self: &Arc<Self>, partition: &Arc<Partition>) {
        let (node, partition) = (Arc::clone(self), Arc::clone(partition));
        self.run_blocking(move || {
            if let Err(error) = partition.flush_wanted(&node.metrics) {
                node.storage_failed(&format!("fsync of {}: {error}", partition.id()));
            }
        });
    }

    /// An fsync failed, so it is not known what of the page cache is on disk. Nothing
    /// retries it: the directory is offline, and with it this broker.
    pub(crate) fn storage_failed(&self, what: &str) {
        if !self.storage_failed.swap(true, Ordering::SeqCst) {
            for partition in self.replicas.all() {
                partition.go_offline();
            }
            self.fail(format!("the log directory failed: {what}"));
        }
    }

    pub(crate) fn is_storage_failed(&self) -> bool {
        self.storage_failed.load(Ordering::SeqCst)
    }

    /// Ends the broker because of `why`.
    fn fail(&self, why: String) {
        tracing::error!(why, "the broker cannot go on");
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            fatal.get_or_insert(why);
            first
        });
    }

    /// Why the broker must end, if it must.
    pub(crate) fn failure(&self) -> Option<String> {
        self.fatal.borrow().clone()
    }

    /// From now on the broker is on its way down.
    pub(crate) fn begin_stopping(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Resolves with the reason when the broker must end.
    pub(crate) async fn failed(&self) -> String {
        let mut fatal = self.fatal.subscribe();
        let reason = fatal.wait_for(Option::is_some).await;
        reason.ok().and_then(|why| why.clone()).unwrap_or_default()
    }
}

/// The brokers as clients of this listener are told of them.
pub(crate) fn endpoints(image: &ClusterImage) -> Vec<Endpoint> {
    image
        .brokers()
        .filter_map(|broker| {
            let endpoint = broker
                .registration
                .endpoints
                .iter()
                .find(|endpoint| endpoint.listener == Listener::NAME)?;
            Some(Endpoint {
                id: broker.id,
                host: endpoint.host.clone(),
                port: endpoint.port,
                rack: broker.registration.rack.clone(),
            })
        })
        .collect()
}

/// Whether `broker` leads the partition in an epoch of `newest` that `applied` does not have.
fn begins_to_lead(
    broker: BrokerId,
    (topic, partition): (TopicName<'_>, i32),
    applied: &ClusterImage,
    newest: &ClusterImage,
) -> bool {
    let epoch = |image: &ClusterImage| {
        let state = topic.find(image)?.partition(partition.into())?;
        (state.leader == broker).then_some(state.leader_epoch)
    };
    let leads_in = epoch(newest);
    leads_in.is_some() && leads_in != epoch(applied)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use yuxi_controller::{
        keys::{Key, LeaderRecovery, PartitionState, TopicValue, print_partitions, print_value},
        store::{Entry, Snapshot},
    };
    use yuxi_protocol::{codec::Bytes, ids::LeaderEpoch};

    /// A topic `t` whose one partition is led by `leader` in `epoch`, as the store has it.
    pub(crate) fn entries(leader: i32, epoch: i32) -> [(Key, Bytes); 2] {
        let topic_id = TopicId::from_bytes([1; 16]);
        let state = PartitionState {
            replicas: vec![BrokerId::new(1), BrokerId::new(2)],
            isr: vec![BrokerId::new(1), BrokerId::new(2)],
            elr: Vec::new(),
            leader: BrokerId::new(leader),
            leader_epoch: LeaderEpoch::new(epoch),
            partition_epoch: epoch,
            leader_recovery: LeaderRecovery::Recovered,
            last_known_leader: None,
            adding_replicas: Vec::new(),
            removing_replicas: Vec::new(),
            lost_data: Vec::new(),
        };
        let topic = TopicValue {
            topic_id,
            partitions: 1,
        };
        [
            (Key::Topic("t".into()), print_value(&topic)),
            (Key::Partitions(topic_id, 0), print_partitions(0, &[state])),
        ]
    }

    /// An image with these [`entries`] alone.
    pub(crate) fn image(leader: i32, epoch: i32) -> ClusterImage {
        let revision = Revision::new(1);
        let entries = entries(leader, epoch).map(|(key, value)| Entry {
            key: key.to_string().into(),
            value,
            create_revision: revision,
            mod_revision: revision,
            session: None,
        });
        ClusterImage::from_snapshot(&Snapshot {
            revision,
            entries: entries.into(),
        })
        .expect("an image")
    }

    #[test]
    fn a_leader_is_arriving_while_its_newest_epoch_is_not_applied_here() {
        const ME: BrokerId = BrokerId::new(1);
        let check = |applied: &ClusterImage, newest: &ClusterImage, expected: bool| {
            let by_name = (TopicName::Name("t"), 0);
            let by_id = (TopicName::Id(TopicId::from_bytes([1; 16])), 0);
            for partition in [by_name, by_id] {
                let arrives = begins_to_lead(ME, partition, applied, newest);
                assert_eq!(arrives, expected, "{partition:?}");
            }
        };
        let nothing = ClusterImage::default();
        check(&image(2, 0), &image(1, 1), true);
        // Again, after another life of this broker or of the partition.
        check(&image(1, 1), &image(1, 2), true);
        check(&nothing, &image(1, 0), true);
        // It leads already, another one leads, or nobody does.
        check(&image(1, 1), &image(1, 1), false);
        check(&image(1, 1), &image(2, 2), false);
        check(&nothing, &image(-1, 1), false);
        check(&image(1, 1), &nothing, false);
        for unknown in [(TopicName::Name("u"), 0), (TopicName::Name("t"), 1)] {
            assert!(!begins_to_lead(ME, unknown, &image(2, 0), &image(1, 1)));
        }
    }
}
