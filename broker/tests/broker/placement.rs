//! Reassignments, elections and unregistering on a single broker, in every version.

use crate::versions::{MISSING, TOPIC, Table, code};
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{
        AlterPartitionReassignmentsRequest, ElectLeadersRequest, ListPartitionReassignmentsRequest,
        UnregisterBrokerRequest,
        alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
        elect_leaders_request::TopicPartitions,
        list_partition_reassignments_request::ListPartitionReassignmentsTopics,
    },
};

pub(crate) async fn check(table: &mut Table) {
    reassignments(table).await;
    elections(table).await;
    unregistering(table).await;
}

async fn reassignments(table: &mut Table) {
    // Topic, partition, replicas, error.
    let cases: [(&str, i32, Option<&[i32]>, ErrorCode); 7] = [
        (TOPIC, 0, Some(&[1]), ErrorCode::None),
        (TOPIC, 0, None, ErrorCode::NoReassignmentInProgress),
        (TOPIC, 0, Some(&[2]), ErrorCode::InvalidReplicaAssignment),
        (TOPIC, 0, Some(&[1, 1]), ErrorCode::InvalidReplicaAssignment),
        (TOPIC, 0, Some(&[]), ErrorCode::InvalidReplicaAssignment),
        (TOPIC, 9, Some(&[1]), ErrorCode::UnknownTopicOrPartition),
        (MISSING, 0, None, ErrorCode::UnknownTopicOrPartition),
    ];
    table
        .row(
            |version| {
                let mut request = message!(AlterPartitionReassignmentsRequest {
                    timeout_ms: 10_000,
                    topics: cases
                        .map(|(name, partition_index, replicas, _)| {
                            let replicas = replicas.map(<[i32]>::to_vec);
                            message!(ReassignableTopic {
                                name: name.into(),
                                partitions: vec![message!(ReassignablePartition {
                                    partition_index,
                                    replicas,
                                })],
                            })
                        })
                        .into(),
                });
                if version >= 1 {
                    request.allow_replication_factor_change = false;
                }
                request
            },
            |version, answer| {
                assert_eq!(answer.error_code, 0);
                assert!(version == 0 || !answer.allow_replication_factor_change);
                assert_eq!(answer.responses.len(), cases.len());
                for (topic, (_, _, _, expected)) in answer.responses.iter().zip(&cases) {
                    assert_eq!(topic.partitions[0].error_code, expected.code());
                }
            },
        )
        .await;
    for topics in [None, Some(TOPIC), Some(MISSING)] {
        table
            .row(
                |_| {
                    message!(ListPartitionReassignmentsRequest {
                        timeout_ms: 10_000,
                        topics: topics.map(|name| vec![message!(
                            ListPartitionReassignmentsTopics {
                                name: name.into(),
                                partition_indexes: vec![0, 9],
                            }
                        )]),
                    })
                },
                |_, answer| assert_eq!((answer.error_code, answer.topics.len()), (0, 0)),
            )
            .await;
    }
}

async fn elections(table: &mut Table) {
    for election_type in [0, 1, 7] {
        table
            .row(
                |version| {
                    let mut request = message!(ElectLeadersRequest {
                        topic_partitions: Some(vec![message!(TopicPartitions {
                            topic: TOPIC.into(),
                            partitions: vec![0, 9],
                        })]),
                        timeout_ms: 10_000,
                    });
                    if version >= 1 {
                        request.election_type = election_type;
                    }
                    request
                },
                |version, answer| {
                    let results = &answer.replica_election_results[0].partition_result;
                    let codes = [results[0].error_code, results[1].error_code];
                    if version >= 1 && election_type == 7 {
                        assert_eq!(answer.error_code, code(ErrorCode::InvalidRequest));
                        assert_eq!(codes, [code(ErrorCode::InvalidRequest); 2]);
                    } else {
                        let unknown = code(ErrorCode::UnknownTopicOrPartition);
                        assert_eq!(codes, [code(ErrorCode::ElectionNotNeeded), unknown]);
                    }
                },
            )
            .await;
    }
    table
        .row(
            |_| {
                message!(ElectLeadersRequest {
                    topic_partitions: None,
                    timeout_ms: 10_000,
                })
            },
            |_, answer| {
                assert_eq!(answer.error_code, 0);
                assert!(answer.replica_election_results.is_empty());
            },
        )
        .await;
}

async fn unregistering(table: &mut Table) {
    for (broker_id, expected) in [
        (1, ErrorCode::InvalidRequest),
        (9, ErrorCode::BrokerIdNotRegistered),
    ] {
        table
            .row(
                |_| message!(UnregisterBrokerRequest { broker_id }),
                |_, answer| assert_eq!(answer.error_code, expected.code()),
            )
            .await;
    }
}
