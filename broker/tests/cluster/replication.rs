//! Records on several brokers, and what becomes of them when some go.

use crate::support::{Cluster, produce, soon, wait_for};
use yuxi_client::{
    Admin, Producer, Record, TransactionalProducer,
    admin::{ConfigOp, ConfigResource},
};
use yuxi_controller::keys::PartitionState;
use yuxi_protocol::error_code::ErrorCode;

fn isr_is(count: usize) -> impl Fn(&PartitionState) -> bool {
    move |state| state.isr.len() == count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_by_all_is_the_same_on_every_replica() {
    let cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("t", &[1, 2, 3], &[]).await;
    let producer = cluster.producer().await;
    for value in 0..50 {
        produce(&producer, "t", value.to_string())
            .await
            .expect("acknowledged");
    }
    let leaders = cluster.log_bytes(1, "t", 0);
    assert!(!leaders.is_empty());
    for follower in [2, 3] {
        assert_eq!(cluster.log_bytes(follower, "t", 0), leaders, "{follower}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_leader_is_killed() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("t", &[2, 1, 3], &[]).await;
    let producer = cluster.producer().await;
    for value in 0..20 {
        produce(&producer, "t", value.to_string())
            .await
            .expect("acknowledged");
    }
    cluster.kill(2).await;
    let next = cluster
        .until("t", 0, "another leader", |state| {
            state.leader.value() != 2 && state.leader.value() >= 0
        })
        .await;
    assert_eq!(next.leader.value(), 1);
    for value in 20..40 {
        produce(&producer, "t", value.to_string())
            .await
            .expect("acknowledged by the next leader");
    }
    cluster.start_broker(2).await;
    cluster.until("t", 0, "a full ISR", isr_is(3)).await;
    produce(&producer, "t", "40").await.expect("acknowledged");
    let values: Vec<String> = cluster
        .values("t", 0)
        .await
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    let expected: Vec<String> = (0..=40).map(|value| value.to_string()).collect();
    assert_eq!(values, expected);
    let leaders = cluster.log_bytes(1, "t", 0);
    for follower in [2, 3] {
        wait_for("identical logs", async || {
            (cluster.log_bytes(follower, "t", 0) == leaders).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn min_insync_replicas_of_a_topic_holds_as_soon_as_it_is_changed() {
    let mut cluster = Cluster::start(2, &[]).await;
    cluster.create_topic("t", &[1, 2], &[]).await;
    cluster.kill(2).await;
    cluster.until("t", 0, "one in sync", isr_is(1)).await;
    let mut config = cluster.config();
    config.idempotence = Some(false);
    config.retries = 0;
    let client = soon("a connection", yuxi_client::Cluster::connect(config)).await;
    let client = client.expect("a connection");
    let producer = Producer::new(client.clone()).expect("a producer");
    let admin = Admin::new(client);
    let topic = ConfigResource::Topic("t".to_owned());
    for (min_insync, value) in [("1", "first"), ("2", "refused"), ("1", "second")] {
        let set = [ConfigOp::Set(
            "min.insync.replicas".to_owned(),
            min_insync.to_owned(),
        )];
        let changed = admin.alter_configs(&topic, &set, false).await;
        changed.expect("changed");
        let produced = produce(&producer, "t", value).await;
        let code = produced.err().and_then(|error| error.code());
        let expected = (min_insync == "2").then_some(ErrorCode::NotEnoughReplicas);
        assert_eq!(code, expected, "{value}");
    }
    let values = cluster.values("t", 0).await;
    let values: Vec<&str> = values.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(values, ["first", "second"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_leader_alone_had_is_cut_when_it_comes_back() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("t", &[3, 1, 2], &[]).await;
    let producer = cluster.producer().await;
    produce(&producer, "t", "all").await.expect("acknowledged");
    cluster.kill(3).await;
    // As if it had written what nobody fetched any more.
    let path = cluster.data_dir(3).join("t-0/00000000000000000000.log");
    let mut records = std::fs::read(&path).expect("a segment");
    let mut alone = records.clone();
    alone[..8].copy_from_slice(&1_i64.to_be_bytes());
    records.extend_from_slice(&alone);
    std::fs::write(&path, &records).expect("written");
    produce(&producer, "t", "next").await.expect("acknowledged");
    cluster.start_broker(3).await;
    cluster.until("t", 0, "a full ISR", isr_is(3)).await;
    produce(&producer, "t", "last").await.expect("acknowledged");
    assert_eq!(cluster.log_bytes(3, "t", 0), cluster.log_bytes(1, "t", 0));
    let values = cluster.values("t", 0).await;
    let expected = ["all", "next", "last"];
    assert_eq!(values.len(), expected.len());
    for ((at, value), (offset, expected)) in values.iter().zip((0..).zip(expected)) {
        assert_eq!((*at, value.as_str()), (offset, expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_replica_begins_anew_and_is_in_sync_only_when_it_has_everything() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("t", &[1, 2, 3], &[]).await;
    let producer = cluster.producer().await;
    for value in 0..10 {
        produce(&producer, "t", value.to_string())
            .await
            .expect("acknowledged");
    }
    cluster.kill(2).await;
    let path = cluster.data_dir(2).join("t-0/00000000000000000000.log");
    let mut records = std::fs::read(&path).expect("a segment");
    records[70] ^= 0xff;
    std::fs::write(&path, &records).expect("written");
    cluster.start_broker(2).await;
    cluster.until("t", 0, "a full ISR", isr_is(3)).await;
    assert_eq!(cluster.log_bytes(2, "t", 0), cluster.log_bytes(1, "t", 0));
    let aside = std::fs::read_dir(cluster.data_dir(2))
        .expect("a directory")
        .filter(|entry| {
            let name = entry.as_ref().expect("an entry").file_name();
            name.to_string_lossy().ends_with("-stray")
        })
        .count();
    assert_eq!(aside, 1, "the damaged log is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_records_are_deleted_on_every_replica() {
    // A follower that is not told at once asks again after 25 seconds.
    let cluster = Cluster::start(3, &[("replica.fetch.wait.max.ms", "25000")]).await;
    cluster.create_topic("t", &[1, 2, 3], &[]).await;
    let producer = cluster.producer().await;
    for value in 0..10 {
        produce(&producer, "t", value.to_string())
            .await
            .expect("acknowledged");
    }
    let admin = yuxi_client::Admin::new(cluster.connect().await);
    let partition = yuxi_protocol::ids::TopicPartition::new("t", 0);
    let started = std::time::Instant::now();
    let deleted = admin
        .delete_records(&[(partition, 6)].into())
        .await
        .expect("deleted");
    assert!(format!("{deleted:?}").contains('6'), "{deleted:?}");
    assert!(
        started.elapsed() < std::time::Duration::from_secs(20),
        "followers are told without waiting for records: {:?}",
        started.elapsed()
    );
    assert_eq!(cluster.values("t", 0).await[0], (6, "6".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_committed_records_see_whole_transactions_though_the_leader_is_killed() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("t", &[2, 1, 3], &[]).await;
    let record = |value: &str| {
        let mut record = Record::new("t", value.to_owned());
        record.partition = Some(0);
        record
    };
    let mut config = cluster.config();
    config.set("transactional.id", "tx").expect("valid");
    let producer = soon("a producer", TransactionalProducer::connect(config));
    let mut producer = producer.await.expect("a producer");
    for (value, commit) in [("aborted", false), ("committed", true)] {
        let transaction = soon("a transaction", producer.begin())
            .await
            .expect("begun");
        soon("a delivery", transaction.send(record(value)))
            .await
            .expect("acknowledged");
        let ended = if commit {
            soon("a commit", Box::pin(transaction.commit())).await
        } else {
            soon("an abort", Box::pin(transaction.abort())).await
        };
        ended.expect("ended");
    }
    let seen = async |cluster: &Cluster| {
        let values = cluster.values("t", 0).await.into_iter();
        values.map(|(_, value)| value).collect::<Vec<_>>()
    };
    wait_for("the marker", async || {
        (Box::pin(seen(&cluster)).await == ["committed"]).then_some(())
    })
    .await;

    let transaction = soon("a transaction", producer.begin())
        .await
        .expect("begun");
    soon("a delivery", transaction.send(record("first")))
        .await
        .expect("acknowledged");
    cluster.kill(2).await;
    cluster
        .until("t", 0, "the next leader", |state| state.leader.value() == 1)
        .await;
    assert_eq!(
        seen(&cluster).await,
        ["committed"],
        "it is open under the next leader, too"
    );
    soon("a delivery", transaction.send(record("second")))
        .await
        .expect("acknowledged by the next leader");
    soon("a commit", Box::pin(transaction.commit()))
        .await
        .expect("committed");
    let whole = ["committed", "first", "second"];
    wait_for("the marker", async || {
        (Box::pin(seen(&cluster)).await == whole).then_some(())
    })
    .await;

    cluster.start_broker(2).await;
    cluster.until("t", 0, "a full ISR", isr_is(3)).await;
    cluster.kill(1).await;
    cluster
        .until("t", 0, "another leader", |state| {
            state.leader.value() != 1 && state.leader.value() >= 0
        })
        .await;
    assert_eq!(seen(&cluster).await, whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_begins_anew_reads_a_compacted_log_and_can_lead() {
    let eager = [
        ("log.cleaner.backoff.ms", "20"),
        ("log.cleaner.min.cleanable.ratio", "0"),
        ("log.segment.delete.delay.ms", "0"),
    ];
    let mut cluster = Cluster::start(3, &eager).await;
    let configs = [("cleanup.policy", "compact"), ("segment.bytes", "1000")];
    cluster.create_topic("t", &[1, 2, 3], &configs).await;
    let producer = cluster.producer().await;
    for number in 0..200 {
        let mut record = Record::new("t", number.to_string()).with_key(format!("{}", number % 5));
        record.partition = Some(0);
        soon("a delivery", producer.send(record))
            .await
            .expect("acknowledged");
    }
    wait_for("the compaction", async || {
        (Box::pin(cluster.values("t", 0)).await.len() < 40).then_some(())
    })
    .await;

    cluster.shut_down(2).await;
    std::fs::remove_dir_all(cluster.data_dir(2).join("t-0")).expect("removed");
    cluster.start_broker(2).await;
    cluster.until("t", 0, "a full ISR", isr_is(3)).await;
    let led_by_2 = |state: &PartitionState| state.leader.value() == 2;
    cluster.kill(1).await;
    cluster.until("t", 0, "the next leader", led_by_2).await;

    let found = cluster.values("t", 0).await;
    for (offset, value) in &found {
        assert_eq!(*value, offset.to_string(), "every record is where it was");
    }
    let last: Vec<_> = found.iter().rev().take(5).map(|(at, _)| *at).collect();
    assert_eq!(last, [199, 198, 197, 196, 195]);
    assert!(found.len() < 40, "{}", found.len());
}
