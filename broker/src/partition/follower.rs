//! A partition that follows a leader: where it reads on, what it takes from an answer, and
//! how it gives up what its leader does not have.
//!
//! Invariants: an answer counts only if it is to the question that the log's end and the
//! leader epoch would still ask (I2); the log is cut only to an end offset that follows
//! from epochs shared with the leader, never to the high watermark (I1); the high
//! watermark is taken from the leader only along with a fetch that found no divergence,
//! and never moves back in an epoch (I4, I14).

use super::{Divergence, Partition, PartitionError, Role, State};
use yuxi_controller::keys::PartitionState;
use yuxi_log::AppendError;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerId, LeaderEpoch, Offset},
};

/// Where a follower reads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The epoch that it follows in.
    pub(crate) leader_epoch: LeaderEpoch,
    /// The end of its log.
    pub(crate) offset: Offset,
    /// The epoch of its last record, or `NONE`.
    pub(crate) last_epoch: LeaderEpoch,
    /// Where its log starts.
    pub(crate) log_start: Offset,
}

/// What a leader answered to a follower at `position`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromLeader<'a> {
    pub(crate) position: Position,
    pub(crate) high_watermark: Offset,
    pub(crate) log_start: Offset,
    pub(crate) records: &'a [u8],
}

/// What was taken from an answer.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) bytes: u64,
    /// Why not all of it was appended.
    pub(crate) error: Option<AppendError>,
    /// As in [`super::Appended`]; the next fetch acknowledges these records, so it must
    /// wait for the fsync.
    pub(crate) start_flush: bool,
}

/// Up to where a log is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// To this offset, at most.
    To(Offset),
    /// Everything goes; the log begins anew there.
    StartAt(Offset),
}

impl Cut {
    pub(crate) fn offset(self) -> Offset {
        match self {
            Self::To(offset) | Self::StartAt(offset) => offset,
        }
    }
}

impl Partition {
    /// Follows from now on what `committed` names as the leader, which may be nobody. Those
    /// who wait for acknowledgements are told to look elsewhere.
    pub(crate) fn become_follower(&self, committed: &PartitionState) {
        let mut state = self.state();
        if state.ended().is_some() || committed.leader_epoch <= state.leader_epoch {
            return;
        }
        state.stop_waiting(ErrorCode::NotLeaderOrFollower);
        state.verifications.clear();
        state.role = Role::Follower {
            leader: committed.leader,
            leader_end: None,
        };
        // The new epoch is recorded last (I6).
        state.leader_epoch = committed.leader_epoch;
    }

    /// Where to read on; `None` unless it follows in `epoch`.
    pub(crate) fn position(&self, epoch: LeaderEpoch) -> Option<Position> {
        let state = self.state();
        (matches!(state.role, Role::Follower { leader, .. } if leader != BrokerId::NONE)
            && state.leader_epoch == epoch)
            .then(|| state.position())
    }

    /// Appends what the leader sent and adopts its high watermark and log start. `None` if
    /// the answer is to a question that is no longer asked.
    pub(crate) fn take(
        &self,
        answer: FromLeader<'_>,
        now_ms: i64,
    ) -> Result<Option<Taken>, PartitionError> {
        let mut state = self.state();
        let state = &mut *state;
        if !state.still_asks(&answer.position) {
            return Ok(None);
        }
        let mut taken = Taken::default();
        if !answer.records.is_empty() {
            match state.log.append_as_follower(answer.records, now_ms) {
                Ok(appended) => taken.bytes = appended.bytes,
                Err(error) => taken.error = Some(error),
            }
            // Of several segments' worth, what came before an error stays.
            if state.log.log_end_offset() > answer.position.offset {
                taken.start_flush = state.log_grew(answer.position.offset, taken.bytes, now_ms);
            }
        }
        let log_end = state.log.log_end_offset();
        let high_watermark = answer.high_watermark.min(log_end);
        if high_watermark > state.high_watermark {
            state.set_high_watermark(high_watermark);
        }
        let start = answer.log_start.min(state.high_watermark);
        if start > state.log.log_start_offset() {
            state.log.delete_records_before(start, now_ms)?;
            state.wake_stable_fetches();
        }
        if let Role::Follower { leader_end, .. } = &mut state.role {
            *leader_end = Some(answer.high_watermark);
        }
        Ok(Some(taken))
    }

    /// How far the log must be cut for its history to be the leader's up to where they
    /// diverge; more may have to go after the next fetch. `None` if the answer is to
    /// a question that is no longer asked.
    pub(crate) fn cut_for(&self, position: &Position, divergence: Divergence) -> Option<Cut> {
        let state = self.state();
        if !state.still_asks(position) {
            return None;
        }
        let end = match state.log.end_offset_for_epoch(divergence.epoch) {
            Some((epoch, own_end)) if epoch == divergence.epoch => {
                own_end.min(divergence.end_offset)
            }
            // An epoch that the leader knows and this log has not: what came after its own
            // last one before that goes, and the leader is asked again.
            Some((_, own_end)) => own_end,
            None => divergence.end_offset,
        };
        Some(Cut::To(end.min(state.log.log_end_offset())))
    }

    /// Cuts the log. The caller has made sure that the recovery point on disk is not
    /// beyond. `false` if the log is no longer as it was when the cut was decided.
    pub(crate) fn cut(
        &self,
        position: &Position,
        cut: Cut,
        now_ms: i64,
    ) -> Result<bool, PartitionError> {
        let mut state = self.state();
        let state = &mut *state;
        if !state.still_asks(position) {
            return Ok(false);
        }
        let before = state.log.log_end_offset();
        match cut {
            Cut::To(offset) => {
                state.log.truncate_to(offset, now_ms)?;
            }
            Cut::StartAt(offset) => state.log.truncate_fully_and_start_at(offset, now_ms)?,
        }
        let end = state.log.log_end_offset();
        state.held_end = match cut {
            Cut::To(_) => state.held_end.min(end),
            Cut::StartAt(_) => end,
        };
        if end < state.high_watermark {
            // Only after an unclean election, or when a damaged log was replaced.
            tracing::warn!(
                partition = %self.id, high_watermark = %state.high_watermark, %end,
                "records that were committed are given up, since the leader does not have them"
            );
            state.high_watermark = end;
        }
        state.high_watermark = state.high_watermark.max(state.log.log_start_offset());
        state.cuts += 1;
        state.uncommitted.retain(|&(upto, _)| upto <= end);
        state.unstable.cut(end);
        tracing::info!(partition = %self.id, from = %before, to = %end, "the log was cut to follow its leader");
        Ok(true)
    }
}

impl State {
    fn position(&self) -> Position {
        Position {
            leader_epoch: self.leader_epoch,
            offset: self.log.log_end_offset(),
            last_epoch: self.log.latest_epoch().unwrap_or(LeaderEpoch::NONE),
            log_start: self.log.log_start_offset(),
        }
    }

    fn still_asks(&self, position: &Position) -> bool {
        matches!(self.role, Role::Follower { .. })
            && self.leader_epoch == position.leader_epoch
            && self.log.log_end_offset() == position.offset
            && self.log.latest_epoch().unwrap_or(LeaderEpoch::NONE) == position.last_epoch
    }
}
