//! What the log costs: an append beside a bare `pwrite` of the same bytes, and with a
//! producer's sequences and transactions, a truncation, a look-up, a recovery scan, and a
//! start with many logs. `cargo bench -p yuxi-log`.
//!
//! The directory is `YUXI_BENCH_DIR` or the system's temporary one. The data fits into
//! the page cache, so this measures the program and not the disk.

use std::{
    fs::File,
    hint::black_box,
    io::IoSlice,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use yuxi_log::{AppendOrigin, Log, LogConfig, Opening};
use yuxi_protocol::{
    ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId},
    record::{BatchView, RecordBatchBuilder},
};

const NOW: i64 = 1_700_000_000_000;
const SEGMENT_BYTES: u64 = 1 << 30;

fn directory() -> tempfile::TempDir {
    match std::env::var_os("YUXI_BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(PathBuf::from(dir)).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

fn batch_of_16_kib() -> bytes::Bytes {
    filled(RecordBatchBuilder::new())
}

fn filled(mut builder: RecordBatchBuilder) -> bytes::Bytes {
    let value = [b'v'; 100];
    while builder.uncompressed_size() < 16 * 1024 - 110 {
        builder.append(NOW, None, Some(&value), &[]).unwrap();
    }
    builder.build().unwrap()
}

fn opening(recovery_point: Offset, clean_shutdown: bool) -> Opening {
    Opening {
        recovery_point,
        clean_shutdown,
        log_start_offset: Offset::ZERO,
        topic_id: None,
        now_ms: NOW,
    }
}

fn open(dir: &Path, opening: Opening) -> Log {
    Log::open(dir, LogConfig::default(), opening).unwrap()
}

fn append_checked(log: &mut Log, batch: &[u8]) {
    let view = BatchView::parse(batch).unwrap();
    view.check_crc().unwrap();
    let appended = log.append_as_leader(&[view], LeaderEpoch::new(0), AppendOrigin::Client, NOW);
    black_box(appended.unwrap());
}

/// Both rewrite files of one segment's size, so that neither has the page cache to
/// itself: each iteration's file is new, and goes before it is full.
fn append(criterion: &mut Criterion) {
    let batch = batch_of_16_kib();
    let mut group = criterion.benchmark_group("append of 16 KiB batches");
    group.throughput(Throughput::Bytes(batch.len() as u64));
    group.sample_size(20);
    let per_file = (SEGMENT_BYTES / 4) / batch.len() as u64;

    group.bench_function("bare pwrite", |bencher| {
        bencher.iter_custom(|iterations| {
            let dir = directory();
            let mut spent = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let file = File::create(dir.path().join("file")).unwrap();
                let count = left.min(per_file);
                let started = Instant::now();
                for at in 0..count {
                    let parts = [IoSlice::new(&batch)];
                    let position = at * batch.len() as u64;
                    let written = rustix::io::pwritev(&file, &parts, position).unwrap();
                    assert_eq!(written, batch.len());
                }
                spent += started.elapsed();
                left -= count;
                file.set_len(0).unwrap();
            }
            spent
        });
    });
    group.bench_function("log, with the checksum checked", |bencher| {
        bencher.iter_custom(|iterations| {
            let dir = directory();
            let mut spent = Duration::ZERO;
            let mut left = iterations;
            let mut number = 0;
            while left > 0 {
                let path = dir.path().join(format!("t-{number}"));
                let mut log = open(&path, opening(Offset::ZERO, true));
                number += 1;
                let count = left.min(per_file);
                let started = Instant::now();
                for _ in 0..count {
                    append_checked(&mut log, &batch);
                }
                spent += started.elapsed();
                left -= count;
                drop(log);
                std::fs::remove_dir_all(&path).unwrap();
            }
            spent
        });
    });
    group.finish();
}

/// What it costs to know the producers: the same batches of nobody, of an idempotent
/// producer, and of a transaction.
fn append_of_producers(criterion: &mut Criterion) {
    const BATCHES: usize = 1024;
    let mut group = criterion.benchmark_group("append of 16 KiB batches, all different");
    group.throughput(Throughput::Bytes(batch_of_16_kib().len() as u64));
    group.sample_size(20);
    for name in ["nobody's", "idempotent", "transactional"] {
        let mut sequence = 0;
        let batches: Vec<_> = (0..BATCHES)
            .map(|_| {
                let mut builder = RecordBatchBuilder::new();
                if name != "nobody's" {
                    builder = builder.producer(ProducerId::new(7), ProducerEpoch::new(0), sequence);
                }
                if name == "transactional" {
                    builder = builder.transactional();
                }
                let batch = filled(builder);
                sequence += BatchView::parse(&batch).unwrap().header().record_count;
                batch
            })
            .collect();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                let mut left = iterations as usize;
                while left > 0 {
                    // A new log for each round, or the sequences would be repetitions.
                    let dir = directory();
                    let mut log = open(&dir.path().join("t-0"), opening(Offset::ZERO, true));
                    let count = left.min(BATCHES);
                    let started = Instant::now();
                    for batch in &batches[..count] {
                        append_checked(&mut log, batch);
                    }
                    spent += started.elapsed();
                    left -= count;
                }
                spent
            });
        });
    }
    group.finish();
}

/// What a follower does for each partition whose new leader lacks its last batch.
fn truncate(criterion: &mut Criterion) {
    const BATCHES: i32 = 20_000;
    let dir = directory();
    let mut log = open(&dir.path().join("t-0"), opening(Offset::ZERO, true));
    let batch = |sequence| {
        let id = ProducerId::new(7);
        let mut builder = RecordBatchBuilder::new().producer(id, ProducerEpoch::new(0), sequence);
        builder.append(NOW, None, Some(&[b'v'; 100]), &[]).unwrap();
        builder.build().unwrap()
    };
    for sequence in 0..BATCHES {
        append_checked(&mut log, &batch(sequence));
    }
    let last = batch(BATCHES);
    let mut group = criterion.benchmark_group("truncation");
    group.sample_size(10);
    group.bench_function("of the last of 20,000 batches of a producer", |bencher| {
        bencher.iter(|| {
            append_checked(&mut log, &last);
            log.truncate_to(Offset::new(BATCHES.into()), NOW).unwrap();
        });
    });
    group.finish();
}

/// A log of one full segment, closed.
fn full_segment(dir: &Path) -> Log {
    let batch = batch_of_16_kib();
    let mut log = open(dir, opening(Offset::ZERO, true));
    let count = SEGMENT_BYTES / batch.len() as u64 - 1;
    for _ in 0..count {
        append_checked(&mut log, &batch);
    }
    log.close().unwrap();
    log
}

fn read_and_recover(criterion: &mut Criterion) {
    let dir = directory();
    let path = dir.path().join("t-0");
    let log = full_segment(&path);
    let end = log.log_end_offset();
    let size = log.size_bytes();

    let mut offset = 0_i64;
    let mut next = move || {
        offset = (offset + 7_919_993) % end.value();
        Offset::new(offset)
    };
    criterion.bench_function(
        "index lookup of any offset in 1 GiB, and 64 KiB from there",
        |bencher| {
            bencher.iter(|| black_box(log.read(next(), 65_536, true, end).unwrap()));
        },
    );
    drop(log);

    let mut group = criterion.benchmark_group("recovery");
    group.throughput(Throughput::Bytes(size));
    group.sample_size(10);
    group.bench_function("scan of a 1 GiB segment", |bencher| {
        bencher.iter(|| {
            let log = open(&path, opening(Offset::ZERO, false));
            assert_eq!(log.log_end_offset(), end);
        });
    });
    group.finish();
}

fn start(criterion: &mut Criterion) {
    const LOGS: u64 = 1000;
    let dir = directory();
    let batch = batch_of_16_kib();
    let mut points = Vec::new();
    for number in 0..LOGS {
        let mut log = open(
            &dir.path().join(format!("t-{number}")),
            opening(Offset::ZERO, true),
        );
        for _ in 0..3 {
            append_checked(&mut log, &batch);
        }
        log.close().unwrap();
        points.push(log.recovery_point());
    }
    let mut group = criterion.benchmark_group("start");
    group.throughput(Throughput::Elements(LOGS));
    group.sample_size(10);
    group.bench_function("1,000 logs after a clean shutdown", |bencher| {
        bencher.iter(|| {
            let logs: Vec<_> = points
                .iter()
                .enumerate()
                .map(|(number, point)| {
                    open(
                        &dir.path().join(format!("t-{number}")),
                        opening(*point, true),
                    )
                })
                .collect();
            black_box(logs)
        });
    });
    group.finish();
}

criterion_group!(
    benches,
    append,
    append_of_producers,
    truncate,
    read_and_recover,
    start
);
criterion_main!(benches);
