//! Record batches as a whole: what is built is read back, bytes that Kafka wrote are
//! understood and reproduced, and no hostile bytes pass for a batch.

use bytes::Bytes;
use proptest::prelude::*;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId},
    record::{
        BatchError, BatchHeader, BatchView, Compression, RecordBatchBuilder, TimestampType,
        ValidateOptions,
        batch::{self, NO_TIMESTAMP, RECORD_BATCH_OVERHEAD},
        batches,
        compression::CompressionError,
        iter::{RecordRefs, shared_batches},
        recompress, validate_records,
    },
};

const MIB: usize = 1024 * 1024;
const PLAIN: ValidateOptions = ValidateOptions {
    require_keys: false,
    allow_control: false,
    max_decompressed_bytes: MIB,
};

type Header = (String, Option<Vec<u8>>);

#[derive(Clone, Debug)]
struct Given {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<Header>,
}

impl Given {
    fn append_to(&self, builder: &mut RecordBatchBuilder) {
        let headers: Vec<(&str, Option<&[u8]>)> = self
            .headers
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_deref()))
            .collect();
        builder
            .append(
                self.timestamp,
                self.key.as_deref(),
                self.value.as_deref(),
                &headers,
            )
            .unwrap();
    }
}

fn given() -> impl Strategy<Value = Given> {
    let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
    (
        prop_oneof![0..2_000_000_000_000_i64, any::<i64>()],
        bytes(),
        bytes(),
        proptest::collection::vec((".{0,12}", bytes()), 0..4),
    )
        .prop_map(|(timestamp, key, value, headers)| Given {
            timestamp,
            key,
            value,
            headers,
        })
}

fn codec() -> impl Strategy<Value = Compression> {
    proptest::sample::select(Compression::ALL.to_vec())
}

fn build(records: &[Given], codec: Compression) -> Bytes {
    let mut builder = RecordBatchBuilder::new().compression(codec, None);
    for record in records {
        record.append_to(&mut builder);
    }
    builder.build().unwrap()
}

/// One record without key at offset 0.
fn one(value: &[u8]) -> Vec<u8> {
    let mut builder = RecordBatchBuilder::new();
    builder.append(1_000, None, Some(value), &[]).unwrap();
    builder.build().unwrap().to_vec()
}

/// A batch of `count` records around `payload`, sealed as if it were sound.
fn sealed(count: i32, codec: Compression, payload: &[u8]) -> Vec<u8> {
    let mut bytes = one(b"");
    let mut header = BatchHeader::parse(&bytes).unwrap();
    header.batch_length = (49 + payload.len()) as i32;
    header.record_count = count;
    header.last_offset_delta = count - 1;
    header.attributes = header.attributes.with_compression(codec);
    bytes.truncate(RECORD_BATCH_OVERHEAD);
    bytes.extend_from_slice(payload);
    header.crc = batch::crc32c(&[&header.to_bytes()[21..], payload].concat());
    bytes[..RECORD_BATCH_OVERHEAD].copy_from_slice(&header.to_bytes());
    BatchView::parse(&bytes).unwrap().check_crc().unwrap();
    bytes
}

/// A record around `body`, which begins at the attributes.
fn record(body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 64);
    [&[body.len() as u8 * 2], body].concat()
}

proptest! {
    #[test]
    fn what_is_built_is_read_back(records in proptest::collection::vec(given(), 1..20), codec in codec()) {
        let bytes = build(&records, codec);
        let view = BatchView::parse(&bytes).unwrap();
        view.check_crc().unwrap();
        prop_assert_eq!(view.bytes().len(), bytes.len());
        let summary = validate_records(&view, &PLAIN).unwrap();
        prop_assert_eq!(summary.count as usize, records.len());
        let max = records.iter().map(|record| record.timestamp).max().unwrap();
        prop_assert_eq!(view.header().max_timestamp, max);
        if max > NO_TIMESTAMP {
            prop_assert_eq!(summary.max_timestamp, max);
            prop_assert_eq!(
                records[summary.offset_delta_of_max_timestamp as usize].timestamp,
                max
            );
        }

        let shared = shared_batches(bytes.clone()).next().unwrap().unwrap();
        let read: Vec<_> = shared.records(MIB).map(Result::unwrap).collect();
        let copied: Vec<_> = view.records(MIB).map(Result::unwrap).collect();
        prop_assert_eq!(&read, &copied);
        prop_assert_eq!(read.len(), records.len());
        for ((offset, given), read) in (0..).zip(&records).zip(&read) {
            prop_assert_eq!(read.offset, Offset::new(offset));
            prop_assert_eq!(read.timestamp, given.timestamp);
            prop_assert_eq!(read.key.as_deref(), given.key.as_deref());
            prop_assert_eq!(read.value.as_deref(), given.value.as_deref());
            let headers: Vec<Header> = read.headers.iter()
                .map(|header| (header.key.to_string(), header.value.as_ref().map(|v| v.to_vec())))
                .collect();
            prop_assert_eq!(&headers, &given.headers);
        }
    }

    #[test]
    fn another_codec_changes_nothing_but_the_payload(
        records in proptest::collection::vec(given(), 1..10),
        from in codec(),
        to in codec(),
    ) {
        let mut builder = RecordBatchBuilder::new()
            .compression(from, None)
            .placed_at(Offset::new(77), LeaderEpoch::new(3))
            .producer(ProducerId::new(9), ProducerEpoch::new(1), i32::MAX)
            .transactional();
        for record in &records {
            record.append_to(&mut builder);
        }
        let bytes = builder.build().unwrap();
        let before = BatchView::parse(&bytes).unwrap();
        let rewritten = recompress(&before, to, None, MIB).unwrap();
        let after = BatchView::parse(&rewritten).unwrap();
        after.check_crc().unwrap();
        prop_assert_eq!(after.header().compression(), to);
        prop_assert_eq!(
            BatchHeader {
                crc: before.header().crc,
                batch_length: before.header().batch_length,
                attributes: before.header().attributes,
                ..*after.header()
            },
            *before.header()
        );
        prop_assert_eq!(
            after.decompressed(MIB).unwrap(),
            before.decompressed(MIB).unwrap()
        );
    }

    #[test]
    fn a_size_bound_is_never_too_small(given in given()) {
        let headers: Vec<(&str, Option<&[u8]>)> = given.headers.iter()
            .map(|(key, value)| (key.as_str(), value.as_deref()))
            .collect();
        let bound = RecordBatchBuilder::record_size_bound(
            given.key.as_deref(), given.value.as_deref(), &headers);
        let size = build(&[given], Compression::None).len() - RECORD_BATCH_OVERHEAD;
        prop_assert!(size <= bound, "{} over {}", size, bound);
    }
}

#[test]
fn a_batch_that_a_kafka_broker_stored_is_reproduced_to_the_byte() {
    // One record "123" that a Kafka 0.11 broker stored in leader epoch 1 on 2017-08-20,
    // as kafka-python's and kio's tests have it, with the broker's checksum.
    let mut builder = RecordBatchBuilder::new().placed_at(Offset::ZERO, LeaderEpoch::new(1));
    builder
        .append(1_503_229_838_908, None, Some(b"123"), &[])
        .unwrap();
    let bytes = builder.build().unwrap();
    let header = *BatchView::parse(&bytes).unwrap().header();
    assert_eq!(header.crc, 51_946_096);
    assert_eq!(header.batch_length, 59);
    #[rustfmt::skip]
    let expected = [
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 59,
        0, 0, 0, 1,
        2,
        0x03, 0x18, 0xa2, 0x70,
        0, 0,
        0, 0, 0, 0,
        0x00, 0x00, 0x01, 0x5d, 0xff, 0x7b, 0x06, 0x3c,
        0x00, 0x00, 0x01, 0x5d, 0xff, 0x7b, 0x06, 0x3c,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff,
        0xff, 0xff, 0xff, 0xff,
        0, 0, 0, 1,
        0x12, 0, 0, 0, 0x01, 0x06, b'1', b'2', b'3', 0,
    ];
    assert_eq!(bytes[..], expected);
}

#[test]
fn every_field_of_a_batch_has_its_place() {
    let mut builder = RecordBatchBuilder::new()
        .placed_at(Offset::new(0x0102), LeaderEpoch::new(5))
        .producer(ProducerId::new(0x1122), ProducerEpoch::new(0x33), 0x44)
        .transactional()
        .control()
        .log_append_time(3_000);
    builder
        .append(1_000, Some(b"k"), None, &[("h", None), ("", Some(b"x"))])
        .unwrap();
    builder.append(1_100, None, Some(b""), &[]).unwrap();
    let bytes = builder.build().unwrap();
    #[rustfmt::skip]
    let checksummed = [
        0, 0b11_1000,
        0, 0, 0, 1,
        0, 0, 0, 0, 0, 0, 0x03, 0xe8,
        0, 0, 0, 0, 0, 0, 0x0b, 0xb8,
        0, 0, 0, 0, 0, 0, 0x11, 0x22,
        0, 0x33,
        0, 0, 0, 0x44,
        0, 0, 0, 2,
        // attributes, timestamp delta, offset delta, "k", null, 2 headers
        26, 0, 0, 0, 2, b'k', 1, 4, 2, b'h', 1, 0, 2, b'x',
        // 100 ms later, offset 1, null key, empty value
        14, 0, 0xc8, 0x01, 2, 1, 0, 0,
    ];
    assert_eq!(bytes[21..], checksummed);
    let view = BatchView::parse(&bytes).unwrap();
    view.check_crc().unwrap();
    let header = view.header();
    assert!(header.is_control() && header.is_transactional() && header.has_producer_id());
    assert_eq!(header.last_sequence(), 0x45);
    let read: Vec<_> = view.records(MIB).map(Result::unwrap).collect();
    assert_eq!(read[1].offset, Offset::new(0x0103));
    assert_eq!(read[1].timestamp, 3_000);
    assert_eq!(read[1].timestamp_type, TimestampType::LogAppendTime);
}

#[test]
fn records_that_do_not_add_up_are_refused() {
    type Case = (&'static str, i32, Vec<u8>, BatchError);
    let good = || record(&[0, 0, 0, 1, 1, 0]);
    let invalid = |index, what| BatchError::InvalidRecord { index, what };
    let cases: Vec<Case> = vec![
        (
            "one fewer than counted",
            2,
            good(),
            invalid(1, "its length is not a varint"),
        ),
        (
            "more than counted",
            1,
            [good(), good()].concat(),
            BatchError::TrailingBytes(7),
        ),
        (
            "7fffffff records counted",
            i32::MAX,
            good(),
            invalid(1, "its length is not a varint"),
        ),
        (
            "the same offset twice",
            2,
            [good(), good()].concat(),
            BatchError::WrongOffsetDelta { index: 1, delta: 0 },
        ),
        (
            "an offset left out",
            2,
            [good(), record(&[0, 0, 4, 1, 1, 0])].concat(),
            BatchError::WrongOffsetDelta { index: 1, delta: 2 },
        ),
        (
            "a negative offset delta",
            1,
            record(&[0, 0, 1, 1, 1, 0]),
            BatchError::WrongOffsetDelta {
                index: 0,
                delta: -1,
            },
        ),
        (
            "negative length",
            1,
            vec![1],
            invalid(0, "its length is negative"),
        ),
        (
            "length 7fffffff",
            1,
            vec![0xfe, 0xff, 0xff, 0xff, 0x0f, 0],
            invalid(0, "it is longer than the rest of the batch"),
        ),
        (
            "length of six bytes",
            1,
            vec![0x80, 0x80, 0x80, 0x80, 0x80, 0],
            invalid(0, "its length is not a varint"),
        ),
        ("length 0", 1, vec![0], invalid(0, "it has no attributes")),
        (
            "timestamp delta of eleven bytes",
            1,
            record(&[
                0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0, 0, 1, 1, 0,
            ]),
            invalid(0, "its timestamp delta is not a varint"),
        ),
        (
            "offset delta of six bytes",
            1,
            record(&[0, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0, 1, 1, 0]),
            invalid(0, "its offset delta is not a varint"),
        ),
        (
            "key of 7fffffff bytes",
            1,
            record(&[0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0x0f, 1, 0]),
            invalid(0, "its key runs past its end"),
        ),
        (
            "key of -2 bytes",
            1,
            record(&[0, 0, 0, 3, 1, 0]),
            invalid(0, "a length is below -1"),
        ),
        (
            "value that reaches into the next record",
            2,
            [record(&[0, 0, 0, 1, 4, 0]), record(&[0, 0, 2, 1, 1, 0])].concat(),
            invalid(0, "its value runs past its end"),
        ),
        (
            "no header count",
            1,
            record(&[0, 0, 0, 1, 1]),
            invalid(0, "its header count is not a varint"),
        ),
        (
            "header count -1",
            1,
            record(&[0, 0, 0, 1, 1, 1]),
            invalid(0, "its header count is negative"),
        ),
        (
            "7fffffff headers",
            1,
            record(&[0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f]),
            invalid(0, "a length is not a varint"),
        ),
        (
            "null header key",
            1,
            record(&[0, 0, 0, 1, 1, 2, 1, 1]),
            invalid(0, "a header's key is null"),
        ),
        (
            "header value past the end",
            1,
            record(&[0, 0, 0, 1, 1, 2, 0, 2]),
            invalid(0, "a header's value runs past its end"),
        ),
        (
            "a byte after the last field",
            1,
            record(&[0, 0, 0, 1, 1, 0, 0]),
            invalid(0, "its fields are shorter than its length"),
        ),
    ];
    for codec in Compression::ALL {
        for (name, count, payload, expected) in &cases {
            let mut stored = Vec::new();
            codec.compress(None, payload, &mut stored).unwrap();
            let bytes = sealed(*count, codec, &stored);
            let view = BatchView::parse(&bytes).unwrap();
            assert_eq!(
                validate_records(&view, &PLAIN).as_ref(),
                Err(expected),
                "{codec}: {name}"
            );
            assert_eq!(expected.error_code(), ErrorCode::InvalidRecord, "{name}");
            // The iterator of owned records ends after the same error.
            assert!(view.records(MIB).skip_while(Result::is_ok).count() <= 1);
        }
    }
}

#[test]
fn a_batch_that_a_client_may_not_send_is_refused() {
    let built = |change: fn(RecordBatchBuilder) -> RecordBatchBuilder| {
        let mut builder = change(RecordBatchBuilder::new());
        builder.append(1, Some(b"k"), None, &[]).unwrap();
        builder.append(1, None, None, &[]).unwrap();
        builder.build().unwrap()
    };
    let check = |bytes: &[u8], options: &ValidateOptions| {
        validate_records(&BatchView::parse(bytes).unwrap(), options).map(|summary| summary.count)
    };
    let plain = built(|builder| builder);
    let keys = ValidateOptions {
        require_keys: true,
        ..PLAIN
    };
    assert_eq!(check(&plain, &PLAIN), Ok(2));
    assert_eq!(
        check(&plain, &keys),
        Err(BatchError::MissingKey { index: 1 })
    );

    let control = built(RecordBatchBuilder::control);
    assert_eq!(check(&control, &PLAIN), Err(BatchError::ControlBatch));
    let from_broker = ValidateOptions {
        allow_control: true,
        ..PLAIN
    };
    assert_eq!(check(&control, &from_broker), Ok(2));

    let unsequenced =
        built(|builder| builder.producer(ProducerId::new(4), ProducerEpoch::new(0), -1));
    assert_eq!(
        check(&unsequenced, &PLAIN),
        Err(BatchError::MissingSequence { producer_id: 4 })
    );

    let empty = RecordBatchBuilder::new().build().unwrap();
    assert_eq!(check(&empty, &PLAIN), Err(BatchError::NoRecords));

    let mut miscounted = plain.to_vec();
    miscounted[26] = 5;
    assert_eq!(
        check(&miscounted, &PLAIN),
        Err(BatchError::InvalidCounts {
            record_count: 2,
            last_offset_delta: 5
        })
    );
}

#[test]
fn a_decompression_bomb_is_refused_whatever_the_codec() {
    let value = vec![0; 20 * MIB];
    let mut record = RecordBatchBuilder::new();
    record.append(0, None, Some(&value), &[]).unwrap();
    let plain = record.build().unwrap();
    for codec in [
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ] {
        let view = BatchView::parse(&plain).unwrap();
        let bomb = recompress(&view, codec, None, usize::MAX).unwrap();
        assert!(bomb.len() < MIB);
        let view = BatchView::parse(&bomb).unwrap();
        let expected = BatchError::Compression {
            codec,
            error: CompressionError::TooLarge { cap: MIB },
        };
        assert_eq!(expected.error_code(), ErrorCode::MessageTooLarge);
        assert_eq!(validate_records(&view, &PLAIN), Err(expected.clone()));
        assert_eq!(view.records(MIB).next(), Some(Err(expected.clone())));
        assert_eq!(
            recompress(&view, Compression::None, None, MIB),
            Err(expected)
        );
    }
}

#[test]
fn a_payload_that_is_no_such_codec_is_corrupt() {
    for codec in [
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ] {
        let bytes = sealed(1, codec, &[0xff; 40]);
        let error = validate_records(&BatchView::parse(&bytes).unwrap(), &PLAIN).unwrap_err();
        assert_eq!(
            error.error_code(),
            ErrorCode::CorruptMessage,
            "{codec}: {error}"
        );
    }
}

#[test]
fn an_answer_that_was_cut_off_yields_its_whole_batches() {
    let bytes = [one(b"first"), one(b"second"), one(b"third")].concat();
    for cut in 1..one(b"third").len() {
        let kept = &bytes[..bytes.len() - cut];
        let found: Vec<_> = batches(kept).collect();
        assert_eq!(found.len(), 3);
        assert!(found[..2].iter().all(Result::is_ok));
        assert!(matches!(found[2], Err(BatchError::Truncated { .. })));
        let shared: Vec<_> = shared_batches(Bytes::copy_from_slice(kept)).collect();
        assert_eq!(shared.iter().filter(|batch| batch.is_ok()).count(), 2);
        assert!(matches!(shared[2], Err(BatchError::Truncated { .. })));
    }
    assert_eq!(batches(&bytes).count(), 3);
    assert_eq!(batches(&[]).count(), 0);
}

#[test]
fn an_uncompressed_batch_is_read_without_copying_it() {
    let bytes = Bytes::from(one(b"shared"));
    let range = bytes.as_ptr_range();
    let batch = shared_batches(bytes.clone()).next().unwrap().unwrap();
    let record = batch.records(MIB).next().unwrap().unwrap();
    let value = record.value.unwrap();
    assert_eq!(value, "shared");
    assert!(range.contains(&value.as_ptr()));
}

#[test]
fn compaction_can_leave_gaps_and_keeps_the_order() {
    let mut builder = RecordBatchBuilder::new().placed_at(Offset::new(100), LeaderEpoch::new(0));
    builder
        .append_at(Offset::new(103), 1, Some(b"a"), None, &[])
        .unwrap();
    for wrong in [99, 100, 103, 100 + i64::from(i32::MAX) + 1] {
        assert!(
            builder
                .append_at(Offset::new(wrong), 1, None, None, &[])
                .is_err(),
            "{wrong}"
        );
    }
    builder
        .append_at(Offset::new(110), 1, Some(b"b"), None, &[])
        .unwrap();
    let bytes = builder.build().unwrap();
    let view = BatchView::parse(&bytes).unwrap();
    assert_eq!(view.header().last_offset(), Offset::new(110));
    let offsets: Vec<i64> = RecordRefs::new(view.header(), view.payload())
        .map(|record| record.unwrap().offset(view.header()).value())
        .collect();
    assert_eq!(offsets, [103, 110]);
}

#[test]
fn a_header_key_that_is_no_text_is_read_as_kafkas_java_reads_it() {
    let bytes = sealed(
        1,
        Compression::None,
        &record(&[0, 0, 0, 1, 1, 2, 4, b'a', 0xff, 1]),
    );
    let view = BatchView::parse(&bytes).unwrap();
    validate_records(&view, &PLAIN).unwrap();
    let record = view.records(MIB).next().unwrap().unwrap();
    assert_eq!(record.headers[0].key.as_str(), "a\u{fffd}");
}

#[test]
fn times_that_were_not_given_are_told_from_those_that_were() {
    let mut builder = RecordBatchBuilder::new();
    for timestamp in [NO_TIMESTAMP, 500, 300, 500] {
        builder.append(timestamp, None, None, &[]).unwrap();
    }
    let bytes = builder.build().unwrap();
    let summary = validate_records(&BatchView::parse(&bytes).unwrap(), &PLAIN).unwrap();
    assert_eq!(summary.max_timestamp, 500);
    assert_eq!(summary.offset_delta_of_max_timestamp, 1);
    assert_eq!(summary.min_timestamp, Some(300));

    let mut corrected = bytes.to_vec();
    batch::set_max_timestamp(&mut corrected, 400).unwrap();
    let view = BatchView::parse(&corrected).unwrap();
    view.check_crc().unwrap();
    assert_eq!(view.header().max_timestamp, 400);
    assert_eq!(view.header().timestamp_type(), TimestampType::CreateTime);
}
