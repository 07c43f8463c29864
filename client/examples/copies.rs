//! Copies a topic into another in transactions that commit how far they have read: one of the
//! programs of a group that the fault suite kills and stops (`scripts/faultsuite/copy_load.py`,
//! which says what a copy looks like and judges it).
//!
//! ```text
//! copies BOOTSTRAP SOURCE TOPIC GROUP PROTOCOL NUMBER LIFE JOURNAL
//! ```
//!
//! PROTOCOL is the group's: classic or consumer. LIFE is a number that the next program with this
//! NUMBER has a higher one of.
//! It appends a line to the journal for each record that it knows to be committed, and for each
//! transaction that it aborted, as it does with some on purpose. It ends on SIGTERM, and with an
//! error where only a new program can go on: whoever starts it again goes on where the last
//! committed transaction ended.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use yuxi_client::consumer::CommittedOffset;
use yuxi_client::protocol::ids::TopicPartition;
use yuxi_client::{
    ClientConfig, Consumer, ConsumerRecord, Delivery, Record, TransactionError,
    TransactionalProducer,
};

/// The most records of a transaction, and how long it waits for them.
const RECORDS: usize = 1000;
const LINGER: Duration = Duration::from_millis(250);

/// Of a hundred transactions so many are aborted on purpose.
const ABORT_PERCENT: u32 = 10;

/// By then the broker has aborted it. Longer than a program is stopped.
const TRANSACTION_LIMIT: Duration = Duration::from_secs(20);
const ENDING_LIMIT: Duration = Duration::from_secs(20);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [
        bootstrap,
        source,
        topic,
        group,
        protocol,
        number,
        life,
        journal,
    ] = arguments.as_slice()
    else {
        anyhow::bail!("usage: copies BOOTSTRAP SOURCE TOPIC GROUP PROTOCOL NUMBER LIFE JOURNAL");
    };
    let mut config = ClientConfig::new(bootstrap)?;
    for (name, value) in [
        ("transactional.id", format!("{topic}-{number}").as_str()),
        ("transaction.timeout.ms", "5000"),
        ("group.id", group),
        ("group.protocol", protocol),
        ("enable.auto.commit", "false"),
        ("auto.offset.reset", "earliest"),
        ("isolation.level", "read_committed"),
        ("retry.backoff.ms", "20"),
        ("retry.backoff.max.ms", "200"),
        ("reconnect.backoff.max.ms", "200"),
    ] {
        config.set(name, value)?;
    }
    // By the other protocol the coordinator has the times.
    if protocol == "classic" {
        config.set("session.timeout.ms", "6000")?;
        config.set("heartbeat.interval.ms", "1000")?;
    }
    let connecting = TransactionalProducer::connect(config.clone());
    let producer = timeout(TRANSACTION_LIMIT, connecting).await??;
    let mut consumer = Consumer::connect(config).await?;
    consumer.subscribe([source.as_str().into()])?;
    let mut copier = Copier {
        consumer,
        producer,
        topic: topic.clone(),
        journal: File::options().append(true).open(journal)?,
        name: format!("{number}-{life}"),
        count: 0,
    };
    let mut ending = signal(SignalKind::terminate())?;
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        let gathered = tokio::select! {
            gathered = copier.gather() => gathered,
            _ = ending.recv() => break,
        };
        match gathered {
            Ok(records) if records.is_empty() => {}
            Ok(records) => timeout(TRANSACTION_LIMIT, copier.copy(&records)).await??,
            Err(error) if error.is_retriable() => {
                eprintln!("reading goes on: {error}");
                sleep(PAUSE_AFTER_ERROR).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    timeout(ENDING_LIMIT, copier.consumer.close()).await??;
    copier.producer.close(ENDING_LIMIT).await;
    Ok(())
}

struct Copier {
    consumer: Consumer,
    producer: TransactionalProducer,
    topic: String,
    journal: File,
    /// Of this program, as no other is called.
    name: String,
    /// Transactions so far.
    count: u64,
}

impl Copier {
    /// The records of the next transaction.
    async fn gather(&mut self) -> yuxi_client::Result<Vec<ConsumerRecord>> {
        let mut records = Vec::new();
        let deadline = Instant::now() + LINGER;
        let mut group = self.consumer.group_metadata();
        while records.len() < RECORDS && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            records.extend(self.consumer.poll(left).await?);
            let now = self.consumer.group_metadata();
            if now != group {
                // Others may have copied on meanwhile. Whoever reads a partition next begins
                // where the last commit stands.
                group = now;
                records.clear();
                self.consumer.rewind().await?;
            }
        }
        Ok(records)
    }

    /// One transaction.
    async fn copy(&mut self, records: &[ConsumerRecord]) -> anyhow::Result<()> {
        self.count += 1;
        let name = format!("{}-{}", self.name, self.count);
        let written = match self.transact(records, &name).await {
            Ok(written) => written,
            Err(error) if error.is_abortable() => {
                eprintln!("{name}: {error}");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let Some(written) = written else {
            self.journal
                .write_all(format!("abort {} 0 {name}\n", now_us()).as_bytes())?;
            return Ok(self.consumer.rewind().await?);
        };
        let mut lines = String::new();
        let now_us = now_us();
        for (record, delivery) in records.iter().zip(written) {
            let offset = delivery.await?.offset.unwrap_or(-1);
            let (partition, source) = (record.partition, record.offset);
            writeln!(lines, "ack {now_us} {partition} {source} {offset}")?;
        }
        // Several programs write to it: whole lines at once.
        self.journal.write_all(lines.as_bytes())?;
        Ok(())
    }

    /// What was written; `None` if it was aborted on purpose.
    async fn transact(
        &mut self,
        records: &[ConsumerRecord],
        name: &str,
    ) -> Result<Option<Vec<Delivery>>, TransactionError> {
        let transaction = self.producer.begin().await?;
        let mut written = Vec::new();
        for record in records {
            let (partition, source, size) = (record.partition, record.offset, records.len());
            let checksum = crc32fast::hash(record.value.as_deref().unwrap_or_default());
            let topic = &self.topic;
            let value = format!("{topic} {partition} {source} {name} {size} {checksum}");
            let copy = Record {
                partition: Some(partition),
                ..Record::new(topic.as_str(), value)
            };
            written.push(transaction.enqueue(copy).await?);
        }
        // Not where the consumer stands: its partitions may have been taken away since.
        let ends = records.iter().map(|record| {
            let partition = TopicPartition::new(record.topic.clone(), record.partition);
            let offset = record.offset + 1;
            let (leader_epoch, metadata) = (None, String::new());
            let end = CommittedOffset {
                offset,
                leader_epoch,
                metadata,
            };
            (partition, end)
        });
        let ends: BTreeMap<TopicPartition, CommittedOffset> = ends.collect();
        // Without a group nothing was read.
        if let Some(group) = self.consumer.group_metadata() {
            transaction.send_offsets(ends, &group).await?;
        }
        if rand::random_range(0..100) < ABORT_PERCENT {
            transaction.abort().await?;
            return Ok(None);
        }
        transaction.commit().await?;
        Ok(Some(written))
    }
}

fn now_us() -> u128 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_micros())
}
