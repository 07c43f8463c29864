//! The coordinators of groups: they get the clock, the cluster as it is, their partitions
//! of `__consumer_offsets` to write to, and the clients to answer ([`shards`]).
//!
//! [`shards`]: crate::shards

mod shard;
mod view;

use crate::{
    internal_topics::{CONSUMER_OFFSETS, partition_of},
    node::Node,
    partition::{Appended, PartitionError, TxnMarker, VerificationGuard},
    shards::Shards,
    time,
};
use std::{collections::BTreeSet, sync::Arc, time::Instant};
use tokio::sync::oneshot;
use view::View;
use yuxi_controller::{
    image::{ClusterImage, TopicChange},
    settings::{ConsumerAssignor, GroupMigrationPolicy, ServerSettings},
};
use yuxi_coordinator::groups::{
    Assignor, ConsumerGroupConfig, GroupConfig, GroupRequest, GroupResponse, GroupShard,
    MigrationPolicy, RequestContext,
};
use yuxi_protocol::{codec::StrBytes, error_code::ErrorCode, messages::ListGroupsResponse};

/// The group coordinators of this broker, one for each partition of
/// `__consumer_offsets` that it leads.
pub(crate) struct Groups {
    config: GroupConfig,
    shards: Shards<GroupShard>,
}

impl Groups {
    pub(crate) fn new(settings: &ServerSettings) -> Self {
        Self {
            config: config(settings),
            shards: Shards::new(CONSUMER_OFFSETS),
        }
    }

    /// Answers `request`, in parts by the shards it concerns. If it is part of a transaction
    /// it comes with the guard with which that one's coordinator was asked: what it has
    /// written is refused if a marker came in between. `connected` is when its connection was
    /// made.
    pub(crate) async fn handle(
        &self,
        node: &Arc<Node>,
        request: GroupRequest,
        context: &RequestContext,
        guard: Option<VerificationGuard>,
        connected: Instant,
    ) -> GroupResponse {
        let image = node.image();
        let Some(topic) = image.topic(CONSUMER_OFFSETS) else {
            return without_topic(request, context);
        };
        let partitions = i32::try_from(topic.partition_count()).unwrap_or(i32::MAX);
        let started: Vec<_> = request
            .split(partitions)
            .into_iter()
            .map(|(partition, part)| {
                let asked = (part, guard, connected);
                self.start(node, &image, partition, asked, context)
            })
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

    /// Whether offsets that come over a connection made at `connected` may be from before the
    /// term of the group's coordinator here. A client that had no answer asks the next
    /// coordinator again and goes on from there; what it had sent first is still on its way,
    /// and would take the group back if it were heard once this broker coordinates again.
    pub(crate) fn may_be_late(&self, node: &Node, group_id: &str, connected: Instant) -> bool {
        partition_of(&node.image(), CONSUMER_OFFSETS, group_id)
            .and_then(|partition| self.shards.get(partition))
            .is_some_and(|shard| shard.has_predecessors_since(connected))
    }

    fn start(
        &self,
        node: &Arc<Node>,
        image: &ClusterImage,
        partition: i32,
        (request, guard, connected): (GroupRequest, Option<VerificationGuard>, Instant),
        context: &RequestContext,
    ) -> Part {
        let version = context.api_version;
        let Some(shard) = self.shards.get(partition) else {
            // Listing tells what is here, and another broker tells the rest.
            if matches!(request, GroupRequest::ListGroups(_)) {
                return Part::Answered(no_groups());
            }
            return Part::Answered(request.refused(version, ErrorCode::NotCoordinator));
        };
        let now = time::now();
        let mut state = shard.state();
        let state = &mut *state;
        let group = match state.serving() {
            Ok(group) => group,
            Err(error) => return Part::Answered(request.refused(version, error)),
        };
        let refused = request.refused(version, ErrorCode::NotCoordinator);
        if matches!(request, GroupRequest::OffsetCommit(_))
            && shard.has_predecessors_since(connected)
        {
            return Part::Answered(refused);
        }
        let ticket = self.shards.ticket();
        let effects = group.handle(context, request, ticket, &View(image), now);
        let receiver = state.wait_for(ticket);
        shard.carry_out(node, state, effects, guard, now);
        self.shards.deadlines_changed(state);
        Part::Waiting(receiver, refused)
    }

    /// Takes on the partitions of `__consumer_offsets` that this broker has come to lead
    /// and lets go of others; tells the shards of topics that are gone.
    pub(crate) fn follow(&self, node: &Arc<Node>, old: &ClusterImage, new: &ClusterImage) {
        for shard in self.shards.follow(node, new) {
            let loading = Arc::clone(node);
            node.run_blocking(move || {
                let (node, groups) = (&loading, &loading.groups);
                let new_id = || *uuid::Uuid::new_v4().as_bytes();
                let empty = GroupShard::new(groups.config.clone(), Box::new(new_id));
                groups.shards.load(node, &shard, empty, |state| {
                    if let Ok(group) = state.serving() {
                        group.loaded(&View(&node.image()), time::now());
                    }
                });
            });
        }
        self.forget_topics(node, old, new);
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
        let shard = self
            .shards
            .get(partition)
            .ok_or(PartitionError::NotLeader)?;
        let mut state = shard.state();
        if state.serving().is_err() {
            return Err(PartitionError::NotLeader);
        }
        let appended = shard.partition.append_marker(marker, time::wall_ms())?;
        if appended.start_flush {
            node.start_flush(&shard.partition);
        }
        state.written_end = appended.end_offset;
        if let Ok(group) = state.serving() {
            group.transaction_ended(marker.producer_id.value(), marker.commit);
        }
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
        let now = time::now();
        for shard in self.shards.all() {
            let mut state = shard.state();
            if let Ok(group) = state.serving() {
                let effects = group.topics_deleted(&deleted);
                shard.carry_out(node, &mut state, effects, None, now);
            }
        }
    }

    /// How many groups are coordinated here.
    pub(crate) fn count(&self) -> usize {
        self.shards
            .all()
            .iter()
            .map(|shard| match shard.state().serving() {
                Ok(group) => {
                    let counts = group.counts();
                    let classic: usize = counts.groups.values().sum();
                    classic + counts.consumer_groups.values().sum::<usize>()
                }
                Err(_) => 0,
            })
            .sum()
    }

    /// Lets time pass for the shards: session and rebalance time-outs, expired offsets.
    /// Runs until aborted.
    pub(crate) async fn keep_time(&self, node: &Arc<Node>) {
        self.shards
            .keep_time(|shard, state, now| {
                if let Ok(group) = state.serving() {
                    let effects = group.tick(&View(&node.image()), now);
                    shard.carry_out(node, state, effects, None, now);
                }
            })
            .await;
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
