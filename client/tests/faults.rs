//! Producer, consumer and connection against a broker that misbehaves.

mod support;

use std::time::{Duration, Instant};

use support::clients::{
    ONE_RECORD_A_BATCH, config, consumer, enqueue, expected, fill, offsets, poll_until, producer,
};
use support::{FakeCluster, Fault, TOPIC, batch_count, raw_frame};
use yuxi_client::admin::NewTopic;
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::ids::{PartitionId, TopicPartition};
use yuxi_client::{Admin, ClientConfig, Cluster, Consumer, Error, Record, Start};

#[tokio::test]
async fn whatever_breaks_in_between_an_idempotent_producer_neither_doubles_nor_reorders() {
    let seed: u64 = std::env::var("YUXI_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("YUXI_TEST_SEED={seed}");
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    let cluster = FakeCluster::start(2, 1).await;
    let faults = [
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::Refuse(ErrorCode::NotEnoughReplicas),
        Fault::Refuse(ErrorCode::NotLeaderOrFollower),
        Fault::Refuse(ErrorCode::RequestTimedOut),
        Fault::Raw(raw_frame(8, &[0xff; 8])),
    ];
    for _ in 0..60 {
        let at = rand::Rng::random_range(&mut random, 0..faults.len() * 3);
        let fault = faults.get(at).cloned().unwrap_or(Fault::None);
        cluster.state().produce_faults.push_back(fault);
    }
    let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
    let deliveries = enqueue(&producer, 0..200).await;
    producer.flush().await;
    assert_eq!(cluster.values(0), expected(0..200), "seed {seed}");
    let offsets = offsets(deliveries).await;
    // A duplicate whose first write is too long ago has no offset; it never has a wrong one.
    for (value, offset) in (0..).zip(offsets) {
        assert!(
            offset.is_none_or(|offset| offset == value),
            "{value} at {offset:?}, seed {seed}"
        );
    }
    assert_eq!(producer.totals().delivered, 200);
}

#[tokio::test]
async fn an_answer_that_is_lost_after_the_write_is_not_written_twice() {
    let cluster = FakeCluster::start(1, 1).await;
    cluster.state().produce_faults.push_back(Fault::DropAfter);
    let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
    let deliveries = enqueue(&producer, 0..3).await;
    assert_eq!(offsets(deliveries).await, [Some(0), Some(1), Some(2)]);
    assert_eq!(cluster.values(0), expected(0..3));
}

#[tokio::test]
async fn a_leader_that_moves_is_followed() {
    let cluster = FakeCluster::start(2, 1).await;
    let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
    enqueue(&producer, 0..5).await;
    producer.flush().await;
    {
        let mut state = cluster.state();
        state.partitions[0].leader = 1;
        state.partitions[0].leader_epoch = 1;
    }
    let deliveries = enqueue(&producer, 5..10).await;
    offsets(deliveries).await;
    assert_eq!(cluster.values(0), expected(0..10));
}

#[tokio::test]
async fn a_partition_that_lost_its_producers_gets_a_new_epoch_and_every_record_once() {
    let cluster = FakeCluster::start(1, 1).await;
    let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
    enqueue(&producer, 0..5).await;
    producer.flush().await;
    cluster.state().partitions[0].forget_producers();
    let deliveries = enqueue(&producer, 5..20).await;
    offsets(deliveries).await;
    assert_eq!(cluster.values(0), expected(0..20));
}

#[tokio::test]
async fn one_batch_that_fails_for_good_does_not_stop_those_behind_it() {
    let cluster = FakeCluster::start(1, 1).await;
    let refusal = Fault::Refuse(ErrorCode::InvalidRecord);
    cluster
        .state()
        .produce_faults
        .extend([Fault::None, refusal]);
    let producer = producer(&cluster, ONE_RECORD_A_BATCH).await;
    let mut outcomes = Vec::new();
    for delivery in enqueue(&producer, 0..10).await {
        outcomes.push(delivery.await);
    }
    let failed: Vec<usize> = (0..10).filter(|at| outcomes[*at].is_err()).collect();
    assert_eq!(failed, [1]);
    let error = outcomes[1].as_ref().expect_err("refused").to_string();
    assert!(
        error.contains("t-0") && error.contains("INVALID_RECORD"),
        "{error}"
    );
    let kept: Vec<String> = expected(0..10)
        .into_iter()
        .filter(|value| value != "1")
        .collect();
    assert_eq!(cluster.values(0), kept);
    assert_eq!(
        (producer.totals().delivered, producer.totals().failed),
        (9, 1)
    );
}

#[tokio::test]
async fn a_batch_that_the_broker_finds_too_large_is_split_until_it_fits() {
    for codec in ["none", "zstd"] {
        let cluster = FakeCluster::start(1, 1).await;
        cluster.state().max_batch_bytes = Some(300);
        let producer = producer(
            &cluster,
            &[("linger.ms", "1000"), ("compression.type", codec)],
        )
        .await;
        let deliveries = enqueue(&producer, 0..300).await;
        producer.flush().await;
        let offsets = offsets(deliveries).await;
        assert_eq!(cluster.values(0), expected(0..300), "{codec}");
        let in_order: Vec<Option<i64>> = (0..300).map(Some).collect();
        assert_eq!(offsets, in_order, "{codec}");
        assert!(batch_count(&cluster.state().partitions[0]) > 1, "{codec}");
    }
}

#[tokio::test]
async fn a_broker_that_never_answers_fails_records_at_the_delivery_timeout() {
    let cluster = FakeCluster::start(1, 1).await;
    cluster
        .state()
        .produce_faults
        .extend(vec![Fault::Silence; 100]);
    let producer = producer(&cluster, &[("delivery.timeout.ms", "300")]).await;
    let began = Instant::now();
    let error = producer
        .send(Record::new(TOPIC, "x"))
        .await
        .expect_err("nobody answers");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("t-0"), "{error}");
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_full_buffer_makes_send_wait_and_then_fail_by_name() {
    let cluster = FakeCluster::start(1, 1).await;
    cluster
        .state()
        .produce_faults
        .extend(vec![Fault::Silence; 1000]);
    let producer = producer(
        &cluster,
        &[("buffer.memory", "1000"), ("max.block.ms", "3000")],
    )
    .await;
    let mut error = None;
    for _ in 0..20 {
        let record = Record::new(TOPIC, vec![0; 200]);
        if let Err(failed) = producer.enqueue(record).await {
            error = Some(failed);
            break;
        }
    }
    let error = error.expect("the buffer holds only a few of these");
    assert!(error.to_string().contains("buffer.memory"), "{error}");
}

#[tokio::test]
async fn a_record_beyond_the_limit_is_refused_before_it_is_sent() {
    let cluster = FakeCluster::start(1, 1).await;
    let producer = producer(&cluster, &[("message.max.bytes", "2000")]).await;
    let record = Record::new(TOPIC, vec![0; 3000]);
    let error = producer.send(record).await.expect_err("too large");
    assert!(
        matches!(error, Error::RecordTooLarge { limit: 2000, .. }),
        "{error}"
    );
    assert_eq!(cluster.state().produce_requests, 0);
}

#[tokio::test]
async fn acks_0_waits_for_no_answer() {
    let cluster = FakeCluster::start(1, 1).await;
    let producer = producer(&cluster, &[("acks", "0")]).await;
    let written = producer.send(Record::new(TOPIC, "x")).await.expect("sent");
    assert_eq!(written.offset, None);
    let deadline = Instant::now() + Duration::from_secs(30);
    while cluster.values(0) != ["x"] {
        assert!(Instant::now() < deadline, "the record did not arrive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn equal_keys_go_to_one_partition_and_it_is_the_one_java_picks() {
    let cluster = FakeCluster::start(1, 8).await;
    let producer = producer(&cluster, &[]).await;
    for key in ["a", "b", "a"] {
        let record = Record::new(TOPIC, key).with_key(key);
        let written = producer.send(record).await.expect("delivered");
        let java = yuxi_client::protocol::partitioner::partition_for_key(key.as_bytes(), 8);
        assert_eq!(Some(written.partition), java.map(PartitionId::value));
    }
}

#[tokio::test]
async fn closing_delivers_what_is_queued_and_refuses_what_comes_after() {
    let cluster = FakeCluster::start(1, 1).await;
    let producer = producer(&cluster, &[("linger.ms", "60000")]).await;
    enqueue(&producer, 0..10).await;
    let other = producer.clone();
    producer.close(Duration::from_secs(10)).await;
    assert_eq!(cluster.values(0), expected(0..10));
    let error = other
        .send(Record::new(TOPIC, "late"))
        .await
        .expect_err("closed");
    assert!(matches!(error, Error::Closed), "{error}");
}

#[tokio::test]
async fn a_broker_that_knows_only_old_api_versions_is_asked_again_in_version_0() {
    let cluster = FakeCluster::start(1, 1).await;
    cluster.state().old_api_versions = true;
    let producer = producer(&cluster, &[]).await;
    producer
        .send(Record::new(TOPIC, "x"))
        .await
        .expect("delivered");
    assert_eq!(cluster.state().api_versions_seen[..2], [3, 0]);
}

#[tokio::test]
async fn frames_of_impossible_size_are_refused_without_being_waited_for() {
    for length in [-1, i32::MIN, i32::MAX, 200_000_000] {
        let cluster = FakeCluster::start(1, 1).await;
        fill(&cluster, 1).await;
        let fault = Fault::Raw(raw_frame(length, &[0; 64]));
        cluster.state().fetch_faults.extend(vec![fault; 3]);
        let mut consumer = consumer(&cluster, &[]).await;
        let outcome = poll_until(&mut consumer, 1).await;
        let error = outcome.expect_err("not a frame").to_string();
        assert!(
            error.contains("receive.message.max.bytes"),
            "{length}: {error}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_an_error_that_names_it() {
    for body in [&[][..], &[0, 0, 0], &[0x7f; 4], &[0xff; 40]] {
        let cluster = FakeCluster::start(1, 1).await;
        fill(&cluster, 1).await;
        let fault = Fault::Raw(raw_frame(body.len() as i32, body));
        cluster.state().fetch_faults.extend(vec![fault; 3]);
        let mut consumer = consumer(&cluster, &[]).await;
        let error = poll_until(&mut consumer, 1)
            .await
            .expect_err("nonsense")
            .to_string();
        assert!(error.starts_with("malformed"), "{body:?}: {error}");
    }
}

#[tokio::test]
async fn a_consumer_gets_over_lost_connections_and_refusals_without_losing_a_record() {
    let cluster = FakeCluster::start(1, 1).await;
    fill(&cluster, 20).await;
    cluster.state().fetch_faults.extend([
        Fault::None,
        Fault::DropBefore,
        Fault::Refuse(ErrorCode::NotLeaderOrFollower),
        Fault::None,
        Fault::Refuse(ErrorCode::UnknownLeaderEpoch),
        Fault::DropBefore,
    ]);
    let mut consumer = consumer(&cluster, &[]).await;
    assert_eq!(
        poll_until(&mut consumer, 20).await.expect("all passing"),
        expected(0..20)
    );
    while !consumer.is_at_end() {
        consumer
            .poll(Duration::from_millis(20))
            .await
            .expect("no more records");
    }
}

#[tokio::test]
async fn a_seek_makes_void_what_was_fetched_before() {
    let cluster = FakeCluster::start(1, 1).await;
    fill(&cluster, 10).await;
    let mut consumer = consumer(&cluster, &[("max.poll.records", "1")]).await;
    assert_eq!(
        poll_until(&mut consumer, 3).await.expect("records"),
        expected(0..3)
    );
    let partition = TopicPartition::new(TOPIC, 0);
    consumer
        .seek(&partition, Start::Offset(7))
        .expect("assigned");
    assert_eq!(
        poll_until(&mut consumer, 3).await.expect("records"),
        expected(7..10)
    );
    assert_eq!(consumer.position(&partition), Some(10));
}

#[tokio::test]
async fn an_offset_out_of_range_follows_auto_offset_reset() {
    let cluster = FakeCluster::start(1, 1).await;
    fill(&cluster, 3).await;
    let partition = TopicPartition::new(TOPIC, 0);
    let mut consumer1 = consumer(&cluster, &[("auto.offset.reset", "earliest")]).await;
    consumer1
        .seek(&partition, Start::Offset(100))
        .expect("assigned");
    assert_eq!(
        poll_until(&mut consumer1, 3).await.expect("records"),
        expected(0..3)
    );
    let mut consumer2 = consumer(&cluster, &[("auto.offset.reset", "error")]).await;
    consumer2
        .seek(&partition, Start::Offset(100))
        .expect("assigned");
    let error = poll_until(&mut consumer2, 1)
        .await
        .expect_err("out of range");
    assert_eq!(error.code(), Some(ErrorCode::OffsetOutOfRange), "{error}");
}

#[tokio::test]
async fn a_partition_that_does_not_exist_is_refused_by_name() {
    let cluster = FakeCluster::start(1, 2).await;
    let connected = Cluster::connect(config(&cluster, &[]))
        .await
        .expect("it answers");
    let mut consumer = Consumer::new(connected);
    let start = Start::Offset(0);
    let error = consumer
        .assign([(TopicPartition::new(TOPIC, 2), start)])
        .await
        .expect_err("only two partitions");
    assert_eq!(
        error.to_string(),
        "topic t has no partition 2; it has 2, numbered from 0"
    );
}

#[tokio::test]
async fn the_settings_of_many_topics_are_asked_for_in_one_call() {
    let cluster = FakeCluster::start(1, 1).await;
    cluster.state().other_topics = vec!["a".to_owned(), "b".to_owned()];
    let connected = Cluster::connect(config(&cluster, &[])).await;
    let admin = Admin::new(connected.expect("a cluster"));
    let answers = admin
        .describe_topic_configs(&["b", "gone", "a"], None)
        .await
        .expect("an answer");
    let told: Vec<_> = answers
        .into_iter()
        .map(|answer| match answer {
            Ok(entries) => Ok(entries
                .into_iter()
                .filter_map(|entry| entry.value)
                .collect()),
            Err(error) => Err(error.code()),
        })
        .collect();
    let value = |topic: &str| Ok(vec![topic.to_owned()]);
    let unknown = Err(Some(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(told, [value("b"), unknown, value("a")]);
    assert_eq!(cluster.state().describe_configs_requests, 1);
}

#[tokio::test]
async fn no_broker_at_all_is_said_with_the_address_and_the_remedy() {
    let mut settings = ClientConfig::new("127.0.0.1:1").expect("an address");
    settings.set("reconnect.backoff.ms", "1").expect("valid");
    let error = Cluster::connect(settings)
        .await
        .expect_err("nobody listens")
        .to_string();
    assert!(
        error.contains("127.0.0.1:1") && error.contains("--bootstrap"),
        "{error}"
    );
}

#[tokio::test]
async fn missing_topics_are_created_however_often_it_is_not_known_what_became_of_them() {
    let cluster = FakeCluster::start(1, 1).await;
    cluster.state().create_faults = [
        Fault::Refuse(ErrorCode::RequestTimedOut),
        Fault::DropAfter,
        Fault::None,
        Fault::Refuse(ErrorCode::PolicyViolation),
    ]
    .into();
    let admin = Admin::connect(config(&cluster, &[])).await.expect("served");
    let created = admin.create_missing_topics(&[NewTopic::new("new")]).await;
    let created = created.expect("answered in the end");
    assert!(created[0].result.is_ok(), "{created:?}");
    assert_eq!(cluster.state().other_topics, ["new"]);
    // A refusal that is certain is not asked for twice.
    let refused = admin.create_missing_topics(&[NewTopic::new("bad")]).await;
    let refused = refused.expect("answered");
    let code = refused[0].result.as_ref().expect_err("refused").code();
    assert_eq!(code, Some(ErrorCode::PolicyViolation));
    assert!(cluster.state().create_faults.is_empty());
}
