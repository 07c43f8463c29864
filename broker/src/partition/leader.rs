//! What only a leader knows of its partition: who is in sync, how far each follower has
//! come, and which change of the in-sync replicas it has asked the controller for.
//!
//! Made anew with each leader epoch. Invariants: the high watermark that
//! [`Leader::committed_end`] allows is held by every member of the committed and of the
//! proposed ISR, as its last fetch in this epoch said (I3); a follower is proposed only
//! with its log end at the high watermark and past the start of this epoch (I4); at most
//! one proposal is out, and what it asks for counts only once it is committed (I5).

use super::{
    AckReceiver, Partition, PartitionError, Read, ReadAnswer, Role, State,
    lock::Wakes,
    news::{FollowerNews, PartitionKey},
};
use crate::time::Monotonic;
use std::{collections::HashMap, sync::Arc};
use yuxi_controller::{
    decide::isr::IsrProposal,
    keys::{LeaderRecovery, PartitionState},
};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerEpoch, BrokerId, LeaderEpoch, Offset},
};

/// The leader's part of a partition's state.
#[derive(Debug)]
pub(super) struct Leader {
    key: PartitionKey,
    own_id: BrokerId,
    /// Where this leader epoch begins in the log.
    epoch_start: Offset,
    replicas: Vec<BrokerId>,
    /// As it is committed.
    isr: Vec<BrokerId>,
    partition_epoch: i32,
    recovery: LeaderRecovery,
    /// The ISR that the controller was asked for and has not decided on yet.
    proposed: Option<Vec<BrokerId>>,
    followers: HashMap<BrokerId, Progress>,
}

/// What a leader knows of one follower.
#[derive(Debug)]
struct Progress {
    /// Its log's ends as its last fetch in this epoch told them.
    ends: Option<FollowerEnds>,
    /// Since when it is not known to have had all that there was.
    caught_up: Monotonic,
    /// It may be proposed, and has been caught up so recently that the high watermark
    /// waits for it: else it could never reach a log that grows all the time.
    is_joining: bool,
    last_fetch: Monotonic,
    /// Where the log ended at its last fetch.
    last_seen_end: Offset,
    /// Where it learns that the partition has changed; `None` before its first fetch in
    /// this epoch.
    news: Option<Arc<FollowerNews>>,
}

#[derive(Clone, Copy, Debug)]
struct FollowerEnds {
    log_start: Offset,
    log_end: Offset,
    broker_epoch: BrokerEpoch,
}

/// A broker that fetches as a follower. Whoever makes one has checked that the broker
/// is registered in this very incarnation (I7).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Follower<'a> {
    pub(crate) id: BrokerId,
    pub(crate) broker_epoch: BrokerEpoch,
    /// It is alive and not shutting down.
    pub(crate) is_active: bool,
    /// Where its log starts.
    pub(crate) log_start: Offset,
    /// Its session's list, on which the partition puts itself from now on.
    pub(crate) news: &'a Arc<FollowerNews>,
}

/// The time, and how long a follower may have been behind by then
/// (`replica.lag.time.max.ms`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaxLag {
    pub(crate) now: Monotonic,
    pub(crate) lag_ms: i64,
}

/// What the controller made of a proposal.
#[derive(Debug)]
pub(crate) enum ProposalOutcome {
    /// It is committed, or was so before.
    Committed(PartitionState),
    /// It was not applied and never will be: it may be made anew.
    Refused,
}

impl Leader {
    fn new(key: PartitionKey, epoch_start: Offset, state: &PartitionState, now: Monotonic) -> Self {
        let followers = state
            .isr
            .iter()
            .filter(|&&id| id != state.leader)
            .map(|&id| (id, Progress::unheard(epoch_start, now)))
            .collect();
        Self {
            key,
            own_id: state.leader,
            epoch_start,
            replicas: state.replicas.clone(),
            isr: state.isr.clone(),
            partition_epoch: state.partition_epoch,
            recovery: state.leader_recovery,
            proposed: None,
            followers,
        }
    }

    /// Takes in a committed state of this epoch, unless it is older than what is known.
    fn update(&mut self, state: &PartitionState) {
        if state.partition_epoch <= self.partition_epoch {
            return;
        }
        self.partition_epoch = state.partition_epoch;
        self.replicas.clone_from(&state.replicas);
        self.isr.clone_from(&state.isr);
        self.recovery = state.leader_recovery;
        // Whatever was asked for rested on an older state: it is this one, or refused.
        self.proposed = None;
        let replicas = &self.replicas;
        self.followers.retain(|id, _| replicas.contains(id));
        for (id, progress) in &mut self.followers {
            progress.is_joining &= !self.isr.contains(id);
        }
        // Who left the ISR though it has everything is to be heard again, or never comes back.
        self.note_news();
    }

    /// The log ends at `before` no more. A follower that had everything was caught up when it
    /// asked last, which need not have been for this partition.
    pub(super) fn log_grew(&mut self, before: Offset, wakes: &mut Wakes) {
        for progress in self.followers.values_mut() {
            let Some(news) = &progress.news else {
                continue;
            };
            if progress.ends.is_some_and(|ends| ends.log_end >= before) {
                progress.caught_up = progress.caught_up.max(news.last_asked());
            }
            news.note(self.key);
            wakes.wake_follower(news);
        }
    }

    /// Something has changed that followers hear of with their next answer.
    pub(super) fn note_news(&self) {
        for news in self.listeners() {
            news.note(self.key);
        }
    }

    fn tell_followers(&self, wakes: &mut Wakes) {
        for news in self.listeners() {
            news.note(self.key);
            wakes.wake_follower(news);
        }
    }

    fn listeners(&self) -> impl Iterator<Item = &Arc<FollowerNews>> {
        self.followers
            .values()
            .filter_map(|progress| progress.news.as_ref())
    }

    pub(super) fn isr(&self) -> &[BrokerId] {
        &self.isr
    }

    pub(super) fn replica_count(&self) -> usize {
        self.replicas.len()
    }

    pub(super) fn epoch_start(&self) -> Offset {
        self.epoch_start
    }

    /// How far the log is held by all who count: the high watermark that I3 allows. `None`
    /// while one of them has not said in this epoch how far it is, while fewer than
    /// `min_insync_replicas` are in sync (KIP-966), or before this epoch's start is
    /// reached, below which nothing new can be told.
    pub(super) fn committed_end(
        &self,
        own_end: Offset,
        min_insync_replicas: usize,
    ) -> Option<Offset> {
        if self.isr.len() < min_insync_replicas {
            return None;
        }
        let mut committed = own_end;
        let proposed = self.proposed.iter().flatten();
        for member in self
            .isr
            .iter()
            .chain(proposed)
            .filter(|&&id| id != self.own_id)
        {
            committed = committed.min(self.followers.get(member)?.ends?.log_end);
        }
        for progress in self.followers.values().filter(|one| one.is_joining) {
            committed = committed.min(progress.ends?.log_end);
        }
        (committed >= self.epoch_start).then_some(committed)
    }

    /// A follower's fetch says how far it is.
    fn heard(&mut self, from: Follower<'_>, log_end: Offset, own_end: Offset, max: MaxLag) {
        let MaxLag { now, lag_ms } = max;
        let in_sync = self.isr.contains(&from.id);
        let epoch_start = self.epoch_start;
        let progress = self
            .followers
            .entry(from.id)
            .or_insert_with(|| Progress::unheard(epoch_start, Monotonic::LONG_AGO));
        if log_end >= own_end {
            progress.caught_up = progress.caught_up.max(now);
        } else if progress.ends.is_some() && log_end >= progress.last_seen_end {
            progress.caught_up = progress.caught_up.max(progress.last_fetch);
        }
        progress.is_joining = from.is_active && !in_sync && now.since(progress.caught_up) <= lag_ms;
        progress.ends = Some(FollowerEnds {
            log_start: from.log_start,
            log_end,
            broker_epoch: from.broker_epoch,
        });
        progress.last_fetch = now;
        progress.last_seen_end = own_end;
        if !matches!(&progress.news, Some(known) if Arc::ptr_eq(known, from.news)) {
            progress.news = Some(Arc::clone(from.news));
        }
    }

    fn may_join(&self, id: BrokerId, high_watermark: Offset) -> bool {
        self.followers.get(&id).is_some_and(|progress| {
            progress.is_joining
                && progress
                    .ends
                    .is_some_and(|ends| ends.log_end >= high_watermark.max(self.epoch_start))
        })
    }

    fn is_lagging(&self, id: BrokerId, own_end: Offset, max: MaxLag) -> bool {
        let MaxLag { now, lag_ms } = max;
        self.followers.get(&id).is_none_or(|progress| {
            let caught_up = progress.ends.is_some_and(|ends| ends.log_end >= own_end);
            !caught_up && now.since(progress.caught_up) > lag_ms
        })
    }
}

impl Progress {
    fn unheard(epoch_start: Offset, caught_up: Monotonic) -> Self {
        Self {
            ends: None,
            caught_up,
            is_joining: false,
            last_fetch: Monotonic::LONG_AGO,
            last_seen_end: epoch_start,
            news: None,
        }
    }
}

impl Partition {
    /// Leads from now on as `committed` says. A later state of the same epoch changes who
    /// is in sync; the same or an older one changes nothing.
    pub(crate) fn become_leader(&self, committed: &PartitionState, now: Monotonic) {
        let mut state = self.state();
        if state.ended().is_some() {
            return;
        }
        if committed.leader_epoch > state.leader_epoch {
            let start = state.log.log_end_offset();
            state.log.assign_epoch(committed.leader_epoch);
            state.stop_waiting(ErrorCode::NotLeaderOrFollower);
            state.verifications.clear();
            // The new epoch is recorded last (I6).
            let key = (self.topic_id, self.id.partition.value());
            state.role = Role::Leader(Leader::new(key, start, committed, now));
            state.leader_epoch = committed.leader_epoch;
        } else if committed.leader_epoch == state.leader_epoch
            && let Role::Leader(leader) = &mut state.role
        {
            leader.update(committed);
        }
        state.advance();
    }

    /// Reads for a follower up to the log's end, and takes note of how far it is: where it
    /// reads is where its log ends, if its history is this leader's.
    pub(crate) fn read_as_leader_of(
        &self,
        follower: Follower<'_>,
        read: Read,
        max: MaxLag,
    ) -> Result<ReadAnswer, PartitionError> {
        let mut state = self.state();
        let state = &mut *state;
        state.check_leader(read.leader_epoch)?;
        let own_end = state.log.log_end_offset();
        let Role::Leader(leader) = &mut state.role else {
            return Err(PartitionError::NotLeader);
        };
        if read.leader_epoch == LeaderEpoch::NONE || !leader.replicas.contains(&follower.id) {
            return Err(PartitionError::NotAReplica(follower.id));
        }
        if let Some(divergence) = state.divergence(&read)? {
            return Ok(state.answer(None, Some(divergence), false));
        }
        state.check_range(read.from)?;
        let Role::Leader(leader) = &mut state.role else {
            return Err(PartitionError::NotLeader);
        };
        leader.heard(follower, read.from, own_end, max);
        state.advance();
        state.answer_deletions();
        let mut answer = state.read_log(&read, own_end)?;
        if let Role::Leader(leader) = &state.role {
            answer.isr_change_due = leader.proposed.is_none()
                && !leader.isr.contains(&follower.id)
                && leader.may_join(follower.id, state.high_watermark);
        }
        answer.must_tell_log_start = follower.log_start < answer.log_start_offset;
        if let Role::Leader(leader) = &state.role {
            answer.is_settled = read.from == own_end
                && leader.isr.contains(&follower.id)
                && !answer.must_tell_log_start;
        }
        Ok(answer)
    }

    /// The change of the in-sync replicas that is due by now, to be sent to the controller;
    /// `None` while another one is out.
    pub(crate) fn propose_isr(&self, max: MaxLag) -> Option<IsrProposal> {
        let MaxLag { now, lag_ms } = max;
        let mut state = self.state();
        let state = &mut *state;
        let (own_end, high_watermark) = (state.log.log_end_offset(), state.high_watermark);
        let epoch = state.leader_epoch;
        let Role::Leader(leader) = &mut state.role else {
            return None;
        };
        if leader.proposed.is_some() {
            return None;
        }
        for progress in leader.followers.values_mut() {
            progress.is_joining &= now.since(progress.caught_up) <= lag_ms;
        }
        let isr: Vec<BrokerId> = leader
            .replicas
            .iter()
            .copied()
            .filter(|&id| {
                if id == self.broker {
                    true
                } else if leader.isr.contains(&id) {
                    !leader.is_lagging(id, own_end, max)
                } else {
                    leader.may_join(id, high_watermark)
                }
            })
            .collect();
        let same = isr.len() == leader.isr.len() && isr.iter().all(|id| leader.isr.contains(id));
        if same && leader.recovery == LeaderRecovery::Recovered {
            state.advance();
            return None;
        }
        let proposal = IsrProposal {
            topic: self.topic_id,
            partition: self.id.partition,
            leader_epoch: epoch,
            partition_epoch: leader.partition_epoch,
            isr: isr
                .iter()
                .map(|&id| {
                    let ends = leader.followers.get(&id).and_then(|known| known.ends);
                    (id, ends.map(|ends| ends.broker_epoch))
                })
                .collect(),
            // It leads, with all that any replica it could ask still has.
            leader_recovery: LeaderRecovery::Recovered,
        };
        leader.proposed = Some(isr);
        state.advance();
        Some(proposal)
    }

    /// Whether the proposal still waits for the controller's decision.
    pub(crate) fn is_proposed(&self, proposal: &IsrProposal) -> bool {
        let state = self.state();
        match &state.role {
            Role::Leader(leader) => {
                state.leader_epoch == proposal.leader_epoch
                    && leader.partition_epoch == proposal.partition_epoch
                    && leader.proposed.is_some()
            }
            Role::Follower { .. } | Role::Deleted | Role::Offline => false,
        }
    }

    /// The controller has decided on a proposal. Returns by how many the in-sync replicas
    /// grew or shrank.
    pub(crate) fn proposal_decided(
        &self,
        proposal: &IsrProposal,
        outcome: &ProposalOutcome,
    ) -> isize {
        let mut state = self.state();
        let epoch = state.leader_epoch;
        let Role::Leader(leader) = &mut state.role else {
            return 0;
        };
        if epoch != proposal.leader_epoch || leader.partition_epoch != proposal.partition_epoch {
            return 0;
        }
        let before = leader.isr.len() as isize;
        match outcome {
            ProposalOutcome::Committed(committed) if committed.leader_epoch == epoch => {
                leader.update(committed);
                // It may have been so all along.
                leader.proposed = None;
            }
            // The next image says who leads.
            ProposalOutcome::Committed(_) => return 0,
            ProposalOutcome::Refused => leader.proposed = None,
        }
        let change = leader.isr.len() as isize - before;
        state.advance();
        change
    }

    /// What followers said in an earlier incarnation counts no more, nor does anybody wait
    /// for one that is gone, or on its way. `incarnation` is the epoch of a broker that is
    /// alive.
    pub(crate) fn forget_gone_followers(
        &self,
        incarnation: impl Fn(BrokerId) -> Option<BrokerEpoch>,
        is_active: impl Fn(BrokerId) -> bool,
    ) {
        let mut state = self.state();
        let Role::Leader(leader) = &mut state.role else {
            return;
        };
        for (&id, progress) in &mut leader.followers {
            // Who is about to go may never be heard again.
            progress.is_joining &= is_active(id);
            if let Some(ends) = progress.ends
                && incarnation(id) != Some(ends.broker_epoch)
            {
                progress.ends = None;
                if progress.is_joining {
                    progress.is_joining = false;
                    progress.caught_up = Monotonic::LONG_AGO;
                }
            }
        }
        state.advance();
        state.answer_deletions();
    }

    /// In-sync followers that have the record at `offset` or end there, those that have
    /// most first (KIP-392).
    pub(crate) fn followers_with(&self, offset: Offset) -> Vec<BrokerId> {
        let state = self.state();
        let Role::Leader(leader) = &state.role else {
            return Vec::new();
        };
        let mut with: Vec<(Offset, BrokerId)> = leader
            .isr
            .iter()
            .filter_map(|&id| {
                let ends = leader.followers.get(&id)?.ends?;
                (ends.log_start <= offset && offset <= ends.log_end).then_some((ends.log_end, id))
            })
            .collect();
        with.sort_by_key(|&(end, id)| (std::cmp::Reverse(end), id));
        with.into_iter().map(|(_, id)| id).collect()
    }

    /// Moves the log start to `offset`, or to the high watermark if `None` (DeleteRecords).
    /// The second value resolves when every live replica has deleted as much.
    pub(crate) fn delete_records(
        &self,
        offset: Option<Offset>,
        now_ms: i64,
    ) -> Result<(Offset, Option<AckReceiver>), PartitionError> {
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
            state.wake_stable_fetches();
            state.tell_followers();
        }
        let start = state.log.log_start_offset();
        let waiting = (state.low_watermark() < start).then(|| state.until_deleted.wait_for(start));
        Ok((start, waiting))
    }

    /// Where the log starts on every live replica.
    pub(crate) fn low_watermark(&self) -> Offset {
        self.state().low_watermark()
    }
}

impl State {
    /// Answers those who waited for the low watermark, as far as it is by now.
    fn answer_deletions(&mut self) {
        let low_watermark = self.low_watermark();
        self.until_deleted.reached(low_watermark, &mut self.wakes);
    }

    /// Something has changed that followers hear of at once.
    pub(super) fn tell_followers(&mut self) {
        if let Role::Leader(leader) = &self.role {
            leader.tell_followers(&mut self.wakes);
        }
    }

    /// The least log start among those of the replicas that fetch. Of the others only those
    /// that count as in sync are waited for.
    fn low_watermark(&self) -> Offset {
        let own = self.log.log_start_offset();
        let Role::Leader(leader) = &self.role else {
            return own;
        };
        leader
            .followers
            .iter()
            .filter_map(|(id, progress)| match progress.ends {
                Some(ends) => Some(ends.log_start),
                None => leader.isr.contains(id).then_some(Offset::ZERO),
            })
            .fold(own, Offset::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;
    use yuxi_protocol::ids::TopicId;

    const ME: BrokerId = BrokerId::new(1);

    fn ids(ids: &[i32]) -> Vec<BrokerId> {
        ids.iter().copied().map(BrokerId::new).collect()
    }

    fn state(isr: &[i32], partition_epoch: i32) -> PartitionState {
        PartitionState {
            replicas: ids(&[1, 2, 3]),
            isr: ids(isr),
            elr: Vec::new(),
            leader: ME,
            leader_epoch: LeaderEpoch::new(5),
            partition_epoch,
            leader_recovery: LeaderRecovery::Recovered,
            last_known_leader: None,
            adding_replicas: Vec::new(),
            removing_replicas: Vec::new(),
            lost_data: Vec::new(),
        }
    }

    fn at(ms: i64) -> MaxLag {
        MaxLag {
            now: Monotonic::new(ms),
            lag_ms: 10,
        }
    }

    const KEY: PartitionKey = (TopicId::ZERO, 0);

    static NEWS: LazyLock<Arc<FollowerNews>> = LazyLock::new(Arc::default);

    fn follower(id: i32) -> Follower<'static> {
        Follower {
            id: BrokerId::new(id),
            broker_epoch: BrokerEpoch::new(1),
            is_active: true,
            log_start: Offset::ZERO,
            news: &NEWS,
        }
    }

    /// A leader whose epoch begins at 10 and whose log ends at 30, with these fetches.
    fn leader(isr: &[i32], fetches: &[(i32, i64)]) -> Leader {
        let mut leader = Leader::new(KEY, Offset::new(10), &state(isr, 0), Monotonic::new(0));
        for &(id, end) in fetches {
            leader.heard(follower(id), Offset::new(end), Offset::new(30), at(0));
        }
        leader
    }

    #[track_caller]
    fn check(leader: &Leader, min_isr: usize, expected: Option<i64>) {
        assert_eq!(
            leader.committed_end(Offset::new(30), min_isr),
            expected.map(Offset::new)
        );
    }

    #[test]
    fn a_leader_alone_in_sync_commits_what_it_holds() {
        check(&leader(&[1], &[]), 1, Some(30));
    }

    #[test]
    fn the_slowest_in_sync_replica_sets_the_high_watermark() {
        check(&leader(&[1, 2, 3], &[(2, 25), (3, 20)]), 2, Some(20));
    }

    #[test]
    fn nothing_is_committed_while_an_in_sync_replica_has_not_reported() {
        check(&leader(&[1, 2, 3], &[(2, 25)]), 2, None);
    }

    #[test]
    fn nothing_is_committed_below_min_insync_replicas() {
        check(&leader(&[1], &[]), 2, None);
    }

    #[test]
    fn nothing_is_committed_before_this_epochs_start_is_held_by_all() {
        check(&leader(&[1, 2], &[(2, 9)]), 1, None);
        check(&leader(&[1, 2], &[(2, 10)]), 1, Some(10));
    }

    #[test]
    fn a_proposed_member_counts_before_it_is_committed_and_one_proposed_out_still_does() {
        let mut growing = leader(&[1], &[(2, 20)]);
        check(&growing, 1, Some(30));
        growing.proposed = Some(ids(&[1, 2]));
        check(&growing, 1, Some(20));
        let mut shrinking = leader(&[1, 2], &[(2, 20)]);
        shrinking.proposed = Some(ids(&[1]));
        check(&shrinking, 1, Some(20));
        shrinking.update(&state(&[1], 1));
        check(&shrinking, 1, Some(30));
    }

    #[test]
    fn a_follower_that_keeps_up_is_waited_for_so_that_it_can_join() {
        let mut leader = leader(&[1], &[(2, 20)]);
        check(&leader, 1, Some(30));
        // It has all that there was when it fetched last.
        leader.heard(follower(2), Offset::new(30), Offset::new(40), at(1));
        assert_eq!(
            leader.committed_end(Offset::new(40), 1),
            Some(Offset::new(30))
        );
        assert!(leader.may_join(BrokerId::new(2), Offset::new(30)));
        assert!(!leader.may_join(BrokerId::new(2), Offset::new(31)));
    }

    #[test]
    fn a_follower_short_of_this_epochs_start_may_not_join() {
        let mut leader = Leader::new(KEY, Offset::new(10), &state(&[1], 0), Monotonic::new(0));
        leader.heard(follower(2), Offset::new(9), Offset::new(9), at(0));
        assert!(!leader.may_join(BrokerId::new(2), Offset::ZERO), "I4");
        leader.heard(follower(2), Offset::new(10), Offset::new(10), at(0));
        assert!(leader.may_join(BrokerId::new(2), Offset::ZERO));
    }

    #[test]
    fn a_follower_lags_when_it_was_last_caught_up_too_long_ago() {
        let two = BrokerId::new(2);
        let mut leader = Leader::new(
            KEY,
            Offset::new(10),
            &state(&[1, 2], 0),
            Monotonic::new(100),
        );
        let end = Offset::new(30);
        assert!(!leader.is_lagging(two, end, at(110)));
        assert!(leader.is_lagging(two, end, at(111)), "it never fetched");
        leader.heard(follower(2), Offset::new(20), end, at(112));
        assert!(leader.is_lagging(two, end, at(112)));
        // At the end of what there was at its last fetch: it had everything then.
        leader.heard(follower(2), end, Offset::new(50), at(120));
        assert!(!leader.is_lagging(two, Offset::new(50), at(122)));
        assert!(leader.is_lagging(two, Offset::new(50), at(123)));
        leader.heard(follower(2), Offset::new(50), Offset::new(50), at(130));
        assert!(!leader.is_lagging(two, Offset::new(50), at(10_000)));
    }

    #[test]
    fn a_follower_that_asked_while_nothing_changed_was_caught_up_then() {
        let two = BrokerId::new(2);
        let mut leader = Leader::new(KEY, Offset::new(10), &state(&[1, 2], 0), Monotonic::new(0));
        let (end, next) = (Offset::new(30), Offset::new(40));
        let news = Arc::new(FollowerNews::default());
        let two_heard = Follower {
            news: &news,
            ..follower(2)
        };
        leader.heard(two_heard, end, end, at(0));
        // Its later requests did not speak of this partition.
        news.asked(Monotonic::new(1000));
        leader.log_grew(end, &mut Wakes::default());
        assert!(!leader.is_lagging(two, next, at(1010)));
        assert!(leader.is_lagging(two, next, at(1011)));
        // What it asks for while it lacks something says nothing.
        news.asked(Monotonic::new(2000));
        leader.log_grew(next, &mut Wakes::default());
        assert!(leader.is_lagging(two, Offset::new(50), at(2001)));
    }

    #[test]
    fn an_older_state_of_the_same_epoch_changes_nothing() {
        let mut leader = leader(&[1, 2], &[]);
        leader.update(&state(&[1], 2));
        leader.update(&state(&[1, 2, 3], 1));
        assert_eq!(leader.isr(), ids(&[1]));
    }
}
