//! Every API in every advertised version is answered, in good cases and bad, with an
//! answer that the generic codec reads to its last byte. One table; a version that is
//! advertised and stands in no row fails the test.

use crate::support::{
    Client, Server, batch, fetch_partition, now_ms, only_partition, produce_request, records,
};
use std::collections::{BTreeMap, BTreeSet};
use yuxi_protocol::{
    codec::{Bytes, StrBytes, Uuid},
    error_code::ErrorCode,
    message,
    messages::{
        self, ApiVersionsRequest, FetchRequest, RequestResponsePair, fetch_request::FetchTopic,
    },
};

pub(crate) const TOPIC: &str = "there";
pub(crate) const MISSING: &str = "missing";
const GROUP: &str = "group";

/// A topic with records and a group with offsets, and what has been asked.
pub(crate) struct Table {
    server: Server,
    client: Client,
    topic_id: Uuid,
    advertised: BTreeMap<i16, (i16, i16)>,
    asked: BTreeSet<(i16, i16)>,
}

impl Table {
    async fn new() -> Self {
        let server = Server::start().await;
        let mut client = server.client().await;
        let topic_id = client.create_topic(TOPIC, 2, &[]).await;
        client.produce(TOPIC, batch(&["a", "b", "c"])).await;
        let listed = client
            .ask(
                3,
                &message!(ApiVersionsRequest {
                    client_software_name: "test".into(),
                    client_software_version: "1".into(),
                }),
            )
            .await;
        assert_eq!(listed.error_code, 0);
        let advertised = listed
            .api_keys
            .iter()
            .map(|api| (api.api_key, (api.min_version, api.max_version)))
            .collect();
        Self {
            server,
            client,
            topic_id,
            advertised,
            asked: BTreeSet::new(),
        }
    }

    /// Asks in every version; `check` sees each answer.
    pub(crate) async fn row<R: RequestResponsePair>(
        &mut self,
        request: impl Fn(i16) -> R,
        check: impl Fn(i16, R::Response),
    ) {
        let key = R::API_KEY.value();
        let (min, max) = self.advertised[&key];
        let known = R::SUPPORTED_VERSIONS;
        let (min, max) = (min.max(known.min().value()), max.min(known.max().value()));
        for version in min..=max {
            let answer = self.client.ask(version, &request(version)).await;
            self.asked.insert((key, version));
            check(version, answer);
        }
    }

    fn end(self) {
        let advertised = self
            .advertised
            .iter()
            .flat_map(|(&key, &(min, max))| (min..=max).map(move |version| (key, version)));
        // Produce 0 to 2 is advertised for old librdkafka and refused (KAFKA-18659).
        let missing: Vec<_> = advertised
            .filter(|asked| !self.asked.contains(asked) && !matches!(asked, (0, 0..=2)))
            .collect();
        assert_eq!(missing, [], "advertised and never asked");
        drop(self.server);
    }
}

pub(crate) fn code(error: ErrorCode) -> i16 {
    error.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_api_answers_in_every_version_it_advertises() {
    let mut table = Table::new().await;
    general(&mut table).await;
    records_in_and_out(&mut table).await;
    offsets(&mut table).await;
    groups_before_there_are_any(&mut table).await;
    groups(&mut table).await;
    topics(&mut table).await;
    configs(&mut table).await;
    crate::placement::check(&mut table).await;
    crate::isolation::check(&mut table, TOPIC).await;
    crate::consumer_groups::check(&mut table, TOPIC).await;
    crate::transactions::check(&mut table, TOPIC).await;
    table.end();
}

async fn general(table: &mut Table) {
    table
        .row(
            |version| {
                if version >= 3 {
                    message!(ApiVersionsRequest {
                        client_software_name: "test".into(),
                        client_software_version: "1".into(),
                    })
                } else {
                    ApiVersionsRequest::default()
                }
            },
            |_, answer| assert_eq!(answer.error_code, 0),
        )
        .await;
    table
        .row(
            |version| {
                if version >= 3 {
                    message!(ApiVersionsRequest {
                        client_software_name: "not a name!".into(),
                        client_software_version: "".into(),
                    })
                } else {
                    ApiVersionsRequest::default()
                }
            },
            |version, answer| {
                let expected = if version >= 3 {
                    code(ErrorCode::InvalidRequest)
                } else {
                    0
                };
                assert_eq!(answer.error_code, expected);
            },
        )
        .await;
    table
        .row(
            |version| {
                message!(messages::DescribeClusterRequest {
                    include_cluster_authorized_operations: version % 2 == 0,
                })
            },
            |_, answer| {
                assert_eq!(answer.error_code, 0);
                assert_eq!(answer.brokers.len(), 1);
                assert_eq!(answer.controller_id, 1);
            },
        )
        .await;
    table
        .row(
            |version| {
                message!(messages::DescribeClusterRequest {
                    endpoint_type: if version >= 1 { 2 } else { 1 },
                })
            },
            |version, answer| {
                assert_eq!(answer.error_code != 0, version >= 1);
            },
        )
        .await;
    table
        .row(
            |_| message!(messages::DescribeLogDirsRequest { topics: None }),
            |_, answer| {
                assert_eq!(answer.results.len(), 1);
                assert!(!answer.results[0].topics.is_empty());
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(messages::InitProducerIdRequest {
                    transactional_id: None,
                    transaction_timeout_ms: 1000
                })
            },
            |_, answer| {
                assert_eq!(answer.error_code, 0);
                assert!(answer.producer_id >= 0);
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(messages::InitProducerIdRequest {
                    transactional_id: Some("tx".into()),
                    transaction_timeout_ms: 1000,
                })
            },
            |_, answer| assert_ne!(answer.error_code, 0),
        )
        .await;
}

async fn records_in_and_out(table: &mut Table) {
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

async fn offsets(table: &mut Table) {
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

/// The topic of the groups does not exist yet.
async fn groups_before_there_are_any(table: &mut Table) {
    group_errors(table).await;
    for key_type in [0, 1, 2, 7] {
        table
            .row(
                |version| {
                    let mut request = message!(messages::FindCoordinatorRequest {
                        key_type: if version >= 1 { key_type } else { 0 },
                    });
                    if version >= 4 {
                        request.coordinator_keys = vec![GROUP.into(), "other".into()];
                    } else {
                        request.key = GROUP.into();
                    }
                    request
                },
                |version, answer| {
                    let error = if version >= 4 {
                        assert_eq!(answer.coordinators.len(), 2);
                        answer.coordinators[1].error_code
                    } else {
                        answer.error_code
                    };
                    assert_eq!(error == 0, key_type <= 1 || version == 0);
                },
            )
            .await;
    }
}

fn commit(version: i16, topic: &str, id: Uuid, group: &str) -> messages::OffsetCommitRequest {
    use messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
    let by_id = version >= 10;
    message!(messages::OffsetCommitRequest {
        group_id: group.into(),
        generation_id_or_member_epoch: -1,
        topics: vec![message!(OffsetCommitRequestTopic {
            name: if by_id { "".into() } else { topic.into() },
            topic_id: if by_id { id } else { Uuid::ZERO },
            partitions: vec![message!(OffsetCommitRequestPartition {
                partition_index: 0,
                committed_offset: 2,
                committed_metadata: Some("note".into()),
            })],
        })],
    })
}

fn committed(
    version: i16,
    group: &str,
    topics: Option<&[(&str, Uuid)]>,
) -> messages::OffsetFetchRequest {
    use messages::offset_fetch_request::{
        OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
    };
    if version < 8 {
        return message!(messages::OffsetFetchRequest {
            group_id: group.into(),
            topics: topics.map(|topics| {
                topics
                    .iter()
                    .map(|(name, _)| {
                        message!(OffsetFetchRequestTopic {
                            name: (*name).into(),
                            partition_indexes: vec![0],
                        })
                    })
                    .collect()
            }),
        });
    }
    let by_id = version >= 10;
    let topics: Option<Vec<_>> = topics.map(|topics| {
        topics
            .iter()
            .map(|&(name, id)| {
                message!(OffsetFetchRequestTopics {
                    name: if by_id { "".into() } else { name.into() },
                    topic_id: if by_id { id } else { Uuid::ZERO },
                    partition_indexes: vec![0],
                })
            })
            .collect()
    });
    let of = |id: &str| {
        message!(OffsetFetchRequestGroup {
            group_id: id.into(),
            topics: topics.clone(),
        })
    };
    message!(messages::OffsetFetchRequest {
        groups: vec![of(group), of("nobody")],
        require_stable: true,
    })
}

/// Requests about groups and members that there are not, with and without the topic.
async fn group_errors(table: &mut Table) {
    table
        .row(
            |_| {
                message!(messages::HeartbeatRequest {
                    group_id: "nobody".into(),
                    generation_id: 3,
                    member_id: "me".into(),
                })
            },
            |_, answer| assert_ne!(answer.error_code, 0),
        )
        .await;
    table
        .row(
            |_| {
                message!(messages::SyncGroupRequest {
                    group_id: "nobody".into(),
                    generation_id: 3,
                    member_id: "me".into(),
                })
            },
            |_, answer| assert_ne!(answer.error_code, 0),
        )
        .await;
    table
        .row(
            |version| {
                let mut request = message!(messages::LeaveGroupRequest {
                    group_id: "nobody".into(),
                });
                if version >= 3 {
                    request.members =
                        vec![message!(messages::leave_group_request::MemberIdentity {
                            member_id: "me".into(),
                            group_instance_id: Some("static".into()),
                        })];
                } else {
                    request.member_id = "me".into();
                }
                request
            },
            |version, answer| {
                let member = answer.members.first().map_or(0, |member| member.error_code);
                assert!(answer.error_code != 0 || member != 0, "version {version}");
            },
        )
        .await;
    for groups in [vec![], vec!["nobody", GROUP, "another"]] {
        table
            .row(
                |version| {
                    message!(messages::DescribeGroupsRequest {
                        groups: groups.iter().map(|&group| group.into()).collect(),
                        include_authorized_operations: version >= 3,
                    })
                },
                |_, answer| assert_eq!(answer.groups.len(), groups.len()),
            )
            .await;
    }
    for groups in [vec![], vec!["nobody", "another", "third"]] {
        table
            .row(
                |_| {
                    message!(messages::DeleteGroupsRequest {
                        groups_names: groups.iter().map(|&group| group.into()).collect(),
                    })
                },
                |_, answer| {
                    assert_eq!(answer.results.len(), groups.len());
                    assert!(answer.results.iter().all(|result| result.error_code != 0));
                },
            )
            .await;
    }
    table
        .row(
            |_| {
                message!(messages::OffsetDeleteRequest {
                    group_id: "nobody".into(),
                    topics: vec![message!(
                        messages::offset_delete_request::OffsetDeleteRequestTopic {
                            name: TOPIC.into(),
                            partitions: vec![message!(
                                messages::offset_delete_request::OffsetDeleteRequestPartition {
                                    partition_index: 0,
                                }
                            )],
                        }
                    )],
                })
            },
            |_, answer| assert_ne!(answer.error_code, 0),
        )
        .await;
    let topic_id = table.topic_id;
    table
        .row(
            |version| {
                let mut request = commit(version, TOPIC, topic_id, "nobody");
                request.member_id = "me".into();
                request.generation_id_or_member_epoch = 4;
                request
            },
            |_, answer| assert_ne!(answer.topics[0].partitions[0].error_code, 0),
        )
        .await;
    table
        .row(
            |version| {
                message!(messages::OffsetFetchRequest {
                    group_id: if version >= 8 {
                        "".into()
                    } else {
                        "nobody".into()
                    },
                    topics: Some(vec![]),
                })
            },
            |_, answer| assert_eq!(answer.topics, []),
        )
        .await;
}

async fn groups(table: &mut Table) {
    let topic_id = table.topic_id;
    let missing_id = Uuid::from_bytes([9; 16]);
    table
        .row(
            |version| commit(version, TOPIC, topic_id, GROUP),
            |version, answer| {
                assert_eq!(answer.topics[0].partitions[0].error_code, 0);
                assert_eq!(answer.topics[0].topic_id == topic_id, version >= 10);
            },
        )
        .await;
    table
        .row(
            |version| commit(version, MISSING, missing_id, GROUP),
            |version, answer| {
                let expected = code(if version >= 10 {
                    ErrorCode::UnknownTopicId
                } else {
                    ErrorCode::UnknownTopicOrPartition
                });
                assert_eq!(answer.topics[0].partitions[0].error_code, expected);
            },
        )
        .await;
    let both = [(TOPIC, topic_id), (MISSING, missing_id)];
    for topics in [Some(&both[..]), Some(&[]), None] {
        table
            .row(
                |version| {
                    // Version 1 cannot ask for all.
                    let topics = if version < 2 {
                        Some(topics.unwrap_or(&[]))
                    } else {
                        topics
                    };
                    committed(version, GROUP, topics)
                },
                |version, answer| {
                    let expected = match topics {
                        None if version < 2 => 0,
                        None => 1,
                        Some(topics) => topics.len(),
                    };
                    if version >= 8 {
                        assert_eq!(answer.groups.len(), 2);
                        let group = answer
                            .groups
                            .iter()
                            .find(|group| *group.group_id == *GROUP)
                            .expect("the group");
                        assert_eq!(group.error_code, 0);
                        assert_eq!(group.topics.len(), expected, "version {version}");
                        if expected > 0 {
                            assert_eq!(group.topics[0].partitions[0].committed_offset, 2);
                        }
                    } else {
                        assert_eq!(answer.error_code, 0);
                        assert_eq!(answer.topics.len(), expected, "version {version}");
                        if expected > 0 {
                            assert_eq!(answer.topics[0].partitions[0].committed_offset, 2);
                        }
                    }
                },
            )
            .await;
    }
    group_errors(table).await;
    // A dynamic member in each version, in a group of its own.
    table
        .row(
            |version| {
                message!(messages::JoinGroupRequest {
                    group_id: format!("joined-{version}").into(),
                    session_timeout_ms: 30_000,
                    rebalance_timeout_ms: if version >= 1 { 30_000 } else { -1 },
                    group_instance_id: (version >= 5).then(|| "static".into()),
                    protocol_type: "consumer".into(),
                    protocols: vec![message!(
                        messages::join_group_request::JoinGroupRequestProtocol {
                            name: "range".into(),
                            metadata: Bytes::from_static(b"m"),
                        }
                    )],
                })
            },
            |version, answer| {
                let expected = if version == 4 {
                    code(ErrorCode::MemberIdRequired)
                } else {
                    0
                };
                assert_eq!(answer.error_code, expected, "version {version}");
                assert!(!answer.member_id.is_empty());
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(messages::JoinGroupRequest {
                    group_id: "".into(),
                    session_timeout_ms: 1,
                })
            },
            |_, answer| assert_ne!(answer.error_code, 0),
        )
        .await;
    table
        .row(
            |version| {
                message!(messages::ListGroupsRequest {
                    states_filter: if version >= 4 {
                        vec!["Empty".into()]
                    } else {
                        vec![]
                    },
                    types_filter: if version >= 5 {
                        vec!["Classic".into()]
                    } else {
                        vec![]
                    },
                })
            },
            |version, answer| {
                assert_eq!(answer.error_code, 0);
                let listed = answer.groups.iter().any(|group| *group.group_id == *GROUP);
                assert!(listed, "version {version}");
            },
        )
        .await;
}

async fn topics(table: &mut Table) {
    use messages::{
        create_partitions_request::CreatePartitionsTopic, create_topics_request::CreatableTopic,
        delete_topics_request::DeleteTopicState, metadata_request::MetadataRequestTopic,
    };
    let topic_id = table.topic_id;
    table
        .row(
            |version| {
                message!(messages::MetadataRequest {
                    topics: if version == 0 { Some(vec![]) } else { None },
                    include_cluster_authorized_operations: (8..=10).contains(&version),
                    include_topic_authorized_operations: version >= 8,
                })
            },
            |version, answer| {
                let found = answer
                    .topics
                    .iter()
                    .find(|topic| topic.name.as_deref() == Some(TOPIC))
                    .unwrap_or_else(|| panic!("version {version} lists all topics"));
                assert_eq!(found.partitions.len(), 2);
                assert_eq!(found.partitions[0].leader_id, 1);
                assert_eq!(answer.brokers.len(), 1);
            },
        )
        .await;
    table
        .row(
            |version| {
                message!(messages::MetadataRequest {
                    topics: Some(if version == 0 {
                        vec![message!(MetadataRequestTopic {
                            name: Some(TOPIC.into())
                        })]
                    } else {
                        vec![]
                    }),
                })
            },
            |version, answer| assert_eq!(answer.topics.len(), usize::from(version == 0)),
        )
        .await;
    table
        .row(
            |version| {
                let mut topics = vec![
                    message!(MetadataRequestTopic {
                        name: Some(TOPIC.into())
                    }),
                    message!(MetadataRequestTopic {
                        name: Some("../etc".into())
                    }),
                ];
                if version >= 4 {
                    topics.push(message!(MetadataRequestTopic {
                        name: Some(MISSING.into())
                    }));
                }
                if version >= 12 {
                    for topic_id in [topic_id, Uuid::from_bytes([3; 16])] {
                        topics.push(message!(MetadataRequestTopic {
                            topic_id,
                            name: None
                        }));
                    }
                }
                message!(messages::MetadataRequest {
                    topics: Some(topics),
                    allow_auto_topic_creation: version < 4,
                })
            },
            |version, answer| {
                let errors: Vec<_> = answer.topics.iter().map(|topic| topic.error_code).collect();
                let all = [0, 17, 3, 0, code(ErrorCode::UnknownTopicId)];
                let asked = match version {
                    ..=3 => 2,
                    4..=11 => 3,
                    _ => 5,
                };
                assert_eq!(errors, all[..asked], "version {version}");
            },
        )
        .await;
    table
        .row(
            |version| {
                message!(messages::CreateTopicsRequest {
                    topics: [format!("new-{version}").as_str(), TOPIC, "a/b"]
                        .map(|name| message!(CreatableTopic {
                            name: name.into(),
                            num_partitions: 1,
                            replication_factor: 1,
                        }))
                        .into(),
                    timeout_ms: 1000,
                })
            },
            |version, answer| {
                let errors: Vec<_> = answer.topics.iter().map(|topic| topic.error_code).collect();
                assert_eq!(errors, [0, 36, 17], "version {version}");
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(messages::CreatePartitionsRequest {
                    topics: [(TOPIC, 3), (MISSING, 2)]
                        .map(|(name, count)| message!(CreatePartitionsTopic {
                            name: name.into(),
                            count,
                            assignments: None,
                        }))
                        .into(),
                    timeout_ms: 1000,
                    validate_only: true,
                })
            },
            |_, answer| {
                let errors: Vec<_> = answer
                    .results
                    .iter()
                    .map(|topic| topic.error_code)
                    .collect();
                assert_eq!(errors, [0, 3]);
            },
        )
        .await;
    table
        .row(
            |version| {
                let (mine, missing) = (format!("new-{}", version + 1), MISSING.to_owned());
                let mut request = message!(messages::DeleteTopicsRequest { timeout_ms: 1000 });
                if version >= 6 {
                    request.topics = [Some(mine), Some(missing), None]
                        .map(|name| {
                            message!(DeleteTopicState {
                                topic_id: if name.is_none() {
                                    Uuid::from_bytes([3; 16])
                                } else {
                                    Uuid::ZERO
                                },
                                name: name.map(StrBytes::from),
                            })
                        })
                        .into();
                } else {
                    request.topic_names = vec![mine.into(), missing.into()];
                }
                request
            },
            |version, answer| {
                let errors: Vec<_> = answer
                    .responses
                    .iter()
                    .map(|topic| topic.error_code)
                    .collect();
                let all = [0, 3, code(ErrorCode::UnknownTopicId)];
                assert_eq!(errors, all[..errors.len()], "version {version}");
            },
        )
        .await;
    for (asked, cursor) in [
        (vec![], None),
        (vec![TOPIC, MISSING, "a/b"], None),
        (vec![], Some(1)),
    ] {
        table
            .row(
                |_| {
                    use messages::describe_topic_partitions_request::{Cursor, TopicRequest};
                    message!(messages::DescribeTopicPartitionsRequest {
                        topics: asked
                            .iter()
                            .map(|&name| message!(TopicRequest { name: name.into() }))
                            .collect(),
                        response_partition_limit: 1,
                        cursor: cursor.map(|partition_index| message!(Cursor {
                            topic_name: TOPIC.into(),
                            partition_index,
                        })),
                    })
                },
                |_, answer| assert!(!answer.topics.is_empty()),
            )
            .await;
    }
}

async fn configs(table: &mut Table) {
    use messages::{
        alter_configs_request, describe_configs_request::DescribeConfigsResource,
        incremental_alter_configs_request,
    };
    const RESOURCES: [(i8, &str); 6] = [
        (2, TOPIC),
        (4, "1"),
        (4, ""),
        (2, MISSING),
        (4, "77"),
        (99, ""),
    ];
    table
        .row(
            |version| {
                message!(messages::DescribeConfigsRequest {
                    resources: RESOURCES
                        .map(|(resource_type, name)| message!(DescribeConfigsResource {
                            resource_type,
                            resource_name: name.into(),
                            configuration_keys: None,
                        }))
                        .into(),
                    include_synonyms: true,
                    include_documentation: version >= 3,
                })
            },
            |version, answer| {
                let failed: Vec<_> = answer
                    .results
                    .iter()
                    .map(|result| result.error_code != 0)
                    .collect();
                assert_eq!(
                    failed,
                    [false, false, false, true, true, true],
                    "version {version}"
                );
                assert!(answer.results[0].configs.len() > 10);
            },
        )
        .await;
    let names = [
        ("retention.ms", "60000"),
        ("no.such.setting", "1"),
        ("retention.ms", "x"),
    ];
    for (name, value) in names {
        table
            .row(
                |_| {
                    message!(messages::AlterConfigsRequest {
                        resources: vec![message!(alter_configs_request::AlterConfigsResource {
                            resource_type: 2,
                            resource_name: TOPIC.into(),
                            configs: vec![message!(alter_configs_request::AlterableConfig {
                                name: name.into(),
                                value: Some(value.into()),
                            })],
                        })],
                    })
                },
                |_, answer| {
                    let good = (name, value) == ("retention.ms", "60000");
                    assert_eq!(answer.responses[0].error_code == 0, good);
                },
            )
            .await;
    }
    for operation in [0, 1, 2, 3, 9] {
        table
            .row(
                |_| {
                    message!(messages::IncrementalAlterConfigsRequest {
                        resources: RESOURCES
                            .map(|(resource_type, name)| message!(
                                incremental_alter_configs_request::AlterConfigsResource {
                                    resource_type,
                                    resource_name: name.into(),
                                    configs: vec![message!(
                                        incremental_alter_configs_request::AlterableConfig {
                                            name: if resource_type == 2 {
                                                "cleanup.policy".into()
                                            } else {
                                                "log.cleanup.policy".into()
                                            },
                                            config_operation: operation,
                                            value: Some("delete".into()),
                                        }
                                    )],
                                }
                            ))
                            .into(),
                        validate_only: true,
                    })
                },
                |_, answer| {
                    assert_eq!(answer.responses.len(), RESOURCES.len());
                    assert_ne!(answer.responses[3].error_code, 0);
                    assert_ne!(answer.responses[5].error_code, 0);
                },
            )
            .await;
    }
    for resource_types in [vec![], vec![2], vec![4, 16], vec![3]] {
        table
            .row(
                |version| {
                    message!(messages::ListConfigResourcesRequest {
                        resource_types: if version >= 1 {
                            resource_types.clone()
                        } else {
                            vec![]
                        },
                    })
                },
                |version, answer| {
                    let refused = version >= 1 && resource_types == [3];
                    assert_eq!(answer.error_code != 0, refused);
                },
            )
            .await;
    }
}
