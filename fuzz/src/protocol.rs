//! The bodies for `yuxi-protocol`, and inputs to begin with. A body panics only if the
//! crate breaks a promise: that nothing a peer sends makes it panic or allocate without
//! bound, and that what passes its checks is consistent.

use bytes::{Bytes, BytesMut};
use yuxi_protocol::{
    codec::{ApiVersion, StrBytes},
    frame::{
        Known, LENGTH_PREFIX, RequestHead, decode_response, encode_response, request_limits,
        response_limits,
    },
    ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId},
    messages::{self, KafkaRequest, KafkaResponse, OutboundFrameLimits, RequestResponsePair},
    record::{
        BatchView, Compression, RecordBatchBuilder, ValidateOptions, batch::set_log_append_time,
        batches, iter::shared_batches, recompress, validate_records,
    },
};

/// Frames are at most this long in fuzzing.
const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// Payloads may unpack to this much in fuzzing.
const MAX_DECOMPRESSED_BYTES: usize = 256 * 1024;

/// The dispatch over the APIs that the broker serves, and inputs to begin with for each.
macro_rules! for_each_api {
    ($($request:ident)*) => {
        fn decode_again(head: &RequestHead, body: Bytes) {
            match head.api_key {
                $(key if key == messages::$request::API_KEY.value() => {
                    request_again::<messages::$request>(head, body);
                })*
                _ => {}
            }
        }

        fn answer_of(api_key: i16, version: i16, frame: Bytes) {
            match api_key {
                $(key if key == messages::$request::API_KEY.value() => {
                    answer_again::<<messages::$request as RequestResponsePair>::Response>(
                        version, frame,
                    );
                })*
                _ => {}
            }
        }

        /// A plain request of every API in every version, without the length.
        pub fn requests() -> Vec<Vec<u8>> {
            let mut frames = Vec::new();
            $(encode_versions::<messages::$request>(&mut frames);)*
            frames
        }

        /// An empty answer of every API in every version, behind API key and version.
        pub fn answers() -> Vec<Vec<u8>> {
            let mut frames = Vec::new();
            $(answer_versions::<<messages::$request as RequestResponsePair>::Response>(
                &mut frames,
            );)*
            frames
        }
    };
}

for_each_api! {
    ProduceRequest FetchRequest ListOffsetsRequest MetadataRequest OffsetCommitRequest
    OffsetFetchRequest FindCoordinatorRequest JoinGroupRequest HeartbeatRequest
    LeaveGroupRequest SyncGroupRequest DescribeGroupsRequest ListGroupsRequest
    ApiVersionsRequest CreateTopicsRequest DeleteTopicsRequest DeleteRecordsRequest
    InitProducerIdRequest OffsetForLeaderEpochRequest DescribeConfigsRequest
    AlterConfigsRequest DescribeLogDirsRequest CreatePartitionsRequest DeleteGroupsRequest
    IncrementalAlterConfigsRequest OffsetDeleteRequest DescribeClusterRequest
    ListConfigResourcesRequest DescribeTopicPartitionsRequest
}

/// A request without its length. What can be decoded can be encoded, and is the same when
/// it is decoded again.
pub fn request(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let Ok((head, body)) = RequestHead::decode(frame, request_limits(MAX_FRAME_BYTES)) else {
        return;
    };
    assert!(body.len() <= data.len());
    if matches!(head.known(), Known::Yes(_)) {
        decode_again(&head, body);
    }
}

fn request_again<R: KafkaRequest + PartialEq>(head: &RequestHead, body: Bytes) {
    let limits = request_limits(MAX_FRAME_BYTES);
    let Ok(request) = head.decode_body::<R>(body, limits) else {
        return;
    };
    // Some values that can be read can't be written, such as a negative record length
    // that an old version takes for null: refusing them is right.
    let Ok(bytes) = request.encode_to_bytes(ApiVersion::new(head.api_version)) else {
        return;
    };
    let again = head.decode_body::<R>(bytes, limits);
    assert!(again.is_ok_and(|again| again == request));
}

/// API key, version, and an answer without its length.
pub fn answer(data: &[u8]) {
    let Some((&[k0, k1, v0, v1], frame)) = data.split_first_chunk() else {
        return;
    };
    answer_of(
        i16::from_be_bytes([k0, k1]),
        i16::from_be_bytes([v0, v1]),
        Bytes::copy_from_slice(frame),
    );
}

fn answer_again<R: KafkaResponse + PartialEq>(version: i16, frame: Bytes) {
    let Some(correlation_id) = yuxi_protocol::frame::response_correlation_id(&frame) else {
        return;
    };
    let limits = response_limits(MAX_FRAME_BYTES);
    let Ok(response) = decode_response::<R>(frame, correlation_id, version, limits) else {
        return;
    };
    let Ok(bytes) = encode_response(correlation_id, version, &response) else {
        return;
    };
    let again = decode_response::<R>(
        bytes.slice(LENGTH_PREFIX..),
        correlation_id,
        version,
        limits,
    );
    assert!(again.is_ok_and(|again| again == response));
}

/// Record batches as a producer or a disk gives them; checksums are looked at but not
/// insisted on, or hardly anything would get past them.
pub fn record_batch(data: &[u8]) {
    let mut whole = 0;
    for batch in batches(data) {
        let Ok(view) = batch else { break };
        whole += view.bytes().len();
        one_batch(&view);
    }
    assert!(whole <= data.len());
    let shared = shared_batches(Bytes::copy_from_slice(data));
    let shared: usize = shared
        .map_while(Result::ok)
        .map(|batch| {
            let records = batch.records(MAX_DECOMPRESSED_BYTES);
            assert!(records.count() <= MAX_DECOMPRESSED_BYTES);
            batch.bytes().len()
        })
        .sum();
    assert_eq!(shared, whole);
}

fn one_batch(view: &BatchView<'_>) {
    let options = ValidateOptions {
        require_keys: false,
        allow_control: true,
        max_decompressed_bytes: MAX_DECOMPRESSED_BYTES,
    };
    let _ = view.check_crc();
    let mut stamped = view.bytes().to_vec();
    assert_eq!(set_log_append_time(&mut stamped, 1), Ok(()));
    let stamped = BatchView::parse(&stamped);
    assert!(stamped.is_ok_and(|stamped| stamped.check_crc().is_ok()));

    let Ok(summary) = validate_records(view, &options) else {
        return;
    };
    let records: Result<Vec<_>, _> = view.records(MAX_DECOMPRESSED_BYTES).collect();
    assert!(
        records.is_ok_and(|records| records.len() == summary.count as usize
            && records.last().map(|record| record.offset) == Some(view.header().last_offset()))
    );
    for codec in Compression::ALL {
        let rewritten = recompress(view, codec, None, MAX_DECOMPRESSED_BYTES);
        let rewritten = rewritten.unwrap_or_else(|error| panic!("{codec}: {error}"));
        let again = BatchView::parse(&rewritten).and_then(|again| {
            again.check_crc()?;
            validate_records(&again, &options)
        });
        assert_eq!(again, Ok(summary));
    }
}

/// A codec's number and what is to be unpacked by it.
pub fn decompress(data: &[u8]) {
    let Some((&codec, compressed)) = data.split_first() else {
        return;
    };
    let Some(codec) = Compression::from_id(codec % 5) else {
        return;
    };
    for cap in [0, 100, MAX_DECOMPRESSED_BYTES] {
        if let Ok(bytes) = codec.decompress(compressed, cap) {
            assert!(bytes.len() <= cap);
        }
    }
}

fn encode_versions<R: KafkaRequest + Default>(frames: &mut Vec<Vec<u8>>) {
    let versions = R::SUPPORTED_VERSIONS;
    for version in versions.min().value()..=versions.max().value() {
        frames.extend(encoded(&R::default(), version));
    }
}

/// The request without its length, unless the version can't carry it.
fn encoded<R: KafkaRequest>(request: &R, version: i16) -> Option<Vec<u8>> {
    let mut frame = BytesMut::new();
    let client_id = Some(StrBytes::from("fuzz"));
    let limits = OutboundFrameLimits::new(MAX_FRAME_BYTES);
    messages::encode_request(
        &mut frame,
        1,
        client_id,
        request,
        ApiVersion::new(version),
        limits,
    )
    .ok()?;
    Some(frame[LENGTH_PREFIX..].to_vec())
}

fn answer_versions<R: KafkaResponse + Default>(frames: &mut Vec<Vec<u8>>) {
    let versions = R::SUPPORTED_VERSIONS;
    for version in versions.min().value()..=versions.max().value() {
        if let Ok(frame) = encode_response(1, version, &R::default()) {
            let mut input = R::API_KEY.value().to_be_bytes().to_vec();
            input.extend_from_slice(&version.to_be_bytes());
            input.extend_from_slice(&frame[LENGTH_PREFIX..]);
            frames.push(input);
        }
    }
}

/// Produce requests that carry batches.
pub fn produce_requests() -> Vec<Vec<u8>> {
    let mut partition = messages::produce_request::PartitionProduceData::default();
    partition.records = Some(Bytes::from(record_batches().concat()));
    let mut topic = messages::produce_request::TopicProduceData::default();
    topic.name = StrBytes::from("topic");
    topic.partition_data = vec![partition.clone(), partition];
    let mut request = messages::ProduceRequest::default();
    request.acks = -1;
    request.topic_data = vec![topic];
    (3..=12)
        .filter_map(|version| encoded(&request, version))
        .collect()
}

/// A small batch by each codec, with everything that a batch can have.
pub fn record_batches() -> Vec<Vec<u8>> {
    Compression::ALL
        .into_iter()
        .map(|codec| {
            let mut builder = RecordBatchBuilder::new()
                .compression(codec, None)
                .placed_at(Offset::new(5), LeaderEpoch::new(1))
                .producer(ProducerId::new(7), ProducerEpoch::new(0), 3)
                .transactional();
            for (timestamp, key, value) in [
                (1_700_000_000_000, None, Some(&b"first value"[..])),
                (1_700_000_000_100, Some(&b"key"[..]), None),
                (-1, Some(&b"key"[..]), Some(&[b'v'; 300][..])),
            ] {
                builder
                    .append(timestamp, key, value, &[("h", Some(b"x")), ("null", None)])
                    .expect("three small records fit");
            }
            builder
                .build()
                .expect("a small batch can be built")
                .to_vec()
        })
        .collect()
}

/// Small payloads by each codec, behind the codec's number.
pub fn compressed_payloads() -> Vec<Vec<u8>> {
    Compression::ALL
        .into_iter()
        .map(|codec| {
            let mut input = vec![codec.id()];
            codec
                .compress(
                    None,
                    &b"a payload, a payload, and more of it ".repeat(20),
                    &mut input,
                )
                .expect("compressing into memory works");
            input
        })
        .collect()
}
