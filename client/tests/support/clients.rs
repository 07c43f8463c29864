//! Producers and consumers of the fake cluster, and what they are to have sent and read.

use std::time::{Duration, Instant};

use yuxi_client::protocol::ids::TopicPartition;
use yuxi_client::{
    ClientConfig, Cluster, Consumer, Delivery, Error, OffsetSpec, Producer, Record, Start,
};

use super::{FakeCluster, TOPIC};

pub(crate) fn config(cluster: &FakeCluster, settings: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new(&cluster.bootstrap()).expect("an address");
    for (name, value) in [
        ("retry.backoff.ms", "5"),
        ("reconnect.backoff.ms", "5"),
        ("delivery.timeout.ms", "20000"),
    ]
    .iter()
    .chain(settings)
    {
        config.set(name, value).expect("a valid setting");
    }
    config
}

pub(crate) async fn producer(cluster: &FakeCluster, settings: &[(&str, &str)]) -> Producer {
    Producer::connect(config(cluster, settings))
        .await
        .expect("the fake broker answers")
}

/// Queues records "from", "from+1", … as batches of one record each.
pub(crate) async fn enqueue(producer: &Producer, values: std::ops::Range<usize>) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for value in values {
        let record = Record::new(TOPIC, value.to_string());
        deliveries.push(producer.enqueue(record).await.expect("room"));
    }
    deliveries
}

pub(crate) fn expected(values: std::ops::Range<usize>) -> Vec<String> {
    values.map(|value| value.to_string()).collect()
}

pub(crate) async fn offsets(deliveries: Vec<Delivery>) -> Vec<Option<i64>> {
    let mut offsets = Vec::new();
    for delivery in deliveries {
        offsets.push(delivery.await.expect("delivered").offset);
    }
    offsets
}

/// Small batches, so that several requests are in flight at once.
pub(crate) const ONE_RECORD_A_BATCH: &[(&str, &str)] = &[("batch.size", "1"), ("linger.ms", "0")];

/// Puts the values 0, 1, … into partition 0.
pub(crate) async fn fill(cluster: &FakeCluster, count: usize) {
    let producer = producer(cluster, ONE_RECORD_A_BATCH).await;
    enqueue(&producer, 0..count).await;
    producer.flush().await;
    assert_eq!(cluster.values(0), expected(0..count));
}

pub(crate) async fn consumer(cluster: &FakeCluster, settings: &[(&str, &str)]) -> Consumer {
    let cluster = Cluster::connect(config(cluster, settings))
        .await
        .expect("it answers");
    let mut consumer = Consumer::new(cluster);
    let start = Start::Spec(OffsetSpec::Earliest);
    consumer
        .assign([(TopicPartition::new(TOPIC, 0), start)])
        .await
        .expect("it exists");
    consumer
}

/// Polls until so many values have come, or an error does.
pub(crate) async fn poll_until(
    consumer: &mut Consumer,
    count: usize,
) -> Result<Vec<String>, Error> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut values = Vec::new();
    while values.len() < count {
        assert!(Instant::now() < deadline, "only {values:?} came");
        for record in consumer.poll(Duration::from_millis(50)).await? {
            values.push(String::from_utf8_lossy(&record.value.unwrap_or_default()).into_owned());
        }
    }
    Ok(values)
}
