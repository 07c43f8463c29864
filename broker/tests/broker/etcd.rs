//! Brokers whose metadata is in a real etcd.

#[path = "../../../controller/tests/etcd/mod.rs"]
mod process;

use self::process::Etcd;
use crate::support::{Server, batch, soon, start_broker, wait_for};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use yuxi_broker::StartError;
use yuxi_controller::{
    keys::ConfigScope,
    store::{EtcdOptions, EtcdStore, MetadataStore, Operation, Transaction},
};
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{
        self, MetadataRequest,
        alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
        create_partitions_request::CreatePartitionsTopic,
        create_topics_request::CreatableTopic,
    },
};

fn options(etcd: &Etcd, prefix: &str) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![etcd.url()],
        prefix: prefix.to_owned(),
        user: None,
        tls: None,
        request_timeout: Duration::from_secs(5),
    }
}

async fn store(etcd: &Etcd, prefix: &str) -> EtcdStore {
    EtcdStore::connect(options(etcd, prefix))
        .await
        .expect("an etcd")
}

async fn broker(etcd: &Etcd, prefix: &str, node_id: &str) -> Server {
    Server::start_with(&[
        ("etcd.endpoints", &etcd.url()),
        ("etcd.prefix", prefix),
        ("node.id", node_id),
        ("broker.session.timeout.ms", "4000"),
    ])
    .await
}

/// Starts a broker in `directory` and returns what it says instead.
async fn refusal(directory: &TempDir, etcd: &Etcd, prefix: &str) -> StartError {
    let overrides = [
        ("etcd.endpoints".to_owned(), etcd.url()),
        ("etcd.prefix".to_owned(), prefix.to_owned()),
    ];
    let started = soon("the refusal", start_broker(directory.path(), &overrides)).await;
    started.expect_err("it is refused")
}

#[tokio::test]
async fn a_broker_on_etcd_serves_and_finds_everything_again_after_a_restart() {
    let etcd = process::shared();
    let prefix = process::new_prefix();
    let server = broker(etcd, &prefix, "1").await;
    let mut client = server.client().await;
    client
        .create_topic("t", 1, &[("retention.ms", "1000000")])
        .await;
    assert_eq!(client.produce("t", batch(&["a", "b"])).await.error_code, 0);
    let server = server.restart().await;
    let mut client = server.client().await;
    assert_eq!(client.values("t", 0).await, ["a", "b"]);
    assert_eq!(client.produce("t", batch(&["c"])).await.error_code, 0);
    // It stands there for everyone to read.
    let found = store(etcd, &prefix).await.read("configs/").await;
    let found = found.expect("it can be read").entries;
    let scope = ConfigScope::Topic("t".into());
    let key = yuxi_controller::keys::Key::Config(scope).to_string();
    let config = found.iter().find(|entry| *entry.key == key);
    let config = config.expect("the topic's overrides");
    assert_eq!(config.value, r#"{"retention.ms":"1000000"}"#);
    server.shutdown().await;
    // With the broker go its session and what was bound to it.
    let left = store(etcd, &prefix).await.read("").await;
    let left = left.expect("it can be read").entries;
    assert!(left.iter().all(|entry| entry.session.is_none()), "{left:?}");
}

#[tokio::test]
async fn brokers_on_one_etcd_see_each_other_and_one_is_the_controller() {
    let etcd = process::shared();
    let prefix = process::new_prefix();
    let servers = [
        broker(etcd, &prefix, "1").await,
        broker(etcd, &prefix, "2").await,
        broker(etcd, &prefix, "3").await,
    ];
    let mut controllers = Vec::new();
    for server in &servers {
        let mut client = server.client().await;
        let metadata = wait_for("three brokers", async || {
            let request = message!(MetadataRequest { topics: None });
            let answer = client.ask(9, &request).await;
            (answer.brokers.len() == 3).then_some(answer)
        })
        .await;
        let ids: Vec<i32> = metadata
            .brokers
            .iter()
            .map(|broker| broker.node_id)
            .collect();
        assert_eq!(ids, [1, 2, 3]);
        controllers.push(metadata.controller_id);
    }
    assert!(controllers[0] > 0, "{controllers:?}");
    assert_eq!(controllers, [controllers[0]; 3]);
    for server in servers {
        server.shutdown().await;
    }
}

#[tokio::test]
async fn an_idle_broker_writes_nothing_to_etcd() {
    let etcd = process::shared();
    let prefix = process::new_prefix();
    let server = broker(etcd, &prefix, "1").await;
    server.client().await.create_topic("t", 3, &[]).await;
    let store = store(etcd, &prefix).await;
    let before = store.read("").await.expect("it can be read").entries;
    // Longer than the session lives without being kept.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let after = store.read("").await.expect("it can be read").entries;
    assert_eq!(after, before);
    server.shutdown().await;
}

#[tokio::test]
async fn a_directory_of_another_cluster_is_refused_before_the_broker_registers() {
    let etcd = process::shared();
    let (first, second, none) = (
        process::new_prefix(),
        process::new_prefix(),
        process::new_prefix(),
    );
    let server = broker(etcd, &first, "1").await;
    let directory = server.shutdown_to_directory().await;
    broker(etcd, &second, "2").await.shutdown().await;
    let before = store(etcd, &second).await.read("").await.expect("read");

    let mistyped = refusal(&directory, etcd, &second).await.to_string();
    assert!(mistyped.contains("belongs to cluster"), "{mistyped}");
    assert!(mistyped.contains("etcd.prefix"), "{mistyped}");
    let after = store(etcd, &second).await.read("").await.expect("read");
    assert_eq!(after.entries, before.entries);

    let empty = refusal(&directory, etcd, &none).await.to_string();
    assert!(empty.contains("holds no cluster"), "{empty}");
    assert!(empty.contains("etcd.prefix"), "{empty}");
    let nothing = store(etcd, &none).await.read("").await.expect("read");
    assert!(nothing.entries.is_empty());
}

#[tokio::test]
async fn a_broker_of_a_cluster_in_etcd_does_not_start_without_it() {
    let etcd = process::shared();
    let server = broker(etcd, &process::new_prefix(), "1").await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    assert_eq!(client.produce("t", batch(&["a"])).await.error_code, 0);
    let directory = server.shutdown_to_directory().await;
    let path = directory.path();
    for _ in 0..2 {
        let started = soon("the refusal", start_broker(path, &[])).await;
        let error = started.expect_err("it is refused").to_string();
        assert!(error.contains("set etcd.endpoints"), "{error}");
    }
    // What it says can be done makes a cluster of what is there.
    std::fs::remove_file(path.join("incarnations")).expect("the file that it names");
    let server = Server::start_in(directory, Vec::new()).await;
    assert_eq!(server.client().await.values("t", 0).await, ["a"]);
    server.shutdown().await;
}

#[tokio::test]
async fn a_newer_layout_is_refused() {
    let etcd = process::shared();
    let prefix = process::new_prefix();
    let newer = Transaction {
        guards: Vec::new(),
        operations: vec![Operation::Put {
            key: "cluster".to_owned(),
            value: r#"{"cluster_id":"c","layout":9}"#.into(),
            session: None,
        }],
    };
    let store = store(etcd, &prefix).await;
    store.commit(newer).await.expect("a commit");
    let directory = TempDir::new().expect("a temporary directory");
    let error = refusal(&directory, etcd, &prefix).await.to_string();
    assert!(
        error.contains("layout 9") && error.contains("newer"),
        "{error}"
    );
    let snapshot = store.read("").await.expect("it can be read");
    assert_eq!(snapshot.entries.len(), 1, "nothing was written beside it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_etcd_is_away_waits_for_it_and_says_so_and_then_serves() {
    let mut etcd = Etcd::start(&[]);
    etcd.kill();
    let directory = TempDir::new().expect("a temporary directory");
    let admin = process::free_ports(1)[0];
    let overrides = [
        ("etcd.endpoints".to_owned(), etcd.url()),
        ("admin.listener".to_owned(), format!("127.0.0.1:{admin}")),
    ];
    let path = directory.path().to_owned();
    let starting = tokio::spawn(async move { start_broker(&path, &overrides).await });
    let url = etcd.url();
    wait_for("the broker says what it waits for", async || {
        let answer = get(admin, "/readyz").await?;
        (answer.starts_with("HTTP/1.1 503") && answer.contains(&url)).then_some(())
    })
    .await;
    let health = get(admin, "/healthz").await.expect("an answer");
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let page = get(admin, "/metrics").await.expect("an answer");
    assert!(
        page.contains("\nkafka_server_kafkaserver_brokerstate 1\n"),
        "{page}"
    );
    tokio::task::block_in_place(|| etcd.restart());
    let broker = soon("the start", starting).await.expect("no panic");
    let ready = get(admin, "/readyz").await.expect("an answer");
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let stopped = soon("the shutdown", broker.expect("it starts").shutdown()).await;
    stopped.expect("a clean shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_controller_can_do_is_waited_for_as_long_as_the_client_says() {
    const TIMEOUT_MS: i32 = 1500;
    let mut etcd = Etcd::start(&[]);
    let server = broker(&etcd, "/timeouts/", "1").await;
    let mut client = server.client().await;
    client.create_topic("t", 1, &[]).await;
    etcd.kill();
    // By then its session is over, and nobody decides anything.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let began = Instant::now();
    let create = message!(messages::CreateTopicsRequest {
        topics: vec![message!(CreatableTopic {
            name: "u".into(),
            num_partitions: 1,
            replication_factor: 1,
        })],
        timeout_ms: TIMEOUT_MS,
    });
    let grow = message!(messages::CreatePartitionsRequest {
        topics: vec![message!(CreatePartitionsTopic {
            name: "t".into(),
            count: 2,
            assignments: None,
        })],
        timeout_ms: TIMEOUT_MS,
    });
    let elect = message!(messages::ElectLeadersRequest {
        topic_partitions: None,
        timeout_ms: TIMEOUT_MS,
    });
    let cancel = message!(messages::AlterPartitionReassignmentsRequest {
        topics: vec![message!(ReassignableTopic {
            name: "t".into(),
            partitions: vec![message!(ReassignablePartition {
                partition_index: 0,
                replicas: None,
            })],
        })],
        timeout_ms: TIMEOUT_MS,
    });
    let delete = message!(messages::DeleteTopicsRequest {
        topic_names: vec!["t".into()],
        timeout_ms: TIMEOUT_MS,
    });
    let cancelled = client.ask(0, &cancel).await;
    let codes = [
        client.ask(5, &create).await.topics[0].error_code,
        client.ask(1, &grow).await.results[0].error_code,
        client.ask(1, &elect).await.error_code,
        cancelled.responses[0].partitions[0].error_code,
        client.ask(5, &delete).await.responses[0].error_code,
    ];
    assert_eq!(codes, [ErrorCode::RequestTimedOut.code(); 5]);
    // Each of them; one that did not heed it would take 15 seconds, and all of them 21.
    assert!(began.elapsed() >= Duration::from_millis(5 * 1500));
    assert!(began.elapsed() < Duration::from_secs(20), "{began:?}");
    let list = message!(messages::ListPartitionReassignmentsRequest {
        timeout_ms: TIMEOUT_MS,
        topics: None,
    });
    assert_eq!(client.ask(0, &list).await.error_code, 0, "anybody knows");
}

/// An answer of an admin listener, if there is one there.
async fn get(port: u16, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}
