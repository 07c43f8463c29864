//! Offsets that are committed as part of a transaction, from AddOffsetsToTxn to the marker
//! in the group's partition.

use crate::support::{Client, Server, wait_for};
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{
        AddOffsetsToTxnRequest, EndTxnRequest, FindCoordinatorRequest, InitProducerIdRequest,
        OffsetFetchRequest, TxnOffsetCommitRequest, WriteTxnMarkersRequest,
        offset_fetch_request::OffsetFetchRequestTopic,
        txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic},
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
    },
};

const ID: &str = "copier";
const GROUP: &str = "g";

type Who = (i64, i16);

/// A transactional producer, once both coordinators are there.
async fn init(client: &mut Client) -> Who {
    wait_for("a producer id", async || {
        for (key, key_type) in [(GROUP, 0), (ID, 1)] {
            let find = message!(FindCoordinatorRequest {
                key: key.into(),
                key_type,
            });
            client.ask(3, &find).await;
        }
        let answer = client
            .ask(
                4,
                &message!(InitProducerIdRequest {
                    transactional_id: Some(ID.into()),
                    transaction_timeout_ms: 60_000,
                    producer_id: -1,
                    producer_epoch: -1,
                }),
            )
            .await;
        (answer.error_code == 0).then_some((answer.producer_id, answer.producer_epoch))
    })
    .await
}

async fn add_offsets(client: &mut Client, (producer_id, producer_epoch): Who) -> i16 {
    let request = message!(AddOffsetsToTxnRequest {
        transactional_id: ID.into(),
        producer_id,
        producer_epoch,
        group_id: GROUP.into(),
    });
    let answer = wait_for("the last transaction's end", async || {
        let answer = client.ask(3, &request).await;
        let busy = ErrorCode::ConcurrentTransactions.code();
        (answer.error_code != busy).then_some(answer)
    });
    answer.await.error_code
}

async fn commit(client: &mut Client, version: i16, who: Who, offset: i64) -> i16 {
    let request = message!(TxnOffsetCommitRequest {
        transactional_id: ID.into(),
        group_id: GROUP.into(),
        producer_id: who.0,
        producer_epoch: who.1,
        generation_id_or_member_epoch: -1,
        topics: vec![message!(TxnOffsetCommitRequestTopic {
            name: "t".into(),
            partitions: vec![message!(TxnOffsetCommitRequestPartition {
                committed_offset: offset,
            })],
        })],
    });
    let answer = wait_for("the coordinators", async || {
        let answer = client.ask(version, &request).await;
        let error = answer.topics[0].partitions[0].error_code;
        let not_yet = [
            ErrorCode::CoordinatorLoadInProgress,
            ErrorCode::CoordinatorNotAvailable,
            ErrorCode::NotCoordinator,
        ];
        let waits = not_yet.iter().any(|not_yet| not_yet.code() == error);
        (!waits).then_some(error)
    });
    answer.await
}

async fn end(client: &mut Client, version: i16, who: Who, committed: bool) -> Who {
    let answer = client
        .ask(
            version,
            &message!(EndTxnRequest {
                transactional_id: ID.into(),
                producer_id: who.0,
                producer_epoch: who.1,
                committed,
            }),
        )
        .await;
    assert_eq!(answer.error_code, 0);
    (answer.producer_id, answer.producer_epoch)
}

/// The committed offset, or the error, of readers that want it stable.
async fn stable(client: &mut Client) -> Result<i64, ErrorCode> {
    let request = message!(OffsetFetchRequest {
        group_id: GROUP.into(),
        require_stable: true,
        topics: Some(vec![message!(OffsetFetchRequestTopic {
            name: "t".into(),
            partition_indexes: vec![0],
        })]),
    });
    wait_for("the offsets", async || {
        let answer = client.ask(7, &request).await;
        let partition = answer.topics.first().map(|topic| &topic.partitions[0]);
        (answer.error_code == 0).then(|| {
            let partition = partition.expect("the partition that was asked about");
            match ErrorCode::from_code(partition.error_code) {
                Some(ErrorCode::None) => Ok(partition.committed_offset),
                error => Err(error.expect("a known error")),
            }
        })
    })
    .await
}

async fn until_stable(client: &mut Client) -> i64 {
    wait_for("the marker", async || stable(client).await.ok()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_told_when_their_transaction_is_committed_also_after_a_crash() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let who = init(&mut client).await;
    // By the old protocol, the transaction has to know of the group first.
    let unasked = commit(&mut client, 3, who, 1).await;
    assert_eq!(unasked, ErrorCode::InvalidTxnState.code());
    assert_eq!(add_offsets(&mut client, who).await, 0);
    assert_eq!(commit(&mut client, 3, who, 5).await, 0);
    assert_eq!(
        stable(&mut client).await,
        Err(ErrorCode::UnstableOffsetCommit)
    );
    let crashed = server.start_after_crash().await;
    let mut client = crashed.client().await;
    assert_eq!(
        stable(&mut client).await,
        Err(ErrorCode::UnstableOffsetCommit)
    );
    wait_for("the transaction's coordinator", async || {
        let find = message!(FindCoordinatorRequest {
            key: ID.into(),
            key_type: 1,
        });
        client.ask(3, &find).await;
        (add_offsets(&mut client, who).await == 0).then_some(())
    })
    .await;
    end(&mut client, 3, who, true).await;
    assert_eq!(until_stable(&mut client).await, 5);
    assert_eq!(add_offsets(&mut client, who).await, 0);
    assert_eq!(commit(&mut client, 3, who, 9).await, 0);
    end(&mut client, 3, who, false).await;
    assert_eq!(
        until_stable(&mut client).await,
        5,
        "what was aborted is not told"
    );
    let server = crashed.restart().await;
    let mut client = server.client().await;
    assert_eq!(until_stable(&mut client).await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_the_new_protocol_the_commit_itself_adds_the_group_and_old_epochs_are_fenced() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let who = init(&mut client).await;
    assert_eq!(commit(&mut client, 5, who, 5).await, 0);
    let next = end(&mut client, 5, who, true).await;
    assert_eq!(until_stable(&mut client).await, 5);
    assert!(next.1 > who.1, "each transaction has its epoch");
    let late = commit(&mut client, 5, who, 6).await;
    assert_eq!(late, ErrorCode::InvalidProducerEpoch.code());
    assert_eq!(commit(&mut client, 5, next, 7).await, 0);
    end(&mut client, 5, next, true).await;
    assert_eq!(until_stable(&mut client).await, 7);
    // A marker from something that is no coordinator of this time.
    let marker = message!(WritableTxnMarker {
        producer_id: who.0,
        producer_epoch: who.1,
        transaction_result: true,
        coordinator_epoch: -1,
        topics: (0..50)
            .map(|partition| message!(WritableTxnMarkerTopic {
                name: "__consumer_offsets".into(),
                partition_indexes: vec![partition],
            }))
            .collect(),
    });
    let request = message!(WriteTxnMarkersRequest {
        markers: vec![marker],
    });
    let answer = client.ask(1, &request).await;
    let topics = answer.markers[0].topics.iter();
    let refused = topics.filter(|topic| topic.partitions[0].error_code != 0);
    assert!(refused.count() >= 1, "where the group is");
    assert_eq!(until_stable(&mut client).await, 7);
}
