//! What a broker does to each produced batch, and what clients do to make and read one.
//!
//! `cargo bench -p yuxi-protocol --bench record`

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use yuxi_protocol::{
    codec::{ApiVersion, StrBytes},
    frame::{LENGTH_PREFIX, RequestHead, request_limits},
    messages::{
        OutboundFrameLimits, ProduceRequest, encode_request,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    record::{
        BatchView, Compression, RecordBatchBuilder, ValidateOptions, batches, crc32c,
        iter::shared_batches, validate_records,
    },
};

const BATCH_BYTES: usize = 16 * 1024;
const RECORD_BYTES: usize = 100;
const FRAME_LIMIT: usize = 100 * 1024 * 1024;
const OPTIONS: ValidateOptions = ValidateOptions {
    require_keys: false,
    allow_control: false,
    max_decompressed_bytes: FRAME_LIMIT,
};

/// Text of a kind that compresses to about a third.
fn value(number: usize) -> Vec<u8> {
    let mut value = format!("{number:08} {:016x} ", number.wrapping_mul(0x9e37_79b9)).into_bytes();
    while value.len() < RECORD_BYTES {
        value.extend_from_slice(b"status=200 path=/index ");
    }
    value.truncate(RECORD_BYTES);
    value
}

fn batch(codec: Compression) -> Bytes {
    let mut builder = RecordBatchBuilder::with_capacity(BATCH_BYTES).compression(codec, None);
    for number in 0.. {
        let value = value(number);
        let bound = RecordBatchBuilder::record_size_bound(None, Some(&value), &[]);
        if builder.uncompressed_size() + bound > BATCH_BYTES {
            break;
        }
        builder
            .append(1_700_000_000_000 + number as i64, None, Some(&value), &[])
            .expect("16 KiB fit");
    }
    builder.build().expect("16 KiB can be built")
}

/// A request with a batch for each of so many partitions.
fn produce_request(partitions: i32, records: &Bytes) -> Bytes {
    let mut topic = TopicProduceData::default();
    topic.name = StrBytes::from("topic");
    topic.partition_data = (0..partitions)
        .map(|index| {
            let mut partition = PartitionProduceData::default();
            partition.index = index;
            partition.records = Some(records.clone());
            partition
        })
        .collect();
    let mut request = ProduceRequest::default();
    request.acks = -1;
    request.timeout_ms = 30_000;
    request.topic_data = vec![topic];
    let mut frame = BytesMut::new();
    encode_request(
        &mut frame,
        1,
        Some(StrBytes::from("bench")),
        &request,
        ApiVersion::new(10),
        OutboundFrameLimits::new(FRAME_LIMIT),
    )
    .expect("a produce request can be encoded");
    frame.freeze().slice(LENGTH_PREFIX..)
}

fn decode_and_check(frame: Bytes) -> i32 {
    let limits = request_limits(FRAME_LIMIT);
    let (head, body) = RequestHead::decode(frame, limits).expect("a head");
    let request: ProduceRequest = head.decode_body(body, limits).expect("a body");
    let mut records = 0;
    for topic in &request.topic_data {
        for partition in &topic.partition_data {
            for batch in batches(partition.records.as_deref().unwrap_or_default()) {
                let batch = batch.expect("a batch");
                batch.check_crc().expect("a checksum");
                records += validate_records(&batch, &OPTIONS).expect("records").count;
            }
        }
    }
    records
}

fn produce(c: &mut Criterion) {
    let mut group = c.benchmark_group("produce decode");
    for partitions in [1, 8, 64] {
        let frame = produce_request(partitions, &batch(Compression::None));
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(BenchmarkId::new("16 KiB batches", partitions), |b| {
            b.iter(|| decode_and_check(black_box(frame.clone())));
        });
    }
    for codec in Compression::ALL {
        let frame = produce_request(1, &batch(codec));
        group.throughput(Throughput::Bytes(BATCH_BYTES as u64));
        group.bench_function(BenchmarkId::new("codec", codec), |b| {
            b.iter(|| decode_and_check(black_box(frame.clone())));
        });
    }
    group.finish();
}

fn parts(c: &mut Criterion) {
    let bytes = batch(Compression::None);
    let view = BatchView::parse(&bytes).expect("a batch");
    let mut group = c.benchmark_group("16 KiB batch");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("crc32c", |b| b.iter(|| crc32c(black_box(&bytes))));
    group.bench_function("validate", |b| {
        b.iter(|| validate_records(black_box(&view), &OPTIONS));
    });
    group.bench_function("owned records", |b| {
        b.iter(|| {
            shared_batches(black_box(bytes.clone()))
                .flat_map(|batch| batch.expect("a batch").records(FRAME_LIMIT))
                .count()
        });
    });
    for codec in Compression::ALL {
        group.bench_function(BenchmarkId::new("build", codec), |b| {
            b.iter(|| batch(black_box(codec)));
        });
    }
    group.finish();
}

criterion_group!(benches, produce, parts);
criterion_main!(benches);
