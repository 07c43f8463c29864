//! Many requests on one connection: their effects at once, their answers in order, and
//! what is wrong with one of them after the answers to those before it.

use crate::support::{
    Server, batch, fetch_request, only_partition, produce_request, records, value_of,
};
use std::time::Duration;
use yuxi_protocol::{
    message,
    messages::{
        DeleteRecordsRequest, DeleteRecordsResponse, FetchResponse, MetadataRequest,
        MetadataResponse, ProduceResponse,
        delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
    },
};

const LONG_MS: i32 = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn produces_sent_without_waiting_are_appended_and_answered_in_order() {
    for acks in [1, -1] {
        let server = Server::start().await;
        let mut client = server.client().await;
        client.create_topic("t", 1, &[]).await;
        let mut together = Vec::new();
        let mut ids = Vec::new();
        for value in ["0", "1", "2", "3", "4"] {
            let (id, frame) = client.encode(9, &produce_request("t", 0, acks, batch(&[value])));
            together.extend_from_slice(&frame);
            ids.push(id);
        }
        client.write(&together).await;
        for (expected, id) in (0..).zip(ids) {
            let answer: ProduceResponse = client.receive(id, 9).await;
            assert_eq!(only_partition(answer).base_offset, expected);
        }
        assert_eq!(client.values("t", 0).await, ["0", "1", "2", "3", "4"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_their_turn_are_all_answered() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut together = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..20 {
        let (id, frame) = client.encode(9, &message!(MetadataRequest { topics: None }));
        together.extend_from_slice(&frame);
        ids.push(id);
    }
    client.write(&together).await;
    for id in ids {
        let answer: MetadataResponse = client.receive(id, 9).await;
        assert_eq!(answer.brokers.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_does_not_keep_a_later_produce_from_taking_effect() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("polled", 1, &[]).await;
    client.create_topic("written", 1, &[]).await;
    let fetch = client
        .send(11, &fetch_request("polled", 0, 0, LONG_MS, 1))
        .await;
    let produce = client
        .send(9, &produce_request("written", 0, 1, batch(&["x"])))
        .await;
    let mut other = server.client().await;
    crate::support::wait_for("the produce", async || {
        (other.values("written", 0).await == ["x"]).then_some(())
    })
    .await;
    assert!(
        !client.is_answered_within(Duration::from_millis(50)).await,
        "the produce's answer must not overtake the fetch's"
    );
    other.produce("polled", batch(&["y"])).await;
    let fetched: FetchResponse = client.receive(fetch, 11).await;
    let found = records(fetched.responses[0].partitions[0].records.as_ref());
    assert_eq!(value_of(&found[0]), "y");
    let produced: ProduceResponse = client.receive(produce, 9).await;
    assert_eq!(only_partition(produced).error_code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_turn_sees_what_those_before_it_did() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client
        .create_topic("t", 1, &[("flush.messages", "1")])
        .await;
    let (produced, mut together) = {
        let (id, frame) = client.encode(9, &produce_request("t", 0, -1, batch(&["x", "y"])));
        (id, frame.to_vec())
    };
    let (deleted, frame) = client.encode(2, &delete_all("t"));
    together.extend_from_slice(&frame);
    client.write(&together).await;
    let answer: ProduceResponse = client.receive(produced, 9).await;
    assert_eq!(only_partition(answer).error_code, 0);
    let answer: DeleteRecordsResponse = client.receive(deleted, 2).await;
    assert_eq!(answer.topics[0].partitions[0].low_watermark, 2);
}

/// Everything below the high watermark.
fn delete_all(topic: &str) -> DeleteRecordsRequest {
    message!(DeleteRecordsRequest {
        topics: vec![message!(DeleteRecordsTopic {
            name: topic.into(),
            partitions: vec![message!(DeleteRecordsPartition {
                partition_index: 0,
                offset: -1,
            })],
        })],
        timeout_ms: 1000,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_bad_frame_is_answered_before_the_connection_ends() {
    let bad_frames: [&[u8]; 4] = [
        &[0xff, 0xff, 0xff, 0xff],
        &[0x7f, 0xff, 0xff, 0xff],
        &[0, 0, 0, 2, 0, 0],
        &[0, 0, 0, 8, 0x70, 0, 0, 0, 0, 0, 0, 9],
    ];
    let server = Server::start().await;
    server.client().await.create_topic("t", 1, &[]).await;
    for (at, bad) in bad_frames.iter().enumerate() {
        let mut client = server.client().await;
        let mut together = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..2 {
            let (id, frame) = client.encode(9, &produce_request("t", 0, -1, batch(&["x"])));
            together.extend_from_slice(&frame);
            ids.push(id);
        }
        let (listed, frame) = client.encode(9, &message!(MetadataRequest { topics: None }));
        together.extend_from_slice(&frame);
        together.extend_from_slice(bad);
        client.write(&together).await;
        for id in ids {
            let answer: ProduceResponse = client.receive(id, 9).await;
            assert_eq!(only_partition(answer).error_code, 0, "bad frame {at}");
        }
        let _: MetadataResponse = client.receive(listed, 9).await;
        client.expect_closed("a bad frame").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_0_is_never_answered_and_its_failure_ends_the_connection_in_its_turn() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    client
        .send(9, &produce_request("t", 0, 0, batch(&["quiet"])))
        .await;
    let answer = client.produce("t", batch(&["loud"])).await;
    assert_eq!(
        answer.base_offset, 1,
        "the first answer is the second request's"
    );

    let (id, frame) = client.encode(9, &produce_request("t", 0, 1, batch(&["z"])));
    let (_, bad) = client.encode(9, &produce_request("nowhere", 0, 0, batch(&["z"])));
    client.write(&[frame, bad].concat()).await;
    let answer: ProduceResponse = client.receive(id, 9).await;
    assert_eq!(only_partition(answer).base_offset, 2);
    client.expect_closed("a failed produce without acks").await;
}
