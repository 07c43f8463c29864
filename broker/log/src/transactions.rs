//! Which transactions of a log its readers must not see past, and which were aborted.
//!
//! Owned by the log as part of what it knows of its producers. A transaction begins with a
//! producer's first transactional batch and ends with its marker. It is *open* until the
//! marker stands in the log, and *unstable* until the marker is below the high watermark,
//! too, since only then it is certain to stay. Invariant: an offset is in one of the two
//! sets while its transaction is unstable, and in neither before nor after.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use yuxi_protocol::{
    ids::{Offset, ProducerId},
    record::BatchHeader,
};

use crate::{
    error::ReadError,
    log::{Log, ReadInfo},
    producers::ProducerEntry,
    segment::Segment,
    txn_index::AbortedTransaction,
};

/// The unstable transactions of a log, by their first offsets.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    open: BTreeMap<Offset, ProducerId>,
    /// Those with a marker that may not be below the high watermark yet.
    decided: BTreeSet<Offset>,
    /// The same by their markers, which increase.
    markers: VecDeque<Decided>,
}

#[derive(Clone, Copy, Debug)]
struct Decided {
    marker: Offset,
    first: Offset,
}

impl Transactions {
    pub(crate) fn began(&mut self, first: Offset, producer_id: ProducerId) {
        self.open.insert(first, producer_id);
    }

    /// The transaction that began at `first` has its marker. Returns where the oldest of
    /// those begins that are still open, or the offset after the marker.
    pub(crate) fn decided(&mut self, first: Offset, marker: Offset) -> Offset {
        self.open.remove(&first);
        self.decided.insert(first);
        self.markers.push_back(Decided { marker, first });
        self.first_open().unwrap_or(marker.plus(1))
    }

    /// Every marker below `high_watermark` is certain to stay.
    fn replicated(&mut self, high_watermark: Offset) {
        while let Some(oldest) = self.markers.front().copied()
            && oldest.marker < high_watermark
        {
            self.decided.remove(&oldest.first);
            self.markers.pop_front();
        }
    }

    fn first_open(&self) -> Option<Offset> {
        self.open.first_key_value().map(|(first, _)| *first)
    }

    fn first_unstable(&self) -> Option<Offset> {
        let decided = self.decided.first().copied();
        self.first_open().into_iter().chain(decided).min()
    }

    /// These were read back from a log that was cut at `end`; `before` knew of it as it was.
    /// What was decided before a snapshot stands in none.
    pub(crate) fn restore_decided(&mut self, before: Self, end: Offset) {
        self.markers = before.markers;
        self.markers.retain(|decided| decided.marker < end);
        self.decided = self.markers.iter().map(|decided| decided.first).collect();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.decided.is_empty()
    }
}

impl Log {
    /// The first offset of the oldest transaction without a marker.
    pub fn first_undecided_offset(&self) -> Option<Offset> {
        self.producers.transactions().first_open()
    }

    /// When the producer of the oldest transaction without a marker wrote last.
    pub fn oldest_transaction_ms(&self) -> Option<i64> {
        let (_, id) = self.producers.transactions().open.first_key_value()?;
        Some(self.producer(*id)?.last_timestamp)
    }

    /// Up to where a reader of committed records may see: the first offset of the oldest
    /// transaction that is open or whose marker is not below `high_watermark`, and no
    /// further than that.
    pub fn last_stable_offset(&self, high_watermark: Offset) -> Offset {
        match self.producers.transactions().first_unstable() {
            // Records may have been deleted in the middle of a transaction.
            Some(first) => first.max(self.log_start_offset).min(high_watermark),
            None => high_watermark,
        }
    }

    /// What lies below `high_watermark` is certain to stay. To be called whenever that has
    /// moved.
    pub fn high_watermark_moved(&mut self, high_watermark: Offset) {
        self.producers.transactions_mut().replicated(high_watermark);
    }

    /// Whether the batch with this header repeats one of the last of its producer.
    pub fn is_duplicate(&self, header: &BatchHeader) -> bool {
        self.producers.find_duplicate(header).is_some()
    }

    /// What the log knows of a producer.
    pub fn producer(&self, id: ProducerId) -> Option<&ProducerEntry> {
        self.producers.entries().get(&id)
    }

    /// The aborted transactions that have records in what was read, and perhaps some that
    /// begin shortly after it; those are ordered by their markers. `up_to` is the last
    /// stable offset by which it was read.
    pub fn aborted_in(
        &self,
        read: &ReadInfo,
        up_to: Offset,
    ) -> Result<Vec<AbortedTransaction>, ReadError> {
        let Some(slice) = &read.slice else {
            return Ok(Vec::new());
        };
        let at = self.segment_of(read.start_offset);
        let rest = &self.segments[at..];
        if rest.iter().all(|segment| segment.aborted().is_none()) {
            return Ok(Vec::new());
        }
        let end = slice.position() + slice.len() as u64;
        let bound = match rest[0].offset_past(end)? {
            Some(bound) => bound,
            None => rest
                .get(1)
                .map_or(self.log_end_offset, Segment::base_offset),
        };
        self.aborted_transactions(read.start_offset, bound.min(up_to))
    }

    /// The aborted transactions with a marker at `from` or later that began before `up_to`.
    pub fn aborted_transactions(
        &self,
        from: Offset,
        up_to: Offset,
    ) -> Result<Vec<AbortedTransaction>, ReadError> {
        let mut found = Vec::new();
        for segment in &self.segments[self.segment_of(from)..] {
            if let Some(aborted) = segment.aborted()
                && aborted.collect(from, up_to, &mut found)?
            {
                break;
            }
        }
        Ok(found)
    }
}
