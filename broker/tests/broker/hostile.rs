//! Frames that no client sends. Each ends its own connection or gets an error; the
//! broker goes on serving the others.

use crate::support::{Client, Server, batch, owned, produce_request, soon, start_broker, wait_for};
use std::time::Duration;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use yuxi_protocol::{
    message,
    messages::{ApiVersionsRequest, MetadataRequest},
};

async fn assert_serves(server: &Server, after: &str) {
    let mut client = server.client().await;
    let answer = client.ask(0, &ApiVersionsRequest::default()).await;
    assert_eq!(answer.error_code, 0, "after {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_an_impossible_size_end_their_connection() {
    let server = Server::start().await;
    for size in [i32::MAX, i32::MIN, -1, 104_857_601, 0, 1, 7] {
        let mut client = server.client().await;
        client.write(&size.to_be_bytes()).await;
        if size > 0 && size < 8 {
            client.write(&vec![0; size as usize]).await;
        }
        client.expect_closed(&format!("size {size}")).await;
    }
    assert_serves(&server, "impossible sizes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_cut_off_disturbs_nobody() {
    let server = Server::start().await;
    let mut whole = server.client().await;
    let (_, frame) = whole.encode(9, &produce_request("t", 0, 1, batch(&["x"])));
    for cut in 0..frame.len() {
        let mut client = server.client().await;
        client.write(&frame[..cut]).await;
        drop(client);
    }
    assert_serves(&server, "frames that were cut off").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_api_or_version_ends_the_connection() {
    let server = Server::start().await;
    let listed = server
        .client()
        .await
        .ask(0, &ApiVersionsRequest::default())
        .await;
    let mut wrong = vec![
        (-1, 0),
        (12_345, 0),
        (i16::MAX, i16::MAX),
        (i16::MIN, 0),
        (52, 0),
    ];
    for api in &listed.api_keys {
        if api.api_key != 18 {
            wrong.push((api.api_key, api.max_version + 1));
            wrong.push((api.api_key, -1));
        }
    }
    for (key, version) in wrong {
        let mut client = server.client().await;
        let mut frame = vec![0, 0, 0, 10];
        frame.extend_from_slice(&i16::to_be_bytes(key));
        frame.extend_from_slice(&i16::to_be_bytes(version));
        frame.extend_from_slice(&[0, 0, 0, 1, 0xff, 0xff]);
        client.write(&frame).await;
        client
            .expect_closed(&format!("api {key} version {version}"))
            .await;
    }
    assert_serves(&server, "unknown APIs").await;
}

/// After the head of each API's newest version, four or more bytes that may be a count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_count_of_two_billion_costs_nothing_in_any_api_and_version() {
    let server = Server::start().await;
    let listed = server
        .client()
        .await
        .ask(0, &ApiVersionsRequest::default())
        .await;
    let before = resident_bytes();
    let counts: [&[u8]; 3] = [
        &[0x7f, 0xff, 0xff, 0xff],
        &[0xff, 0xff, 0xff, 0xff, 0x07],
        &[0x7f, 0xff],
    ];
    for api in &listed.api_keys {
        for version in api.min_version..=api.max_version {
            for count in counts {
                for zeroes in [0, 1, 2, 3, 5, 9, 14] {
                    let mut body = Vec::new();
                    body.extend_from_slice(&api.api_key.to_be_bytes());
                    body.extend_from_slice(&version.to_be_bytes());
                    body.extend_from_slice(&[0, 0, 0, 1, 0xff, 0xff, 0]);
                    body.extend_from_slice(&vec![0; zeroes]);
                    for _ in 0..4 {
                        body.extend_from_slice(count);
                    }
                    let mut frame = (body.len() as i32).to_be_bytes().to_vec();
                    frame.extend_from_slice(&body);
                    let mut client = server.client().await;
                    // Answered or closed: either way at once.
                    client.write(&frame).await;
                    let _ = client.stream.shutdown().await;
                    drop(client);
                }
            }
        }
    }
    assert_serves(&server, "huge counts").await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes more");
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let resident = pages.split_whitespace().nth(1).expect("a second number");
    resident.parse::<u64>().expect("a number") * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_only_declared_takes_no_memory() {
    let server = Server::start().await;
    let before = resident_bytes();
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = server.client().await;
        client.write(&100_000_000_i32.to_be_bytes()).await;
        clients.push(client);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(
        grown < 150 << 20,
        "{grown} bytes for nothing but declarations"
    );
    assert_serves(&server, "declarations").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let server = Server::start_with(&[("connections.max.idle.ms", "4000")]).await;
    let mut idle = server.client().await;
    let mut half = server.client().await;
    half.write(&[0, 0, 0]).await;
    let mut waiting = server.client().await;
    waiting.create_topic("t", 1, &[]).await;
    let id = waiting
        .send(11, &crate::support::fetch_request("t", 0, 0, 8_000, 1))
        .await;
    idle.expect_closed("an idle connection").await;
    half.expect_closed("half a length").await;
    let _: yuxi_protocol::messages::FetchResponse = waiting.receive(id, 11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_over_a_limit_are_closed_and_there_is_room_again_later() {
    let limits = [("max.connections", "3"), ("max.connections.per.ip", "2")];
    let server = Server::start_with(&limits).await;
    let mut first = server.client().await;
    let mut second = server.client().await;
    for client in [&mut first, &mut second] {
        client.ask(0, &ApiVersionsRequest::default()).await;
    }
    server
        .client()
        .await
        .expect_closed("one connection too many")
        .await;
    drop(first);
    wait_for("room", async || {
        let mut client = server.client().await;
        let _ = client.stream.write_all(&client_frame()).await;
        client.frame().await
    })
    .await;
    second.ask(0, &ApiVersionsRequest::default()).await;
}

fn client_frame() -> Vec<u8> {
    crate::support::request_frame(1, 0, &ApiVersionsRequest::default()).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_does_not_hold_up_the_shutdown() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    let large = "x".repeat(900_000);
    for _ in 0..20 {
        client.produce("t", batch(&[&large])).await;
    }
    let mut deaf = server.client().await;
    for _ in 0..20 {
        deaf.send(11, &crate::support::fetch_request("t", 0, 0, 0, 1))
            .await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.shutdown().await;
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_brokers_on_one_directory_are_refused() {
    let server = Server::start().await;
    let second = soon("a refusal", start_broker(server.directory(), &[])).await;
    let error = second.expect_err("locked").to_string();
    assert!(error.contains("in use by another broker"), "{error}");
    assert_serves(&server, "a second broker").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_nodes_directory_is_refused_and_stays_as_it_was() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    client.produce("t", batch(&["kept"])).await;
    let first_epoch = leader_epoch(&mut client).await;
    let server = server.restart().await;
    let second_epoch = leader_epoch(&mut server.client().await).await;
    let overrides = owned(&[("node.id", "2")]);
    let directory = server.directory().to_owned();
    let server = server
        .shutdown_and(async {
            let error = start_broker(&directory, &overrides)
                .await
                .expect_err("another node's")
                .to_string();
            assert!(error.contains("node"), "{error}");
        })
        .await;
    let mut client = server.client().await;
    let brokers = client
        .ask(9, &message!(MetadataRequest { topics: None }))
        .await
        .brokers;
    assert_eq!(brokers.len(), 1, "the refused node registered itself");
    assert_eq!(brokers[0].node_id, 1);
    assert_eq!(client.values("t", 0).await, ["kept"]);
    assert_eq!(
        leader_epoch(&mut client).await - second_epoch,
        second_epoch - first_epoch,
        "the refused node changed partitions"
    );
}

async fn leader_epoch(client: &mut Client) -> i32 {
    let answer = client
        .ask(9, &message!(MetadataRequest { topics: None }))
        .await;
    answer.topics[0].partitions[0].leader_epoch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_clusters_directory_is_refused() {
    let server = Server::start().await;
    let path = server.directory().join("meta.properties");
    let text = std::fs::read_to_string(&path).expect("meta.properties");
    let changed: String = text
        .lines()
        .map(|line| {
            if line.starts_with("cluster.id=") {
                "cluster.id=AAAAAAAAAAAAAAAAAAAAAA\n".to_owned()
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    let directory = server.directory().to_owned();
    let server = server
        .shutdown_and(async {
            std::fs::write(&path, changed).expect("written");
            let error = start_broker(&directory, &[])
                .await
                .expect_err("another cluster's")
                .to_string();
            assert!(error.contains("cluster"), "{error}");
            std::fs::write(&path, text).expect("written");
        })
        .await;
    assert_serves(&server, "a refused start").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_broker_frees_its_directory_and_its_port() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    client.produce("t", batch(&["kept"])).await;
    let address = server.broker().address();
    let directory: std::sync::Arc<TempDir> = server.kill();
    let broker = wait_for("the lock", async || {
        start_broker(directory.path(), &[]).await.ok()
    })
    .await;
    assert!(TcpStream::connect(address).await.is_err() || broker.address() == address);
    let mut client = Client::connect(&broker).await;
    assert_eq!(client.values("t", 0).await, ["kept"]);
    broker.shutdown().await.expect("a clean shutdown");
}
