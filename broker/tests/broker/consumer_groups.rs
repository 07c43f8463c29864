//! Consumer groups (KIP-848) over sockets. What a group decides is tested with the
//! coordinator; here is what the broker adds: the topics it knows, the log below, the
//! settings of groups.

use crate::{
    support::{Client, Server, wait_for},
    versions::Table,
};
use std::collections::{BTreeMap, BTreeSet};
use yuxi_protocol::{
    codec::Uuid,
    error_code::ErrorCode,
    message,
    messages::{
        self, ConsumerGroupDescribeRequest, ConsumerGroupHeartbeatRequest,
        ConsumerGroupHeartbeatResponse, TxnOffsetCommitRequest,
        consumer_group_heartbeat_request::TopicPartitions,
        txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic},
    },
};

const GROUP_RESOURCE: i8 = 32;

fn joining(group: &str, topic: &str) -> ConsumerGroupHeartbeatRequest {
    message!(ConsumerGroupHeartbeatRequest {
        group_id: group.into(),
        member_id: "member".into(),
        rebalance_timeout_ms: 60_000,
        subscribed_topic_names: Some(vec![topic.into()]),
        topic_partitions: Some(Vec::new()),
    })
}

fn beating(group: &str, epoch: i32) -> ConsumerGroupHeartbeatRequest {
    message!(ConsumerGroupHeartbeatRequest {
        group_id: group.into(),
        member_id: "member".into(),
        member_epoch: epoch,
        rebalance_timeout_ms: -1,
    })
}

/// The rows of these APIs in the table of all versions.
pub(crate) async fn check(table: &mut Table, topic: &str) {
    table
        .row(
            |_| joining("of-all-versions", topic),
            |version, answer| {
                assert_eq!(answer.error_code, 0, "version {version}");
                assert!(answer.assignment.is_some(), "version {version}");
            },
        )
        .await;
    table
        .row(
            |_| beating("nobody", 3),
            |_, answer| {
                assert_eq!(answer.error_code, ErrorCode::GroupIdNotFound.code());
                assert!(answer.error_message.is_some());
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(ConsumerGroupDescribeRequest {
                    group_ids: vec!["of-all-versions".into(), "nobody".into()],
                    include_authorized_operations: true,
                })
            },
            |version, answer| {
                let mut errors: Vec<i16> = answer.groups.iter().map(|g| g.error_code).collect();
                errors.sort_unstable();
                assert_eq!(errors, [0, ErrorCode::GroupIdNotFound.code()], "{version}");
            },
        )
        .await;
    table
        .row(
            |_| {
                let partition = |index| {
                    message!(TxnOffsetCommitRequestPartition {
                        partition_index: index,
                        committed_offset: 1,
                    })
                };
                message!(TxnOffsetCommitRequest {
                    transactional_id: "nobody".into(),
                    group_id: "g".into(),
                    producer_id: 4_000,
                    topics: vec![
                        message!(TxnOffsetCommitRequestTopic {
                            name: topic.into(),
                            partitions: vec![partition(0), partition(77)],
                        }),
                        message!(TxnOffsetCommitRequestTopic {
                            name: "unknown".into(),
                            partitions: vec![partition(0)],
                        }),
                    ],
                })
            },
            |version, answer| {
                let told: Vec<usize> = answer.topics.iter().map(|t| t.partitions.len()).collect();
                assert_eq!(told, [2, 1], "version {version}");
                let unknown = ErrorCode::UnknownTopicOrPartition.code();
                assert_eq!(answer.topics[0].partitions[1].error_code, unknown);
                assert_eq!(answer.topics[1].partitions[0].error_code, unknown);
            },
        )
        .await;
}

/// Sends a heartbeat until the coordinator is there.
async fn beat(
    client: &mut Client,
    request: &ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    wait_for("the coordinator", async || {
        client
            .ask(
                2,
                &message!(messages::FindCoordinatorRequest {
                    key: request.group_id.clone(),
                }),
            )
            .await;
        let answer = client.ask(1, request).await;
        let not_yet = [
            ErrorCode::CoordinatorNotAvailable,
            ErrorCode::CoordinatorLoadInProgress,
            ErrorCode::NotCoordinator,
        ];
        let waits = not_yet
            .iter()
            .any(|error| error.code() == answer.error_code);
        (!waits).then_some(answer)
    })
    .await
}

fn partitions(answer: &ConsumerGroupHeartbeatResponse) -> Option<Vec<(Uuid, Vec<i32>)>> {
    let assignment = answer.assignment.as_ref()?;
    let topics = assignment.topic_partitions.iter();
    Some(
        topics
            .map(|topic| (topic.topic_id, topic.partitions.clone()))
            .collect(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_goes_on_in_its_epoch_after_a_restart_and_a_crash() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let topic = client.create_topic("t", 2, &[]).await;
    let joined = beat(&mut client, &joining("g", "t")).await;
    assert_eq!(joined.error_code, 0, "{:?}", joined.error_message);
    assert_eq!(partitions(&joined), Some(vec![(topic, vec![0, 1])]));
    let crashed = server.start_after_crash().await;
    let mut after = crashed.client().await;
    let told = beat(&mut after, &beating("g", joined.member_epoch)).await;
    assert_eq!(
        (told.error_code, told.member_epoch),
        (0, joined.member_epoch)
    );
    let server = server.restart().await;
    let mut client = server.client().await;
    let told = beat(&mut client, &beating("g", joined.member_epoch)).await;
    assert_eq!(
        (told.error_code, told.member_epoch),
        (0, joined.member_epoch)
    );
    let listed = client
        .ask(5, &message!(messages::ListGroupsRequest {}))
        .await;
    assert_eq!(listed.groups[0].group_type.as_str(), "consumer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_learns_of_partitions_that_a_topic_gains_with_its_next_heartbeat() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let topic = client.create_topic("t", 1, &[]).await;
    let joined = beat(&mut client, &joining("g", "t")).await;
    let grown = client
        .ask(
            3,
            &message!(messages::CreatePartitionsRequest {
                topics: vec![message!(
                    messages::create_partitions_request::CreatePartitionsTopic {
                        name: "t".into(),
                        count: 3,
                        assignments: None,
                    }
                )],
                timeout_ms: 10_000,
            }),
        )
        .await;
    assert_eq!(grown.results[0].error_code, 0);
    let told = beat(&mut client, &beating("g", joined.member_epoch)).await;
    assert_eq!(partitions(&told), Some(vec![(topic, vec![0, 1, 2])]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_one_group_are_set_described_listed_and_heeded() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let alter = |value: &str| {
        message!(messages::IncrementalAlterConfigsRequest {
            resources: vec![message!(
                messages::incremental_alter_configs_request::AlterConfigsResource {
                    resource_type: GROUP_RESOURCE,
                    resource_name: "g".into(),
                    configs: vec![message!(
                        messages::incremental_alter_configs_request::AlterableConfig {
                            name: "consumer.heartbeat.interval.ms".into(),
                            value: Some(value.into()),
                        }
                    )],
                }
            )],
        })
    };
    for wrong in ["1", "99999", "soon"] {
        let refused = client.ask(1, &alter(wrong)).await;
        let error = refused.responses[0].error_code;
        assert_eq!(error, ErrorCode::InvalidConfig.code(), "{wrong}");
    }
    let altered = client.ask(1, &alter("6000")).await;
    assert_eq!(altered.responses[0].error_code, 0);
    let described = client
        .ask(
            4,
            &message!(messages::DescribeConfigsRequest {
                resources: vec![message!(
                    messages::describe_configs_request::DescribeConfigsResource {
                        resource_type: GROUP_RESOURCE,
                        resource_name: "g".into(),
                        configuration_keys: None,
                    }
                )],
            }),
        )
        .await;
    let configs = described.results[0].configs.iter();
    let values: Vec<(&str, Option<&str>, i8)> = configs
        .map(|config| {
            (
                config.name.as_str(),
                config.value.as_deref(),
                config.config_source,
            )
        })
        .collect();
    assert_eq!(
        values,
        [
            ("consumer.session.timeout.ms", Some("45000"), 5),
            ("consumer.heartbeat.interval.ms", Some("6000"), 8),
        ]
    );
    let listed = client
        .ask(
            1,
            &message!(messages::ListConfigResourcesRequest {
                resource_types: vec![GROUP_RESOURCE],
            }),
        )
        .await;
    assert_eq!(listed.config_resources.len(), 1);
    assert_eq!(listed.config_resources[0].resource_name.as_str(), "g");
    let joined = beat(&mut client, &joining("g", "t")).await;
    assert_eq!(joined.heartbeat_interval_ms, 6_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_feature_there_are_no_such_groups() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let set = |level: i16, upgrade_type: i8| {
        message!(messages::UpdateFeaturesRequest {
            feature_updates: vec![message!(
                messages::update_features_request::FeatureUpdateKey {
                    feature: "group.version".into(),
                    max_version_level: level,
                    upgrade_type,
                }
            )],
        })
    };
    // An unsafe downgrade, for groups may be there; and an upgrade.
    for (level, upgrade_type, expected) in [
        (0, 3, ErrorCode::UnsupportedVersion),
        (1, 1, ErrorCode::None),
    ] {
        let answer = client.ask(2, &set(level, upgrade_type)).await;
        assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
        let told = beat(&mut client, &joining("g", "t")).await;
        assert_eq!(told.error_code, expected.code());
    }
}

/// A member of a large group, as its client knows it.
struct Reader {
    id: String,
    epoch: i32,
    reads: BTreeSet<i32>,
}

impl Reader {
    fn new(number: usize) -> Self {
        Self {
            id: format!("member-{number}"),
            epoch: 0,
            reads: BTreeSet::new(),
        }
    }

    /// One heartbeat. What it is told to read it reads, and nothing else any more.
    async fn beat(&mut self, client: &mut Client, topic: Uuid) {
        let mut request = match self.epoch {
            0 => joining("large", "t"),
            epoch => beating("large", epoch),
        };
        request.member_id = self.id.clone().into();
        let mut reads = Vec::new();
        if !self.reads.is_empty() {
            reads.push(message!(TopicPartitions {
                topic_id: topic,
                partitions: self.reads.iter().copied().collect(),
            }));
        }
        request.topic_partitions = Some(reads);
        let answer = client.ask(1, &request).await;
        assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
        self.epoch = answer.member_epoch;
        if let Some(told) = partitions(&answer) {
            self.reads = told.into_iter().flat_map(|(_, of_it)| of_it).collect();
        }
    }
}

/// Everybody beats until the group is stable, and in every moment a partition has at most one
/// reader; returns who reads each in the end.
async fn settle(client: &mut Client, topic: Uuid, readers: &mut [Reader]) -> BTreeMap<i32, String> {
    for _ in 0..20 {
        let mut owners = BTreeMap::new();
        for reader in readers.iter() {
            for partition in &reader.reads {
                let other = owners.insert(*partition, reader.id.clone());
                assert_eq!(other, None, "{} reads {partition} too", reader.id);
            }
        }
        let described = client
            .ask(
                0,
                &message!(ConsumerGroupDescribeRequest {
                    group_ids: vec!["large".into()],
                }),
            )
            .await;
        let group = &described.groups[0];
        if group.group_state.as_str() == "Stable" && group.members.len() == readers.len() {
            return owners;
        }
        for reader in readers.iter_mut() {
            reader.beat(client, topic).await;
        }
    }
    panic!("the group does not come to rest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_members_share_all_partitions_and_one_more_moves_only_its_share() {
    const PARTITIONS: i32 = 500;
    let server = Server::start().await;
    let mut client = server.client().await;
    let topic = client.create_topic("t", PARTITIONS, &[]).await;
    // The coordinator is there, and the group is empty again.
    beat(&mut client, &joining("large", "t")).await;
    beat(&mut client, &beating("large", -1)).await;
    let mut readers: Vec<Reader> = (0..100).map(Reader::new).collect();
    let before = settle(&mut client, topic, &mut readers).await;
    assert_eq!(before.len(), PARTITIONS as usize, "all are read");
    assert!(readers.iter().all(|reader| reader.reads.len() == 5));

    readers.push(Reader::new(100));
    let after = settle(&mut client, topic, &mut readers).await;
    assert_eq!(after.len(), PARTITIONS as usize, "all are read");
    let moved = after
        .iter()
        .filter(|(partition, owner)| before[partition] != **owner)
        .map(|(_, owner)| owner.as_str());
    let moved: Vec<&str> = moved.collect();
    assert_eq!(moved, ["member-100"; 4]);
}
