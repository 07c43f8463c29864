//! Reading the keys and writing the segments anew, without the log's lock.

use std::collections::VecDeque;

use yuxi_protocol::{
    ids::Offset,
    record::{
        BatchError, BatchHeader, BatchView, RecordRef,
        iter::RecordRefs,
        retain::{RecordFilter, write_without_records},
    },
};

use super::{
    CompactionError, Pace, group,
    offset_map::OffsetMap,
    output::{self, CleanedSegment, Output},
    plan::{Compaction, LastOfProducer},
    source::{Source, SourceReader},
    transactions::{Fate, Transactions},
};

/// More than a stored batch may decompress to here.
const MAX_DECOMPRESSED_BYTES: usize = 256 << 20;

/// How much memory the keys of a log may take.
#[derive(Clone, Copy, Debug)]
pub struct KeyMemory {
    /// At 24 bytes a key.
    pub max_bytes: u64,
    /// How full that may become, above 0 and up to 1: the fuller, the slower.
    pub load_factor: f64,
}

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CompactionStats {
    /// Bytes that were read to learn the keys.
    pub indexed_bytes: u64,
    /// Bytes that were read to be cleaned.
    pub bytes_read: u64,
    /// Bytes of these that are left.
    pub bytes_written: u64,
    /// Records that were read to be cleaned.
    pub records_read: u64,
    /// Records of these that are left.
    pub records_written: u64,
    /// Records without a key, from before the log was compacted. They are dropped.
    pub records_without_key: u64,
    /// How full the memory for the keys became, from 0 to 1.
    pub key_memory_utilization: f64,
}

impl Compaction {
    /// Reads the uncleaned part for the last offset of every key, as far as `memory` allows.
    pub fn index_keys(
        self,
        memory: KeyMemory,
        pace: &mut Pace<'_>,
    ) -> Result<Cleaning, CompactionError> {
        let end = self
            .sources
            .last()
            .map_or(self.dirty_from, |last| last.end_offset);
        let offsets = u64::try_from(end.since(self.dirty_from)).unwrap_or(0);
        let mut cleaning = Cleaning {
            map: OffsetMap::new(memory.max_bytes, memory.load_factor, offsets),
            known_to: end,
            transactions: Transactions::new(Vec::new()),
            groups: VecDeque::new(),
            last: self.sources.iter().rfind(|source| source.size > 0).copied(),
            filter: RecordFilter::default(),
            stats: CompactionStats::default(),
            plan: self,
        };
        let aborted = std::mem::take(&mut cleaning.plan.aborted);
        let dirty_from = cleaning.plan.dirty_from;
        let still_open = aborted
            .iter()
            .filter(|aborted| aborted.last_offset >= dirty_from);
        cleaning.learn_keys(Transactions::new(still_open.copied().collect()), pace)?;
        cleaning.stats.key_memory_utilization = cleaning.map.utilization();
        cleaning.transactions = Transactions::new(aborted);
        let known_to = cleaning.known_to;
        let sources = &cleaning.plan.sources;
        let count = sources.partition_point(|source| source.base_offset < known_to);
        cleaning.groups =
            group::form(&cleaning.plan.dir, &sources[..count], &cleaning.plan.config).into();
        Ok(cleaning)
    }
}

/// A compaction that knows the keys.
#[derive(Debug)]
pub struct Cleaning {
    plan: Compaction,
    map: OffsetMap,
    /// Of every record from the dirty part's start up to here the key is in the map.
    known_to: Offset,
    transactions: Transactions,
    /// What is still to be cleaned.
    groups: VecDeque<Vec<Source>>,
    /// The last segment that has a batch.
    last: Option<Source>,
    filter: RecordFilter,
    stats: CompactionStats,
}

impl Cleaning {
    /// Writes the next cleaned segment; `None` when there are no more. It must be swapped in
    /// before the next one is asked for.
    pub fn clean_next(
        &mut self,
        pace: &mut Pace<'_>,
    ) -> Result<Option<CleanedSegment>, CompactionError> {
        let Some(sources) = self.groups.pop_front() else {
            return Ok(None);
        };
        output::remove_leftovers(&self.plan.dir)?;
        let mut out = Output::create(&self.plan, &sources)?;
        for source in sources {
            self.clean_into(source, &mut out, pace)?;
        }
        out.finish(pace).map(Some)
    }

    /// Up to where the log is clean once all segments are swapped in.
    pub fn cleaned_to(&self) -> Offset {
        self.known_to
    }

    /// What was done so far.
    pub fn stats(&self) -> CompactionStats {
        self.stats
    }

    fn learn_keys(
        &mut self,
        mut transactions: Transactions,
        pace: &mut Pace<'_>,
    ) -> Result<(), CompactionError> {
        let from = self.plan.dirty_from;
        for source in &self.plan.sources {
            if source.end_offset <= from {
                continue;
            }
            let mut reader = SourceReader::open(&self.plan.dir, *source)?;
            while let Some(batch) = reader.next(pace)? {
                self.stats.indexed_bytes += batch.bytes().len() as u64;
                let learned = learn_keys_of(&batch, from, &mut transactions, &mut self.map);
                if let Some(full_at) = learned.map_err(|error| reader.corrupt(&error))? {
                    self.known_to = full_at;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn clean_into(
        &mut self,
        source: Source,
        out: &mut Output,
        pace: &mut Pace<'_>,
    ) -> Result<(), CompactionError> {
        let mut reader = SourceReader::open(&self.plan.dir, source)?;
        loop {
            let remaining = reader.remaining();
            let Some(batch) = reader.next(pace)? else {
                return Ok(());
            };
            let is_last = Some(source) == self.last && remaining == batch.bytes().len() as u64;
            let cleaned = self.clean_batch(&batch, is_last, out);
            cleaned.map_err(|error| reader.corrupt(&error))?;
            out.write_some(pace)?;
        }
    }

    fn clean_batch(
        &mut self,
        batch: &BatchView<'_>,
        is_last: bool,
        out: &mut Output,
    ) -> Result<(), BatchError> {
        let header = batch.header();
        out.taken(batch.bytes().len());
        self.stats.bytes_read += batch.bytes().len() as u64;
        self.stats.records_read += header.record_count as u64;
        let now_ms = self.plan.now_ms;
        let is_past_horizon = header
            .delete_horizon_ms()
            .is_some_and(|horizon| horizon <= now_ms);
        let (drop_records, is_superfluous_marker) = match self.transactions.observe(batch)? {
            Fate::Ordinary => (false, false),
            Fate::Aborted => (true, false),
            Fate::NeededMarker(aborted) => {
                if let Some(aborted) = aborted {
                    out.add_aborted(aborted);
                }
                (false, false)
            }
            // Readers that are in the middle of the transaction's offsets still expect it.
            Fate::SuperfluousMarker => (is_past_horizon, true),
        };
        if drop_records || header.record_count == 0 {
            return self.keep_empty(batch, is_last, out);
        }
        let payload = batch.decompressed(MAX_DECOMPRESSED_BYTES)?;
        let Self {
            filter,
            map,
            stats,
            known_to,
            ..
        } = self;
        let retained = filter.choose(header, &payload, |record| {
            header.is_control() || is_needed(header, record, map, *known_to, is_past_horizon, stats)
        })?;
        if retained.count == 0 {
            return self.keep_empty(batch, is_last, out);
        }
        let needs_horizon = header.delete_horizon_ms().is_none()
            && (retained.has_tombstone || is_superfluous_marker);
        let horizon_ms =
            needs_horizon.then(|| now_ms.saturating_add(self.plan.config.delete_retention_ms));
        let written = out.add(batch.bytes(), |buffer| {
            if retained.is_all && horizon_ms.is_none() {
                buffer.extend_from_slice(batch.bytes());
                return Ok(());
            }
            filter.write(header, &payload, &retained, horizon_ms, buffer)
        })?;
        self.stats.bytes_written += written;
        self.stats.records_written += retained.count as u64;
        Ok(())
    }

    /// Of a batch that has lost its records the header may still be needed.
    fn keep_empty(
        &mut self,
        batch: &BatchView<'_>,
        is_last: bool,
        out: &mut Output,
    ) -> Result<(), BatchError> {
        let header = batch.header();
        if is_last || self.is_last_of_producer(header) {
            self.stats.bytes_written += out.add(batch.bytes(), |buffer| {
                write_without_records(header, buffer)
            })?;
        }
        Ok(())
    }

    fn is_last_of_producer(&self, header: &BatchHeader) -> bool {
        if !header.has_producer_id() {
            return false;
        }
        match self.plan.producers.get(&header.producer_id) {
            Some(LastOfProducer::Data(last_offset)) => header.last_offset() == *last_offset,
            Some(LastOfProducer::Marker(epoch)) => header.producer_epoch == *epoch,
            None => false,
        }
    }
}

/// Takes the keys of one batch into the map. Where the map was full, if it was.
fn learn_keys_of(
    batch: &BatchView<'_>,
    from: Offset,
    transactions: &mut Transactions,
    map: &mut OffsetMap,
) -> Result<Option<Offset>, BatchError> {
    let header = batch.header();
    if header.last_offset() < from {
        return Ok(None);
    }
    if transactions.observe(batch)? != Fate::Ordinary {
        return Ok(None);
    }
    let payload = batch.decompressed(MAX_DECOMPRESSED_BYTES)?;
    for record in RecordRefs::new(header, &payload) {
        let record = record?;
        let offset = record.offset(header);
        if let Some(key) = record.key
            && offset >= from
            && !map.put(key, offset)
        {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

/// Whether a record is the last of its key, and not a tombstone that everybody has seen.
fn is_needed(
    header: &BatchHeader,
    record: &RecordRef<'_>,
    map: &OffsetMap,
    known_to: Offset,
    is_past_horizon: bool,
    stats: &mut CompactionStats,
) -> bool {
    let offset = record.offset(header);
    if offset >= known_to {
        return true;
    }
    let Some(key) = record.key else {
        stats.records_without_key += 1;
        return false;
    };
    let is_last = map.get(key).is_none_or(|last| offset >= last);
    is_last && (record.value.is_some() || !is_past_horizon)
}
