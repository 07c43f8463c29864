//! One partition's log: segments in a row, the last of them active.
//!
//! A log has one owner, which calls it behind the partition's lock; nothing here waits
//! or asks for the time. Invariants:
//! - there is always an active segment, and offsets increase from batch to batch;
//! - what an append returned as an error is not visible, also not after a restart that
//!   finds the file as it was left;
//! - the log start offset never moves back but by truncation (I14);
//! - [`Log::recovery_point`] never passes what is durable: data, the directory entries
//!   that lead to it, and the leader epochs.

use std::{io::IoSlice, path::Path, sync::Arc};

use yuxi_protocol::{
    ids::{LeaderEpoch, Offset, ProducerId, TopicId},
    record::{
        BatchError, BatchView,
        batch::{NO_TIMESTAMP, batches, stored_prefix},
    },
};

use crate::{
    compaction::CompactionState,
    config::LogConfig,
    epochs::{EpochEntry, LeaderEpochs},
    error::{AppendError, LogError, ReadError},
    file_names,
    flush::Unsynced,
    mapping::FileSlice,
    producers::{PendingProducers, ProducerEntry, Producers},
    recovery,
    retention::RemovedFiles,
    segment::{AppendedBatch, Segment},
    snapshot::Snapshots,
};

/// One partition's log.
#[derive(Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "the log's start and end offset are called so"
)]
pub struct Log {
    pub(crate) dir: Arc<Path>,
    pub(crate) config: LogConfig,
    /// In the order of their base offsets; never empty.
    pub(crate) segments: Vec<Segment>,
    pub(crate) log_start_offset: Offset,
    pub(crate) log_end_offset: Offset,
    pub(crate) recovery_point: Offset,
    pub(crate) epochs: LeaderEpochs,
    pub(crate) producers: Producers,
    pub(crate) snapshots: Snapshots,
    pub(crate) removed: Vec<RemovedFiles>,
    pub(crate) unsynced: Unsynced,
    pub(crate) compaction: CompactionState,
}

/// What the caller knows of a log before it is opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Up to where the log was durable, by the checkpoint; 0 if that says nothing.
    pub recovery_point: Offset,
    /// Whether the log was closed after its last append. Then nothing is scanned.
    pub clean_shutdown: bool,
    /// Where the log starts, by the checkpoint; 0 if that says nothing.
    pub log_start_offset: Offset,
    /// The id of the topic, which `partition.metadata` has or gets.
    pub topic_id: Option<TopicId>,
    /// The time, ms since the epoch.
    pub now_ms: i64,
}

/// Who appends, which decides what is checked of a producer's batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOrigin {
    /// A client: epochs and sequences are checked, repetitions recognised.
    Client,
    /// A coordinator of this broker: epochs are checked.
    Coordinator,
    /// What a leader accepted before; nothing is checked.
    Replication,
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendInfo {
    /// The offset of the first record, for a duplicate that which it has had all along.
    pub base_offset: Offset,
    /// The offset of the last record.
    pub last_offset: Offset,
    /// The log's first offset.
    pub log_start_offset: Offset,
    /// The largest timestamp of the batches.
    pub max_timestamp: i64,
    /// Set when the batch had been appended before, to its offset; nothing was written.
    pub duplicate: Option<Offset>,
    /// Bytes written.
    pub bytes: u64,
}

/// What a read found.
#[derive(Clone, Debug)]
pub struct ReadInfo {
    /// Whole batches, the first of which holds the offset asked for or a later one;
    /// `None` when there are none below the limits.
    pub slice: Option<FileSlice>,
    /// The first batch's base offset, or the offset asked for.
    pub start_offset: Offset,
}

/// Facts of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The offset it begins with.
    pub base_offset: Offset,
    /// Bytes of its batches.
    pub size_bytes: u64,
}

impl Log {
    /// Opens the log in `dir`, or creates it there.
    ///
    /// After a clean shutdown no data is read but the end of the active segment.
    /// Otherwise the log is recovered from the recovery point on: a torn tail is cut,
    /// damage anywhere else is [`LogError::Corrupt`] and changes nothing (I15).
    pub fn open(dir: &Path, config: LogConfig, opening: Opening) -> Result<Self, LogError> {
        recovery::open(dir, config, opening)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The settings.
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// Other settings from now on.
    pub fn set_config(&mut self, config: LogConfig) {
        self.config = config;
        let config = self.config.clone();
        self.active_mut().set_capacity(&config);
    }

    /// The first offset there is.
    pub fn log_start_offset(&self) -> Offset {
        self.log_start_offset
    }

    /// The offset of the next record.
    pub fn log_end_offset(&self) -> Offset {
        self.log_end_offset
    }

    /// Up to where the log is durable.
    pub fn recovery_point(&self) -> Offset {
        self.recovery_point
    }

    /// Bytes of all the segments.
    pub fn size_bytes(&self) -> u64 {
        self.segments.iter().map(Segment::size).sum()
    }

    /// The segments, the oldest first; the last is the active one.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = SegmentInfo> + ExactSizeIterator {
        self.segments.iter().map(|segment| SegmentInfo {
            base_offset: segment.base_offset(),
            size_bytes: segment.size(),
        })
    }

    /// The newest leader epoch that the log knows.
    pub fn latest_epoch(&self) -> Option<LeaderEpoch> {
        self.epochs.latest().map(|entry| entry.epoch)
    }

    /// The leader epochs and where each begins, the oldest first.
    pub fn epoch_entries(&self) -> &[EpochEntry] {
        self.epochs.entries()
    }

    /// The leader epoch in which `offset` was written, if the history reaches back so far.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.epochs.at(offset)
    }

    /// The newest epoch not after `epoch` that the log has, and where it ends (KIP-101,
    /// KIP-279). `None` when `epoch` is later than all the log knows.
    pub fn end_offset_for_epoch(&self, epoch: LeaderEpoch) -> Option<(LeaderEpoch, Offset)> {
        self.epochs.end_offset(epoch, self.log_end_offset)
    }

    /// This replica has become the leader in `epoch`, which begins at the log's end.
    pub fn assign_epoch(&mut self, epoch: LeaderEpoch) {
        self.epochs.assign(epoch, self.log_end_offset);
    }

    /// The idempotent producers that the log knows.
    pub fn active_producers(&self) -> impl ExactSizeIterator<Item = (ProducerId, &ProducerEntry)> {
        self.producers
            .entries()
            .iter()
            .map(|(id, entry)| (*id, entry))
    }

    /// Forgets the producers that have been silent for `producer.id.expiration.ms`.
    pub fn remove_expired_producers(&mut self, now_ms: i64) {
        self.producers
            .remove_expired(now_ms, self.config.producer_id_expiration_ms);
    }

    /// Lets go of files and mappings that were not used since the last call. To be
    /// called now and then, so that idle partitions hold none.
    pub fn release_unused_files(&mut self) {
        for segment in &mut self.segments {
            segment.release_if_unused();
        }
    }

    /// Appends batches under the next offsets. The caller has validated them; of each, the
    /// base offset and the leader epoch are written anew, outside its checksum, and the
    /// rest is written from where it lies.
    ///
    /// A batch that its producer sent before is not appended again, and the answer has the
    /// offset that it got the first time.
    pub fn append_as_leader(
        &mut self,
        batches: &[BatchView<'_>],
        leader_epoch: LeaderEpoch,
        origin: AppendOrigin,
        now_ms: i64,
    ) -> Result<AppendInfo, AppendError> {
        if origin == AppendOrigin::Client
            && let Some(known) = batches
                .iter()
                .find_map(|batch| self.producers.find_duplicate(batch.header()))
        {
            return Ok(AppendInfo {
                base_offset: known.first_offset(),
                last_offset: known.last_offset,
                log_start_offset: self.log_start_offset,
                max_timestamp: known.timestamp,
                duplicate: Some(known.first_offset()),
                bytes: 0,
            });
        }
        let mut pending = PendingProducers::default();
        let mut appended = Vec::with_capacity(batches.len());
        let mut prefixes = Vec::with_capacity(batches.len());
        let mut next_offset = self.log_end_offset;
        for batch in batches {
            let header = batch.header();
            self.producers
                .check(&mut pending, batch, next_offset, origin)?;
            prefixes.push(stored_prefix(
                next_offset,
                header.batch_length,
                leader_epoch,
            ));
            let last_offset = next_offset.plus(i64::from(header.last_offset_delta));
            appended.push(AppendedBatch {
                size: header.size_in_bytes() as u64,
                last_offset,
                max_timestamp: header.max_timestamp,
            });
            next_offset = last_offset.plus(1);
        }
        let mut parts = Vec::with_capacity(2 * batches.len());
        for (prefix, batch) in prefixes.iter().zip(batches) {
            parts.push(IoSlice::new(prefix));
            parts.push(IoSlice::new(&batch.bytes()[prefix.len()..]));
        }
        let base_offset = self.log_end_offset;
        let info = self.write(base_offset, &mut parts, &appended, now_ms)?;
        self.commit_producers(pending);
        self.epochs_reach(leader_epoch, base_offset);
        Ok(info)
    }

    /// Appends what a leader sent, as it is. A batch that was cut off at the end is left
    /// out; it will be fetched again.
    pub fn append_as_follower(
        &mut self,
        records: &[u8],
        now_ms: i64,
    ) -> Result<AppendInfo, AppendError> {
        let mut views = Vec::new();
        let mut next_offset = self.log_end_offset;
        for batch in batches(records) {
            let batch = match batch {
                Ok(batch) => batch,
                Err(BatchError::Truncated { .. }) => break,
                Err(error) => return Err(error.into()),
            };
            batch.check_crc()?;
            if batch.header().base_offset < next_offset {
                return Err(AppendError::OffsetNotIncreasing {
                    offset: batch.header().base_offset,
                    log_end_offset: next_offset,
                });
            }
            next_offset = batch.header().next_offset();
            views.push(batch);
        }
        let mut total = self.nothing_appended();
        let mut rest = &views[..];
        while let [first, ..] = rest {
            let (group, after) = rest.split_at(self.as_many_as_fit(rest));
            rest = after;
            let info = self.append_group(group, now_ms)?;
            if total.bytes == 0 {
                total.base_offset = first.header().base_offset;
            }
            total.last_offset = info.last_offset;
            total.max_timestamp = total.max_timestamp.max(info.max_timestamp);
            total.bytes += info.bytes;
        }
        Ok(total)
    }

    /// How many of the first batches go into one segment; one at the least.
    fn as_many_as_fit(&self, batches: &[BatchView<'_>]) -> usize {
        let base_offset = batches[0].header().base_offset;
        let mut bytes = 0;
        let fit = batches.iter().take_while(|batch| {
            bytes += batch.bytes().len() as u64;
            bytes <= self.config.max_segment_bytes()
                && batch.header().last_offset().since(base_offset) <= i64::from(i32::MAX)
        });
        fit.count().max(1)
    }

    fn append_group(
        &mut self,
        group: &[BatchView<'_>],
        now_ms: i64,
    ) -> Result<AppendInfo, AppendError> {
        let mut pending = PendingProducers::default();
        for batch in group {
            let offset = batch.header().base_offset;
            self.producers
                .check(&mut pending, batch, offset, AppendOrigin::Replication)?;
        }
        let mut parts: Vec<_> = group.iter().map(|b| IoSlice::new(b.bytes())).collect();
        let appended: Vec<_> = group
            .iter()
            .map(|batch| AppendedBatch::from_header(batch.header()))
            .collect();
        let base_offset = group[0].header().base_offset;
        let info = self.write(base_offset, &mut parts, &appended, now_ms)?;
        self.commit_producers(pending);
        for batch in group {
            self.epochs_reach(
                batch.header().partition_leader_epoch,
                batch.header().base_offset,
            );
        }
        Ok(info)
    }

    /// What was checked stands in the active segment.
    fn commit_producers(&mut self, pending: PendingProducers) {
        for transaction in self.producers.commit(pending) {
            self.active_mut().aborted_mut().push(transaction);
        }
    }

    /// Writes `parts` to the active segment, or to a new one when they don't fit.
    fn write(
        &mut self,
        base_offset: Offset,
        parts: &mut [IoSlice<'_>],
        appended: &[AppendedBatch],
        now_ms: i64,
    ) -> Result<AppendInfo, AppendError> {
        let Some(last) = appended.last() else {
            return Ok(self.nothing_appended());
        };
        let bytes = appended.iter().map(|batch| batch.size).sum();
        let max_timestamp = appended.iter().map(|batch| batch.max_timestamp).max();
        let max_timestamp = max_timestamp.unwrap_or(NO_TIMESTAMP);
        let segment_bytes = self.config.max_segment_bytes();
        if bytes > segment_bytes {
            return Err(AppendError::LargerThanSegment {
                bytes,
                segment_bytes,
            });
        }
        if self.must_roll(bytes, last.last_offset, max_timestamp, now_ms)? {
            self.roll_at(base_offset, now_ms).map_err(into_append)?;
        }
        let interval = self.config.index_interval_bytes;
        let appended = appended.iter().copied();
        self.active_mut().append(parts, appended, interval)?;
        self.log_end_offset = last.last_offset.plus(1);
        self.unsynced.appended(now_ms);
        Ok(AppendInfo {
            base_offset,
            last_offset: last.last_offset,
            log_start_offset: self.log_start_offset,
            max_timestamp,
            duplicate: None,
            bytes,
        })
    }

    fn nothing_appended(&self) -> AppendInfo {
        AppendInfo {
            base_offset: self.log_end_offset,
            last_offset: self.log_end_offset.plus(-1),
            log_start_offset: self.log_start_offset,
            max_timestamp: NO_TIMESTAMP,
            duplicate: None,
            bytes: 0,
        }
    }

    fn epochs_reach(&mut self, epoch: LeaderEpoch, base_offset: Offset) {
        if self
            .epochs
            .latest()
            .is_none_or(|latest| latest.epoch < epoch)
        {
            self.epochs.assign(epoch, base_offset);
        }
    }

    fn must_roll(
        &self,
        bytes: u64,
        last_offset: Offset,
        max_timestamp: i64,
        now_ms: i64,
    ) -> Result<bool, AppendError> {
        let active = self.active();
        let base_offset = active.base_offset();
        if !active.has_room(bytes, &self.config)
            || last_offset.since(base_offset) > i64::from(i32::MAX)
        {
            return Ok(true);
        }
        let since = active.first_timestamp().map_err(|error| match error {
            ReadError::Storage(error) => AppendError::Storage(error),
            ReadError::Corrupt { error, .. } => AppendError::Invalid(error),
            ReadError::OffsetOutOfRange(_) => unreachable!("no offset was asked for"),
        })?;
        let Some(since) = since else {
            return Ok(false);
        };
        let until = if max_timestamp < 0 {
            now_ms
        } else {
            max_timestamp
        };
        let limit = self.config.roll_ms().saturating_sub(self.roll_jitter_ms());
        Ok(until.saturating_sub(since) > limit)
    }

    /// Spreads the rolls of many logs: a number for each segment that needs no memory.
    fn roll_jitter_ms(&self) -> i64 {
        let bound = self.config.segment_jitter_ms.min(self.config.segment_ms);
        if bound <= 0 {
            return 0;
        }
        let mut hash = crc32fast::Hasher::new();
        hash.update(self.dir.as_os_str().as_encoded_bytes());
        hash.update(&self.active().base_offset().value().to_be_bytes());
        i64::from(hash.finalize()) % bound
    }

    /// Begins a new segment, unless the active one is empty.
    pub fn roll(&mut self, now_ms: i64) -> Result<(), LogError> {
        self.roll_at(self.log_end_offset, now_ms)
    }

    fn roll_at(&mut self, base_offset: Offset, now_ms: i64) -> Result<(), LogError> {
        if self.active().base_offset() == base_offset {
            return Ok(());
        }
        let dir = Arc::clone(&self.dir);
        let storage = |error| LogError::storage(&*dir)(error);
        // Each step may fail and be done again by the next attempt; the new segment is
        // in the log only once all of them are done.
        let finished = self.active_mut().finish_indexes();
        finished.map_err(|error| self.read_error(error))?;
        self.snapshots
            .take(base_offset, self.producers.entries())
            .map_err(storage)?;
        let segment = Segment::create(Arc::clone(&self.dir), base_offset, &self.config, now_ms)
            .map_err(storage)?;
        let preallocated = self.config.preallocate;
        let active = self.active_mut();
        active.seal(preallocated).map_err(storage)?;
        let written: Vec<_> = active.index_paths().collect();
        self.unsynced.files(written);
        self.unsynced.files([self.snapshots.path(base_offset)]);
        self.unsynced.dir_changed();
        self.segments.push(segment);
        let segments = &self.segments;
        self.snapshots.remove(|offset| {
            offset < base_offset
                && segments
                    .binary_search_by_key(&offset, Segment::base_offset)
                    .is_err()
        });
        Ok(())
    }

    pub(crate) fn active(&self) -> &Segment {
        self.segments.last().expect("a log has an active segment")
    }

    pub(crate) fn active_mut(&mut self) -> &mut Segment {
        self.segments
            .last_mut()
            .expect("a log has an active segment")
    }

    pub(crate) fn read_error(&self, error: ReadError) -> LogError {
        read_error(&self.dir, error)
    }
}

/// What a failure to read is for an operation that changes the log.
pub(crate) fn read_error(dir: &Path, error: ReadError) -> LogError {
    match error {
        ReadError::Storage(error) => LogError::Storage {
            path: dir.to_owned(),
            error,
        },
        ReadError::Corrupt {
            path,
            position,
            error,
        } => LogError::Corrupt {
            expected_offset: file_names::parse(&file_name(&path))
                .map_or(Offset::ZERO, |(base_offset, _)| base_offset),
            path,
            position,
            reason: error.to_string(),
        },
        ReadError::OffsetOutOfRange(error) => LogError::Storage {
            path: dir.to_owned(),
            error: std::io::Error::other(error),
        },
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn into_append(error: LogError) -> AppendError {
    AppendError::Storage(match error {
        LogError::Storage { error, .. } => error,
        error => std::io::Error::other(error),
    })
}
