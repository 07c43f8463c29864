//! What one partition has waiting and under way, and how far its numbers have come.

use std::collections::VecDeque;
use std::time::Instant;

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{BrokerId, LeaderEpoch};
use yuxi_protocol::record::batch::advance_sequence;

use super::batch::{Batch, Identity, Stamp};
use super::window::Window;

#[derive(Debug, Default)]
pub(super) struct PartitionQueue {
    pub(super) queue: VecDeque<Batch>,
    pub(super) window: Window,
    pub(super) sequencing: Sequencing,
    /// Nothing is sent before, as what came back has to pause.
    pub(super) not_before: Option<Instant>,
    /// Whether the accumulator's list of partitions with something queued has it.
    pub(super) active: bool,
    /// The leader that was last learnt, with its epoch.
    pub(super) leader: Option<(BrokerId, LeaderEpoch)>,
}

/// How far a partition's sequence numbers have come.
#[derive(Debug, Default)]
pub(super) struct Sequencing {
    pub(super) identity: Option<Identity>,
    next: i32,
    /// The youngest batch that the broker has: its id and its last number.
    last_acknowledged: Option<(u64, i32)>,
    /// The youngest numbered batch that was given up: whether the broker has it is unknown.
    given_up: Option<u64>,
    /// The broker's numbers and ours do not meet: begin a new epoch.
    pub(super) broken: bool,
}

impl PartitionQueue {
    pub(super) fn has_open_batch(&mut self) -> bool {
        self.queue
            .back_mut()
            .is_some_and(|last| last.builder().is_some())
    }

    /// Closes the open batch if a record of `size` no longer fits.
    pub(super) fn close_if_full(&mut self, size: usize, batch_bytes: usize) -> bool {
        let Some(last) = self.queue.back_mut() else {
            return false;
        };
        let full = last
            .builder()
            .is_some_and(|open| open.uncompressed_size() + size > batch_bytes);
        last.closed |= full;
        full
    }

    /// Takes out the first batch, and numbers it if it has no number and needs one.
    pub(super) fn take_head(&mut self) -> Option<Batch> {
        let mut batch = self.queue.pop_front()?;
        batch.closed = true;
        batch.attempts += 1;
        if batch.stamp.is_none() {
            batch.stamp = self.sequencing.stamp(batch.records);
        }
        if let Some(stamp) = batch.stamp {
            self.window.send(stamp.base_sequence);
            batch.was_next = stamp.base_sequence == self.sequencing.expected();
        }
        Some(batch)
    }

    /// The broker has the batch.
    pub(super) fn written(&mut self, batch: &Batch) {
        let Some(stamp) = batch.stamp else {
            return;
        };
        self.window.written(stamp.base_sequence);
        if self.sequencing.identity == Some(stamp.identity) {
            self.sequencing.acknowledged(batch);
        }
    }

    /// Nobody waits for the batch any more, and whether the broker has it is unknown.
    pub(super) fn give_up(&mut self, batch: &Batch) {
        if let Some(stamp) = batch.stamp {
            self.window.remove(stamp.base_sequence);
            let given_up = &mut self.sequencing.given_up;
            *given_up = (*given_up).max(Some(batch.id));
        }
    }

    /// Puts a batch that came back to its place in the order of ids.
    pub(super) fn requeue(&mut self, batch: Batch) {
        if let Some(stamp) = batch.stamp {
            self.window.wait(stamp.base_sequence);
        }
        let at = self.queue.partition_point(|queued| queued.id < batch.id);
        self.queue.insert(at, batch);
    }

    /// Takes the numbers off everything that waits; the next epoch begins at 0.
    pub(super) fn number_anew(&mut self) {
        for batch in &mut self.queue {
            batch.stamp = None;
        }
        self.window.clear();
        self.sequencing = Sequencing::default();
    }

    /// Begins to number for another producer id or epoch, once nothing of the one before
    /// is open.
    pub(super) fn number_for(&mut self, identity: Identity) {
        self.window.clear();
        self.sequencing = Sequencing {
            identity: Some(identity),
            ..Sequencing::default()
        };
    }
}

impl Sequencing {
    /// Whether there are numbers of which nobody knows if the broker has them.
    pub(super) fn has_gap(&self) -> bool {
        self.is_unresolved() || self.broken
    }

    /// Whether a numbered batch was given up, and none behind it was written.
    pub(super) fn is_unresolved(&self) -> bool {
        self.given_up.is_some()
    }

    fn stamp(&mut self, records: u32) -> Option<Stamp> {
        let stamp = Stamp {
            identity: self.identity?,
            base_sequence: self.next,
        };
        self.next = advance_sequence(self.next, records as i32);
        Some(stamp)
    }

    /// The number that the broker's next batch has.
    fn expected(&self) -> i32 {
        self.last_acknowledged
            .map_or(0, |(_, last)| advance_sequence(last, 1))
    }

    fn acknowledged(&mut self, batch: &Batch) {
        // A batch that is repeated may be answered after those behind it.
        let last = batch.last_sequence().map(|last| (batch.id, last));
        self.last_acknowledged = self.last_acknowledged.max(last);
        // If a later number was taken, the broker has those that were given up.
        self.given_up = self.given_up.filter(|given_up| batch.id <= *given_up);
    }

    /// Whether the broker's complaint about a number means that an earlier batch is
    /// still missing, which its own retry mends, or that the numbers have come apart.
    pub(super) fn judge(&mut self, batch: &Batch, code: ErrorCode) {
        if batch.stamp.map(|stamp| stamp.identity) != self.identity {
            return;
        }
        self.broken |=
            self.is_unresolved() || batch.was_next || code == ErrorCode::InvalidProducerEpoch;
    }
}
