//! A partition as this broker holds it: its log, its role, the high watermark and who
//! waits for it, one object behind one short lock.
//!
//! Connection tasks call it directly; nothing here waits. The lock is never held
//! across an `.await` nor an fsync. What waits for an offset is parked here and woken
//! when that offset is reached; nothing polls.
//!
//! Invariants: log start ≤ last stable offset ≤ high watermark ≤ log end, and none of the
//! first three moves back within one leader epoch (I14). The high watermark is moved in one place,
//! `State::set_high_watermark`: of a leader by the rule of `Leader::committed_end` (I3), of
//! a follower to what its leader says. An acknowledgement that waits is sent only while
//! this broker leads in the epoch of the append (I10).

pub(crate) mod admission;
mod error;
mod flush;
mod follower;
mod leader;
mod lock;
mod news;
mod read;
mod transactions;
mod verification;
mod waiters;

pub(crate) use error::PartitionError;
pub(crate) use follower::{Cut, FromLeader, Position};
pub(crate) use leader::{Follower, MaxLag, ProposalOutcome};
pub(crate) use lock::wake_after;
pub(crate) use news::{FollowerNews, PartitionKey};
pub(crate) use read::{Divergence, Isolation, Read, ReadAnswer};
pub(crate) use transactions::{ActiveProducer, TxnMarker};
pub(crate) use verification::VerificationGuard;
pub(crate) use waiters::{AckReceiver, FetchWaiter};

use crate::{internal_topics, log_config};
use admission::Admitted;
use flush::Flushing;
use leader::Leader;
use lock::{Locked, Wakes};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};
use tokio::sync::oneshot;
use verification::Verifications;
use waiters::{AckWaiters, FetchWaiters, NowReadable, Unread};
use yuxi_controller::settings::TopicSettings;
use yuxi_log::Log;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerId, LeaderEpoch, Offset, TopicId, TopicPartition},
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
    Later(AckReceiver),
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

/// The offsets of a partition at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offsets {
    pub(crate) log_start: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) last_stable: Offset,
    pub(crate) log_end: Offset,
    /// Where this leader's epoch begins; the log's end where another one leads.
    pub(crate) epoch_start: Offset,
}

/// What a consumer that wants to wait saw last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seen {
    /// It waits for this to move.
    HighWatermark(Offset),
    /// A consumer of committed records waits for this.
    LastStable(Offset),
}

/// What a partition is at one moment, for metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) is_leader: bool,
    /// How many records a follower lacks of those that its leader has committed.
    pub(crate) lag: i64,
    pub(crate) is_offline: bool,
    pub(crate) in_sync: usize,
    pub(crate) min_in_sync: usize,
    pub(crate) offsets: Offsets,
    pub(crate) size_bytes: u64,
    pub(crate) segments: usize,
    /// How many idempotent producers are remembered.
    pub(crate) producers: usize,
    /// When the producer of the oldest open transaction wrote last.
    pub(crate) oldest_transaction_ms: Option<i64>,
}

/// One partition on this broker.
#[derive(Debug)]
pub(crate) struct Partition {
    id: TopicPartition,
    topic_id: TopicId,
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
    /// Appends above the last stable offset.
    unstable: Unread,
    verifications: Verifications,
    /// How often records were taken away again.
    cuts: u64,
    until_committed: AckWaiters,
    until_held: AckWaiters,
    /// Those who wait for the low watermark.
    until_deleted: AckWaiters,
    /// Consumers, who wait for the high watermark.
    fetches: FetchWaiters,
    /// Consumers of committed records, who wait for the last stable offset.
    stable_fetches: FetchWaiters,
    /// Who of all these is to be woken once the lock is released.
    wakes: Wakes,
}

#[derive(Debug)]
enum Role {
    Leader(Leader),
    Follower {
        /// Nobody, if there is none.
        leader: BrokerId,
        /// Up to where the leader has committed, as it said last.
        leader_end: Option<Offset>,
    },
    Deleted,
    Offline,
}

impl Partition {
    /// Wraps an opened log. It serves nobody before it is given a role.
    pub(crate) fn new(
        id: TopicPartition,
        topic_id: TopicId,
        broker: BrokerId,
        mut log: Log,
        settings: Arc<TopicSettings>,
        high_watermark: Offset,
    ) -> Self {
        let high_watermark = high_watermark
            .max(log.log_start_offset())
            .min(log.log_end_offset());
        log.high_watermark_moved(high_watermark);
        let held_end = log.log_end_offset();
        Self {
            id,
            topic_id,
            broker,
            state: Mutex::new(State {
                log,
                settings,
                role: Role::Follower {
                    leader: BrokerId::NONE,
                    leader_end: None,
                },
                leader_epoch: LeaderEpoch::NONE,
                high_watermark,
                held_end,
                flushing: Flushing::Idle,
                uncommitted: VecDeque::new(),
                unstable: Unread::default(),
                verifications: Verifications::default(),
                cuts: 0,
                until_committed: AckWaiters::default(),
                until_held: AckWaiters::default(),
                until_deleted: AckWaiters::default(),
                fetches: FetchWaiters::default(),
                stable_fetches: FetchWaiters::default(),
                wakes: Wakes::default(),
            }),
        }
    }

    pub(crate) fn id(&self) -> &TopicPartition {
        &self.id
    }

    pub(crate) fn topic_id(&self) -> TopicId {
        self.topic_id
    }

    /// Whether only brokers may write it.
    pub(crate) fn is_internal(&self) -> bool {
        internal_topics::is_internal(&self.id.topic)
    }

    /// A panic while the lock was held would leave a half-made change behind, so it is
    /// passed on to whoever comes next.
    fn state(&self) -> Locked<'_> {
        Locked::new(self.state.lock().expect("a partition's lock is poisoned"))
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
        self.state().append(batch, acks, now_ms)
    }

    /// When everything below `end` is below the high watermark, if this broker still leads in
    /// `epoch` by then.
    pub(crate) fn committed(&self, epoch: LeaderEpoch, end: Offset) -> Ack {
        let mut state = self.state();
        let leads = matches!(state.role, Role::Leader(_)) && state.leader_epoch == epoch;
        if leads && state.high_watermark >= end {
            return Ack::Now;
        }
        if leads {
            return Ack::Later(state.until_committed.wait_for(end));
        }
        // The receiver learns it from the sender's end.
        Ack::Later(oneshot::channel().1)
    }

    /// Wakes `waiter` when enough bytes have become readable, or the role changes, unless
    /// the partition has moved on since the reader looked: then false.
    pub(crate) fn park_fetch(&self, waiter: &Arc<FetchWaiter>, seen: Seen) -> bool {
        let mut state = self.state();
        let unchanged = match seen {
            Seen::HighWatermark(offset) => state.high_watermark == offset,
            Seen::LastStable(offset) => state.offsets().last_stable == offset,
        };
        if !unchanged || state.ended().is_some() {
            return false;
        }
        match seen {
            Seen::HighWatermark(_) => state.fetches.park(waiter),
            Seen::LastStable(_) => state.stable_fetches.park(waiter),
        }
        true
    }

    /// The waiter's fetch is answered or gone.
    pub(crate) fn unpark_fetch(&self, waiter: &Arc<FetchWaiter>) {
        let mut state = self.state();
        state.fetches.unpark(waiter);
        state.stable_fetches.unpark(waiter);
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
            Role::Follower { .. } | Role::Deleted | Role::Offline => 0,
        };
        let lag = match state.role {
            Role::Follower {
                leader_end: Some(end),
                ..
            } => end.since(state.log.log_end_offset()).max(0),
            Role::Follower { .. } | Role::Leader(_) | Role::Deleted | Role::Offline => 0,
        };
        Status {
            is_leader: matches!(state.role, Role::Leader(_)),
            lag,
            is_offline: matches!(state.role, Role::Offline),
            in_sync,
            min_in_sync: state.min_insync_replicas(),
            offsets: state.offsets(),
            size_bytes: state.log.size_bytes(),
            segments: state.log.segments().len(),
            producers: state.log.active_producers().len(),
            oldest_transaction_ms: state.log.oldest_transaction_ms(),
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
        let (start, high_watermark) = (state.log.log_start_offset(), state.high_watermark);
        let done = work(&mut state.log, high_watermark);
        if let Role::Leader(leader) = &state.role
            && state.log.log_start_offset() != start
        {
            leader.note_news();
        }
        Some(done)
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
    fn append(
        &mut self,
        batch: &Admitted,
        acks: RequiredAcks,
        now_ms: i64,
    ) -> Result<Appended, PartitionError> {
        if let Some(error) = self.ended() {
            return Err(error);
        }
        let Role::Leader(leader) = &self.role else {
            return Err(PartitionError::NotLeader);
        };
        let (in_sync, needed) = (leader.isr().len(), self.min_insync_replicas());
        if acks == RequiredAcks::All && in_sync < needed {
            return Err(PartitionError::NotEnoughReplicas { in_sync, needed });
        }
        let view = batch.view()?;
        let header = *view.header();
        self.check_verified(batch, &header)?;
        let info = self
            .log
            .append_as_leader(&[view], self.leader_epoch, batch.origin(), now_ms)?;
        let end_offset = info.last_offset.plus(1);
        let mut start_flush = false;
        if info.duplicate.is_none() {
            if header.is_transactional() {
                self.verifications.appended(header.producer_id);
            }
            start_flush = self.log_grew(info.base_offset, batch.bytes().len() as u64, now_ms);
        }
        let ack = match acks {
            RequiredAcks::All if self.high_watermark < end_offset => {
                Ack::Later(self.until_committed.wait_for(end_offset))
            }
            RequiredAcks::Leader if self.held_end < end_offset => {
                Ack::Later(self.until_held.wait_for(end_offset))
            }
            RequiredAcks::All | RequiredAcks::Leader => Ack::Now,
        };
        Ok(Appended {
            base_offset: info.base_offset,
            end_offset,
            log_start_offset: self.log.log_start_offset(),
            ack,
            start_flush,
        })
    }

    /// Why nothing more is served, if so.
    fn ended(&self) -> Option<PartitionError> {
        match self.role {
            Role::Leader(_) | Role::Follower { .. } => None,
            Role::Deleted => Some(PartitionError::Deleted),
            Role::Offline => Some(PartitionError::Offline),
        }
    }

    /// `min.insync.replicas`, as far as the number of replicas allows.
    fn min_insync_replicas(&self) -> usize {
        let configured = usize::try_from(self.settings.min_insync_replicas).unwrap_or(1);
        match &self.role {
            Role::Leader(leader) => configured.min(leader.replica_count()),
            Role::Follower { .. } | Role::Deleted | Role::Offline => configured,
        }
    }

    fn offsets(&self) -> Offsets {
        Offsets {
            log_start: self.log.log_start_offset(),
            high_watermark: self.high_watermark,
            last_stable: self.log.last_stable_offset(self.high_watermark),
            log_end: self.log.log_end_offset(),
            epoch_start: match &self.role {
                Role::Leader(leader) => leader.epoch_start(),
                Role::Follower { .. } | Role::Deleted | Role::Offline => self.log.log_end_offset(),
            },
        }
    }

    /// The log has records from `begin` on that it had not: they count as held at once, or after the
    /// fsync that the flush policy asks for. True if that fsync must be started.
    fn log_grew(&mut self, begin: Offset, bytes: u64, now_ms: i64) -> bool {
        let end = self.log.log_end_offset();
        self.uncommitted.push_back((end, bytes));
        self.unstable.appended(begin, end, bytes);
        // A follower may have them before they are on this disk: what counts is on how many
        // replicas they are held.
        if let Role::Leader(leader) = &mut self.role {
            leader.log_grew(begin, &mut self.wakes);
        }
        if !self.log.is_flush_due(now_ms) {
            // Even while a flush runs: it is one that no append asked for.
            self.held_end = self.log.log_end_offset();
            self.advance();
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

    /// Moves a leader's high watermark as far as the in-sync replicas hold the log (I3), and
    /// wakes whoever waited for that.
    fn advance(&mut self) {
        self.until_held.reached(self.held_end, &mut self.wakes);
        let Role::Leader(leader) = &self.role else {
            return;
        };
        if let Some(end) = leader.committed_end(self.held_end, self.min_insync_replicas())
            && end > self.high_watermark
        {
            self.set_high_watermark(end);
        }
    }

    fn set_high_watermark(&mut self, end: Offset) {
        assert!(
            self.high_watermark < end && end <= self.log.log_end_offset(),
            "I14: a high watermark moves forward, from {} to {end}, and not past the log's end {}",
            self.high_watermark,
            self.log.log_end_offset()
        );
        let mut bytes = 0;
        while let Some(&(_, appended)) = self.uncommitted.front().filter(|(upto, _)| *upto <= end) {
            bytes += appended;
            self.uncommitted.pop_front();
        }
        self.high_watermark = end;
        self.log.high_watermark_moved(end);
        self.until_committed.reached(end, &mut self.wakes);
        self.fetches.readable(bytes, &mut self.wakes);
        self.wake_stable_fetches();
        if let Role::Leader(leader) = &self.role {
            leader.note_news();
        }
    }

    /// The last stable offset may have moved: with the high watermark, or with the log's
    /// start.
    fn wake_stable_fetches(&mut self) {
        let last_stable = self.log.last_stable_offset(self.high_watermark);
        match self.unstable.readable_below(last_stable) {
            NowReadable::Bytes(bytes) => self.stable_fetches.readable(bytes, &mut self.wakes),
            NowReadable::Some => self.stable_fetches.wake_all(&mut self.wakes),
        }
    }

    fn stop_waiting(&mut self, error: ErrorCode) {
        let wakes = &mut self.wakes;
        self.until_committed.fail(error, wakes);
        self.until_held.fail(error, wakes);
        self.until_deleted.fail(error, wakes);
        self.fetches.wake_all(wakes);
        self.stable_fetches.wake_all(wakes);
        self.tell_followers();
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transaction_tests;
