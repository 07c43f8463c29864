//! Transactional producers against a coordinator that checks what it is told, and misbehaves.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use support::clients::{config, fill, poll_until};
use support::{FakeCluster, Fault, TOPIC};
use yuxi_client::consumer::{CommittedOffset, GroupMetadata};
use yuxi_client::producer::Ending;
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::ids::TopicPartition;
use yuxi_client::{Consumer, Error, Record, TransactionError, TransactionalProducer};

const ADD_PARTITIONS: i16 = 24;
const END: i16 = 26;
const COMMIT_OFFSETS: i16 = 28;
const INITIALIZE: i16 = 22;

/// Both protocols, by what the cluster has finalised.
const VERSIONS: [Option<i16>; 3] = [None, Some(1), Some(2)];

async fn cluster(version: Option<i16>) -> FakeCluster {
    let cluster = FakeCluster::start(2, 2).await;
    cluster.state().transactions.version = version;
    cluster
}

async fn connect(cluster: &FakeCluster, settings: &[(&str, &str)]) -> TransactionalProducer {
    let mut all = vec![("transactional.id", "id"), ("linger.ms", "1")];
    all.extend(settings);
    TransactionalProducer::connect(config(cluster, &all))
        .await
        .expect("the coordinator answers")
}

fn record(partition: i32, value: &(impl ToString + ?Sized)) -> Record {
    Record {
        partition: Some(partition),
        ..Record::new(TOPIC, value.to_string())
    }
}

fn committed(cluster: &FakeCluster, partition: i32) -> Vec<String> {
    let committed = &cluster.state().transactions.committed;
    committed.get(&partition).cloned().unwrap_or_default()
}

fn offset_of_seven() -> BTreeMap<TopicPartition, CommittedOffset> {
    let offset = CommittedOffset {
        offset: 7,
        leader_epoch: None,
        metadata: String::new(),
    };
    [(TopicPartition::new(TOPIC, 0), offset)].into()
}

#[tokio::test]
async fn what_is_committed_is_seen_and_what_is_aborted_is_not() {
    for version in VERSIONS {
        let cluster = cluster(version).await;
        let mut producer = connect(&cluster, &[]).await;
        for (commit, value) in [(true, "a"), (false, "b"), (true, "c")] {
            let transaction = producer.begin().await.expect("nothing failed");
            for partition in [0, 1] {
                let queued = transaction.enqueue(record(partition, &value)).await;
                queued.expect("room");
            }
            let ended = if commit {
                transaction.commit().await
            } else {
                transaction.abort().await
            };
            ended.expect("nothing failed");
            let expected = if commit {
                Ending::Committed
            } else {
                Ending::Aborted
            };
            assert_eq!(producer.ending().await.expect("it ended"), Some(expected));
        }
        for partition in [0, 1] {
            assert_eq!(committed(&cluster, partition), ["a", "c"], "{version:?}");
        }
        let asked = cluster.state().transactions.asked.clone();
        let announced = asked.contains(&ADD_PARTITIONS);
        assert_eq!(announced, version != Some(2), "{version:?}: {asked:?}");
    }
}

#[tokio::test]
async fn a_transaction_that_is_dropped_is_aborted() {
    for version in VERSIONS {
        let cluster = cluster(version).await;
        let mut producer = connect(&cluster, &[]).await;
        let transaction = producer.begin().await.expect("nothing failed");
        transaction
            .send(record(0, "dropped"))
            .await
            .expect("written");
        drop(transaction);
        let transaction = producer.begin().await.expect("the abort is waited for");
        transaction.enqueue(record(0, "kept")).await.expect("room");
        transaction.commit().await.expect("nothing failed");
        assert_eq!(committed(&cluster, 0), ["kept"], "{version:?}");
    }
}

#[tokio::test]
async fn a_producer_that_is_closed_ends_what_was_dropped() {
    let cluster = cluster(Some(2)).await;
    let mut producer = connect(&cluster, &[]).await;
    let transaction = producer.begin().await.expect("nothing failed");
    transaction
        .send(record(0, "dropped"))
        .await
        .expect("written");
    drop(transaction);
    producer.close(Duration::from_secs(10)).await;
    assert_eq!(cluster.state().transactions.asked.last(), Some(&END));
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_committed_once() {
    for version in VERSIONS {
        let cluster = cluster(version).await;
        let mut producer = connect(&cluster, &[]).await;
        for value in 0..3 {
            let lost = (END, Fault::DropAfter);
            cluster.state().transactions.faults.push_back(lost);
            let transaction = producer.begin().await.expect("nothing failed");
            transaction.enqueue(record(0, &value)).await.expect("room");
            transaction.commit().await.expect("it is asked again");
        }
        assert_eq!(committed(&cluster, 0), ["0", "1", "2"], "{version:?}");
    }
}

#[tokio::test]
async fn whatever_breaks_in_between_a_transaction_is_seen_whole_or_not_at_all() {
    let seed: u64 = std::env::var("YUXI_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("YUXI_TEST_SEED={seed}");
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    for version in VERSIONS {
        let cluster = cluster(version).await;
        let mut producer = connect(&cluster, &[]).await;
        let faults = [
            Fault::DropBefore,
            Fault::DropAfter,
            Fault::Refuse(ErrorCode::ConcurrentTransactions),
            Fault::Refuse(ErrorCode::CoordinatorLoadInProgress),
        ];
        let mut expected = Vec::new();
        for value in 0..30 {
            {
                let mut state = cluster.state();
                let mut pick = || {
                    let at = rand::Rng::random_range(&mut random, 0..faults.len() * 2);
                    faults.get(at).cloned().unwrap_or(Fault::None)
                };
                state.produce_faults = [pick(), pick()].into();
                // An unused one must not keep those behind it from being used.
                state.transactions.faults.clear();
                let api = if version == Some(2) {
                    END
                } else {
                    ADD_PARTITIONS
                };
                state
                    .transactions
                    .faults
                    .extend([(api, pick()), (END, pick())]);
            }
            let transaction = producer.begin().await.expect("nothing fatal");
            for partition in [0, 1] {
                let queued = transaction.enqueue(record(partition, &value)).await;
                queued.expect("room");
            }
            if value % 5 == 4 {
                transaction.abort().await.expect("nothing fatal");
            } else {
                transaction.commit().await.expect("all of it may pass");
                expected.push(value.to_string());
            }
        }
        for partition in [0, 1] {
            assert_eq!(
                committed(&cluster, partition),
                expected,
                "{version:?}, seed {seed}"
            );
        }
    }
}

#[tokio::test]
async fn a_record_that_is_refused_leaves_only_the_abort_and_the_next_transaction_goes_on() {
    for version in VERSIONS {
        let cluster = cluster(version).await;
        let mut producer = connect(&cluster, &[]).await;
        let refused = Fault::Refuse(ErrorCode::InvalidRecord);
        cluster.state().produce_faults = [Fault::None, refused].into();
        let transaction = producer.begin().await.expect("nothing failed");
        transaction.send(record(0, "good")).await.expect("written");
        transaction.enqueue(record(1, "bad")).await.expect("room");
        let error = transaction.commit().await.expect_err("a record is missing");
        let code = error.cause().code();
        assert!(
            error.is_abortable() && code == Some(ErrorCode::InvalidRecord),
            "{error}"
        );
        let transaction = producer.begin().await.expect("the producer goes on");
        transaction.enqueue(record(1, "next")).await.expect("room");
        transaction.commit().await.expect("nothing failed");
        let seen = (committed(&cluster, 0), committed(&cluster, 1));
        assert_eq!(seen, (vec![], vec!["next".to_owned()]), "{version:?}");
    }
}

#[tokio::test]
async fn after_an_error_every_call_says_that_only_the_abort_is_left() {
    let cluster = cluster(Some(2)).await;
    let mut producer = connect(&cluster, &[]).await;
    let transaction = producer.begin().await.expect("nothing failed");
    let error = transaction.enqueue(record(9, "nowhere")).await;
    let error = error.expect_err("there is no such partition");
    assert!(matches!(error.cause(), Error::NoSuchPartition { .. }));
    assert!(transaction.enqueue(record(0, "late")).await.is_err());
    assert!(transaction.commit().await.is_err());
    assert_eq!(committed(&cluster, 0), Vec::<String>::new());
}

#[tokio::test]
async fn a_batch_that_may_or_may_not_be_written_is_not_continued_in_the_same_epoch() {
    let cases = VERSIONS.map(|version| [(version, Fault::DropAfter), (version, Fault::DropBefore)]);
    for (version, first) in cases.into_iter().flatten() {
        let cluster = cluster(version).await;
        let mut producer = connect(&cluster, &[("retries", "3")]).await;
        cluster.state().produce_faults = std::iter::once(first)
            .chain(std::iter::repeat_n(Fault::DropBefore, 3))
            .collect();
        let transaction = producer.begin().await.expect("nothing failed");
        transaction.enqueue(record(0, "lost")).await.expect("room");
        let error = transaction.commit().await.expect_err("it never arrives");
        assert!(error.is_abortable(), "{error}");
        assert!(cluster.state().produce_faults.is_empty());
        let transaction = producer.begin().await.expect("the producer goes on");
        transaction.enqueue(record(0, "next")).await.expect("room");
        transaction.commit().await.expect("nothing failed");
        assert_eq!(committed(&cluster, 0), ["next"], "{version:?}");
    }
}

#[tokio::test]
async fn the_older_of_two_producers_with_one_id_is_fenced() {
    for version in VERSIONS {
        let cluster = cluster(version).await;
        let mut older = connect(&cluster, &[]).await;
        let transaction = older.begin().await.expect("nothing failed");
        transaction
            .send(record(0, "zombie"))
            .await
            .expect("written");
        let mut newer = connect(&cluster, &[]).await;
        let error = transaction.commit().await.expect_err("it is fenced");
        assert!(
            matches!(error, TransactionError::Fenced { .. }),
            "{version:?}: {error}"
        );
        assert!(older.begin().await.is_err_and(|error| error.is_fatal()));
        let transaction = newer.begin().await.expect("nothing failed");
        transaction.enqueue(record(0, "newer")).await.expect("room");
        transaction.commit().await.expect("nothing failed");
        assert_eq!(committed(&cluster, 0), ["newer"], "{version:?}");
    }
}

#[tokio::test]
async fn offsets_count_only_if_their_transaction_does() {
    for version in VERSIONS {
        let cluster = cluster(version).await;
        let mut producer = connect(&cluster, &[]).await;
        let group = GroupMetadata::outsider("g");
        for commit in [false, true] {
            let transaction = producer.begin().await.expect("nothing failed");
            let sent = transaction.send_offsets(offset_of_seven(), &group).await;
            sent.expect("nothing failed");
            let ended = if commit {
                transaction.commit().await
            } else {
                transaction.abort().await
            };
            ended.expect("nothing failed");
            let offset = cluster
                .state()
                .transactions
                .committed_offsets
                .get(&0)
                .copied();
            assert_eq!(offset, commit.then_some(7), "{version:?}");
        }
    }
}

#[tokio::test]
async fn a_member_that_lost_its_partitions_cannot_commit_their_offsets() {
    let cluster = cluster(Some(2)).await;
    let mut producer = connect(&cluster, &[]).await;
    let refused = (COMMIT_OFFSETS, Fault::Refuse(ErrorCode::IllegalGeneration));
    cluster.state().transactions.faults.push_back(refused);
    let transaction = producer.begin().await.expect("nothing failed");
    let group = GroupMetadata::outsider("g");
    let error = transaction.send_offsets(offset_of_seven(), &group).await;
    assert!(error.is_err_and(|error| error.is_abortable()));
    transaction.abort().await.expect("the producer goes on");
    producer
        .begin()
        .await
        .expect("the producer goes on")
        .abort()
        .await
        .expect("empty");
}

#[tokio::test]
async fn a_commit_that_is_not_answered_in_time_is_in_doubt_and_its_ending_known_later() {
    let cluster = cluster(Some(2)).await;
    let settings = [("max.block.ms", "3000"), ("request.timeout.ms", "6000")];
    let mut producer = connect(&cluster, &settings).await;
    let transaction = producer.begin().await.expect("nothing failed");
    transaction.send(record(0, "a")).await.expect("written");
    cluster
        .state()
        .transactions
        .faults
        .push_back((END, Fault::Silence));
    let error = transaction.commit().await.expect_err("nobody answers");
    assert!(matches!(error, TransactionError::InDoubt(_)), "{error}");
    let ending = loop {
        match producer.ending().await {
            Err(TransactionError::InDoubt(_)) => {}
            known => break known.expect("it is asked again"),
        }
    };
    assert_eq!(ending, Some(Ending::Committed));
    assert_eq!(committed(&cluster, 0), ["a"]);
}

#[tokio::test]
async fn a_timeout_above_the_brokers_is_told_with_the_setting() {
    let cluster = cluster(Some(2)).await;
    let refused = Fault::Refuse(ErrorCode::InvalidTransactionTimeout);
    let refused = (INITIALIZE, refused);
    cluster.state().transactions.faults.push_back(refused);
    let settings = config(&cluster, &[("transactional.id", "id")]);
    let error = TransactionalProducer::connect(settings).await;
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("transaction.timeout.ms=60000"), "{error}");
}

#[tokio::test]
async fn a_producer_without_an_id_has_no_transactions_and_one_with_it_nothing_else() {
    let cluster = cluster(Some(2)).await;
    let error = TransactionalProducer::connect(config(&cluster, &[])).await;
    assert!(
        error
            .expect_err("no id")
            .to_string()
            .contains("set transactional.id")
    );
    let with_id = config(&cluster, &[("transactional.id", "id")]);
    assert!(yuxi_client::Producer::connect(with_id).await.is_err());
    let careless = config(&cluster, &[("transactional.id", "id"), ("acks", "1")]);
    assert!(TransactionalProducer::connect(careless).await.is_err());
}

#[tokio::test]
async fn a_consumer_that_rewinds_reads_again_what_was_not_committed() {
    let cluster = FakeCluster::start(1, 1).await;
    fill(&cluster, 3).await;
    let settings = [
        ("group.id", "g"),
        ("auto.offset.reset", "earliest"),
        ("enable.auto.commit", "false"),
    ];
    let consumer = Consumer::connect(config(&cluster, &settings)).await;
    let mut consumer = consumer.expect("the fake broker answers");
    consumer.subscribe([TOPIC.into()]).expect("a group");
    for _ in 0..2 {
        let values = poll_until(&mut consumer, 3).await.expect("nothing fatal");
        assert_eq!(values, ["0", "1", "2"]);
        consumer.rewind().await.expect("the coordinator answers");
    }
    let mut offsets = offset_of_seven();
    for committed in offsets.values_mut() {
        committed.offset = 2;
    }
    let committed = consumer.commit_offsets(offsets).await;
    committed.expect("the coordinator answers");
    consumer.rewind().await.expect("the coordinator answers");
    let values = poll_until(&mut consumer, 1).await.expect("nothing fatal");
    assert_eq!(values, ["2"]);
}
