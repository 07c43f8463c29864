//! Consumer groups, classic and new (KIP-848): membership, assignments and committed
//! offsets.
//!
//! A [`GroupShard`] owns the groups of one partition of `__consumer_offsets`. It is
//! pure: the runtime around it holds it behind a lock, tells it the time and appends
//! its records. The order of calls:
//!
//! 1. *Load.* `new`, then `replay` for each record of the partition in order
//!    (`replay_transactional` for those in a transactional batch, `transaction_ended` for a
//!    marker), then `loaded` once, which arms the members' sessions anew. Until then
//!    requests are [`GroupRequest::refused`] with COORDINATOR_LOAD_IN_PROGRESS.
//! 2. *Serve.* `handle` a request, or `tick` when [`GroupShard::next_deadline`] has
//!    come; look at the deadline again after every call. Both hand out [`Effects`].
//! 3. *Write.* Effects with records are appended at once, as one batch (a transactional
//!    one of the producer that they name, if they do), and before any
//!    other call the shard is told the outcome: `written`, or `write_failed`, whose own
//!    effects are then dealt with in the same way. Replies that come with records are
//!    not sent before that; `written` and `write_failed` hand them on.
//! 4. *Send.* A reply goes out once everything that the shard has had written up to
//!    then is below the high watermark, whether or not it came with records: it may
//!    rest on any of them.
//! 5. *Unload.* On losing the partition, `unload` hands out an answer for every
//!    request that still waits; replies not yet sent are to be refused likewise.
//!
//! Invariants: a group id is that of a classic group or of a consumer group, never of both;
//! offsets, the deletion of groups and everything about consumer groups take effect only
//! when written; a classic group's members and generation may run ahead of the log, which
//! shows the group as of its last assignment (or emptiness), and what ran ahead is lost with
//! the shard: its members rejoin. Every ticket given to `handle` is answered exactly once, by some
//! call's replies. No buffer of a request is kept.

mod admin;
mod api;
mod applying;
mod classic;
mod cluster;
mod config;
pub mod consumer;
mod fuzz;
mod join;
mod offsets;
mod rebalance;
pub mod records;
mod routing;
mod sync;
mod timers;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{HeartbeatResponse, OffsetDeleteResponse},
};

pub use api::{
    Effects, GroupRequest, GroupResponse, Reply, RequestContext, Ticket, TransactionalProducer,
};
pub use classic::GroupState;
pub use cluster::{ClusterView, GroupOverrides, TopicView};
pub use config::{ConsumerGroupConfig, GroupConfig, MigrationPolicy};
pub use consumer::{Assignor, ConsumerGroupState};
pub use fuzz::fuzz_record;
pub use records::RecordError;
pub use routing::partition_for;

use crate::time::{Monotonic, Now};
use crate::{CoordinatorRecord, phase::Phase};
use api::Completion;
use classic::Group;
use consumer::ConsumerGroup;
use offsets::{MAX_HOUSEKEEPING_BYTES, OffsetStore};
use rebalance::Turn;
use timers::{Task, TimerKey, Timers};

/// Where the 16 bytes of a new member id's UUID come from.
pub type UuidSource = Box<dyn FnMut() -> [u8; 16] + Send>;

/// The groups and offsets of one partition of `__consumer_offsets`.
pub struct GroupShard {
    config: GroupConfig,
    uuids: UuidSource,
    groups: BTreeMap<StrBytes, Group>,
    consumers: BTreeMap<StrBytes, ConsumerGroup>,
    offsets: OffsetStore,
    timers: Timers,
    phase: Phase,
    skipped_records: u64,
}

/// What a record did to the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// It was taken in.
    Applied,
    /// It is of a kind that is not served yet, and was passed over.
    Skipped {
        /// The number that its key begins with.
        key_version: i16,
    },
}

/// How much a shard holds, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Classic groups by state.
    pub groups: BTreeMap<GroupState, usize>,
    /// Consumer groups by state.
    pub consumer_groups: BTreeMap<ConsumerGroupState, usize>,
    /// Members of all groups.
    pub members: usize,
    /// Committed offsets.
    pub offsets: usize,
    /// Offsets that wait for the end of their transaction.
    pub pending_offsets: usize,
    /// Records that `replay` passed over because their kind is not served yet.
    pub skipped_records: u64,
}

impl GroupShard {
    /// A shard that knows nothing yet and waits for its records.
    pub fn new(config: GroupConfig, uuids: UuidSource) -> Self {
        Self {
            config,
            uuids,
            groups: BTreeMap::new(),
            consumers: BTreeMap::new(),
            offsets: OffsetStore::default(),
            timers: Timers::default(),
            phase: Phase::Loading,
            skipped_records: 0,
        }
    }

    /// Takes over changed settings; deadlines already set stay as they are.
    pub fn set_config(&mut self, config: GroupConfig) {
        self.config = config;
    }

    /// Takes in one record of the partition while the shard loads.
    ///
    /// A malformed record is an error and changes nothing; it is for the caller to go on
    /// with the next.
    pub fn replay(&mut self, key: &Bytes, value: Option<&Bytes>) -> Result<Replayed, RecordError> {
        self.phase.assert_loading();
        self.apply(None, key, value)
    }

    /// Takes in one record of a transactional batch of `producer_id` while the shard loads:
    /// an offset in it waits for [`GroupShard::transaction_ended`].
    pub fn replay_transactional(
        &mut self,
        producer_id: i64,
        key: &Bytes,
        value: Option<&Bytes>,
    ) -> Result<Replayed, RecordError> {
        self.phase.assert_loading();
        self.apply(Some(producer_id), key, value)
    }

    /// All records are in: members' sessions begin anew, since nobody could have heard
    /// from them. Groups with members are stable, as the log has them.
    pub fn loaded(&mut self, cluster: &dyn ClusterView, now: Now) {
        self.phase.loaded();
        self.schedule_clean_up(now);
        self.arm_loaded_consumers(cluster, now);
        let mut effects = Effects::default();
        let ids: Vec<StrBytes> = self.groups.keys().cloned().collect();
        for id in ids {
            let max_size = self.config.max_size;
            let Some(mut turn) = self.turn(&id, now, &mut effects) else {
                continue;
            };
            for member_id in turn.group.member_ids() {
                turn.renew_session(&member_id);
            }
            if turn.group.members().len() > max_size.max(1) {
                // The limit was lowered; a rebalance lets members commit before some
                // are left out.
                turn.prepare_rebalance("the group is larger than is now allowed");
            } else if turn.group.awaits_rebalance {
                turn.prepare_rebalance("its last member of the consumer protocol has gone");
            }
        }
        assert!(
            effects.records.is_empty() && effects.replies.is_empty(),
            "nobody waits yet"
        );
    }

    /// Handles a request, which is answered under `ticket`, now or by a later call.
    pub fn handle(
        &mut self,
        context: &RequestContext,
        request: GroupRequest,
        ticket: Ticket,
        cluster: &dyn ClusterView,
        now: Now,
    ) -> Effects {
        self.phase.assert_ready();
        let mut effects = Effects::default();
        let out = &mut effects;
        let response = match request {
            GroupRequest::Join(request) => {
                self.join(context, &request, ticket, cluster, now, out);
                return self.hand_out(effects);
            }
            GroupRequest::Sync(request) => {
                self.sync(context, &request, ticket, cluster, now, out);
                return self.hand_out(effects);
            }
            GroupRequest::Heartbeat(request) => {
                let error = self.heartbeat(&request, now, out).err();
                GroupResponse::Heartbeat(message!(HeartbeatResponse {
                    error_code: error.unwrap_or(ErrorCode::None).code()
                }))
            }
            GroupRequest::Leave(request) => {
                GroupResponse::Leave(self.leave(context, request, cluster, now, out))
            }
            GroupRequest::OffsetCommit(request) => {
                GroupResponse::OffsetCommit(self.commit_offsets(context, &request, now, out))
            }
            GroupRequest::TxnOffsetCommit(request) => GroupResponse::TxnOffsetCommit(
                self.commit_transactional_offsets(&request, now, out),
            ),
            GroupRequest::OffsetFetch(request) => {
                GroupResponse::OffsetFetch(self.fetch_offsets(context, request))
            }
            GroupRequest::OffsetDelete(request) => {
                let response = self.delete_offsets(&request, out).unwrap_or_else(|error| {
                    message!(OffsetDeleteResponse {
                        error_code: error.code()
                    })
                });
                GroupResponse::OffsetDelete(response)
            }
            GroupRequest::ConsumerHeartbeat(request) => GroupResponse::ConsumerHeartbeat(
                self.consumer_heartbeat(context, &request, cluster, now, out),
            ),
            GroupRequest::ConsumerDescribe(request) => GroupResponse::ConsumerDescribe(
                self.describe_consumer_groups(context, request, cluster),
            ),
            GroupRequest::DescribeGroups(request) => {
                GroupResponse::DescribeGroups(self.describe(context, request))
            }
            GroupRequest::ListGroups(request) => GroupResponse::ListGroups(self.list(&request)),
            GroupRequest::DeleteGroups(request) => {
                GroupResponse::DeleteGroups(self.delete(request, out))
            }
        };
        effects.reply(ticket, response);
        self.hand_out(effects)
    }

    /// Does what is due at `now`. If that is a lot, part of it is left for the next
    /// call and [`GroupShard::next_deadline`] stays in the past.
    pub fn tick(&mut self, cluster: &dyn ClusterView, now: Now) -> Effects {
        self.phase.assert_ready();
        let mut effects = Effects::default();
        let mut counted = 0;
        let mut bytes = 0;
        let mut changed: BTreeSet<StrBytes> = BTreeSet::new();
        while bytes < MAX_HOUSEKEEPING_BYTES {
            // What is to be written of a consumer group rests on what is written of it.
            if let Some(TimerKey::Consumer { group, .. }) = self.timers.peek_due(now.monotonic)
                && changed.contains(group)
            {
                break;
            }
            let Some((key, task)) = self.timers.pop_due(now.monotonic) else {
                break;
            };
            let group = match &key {
                TimerKey::CleanUp => {
                    // It looks at all groups, and so must see what is to be written.
                    if !changed.is_empty() || !self.clean_up(now.wall_ms, &mut effects) {
                        self.schedule_clean_up_in(0, now);
                        break;
                    }
                    self.schedule_clean_up(now);
                    bytes += size_of(&effects.records[counted..]);
                    counted = effects.records.len();
                    continue;
                }
                TimerKey::Consumer {
                    group,
                    member,
                    timer,
                } => {
                    if let Task::FenceMember { epoch } = task {
                        changed.insert(group.clone());
                        self.consumer_time_out(
                            (group, member),
                            (*timer, epoch),
                            cluster,
                            now,
                            &mut effects,
                        );
                    }
                    bytes += size_of(&effects.records[counted..]);
                    counted = effects.records.len();
                    continue;
                }
                TimerKey::Member { group, .. }
                | TimerKey::Join { group }
                | TimerKey::Sync { group } => group,
            };
            let Some(mut turn) = self.turn(group, now, &mut effects) else {
                continue;
            };
            match (task, &key) {
                (Task::ExpireMember, TimerKey::Member { member, .. }) => {
                    turn.expire_member(member);
                }
                (
                    Task::InitialJoin {
                        delay_ms,
                        remaining_ms,
                    },
                    _,
                ) => {
                    turn.initial_join_delay_passed(delay_ms, remaining_ms);
                }
                (Task::CompleteJoin, _) => turn.complete_join(),
                (Task::ExpireSync { generation }, _) => turn.expire_sync(generation),
                (Task::ExpireMember | Task::CleanUp | Task::FenceMember { .. }, _) => {}
            }
            bytes += size_of(&effects.records[counted..]);
            counted = effects.records.len();
        }
        self.hand_out(effects)
    }

    /// When `tick` next has something to do, in milliseconds since the Unix epoch.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.timers.next_deadline()
    }

    /// The records of `effects` were appended: what depended on them happens, and the
    /// replies may be sent when the records are below the high watermark.
    #[must_use = "replies must be sent"]
    pub fn written(&mut self, effects: Effects, now: Now) -> Vec<Reply> {
        self.phase.outcome_known();
        let producer_id = effects.transaction.map(|producer| producer.producer_id);
        for record in &effects.records {
            self.apply_written(producer_id, record);
        }
        let mut out = Effects {
            replies: effects.replies,
            ..Default::default()
        };
        for completion in effects.completions {
            match completion {
                Completion::Assign { group, assignment } => {
                    if let Some(mut turn) = self.turn(&group, now, &mut out) {
                        turn.assigned(assignment);
                    }
                }
                Completion::TopicsChecked { group, version } => {
                    if let Some(group) = self.consumers.get_mut(&group) {
                        group.topics_checked(version);
                    }
                }
                Completion::BecameClassic {
                    group,
                    classic,
                    rebalance,
                } => self.became_classic(&group, *classic, rebalance, now, &mut out),
                Completion::ForgetOnFailure { .. }
                | Completion::RestoreOnFailure { .. }
                | Completion::RearmOnFailure { .. } => {}
            }
        }
        assert!(out.records.is_empty(), "a write leads to no other");
        out.replies
    }

    /// The records of `effects` could not be appended: nothing of them is in the log.
    /// Whoever waited for them is answered with what `error` means to a client.
    pub fn write_failed(&mut self, effects: Effects, error: ErrorCode, now: Now) -> Effects {
        self.phase.outcome_known();
        let error = api::write_error(error);
        tracing::warn!(error = error.name(), "group records could not be written");
        let mut out = Effects::default();
        for (ticket, response) in effects.replies {
            out.reply(ticket, response.failed(error));
        }
        for completion in effects.completions {
            self.undo(completion, error, now, &mut out);
        }
        if self
            .timers
            .deadline(&TimerKey::CleanUp)
            .is_some_and(|deadline| deadline <= now.monotonic)
        {
            self.schedule_clean_up(now);
        }
        self.hand_out(out)
    }

    /// The partition is no longer ours: every request that waits is answered with
    /// NOT_COORDINATOR.
    #[must_use = "replies must be sent"]
    pub fn unload(mut self) -> Vec<Reply> {
        let mut effects = Effects::default();
        let ids: Vec<StrBytes> = self.groups.keys().cloned().collect();
        for id in ids {
            self.forget(&id, ErrorCode::NotCoordinator, &mut effects);
        }
        effects.replies
    }

    /// How much the shard holds. Takes time in proportion to its groups.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts {
            offsets: self.offsets.len(),
            pending_offsets: self.offsets.pending_len(),
            skipped_records: self.skipped_records,
            ..Counts::default()
        };
        for group in self.groups.values() {
            *counts.groups.entry(group.state()).or_default() += 1;
            counts.members += group.members().len();
        }
        for group in self.consumers.values() {
            *counts.consumer_groups.entry(group.state()).or_default() += 1;
            counts.members += group.members().len();
        }
        counts
    }

    fn hand_out(&mut self, effects: Effects) -> Effects {
        self.phase.handed_out(&effects.records);
        effects
    }

    /// A call's hold on one group.
    fn turn<'a>(
        &'a mut self,
        id: &StrBytes,
        now: Now,
        effects: &'a mut Effects,
    ) -> Option<Turn<'a>> {
        // The id that the shard owns goes into timers, not the request's.
        let (id, group) = self.groups.range_mut(id..=id).next()?;
        Some(Turn {
            id,
            group,
            timers: &mut self.timers,
            config: &self.config,
            effects,
            now,
        })
    }

    fn schedule_clean_up(&mut self, now: Now) {
        self.schedule_clean_up_in(self.clean_up_interval_ms(), now);
    }

    fn schedule_clean_up_in(&mut self, delay_ms: i64, now: Now) {
        self.timers
            .schedule(TimerKey::CleanUp, now.after(delay_ms), Task::CleanUp);
    }

    fn clean_up_interval_ms(&self) -> i64 {
        self.config.offsets_retention_check_interval_ms.max(1)
    }
}

/// A shard's contents are its clients' business; its size is not.
impl fmt::Debug for GroupShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupShard")
            .field("groups", &self.groups.len())
            .field("consumer_groups", &self.consumers.len())
            .field("offsets", &self.offsets.len())
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// The size of `records`, give or take the batch's own framing.
fn size_of(records: &[CoordinatorRecord]) -> usize {
    let size =
        |record: &CoordinatorRecord| record.key.len() + record.value.as_ref().map_or(0, Bytes::len);
    records.iter().map(size).sum()
}

/// As much of a client's own words as is worth a log line.
fn logged(text: &StrBytes) -> String {
    const MOST_BYTES: usize = 255;
    text[..text.floor_char_boundary(MOST_BYTES)].to_owned()
}

/// A copy of its own, so that keeping a name does not keep the request it came in.
fn copied(text: &StrBytes) -> StrBytes {
    if text.is_empty() {
        StrBytes::default()
    } else {
        text.as_str().into()
    }
}
