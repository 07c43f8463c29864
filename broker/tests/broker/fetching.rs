//! Fetching: when an answer comes, how much is in it, who may ask, and what a session tells.

use crate::records::{code, topic};
use crate::support::{Server, batch, fetch_partition, fetch_request, produce_request, records};
use bytes::Bytes;
use std::time::{Duration, Instant};
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{
        FetchRequest, FetchResponse,
        fetch_request::{FetchTopic, ForgottenTopic},
    },
    record::BatchView,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_ends_with_the_first_record_or_with_its_time() {
    let server = Server::start().await;
    let mut client = topic(&server, &[]).await;
    let began = Instant::now();
    let answer = client.ask(11, &fetch_request("t", 0, 0, 300, 1)).await;
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        answer.responses[0].partitions[0].records,
        Some(Bytes::new())
    );

    let id = client.send(11, &fetch_request("t", 0, 0, 20_000, 1)).await;
    assert!(!client.is_answered_within(Duration::from_millis(50)).await);
    let began = Instant::now();
    server.client().await.produce("t", batch(&["x"])).await;
    let answer: FetchResponse = client.receive(id, 11).await;
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!records(answer.responses[0].partitions[0].records.as_ref()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_ends_with_a_closed_segment_does_not_wait_for_more_bytes() {
    let server = Server::start().await;
    let mut client = topic(&server, &[("segment.bytes", "1048576")]).await;
    let large = "x".repeat(400_000);
    for _ in 0..6 {
        client.produce("t", batch(&[&large])).await;
    }
    let began = Instant::now();
    let answer = client
        .ask(11, &fetch_request("t", 0, 0, 20_000, 10_000_000))
        .await;
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!records(answer.responses[0].partitions[0].records.as_ref()).is_empty());
    assert_eq!(client.values("t", 0).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_is_bounded_by_bytes_but_for_its_first_batch() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 2, &[]).await;
    let value = "x".repeat(1000);
    for partition in [0, 1] {
        for _ in 0..10 {
            client
                .ask(9, &produce_request("t", partition, 1, batch(&[&value])))
                .await;
        }
    }
    let fetch = |max_bytes: i32, partition_bytes: i32| {
        let mut request = fetch_request("t", 0, 0, 0, 1);
        request.max_bytes = max_bytes;
        request.topics[0].partitions.push(fetch_partition(1, 0));
        for partition in &mut request.topics[0].partitions {
            partition.partition_max_bytes = partition_bytes;
        }
        request
    };
    for (max_bytes, partition_bytes, expected) in [
        (1, 1, [1, 0]),
        (0, 0, [1, 0]),
        (1 << 20, 2500, [2, 2]),
        (3500, 1 << 20, [3, 0]),
        (12_000, 1 << 20, [10, 1]),
    ] {
        let answer = client.ask(11, &fetch(max_bytes, partition_bytes)).await;
        let found: Vec<_> = answer.responses[0]
            .partitions
            .iter()
            .map(|partition| records(partition.records.as_ref()).len())
            .collect();
        assert_eq!(found, expected, "{max_bytes} {partition_bytes}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_of_all_sizes_come_whole_and_in_order_in_one_answer() {
    const KIB: usize = 1024;
    let sizes = [1, 20, 60, 127, 129, 500, 2, 300, 128, 40].map(|kib| kib * KIB);
    // More pieces than one system call takes.
    let sizes: Vec<usize> = sizes.into_iter().chain([100 * KIB; 90]).collect();
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", sizes.len() as i32, &[]).await;
    let mut fetch = fetch_request("t", 0, 0, 0, 1);
    fetch.topics[0].partitions.clear();
    let values: Vec<String> = (0..)
        .zip(&sizes)
        .map(|(partition, &size)| {
            fetch.topics[0]
                .partitions
                .push(fetch_partition(partition, 0));
            format!("{partition} ").repeat(size / 2)[..size].to_owned()
        })
        .collect();
    for (partition, value) in (0..).zip(&values) {
        let request = produce_request("t", partition, 1, batch(&[value]));
        client.ask(9, &request).await;
    }
    // More than sockets take before anybody reads.
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(client.send(11, &fetch).await);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    for id in ids {
        let answer: FetchResponse = client.receive(id, 11).await;
        let found = answer.responses[0].partitions.iter();
        for (partition, value) in found.zip(&values) {
            let records = records(partition.records.as_ref());
            assert_eq!(records.len(), 1);
            let is_whole = records[0].value.as_deref() == Some(value.as_bytes());
            assert!(is_whole, "partition {}", partition.partition_index);
        }
        assert_eq!(answer.responses[0].partitions.len(), values.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_epochs_fence_fetches_and_lookups() {
    let server = Server::start().await;
    let mut client = topic(&server, &[]).await;
    client.produce("t", batch(&["x"])).await;
    let fetched = client.fetch("t", 0).await;
    let bytes = fetched.responses[0].partitions[0]
        .records
        .clone()
        .expect("records");
    let epoch = BatchView::parse(&bytes)
        .expect("a batch")
        .header()
        .partition_leader_epoch
        .value();
    for (believed, expected) in [
        (epoch, 0),
        (-1, 0),
        (epoch + 1, code(ErrorCode::UnknownLeaderEpoch)),
    ] {
        let mut request = fetch_request("t", 0, 0, 0, 1);
        request.topics[0].partitions[0].current_leader_epoch = believed;
        let answer = client.ask(12, &request).await;
        assert_eq!(answer.responses[0].partitions[0].error_code, expected);
    }
    let mut request = fetch_request("t", 0, 1, 0, 1);
    request.topics[0].partitions[0].last_fetched_epoch = epoch + 5;
    let answer = client.ask(12, &request).await;
    let partition = &answer.responses[0].partitions[0];
    assert!(
        partition.error_code == code(ErrorCode::OffsetOutOfRange)
            || partition.diverging_epoch.epoch >= 0,
        "{partition:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_claims_to_be_a_replica_reads_nothing() {
    let server = Server::start().await;
    let mut client = topic(&server, &[]).await;
    client.produce("t", batch(&["x"])).await;
    let mut request = fetch_request("t", 0, 0, 0, 1);
    request.replica_id = 2;
    let answer = client.ask(11, &request).await;
    let partition = &answer.responses[0].partitions[0];
    assert_eq!(
        partition.error_code,
        code(ErrorCode::ClusterAuthorizationFailed)
    );
    assert_eq!(partition.records, Some(Bytes::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_session_tells_only_what_is_new() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let id = client.create_topic("t", 3, &[]).await;
    let session = |session_id, session_epoch, partitions: &[(i32, i64)]| {
        message!(FetchRequest {
            min_bytes: 1,
            max_bytes: 1 << 20,
            session_id,
            session_epoch,
            topics: if partitions.is_empty() {
                vec![]
            } else {
                vec![message!(FetchTopic {
                    topic_id: id,
                    partitions: partitions
                        .iter()
                        .map(|&(partition, offset)| fetch_partition(partition, offset))
                        .collect(),
                })]
            },
        })
    };
    let told = |answer: &FetchResponse| -> Vec<i32> {
        answer
            .responses
            .iter()
            .flat_map(|topic| &topic.partitions)
            .map(|partition| partition.partition_index)
            .collect()
    };
    let full = client
        .ask(16, &session(0, 0, &[(0, 0), (1, 0), (2, 0)]))
        .await;
    assert_eq!(told(&full), [0, 1, 2]);
    let session_id = full.session_id;
    assert_ne!(session_id, 0);
    let nothing = client.ask(16, &session(session_id, 1, &[])).await;
    assert_eq!(told(&nothing), [0; 0]);
    client
        .ask(9, &produce_request("t", 1, 1, batch(&["x"])))
        .await;
    let one = client.ask(16, &session(session_id, 2, &[])).await;
    assert_eq!(told(&one), [1]);
    let moved = client.ask(16, &session(session_id, 3, &[(1, 1)])).await;
    assert_eq!(told(&moved), [0; 0]);
    let mut forget = session(session_id, 4, &[]);
    forget.forgotten_topics_data = vec![message!(ForgottenTopic {
        topic_id: id,
        partitions: vec![1],
    })];
    client.ask(16, &forget).await;
    client
        .ask(9, &produce_request("t", 1, 1, batch(&["y"])))
        .await;
    let forgotten = client.ask(16, &session(session_id, 5, &[])).await;
    assert_eq!(told(&forgotten), [0; 0]);
    let stale = client.ask(16, &session(session_id, 5, &[])).await;
    assert_eq!(stale.error_code, code(ErrorCode::InvalidFetchSessionEpoch));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_topic_wakes_its_readers_and_refuses_its_writers() {
    let server = Server::start().await;
    let mut client = topic(&server, &[("flush.messages", "1")]).await;
    client.produce("t", batch(&["x"])).await;
    let id = client.send(11, &fetch_request("t", 0, 1, 20_000, 1)).await;
    let mut other = server.client().await;
    let writer = {
        let mut writer = server.client().await;
        tokio::spawn(async move {
            loop {
                let answer = writer.produce("t", batch(&["y"])).await;
                if answer.error_code != 0 {
                    return answer.error_code;
                }
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    other.delete_topic("t").await;
    let refused = crate::support::soon("a refusal", writer)
        .await
        .expect("no panic");
    assert!([3, 6].contains(&refused), "{refused}");
    let mut offset = 1;
    let mut answer: FetchResponse = client.receive(id, 11).await;
    while answer.responses[0].partitions[0].error_code == 0 {
        offset += 1;
        answer = client
            .ask(11, &fetch_request("t", 0, offset, 20_000, 1))
            .await;
    }
    assert_eq!(answer.responses[0].partitions[0].error_code, 3);
    // The name is free again, for a topic that is empty.
    for round in 0..20 {
        other.create_topic("t", 1, &[("flush.messages", "1")]).await;
        assert_eq!(
            other.produce("t", batch(&["new"])).await.base_offset,
            0,
            "{round}"
        );
        // Deleted while its flush may be running.
        other
            .send(9, &produce_request("t", 0, 0, batch(&["late"])))
            .await;
        other.delete_topic("t").await;
    }
    other.create_topic("last", 1, &[]).await;
    assert_eq!(other.produce("last", batch(&["x"])).await.error_code, 0);
}
