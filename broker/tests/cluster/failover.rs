//! Groups and running loads while brokers come and go.

use crate::support::{Cluster, load, produce, soon, wait_for};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use yuxi_client::Consumer;
use yuxi_protocol::ids::BrokerId;

const OFFSETS: &str = "__consumer_offsets";
const GROUP: &str = "g";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_on_where_it_was_after_its_coordinator_is_killed() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("t", &[1, 2, 3], &[]).await;
    let producer = cluster.producer().await;
    for value in 0..10 {
        produce(&producer, "t", value.to_string())
            .await
            .expect("acknowledged");
    }
    let mut config = cluster.config();
    config.group_id = Some(GROUP.to_owned());
    config.auto_commit = false;
    config.offset_reset = yuxi_client::config::OffsetReset::Earliest;
    config.session_timeout = Duration::from_secs(6);
    let connected = soon(
        "a connection",
        yuxi_client::Cluster::connect(config.clone()),
    )
    .await;
    let mut consumer = Consumer::new(connected.expect("a connection"));
    consumer.subscribe(["t".into()]).expect("subscribed");
    let mut seen = 0;
    while seen < 10 {
        let records = soon("records", consumer.poll(Duration::from_millis(200))).await;
        seen += records.expect("polled").len();
    }
    soon("a commit", consumer.commit())
        .await
        .expect("committed");
    let partitions = cluster
        .image()
        .await
        .topic(OFFSETS)
        .expect("the groups' topic")
        .partition_count();
    let partition = yuxi_coordinator::groups::partition_for(GROUP, partitions as i32);
    let coordinator = cluster.leader(OFFSETS, partition).await;
    cluster.kill(coordinator).await;
    for value in 10..20 {
        produce(&producer, "t", value.to_string())
            .await
            .expect("acknowledged");
    }
    let mut values = Vec::new();
    wait_for("the other half", async || {
        let records = consumer.poll(Duration::from_millis(100)).await;
        for record in records.unwrap_or_default() {
            values.push(String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned());
        }
        (values.len() >= 10).then_some(())
    })
    .await;
    let expected: Vec<String> = (10..20).map(|value| value.to_string()).collect();
    assert_eq!(values, expected);
    wait_for("a commit by the next coordinator", async || {
        consumer.commit().await.ok()
    })
    .await;
    drop(consumer);
    config.bootstrap = cluster.config().bootstrap;
    let admin = yuxi_client::Admin::connect(config)
        .await
        .expect("connected");
    let offsets = soon("the offsets", admin.group_offsets(GROUP))
        .await
        .expect("offsets");
    assert!(
        format!("{offsets:?}").contains("20"),
        "the commit is there: {offsets:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_under_load_loses_nothing_and_no_producer_sees_an_error() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("t", &[1, 2, 3], &[]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(Arc::new(cluster.producer().await), Arc::clone(&stop));
    for id in [1, 2, 3] {
        cluster.shut_down(id).await;
        cluster
            .until("t", 0, "a leader that is there", |state| {
                state.leader != BrokerId::new(id) && state.leader != BrokerId::NONE
            })
            .await;
        cluster.start_broker(id).await;
        cluster
            .until("t", 0, "a full ISR", |state| state.isr.len() == 3)
            .await;
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged = soon("the end of the load", load).await.expect("no error");
    assert!(acknowledged > 0);
    let values: Vec<String> = cluster
        .values("t", 0)
        .await
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    let expected: Vec<String> = (0..acknowledged).map(|value| value.to_string()).collect();
    assert_eq!(values, expected, "each once and in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_under_load_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("t", &[1, 2, 3], &[]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(Arc::new(cluster.producer().await), Arc::clone(&stop));
    for _ in 0..3 {
        let leader = cluster.leader("t", 0).await;
        cluster.kill(leader).await;
        cluster
            .until("t", 0, "another leader", |state| {
                state.leader.value() != leader && state.leader != BrokerId::NONE
            })
            .await;
        cluster.start_broker(leader).await;
        cluster
            .until("t", 0, "a full ISR", |state| state.isr.len() == 3)
            .await;
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged = soon("the end of the load", load).await.expect("no error");
    let values: Vec<String> = cluster
        .values("t", 0)
        .await
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    let expected: Vec<String> = (0..acknowledged).map(|value| value.to_string()).collect();
    assert_eq!(values, expected, "each once and in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_put_back_from_a_copy_does_not_lead() {
    let mut cluster = Cluster::start(2, &[]).await;
    let configs = [("min.insync.replicas", "1")];
    cluster.create_topic("t", &[1, 2], &configs).await;
    let producer = cluster.producer().await;
    produce(&producer, "t", "early")
        .await
        .expect("acknowledged");
    cluster.shut_down(2).await;
    let (directory, copy) = (cluster.data_dir(2), cluster.data_dir(3));
    copy_directory(&directory, &copy);
    cluster.start_broker(2).await;
    cluster
        .until("t", 0, "a full ISR", |state| state.isr.len() == 2)
        .await;
    cluster.shut_down(1).await;
    cluster
        .until("t", 0, "the other leads", |state| {
            state.leader == BrokerId::new(2)
        })
        .await;
    // The first producer knows neither broker's new port.
    let producer = cluster.producer().await;
    produce(&producer, "t", "late").await.expect("acknowledged");
    cluster.kill(2).await;
    std::fs::remove_dir_all(&directory).expect("removed");
    std::fs::rename(&copy, &directory).expect("renamed");
    // It runs on the same boot and says that it was stopped cleanly, but that was before
    // the last record.
    for id in [2, 1] {
        cluster.start_broker(id).await;
        let state = cluster.state("t", 0).await.expect("the partition");
        assert_eq!(state.leader, BrokerId::NONE, "with broker {id} back");
    }
}

fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
