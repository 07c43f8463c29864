//! A partition as this broker holds it: its log, its role, the high watermark and who
//! waits for it, one object behind one short lock.
//!
//! Connection tasks call it directly; nothing here waits. The lock is never held
//! across an `.await` nor an fsync. What waits for an offset is parked here and woken
//! when that offset is reached; nothing polls.
//!
//! Invariants: log start ≤ high watermark ≤ log end, and neither of the first two
//! moves back within one leader epoch (I14). The high watermark is moved in one place,
//! `State::advance`, by the rule of [`leader::committed_end`] (I3). An acknowledgement
//! that waits is sent only while this broker leads in the epoch of the append (I10).

pub(crate) mod admission;
mod error;
mod flush;
mod leader;
mod waiters;

pub(crate) use error::PartitionError;
pub(crate) use waiters::FetchWaiter;

use crate::{internal_topics, log_config};
use admission::Admitted;
use flush::Flushing;
use leader::Leader;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::oneshot;
use waiters::{AckWaiters, FetchWaiters};
use yuxi_controller::settings::TopicSettings;
use yuxi_log::{FileSlice, Log};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerId, LeaderEpoch, Offset, TopicPartition},
};

/// How far a record must have come before its producer is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequiredAcks {
    /// In the leader's log, flushed if the topic's flush policy says so.
    Leader,
    /// Below the high watermark.
    All,
}

/// When an append may be acknowledged.
#[derive(Debug)]
pub(crate) enum Ack {
    /// It has come as far as was asked.
    Now,
    /// Once this resolves. An error, or the sender gone, means that it is not known to
    /// be committed.
    Later(oneshot::Receiver<Result<(), ErrorCode>>),
}

/// What an append did.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) base_offset: Offset,
    /// The offset after the last record.
    pub(crate) end_offset: Offset,
    pub(crate) log_start_offset: Offset,
    pub(crate) ack: Ack,
    /// The flush policy wants an fsync and none runs: the caller must now call
    /// [`Partition::flush_wanted`] on a thread that may block.
    pub(crate) start_flush: bool,
}

/// Which records a reader may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// All below the high watermark.
    Uncommitted,
    /// All below the last stable offset.
    Committed,
}

/// A reader's question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) from: Offset,
    pub(crate) max_bytes: usize,
    /// Return one whole batch even if it is larger than `max_bytes` (KIP-74).
    pub(crate) at_least_one_batch: bool,
    pub(crate) isolation: Isolation,
    /// The leader epoch that the reader believes in, or `NONE`.
    pub(crate) leader_epoch: LeaderEpoch,
    /// The epoch of the last record that the reader has, or `NONE` if it does not say.
    pub(crate) last_fetched_epoch: LeaderEpoch,
}

/// Where a reader's log left the leader's (KIP-595): the largest epoch they share up to
/// the reader's, and where that epoch ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Divergence {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) end_offset: Offset,
}

/// A reader's answer.
#[derive(Debug)]
pub(crate) struct ReadAnswer {
    pub(crate) high_watermark: Offset,
    pub(crate) last_stable_offset: Offset,
    pub(crate) log_start_offset: Offset,
    /// Whole batches from the one that holds the offset asked for; `None` at the end.
    pub(crate) records: Option<FileSlice>,
    /// The reader must truncate first; there are no records then.
    pub(crate) divergence: Option<Divergence>,
    /// The records end with a segment that takes no more: waiting adds nothing to them.
    pub(crate) cannot_grow: bool,
}

/// The offsets of a partition at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offsets {
    pub(crate) log_start: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) last_stable: Offset,
    pub(crate) log_end: Offset,
}

/// What a partition is at one moment, for metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) is_leader: bool,
    pub(crate) is_offline: bool,
    pub(crate) in_sync: usize,
    pub(crate) min_in_sync: usize,
    pub(crate) offsets: Offsets,
    pub(crate) size_bytes: u64,
    pub(crate) segments: usize,
}

/// One partition on this broker.
#[derive(Debug)]
pub(crate) struct Partition {
    id: TopicPartition,
    broker: BrokerId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    log: Log,
    settings: Arc<TopicSettings>,
    role: Role,
    leader_epoch: LeaderEpoch,
    high_watermark: Offset,
    /// How far this replica's log counts as held: its end, unless the flush policy
    /// wants an fsync first that has not ended.
    held_end: Offset,
    flushing: Flushing,
    /// Appends above the high watermark: where each ends, and its bytes.
    uncommitted: VecDeque<(Offset, u64)>,
    until_committed: AckWaiters,
    until_held: AckWaiters,
    fetches: FetchWaiters,
}

#[derive(Debug)]
enum Role {
    Leader(Leader),
    Follower,
    Deleted,
    Offline,
}

impl Partition {
    /// Wraps an opened log. It serves nobody before it is given a role.
    pub(crate) fn new(
        id: TopicPartition,
        broker: BrokerId,
        log: Log,
        settings: Arc<TopicSettings>,
        high_watermark: Offset,
    ) -> Self {
        let high_watermark = high_watermark
            .max(log.log_start_offset())
            .min(log.log_end_offset());
        let held_end = log.log_end_offset();
        Self {
            id,
            broker,
            state: Mutex::new(State {
                log,
                settings,
                role: Role::Follower,
                leader_epoch: LeaderEpoch::NONE,
                high_watermark,
                held_end,
                flushing: Flushing::Idle,
                uncommitted: VecDeque::new(),
                until_committed: AckWaiters::default(),
                until_held: AckWaiters::default(),
                fetches: FetchWaiters::default(),
            }),
        }
    }

    pub(crate) fn id(&self) -> &TopicPartition {
        &self.id
    }

    /// Whether only brokers may write it.
    pub(crate) fn is_internal(&self) -> bool {
        internal_topics::is_internal(&self.id.topic)
    }

    /// A panic while the lock was held would leave a half-made change behind, so it is
    /// passed on to whoever comes next.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a partition's lock is poisoned")
    }

    /// Leads from now on in `epoch`, with `isr` in sync. The same or an older epoch only
    /// renews the in-sync replicas.
    pub(crate) fn become_leader(&self, epoch: LeaderEpoch, isr: Vec<BrokerId>) {
        let mut state = self.state();
        if state.ended().is_some() {
            return;
        }
        if epoch > state.leader_epoch {
            let start = state.log.log_end_offset();
            state.log.assign_epoch(epoch);
            state.stop_waiting(ErrorCode::NotLeaderOrFollower);
            // The new epoch is recorded last (I6).
            state.role = Role::Leader(Leader::new(start, isr));
            state.leader_epoch = epoch;
        } else if let Role::Leader(leader) = &mut state.role {
            leader.set_isr(isr);
        }
        state.advance(self.broker);
    }

    /// Stops leading. Those who wait for acknowledgements are told to look elsewhere.
    pub(crate) fn become_follower(&self, epoch: LeaderEpoch) {
        let mut state = self.state();
        if state.ended().is_some() || epoch <= state.leader_epoch {
            return;
        }
        state.stop_waiting(ErrorCode::NotLeaderOrFollower);
        state.role = Role::Follower;
        state.leader_epoch = epoch;
    }

    /// The topic's settings as they are now.
    pub(crate) fn settings(&self) -> Arc<TopicSettings> {
        Arc::clone(&self.state().settings)
    }

    /// New settings take effect with the next append, roll or retention check.
    pub(crate) fn set_settings(
        &self,
        settings: Arc<TopicSettings>,
        producer_id_expiration_ms: i64,
    ) {
        let mut state = self.state();
        state
            .log
            .set_config(log_config::of(&settings, producer_id_expiration_ms));
        state.settings = settings;
    }

    /// Appends one admitted batch.
    pub(crate) fn append(
        &self,
        batch: &Admitted,
        acks: RequiredAcks,
        now_ms: i64,
    ) -> Result<Appended, PartitionError> {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(error) = state.ended() {
            return Err(error);
        }
        let Role::Leader(leader) = &state.role else {
            return Err(PartitionError::NotLeader);
        };
        let (in_sync, needed) = (leader.isr().len(), state.min_insync_replicas());
        if acks == RequiredAcks::All && in_sync < needed {
            return Err(PartitionError::NotEnoughReplicas { in_sync, needed });
        }
        let info = state.log.append_as_leader(
            &[batch.view()?],
            state.leader_epoch,
            batch.origin(),
            now_ms,
        )?;
        let end_offset = info.last_offset.plus(1);
        let start_flush =
            info.duplicate.is_none() && state.log_grew(batch.bytes().len(), now_ms, self.broker);
        let ack = match acks {
            RequiredAcks::All if state.high_watermark < end_offset => {
                Ack::Later(state.until_committed.wait_for(end_offset))
            }
            RequiredAcks::Leader if state.held_end < end_offset => {
                Ack::Later(state.until_held.wait_for(end_offset))
            }
            RequiredAcks::All | RequiredAcks::Leader => Ack::Now,
        };
        Ok(Appended {
            base_offset: info.base_offset,
            end_offset,
            log_start_offset: state.log.log_start_offset(),
            ack,
            start_flush,
        })
    }

    /// When everything below `end` is below the high watermark.
    pub(crate) fn committed(&self, end: Offset) -> Ack {
        let mut state = self.state();
        if state.high_watermark >= end {
            Ack::Now
        } else {
            Ack::Later(state.until_committed.wait_for(end))
        }
    }

    /// Reads what a consumer may see.
    pub(crate) fn read(&self, read: Read) -> Result<ReadAnswer, PartitionError> {
        let state = self.state();
        state.check_leader(read.leader_epoch)?;
        let offsets = state.offsets();
        let up_to = match read.isolation {
            Isolation::Uncommitted => offsets.high_watermark,
            Isolation::Committed => offsets.last_stable,
        };
        if read.from < offsets.log_start || read.from > offsets.log_end {
            return Err(PartitionError::OffsetOutOfRange {
                requested: read.from,
                start: offsets.log_start,
                end: offsets.log_end,
            });
        }
        let divergence = state.divergence(&read, &offsets)?;
        let mut records = None;
        let mut cannot_grow = false;
        if read.from < up_to && divergence.is_none() {
            let found =
                state
                    .log
                    .read(read.from, read.max_bytes, read.at_least_one_batch, up_to)?;
            cannot_grow = found.slice.is_some()
                && state
                    .log
                    .segments()
                    .next_back()
                    .is_some_and(|active| found.start_offset < active.base_offset);
            records = found.slice;
        }
        Ok(ReadAnswer {
            high_watermark: offsets.high_watermark,
            last_stable_offset: offsets.last_stable,
            log_start_offset: offsets.log_start,
            records,
            divergence,
            cannot_grow,
        })
    }

    /// Wakes `waiter` when enough bytes have become readable, or the role changes, unless
    /// something beyond `seen_high_watermark` is readable already: then false.
    pub(crate) fn park_fetch(
        &self,
        waiter: &Arc<FetchWaiter>,
        seen_high_watermark: Offset,
    ) -> bool {
        let mut state = self.state();
        if state.high_watermark != seen_high_watermark || state.ended().is_some() {
            return false;
        }
        state.fetches.park(waiter);
        true
    }

    /// The waiter's fetch is answered or gone.
    pub(crate) fn unpark_fetch(&self, waiter: &Arc<FetchWaiter>) {
        self.state().fetches.unpark(waiter);
    }

    /// The offsets now.
    pub(crate) fn offsets(&self) -> Offsets {
        self.state().offsets()
    }

    /// What the partition is now.
    pub(crate) fn status(&self) -> Status {
        let state = self.state();
        let in_sync = match &state.role {
            Role::Leader(leader) => leader.isr().len(),
            Role::Follower | Role::Deleted | Role::Offline => 0,
        };
        Status {
            is_leader: matches!(state.role, Role::Leader(_)),
            is_offline: matches!(state.role, Role::Offline),
            in_sync,
            min_in_sync: state.min_insync_replicas(),
            offsets: state.offsets(),
            size_bytes: state.log.size_bytes(),
            segments: state.log.segments().len(),
        }
    }

    /// Runs `look` on the log of a partition that this broker leads.
    pub(crate) fn with_led_log<T>(
        &self,
        believed: LeaderEpoch,
        look: impl FnOnce(&mut Log, Offsets) -> T,
    ) -> Result<T, PartitionError> {
        let mut state = self.state();
        state.check_leader(believed)?;
        let offsets = state.offsets();
        Ok(look(&mut state.log, offsets))
    }

    /// Runs `work` on the log, whatever the role; `None` once deleted. For maintenance.
    pub(crate) fn with_log<T>(&self, work: impl FnOnce(&mut Log, Offset) -> T) -> Option<T> {
        let mut state = self.state();
        if matches!(state.role, Role::Deleted) {
            return None;
        }
        let high_watermark = state.high_watermark;
        Some(work(&mut state.log, high_watermark))
    }

    /// Moves the log start to `offset`, or to the high watermark if `None` (DeleteRecords).
    pub(crate) fn delete_records(
        &self,
        offset: Option<Offset>,
        now_ms: i64,
    ) -> Result<Offset, PartitionError> {
        let mut state = self.state();
        state.check_leader(LeaderEpoch::NONE)?;
        let offsets = state.offsets();
        let to = offset.unwrap_or(offsets.high_watermark);
        if to > offsets.high_watermark || to < Offset::ZERO {
            return Err(PartitionError::OffsetOutOfRange {
                requested: to,
                start: offsets.log_start,
                end: offsets.high_watermark,
            });
        }
        if to > offsets.log_start {
            state.log.delete_records_before(to, now_ms)?;
        }
        Ok(state.log.log_start_offset())
    }

    /// Takes the partition out of service for good; the caller removes its directory.
    pub(crate) fn delete(&self) {
        let mut state = self.state();
        state.stop_waiting(ErrorCode::UnknownTopicOrPartition);
        state.role = Role::Deleted;
    }

    /// The log directory failed: nothing more is written, and those who wait are told.
    pub(crate) fn go_offline(&self) {
        let mut state = self.state();
        if !matches!(state.role, Role::Deleted) {
            state.stop_waiting(ErrorCode::KafkaStorageError);
            state.role = Role::Offline;
        }
    }
}

impl State {
    /// Why nothing more is served, if so.
    fn ended(&self) -> Option<PartitionError> {
        match self.role {
            Role::Leader(_) | Role::Follower => None,
            Role::Deleted => Some(PartitionError::Deleted),
            Role::Offline => Some(PartitionError::Offline),
        }
    }

    fn check_leader(&self, believed: LeaderEpoch) -> Result<(), PartitionError> {
        if let Some(error) = self.ended() {
            return Err(error);
        }
        let current = self.leader_epoch;
        if believed != LeaderEpoch::NONE && believed < current {
            return Err(PartitionError::FencedLeaderEpoch {
                requested: believed,
                current,
            });
        }
        if believed > current {
            return Err(PartitionError::UnknownLeaderEpoch {
                requested: believed,
                current,
            });
        }
        match self.role {
            Role::Leader(_) => Ok(()),
            Role::Follower | Role::Deleted | Role::Offline => Err(PartitionError::NotLeader),
        }
    }

    fn min_insync_replicas(&self) -> usize {
        usize::try_from(self.settings.min_insync_replicas).unwrap_or(1)
    }

    fn offsets(&self) -> Offsets {
        Offsets {
            log_start: self.log.log_start_offset(),
            high_watermark: self.high_watermark,
            // Without transactions every committed record is stable.
            last_stable: self.high_watermark,
            log_end: self.log.log_end_offset(),
        }
    }

    /// Whether the reader has records up to its offset that this log has not. An epoch
    /// that the log does not know, nor any before it, says as little as an offset out of
    /// range.
    fn divergence(
        &self,
        read: &Read,
        offsets: &Offsets,
    ) -> Result<Option<Divergence>, PartitionError> {
        let epoch = read.last_fetched_epoch;
        if epoch == LeaderEpoch::NONE {
            return Ok(None);
        }
        let Some((found, end_offset)) = self.log.end_offset_for_epoch(epoch) else {
            return Err(PartitionError::OffsetOutOfRange {
                requested: read.from,
                start: offsets.log_start,
                end: offsets.log_end,
            });
        };
        Ok(
            (found < epoch || end_offset < read.from).then_some(Divergence {
                epoch: found,
                end_offset,
            }),
        )
    }

    /// The log has records that it had not: they count as held at once, or after the
    /// fsync that the flush policy asks for. True if that fsync must be started.
    fn log_grew(&mut self, bytes: usize, now_ms: i64, broker: BrokerId) -> bool {
        self.uncommitted
            .push_back((self.log.log_end_offset(), bytes as u64));
        if !self.log.is_flush_due(now_ms) {
            // Even while a flush runs: it is one that no append asked for.
            self.held_end = self.log.log_end_offset();
            self.advance(broker);
            return false;
        }
        match self.flushing {
            Flushing::Idle => {
                self.flushing = Flushing::RunningAndWanted;
                true
            }
            Flushing::Running | Flushing::RunningAndWanted => {
                self.flushing = Flushing::RunningAndWanted;
                false
            }
        }
    }

    /// Moves the high watermark as far as the in-sync replicas hold the log (I3), and
    /// wakes whoever waited for that.
    fn advance(&mut self, broker: BrokerId) {
        self.until_held.reached(self.held_end);
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let Some(end) =
            leader::committed_end(leader, broker, self.held_end, self.min_insync_replicas())
        else {
            return;
        };
        if end <= self.high_watermark {
            return;
        }
        assert!(
            end <= self.log.log_end_offset(),
            "I14: the high watermark {end} would pass the log's end {}",
            self.log.log_end_offset()
        );
        let mut bytes = 0;
        while let Some(&(_, appended)) = self.uncommitted.front().filter(|(upto, _)| *upto <= end) {
            bytes += appended;
            self.uncommitted.pop_front();
        }
        self.high_watermark = end;
        self.until_committed.reached(end);
        self.fetches.readable(bytes);
    }

    fn stop_waiting(&mut self, error: ErrorCode) {
        self.until_committed.fail(error);
        self.until_held.fail(error);
        self.fetches.wake_all();
    }
}

#[cfg(test)]
mod tests;
