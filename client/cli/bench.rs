//! `yuxi bench`: how fast records go in, come out, and pass through.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Subcommand;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use yuxi_client::admin::NewTopic;
use yuxi_client::producer::Queued;
use yuxi_client::protocol::ids::TopicPartition;
use yuxi_client::{
    ClientConfig, Cluster, Consumer, Delivery, OffsetSpec, Producer, RecordRef, Start,
};

use crate::failure::{Failure, Outcome};
use crate::output::{OutputFormat, Progress, line, print_json};
use crate::topic::create_if_missing;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send records as fast as they are acknowledged.
    Produce(Load),
    /// Read records as fast as they come.
    Consume(Load),
    /// Send one record at a time and wait until it comes out again.
    Latency(Load),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Load {
    /// The topic; created if it is missing.
    #[arg(long, default_value = "yuxi-bench")]
    topic: String,
    /// How many records; 1000000, or 1000 for latency, unless given.
    #[arg(long)]
    records: Option<u64>,
    /// Bytes of a record's value.
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// Acknowledged by: 0 nobody, 1 the leader, all in-sync replicas.
    #[arg(long)]
    acks: Option<String>,
    /// Compress batches: none, gzip, snappy, lz4 or zstd.
    #[arg(short = 'z', long)]
    compression: Option<String>,
    /// Partitions of the topic if it is created.
    #[arg(short, long, default_value_t = 1)]
    partitions: i32,
}

impl Load {
    fn new_topic(&self) -> NewTopic {
        NewTopic {
            partitions: Some(self.partitions),
            ..NewTopic::new(self.topic.as_str())
        }
    }
}

/// Of so many records one is timed.
const SAMPLE_EVERY: u64 = 1000;
/// Timed records whose acknowledgement is outstanding.
const SAMPLES_WAITING: usize = 10_000;
/// No record for so long means that none will come.
const STALLED: Duration = Duration::from_secs(30);

pub(crate) async fn run(
    mut config: ClientConfig,
    command: Command,
    format: OutputFormat,
) -> Outcome {
    let (Command::Produce(load) | Command::Consume(load) | Command::Latency(load)) = &command;
    if let Some(acks) = &load.acks {
        config.set("acks", acks)?;
    }
    if let Some(codec) = &load.compression {
        config.set("compression.type", codec)?;
    }
    if matches!(command, Command::Latency(_)) {
        config.set("linger.ms", "0")?;
    }
    let cluster = Cluster::connect(config).await?;
    create_if_missing(&cluster, load.new_topic()).await?;
    let report = match &command {
        Command::Produce(load) => produce(cluster, load).await?,
        Command::Consume(load) => consume(cluster, load).await?,
        Command::Latency(load) => latency(cluster, load).await?,
    };
    match format {
        OutputFormat::Json => print_json(&report),
        OutputFormat::Table => line(&sentence(&report)),
    }
}

async fn produce(cluster: Cluster, load: &Load) -> Outcome<Value> {
    let records = load.records.unwrap_or(1_000_000);
    let topic: Arc<str> = load.topic.as_str().into();
    let producer = Producer::new(cluster)?;
    producer.ready(&topic, 0).await?;
    let (samples, mut timed) = mpsc::channel::<(Instant, Delivery)>(SAMPLES_WAITING);
    let collector = tokio::spawn(async move {
        let mut latencies = Vec::new();
        while let Some((sent, delivery)) = timed.recv().await {
            if delivery.await.is_ok() {
                latencies.push(sent.elapsed());
            }
        }
        latencies
    });
    let value = payload(load.size);
    let record = RecordRef {
        value: Some(&value),
        ..RecordRef::default()
    };
    let mut progress = Progress::new(true);
    let began = Instant::now();
    for at in 0..records {
        let delivery = loop {
            match producer.try_enqueue(&topic, &record)? {
                Queued::Yes(delivery) => break delivery,
                Queued::NotYet => producer.ready(&topic, load.size).await?,
            }
        };
        if at % SAMPLE_EVERY == 0 {
            // A full channel only makes the sample smaller.
            let _ = samples.try_send((Instant::now(), delivery));
            progress.show(at, at * load.size as u64);
        }
    }
    producer.flush().await;
    let elapsed = began.elapsed();
    drop(progress);
    drop(samples);
    let totals = producer.totals();
    if let Some(error) = totals.first_failure {
        return Err(Failure::Unsuccessful(format!(
            "{} of {records} records were not delivered: {error}",
            totals.failed
        )));
    }
    let latencies = collector.await.unwrap_or_default();
    Ok(throughput(
        "produced", records, load.size, elapsed, latencies,
    ))
}

async fn consume(cluster: Cluster, load: &Load) -> Outcome<Value> {
    let records = load.records.unwrap_or(1_000_000);
    let mut consumer = consumer_at(cluster, &load.topic, OffsetSpec::Earliest).await?;
    let mut progress = Progress::new(true);
    let (mut seen, mut bytes) = (0, 0);
    let began = Instant::now();
    let mut last = began;
    while seen < records {
        let batch = consumer.poll(Duration::from_secs(1)).await?;
        if batch.is_empty() {
            if consumer.is_at_end() || last.elapsed() > STALLED {
                return Err(Failure::Unsuccessful(format!(
                    "topic {} has only {seen} records; fill it with: yuxi bench produce",
                    load.topic
                )));
            }
            continue;
        }
        last = Instant::now();
        seen += batch.len() as u64;
        let values = batch
            .iter()
            .map(|record| record.value.as_ref().map_or(0, Bytes::len));
        bytes += values.sum::<usize>();
        progress.show(seen, bytes as u64);
    }
    let elapsed = began.elapsed();
    drop(progress);
    Ok(throughput(
        "consumed",
        seen,
        bytes / seen.max(1) as usize,
        elapsed,
        Vec::new(),
    ))
}

async fn latency(cluster: Cluster, load: &Load) -> Outcome<Value> {
    let records = load.records.unwrap_or(1000);
    let topic: Arc<str> = load.topic.as_str().into();
    let mut consumer = consumer_at(
        Cluster::connect((**cluster.config()).clone()).await?,
        &topic,
        OffsetSpec::Latest,
    )
    .await?;
    // The consumer must stand at the end before the first record is sent.
    let deadline = Instant::now() + STALLED;
    while !consumer.is_at_end() {
        consumer.poll(Duration::from_millis(100)).await?;
        if Instant::now() > deadline {
            return Err(Failure::Unsuccessful(format!(
                "cannot reach the end of topic {topic}"
            )));
        }
    }
    let producer = Producer::new(cluster)?;
    let value = payload(load.size);
    let (mut acknowledged, mut received) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for _ in 0..records {
        let mut record = yuxi_client::Record::new(topic.clone(), value.clone());
        record.partition = Some(0);
        let sent = Instant::now();
        producer.send(record).await?;
        acknowledged.push(sent.elapsed());
        while consumer.poll(Duration::from_secs(1)).await?.is_empty() {
            if sent.elapsed() > STALLED {
                return Err(Failure::Unsuccessful(
                    "a record did not come out".to_owned(),
                ));
            }
        }
        received.push(sent.elapsed());
    }
    let elapsed = began.elapsed();
    Ok(json!({
        "what": "passed through",
        "records": records,
        "seconds": elapsed.as_secs_f64(),
        "acknowledged_ms": percentiles(acknowledged),
        "received_ms": percentiles(received),
    }))
}

async fn consumer_at(cluster: Cluster, topic: &str, spec: OffsetSpec) -> Outcome<Consumer> {
    let known = cluster.topic(&topic.into(), false).await?;
    let mut consumer = Consumer::new(cluster);
    let partitions = known.partitions.iter().map(|p| {
        (
            TopicPartition::new(known.name.clone(), p.index),
            Start::Spec(spec),
        )
    });
    consumer.assign(partitions.collect::<Vec<_>>()).await?;
    Ok(consumer)
}

/// Bytes that compress about as text does.
fn payload(size: usize) -> Vec<u8> {
    const WORDS: &[u8] = b"the seal passes from hand to hand and whoever holds it decides; ";
    (0..size)
        .map(|at| WORDS[(at * 7 + at / 13) % WORDS.len()])
        .collect()
}

fn throughput(
    what: &str,
    records: u64,
    size: usize,
    elapsed: Duration,
    latencies: Vec<Duration>,
) -> Value {
    let seconds = elapsed.as_secs_f64();
    json!({
        "what": what,
        "records": records,
        "record_bytes": size,
        "seconds": seconds,
        "records_per_second": records as f64 / seconds,
        "megabytes_per_second": records as f64 * size as f64 / seconds / 1e6,
        "acknowledged_ms": percentiles(latencies),
    })
}

fn percentiles(mut latencies: Vec<Duration>) -> Value {
    if latencies.is_empty() {
        return Value::Null;
    }
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = ((latencies.len() as f64 * share).ceil() as usize).clamp(1, latencies.len());
        latencies[index - 1].as_secs_f64() * 1000.0
    };
    json!({ "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "p999": at(0.999), "max": at(1.0) })
}

/// The report for people.
fn sentence(report: &Value) -> String {
    let number = |name: &str| report[name].as_f64().unwrap_or_default();
    let mut text = format!(
        "{} {} records in {:.3} s",
        report["what"].as_str().unwrap_or_default(),
        report["records"],
        number("seconds")
    );
    if report.get("records_per_second").is_some() {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            ": {:.0} records/s, {:.1} MB/s",
            number("records_per_second"),
            number("megabytes_per_second")
        );
    }
    for (name, label) in [
        ("acknowledged_ms", "acknowledged"),
        ("received_ms", "received"),
    ] {
        let Some(latency) = report[name].as_object() else {
            continue;
        };
        let of = |share: &str| latency[share].as_f64().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n{label} after p50 {:.3} ms, p95 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms, max {:.3} ms",
            of("p50"),
            of("p95"),
            of("p99"),
            of("p999"),
            of("max")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let latencies = (1..=100).rev().map(Duration::from_millis).collect();
        let found = percentiles(latencies);
        assert_eq!(found["p50"], json!(50.0));
        assert_eq!(found["p99"], json!(99.0));
        assert_eq!(found["max"], json!(100.0));
        assert_eq!(percentiles(Vec::new()), Value::Null);
    }
}
