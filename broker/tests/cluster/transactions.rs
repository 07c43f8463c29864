//! Transactions over several leaders, with their coordinator elsewhere, while brokers die.

use crate::support::{Cluster, soon, wait_for};
use std::time::Duration;
use yuxi_client::{Connection, Record, TransactionError, TransactionalProducer, producer::Ending};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::BrokerId,
    message,
    messages::{
        UpdateFeaturesRequest, WriteTxnMarkersRequest,
        update_features_request::FeatureUpdateKey,
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
    },
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
                let back = |state: &yuxi_controller::keys::PartitionState| {
                    state.isr.contains(&BrokerId::new(dead))
                };
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
    let transaction = soon("a transaction", producer.begin())
        .await
        .expect("begun");
    soon("a record", transaction.send(Record::new("alone", "v")))
        .await
        .expect("sent");
    // The outcome is written before the cluster hears that they are gone, and after that there
    // are too few for it to count.
    let others: Vec<i32> = (1..=3).filter(|id| *id != me).collect();
    for other in &others {
        cluster.kill(*other).await;
    }
    let mut commit = Box::pin(transaction.commit());
    let number = yuxi_coordinator::transactions::partition_for(ID, 3);
    let only_me = |state: &yuxi_controller::keys::PartitionState| state.isr == [BrokerId::new(me)];
    tokio::select! {
        ended = &mut commit => panic!("{ended:?}"),
        _ = cluster.until(STATE, number, "the others are out", only_me) => {}
    }
    let log = cluster.log_bytes(me, "alone", 0);
    let markers = yuxi_protocol::record::batches(&log)
        .filter(|batch| batch.as_ref().expect("a batch").header().is_control());
    assert_eq!(markers.count(), 0, "it is not decided");
    for other in others {
        cluster.start_broker(other).await;
    }
    let ended = soon("a commit", commit).await;
    match ended {
        Ok(()) => {}
        Err(TransactionError::InDoubt(_)) => {
            let ending = soon("an outcome", producer.ending()).await.expect("known");
            assert_eq!(ending, Some(Ending::Committed));
        }
        Err(error) => panic!("{error}"),
    }
    wait_for("the record", async || {
        let values = Box::pin(cluster.values("alone", 0)).await;
        (values.len() == 1).then_some(())
    })
    .await;
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
