//! Produce, Fetch, and what looks records and offsets up, in every version.

use super::{MISSING, TOPIC, Table, code};
use crate::support::{batch, fetch_partition, now_ms, only_partition, produce_request, records};
use yuxi_protocol::{
    codec::{Bytes, StrBytes, Uuid},
    error_code::ErrorCode,
    message,
    messages::{self, FetchRequest, fetch_request::FetchTopic},
};

pub(super) async fn records_in_and_out(table: &mut Table) {
    let topic_id = table.topic_id;
    let produce = move |version: i16, topic: &str, id: Uuid, acks: i16, records: Bytes| {
        let mut request = produce_request(topic, 0, acks, records);
        if version >= 13 {
            request.topic_data[0].name = StrBytes::default();
            request.topic_data[0].topic_id = id;
        }
        request
    };
    for acks in [1, -1] {
        table
            .row(
                |version| produce(version, TOPIC, topic_id, acks, batch(&["x"])),
                |version, answer| {
                    assert_eq!(answer.responses[0].topic_id == topic_id, version >= 13);
                    let partition = only_partition(answer);
                    assert_eq!(partition.error_code, 0);
                    assert!(partition.base_offset >= 3);
                },
            )
            .await;
    }
    let unknown = |version: i16| {
        code(if version >= 13 {
            ErrorCode::UnknownTopicId
        } else {
            ErrorCode::UnknownTopicOrPartition
        })
    };
    table
        .row(
            |version| {
                produce(
                    version,
                    MISSING,
                    Uuid::from_bytes([7; 16]),
                    -1,
                    batch(&["x"]),
                )
            },
            |version, answer| assert_eq!(only_partition(answer).error_code, unknown(version)),
        )
        .await;
    table
        .row(
            |version| produce(version, TOPIC, topic_id, 5, batch(&["x"])),
            |_, answer| {
                let expected = code(ErrorCode::InvalidRequiredAcks);
                assert_eq!(only_partition(answer).error_code, expected);
            },
        )
        .await;
    table
        .row(
            |version| produce(version, TOPIC, topic_id, 1, Bytes::from_static(b"no batch")),
            |_, answer| {
                let expected = code(ErrorCode::InvalidRecord);
                assert_eq!(only_partition(answer).error_code, expected);
            },
        )
        .await;

    let fetch = move |version: i16, topic: &str, id: Uuid, offset: i64, committed: bool| {
        let by_id = version >= 13;
        message!(FetchRequest {
            max_wait_ms: 0,
            min_bytes: 1,
            max_bytes: 1 << 20,
            isolation_level: i8::from(committed),
            session_epoch: if version >= 7 { 0 } else { -1 },
            topics: vec![message!(FetchTopic {
                topic: if by_id { "".into() } else { topic.into() },
                topic_id: if by_id { id } else { Uuid::ZERO },
                partitions: vec![fetch_partition(0, offset)],
            })],
        })
    };
    for committed in [false, true] {
        table
            .row(
                |version| fetch(version, TOPIC, topic_id, 1, committed),
                |version, answer| {
                    assert_eq!(answer.error_code, 0);
                    assert_eq!(answer.session_id != 0, version >= 7);
                    let partition = &answer.responses[0].partitions[0];
                    assert_eq!(partition.error_code, 0);
                    assert_eq!(partition.aborted_transactions.is_some(), committed);
                    assert_eq!(records(partition.records.as_ref())[0].offset.value(), 0);
                },
            )
            .await;
    }
    table
        .row(
            |version| fetch(version, MISSING, Uuid::from_bytes([7; 16]), 0, false),
            |version, answer| {
                let partition = &answer.responses[0].partitions[0];
                assert_eq!(partition.error_code, unknown(version));
                assert_eq!(partition.records, Some(Bytes::new()), "empty, never null");
            },
        )
        .await;
    table
        .row(
            |version| fetch(version, TOPIC, topic_id, 1_000_000, false),
            |_, answer| {
                let partition = &answer.responses[0].partitions[0];
                assert_eq!(partition.error_code, code(ErrorCode::OffsetOutOfRange));
            },
        )
        .await;
    // The session is unknown: an error of the whole answer, in versions that have one.
    table
        .row(
            |version| {
                let mut request = fetch(version, TOPIC, topic_id, 0, false);
                if version >= 7 {
                    request.session_id = 12_345;
                    request.session_epoch = 3;
                }
                request
            },
            |version, answer| {
                let expected = code(ErrorCode::FetchSessionIdNotFound);
                assert_eq!(answer.error_code, if version >= 7 { expected } else { 0 });
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(messages::DeleteRecordsRequest {
                    topics: [(TOPIC, 0), (TOPIC, 9), (MISSING, 0)]
                        .map(|(name, partition_index)| {
                            message!(messages::delete_records_request::DeleteRecordsTopic {
                                name: name.into(),
                                partitions: vec![message!(
                                    messages::delete_records_request::DeleteRecordsPartition {
                                        partition_index,
                                        offset: 0,
                                    }
                                )],
                            })
                        })
                        .into(),
                    timeout_ms: 1000,
                })
            },
            |_, answer| {
                let found: Vec<_> = answer
                    .topics
                    .iter()
                    .map(|topic| topic.partitions[0].error_code)
                    .collect();
                assert_eq!(found, [0, 3, 3]);
            },
        )
        .await;
}

pub(super) async fn offsets(table: &mut Table) {
    use messages::{
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic},
    };
    for timestamp in [-6, -5, -4, -3, -2, -1, 0, now_ms()] {
        table
            .row(
                |_| {
                    message!(messages::ListOffsetsRequest {
                        replica_id: -1,
                        topics: [(TOPIC, 0), (TOPIC, 1), (TOPIC, 7), (MISSING, 0)]
                            .map(|(name, partition_index)| message!(ListOffsetsTopic {
                                name: name.into(),
                                partitions: vec![message!(ListOffsetsPartition {
                                    partition_index,
                                    timestamp,
                                })],
                            }))
                            .into(),
                    })
                },
                |version, answer| {
                    let error = |at: usize| answer.topics[at].partitions[0].error_code;
                    let from = match timestamp {
                        -3 => 7,
                        -4 => 8,
                        -5 => 9,
                        -6 => 11,
                        _ => 0,
                    };
                    let expected = if version >= from { 0 } else { 35 };
                    assert_eq!(error(0), expected, "{timestamp} in version {version}");
                    assert_eq!([error(2), error(3)], [3, 3]);
                    let there = &answer.topics[0].partitions[0];
                    let empty = &answer.topics[1].partitions[0];
                    if timestamp == -1 {
                        assert!(there.offset > 3);
                        assert_eq!(empty.offset, 0);
                    }
                    if matches!(timestamp, -2 | -4) && expected == 0 {
                        assert_eq!((there.offset, empty.offset), (0, 0));
                    }
                    if matches!(timestamp, -5 | -6) {
                        assert_eq!((there.offset, empty.offset), (-1, -1));
                    }
                },
            )
            .await;
    }
    table
        .row(
            |_| {
                message!(messages::OffsetForLeaderEpochRequest {
                    replica_id: -1,
                    topics: [
                        (TOPIC, 0, 0),
                        (TOPIC, 0, 99),
                        (TOPIC, 9, 0),
                        (MISSING, 0, 0)
                    ]
                    .map(
                        |(topic, partition, leader_epoch)| message!(OffsetForLeaderTopic {
                            topic: topic.into(),
                            partitions: vec![message!(OffsetForLeaderPartition {
                                partition,
                                leader_epoch,
                                current_leader_epoch: -1,
                            })],
                        })
                    )
                    .into(),
                })
            },
            |_, answer| {
                let found: Vec<_> = answer
                    .topics
                    .iter()
                    .map(|topic| topic.partitions[0].error_code)
                    .collect();
                assert_eq!(found, [0, 0, 3, 3]);
                assert!(answer.topics[0].partitions[0].end_offset > 0);
                assert_eq!(answer.topics[1].partitions[0].end_offset, -1);
            },
        )
        .await;
}
