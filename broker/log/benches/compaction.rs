//! What compaction costs: a log of 1 KiB records with unique keys, of which nothing can go,
//! read for its keys and written anew by one thread. `cargo bench -p yuxi-log --bench
//! compaction`.
//!
//! The directory is `YUXI_BENCH_DIR` or the system's temporary one. The data fits into the
//! page cache, but every segment is forced to disk.

use std::{hint::black_box, ops::ControlFlow, path::PathBuf};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use yuxi_log::{AppendOrigin, CleanupPolicy, KeyMemory, Log, LogConfig, Opening};
use yuxi_protocol::{
    ids::{LeaderEpoch, Offset},
    record::{BatchView, RecordBatchBuilder},
};

const NOW: i64 = 1_700_000_000_000;
const LOG_BYTES: u64 = 512 << 20;
const MEMORY: KeyMemory = KeyMemory {
    max_bytes: 128 << 20,
    load_factor: 0.9,
};

fn directory() -> tempfile::TempDir {
    match std::env::var_os("YUXI_BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(PathBuf::from(dir)).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

fn filled(dir: &std::path::Path) -> Log {
    let config = LogConfig {
        cleanup_policy: CleanupPolicy::Compact,
        segment_bytes: 128 << 20,
        file_delete_delay_ms: 0,
        ..LogConfig::default()
    };
    let opening = Opening {
        recovery_point: Offset::ZERO,
        clean_shutdown: true,
        log_start_offset: Offset::ZERO,
        topic_id: None,
        now_ms: NOW,
    };
    let mut log = Log::open(dir, config, opening).unwrap();
    let mut number = 0_u64;
    while log.size_bytes() < LOG_BYTES {
        let mut builder = RecordBatchBuilder::new();
        while builder.uncompressed_size() < 15 << 10 {
            let key = format!("customer-{number:016}");
            let value = vec![number as u8; 1024 - key.len() - 12];
            builder
                .append(NOW, Some(key.as_bytes()), Some(&value), &[])
                .unwrap();
            number += 1;
        }
        let batch = builder.build().unwrap();
        let view = BatchView::parse(&batch).unwrap();
        log.append_as_leader(&[view], LeaderEpoch::new(0), AppendOrigin::Client, NOW)
            .unwrap();
    }
    log.roll(NOW).unwrap();
    log
}

fn clean(log: &mut Log) {
    let mut pace = |_| ControlFlow::Continue(());
    let end = log.log_end_offset();
    log.set_cleaned_to(Offset::ZERO);
    let plan = log.plan_compaction(end, NOW).unwrap();
    let mut cleaning = plan.unwrap().index_keys(MEMORY, &mut pace).unwrap();
    while let Some(mut cleaned) = cleaning.clean_next(&mut pace).unwrap() {
        assert!(log.begin_swap(&mut cleaned).unwrap());
        cleaned.sync_names().unwrap();
        assert!(log.finish_swap(&mut cleaned, NOW).unwrap());
    }
    assert_eq!(cleaning.cleaned_to(), end);
    log.remove_deleted(NOW + 1);
    black_box(cleaning.stats());
}

fn unique_keys(criterion: &mut Criterion) {
    let dir = directory();
    let mut log = filled(&dir.path().join("t-0"));
    let mut group = criterion.benchmark_group("compaction");
    group.throughput(Throughput::Bytes(log.size_bytes()));
    group.sample_size(10);
    group.bench_function("1 KiB records with unique keys", |bencher| {
        bencher.iter(|| clean(&mut log));
    });
    group.finish();
}

criterion_group!(benches, unique_keys);
criterion_main!(benches);
