//! Producer, consumer and group member in a cluster whose brokers die, fall silent and
//! hand their partitions over.

mod support;

use std::time::{Duration, Instant};

use support::clients::{
    ONE_RECORD_A_BATCH, config, consumer, enqueue, expected, fill, offsets, poll_until, producer,
};
use support::{FakeCluster, Fault, TOPIC};
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::ids::{BrokerId, TopicPartition};
use yuxi_client::{ClientConfig, Cluster, Consumer, Error, Record, Start};

/// What a failover may cost beyond the time that the cluster takes to notice: far less
/// than `request.timeout.ms`, which is 30 seconds, or the 10 seconds for a connection.
const SOON: Duration = Duration::from_secs(9);

fn partition() -> TopicPartition {
    TopicPartition::new(TOPIC, 0)
}

/// Moves everything from node 0 to node 1 after the time a controller takes to notice.
async fn notice(cluster: &FakeCluster) {
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.fail_over(0, 1);
}

#[tokio::test]
async fn when_the_leader_is_killed_every_record_arrives_once_and_in_order() {
    let cluster = FakeCluster::start(3, 1).await;
    let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
    enqueue(&producer, 0..20).await;
    producer.flush().await;
    cluster.kill(0);
    let began = Instant::now();
    let deliveries = enqueue(&producer, 20..60).await;
    notice(&cluster).await;
    offsets(deliveries).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(cluster.values(0), expected(0..60));
}

#[tokio::test]
async fn a_leader_that_falls_silent_holds_records_up_only_until_the_cluster_drops_it() {
    let cluster = FakeCluster::start(3, 1).await;
    let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
    enqueue(&producer, 0..20).await;
    producer.flush().await;
    cluster.state().silent.insert(0);
    let began = Instant::now();
    let deliveries = enqueue(&producer, 20..60).await;
    notice(&cluster).await;
    offsets(deliveries).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(cluster.values(0), expected(0..60));
}

#[tokio::test]
async fn a_silent_leader_that_the_cluster_still_lists_keeps_its_requests() {
    let cluster = FakeCluster::start(2, 1).await;
    let producer = producer(&cluster, &[]).await;
    cluster.state().silent.insert(0);
    let delivery = enqueue(&producer, 0..1).await.remove(0);
    let early = tokio::time::timeout(Duration::from_millis(2500), delivery).await;
    assert!(early.is_err(), "slow is not dead: {early:?}");
}

#[tokio::test]
async fn an_answer_that_names_the_new_leader_is_followed_at_once() {
    let cluster = FakeCluster::start(2, 1).await;
    let slow = [
        ("retry.backoff.ms", "20000"),
        ("retry.backoff.max.ms", "20000"),
    ];
    let producer = producer(&cluster, &slow).await;
    enqueue(&producer, 0..1).await;
    producer.flush().await;
    let asked = {
        let mut state = cluster.state();
        state.partitions[0].leader = 1;
        state.partitions[0].leader_epoch = 1;
        state.metadata_requests
    };
    let began = Instant::now();
    offsets(enqueue(&producer, 1..5).await).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(cluster.values(0), expected(0..5));
    assert_eq!(cluster.state().metadata_requests, asked);
}

#[tokio::test]
async fn records_without_a_leader_fail_at_the_delivery_timeout() {
    let cluster = FakeCluster::start(2, 1).await;
    let producer = producer(&cluster, &[("delivery.timeout.ms", "700")]).await;
    enqueue(&producer, 0..1).await;
    producer.flush().await;
    cluster.kill(0);
    let began = Instant::now();
    let error = producer
        .send(Record::new(TOPIC, "x"))
        .await
        .expect_err("nobody leads");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(690) && took < SOON,
        "{took:?}"
    );
}

#[tokio::test]
async fn whoever_asks_for_a_broker_is_told_whether_it_is_there_now() {
    let cluster = FakeCluster::start(3, 1).await;
    cluster.state().unlisted.insert(2);
    let client = Cluster::connect(config(&cluster, &[]))
        .await
        .expect("they answer");
    let nobody = BrokerId::new(2);
    let error = client.broker(nobody).await.expect_err("it is not listed");
    let told = error.to_string();
    assert_eq!(
        told,
        "broker 2: no such broker is alive; the cluster has 0, 1"
    );
    assert!(error.is_retriable(), "it may come back");
    cluster.state().unlisted.clear();
    let found = client.broker(nobody).await.expect("it is back");
    assert_eq!(found.address(), cluster.address(2));
}

#[tokio::test]
async fn one_bootstrap_server_that_lives_is_enough() {
    let cluster = FakeCluster::start(2, 1).await;
    cluster.state().silent.insert(0);
    // Nobody listens, then nobody answers, then someone does.
    let servers = format!("127.0.0.1:1,{},{}", cluster.address(0), cluster.address(1));
    let began = Instant::now();
    let connected = Cluster::connect(ClientConfig::new(&servers).expect("addresses"))
        .await
        .expect("the third answers");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    for _ in 0..10 {
        let began = Instant::now();
        connected.refresh(&[], false).await.expect("it answers");
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_consumer_goes_on_at_the_new_leader_without_losing_or_repeating_a_record() {
    for silent in [false, true] {
        let cluster = FakeCluster::start(3, 1).await;
        fill(&cluster, 20).await;
        let mut consumer = consumer(&cluster, &[("max.poll.records", "7")]).await;
        let mut read = poll_until(&mut consumer, 7).await.expect("records");
        if silent {
            cluster.state().silent.insert(0);
        } else {
            cluster.kill(0);
        }
        let began = Instant::now();
        let (rest, ()) = tokio::join!(poll_until(&mut consumer, 13), notice(&cluster));
        read.extend(rest.expect("the new leader has them"));
        assert_eq!(read, expected(0..20));
        let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
        offsets(enqueue(&producer, 20..30).await).await;
        let more = poll_until(&mut consumer, 10).await.expect("records");
        assert_eq!(more, expected(20..30));
        assert!(began.elapsed() < SOON * 2, "{:?}", began.elapsed());
    }
}

/// A consumer that has read 10 records of which the new leader has 6.
async fn read_what_is_cut_off(
    settings: &[(&str, &str)],
) -> (FakeCluster, Result<Vec<String>, Error>, Consumer) {
    let cluster = FakeCluster::start(2, 1).await;
    fill(&cluster, 10).await;
    let mut consumer = consumer(&cluster, settings).await;
    let read = poll_until(&mut consumer, 10).await.expect("records");
    assert_eq!(read, expected(0..10));
    cluster.state().partitions[0].truncate(6);
    cluster.fail_over(0, 1);
    let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
    offsets(enqueue(&producer, 100..110).await).await;
    let then = poll_until(&mut consumer, 10).await;
    (cluster, then, consumer)
}

#[tokio::test]
async fn records_that_were_read_and_cut_off_are_reported_with_where_the_logs_part() {
    let (_, outcome, _) = read_what_is_cut_off(&[("auto.offset.reset", "error")]).await;
    let error = outcome.expect_err("the log is another");
    assert!(
        matches!(
            &error,
            Error::LogTruncated {
                position: 10,
                common: Some(6),
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("t-0"), "{error}");
}

#[tokio::test]
async fn with_a_reset_policy_reading_goes_on_where_the_logs_part() {
    let (_, outcome, _) = read_what_is_cut_off(&[("auto.offset.reset", "latest")]).await;
    assert_eq!(outcome.expect("it goes on"), expected(100..110));
}

#[tokio::test]
async fn what_was_fetched_ahead_and_cut_off_is_never_handed_out() {
    let cluster = FakeCluster::start(2, 1).await;
    fill(&cluster, 10).await;
    let settings = [("max.poll.records", "1"), ("auto.offset.reset", "error")];
    let mut consumer = consumer(&cluster, &settings).await;
    let mut read = poll_until(&mut consumer, 2).await.expect("records");
    // Time enough to fetch ahead, of which a pause lets nothing out.
    consumer.set_paused(&partition(), true).expect("assigned");
    consumer
        .poll(Duration::from_millis(100))
        .await
        .expect("none");
    consumer.set_paused(&partition(), false).expect("assigned");
    cluster.state().partitions[0].truncate(6);
    cluster.fail_over(0, 1);
    consumer
        .cluster()
        .refresh(&[TOPIC.into()], false)
        .await
        .expect("it answers");
    let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
    offsets(enqueue(&producer, 100..110).await).await;
    read.extend(poll_until(&mut consumer, 14).await.expect("records"));
    assert_eq!(read[..6], expected(0..6));
    assert_eq!(read[6..], expected(100..110));
}

#[tokio::test]
async fn passing_refusals_of_a_new_leader_are_got_over() {
    let cluster = FakeCluster::start(1, 1).await;
    fill(&cluster, 20).await;
    let refuse = |codes: &[ErrorCode]| codes.iter().copied().map(Fault::Refuse).collect();
    let passing = [
        ErrorCode::OffsetNotAvailable,
        ErrorCode::LeaderNotAvailable,
        ErrorCode::FencedLeaderEpoch,
        ErrorCode::UnknownLeaderEpoch,
        ErrorCode::NotLeaderOrFollower,
        ErrorCode::ReplicaNotAvailable,
        ErrorCode::KafkaStorageError,
    ];
    {
        let mut state = cluster.state();
        state.list_offsets_faults = refuse(&passing);
        state.fetch_faults = refuse(&passing);
    }
    let mut consumer = consumer(&cluster, &[]).await;
    let began = Instant::now();
    let read = poll_until(&mut consumer, 20).await.expect("all passing");
    assert_eq!(read, expected(0..20));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_partition_that_was_put_off_is_asked_again_though_the_poll_is_long() {
    let cluster = FakeCluster::start(1, 1).await;
    fill(&cluster, 1).await;
    let refusal = Fault::Refuse(ErrorCode::OffsetNotAvailable);
    cluster.state().fetch_faults.push_back(refusal);
    let mut consumer = consumer(&cluster, &[("retry.backoff.ms", "300")]).await;
    let began = Instant::now();
    let records = consumer
        .poll(Duration::from_mins(1))
        .await
        .expect("passing");
    assert_eq!(records.len(), 1);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_commit_gets_over_a_coordinator_that_loads_moves_or_breaks_off() {
    let cluster = FakeCluster::start(2, 1).await;
    fill(&cluster, 3).await;
    cluster.state().group.commit_faults.extend([
        Fault::Refuse(ErrorCode::CoordinatorLoadInProgress),
        Fault::DropBefore,
        Fault::Refuse(ErrorCode::NotCoordinator),
        Fault::DropAfter,
        Fault::Refuse(ErrorCode::CoordinatorNotAvailable),
    ]);
    let mut consumer = consumer(&cluster, &[("group.id", "g")]).await;
    poll_until(&mut consumer, 3).await.expect("records");
    cluster.state().group.coordinator = 1;
    consumer.commit().await.expect("all passing");
    assert_eq!(
        cluster.state().group.committed[&0],
        (3, 0),
        "with its epoch"
    );
}

#[tokio::test]
async fn a_member_whose_coordinator_moves_keeps_its_membership_and_commits() {
    for silent in [false, true] {
        let cluster = FakeCluster::start(2, 1).await;
        fill(&cluster, 5).await;
        let settings = [
            ("group.id", "g"),
            ("auto.offset.reset", "earliest"),
            ("heartbeat.interval.ms", "20"),
        ];
        let connected = Cluster::connect(config(&cluster, &settings)).await;
        let mut consumer = Consumer::new(connected.expect("it answers"));
        consumer.subscribe([TOPIC.into()]).expect("a group is set");
        poll_until(&mut consumer, 5).await.expect("records");
        let began = Instant::now();
        if silent {
            cluster.state().silent.insert(0);
        } else {
            cluster.kill(0);
        }
        let heard = async {
            while !cluster.state().group.heartbeats.contains_key(&1) {
                assert!(began.elapsed() < SOON, "the new coordinator heard nothing");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::join!(notice(&cluster), heard);
        consumer
            .commit()
            .await
            .expect("the new coordinator takes it");
        assert_eq!(cluster.state().group.committed[&0].0, 5);
        assert_eq!(cluster.state().group.joins, 1);
        assert_eq!(consumer.position(&partition()), Some(5));
        consumer.close().await.expect("committed");
    }
}

#[tokio::test]
async fn a_committed_offset_that_was_cut_off_is_noticed_by_whoever_goes_on_there() {
    let cluster = FakeCluster::start(1, 1).await;
    fill(&cluster, 10).await;
    {
        let mut state = cluster.state();
        state.group.committed.insert(0, (10, 0));
        state.partitions[0].truncate(6);
        state.partitions[0].leader_epoch = 3;
    }
    let settings = [("group.id", "g"), ("auto.offset.reset", "error")];
    let connected = Cluster::connect(config(&cluster, &settings)).await;
    let mut consumer = Consumer::new(connected.expect("it answers"));
    consumer.subscribe([TOPIC.into()]).expect("a group is set");
    let error = poll_until(&mut consumer, 1).await.expect_err("cut off");
    assert!(
        matches!(
            &error,
            Error::LogTruncated {
                position: 10,
                common: Some(6),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_seek_goes_where_it_is_told_whatever_was_read_before() {
    let (_, _, mut consumer) = read_what_is_cut_off(&[("auto.offset.reset", "latest")]).await;
    consumer
        .seek(&partition(), Start::Offset(4))
        .expect("assigned");
    let read = poll_until(&mut consumer, 2).await.expect("records");
    assert_eq!(read[..2], expected(4..6));
}
