//! Who is in sync, and what its followers have to do with what a leader tells.

use crate::{
    scripted::{Scripted, connect_to, only_partition, read_from, topic_id},
    support::{Cluster, produce, soon, wait_for},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::timeout;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::BrokerId,
    message,
    messages::{
        ProduceRequest,
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    record::RecordBatchBuilder,
};

const LAG_MS: u128 = 1000;

fn ids(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().copied().map(BrokerId::new).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_does_not_keep_up_leaves_the_isr_and_comes_back_with_everything() {
    let lag = LAG_MS.to_string();
    let cluster = Cluster::start(1, &[("replica.lag.time.max.ms", &lag)]).await;
    let follower = Scripted::register(&cluster, 9).await;
    cluster
        .create_topic("t", &[1, 9], &[("min.insync.replicas", "1")])
        .await;
    let leader = connect_to(&cluster, 0).await;
    let isr = async || cluster.state("t", 0).await.expect("a partition").isr;
    let producer = Arc::new(cluster.producer().await);

    // It fetches all the time and never gets further.
    let first = Arc::clone(&producer);
    let first = tokio::spawn(async move { produce(&first, "t", "first").await });
    wait_for("a smaller ISR", async || {
        let answer = follower.fetch(&cluster, &leader, "t", 0).await;
        assert_eq!(answer.error_code, 0);
        // Once it is finished, the ISR that allows it is in the metadata store.
        let is_finished = first.is_finished();
        if isr().await == ids(&[1]) {
            return Some(());
        }
        assert!(!is_finished, "one of the ISR lacks the record");
        None
    })
    .await;
    let delivered = soon("a delivery", first).await.expect("no panic");
    delivered.expect("acknowledged by those who are left");

    // It has everything.
    wait_for("the whole ISR", async || {
        follower.fetch(&cluster, &leader, "t", 1).await;
        (isr().await == ids(&[1, 9])).then_some(())
    })
    .await;
    let began = Instant::now();
    while began.elapsed().as_millis() < 2 * LAG_MS {
        follower.fetch(&cluster, &leader, "t", 1).await;
        assert_eq!(isr().await, ids(&[1, 9]), "it keeps up");
    }

    // It fetches no more.
    produce(&producer, "t", "second")
        .await
        .expect("acknowledged without it");
    assert_eq!(isr().await, ids(&[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_reads_from_the_follower_in_its_rack_what_that_knows_to_be_committed() {
    let selector = "org.apache.kafka.common.replica.RackAwareReplicaSelector";
    let cluster = Cluster::start(2, &[("replica.selector.class", selector)]).await;
    let slow = Scripted::register(&cluster, 9).await;
    cluster.create_topic("t", &[1, 2, 9], &[]).await;
    let (leader, follower) = (connect_to(&cluster, 0).await, connect_to(&cluster, 1).await);
    let producer = cluster.producer().await;
    let sent = tokio::spawn(async move { produce(&producer, "t", "x").await });
    wait_for("a record on the follower", async || {
        (!cluster.log_bytes(2, "t", 0).is_empty()).then_some(())
    })
    .await;
    let at_start =
        async |broker, rack| only_partition(read_from(&cluster, broker, ("t", 0), rack).await);
    let early = at_start(&follower, "rack-2").await;
    assert_eq!((early.error_code, early.high_watermark), (0, 0));
    assert!(
        early.records.unwrap_or_default().is_empty(),
        "one replica of the ISR lacks it"
    );

    slow.fetch(&cluster, &leader, "t", 1).await;
    let delivered = soon("a delivery", sent).await.expect("no panic");
    delivered.expect("acknowledged");
    wait_for("the high watermark at the follower", async || {
        let answer = at_start(&follower, "rack-2").await;
        assert_eq!(answer.error_code, 0);
        let has_records = !answer.records.unwrap_or_default().is_empty();
        assert_eq!(answer.high_watermark == 1, has_records);
        has_records.then_some(())
    })
    .await;

    let sent_on = at_start(&leader, "rack-2").await;
    assert_eq!(sent_on.preferred_read_replica, 2);
    assert!(sent_on.records.unwrap_or_default().is_empty());
    for rack in ["rack-1", "rack-7", ""] {
        let answer = at_start(&leader, rack).await;
        assert_eq!(answer.preferred_read_replica, -1, "{rack}");
        assert!(!answer.records.unwrap_or_default().is_empty(), "{rack}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_serves_a_reader_in_its_own_rack_and_without_a_rack_aware_selector_every_one() {
    const BY_RACK: &str = "org.apache.kafka.common.replica.RackAwareReplicaSelector";
    let check = async |settings: &[(&str, &str)], rack: &str| {
        let cluster = Cluster::start(2, settings).await;
        cluster.create_topic("t", &[1, 2], &[]).await;
        // Acknowledged by both, so that the follower would do.
        let producer = cluster.producer().await;
        produce(&producer, "t", "x").await.expect("acknowledged");
        let leader = connect_to(&cluster, 0).await;
        let answer = only_partition(read_from(&cluster, &leader, ("t", 0), rack).await);
        assert_eq!(answer.preferred_read_replica, -1, "{settings:?}");
        assert!(!answer.records.unwrap_or_default().is_empty());
    };
    // Both brokers are in this rack.
    let selector = ("replica.selector.class", BY_RACK);
    check(&[selector, ("broker.rack", "shared")], "shared").await;
    // The follower is, and the leader is not.
    check(&[], "rack-2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_guessed_a_followers_epoch_acknowledges_nothing_for_it() {
    let cluster = Cluster::start(1, &[]).await;
    let follower = Scripted::register(&cluster, 9).await;
    cluster.create_topic("t", &[1, 9], &[]).await;
    let leader = connect_to(&cluster, 0).await;
    let producer = cluster.producer().await;
    let mut produced = Box::pin(produce(&producer, "t", "x"));
    let pretender = Scripted::posing_as(follower, "another");
    for _ in 0..20 {
        let waiting = timeout(Duration::from_millis(20), &mut produced).await;
        assert!(waiting.is_err(), "9 does not have it: {waiting:?}");
        let answer = pretender.fetch(&cluster, &leader, "t", 1).await;
        assert_eq!(
            answer.error_code,
            ErrorCode::ClusterAuthorizationFailed.code()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_another_than_the_leader_is_told_who_leads_and_where() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster
        .create_topic("t", &[1, 2], &[("min.insync.replicas", "1")])
        .await;
    let topic_id = topic_id(&cluster, "t").await;
    for leader in [1, 2] {
        let state = cluster
            .until("t", 0, "the next leader", |state| {
                state.leader.value() == leader
            })
            .await;
        let expected = (leader, state.leader_epoch.value());
        // The dead are no longer listed.
        let brokers = cluster.config().bootstrap.len();
        let other = connect_to(&cluster, brokers - 1).await;
        let address = &cluster.config().bootstrap[0];
        let not_leader = ErrorCode::NotLeaderOrFollower.code();
        wait_for("the leader's name", async || {
            let mut builder = RecordBatchBuilder::new();
            builder.append(1, None, Some(b"x"), &[]).expect("small");
            let records = builder.build().expect("small");
            let request = message!(ProduceRequest {
                acks: -1,
                timeout_ms: 1000,
                topic_data: vec![message!(TopicProduceData {
                    topic_id: topic_id.into(),
                    partition_data: vec![message!(PartitionProduceData {
                        records: Some(records),
                    })],
                })],
            });
            let answer = soon("an answer", other.call(|_| request)).await;
            let answer = answer.expect("an answer");
            let part = &answer.responses[0].partition_responses[0];
            if part.error_code == ErrorCode::UnknownTopicId.code() {
                // It has yet to hear of the topic.
                return None;
            }
            assert_eq!(part.error_code, not_leader);
            let named = (
                part.current_leader.leader_id,
                part.current_leader.leader_epoch,
            );
            let nodes = answer.node_endpoints.iter();
            let nodes: Vec<_> = nodes
                .map(|node| {
                    (
                        node.node_id,
                        format!("{}:{}", node.host.as_str(), node.port),
                    )
                })
                .collect();
            if named != expected {
                return None;
            }
            assert_eq!(nodes, [(leader, address.clone())]);
            Some(())
        })
        .await;
        let answer = read_from(&cluster, &other, ("t", 0), "").await;
        let nodes = answer.node_endpoints.iter();
        let nodes: Vec<_> = nodes
            .map(|node| {
                (
                    node.node_id,
                    format!("{}:{}", node.host.as_str(), node.port),
                )
            })
            .collect();
        assert_eq!(nodes, [(leader, address.clone())]);
        let part = only_partition(answer);
        assert_eq!(part.error_code, not_leader);
        let named = (
            part.current_leader.leader_id,
            part.current_leader.leader_epoch,
        );
        assert_eq!(named, expected);
        if leader == 1 {
            cluster.kill(1).await;
        }
    }
}
