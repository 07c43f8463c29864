//! Groups and running loads while brokers come and go.

use crate::{
    scripted::{Scripted, connect_to, topic_id},
    support::{Cluster, load, produce, soon, wait_for},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use yuxi_client::{Admin, Connection, Consumer, Error, admin::ElectionKind};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerId, TopicId, TopicPartition},
    message,
    messages::{
        InitProducerIdRequest, OffsetCommitRequest,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    },
};

const OFFSETS: &str = "__consumer_offsets";
const TRANSACTIONS: &str = "__transaction_state";
const GROUP: &str = "g";
const PAUSE: Duration = Duration::from_millis(5);

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
    config.session_timeout = Some(Duration::from_secs(6));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_loses_its_partition_says_nothing_that_may_be_lost_with_it() {
    let cluster = Cluster::start(1, &[]).await;
    let _silent = Scripted::register(&cluster, 9).await;
    for topic in ["t", OFFSETS, TRANSACTIONS] {
        cluster.create_topic(topic, &[1, 9], &[]).await;
    }
    let topic = topic_id(&cluster, "t").await;
    let is_written = AtomicBool::new(false);
    // One would wait for the other's answer on the same connection.
    let (first, second) = (connect_to(&cluster, 0).await, connect_to(&cluster, 0).await);
    let asked = async {
        tokio::join!(
            once(&is_written, async || begin_an_epoch(&first).await),
            once(&is_written, async || {
                let committed = commit_an_offset(&second, topic, 1).await;
                committed.expect("an answer")
            }),
        )
    };
    let mut asked = Box::pin(asked);
    // Each is written here, and 9 never has it.
    wait_for("what was asked for is written", async || {
        let answered = tokio::time::timeout(PAUSE, &mut asked).await;
        assert_eq!(answered.ok(), None, "half of the replicas lack it");
        [OFFSETS, TRANSACTIONS]
            .iter()
            .all(|topic| !cluster.log_bytes(1, topic, 0).is_empty())
            .then_some(())
    })
    .await;
    is_written.store(true, Ordering::SeqCst);
    let moved = [OFFSETS, TRANSACTIONS].map(|topic| TopicPartition::new(topic, 0));
    let admin = Admin::new(cluster.connect().await);
    let order = Some([9, 1].map(BrokerId::new).to_vec());
    let orders: BTreeMap<_, _> = moved.iter().map(|id| (id.clone(), order.clone())).collect();
    let altered = soon("an answer", admin.alter_reassignments(&orders, false)).await;
    altered.expect("the other preferred");
    let elected = soon(
        "an answer",
        admin.elect_leaders(ElectionKind::Preferred, Some(&moved)),
    );
    elected.await.expect("elected");
    for topic in [OFFSETS, TRANSACTIONS] {
        assert_eq!(cluster.leader(topic, 0).await, 9);
    }
    let told = soon("the answers", asked).await;
    let lost = ErrorCode::NotCoordinator.code();
    assert_eq!(told, (lost, lost), "9 knows of neither");
}

/// What is answered when it `is_written`; who had not begun to coordinate is asked again.
async fn once(is_written: &AtomicBool, ask: impl AsyncFn() -> i16) -> i16 {
    loop {
        let code = ask().await;
        if is_written.load(Ordering::SeqCst) {
            return code;
        }
        assert_ne!(code, ErrorCode::None.code(), "half of the replicas lack it");
        tokio::time::sleep(PAUSE).await;
    }
}

/// What the coordinator of a transactional id answers to a new producer.
async fn begin_an_epoch(coordinator: &Connection) -> i16 {
    let request = message!(InitProducerIdRequest {
        transactional_id: Some("app".into()),
        transaction_timeout_ms: 60_000,
        producer_id: -1,
        producer_epoch: -1,
    });
    let answer = coordinator.call(|_| request).await;
    answer.expect("an answer").error_code
}

/// What the coordinator of a group answers to somebody who is no member.
async fn commit_an_offset(
    coordinator: &Connection,
    topic: TopicId,
    offset: i64,
) -> Result<i16, Error> {
    let request = message!(OffsetCommitRequest {
        group_id: GROUP.into(),
        generation_id_or_member_epoch: -1,
        topics: vec![message!(OffsetCommitRequestTopic {
            topic_id: topic.into(),
            partitions: vec![message!(OffsetCommitRequestPartition {
                committed_offset: offset,
            })],
        })],
    });
    let answer = coordinator.call(|_| request).await?;
    Ok(answer.topics[0].partitions[0].error_code)
}

/// A client that had no answer asks the next coordinator again. What it had sent first can
/// arrive when the first broker coordinates once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_late_by_a_coordinators_term_does_not_take_a_group_back() {
    let cluster = Cluster::start(2, &[]).await;
    for topic in ["t", OFFSETS] {
        cluster.create_topic(topic, &[1, 2], &[]).await;
    }
    let topic = topic_id(&cluster, "t").await;
    let commit = async |connection: &Connection, offset| {
        wait_for("a commit", async || {
            let committed = commit_an_offset(connection, topic, offset).await;
            (committed.expect("an answer") == ErrorCode::None.code()).then_some(())
        })
        .await;
    };
    let old = connect_to(&cluster, 0).await;
    commit(&old, 1).await;
    commit(&old, 2).await;
    let moved = [TopicPartition::new(OFFSETS, 0)];
    let admin = Admin::new(cluster.connect().await);
    for replicas in [[2, 1], [1, 2]] {
        let order = Some(replicas.map(BrokerId::new).to_vec());
        let orders = BTreeMap::from([(moved[0].clone(), order)]);
        let altered = soon("an answer", admin.alter_reassignments(&orders, false)).await;
        altered.expect("the other preferred");
        let elected = admin.elect_leaders(ElectionKind::Preferred, Some(&moved));
        soon("an answer", elected).await.expect("elected");
        assert_eq!(cluster.leader(OFFSETS, 0).await, replicas[0]);
    }
    commit(&connect_to(&cluster, 0).await, 3).await;
    let late = commit_an_offset(&old, topic, 2).await;
    assert!(matches!(late, Err(Error::Disconnected { .. })), "{late:?}");
    let committed = soon("an answer", admin.group_offsets(GROUP)).await;
    let committed = committed.expect("the group");
    let committed: Vec<i64> = committed.values().map(|at| at.offset).collect();
    assert_eq!(committed, [3]);
    // Who is still there connects anew, and is heard.
    commit(&connect_to(&cluster, 0).await, 2).await;
}
