//! Classic groups and their offsets in every version, before there are any, in error and at work.

use super::{GROUP, MISSING, TOPIC, Table, code};
use yuxi_protocol::{
    codec::{Bytes, Uuid},
    error_code::ErrorCode,
    message,
    messages::{self},
};

/// The topic of the groups does not exist yet.
pub(super) async fn groups_before_there_are_any(table: &mut Table) {
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
pub(super) async fn group_errors(table: &mut Table) {
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

pub(super) async fn groups(table: &mut Table) {
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
