//! Transactions over several leaders, with their coordinator elsewhere, while brokers die.

use crate::support::{Cluster, soon, wait_for};
use std::time::Duration;
use yuxi_client::{Connection, Record, TransactionError, TransactionalProducer, producer::Ending};
use yuxi_controller::keys::PartitionState;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::BrokerId,
    message,
    messages::{
        UpdateFeaturesRequest, WriteTxnMarkersRequest,
        update_features_request::FeatureUpdateKey,
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
    },
    record::BatchView,
};

const STATE: &str = "__transaction_state";
const ID: &str = "app";
const TOPICS: [(&str, [i32; 3]); 3] = [("a", [1, 2, 3]), ("b", [2, 3, 1]), ("c", [3, 1, 2])];

async fn cluster(extra: &[(&str, &str)]) -> Cluster {
    let mut overrides = vec![("transaction.state.log.num.partitions", "3")];
    overrides.extend_from_slice(extra);
    let cluster = Cluster::start(3, &overrides).await;
    for (topic, replicas) in TOPICS {
        cluster.create_topic(topic, &replicas, &[]).await;
    }
    cluster
}

async fn producer(cluster: &Cluster) -> TransactionalProducer {
    let mut config = cluster.config();
    config.transactional_id = Some(ID.to_owned());
    config.transaction_timeout = Duration::from_mins(1);
    soon("a producer", TransactionalProducer::connect(config))
        .await
        .expect("a producer")
}

async fn coordinator(cluster: &Cluster) -> i32 {
    let partition = yuxi_coordinator::transactions::partition_for(ID, 3);
    cluster.leader(STATE, partition).await
}

/// One transaction with a record for each topic; whether it is committed.
async fn transact(producer: &mut TransactionalProducer, value: &str, commit: bool) -> bool {
    let begun = soon("a transaction", producer.begin()).await;
    let transaction = begun.expect("begun");
    let mut sent = Ok(());
    for (topic, _) in TOPICS {
        let sending = transaction.send(Record::new(topic, value.to_owned()));
        if let Err(error) = soon("a record", sending).await {
            sent = Err(error);
            break;
        }
    }
    if let Err(error) = sent {
        assert!(error.is_abortable(), "{error}");
        eprintln!("{value} could not be written: {error}");
        soon("an abort", transaction.abort())
            .await
            .expect("aborted");
        return false;
    }
    if !commit {
        soon("an abort", transaction.abort())
            .await
            .expect("aborted");
        return false;
    }
    match soon("a commit", transaction.commit()).await {
        Ok(()) => true,
        Err(error) if error.is_abortable() => false,
        Err(TransactionError::InDoubt(_)) => {
            soon("an outcome", producer.ending()).await.expect("known") == Some(Ending::Committed)
        }
        Err(error) => panic!("{value}: {error}"),
    }
}

async fn check(cluster: &Cluster, committed: &[String]) {
    for (topic, _) in TOPICS {
        wait_for("all that is committed", async || {
            let values = Box::pin(cluster.values(topic, 0)).await;
            let values: Vec<_> = values.into_iter().map(|(_, value)| value).collect();
            if values.len() < committed.len() {
                return None;
            }
            assert_eq!(values, committed, "in {topic}");
            Some(())
        })
        .await;
    }
}

async fn brokers_die(mut cluster: Cluster) {
    let mut producer = producer(&cluster).await;
    let mut committed = Vec::new();
    for n in 0..14 {
        let dead = match n {
            4 => Some(coordinator(&cluster).await),
            // The leader of a partition that a transaction writes to.
            8 => Some(cluster.leader("b", 0).await),
            _ => None,
        };
        if let Some(dead) = dead {
            cluster.kill(dead).await;
        }
        let value = n.to_string();
        if transact(&mut producer, &value, n % 3 != 2).await {
            committed.push(value);
        }
        if let Some(dead) = dead {
            cluster.start_broker(dead).await;
            for (topic, _) in TOPICS {
                let back = |state: &PartitionState| state.isr.contains(&BrokerId::new(dead));
                cluster.until(topic, 0, "a replica in sync", back).await;
            }
        }
    }
    assert!(committed.len() > 5, "{committed:?}");
    Box::pin(check(&cluster, &committed)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_whole_whoever_of_coordinator_and_leaders_dies() {
    Box::pin(brokers_die(cluster(&[]).await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_they_are_by_the_old_protocol() {
    let cluster = cluster(&[]).await;
    let config = cluster.config();
    let connection = soon(
        "a connection",
        Connection::open(&config.bootstrap[0], &config),
    )
    .await
    .expect("a connection");
    let answer = connection.call(|_| {
        message!(UpdateFeaturesRequest {
            feature_updates: vec![message!(FeatureUpdateKey {
                feature: "transaction.version".into(),
                max_version_level: 0,
                upgrade_type: 2,
            })],
        })
    });
    let answer = soon("a downgrade", answer).await.expect("an answer");
    assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
    Box::pin(brokers_die(cluster)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_takes_over_at_another_coordinator() {
    let mut cluster = cluster(&[]).await;
    let mut zombie = producer(&cluster).await;
    let transaction = soon("a transaction", zombie.begin()).await.expect("begun");
    for (topic, _) in TOPICS {
        soon("a record", transaction.send(Record::new(topic, "zombie")))
            .await
            .expect("sent");
    }
    let dead = coordinator(&cluster).await;
    cluster.kill(dead).await;
    let mut alive = producer(&cluster).await;
    let refused = soon("a commit", transaction.commit()).await;
    assert!(
        matches!(refused, Err(TransactionError::Fenced { .. })),
        "{refused:?}"
    );
    assert!(transact(&mut alive, "alive", true).await);
    Box::pin(check(&cluster, &["alive".to_owned()])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_partition_hears_of_an_outcome_that_may_be_lost() {
    let mut cluster = cluster(&[]).await;
    let mut producer = producer(&cluster).await;
    let me = coordinator(&cluster).await;
    let alone = [("min.insync.replicas", "1")];
    cluster.create_topic("alone", &[me], &alone).await;
    let mut tries = 1;
    while !commit_while_others_die(&mut cluster, &mut producer, me).await {
        tries += 1;
        assert!(tries < 30, "the others are always out too early");
    }
    wait_for("the records", async || {
        let values = Box::pin(cluster.values("alone", 0)).await;
        (values.len() == tries).then_some(())
    })
    .await;
}

/// Commits at the coordinator `me` while all others die. Whether the outcome was written before
/// the cluster heard of that; from then on there are too few for it to count, and none may hear it.
async fn commit_while_others_die(
    cluster: &mut Cluster,
    producer: &mut TransactionalProducer,
    me: i32,
) -> bool {
    let transaction = soon("a transaction", producer.begin())
        .await
        .expect("begun");
    let sending = transaction.send(Record::new("alone", "v"));
    soon("a record", sending).await.expect("sent");
    let number = yuxi_coordinator::transactions::partition_for(ID, 3);
    let state_bytes = |cluster: &Cluster| cluster.log_bytes(me, STATE, number).len();
    let markers = |cluster: &Cluster| {
        let log = cluster.log_bytes(me, "alone", 0);
        let batches = yuxi_protocol::record::batches(&log);
        let is_control = |batch: &Result<BatchView<'_>, _>| {
            let batch = batch.as_ref().expect("a batch");
            batch.header().is_control()
        };
        batches.filter(is_control).count()
    };
    let before = (state_bytes(cluster), markers(cluster));
    let others: Vec<i32> = (1..=3).filter(|id| *id != me).collect();
    for other in &others {
        cluster.strike(*other);
    }
    let mut commit = Box::pin(transaction.commit());
    let only_me = |state: &PartitionState| state.isr == [BrokerId::new(me)];
    tokio::select! {
        ended = &mut commit => panic!("{ended:?}"),
        _ = cluster.until(STATE, number, "the others are out", only_me) => {}
    }
    let is_written = state_bytes(cluster) > before.0;
    assert_eq!(markers(cluster), before.1, "it is not decided");
    for other in others {
        cluster.start_broker(other).await;
    }
    match soon("a commit", commit).await {
        Ok(()) => {}
        Err(TransactionError::InDoubt(_)) => {
            let ending = soon("an outcome", producer.ending()).await.expect("known");
            assert_eq!(ending, Some(Ending::Committed));
        }
        Err(error) => panic!("{error}"),
    }
    let all_in = |state: &PartitionState| state.isr.len() == 3;
    let in_sync = "all in sync";
    cluster.until(STATE, number, in_sync, all_in).await;
    is_written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_a_broker_without_a_replica_the_partition_of_a_marker_is_unknown() {
    let cluster = Cluster::start(2, &[]).await;
    cluster.create_topic("one", &[1], &[]).await;
    cluster.create_topic("both", &[1, 2], &[]).await;
    let config = cluster.config();
    let second = soon(
        "a connection",
        Connection::open(&config.bootstrap[1], &config),
    )
    .await
    .expect("a connection");
    let told = async |topic: &str| {
        let answer = second.call(|_| {
            message!(WriteTxnMarkersRequest {
                markers: vec![message!(WritableTxnMarker {
                    producer_id: 1,
                    transaction_result: true,
                    topics: vec![message!(WritableTxnMarkerTopic {
                        name: topic.into(),
                        partition_indexes: vec![0],
                    })],
                })],
            })
        });
        let answer = soon("an answer", answer).await.expect("an answer");
        answer.markers[0].topics[0].partitions[0].error_code
    };
    wait_for("the second to know that it only follows", async || {
        (told("both").await == ErrorCode::NotLeaderOrFollower.code()).then_some(())
    })
    .await;
    // It knows of the other topic too, which is older.
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    assert_eq!([told("one").await, told("nowhere").await], [unknown; 2]);
}
