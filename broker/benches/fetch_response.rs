//! What building a Fetch answer costs: heads are encoded, records are only pointed at, so
//! that the time must not grow with their bytes.
//! `cargo bench -p yuxi-broker --features bench --bench fetch_response`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use yuxi_broker::bench::FetchAnswer;
use yuxi_log::{AppendOrigin, FileSlice, Log, LogConfig, Opening};
use yuxi_protocol::{
    ids::{LeaderEpoch, Offset},
    record::{BatchView, RecordBatchBuilder},
};

const NEWEST_BY_NAME: i16 = 12;
const NEWEST: i16 = 17;

/// `batches` batches of 16 KiB from a log.
fn records(log: &mut Log, batches: usize) -> FileSlice {
    let value = [b'v'; 100];
    let mut builder = RecordBatchBuilder::new();
    while builder.uncompressed_size() < 16 * 1024 - 110 {
        builder.append(1, None, Some(&value), &[]).unwrap();
    }
    let batch = builder.build().unwrap();
    let start = log.log_end_offset();
    for _ in 0..batches {
        let view = BatchView::parse(&batch).unwrap();
        log.append_as_leader(&[view], LeaderEpoch::new(0), AppendOrigin::Client, 1)
            .unwrap();
    }
    let end = log.log_end_offset();
    let read = log.read(start, batches * batch.len(), true, end).unwrap();
    read.slice.unwrap()
}

fn fetch_response(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let opening = Opening {
        recovery_point: Offset::ZERO,
        clean_shutdown: true,
        log_start_offset: Offset::ZERO,
        topic_id: None,
        now_ms: 0,
    };
    let path = directory.path().join("bench-0");
    let mut log = Log::open(&path, LogConfig::default(), opening).unwrap();

    let mut group = criterion.benchmark_group("fetch response");
    for (partitions, batches) in [(1, 1), (1, 64), (10, 1), (100, 1), (1000, 1)] {
        let answer = FetchAnswer::new(partitions, records(&mut log, batches));
        group.throughput(Throughput::Elements(partitions as u64));
        for version in [NEWEST_BY_NAME, NEWEST] {
            let name = format!("version {version}, {partitions} partitions");
            let id = BenchmarkId::new(name, format!("{} KiB each", batches * 16));
            group.bench_function(id, |bencher| {
                bencher.iter(|| black_box(&answer).encode(version).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, fetch_response);
criterion_main!(benches);
