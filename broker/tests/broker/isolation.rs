//! What transactions leave in partitions: markers, aborted data, and who reads past them.

use crate::{
    support::{
        Client, Server, batch, batch_with, fetch_request, only_partition, sequenced, value_of,
        wait_for,
    },
    transactions::transactional,
    versions::{Table, code},
};
use std::time::Duration;
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{
        DescribeProducersRequest, FetchRequest, FetchResponse, ListOffsetsRequest,
        WriteTxnMarkersRequest,
        describe_producers_request::TopicRequest,
        describe_producers_response::PartitionResponse,
        fetch_response::PartitionData,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
    },
    record::{RecordBatchBuilder, iter::shared_batches},
};

const LATEST: i64 = -1;

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

/// A fetch of committed records of partition 0 by name.
fn committed(offset: i64, max_wait_ms: i32) -> FetchRequest {
    let mut request = fetch_request("t", 0, offset, max_wait_ms, 1);
    request.isolation_level = 1;
    request
}

fn only(answer: FetchResponse) -> PartitionData {
    let mut partitions = answer
        .responses
        .into_iter()
        .next()
        .expect("a topic")
        .partitions;
    let only = partitions.remove(0);
    assert_eq!(only.error_code, 0);
    only
}

/// The values in an answer, of whichever transaction; markers have none.
fn values(answer: &PartitionData) -> Vec<String> {
    let Some(bytes) = &answer.records else {
        return Vec::new();
    };
    shared_batches(bytes.clone())
        .map(|batch| batch.expect("a whole batch"))
        .filter(|batch| !batch.header().is_control())
        .flat_map(|batch| batch.records(1 << 20).collect::<Vec<_>>())
        .map(|record| value_of(&record.expect("a record")))
        .collect()
}

async fn offset_at(client: &mut Client, timestamp: i64, isolation_level: i8) -> i64 {
    let request = message!(ListOffsetsRequest {
        replica_id: -1,
        isolation_level,
        topics: vec![message!(ListOffsetsTopic {
            name: "t".into(),
            partitions: vec![message!(ListOffsetsPartition {
                partition_index: 0,
                current_leader_epoch: -1,
                timestamp,
            })],
        })],
    });
    let answer = client.ask(6, &request).await;
    answer.topics[0].partitions[0].offset
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_committed_records_wait_for_the_end_of_a_transaction() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut reader = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let who = client.init(60_000).await;
    let early = batch_with(RecordBatchBuilder::new(), 1000, &["before"]);
    client.produce("t", early).await;
    assert_eq!(client.add(who, &[("t", 0)]).await, [0]);
    let in_transaction = transactional(who, 0, &["a", "b"]);
    assert_eq!(client.write_in(9, "t", in_transaction).await, 0);
    client.produce("t", batch(&["after"])).await;

    let answer = only(reader.ask(11, &committed(0, 0)).await);
    assert_eq!((answer.last_stable_offset, answer.high_watermark), (1, 4));
    assert_eq!(values(&answer), ["before"]);
    for (timestamp, isolation, expected) in [
        (LATEST, 0, 4),
        (LATEST, 1, 1),
        (1000, 1, 0),
        (1001, 0, 1),
        (1001, 1, -1),
    ] {
        let found = offset_at(&mut reader, timestamp, isolation).await;
        assert_eq!(found, expected, "{timestamp} {isolation}");
    }
    let described = describe(&mut client, "t").await;
    let open = &described.active_producers[0];
    assert_eq!(
        (open.producer_id, open.current_txn_start_offset),
        (who.0, 1)
    );

    let waiting = reader.send(11, &committed(1, 20_000)).await;
    client.produce("t", batch(&["more"])).await;
    let early = reader.is_answered_within(Duration::from_millis(300)).await;
    assert!(!early, "the transaction is still open");
    assert_eq!(client.end(3, who, true).await.error_code, 0);
    let answer = only(reader.receive(waiting, 11).await);
    assert_eq!(answer.last_stable_offset, 6);
    assert_eq!(values(&answer), ["a", "b", "after", "more"]);
    assert_eq!(answer.aborted_transactions, Some(Vec::new()));
    assert_eq!(offset_at(&mut reader, LATEST, 1).await, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_committed_records_are_told_what_was_aborted_also_after_a_crash() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let who = client.init(60_000).await;
    for (sequence, value, commit) in [(0, "a", false), (1, "b", true), (2, "c", false)] {
        let added = wait_for("the transaction before is over", async || {
            let added = client.add(who, &[("t", 0)]).await;
            (added != [code(ErrorCode::ConcurrentTransactions)]).then_some(added)
        });
        assert_eq!(added.await, [0]);
        let batch = transactional(who, sequence, &[value]);
        assert_eq!(client.write_in(9, "t", batch).await, 0, "{value}");
        assert_eq!(client.end(3, who, commit).await.error_code, 0);
    }
    wait_for("the last marker", async || {
        (offset_at(&mut client, LATEST, 1).await == 6).then_some(())
    })
    .await;
    let crashed = server.start_after_crash().await;
    let mut after = crashed.client().await;
    for client in [&mut client, &mut after] {
        for version in [4, 11, 12] {
            let answer = only(client.ask(version, &committed(0, 0)).await);
            assert_eq!(values(&answer), ["a", "b", "c"]);
            let told = answer.aborted_transactions.iter().flatten();
            let told: Vec<_> = told
                .map(|one| (one.producer_id, one.first_offset))
                .collect();
            assert_eq!(told, [(who.0, 0), (who.0, 4)], "version {version}");
        }
        let answer = only(client.ask(11, &committed(2, 0)).await);
        assert_eq!(answer.aborted_transactions.map_or(0, |told| told.len()), 1);
        let uncommitted = only(client.fetch("t", 0).await);
        assert_eq!(uncommitted.aborted_transactions, None);
    }
    // A transaction of which the coordinator knows nothing does not begin.
    let mut late = crate::support::produce_request("t", 0, -1, transactional(who, 3, &["late"]));
    late.transactional_id = Some("tx".into());
    let refused = only_partition(client.ask(9, &late).await);
    assert_eq!(refused.error_code, code(ErrorCode::InvalidTxnState));
}
