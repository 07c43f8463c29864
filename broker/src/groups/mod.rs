//! The runtime around the pure group coordinator: it gives each shard the clock, its
//! partition of `__consumer_offsets` to write to, and the clients to answer.
//!
//! A shard lives behind one lock from the moment this broker leads its partition until
//! it no longer does. Under that lock a request is handled, its records are appended
//! and the shard is told so; so the order of the log is the order of the shard's
//! decisions. An answer leaves only when every record that it rests on is below the
//! high watermark.

mod loading;
mod shard;
mod view;

use crate::{
    internal_topics::CONSUMER_OFFSETS,
    node::{Lookup, Node},
    partition::{Appended, PartitionError, TxnMarker, VerificationGuard},
    time,
};
use shard::{Phase, Shard};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, oneshot};
use view::View;
use yuxi_controller::{
    image::{ClusterImage, TopicChange},
    settings::{ConsumerAssignor, GroupMigrationPolicy, ServerSettings},
};
use yuxi_coordinator::groups::{
    Assignor, ConsumerGroupConfig, GroupConfig, GroupRequest, GroupResponse, MigrationPolicy,
    RequestContext, Ticket,
};
use yuxi_protocol::{
    codec::StrBytes, error_code::ErrorCode, ids::PartitionId, messages::ListGroupsResponse,
};

/// The group coordinators of this broker, one for each partition of
/// `__consumer_offsets` that it leads.
pub(crate) struct Groups {
    config: GroupConfig,
    shards: RwLock<HashMap<i32, Arc<Shard>>>,
    next_ticket: AtomicU64,
    /// When the timer looks next; while it is looking, `i64::MAX`.
    next_look_ms: AtomicI64,
    /// A shard has an earlier deadline than the timer knew.
    timer: Notify,
}

impl Groups {
    pub(crate) fn new(settings: &ServerSettings) -> Self {
        Self {
            config: config(settings),
            shards: RwLock::default(),
            next_ticket: AtomicU64::new(0),
            next_look_ms: AtomicI64::new(i64::MAX),
            timer: Notify::new(),
        }
    }

    /// Answers `request`, in parts by the shards it concerns. If it is part of a transaction
    /// it comes with the guard with which that one's coordinator was asked: what it has
    /// written is refused if a marker came in between.
    pub(crate) async fn handle(
        &self,
        node: &Arc<Node>,
        request: GroupRequest,
        context: &RequestContext,
        guard: Option<VerificationGuard>,
    ) -> GroupResponse {
        let image = node.image();
        let Some(topic) = image.topic(CONSUMER_OFFSETS) else {
            return without_topic(request, context);
        };
        let partitions = i32::try_from(topic.partition_count()).unwrap_or(i32::MAX);
        let started: Vec<_> = request
            .split(partitions)
            .into_iter()
            .map(|(partition, part)| self.start(node, &image, partition, (part, guard), context))
            .collect();
        let mut merged: Option<GroupResponse> = None;
        for part in started {
            let answer = match part {
                Part::Answered(answer) => answer,
                Part::Waiting(receiver, refused) => receiver.await.unwrap_or(refused),
            };
            merged = Some(match merged {
                None => answer,
                Some(merged) => merged.merge(answer),
            });
        }
        merged.expect("a request is split into at least one part")
    }

    fn start(
        &self,
        node: &Arc<Node>,
        image: &ClusterImage,
        partition: i32,
        (request, guard): (GroupRequest, Option<VerificationGuard>),
        context: &RequestContext,
    ) -> Part {
        let version = context.api_version;
        let Some(shard) = self.shard(partition) else {
            // Listing tells what is here, and another broker tells the rest.
            if matches!(request, GroupRequest::ListGroups(_)) {
                return Part::Answered(no_groups());
            }
            return Part::Answered(request.refused(version, ErrorCode::NotCoordinator));
        };
        let now_ms = time::now_ms();
        let mut state = shard.state();
        let state = &mut *state;
        let group = match &mut state.phase {
            Phase::Serving(group) => group,
            Phase::Loading => {
                return Part::Answered(
                    request.refused(version, ErrorCode::CoordinatorLoadInProgress),
                );
            }
            Phase::Closed => {
                return Part::Answered(request.refused(version, ErrorCode::NotCoordinator));
            }
        };
        let refused = request.refused(version, ErrorCode::NotCoordinator);
        let ticket = Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        state.waiting.insert(ticket, sender);
        let effects = group.handle(context, request, ticket, &View(image), now_ms);
        shard.carry_out(node, state, effects, guard, now_ms);
        if let Phase::Serving(group) = &state.phase {
            self.wake_timer_before(group.next_deadline());
        }
        Part::Waiting(receiver, refused)
    }

    /// Most requests leave every deadline later than the timer's next look.
    fn wake_timer_before(&self, deadline_ms: Option<i64>) {
        if deadline_ms.is_some_and(|at| at < self.next_look_ms.load(Ordering::SeqCst)) {
            self.timer.notify_one();
        }
    }

    fn shard(&self, partition: i32) -> Option<Arc<Shard>> {
        self.shards
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&partition)
            .cloned()
    }

    /// Takes on the partitions of `__consumer_offsets` that this broker has come to lead
    /// and lets go of others; tells the shards of topics that are gone.
    pub(crate) fn follow(&self, node: &Arc<Node>, old: &ClusterImage, new: &ClusterImage) {
        let count = new
            .topic(CONSUMER_OFFSETS)
            .map_or(0, |topic| topic.partition_count());
        let mut leads = HashMap::new();
        for number in 0..i32::try_from(count).unwrap_or(i32::MAX) {
            let state = new.partition(CONSUMER_OFFSETS, PartitionId::new(number));
            if let Some(state) = state.filter(|state| state.leader == node.broker_id)
                && let Lookup::Here(partition) = node.replicas.find(CONSUMER_OFFSETS, number)
            {
                leads.insert(number, (partition, state.leader_epoch));
            }
        }
        let mut begun = Vec::new();
        {
            let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
            shards.retain(|number, shard| {
                let stays = leads
                    .get(number)
                    .is_some_and(|(_, epoch)| *epoch == shard.epoch);
                if !stays {
                    shard.close();
                }
                stays
            });
            for (number, (partition, epoch)) in leads {
                shards.entry(number).or_insert_with(|| {
                    let shard = Shard::new(partition, epoch);
                    begun.push(Arc::clone(&shard));
                    shard
                });
            }
        }
        for shard in begun {
            let node = Arc::clone(node);
            tokio::runtime::Handle::current().spawn_blocking(move || {
                node.groups.load(&shard);
            });
        }
        self.forget_topics(node, old, new);
    }

    fn load(&self, shard: &Shard) {
        let loaded = loading::load(&shard.partition, self.config.clone());
        let mut state = shard.state();
        if !matches!(state.phase, Phase::Loading) {
            return;
        }
        match loaded {
            Ok(loaded) => {
                state.phase = Phase::Serving(Box::new(loaded.shard));
                state.written_end = loaded.end;
                self.timer.notify_one();
            }
            Err(error) => {
                tracing::error!(partition = %shard.partition.id(), %error, "groups were not loaded");
                state.phase = Phase::Closed;
            }
        }
    }

    /// Appends the marker that ends a producer's transaction in a partition of
    /// `__consumer_offsets`, and has its shard take in or drop the offsets that waited for
    /// it. A shard that still loads could miss the marker: its coordinator is to ask again.
    pub(crate) fn end_transaction(
        &self,
        node: &Arc<Node>,
        partition: i32,
        marker: &TxnMarker,
    ) -> Result<Appended, PartitionError> {
        let shard = self.shard(partition).ok_or(PartitionError::NotLeader)?;
        let mut state = shard.state();
        let state = &mut *state;
        let Phase::Serving(group) = &mut state.phase else {
            return Err(PartitionError::NotLeader);
        };
        let appended = shard.partition.append_marker(marker, time::now_ms())?;
        if appended.start_flush {
            node.start_flush(&shard.partition);
        }
        state.written_end = appended.end_offset;
        group.transaction_ended(marker.producer_id.value(), marker.commit);
        Ok(appended)
    }

    /// Offsets of deleted topics are deleted.
    fn forget_topics(&self, node: &Arc<Node>, old: &ClusterImage, new: &ClusterImage) {
        let deleted: BTreeSet<StrBytes> = new
            .changes_since(old)
            .topics
            .iter()
            .filter_map(|change| match change {
                TopicChange::Deleted(topic) => Some(StrBytes::from(&*topic.name)),
                TopicChange::Created(_) | TopicChange::Changed { .. } => None,
            })
            .collect();
        if deleted.is_empty() {
            return;
        }
        let now_ms = time::now_ms();
        for shard in self.all() {
            let mut state = shard.state();
            let state = &mut *state;
            if let Phase::Serving(group) = &mut state.phase {
                let effects = group.topics_deleted(&deleted);
                shard.carry_out(node, state, effects, None, now_ms);
            }
        }
    }

    /// How many groups are coordinated here.
    pub(crate) fn count(&self) -> usize {
        self.all()
            .iter()
            .map(|shard| match &shard.state().phase {
                Phase::Serving(group) => {
                    let counts = group.counts();
                    let classic: usize = counts.groups.values().sum();
                    classic + counts.consumer_groups.values().sum::<usize>()
                }
                Phase::Loading | Phase::Closed => 0,
            })
            .sum()
    }

    fn all(&self) -> Vec<Arc<Shard>> {
        self.shards
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Lets time pass for the shards: session and rebalance time-outs, expired offsets.
    /// Runs until aborted.
    pub(crate) async fn keep_time(&self, node: &Arc<Node>) {
        loop {
            // Whoever sets a deadline during the look wakes the timer for another.
            self.next_look_ms.store(i64::MAX, Ordering::SeqCst);
            let now_ms = time::now_ms();
            let image = node.image();
            let mut next: Option<i64> = None;
            for shard in self.all() {
                let mut state = shard.state();
                let state = &mut *state;
                let Phase::Serving(group) = &mut state.phase else {
                    continue;
                };
                if group.next_deadline().is_some_and(|at| at <= now_ms) {
                    let effects = group.tick(&View(&image), now_ms);
                    shard.carry_out(node, state, effects, None, now_ms);
                }
                if let Phase::Serving(group) = &state.phase
                    && let Some(at) = group.next_deadline()
                {
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
            self.next_look_ms
                .store(next.unwrap_or(i64::MAX), Ordering::SeqCst);
            let changed = self.timer.notified();
            match next {
                None => changed.await,
                Some(at) => {
                    // At least a little, so that a deadline in the past cannot spin.
                    let wait = u64::try_from(at.saturating_sub(now_ms)).unwrap_or(0).max(1);
                    let _ = tokio::time::timeout(Duration::from_millis(wait), changed).await;
                }
            }
        }
    }
}

/// Nobody ever asked for a coordinator, so there are no groups; listing them is no error.
fn without_topic(request: GroupRequest, context: &RequestContext) -> GroupResponse {
    match request {
        GroupRequest::ListGroups(_) => no_groups(),
        other => other.refused(context.api_version, ErrorCode::CoordinatorNotAvailable),
    }
}

fn no_groups() -> GroupResponse {
    GroupResponse::ListGroups(ListGroupsResponse::default())
}

enum Part {
    Answered(GroupResponse),
    /// The answer comes later; the second is the answer if it never does, because the
    /// shard was closed meanwhile.
    Waiting(oneshot::Receiver<GroupResponse>, GroupResponse),
}

fn config(settings: &ServerSettings) -> GroupConfig {
    let size = |value: i32| usize::try_from(value).unwrap_or(usize::MAX);
    GroupConfig {
        min_session_timeout_ms: settings.group_min_session_timeout_ms,
        max_session_timeout_ms: settings.group_max_session_timeout_ms,
        initial_rebalance_delay_ms: settings.group_initial_rebalance_delay_ms,
        max_size: size(settings.group_max_size),
        offset_metadata_max_bytes: size(settings.offset_metadata_max_bytes),
        offsets_retention_ms: i64::from(settings.offsets_retention_minutes) * 60_000,
        offsets_retention_check_interval_ms: settings.offsets_retention_check_interval_ms,
        consumer: ConsumerGroupConfig {
            session_timeout_ms: settings.group_consumer_session_timeout_ms,
            session_timeouts_ms: settings.group_consumer_min_session_timeout_ms
                ..=settings.group_consumer_max_session_timeout_ms,
            heartbeat_interval_ms: settings.group_consumer_heartbeat_interval_ms,
            heartbeat_intervals_ms: settings.group_consumer_min_heartbeat_interval_ms
                ..=settings.group_consumer_max_heartbeat_interval_ms,
            max_size: size(settings.group_consumer_max_size),
            assignors: settings
                .group_consumer_assignors
                .0
                .iter()
                .map(|assignor| match assignor {
                    ConsumerAssignor::Uniform => Assignor::Uniform,
                    ConsumerAssignor::Range => Assignor::Range,
                })
                .collect(),
            migration: match settings.group_consumer_migration_policy {
                GroupMigrationPolicy::Disabled => MigrationPolicy::Disabled,
                GroupMigrationPolicy::Upgrade => MigrationPolicy::Upgrade,
                GroupMigrationPolicy::Downgrade => MigrationPolicy::Downgrade,
                GroupMigrationPolicy::Bidirectional => MigrationPolicy::Bidirectional,
            },
        },
    }
}
