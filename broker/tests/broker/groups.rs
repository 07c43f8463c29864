//! Groups over sockets. What a group decides is tested with the coordinator; here is
//! what the broker adds: the log below it, restarts, and deleted topics.

use crate::support::{Client, Server, wait_for};
use yuxi_protocol::{
    message,
    messages::{
        self, OffsetCommitRequest, OffsetFetchRequest,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestTopic,
    },
};

/// Finds the coordinator, which makes the groups' topic, and waits until it serves.
pub(crate) async fn commit(client: &mut Client, group: &str, topic: &str, offset: i64) {
    wait_for("the commit", async || {
        client
            .ask(
                2,
                &message!(messages::FindCoordinatorRequest { key: group.into() }),
            )
            .await;
        let answer = client
            .ask(
                5,
                &message!(OffsetCommitRequest {
                    group_id: group.into(),
                    generation_id_or_member_epoch: -1,
                    topics: vec![message!(OffsetCommitRequestTopic {
                        name: topic.into(),
                        partitions: vec![message!(OffsetCommitRequestPartition {
                            partition_index: 0,
                            committed_offset: offset,
                        })],
                    })],
                }),
            )
            .await;
        (answer.topics[0].partitions[0].error_code == 0).then_some(())
    })
    .await;
}

pub(crate) async fn committed(client: &mut Client, group: &str, topic: &str) -> i64 {
    wait_for("the offsets", async || {
        let answer = client
            .ask(
                5,
                &message!(OffsetFetchRequest {
                    group_id: group.into(),
                    topics: Some(vec![message!(OffsetFetchRequestTopic {
                        name: topic.into(),
                        partition_indexes: vec![0],
                    })]),
                }),
            )
            .await;
        let partition = answer.topics.first().map(|topic| &topic.partitions[0]);
        (answer.error_code == 0)
            .then(|| partition.map_or(-1, |partition| partition.committed_offset))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_offsets_survive_a_restart_and_a_crash() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    for group in ["a", "b", "c", "d"] {
        commit(&mut client, group, "t", 7).await;
    }
    commit(&mut client, "a", "t", 8).await;
    let crashed = server.start_after_crash().await;
    let mut after = crashed.client().await;
    assert_eq!(committed(&mut after, "a", "t").await, 8);
    let server = server.restart().await;
    let mut client = server.client().await;
    assert_eq!(committed(&mut client, "a", "t").await, 8);
    assert_eq!(committed(&mut client, "d", "t").await, 7);
    let listed = client
        .ask(4, &message!(messages::ListGroupsRequest {}))
        .await;
    assert_eq!(listed.groups.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_offsets_of_a_deleted_topic_go_with_it() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for topic in ["stays", "goes"] {
        client.create_topic(topic, 1, &[]).await;
        commit(&mut client, "g", topic, 3).await;
    }
    client
        .ask(
            5,
            &message!(messages::DeleteTopicsRequest {
                topic_names: vec!["goes".into()],
                timeout_ms: 10_000,
            }),
        )
        .await;
    client.create_topic("goes", 1, &[]).await;
    assert_eq!(committed(&mut client, "g", "goes").await, -1);
    assert_eq!(committed(&mut client, "g", "stays").await, 3);
    let server = server.restart().await;
    let mut client = server.client().await;
    assert_eq!(
        committed(&mut client, "g", "goes").await,
        -1,
        "after a restart"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_cannot_write_or_cut_the_groups_own_topic() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    commit(&mut client, "g", "t", 1).await;
    let answer = client
        .produce("__consumer_offsets", crate::support::batch(&["x"]))
        .await;
    assert_eq!(answer.error_code, 17);
    assert_eq!(committed(&mut client, "g", "t").await, 1);
}
