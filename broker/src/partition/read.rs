//! Reading a partition: what is asked, what may be seen, and where histories diverge.

use super::{Offsets, Partition, PartitionError, Role, State};
use yuxi_log::{AbortedTransaction, FileSlice};
use yuxi_protocol::ids::{LeaderEpoch, Offset};

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
    /// Only the leader may answer; a reader that knows of KIP-392 takes a follower too.
    pub(crate) leader_only: bool,
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
    /// Told to readers of committed records: the aborted transactions with records there,
    /// by their markers.
    pub(crate) aborted: Vec<AbortedTransaction>,
    /// The reader must truncate first; there are no records then.
    pub(crate) divergence: Option<Divergence>,
    /// The records end with a segment that takes no more: waiting adds nothing to them.
    pub(crate) cannot_grow: bool,
    /// A follower's log starts before this one, which it is to hear without waiting.
    pub(crate) must_tell_log_start: bool,
    /// The in-sync replicas should change: ask for the proposal.
    pub(crate) isr_change_due: bool,
    /// The follower that reads has everything and is in sync: until the partition changes
    /// there is nothing to tell it and nothing to hear from it.
    pub(crate) is_settled: bool,
}

impl Partition {
    /// Reads what a consumer may see.
    pub(crate) fn read(&self, read: Read) -> Result<ReadAnswer, PartitionError> {
        let state = self.state();
        if read.leader_only {
            state.check_leader(read.leader_epoch)?;
        } else {
            state.check_epoch(read.leader_epoch)?;
        }
        if let Some(divergence) = state.divergence(&read)? {
            return Ok(state.answer(None, Some(divergence), false));
        }
        state.check_range(read.from)?;
        let offsets = state.offsets();
        let up_to = match read.isolation {
            Isolation::Uncommitted => offsets.high_watermark,
            Isolation::Committed => offsets.last_stable,
        };
        state.read_log(&read, up_to)
    }
}

impl State {
    /// Whether the replica serves, in the epoch that the caller believes in (I2).
    pub(super) fn check_epoch(&self, believed: LeaderEpoch) -> Result<(), PartitionError> {
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
        Ok(())
    }

    pub(super) fn check_leader(&self, believed: LeaderEpoch) -> Result<(), PartitionError> {
        self.check_epoch(believed)?;
        match self.role {
            Role::Leader(_) => Ok(()),
            Role::Follower { .. } | Role::Deleted | Role::Offline => Err(PartitionError::NotLeader),
        }
    }

    pub(super) fn check_range(&self, from: Offset) -> Result<(), PartitionError> {
        let (start, end) = (self.log.log_start_offset(), self.log.log_end_offset());
        if from < start || from > end {
            return Err(PartitionError::OffsetOutOfRange {
                requested: from,
                start,
                end,
            });
        }
        Ok(())
    }

    /// Whether the reader has records up to its offset that this log has not. An epoch
    /// that the log does not know, nor any before it, says as little as an offset out of
    /// range.
    pub(super) fn divergence(&self, read: &Read) -> Result<Option<Divergence>, PartitionError> {
        let epoch = read.last_fetched_epoch;
        if epoch == LeaderEpoch::NONE {
            return Ok(None);
        }
        let Some((found, end_offset)) = self.log.end_offset_for_epoch(epoch) else {
            return Err(PartitionError::OffsetOutOfRange {
                requested: read.from,
                start: self.log.log_start_offset(),
                end: self.log.log_end_offset(),
            });
        };
        Ok(
            (found < epoch || end_offset < read.from).then_some(Divergence {
                epoch: found,
                end_offset,
            }),
        )
    }

    pub(super) fn read_log(
        &self,
        read: &Read,
        up_to: Offset,
    ) -> Result<ReadAnswer, PartitionError> {
        if read.from >= up_to {
            return Ok(self.answer(None, None, false));
        }
        let found = self
            .log
            .read(read.from, read.max_bytes, read.at_least_one_batch, up_to)?;
        let cannot_grow = found.slice.is_some()
            && self
                .log
                .segments()
                .next_back()
                .is_some_and(|active| found.start_offset < active.base_offset);
        let aborted = match read.isolation {
            Isolation::Uncommitted => Vec::new(),
            Isolation::Committed => self.log.aborted_in(&found, up_to)?,
        };
        let mut answer = self.answer(found.slice, None, cannot_grow);
        answer.aborted = aborted;
        Ok(answer)
    }

    pub(super) fn answer(
        &self,
        records: Option<FileSlice>,
        divergence: Option<Divergence>,
        cannot_grow: bool,
    ) -> ReadAnswer {
        let Offsets {
            log_start,
            high_watermark,
            last_stable,
            log_end: _,
            epoch_start: _,
        } = self.offsets();
        ReadAnswer {
            high_watermark,
            last_stable_offset: last_stable,
            log_start_offset: log_start,
            records,
            aborted: Vec::new(),
            divergence,
            cannot_grow,
            must_tell_log_start: false,
            isr_change_due: false,
            is_settled: false,
        }
    }
}
