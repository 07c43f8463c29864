//! The load in transactions: several producers, each with one transaction after the other
//! over all partitions, some of them aborted on purpose.
//!
//! A producer that is fenced or otherwise done for is replaced by a new one with the same
//! `transactional.id`, as a program would be that was started again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use yuxi_client::producer::Ending;
use yuxi_client::{
    Cluster, Delivery, Record, Transaction, TransactionError, TransactionalProducer,
};

use super::ledger::{Outcome as Ended, TransactionNumber};
use super::{Args, PAUSE_AFTER_ERROR, Run};
use crate::failure::Outcome;
use crate::interrupted;

/// At the end a producer gets so long to bring its last transaction to an end.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// Sends until it is time to end. The longest time in which a producer committed nothing.
pub(super) async fn send(
    run: &Arc<Run>,
    cluster: &Cluster,
    args: &Args,
    records: u32,
) -> Outcome<Duration> {
    let (stop, stopping) = watch::channel(false);
    let each = f64::from(records) * f64::from(args.producers) / f64::from(args.rate.max(1));
    let workers: Vec<Worker> = (0..args.producers)
        .map(|number| Worker {
            run: Arc::clone(run),
            cluster: cluster.clone(),
            number,
            records,
            abort_percent: args.abort_percent,
            size: args.size,
            pace: Duration::from_secs_f64(each),
            stopping: stopping.clone(),
            longest_gap: Duration::ZERO,
            last: None,
            life: 0,
        })
        .collect();
    // What is refused for good would be tried until the end, and nobody told.
    let mut first = None;
    if let Some(worker) = workers.first() {
        match worker.connect().await {
            Ok(producer) => first = Some(producer),
            Err(error) if error.is_retriable() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let workers: Vec<_> = workers
        .into_iter()
        .map(|worker| tokio::spawn(worker.work(first.take())))
        .collect();
    let limit = async {
        match args.seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = limit => {}
        () = interrupted() => {}
    }
    stop.send_replace(true);
    let mut longest_gap = Duration::ZERO;
    for worker in workers {
        longest_gap = longest_gap.max(worker.await.unwrap_or_default());
    }
    Ok(longest_gap)
}

struct Worker {
    run: Arc<Run>,
    cluster: Cluster,
    number: u32,
    records: u32,
    abort_percent: u32,
    size: usize,
    /// From the begin of one transaction to that of the next.
    pace: Duration,
    stopping: watch::Receiver<bool>,
    longest_gap: Duration,
    last: Option<Instant>,
    /// How many producers it has had.
    life: u32,
}

/// What a worker means to do with a transaction.
#[derive(Clone, Copy)]
enum Plan {
    Commit,
    Abort,
    Drop,
}

impl Worker {
    /// Writes with the producer that is given, if one is, and then with others.
    async fn work(mut self, mut connected: Option<TransactionalProducer>) -> Duration {
        while !*self.stopping.borrow() {
            let producer = match connected.take() {
                Some(producer) => Ok(producer),
                None => self.connect().await,
            };
            match producer {
                Ok(mut producer) => {
                    self.life += 1;
                    if let Err(error) = self.live(&mut producer).await {
                        tracing::warn!(producer = self.number, %error, "a producer is replaced");
                    }
                    producer.close(CLOSE_LIMIT).await;
                }
                Err(error) => {
                    tracing::warn!(producer = self.number, %error, "no producer yet");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            }
        }
        self.longest_gap
    }

    async fn connect(&self) -> yuxi_client::Result<TransactionalProducer> {
        let mut config = (**self.cluster.config()).clone();
        let id = format!("yuxi-verify-{}-{}", self.run.topic, self.number);
        config.set("transactional.id", &id)?;
        TransactionalProducer::connect(config).await
    }

    /// One producer's life.
    async fn live(&mut self, producer: &mut TransactionalProducer) -> Result<(), TransactionError> {
        let mut ticks = tokio::time::interval(self.pace.max(Duration::from_micros(1)));
        while !*self.stopping.borrow() {
            ticks.tick().await;
            let transaction = match producer.begin().await {
                Err(TransactionError::InDoubt(_)) => continue,
                begun => begun?,
            };
            let number = self.run.ledger().begin(self.life);
            let ended = self.one(transaction, number).await;
            let outcome = match &ended {
                Ok(outcome) => *outcome,
                // It was not committed, and never will be.
                Err(TransactionError::Abortable(_)) => Ended::Aborted,
                Err(TransactionError::InDoubt(_)) => self.wait_for_ending(producer).await,
                Err(TransactionError::Fenced { .. } | TransactionError::Fatal(_)) => Ended::Unknown,
            };
            self.run.ledger().end(number, outcome);
            match ended {
                Err(error) if error.is_fatal() => return Err(error),
                Err(error) => {
                    tracing::debug!(producer = self.number, %error, "a transaction failed");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    async fn one(
        &mut self,
        transaction: Transaction<'_>,
        number: TransactionNumber,
    ) -> Result<Ended, TransactionError> {
        let run = Arc::clone(&self.run);
        let partitions = run.ledger().partition_count();
        let mut written: Vec<(usize, u64, Delivery)> = Vec::new();
        for at in 0..self.records as usize {
            // Each transaction begins elsewhere, so that few of them cover all partitions.
            let partition = (number.index() + at) % partitions;
            let sequence = run.ledger().send_in(number, self.number, partition);
            let record = Record {
                partition: Some(partition as i32),
                ..Record::new(run.topic.clone(), run.value(partition, sequence, self.size))
            };
            let delivery = transaction.enqueue(record).await?;
            written.push((partition, sequence, delivery));
        }
        match self.plan() {
            Plan::Abort => {
                transaction.abort().await?;
                return Ok(Ended::Aborted);
            }
            Plan::Drop => {
                drop(transaction);
                return Ok(Ended::Aborted);
            }
            Plan::Commit => transaction.commit().await?,
        }
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest_gap = self.longest_gap.max(now - last);
        }
        for (partition, sequence, delivery) in written {
            let offset = delivery.await.ok().and_then(|written| written.offset);
            run.ledger().acknowledge(partition, sequence, offset);
            run.journal.acknowledged(partition, sequence, offset);
        }
        Ok(Ended::Committed)
    }

    fn plan(&self) -> Plan {
        let drawn = rand::random_range(0..200);
        match drawn {
            _ if drawn >= 2 * self.abort_percent => Plan::Commit,
            _ if drawn % 2 == 0 => Plan::Abort,
            _ => Plan::Drop,
        }
    }

    async fn wait_for_ending(&self, producer: &mut TransactionalProducer) -> Ended {
        let deadline = Instant::now() + CLOSE_LIMIT;
        while Instant::now() < deadline {
            match producer.ending().await {
                Ok(Some(Ending::Committed)) => return Ended::Committed,
                Ok(Some(Ending::Aborted)) => return Ended::Aborted,
                Err(TransactionError::InDoubt(_)) => {}
                Ok(None) | Err(_) => return Ended::Unknown,
            }
        }
        Ended::Unknown
    }
}
