//! Topics, their partitions, and settings administered, in every version.

use super::{MISSING, TOPIC, Table, code};
use yuxi_protocol::{
    codec::{StrBytes, Uuid},
    error_code::ErrorCode,
    message,
    messages::{self},
};

pub(super) async fn topics(table: &mut Table) {
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

pub(super) async fn configs(table: &mut Table) {
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
