//! How dirty a log is, and what of it can be cleaned. Under the log's lock.

use std::{collections::HashMap, path::Path, sync::Arc};

use yuxi_protocol::ids::{Offset, ProducerEpoch, ProducerId};

use super::source::Source;
use crate::{
    config::LogConfig,
    error::{LogError, ReadError},
    log::Log,
    segment::Segment,
    txn_index::AbortedTransaction,
};

/// How much of a log has never been cleaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirtiness {
    /// Up to here it has been cleaned.
    pub dirty_from: Offset,
    /// Up to here, whole closed segments, it can be.
    pub end: Offset,
    /// Bytes of the segments before `dirty_from`.
    pub clean_bytes: u64,
    /// Bytes of the segments from there to `end`.
    pub dirty_bytes: u64,
    /// For how long its oldest uncleaned record is past `max.compaction.lag.ms`, or 0.
    pub overdue_ms: i64,
}

impl Dirtiness {
    /// Dirty bytes of all that is or could be clean, from 0 to 1.
    pub fn ratio(&self) -> f64 {
        let total = self.clean_bytes + self.dirty_bytes;
        if total == 0 {
            return 0.0;
        }
        self.dirty_bytes as f64 / total as f64
    }

    /// Whether the log should be cleaned, given these settings.
    pub fn is_due(&self, config: &LogConfig) -> bool {
        self.dirty_bytes > 0
            && (self.overdue_ms > 0 || self.ratio() > config.min_cleanable_dirty_ratio)
    }
}

/// Tells one plan of a log from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionTicket(pub(super) u64);

/// The last that an active producer wrote, which must stay.
#[derive(Clone, Copy, Debug)]
pub(super) enum LastOfProducer {
    /// The batch that ends here: it has the last sequence.
    Data(Offset),
    /// A marker in this epoch, because the producer has written nothing since.
    Marker(ProducerEpoch),
}

/// A compaction that is about to begin. It needs the log no more until a segment is swapped
/// in.
#[derive(Debug)]
pub struct Compaction {
    pub(super) dir: Arc<Path>,
    pub(super) ticket: CompactionTicket,
    pub(super) config: LogConfig,
    pub(super) now_ms: i64,
    pub(super) dirty_from: Offset,
    /// The segments that may be cleaned, in order.
    pub(super) sources: Vec<Source>,
    /// The aborted transactions that have records in them.
    pub(super) aborted: Vec<AbortedTransaction>,
    pub(super) producers: HashMap<ProducerId, LastOfProducer>,
}

impl Compaction {
    /// Which plan this is.
    pub fn ticket(&self) -> CompactionTicket {
        self.ticket
    }
}

impl Log {
    /// Up to where the log has been cleaned, if it ever was: what the caller's checkpoint is
    /// to say.
    pub fn cleaned_to(&self) -> Option<Offset> {
        self.compaction.cleaned_to
    }

    /// The log was cleaned up to `offset`, by the checkpoint or just now. What it does not
    /// have has not been cleaned.
    pub fn set_cleaned_to(&mut self, offset: Offset) {
        self.compaction.cleaned_to = (offset <= self.log_end_offset).then_some(offset);
    }

    /// How dirty the log is, if what lies at or above `stable_end` is not to be touched.
    pub fn dirtiness(&self, stable_end: Offset, now_ms: i64) -> Result<Dirtiness, LogError> {
        self.measure(stable_end, now_ms)
            .map_err(|error| self.read_error(error))
    }

    /// What there is to clean; `None` if that is nothing. Any earlier plan is void.
    pub fn plan_compaction(
        &mut self,
        stable_end: Offset,
        now_ms: i64,
    ) -> Result<Option<Compaction>, LogError> {
        let dirtiness = self.dirtiness(stable_end, now_ms)?;
        if dirtiness.dirty_bytes == 0 {
            return Ok(None);
        }
        let end = self
            .segments
            .partition_point(|s| s.base_offset() < dirtiness.end);
        let sources = self.segments[..end]
            .iter()
            .zip(&self.segments[1..])
            .map(|(segment, next)| Source {
                base_offset: segment.base_offset(),
                size: segment.size(),
                end_offset: next.base_offset(),
            })
            .collect();
        let producers = self.producers.entries().iter().map(|(&id, entry)| {
            let last = match entry.batches().last() {
                Some(batch) => LastOfProducer::Data(batch.last_offset),
                None => LastOfProducer::Marker(entry.epoch),
            };
            (id, last)
        });
        let producers = producers.collect();
        // The marker of one may stand in any later segment, and with it what is known of it.
        let aborted = self
            .aborted_transactions(self.segments[0].base_offset(), dirtiness.end)
            .map_err(|error| self.read_error(error))?;
        Ok(Some(Compaction {
            dir: Arc::clone(&self.dir),
            ticket: self.compaction.new_plan(),
            config: self.config.clone(),
            now_ms,
            dirty_from: dirtiness.dirty_from,
            sources,
            aborted,
            producers,
        }))
    }

    /// Whether the segments of that plan have not been truncated, nor planned for anew.
    pub fn is_current(&self, ticket: CompactionTicket) -> bool {
        self.compaction.is_current(ticket)
    }

    fn measure(&self, stable_end: Offset, now_ms: i64) -> Result<Dirtiness, ReadError> {
        let start = self.log_start_offset;
        let dirty_from = self.compaction.cleaned_to.unwrap_or(start).max(start);
        let first_dirty = self.segment_of(dirty_from);
        // Whole segments only, and not the active one.
        let stable = self.segment_of(stable_end).min(self.segments.len() - 1);
        let end = self.old_enough(first_dirty, now_ms)?.min(stable);
        let bytes = |segments: &[Segment]| segments.iter().map(Segment::size).sum();
        Ok(Dirtiness {
            dirty_from,
            end: self.segments[end].base_offset(),
            clean_bytes: bytes(&self.segments[..first_dirty.min(end)]),
            dirty_bytes: bytes(&self.segments[first_dirty.min(end)..end]),
            overdue_ms: self.overdue_ms(first_dirty, now_ms)?,
        })
    }

    /// The first dirty segment that has a record younger than `min.compaction.lag.ms`, or the
    /// active one.
    fn old_enough(&self, first_dirty: usize, now_ms: i64) -> Result<usize, ReadError> {
        let active = self.segments.len() - 1;
        let lag_ms = self.config.min_compaction_lag_ms;
        if lag_ms > 0 {
            let youngest = now_ms.saturating_sub(lag_ms);
            for at in first_dirty..active {
                let segment = &self.segments[at];
                if segment.size() > 0 && segment.max_timestamp()?.timestamp > youngest {
                    return Ok(at);
                }
            }
        }
        Ok(active)
    }

    fn overdue_ms(&self, first_dirty: usize, now_ms: i64) -> Result<i64, ReadError> {
        if self.config.max_compaction_lag_ms == i64::MAX {
            return Ok(0);
        }
        let oldest = now_ms.saturating_sub(self.config.max_compaction_lag_ms.max(0));
        let mut overdue = 0;
        for segment in &self.segments[first_dirty..self.segments.len() - 1] {
            if let Some(since) = segment.first_timestamp()?.filter(|&since| since > 0) {
                overdue = overdue.max(oldest.saturating_sub(since));
            }
        }
        Ok(overdue)
    }
}
