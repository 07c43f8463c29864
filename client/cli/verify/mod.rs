//! `yuxi verify`: a load that checks every acknowledgement.
//!
//! It sends numbered records to every partition and reads them at the same time. When it
//! is told to end (`--seconds`, or a signal) it reads the topic once more from
//! the start, and says what was lost, what is there twice and what is out of order; with
//! transactions, also what is there of aborted ones, and which are there in part. What brokers
//! go through meanwhile is for others to arrange.

mod journal;
mod ledger;
mod transactions;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use yuxi_client::admin::NewTopic;
use yuxi_client::offsets::list_offsets;
use yuxi_client::protocol::ids::TopicPartition;
use yuxi_client::{
    ClientConfig, Cluster, Consumer, ConsumerRecord, Delivery, OffsetSpec, Producer, Record, Start,
};

use crate::failure::{Failure, Outcome};
use crate::interrupted;
use crate::output::{OutputFormat, line, print_json};
use crate::topic::create_if_missing;
use journal::Journal;
use ledger::{Ledger, Verdict};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The topic; created if it is missing.
    #[arg(default_value = "yuxi-verify")]
    topic: String,
    /// Partitions of the topic if it is created.
    #[arg(short, long, default_value_t = 1)]
    partitions: i32,
    /// Replicas of each partition if the topic is created; the broker's default otherwise.
    #[arg(short, long)]
    replicas: Option<i16>,
    /// min.insync.replicas of the topic if it is created.
    #[arg(long, value_name = "N")]
    min_insync_replicas: Option<u16>,
    /// Records to send each second, over all partitions.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// For how long to send; until SIGINT or SIGTERM unless given.
    #[arg(long)]
    seconds: Option<u64>,
    /// Bytes of a record's value.
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// Send in transactions of so many records, over all partitions in turn.
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..))]
    transactions: Option<u32>,
    /// How many transactional producers send at the same time.
    #[arg(long, default_value_t = 1, requires = "transactions", value_parser = clap::value_parser!(u32).range(1..))]
    producers: u32,
    /// Of a hundred transactions, abort so many on purpose.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=100))]
    abort_percent: u32,
    /// Let the reading consumer join this group.
    #[arg(short, long)]
    group: Option<String>,
    /// A file that gets a line for each record acknowledged, failed and read, with the
    /// time in microseconds since the epoch.
    #[arg(long, value_name = "FILE")]
    journal: Option<std::path::PathBuf>,
}

impl Args {
    fn new_topic(&self) -> NewTopic {
        let configs = self
            .min_insync_replicas
            .map(|count| ("min.insync.replicas".to_owned(), count.to_string()));
        NewTopic {
            partitions: Some(self.partitions),
            replication_factor: self.replicas,
            configs: configs.into_iter().collect(),
            ..NewTopic::new(self.topic.as_str())
        }
    }
}

/// Records are sent in bursts this far apart.
const TICK: Duration = Duration::from_millis(5);
/// Deliveries of a partition that are waited for.
const OUTSTANDING: usize = 100_000;
const POLL: Duration = Duration::from_millis(100);
/// How long the check at the end waits for a partition to give its next record.
/// A transaction that was left open ends by its time-out before that.
const STALLED: Duration = Duration::from_secs(90);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// What the tasks of a run share.
struct Run {
    /// Marks the values of this run: a topic may hold others'.
    id: String,
    topic: Arc<str>,
    ledger: Mutex<Ledger>,
    journal: Journal,
}

pub(crate) async fn run(config: ClientConfig, args: Args, format: OutputFormat) -> Outcome {
    let idempotent = config.acknowledgement()?.1;
    let cluster = Cluster::connect(config).await?;
    create_if_missing(&cluster, args.new_topic()).await?;
    let topic = cluster.topic(&args.topic.as_str().into(), false).await?;
    let run = Arc::new(Run {
        id: format!("{:08x}", std::process::id() ^ subsecond_nanos()),
        topic: topic.name.clone(),
        ledger: Mutex::new(Ledger::new(topic.partitions.len())),
        journal: Journal::open(args.journal.as_deref())?,
    });
    let (stop, stopping) = watch::channel(false);
    let reader = tokio::spawn(read_along(
        Arc::clone(&run),
        (**cluster.config()).clone(),
        args.group.clone(),
        stopping,
    ));
    let longest_gap = match args.transactions {
        Some(records) => transactions::send(&run, &cluster, &args, records).await?,
        None => send(&run, &cluster, &args).await?,
    };
    stop.send_replace(true);
    reader.await.map_err(|error| {
        Failure::Unsuccessful(format!(
            "the reading consumer did not end in order: {error}"
        ))
    })??;
    read_all(&run, &cluster).await?;
    let verdict = run.ledger().verdict();
    match format {
        OutputFormat::Json => print_json(&report(&verdict, longest_gap))?,
        OutputFormat::Table => line(&sentence(&verdict, longest_gap))?,
    }
    if verdict.is_good(idempotent) {
        Ok(())
    } else {
        Err(Failure::Unsuccessful(
            "the topic does not hold what was acknowledged".to_owned(),
        ))
    }
}

/// Sends until it is time to end, then waits for what is outstanding. The longest time
/// that one partition acknowledged nothing.
async fn send(run: &Arc<Run>, cluster: &Cluster, args: &Args) -> Outcome<Duration> {
    let producer = Producer::new(cluster.clone())?;
    producer.ready(&run.topic, 0).await?;
    let partitions = run.ledger().partition_count();
    let (deliveries, waiters): (Vec<_>, Vec<_>) = (0..partitions)
        .map(|partition| {
            let (sender, outstanding) = mpsc::channel(OUTSTANDING);
            let waiter = tokio::spawn(await_deliveries(Arc::clone(run), partition, outstanding));
            (sender, waiter)
        })
        .unzip();
    tokio::select! {
        sent = send_at_rate(run, &producer, &deliveries, args) => sent?,
        () = interrupted() => {}
    }
    drop(deliveries);
    producer.flush().await;
    let mut longest_gap = Duration::ZERO;
    for waiter in waiters {
        longest_gap = longest_gap.max(waiter.await.unwrap_or_default());
    }
    Ok(longest_gap)
}

async fn send_at_rate(
    run: &Run,
    producer: &Producer,
    deliveries: &[mpsc::Sender<(u64, Delivery)>],
    args: &Args,
) -> Outcome {
    let mut ticks = tokio::time::interval(TICK);
    let began = Instant::now();
    let mut sent = 0_u64;
    let mut partition = 0;
    loop {
        ticks.tick().await;
        let elapsed = began.elapsed();
        if args
            .seconds
            .is_some_and(|seconds| elapsed >= Duration::from_secs(seconds))
        {
            return Ok(());
        }
        let due = (elapsed.as_secs_f64() * f64::from(args.rate)) as u64;
        while sent < due {
            let sequence = run.ledger().send(partition);
            let record = Record {
                partition: Some(partition as i32),
                ..Record::new(run.topic.clone(), run.value(partition, sequence, args.size))
            };
            let delivery = producer.enqueue(record).await?;
            // The waiter lives as long as there is a sender.
            let _ = deliveries[partition].send((sequence, delivery)).await;
            partition = (partition + 1) % deliveries.len();
            sent += 1;
        }
    }
}

async fn await_deliveries(
    run: Arc<Run>,
    partition: usize,
    mut outstanding: mpsc::Receiver<(u64, Delivery)>,
) -> Duration {
    let mut longest_gap = Duration::ZERO;
    let mut last = None;
    while let Some((sequence, delivery)) = outstanding.recv().await {
        match delivery.await {
            Ok(written) => {
                let now = Instant::now();
                if let Some(last) = last.replace(now) {
                    longest_gap = longest_gap.max(now - last);
                }
                run.ledger()
                    .acknowledge(partition, sequence, written.offset);
                run.journal
                    .acknowledged(partition, sequence, written.offset);
            }
            Err(error) => run.journal.failed(partition, sequence, &error),
        }
    }
    longest_gap
}

/// Reads what comes while the run goes on.
async fn read_along(
    run: Arc<Run>,
    mut config: ClientConfig,
    group: Option<String>,
    mut stopping: watch::Receiver<bool>,
) -> Outcome {
    let mut consumer = if let Some(group) = group {
        config.set("group.id", &group)?;
        config.set("auto.offset.reset", "earliest")?;
        let mut consumer = Consumer::connect(config).await?;
        consumer.subscribe([run.topic.clone()])?;
        consumer
    } else {
        from_the_start(&run, Cluster::connect(config).await?).await?
    };
    loop {
        let polled = tokio::select! {
            polled = consumer.poll(POLL) => polled,
            _ = stopping.wait_for(|stop| *stop) => break,
        };
        match polled {
            Ok(records) => {
                for record in &records {
                    run.journal.read(record);
                    run.check(record, Ledger::see)?;
                }
            }
            Err(error) if error.is_retriable() => {
                tracing::warn!(%error, "reading goes on");
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if let Err(error) = consumer.close().await {
        tracing::warn!(%error, "the consumer left without a farewell");
    }
    Ok(())
}

/// Reads the whole topic.
async fn read_all(run: &Run, cluster: &Cluster) -> Outcome {
    let mut consumer = from_the_start(run, cluster.clone()).await?;
    let wanted = run
        .partitions()
        .map(|partition| (partition, OffsetSpec::Latest));
    let ends = list_offsets(cluster, &wanted.collect(), false).await?;
    let mut last = Instant::now();
    let is_behind = |consumer: &Consumer| {
        ends.iter().find(|(partition, end)| {
            consumer.position(partition).unwrap_or(0) < end.offset.unwrap_or(0)
        })
    };
    while let Some((behind, end)) = is_behind(&consumer) {
        if last.elapsed() > STALLED {
            return Err(Failure::Unsuccessful(format!(
                "cannot read {behind} up to offset {}",
                end.offset.unwrap_or(0)
            )));
        }
        match consumer.poll(POLL).await {
            Ok(records) => {
                if !records.is_empty() {
                    last = Instant::now();
                }
                for record in &records {
                    run.check(record, Ledger::read)?;
                }
            }
            Err(error) if error.is_retriable() => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn from_the_start(run: &Run, cluster: Cluster) -> Outcome<Consumer> {
    let mut consumer = Consumer::new(cluster);
    let start = Start::Spec(OffsetSpec::Earliest);
    consumer
        .assign(run.partitions().map(|partition| (partition, start)))
        .await?;
    Ok(consumer)
}

impl Run {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partitions(&self) -> impl Iterator<Item = TopicPartition> + '_ {
        let count = self.ledger().partition_count() as i32;
        (0..count).map(|index| TopicPartition::new(self.topic.clone(), index))
    }

    fn value(&self, partition: usize, sequence: u64, size: usize) -> Vec<u8> {
        let mut value = format!("{} {partition} {sequence} ", self.id).into_bytes();
        value.resize(size.max(value.len()), b'.');
        value
    }

    /// Writes a record of this run down; one that says what was never sent is an error.
    fn check(
        &self,
        record: &ConsumerRecord,
        write_down: impl FnOnce(&mut Ledger, usize, i64, u64) -> bool,
    ) -> Outcome {
        let text = record.value.as_deref().unwrap_or_default();
        let mut words = text.split(|byte| *byte == b' ');
        if words.next() != Some(self.id.as_bytes()) {
            return Ok(());
        }
        let mut number = || {
            let word = std::str::from_utf8(words.next()?).ok()?;
            word.parse::<u64>().ok()
        };
        let place = record.partition as usize;
        let known = match (number(), number()) {
            (Some(partition), Some(sequence)) if partition == place as u64 => {
                write_down(&mut self.ledger(), place, record.offset, sequence)
            }
            _ => false,
        };
        if known {
            return Ok(());
        }
        Err(Failure::Unsuccessful(format!(
            "{}-{} has at offset {} a record that was never sent there: {}",
            record.topic,
            record.partition,
            record.offset,
            String::from_utf8_lossy(text).trim_end_matches('.')
        )))
    }
}

fn subsecond_nanos() -> u32 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos())
}

fn report(verdict: &Verdict, longest_gap: Duration) -> Value {
    json!({
        "acknowledged": verdict.acknowledged,
        "unknown": verdict.unknown,
        "read": verdict.read,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "out_of_order": verdict.out_of_order,
        "misplaced": verdict.misplaced,
        "vanished": verdict.vanished,
        "committed": verdict.committed,
        "aborted": verdict.aborted,
        "in_doubt": verdict.in_doubt,
        "torn": verdict.torn,
        "aborted_reads": verdict.aborted_reads,
        "zombie_writes": verdict.zombie_writes,
        "longest_gap_ms": longest_gap.as_secs_f64() * 1000.0,
    })
}

fn sentence(verdict: &Verdict, longest_gap: Duration) -> String {
    let Verdict {
        acknowledged,
        unknown,
        read,
        lost,
        duplicated,
        out_of_order,
        misplaced,
        vanished,
        committed,
        aborted,
        in_doubt,
        torn,
        aborted_reads,
        zombie_writes,
    } = verdict;
    let transactions = if committed + aborted + in_doubt == 0 {
        String::new()
    } else {
        format!(
            "\ntransactions: committed {committed}, aborted {aborted}, in doubt {in_doubt}, \
             torn {torn}, aborted records read {aborted_reads}, zombies' writes {zombie_writes}"
        )
    };
    format!(
        "acknowledged {acknowledged}, lost {lost}, duplicated {duplicated}, out of order {out_of_order}\n\
         read {read}, of unknown fate {unknown}, misplaced {misplaced}, vanished {vanished}; \
         longest time without an acknowledgement {:.0} ms{transactions}",
        longest_gap.as_secs_f64() * 1000.0
    )
}
