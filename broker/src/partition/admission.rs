//! What a produced batch must be before it may stand in a log: whole, intact, in the
//! topic's size, time and key rules, and in its codec.
//!
//! Runs on the connection's task before the partition's lock is taken. The usual batch
//! is only read; it is copied if the topic wants another codec or append times.

use super::VerificationGuard;
use bytes::{Bytes, BytesMut};
use yuxi_controller::settings::{CompressionType, TimestampType, TopicSettings};
use yuxi_log::{AppendError, AppendOrigin};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::Offset,
    record::{
        BatchError, BatchView, Compression, TimestampType as BatchTimestampType, ValidateOptions,
        batch::{NO_TIMESTAMP, set_log_append_time, set_max_timestamp},
        iter::{RecordRef, RecordRefs, RecordsSummary},
        recompress, validate_records,
    },
};

/// A batch may decompress to this many times `max.message.bytes` and at least to
/// [`MIN_DECOMPRESSED_BYTES`]; more is taken for a decompression bomb.
const MAX_DECOMPRESSION_RATIO: usize = 64;
const MIN_DECOMPRESSED_BYTES: usize = 64 * 1024 * 1024;

/// How many records of one batch are named at most as the reason of a refusal.
const MAX_RECORDS_NAMED: usize = 1000;

/// Why a produced batch is refused.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum Refused {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("a produce request carries exactly one record batch for a partition")]
    NotOneBatch,
    #[error("a producer's batch begins at offset 0, not at {0}")]
    BaseOffset(Offset),
    #[error("the batch is part of a transaction, and names no producer whose")]
    NoProducer,
    #[error("the batch has {size} bytes, more than max.message.bytes={max}")]
    TooLarge { size: usize, max: usize },
    #[error("a producer may not say that its timestamps are the broker's append times")]
    AppendTimes,
    #[error(
        "timestamp {timestamp} is further from the broker's clock ({now}) than the topic allows"
    )]
    Timestamp { timestamp: i64, now: i64 },
}

impl Refused {
    /// The code that the producer gets.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::MessageTooLarge,
            Self::Timestamp { .. } | Self::AppendTimes => ErrorCode::InvalidTimestamp,
            Self::NotOneBatch | Self::BaseOffset(_) | Self::NoProducer => ErrorCode::InvalidRecord,
            Self::Batch(error) => match error {
                // Magic 0 and 1 were formats once; any other is no record batch.
                BatchError::UnsupportedMagic(0 | 1)
                | BatchError::Truncated { .. }
                | BatchError::InvalidCounts { .. }
                | BatchError::InvalidRecord { .. }
                | BatchError::TrailingBytes(_)
                | BatchError::WrongOffsetDelta { .. }
                | BatchError::MissingKey { .. }
                | BatchError::ControlBatch
                | BatchError::MissingSequence { .. }
                | BatchError::NoRecords => ErrorCode::InvalidRecord,
                BatchError::UnsupportedMagic(_)
                | BatchError::InvalidLength(_)
                | BatchError::WrongCrc { .. }
                | BatchError::Compression { .. } => ErrorCode::CorruptMessage,
                BatchError::UnknownCompression(_) => ErrorCode::UnsupportedCompressionType,
            },
        }
    }
}

/// One batch that passed, ready to be given its offsets.
#[derive(Debug)]
pub(crate) struct Admitted {
    bytes: Bytes,
    record_count: i32,
    log_append_time_ms: Option<i64>,
    origin: AppendOrigin,
    guard: Option<VerificationGuard>,
}

impl Admitted {
    /// The batch as it will stand in the log, but for offset and leader epoch.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same, decoded. It was valid when it was admitted, and only stays so.
    pub(crate) fn view(&self) -> Result<BatchView<'_>, AppendError> {
        Ok(BatchView::parse(&self.bytes)?)
    }

    /// What the log is to check of its producer.
    pub(crate) fn origin(&self) -> AppendOrigin {
        self.origin
    }

    pub(crate) fn record_count(&self) -> i32 {
        self.record_count
    }

    /// The time given to all records, if the topic says `LogAppendTime`.
    pub(crate) fn log_append_time_ms(&self) -> Option<i64> {
        self.log_append_time_ms
    }

    /// A batch that this broker built itself, for its own internal topics.
    pub(crate) fn own(bytes: Bytes, record_count: i32) -> Self {
        Self {
            bytes,
            record_count,
            log_append_time_ms: None,
            origin: AppendOrigin::Coordinator,
            guard: None,
        }
    }

    /// The coordinator of the batch's transaction was asked with this guard, and knows of
    /// the partition.
    #[must_use]
    pub(crate) fn verified(mut self, guard: VerificationGuard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Whether it is part of a transaction.
    pub(crate) fn is_transactional(&self) -> bool {
        BatchView::parse(&self.bytes).is_ok_and(|view| view.header().is_transactional())
    }

    pub(super) fn guard(&self) -> Option<VerificationGuard> {
        self.guard
    }
}

/// Checks `records`, as they came in a produce request at `now_ms`, by the topic's rules.
pub(crate) fn admit(
    records: &Bytes,
    settings: &TopicSettings,
    now_ms: i64,
) -> Result<Admitted, Refused> {
    let view = BatchView::parse(records)?;
    if view.bytes().len() != records.len() {
        return Err(Refused::NotOneBatch);
    }
    let max = usize::try_from(settings.max_message_bytes).unwrap_or(0);
    if records.len() > max {
        return Err(Refused::TooLarge {
            size: records.len(),
            max,
        });
    }
    view.check_crc()?;
    if view.header().base_offset != Offset::ZERO {
        return Err(Refused::BaseOffset(view.header().base_offset));
    }
    if view.header().is_transactional() && !view.header().has_producer_id() {
        return Err(Refused::NoProducer);
    }
    if view.header().timestamp_type() == BatchTimestampType::LogAppendTime {
        return Err(Refused::AppendTimes);
    }
    let options = ValidateOptions {
        require_keys: settings.cleanup_policy.compacts(),
        max_decompressed_bytes: max_decompressed_bytes(max),
        allow_control: false,
    };
    let summary = validate_records(&view, &options)?;
    let append_time = match settings.message_timestamp_type {
        TimestampType::LogAppendTime => Some(now_ms),
        TimestampType::CreateTime => {
            check_times(&summary, settings, now_ms)?;
            None
        }
    };
    let mut bytes = records.clone();
    if let Some((codec, level)) = wanted_codec(settings)
        && codec != view.header().compression()
    {
        bytes = recompress(&view, codec, level, options.max_decompressed_bytes)?;
        if bytes.len() > max {
            return Err(Refused::TooLarge {
                size: bytes.len(),
                max,
            });
        }
    }
    // What the log looks up by time rests on the header, so the header must be right.
    if append_time.is_some() || summary.max_timestamp != view.header().max_timestamp {
        let mut stamped = BytesMut::from(&bytes[..]);
        match append_time {
            Some(time) => set_log_append_time(&mut stamped, time)?,
            None => set_max_timestamp(&mut stamped, summary.max_timestamp)?,
        }
        bytes = stamped.freeze();
    }
    Ok(Admitted {
        bytes,
        record_count: summary.count,
        log_append_time_ms: append_time,
        origin: AppendOrigin::Client,
        guard: None,
    })
}

/// The records of a refused batch for which it was refused, by their places in it, and what
/// is wrong with each; the first [`MAX_RECORDS_NAMED`] of them (KIP-467). Only a batch that
/// is refused is read for this a second time.
pub(crate) fn records_at_fault(
    refused: &Refused,
    records: &Bytes,
    settings: &TopicSettings,
    now_ms: i64,
) -> Vec<(i32, String)> {
    match refused {
        Refused::Batch(BatchError::MissingKey { .. }) | Refused::Timestamp { .. } => {
            against_the_topics_rules(records, settings, now_ms).unwrap_or_default()
        }
        Refused::Batch(error) => {
            let index = error.record_index();
            Vec::from_iter(index.map(|index| (index, error.to_string())))
        }
        Refused::NotOneBatch
        | Refused::BaseOffset(_)
        | Refused::NoProducer
        | Refused::TooLarge { .. }
        | Refused::AppendTimes => Vec::new(),
    }
}

fn against_the_topics_rules(
    records: &Bytes,
    settings: &TopicSettings,
    now_ms: i64,
) -> Result<Vec<(i32, String)>, BatchError> {
    let view = BatchView::parse(records)?;
    let header = view.header();
    let max = usize::try_from(settings.max_message_bytes).unwrap_or(0);
    let payload = view.decompressed(max_decompressed_bytes(max))?;
    let has_window = settings.message_timestamp_type == TimestampType::CreateTime;
    let fault = |(index, record): (i32, Result<RecordRef<'_>, BatchError>)| {
        let record = record.ok()?;
        let timestamp = record.timestamp(header);
        if settings.cleanup_policy.compacts() && record.key.is_none() {
            Some((index, BatchError::MissingKey { index }.to_string()))
        } else if has_window && is_outside(timestamp, settings, now_ms) {
            let now = now_ms;
            Some((index, Refused::Timestamp { timestamp, now }.to_string()))
        } else {
            None
        }
    };
    Ok((0..)
        .zip(RecordRefs::new(header, &payload))
        .filter_map(fault)
        .take(MAX_RECORDS_NAMED)
        .collect())
}

fn max_decompressed_bytes(max_message_bytes: usize) -> usize {
    max_message_bytes
        .saturating_mul(MAX_DECOMPRESSION_RATIO)
        .max(MIN_DECOMPRESSED_BYTES)
}

/// The codec that the topic wants batches in, unless it leaves that to producers.
fn wanted_codec(settings: &TopicSettings) -> Option<(Compression, Option<i32>)> {
    Some(match settings.compression_type {
        CompressionType::Producer => return None,
        CompressionType::Uncompressed => (Compression::None, None),
        CompressionType::Gzip => {
            // -1 is the codec's own level.
            let level = settings.compression_gzip_level;
            (Compression::Gzip, (level >= 0).then_some(level))
        }
        CompressionType::Snappy => (Compression::Snappy, None),
        CompressionType::Lz4 => (Compression::Lz4, None),
        CompressionType::Zstd => (Compression::Zstd, Some(settings.compression_zstd_level)),
    })
}

/// Record times must lie within the topic's window around the broker's clock.
fn check_times(
    summary: &RecordsSummary,
    settings: &TopicSettings,
    now: i64,
) -> Result<(), Refused> {
    let refused = summary
        .min_timestamp
        .into_iter()
        .chain([summary.max_timestamp])
        .find(|&timestamp| is_outside(timestamp, settings, now));
    match refused {
        Some(timestamp) => Err(Refused::Timestamp { timestamp, now }),
        None => Ok(()),
    }
}

/// Whether a record's time is further from the broker's clock than the topic allows. A
/// record without a time is not.
fn is_outside(timestamp: i64, settings: &TopicSettings, now: i64) -> bool {
    timestamp != NO_TIMESTAMP
        && (now.saturating_sub(timestamp) > settings.message_timestamp_before_max_ms
            || timestamp.saturating_sub(now) > settings.message_timestamp_after_max_ms)
}
