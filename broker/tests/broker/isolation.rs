//! What transactions leave in partitions: markers, aborted data, and who reads past them.

use crate::{
    support::{Client, Server, sequenced},
    versions::{Table, code},
};
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{
        DescribeProducersRequest, WriteTxnMarkersRequest,
        describe_producers_request::TopicRequest,
        describe_producers_response::PartitionResponse,
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
    },
};

/// A marker for partition 0 of `topic`.
fn marker(topic: &str, producer_id: i64, producer_epoch: i16) -> WritableTxnMarker {
    message!(WritableTxnMarker {
        producer_id,
        producer_epoch,
        transaction_result: true,
        coordinator_epoch: 5,
        topics: vec![message!(WritableTxnMarkerTopic {
            name: topic.into(),
            partition_indexes: vec![0],
        })],
    })
}

/// Sends markers; the error of the only partition of each.
async fn write(client: &mut Client, markers: Vec<WritableTxnMarker>) -> Vec<i16> {
    let answer = client
        .ask(1, &message!(WriteTxnMarkersRequest { markers }))
        .await;
    let only = answer.markers.iter().map(|marker| {
        let partitions = &marker.topics[0].partitions;
        assert_eq!((marker.topics.len(), partitions.len()), (1, 1));
        partitions[0].error_code
    });
    only.collect()
}

async fn describe(client: &mut Client, topic: &str) -> PartitionResponse {
    let request = message!(DescribeProducersRequest {
        topics: vec![message!(TopicRequest {
            name: topic.into(),
            partition_indexes: vec![0],
        })],
    });
    let answer = client.ask(0, &request).await;
    answer.topics[0].partitions[0].clone()
}

/// The rows of these APIs in the table of all versions.
pub(crate) async fn check(table: &mut Table, topic: &str) {
    table
        .row(
            |_| {
                message!(WriteTxnMarkersRequest {
                    markers: vec![marker(topic, 900, 1), marker("unknown", 900, 1)],
                })
            },
            |version, answer| {
                let told = |at: usize| answer.markers[at].topics[0].partitions[0].error_code;
                assert_eq!(answer.markers[0].producer_id, 900, "version {version}");
                assert_eq!(told(0), 0, "version {version}");
                assert_eq!(told(1), code(ErrorCode::UnknownTopicOrPartition));
            },
        )
        .await;
    table
        .row(
            |_| {
                message!(DescribeProducersRequest {
                    topics: vec![message!(TopicRequest {
                        name: topic.into(),
                        partition_indexes: vec![0, 77],
                    })],
                })
            },
            |_, answer| {
                let partitions = &answer.topics[0].partitions;
                assert_eq!(partitions[0].error_code, 0);
                let known = &partitions[0].active_producers;
                assert!(known.iter().any(|one| one.producer_id == 900));
                let unknown = code(ErrorCode::UnknownTopicOrPartition);
                assert_eq!(partitions[1].error_code, unknown);
            },
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_are_fenced_by_the_epochs_of_producer_and_coordinator() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let nobodys = marker("t", -1, 0);
    let mut old_coordinator = marker("t", 7, 3);
    old_coordinator.coordinator_epoch = 4;
    let errors = write(
        &mut client,
        vec![
            marker("t", 7, 3),
            marker("t", 7, 2),
            old_coordinator,
            nobodys,
            marker("t", 7, 3),
        ],
    )
    .await;
    let expected = [
        ErrorCode::None,
        ErrorCode::InvalidProducerEpoch,
        ErrorCode::TransactionCoordinatorFenced,
        ErrorCode::InvalidRequest,
        ErrorCode::None,
    ];
    assert_eq!(errors, expected.map(code));
    let described = describe(&mut client, "t").await;
    assert_eq!(described.active_producers.len(), 1);
    let known = &described.active_producers[0];
    assert_eq!((known.producer_id, known.producer_epoch), (7, 3));
    assert_eq!((known.coordinator_epoch, known.last_sequence), (5, -1));
    assert_eq!(known.current_txn_start_offset, -1);
    // What the producer's older life still sends comes too late.
    let late = client.produce("t", sequenced(7, 2, 0, &["late"])).await;
    assert_eq!(late.error_code, code(ErrorCode::InvalidProducerEpoch));
    assert_eq!(client.values("t", 0).await.len(), 2, "two markers, no data");
}
