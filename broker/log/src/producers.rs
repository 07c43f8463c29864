//! What the log knows of its idempotent producers (KIP-98, KIP-360): for each the last
//! five batches, by which a repeated batch is recognised and a gap refused, and its open
//! transaction.
//!
//! Owned by the log. Invariants (I12): the state is what appending the log's batches up
//! to the log's end makes of the newest snapshot, but that after a truncation fewer than
//! five batches of a producer may be known; a batch that was refused
//! or not written leaves no trace, because checks work on a copy that
//! [`Producers::commit`] puts in place after the write.

use std::{collections::HashMap, ops::ControlFlow};

use yuxi_protocol::{
    ids::{Offset, ProducerEpoch, ProducerId},
    record::{
        BatchView, EndMarker,
        batch::{BatchHeader, NO_SEQUENCE, NO_TIMESTAMP, advance_sequence},
    },
};

use crate::{
    error::AppendError, log::AppendOrigin, segment::Segment, transactions::Transactions,
    txn_index::AbortedTransaction,
};

/// As many batches as a producer may have in flight.
const RECENT_BATCHES: usize = 5;

/// One stored batch of a producer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerBatch {
    /// The sequence of its last record.
    pub last_sequence: i32,
    /// The offset of its last record.
    pub last_offset: Offset,
    /// Records in it, less one.
    pub offset_delta: i32,
    /// Its largest timestamp.
    pub timestamp: i64,
}

impl ProducerBatch {
    /// The sequence of its first record.
    pub fn first_sequence(&self) -> i32 {
        // Backwards is the long way round, in arithmetic modulo 2^31.
        let full_turn = i64::from(i32::MAX) + 1;
        advance_sequence(
            self.last_sequence,
            ((full_turn - i64::from(self.offset_delta)) % full_turn) as i32,
        )
    }

    /// The offset of its first record.
    pub fn first_offset(&self) -> Offset {
        self.last_offset.plus(-i64::from(self.offset_delta))
    }
}

/// What is known of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerEntry {
    /// Its newest epoch.
    pub epoch: ProducerEpoch,
    /// The epoch of the transaction coordinator that wrote its last marker, or -1.
    pub coordinator_epoch: i32,
    /// The largest timestamp of its last batch, or when its last marker was written.
    pub last_timestamp: i64,
    /// Where its open transaction began.
    pub transaction_first_offset: Option<Offset>,
    batches: [ProducerBatch; RECENT_BATCHES],
    batch_count: u8,
}

impl ProducerEntry {
    /// A producer that has written nothing yet.
    pub(crate) fn new(epoch: ProducerEpoch) -> Self {
        Self {
            epoch,
            coordinator_epoch: -1,
            last_timestamp: NO_TIMESTAMP,
            transaction_first_offset: None,
            batches: [ProducerBatch::default(); RECENT_BATCHES],
            batch_count: 0,
        }
    }

    /// Its last batches under its epoch, at most five, the oldest first.
    pub fn batches(&self) -> &[ProducerBatch] {
        &self.batches[..usize::from(self.batch_count)]
    }

    /// The last sequence it wrote under its epoch, or -1.
    pub fn last_sequence(&self) -> i32 {
        self.batches()
            .last()
            .map_or(NO_SEQUENCE, |batch| batch.last_sequence)
    }

    pub(crate) fn push(&mut self, batch: ProducerBatch) {
        if usize::from(self.batch_count) == RECENT_BATCHES {
            self.batches.rotate_left(1);
        } else {
            self.batch_count += 1;
        }
        self.batches[usize::from(self.batch_count) - 1] = batch;
    }

    pub(crate) fn set_epoch(&mut self, epoch: ProducerEpoch) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.batch_count = 0;
        }
    }

    /// Forgets its newest batches, but not all of them.
    fn pop(&mut self, count: u8) {
        self.batch_count -= count;
        if let Some(last) = self.batches().last() {
            self.last_timestamp = last.timestamp;
        }
    }

    fn find(&self, header: &BatchHeader) -> Option<ProducerBatch> {
        let batches = (self.epoch == header.producer_epoch).then(|| self.batches())?;
        let same = |batch: &&ProducerBatch| {
            batch.first_sequence() == header.base_sequence
                && batch.last_sequence == header.last_sequence()
        };
        batches.iter().find(same).copied()
    }

    fn is_expired(&self, now_ms: i64, expiration_ms: i64) -> bool {
        self.transaction_first_offset.is_none()
            && now_ms.saturating_sub(self.last_timestamp) >= expiration_ms
    }
}

/// All the producers of a log.
#[derive(Debug, Default)]
pub(crate) struct Producers {
    entries: HashMap<ProducerId, ProducerEntry>,
    /// Of these producers, and of those that ended one and were forgotten since.
    transactions: Transactions,
}

/// Checked batches that are about to be written: copies of the entries they change, and
/// the transactions that begin and end with them, in the log's order.
#[derive(Debug, Default)]
pub(crate) struct PendingProducers {
    entries: Vec<(ProducerId, ProducerEntry)>,
    changes: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Began {
        producer_id: ProducerId,
        first: Offset,
    },
    Ended {
        producer_id: ProducerId,
        first: Offset,
        marker: Offset,
        commit: bool,
    },
}

/// How many batches each producer wrote at the end of a log, where there are no markers.
#[derive(Debug, Default)]
pub(crate) struct Written(HashMap<ProducerId, u8>);

impl Written {
    /// In the batches of a segment from `position` on. `None` if there are markers, or more
    /// than is remembered of a producer.
    pub(crate) fn from(segment: &Segment, position: u64) -> Option<Self> {
        let mut written = Self::default();
        let walked = segment.walk(position, |batch| {
            if written.add(&batch.header) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        matches!(walked, Ok(None)).then_some(written)
    }

    fn add(&mut self, header: &BatchHeader) -> bool {
        if !header.has_producer_id() {
            return true;
        }
        let count = self.0.entry(header.producer_id).or_default();
        *count += 1;
        !header.is_control() && usize::from(*count) < RECENT_BATCHES
    }
}

impl Producers {
    pub(crate) fn new(
        entries: HashMap<ProducerId, ProducerEntry>,
        now_ms: i64,
        expiration_ms: i64,
    ) -> Self {
        let mut producers = Self {
            entries,
            transactions: Transactions::default(),
        };
        producers.remove_expired(now_ms, expiration_ms);
        for (id, entry) in &producers.entries {
            if let Some(first) = entry.transaction_first_offset {
                producers.transactions.began(first, *id);
            }
        }
        producers
    }

    pub(crate) fn entries(&self) -> &HashMap<ProducerId, ProducerEntry> {
        &self.entries
    }

    pub(crate) fn transactions(&self) -> &Transactions {
        &self.transactions
    }

    pub(crate) fn transactions_mut(&mut self) -> &mut Transactions {
        &mut self.transactions
    }

    /// What the table of producers takes of memory.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        // Seven of eight slots are used at the most, and each has a byte of its own.
        let slots = (self.entries.capacity() * 8 / 7).next_power_of_two();
        slots * (size_of::<(ProducerId, ProducerEntry)>() + 1)
    }

    /// Whether there is nobody and nothing to remember less of.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.transactions.is_empty()
    }

    pub(crate) fn remove_expired(&mut self, now_ms: i64, expiration_ms: i64) {
        self.entries
            .retain(|_, entry| !entry.is_expired(now_ms, expiration_ms));
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
        }
    }

    /// The stored batch that this one repeats.
    pub(crate) fn find_duplicate(&self, header: &BatchHeader) -> Option<ProducerBatch> {
        if !header.has_producer_id() || header.is_control() {
            return None;
        }
        self.entries.get(&header.producer_id)?.find(header)
    }

    /// Takes back what was written at the end of the log, which is at `end` now. `false`, and
    /// nothing is taken back, where more must be known than is remembered. Of the last five
    /// batches of a producer so many fewer are known then: those before them are not sent
    /// again by one that has no more than five in flight.
    pub(crate) fn take_back(&mut self, written: &Written, end: Offset) -> bool {
        let is_enough = |(id, &count): (&ProducerId, &u8)| {
            let Some(entry) = self.entries.get(id) else {
                return false;
            };
            // A transaction that began there is none now. With a marker and no transaction
            // the time of that marker is wanted, which may have come after what is left.
            let stays = match entry.transaction_first_offset {
                Some(first) => first < end,
                None => entry.coordinator_epoch < 0,
            };
            let (kept, cut) = entry
                .batches()
                .split_at(entry.batches().len().saturating_sub(usize::from(count)));
            let is_kept = |batch: &ProducerBatch| batch.last_offset < end;
            stays && kept.last().is_some_and(is_kept) && !cut.iter().any(is_kept)
        };
        if !written.0.iter().all(is_enough) {
            return false;
        }
        for (id, &count) in &written.0 {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.pop(count);
            }
        }
        true
    }

    /// Checks a batch that would be stored at `base_offset`, after those that are in
    /// `pending` already, and adds it there.
    pub(crate) fn check(
        &self,
        pending: &mut PendingProducers,
        batch: &BatchView<'_>,
        base_offset: Offset,
        origin: AppendOrigin,
    ) -> Result<(), AppendError> {
        let header = batch.header();
        if !header.has_producer_id() {
            return Ok(());
        }
        if header.is_control() {
            return self.check_marker(pending, batch, base_offset, origin);
        }
        let entry = pending.entry(self, header);
        check_epoch(entry, header, origin)?;
        if origin == AppendOrigin::Client {
            check_sequence(entry, header, base_offset)?;
        }
        let mut begins = false;
        match entry.transaction_first_offset {
            Some(_) if !header.is_transactional() && origin != AppendOrigin::Replication => {
                return Err(AppendError::NotTransactional {
                    producer_id: header.producer_id,
                    offset: base_offset,
                });
            }
            None if header.is_transactional() => {
                entry.transaction_first_offset = Some(base_offset);
                begins = true;
            }
            _ => {}
        }
        entry.set_epoch(header.producer_epoch);
        entry.push(ProducerBatch {
            last_sequence: header.last_sequence(),
            last_offset: base_offset.plus(i64::from(header.last_offset_delta)),
            offset_delta: header.last_offset_delta,
            timestamp: header.max_timestamp,
        });
        entry.last_timestamp = header.max_timestamp;
        if begins {
            pending.changes.push(Change::Began {
                producer_id: header.producer_id,
                first: base_offset,
            });
        }
        Ok(())
    }

    /// A marker ends the producer's transaction. Its epoch counts as the producer's, its
    /// one record is no data of the producer's.
    fn check_marker(
        &self,
        pending: &mut PendingProducers,
        batch: &BatchView<'_>,
        offset: Offset,
        origin: AppendOrigin,
    ) -> Result<(), AppendError> {
        let header = batch.header();
        let marker = EndMarker::read(batch)?;
        if marker.is_none() && header.record_count > 0 {
            return Ok(());
        }
        let entry = pending.entry(self, header);
        check_epoch(entry, header, origin)?;
        let Some(marker) = marker else {
            // Compaction leaves a producer's last marker without its record, for the epoch.
            entry.set_epoch(header.producer_epoch);
            entry.last_timestamp = header.max_timestamp;
            return Ok(());
        };
        if entry.coordinator_epoch > marker.coordinator_epoch && origin != AppendOrigin::Replication
        {
            return Err(AppendError::CoordinatorFenced {
                producer_id: header.producer_id,
                epoch: marker.coordinator_epoch,
                current_epoch: entry.coordinator_epoch,
            });
        }
        entry.set_epoch(header.producer_epoch);
        entry.coordinator_epoch = marker.coordinator_epoch;
        entry.last_timestamp = header.max_timestamp;
        // Without a transaction the marker concerns no record, and no reader.
        if let Some(first) = entry.transaction_first_offset.take() {
            pending.changes.push(Change::Ended {
                producer_id: header.producer_id,
                first,
                marker: offset,
                commit: marker.commit,
            });
        }
        Ok(())
    }

    /// The checked batches have been written. Returns the transactions that they aborted,
    /// for the index.
    pub(crate) fn commit(&mut self, pending: PendingProducers) -> Vec<AbortedTransaction> {
        self.entries.extend(pending.entries);
        let mut aborted = Vec::new();
        for change in pending.changes {
            match change {
                Change::Began { producer_id, first } => self.transactions.began(first, producer_id),
                Change::Ended {
                    producer_id,
                    first,
                    marker,
                    commit,
                } => {
                    let last_stable_offset = self.transactions.decided(first, marker);
                    if !commit {
                        aborted.push(AbortedTransaction {
                            producer_id,
                            first_offset: first,
                            last_offset: marker,
                            last_stable_offset,
                        });
                    }
                }
            }
        }
        aborted
    }

    /// Takes in a batch that stands in the log. Returns the transaction that it aborted.
    pub(crate) fn replay(
        &mut self,
        batch: &BatchView<'_>,
    ) -> Result<Option<AbortedTransaction>, AppendError> {
        let header = batch.header();
        let mut pending = PendingProducers::default();
        self.check(
            &mut pending,
            batch,
            header.base_offset,
            AppendOrigin::Replication,
        )?;
        Ok(self.commit(pending).pop())
    }
}

impl PendingProducers {
    fn entry(&mut self, producers: &Producers, header: &BatchHeader) -> &mut ProducerEntry {
        let id = header.producer_id;
        let known = self.entries.iter().position(|(known, _)| *known == id);
        let at = known.unwrap_or_else(|| {
            let entry = producers.entries.get(&id).cloned();
            let entry = entry.unwrap_or_else(|| ProducerEntry::new(ProducerEpoch::NONE));
            self.entries.push((id, entry));
            self.entries.len() - 1
        });
        &mut self.entries[at].1
    }
}

fn check_epoch(
    entry: &ProducerEntry,
    header: &BatchHeader,
    origin: AppendOrigin,
) -> Result<(), AppendError> {
    // What the leader has accepted, its followers and its own restart accept too.
    if header.producer_epoch < entry.epoch && origin != AppendOrigin::Replication {
        return Err(AppendError::InvalidProducerEpoch {
            producer_id: header.producer_id,
            epoch: header.producer_epoch,
            current_epoch: entry.epoch,
        });
    }
    Ok(())
}

fn check_sequence(
    entry: &ProducerEntry,
    header: &BatchHeader,
    offset: Offset,
) -> Result<(), AppendError> {
    let last_sequence = entry.last_sequence();
    let in_order = if entry.epoch == ProducerEpoch::NONE {
        // Nothing is known of the producer: it is new, or was forgotten because its
        // records are gone. Any sequence may come next (KIP-360).
        true
    } else if entry.epoch != header.producer_epoch {
        header.base_sequence == 0
    } else if last_sequence == NO_SEQUENCE {
        // The epoch is known from a marker only: its first batch starts from 0.
        header.base_sequence == 0
    } else {
        header.base_sequence == advance_sequence(last_sequence, 1)
    };
    if in_order {
        return Ok(());
    }
    Err(AppendError::OutOfOrderSequence {
        producer_id: header.producer_id,
        sequence: header.base_sequence,
        last_sequence,
        offset,
    })
}
