//! Batches and logs for tests.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use yuxi_protocol::{
    ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId},
    record::{BatchView, batch::batches, builder::RecordBatchBuilder},
};

use crate::{AppendError, AppendInfo, AppendOrigin, Log, LogConfig, LogError, Opening};

pub(super) const NOW: i64 = 1_700_000_000_000;

pub(super) fn offset(value: i64) -> Offset {
    Offset::new(value)
}

pub(super) fn epoch(value: i32) -> LeaderEpoch {
    LeaderEpoch::new(value)
}

/// A batch of records with these timestamps and values of `value_bytes`.
pub(super) fn batch(timestamps: &[i64], value_bytes: usize) -> Bytes {
    fill(RecordBatchBuilder::new(), timestamps, value_bytes)
}

pub(super) fn fill(
    mut builder: RecordBatchBuilder,
    timestamps: &[i64],
    value_bytes: usize,
) -> Bytes {
    let value = vec![b'v'; value_bytes];
    for &timestamp in timestamps {
        builder
            .append(timestamp, Some(b"key"), Some(&value), &[])
            .unwrap();
    }
    builder.build().unwrap()
}

/// A batch of `count` records of an idempotent producer.
pub(super) fn produced(id: i64, epoch: i16, sequence: i32, count: usize) -> Bytes {
    let builder = RecordBatchBuilder::new().producer(
        ProducerId::new(id),
        ProducerEpoch::new(epoch),
        sequence,
    );
    fill(builder, &vec![NOW; count], 10)
}

pub(super) fn opening() -> Opening {
    Opening {
        recovery_point: Offset::ZERO,
        clean_shutdown: false,
        log_start_offset: Offset::ZERO,
        topic_id: None,
        now_ms: NOW,
    }
}

/// Small segments and close index entries, so that little data covers much.
pub(super) fn small() -> LogConfig {
    LogConfig {
        segment_bytes: 10_000,
        index_interval_bytes: 500,
        ..LogConfig::default()
    }
}

pub(super) struct Fixture {
    _temporary: tempfile::TempDir,
    pub(super) dir: PathBuf,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("topic-0");
        Self {
            _temporary: temporary,
            dir,
        }
    }

    pub(super) fn open(&self, config: LogConfig) -> Log {
        self.try_open(config, opening()).unwrap()
    }

    pub(super) fn try_open(&self, config: LogConfig, opening: Opening) -> Result<Log, LogError> {
        Log::open(&self.dir, config, opening)
    }

    /// As after a shutdown that closed `log`.
    pub(super) fn reopen_clean(&self, mut log: Log) -> Log {
        log.close().unwrap();
        let clean = Opening {
            recovery_point: log.recovery_point(),
            clean_shutdown: true,
            log_start_offset: log.log_start_offset(),
            ..opening()
        };
        let config = log.config().clone();
        drop(log);
        self.try_open(config, clean).unwrap()
    }

    /// As after `kill -9`: what was written to files is there, what was in memory not.
    pub(super) fn reopen_crashed(&self, log: Log) -> Result<Log, LogError> {
        let crashed = Opening {
            recovery_point: log.recovery_point(),
            clean_shutdown: false,
            log_start_offset: log.log_start_offset(),
            ..opening()
        };
        let config = log.config().clone();
        drop(log);
        self.try_open(config, crashed)
    }

    pub(super) fn file(&self, base_offset: i64, suffix: &str) -> PathBuf {
        crate::file_names::path(&self.dir, offset(base_offset), suffix)
    }
}

pub(super) fn append(log: &mut Log, batch: &[u8]) -> AppendInfo {
    try_append(log, batch, 0).unwrap()
}

pub(super) fn try_append(log: &mut Log, batch: &[u8], at: i32) -> Result<AppendInfo, AppendError> {
    let view = BatchView::parse(batch).unwrap();
    log.append_as_leader(&[view], epoch(at), AppendOrigin::Client, NOW)
}

pub(super) fn append_many(log: &mut Log, count: usize) {
    for _ in 0..count {
        append(log, &batch(&[NOW], 100));
    }
}

/// Everything from `from` on, read piece by piece: base offset, last offset and bytes.
pub(super) fn read_all(log: &Log, from: Offset, max_bytes: usize) -> Vec<(i64, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut next = from;
    while next < log.log_end_offset() {
        let read = log
            .read(next, max_bytes, true, log.log_end_offset())
            .unwrap();
        let Some(slice) = read.slice else { break };
        for batch in batches(slice.as_bytes()) {
            let batch = batch.unwrap();
            batch.check_crc().unwrap();
            let header = batch.header();
            found.push((
                header.base_offset.value(),
                header.last_offset().value(),
                batch.bytes().to_vec(),
            ));
            next = header.next_offset();
        }
    }
    found
}

pub(super) fn offsets(log: &Log) -> Vec<i64> {
    let all = read_all(log, log.log_start_offset(), 3000);
    all.into_iter().map(|(base, _, _)| base).collect()
}

pub(super) fn file_len(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}
