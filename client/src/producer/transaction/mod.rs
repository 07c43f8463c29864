//! Transactions: records to any partitions, and a group's offsets, visible together or not at all.
//!
//! A [`TransactionalProducer`] has one transaction at a time, which the borrow checker
//! sees to: [`TransactionalProducer::begin`] lends the producer to a [`Transaction`], whose
//! calls take part in it. [`Transaction::commit`] and [`Transaction::abort`] end it; one
//! that is dropped is aborted. What must be right is the [`machine`], which the sender
//! task asks what to do next; here are only the calls that wait for it.

mod machine;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use yuxi_protocol::ids::TopicPartition;

use super::{Delivery, Producer, Queued, Record, RecordMetadata, RecordRef, State, Totals};
use crate::cluster::Cluster;
use crate::config::ClientConfig;
use crate::consumer::{CommittedOffset, GroupMetadata};
use crate::error::{Error, Result};
pub(crate) use machine::{Answer, Machine, Next, Protocol, Request};
pub(crate) use requests::Coordinators;

/// Why a call on a transaction failed, by what there is to do about it. Whatever may be
/// asked again has been, until `max.block.ms` or `delivery.timeout.ms` was over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransactionError {
    /// The transaction can only be aborted. The producer goes on, and the same may be
    /// tried in a new transaction.
    #[error("the transaction can only be aborted: {0}")]
    Abortable(Error),
    /// The coordinator could not be reached in time. Nothing is decided: after
    /// [`Transaction::commit`] the producer keeps asking, and
    /// [`TransactionalProducer::ending`] tells what came of it.
    #[error("it is not known yet how the transaction ends: {0}")]
    InDoubt(Error),
    /// A newer producer has the same `transactional.id`, or the transaction outlived
    /// `transaction.timeout.ms` and was aborted. This producer is over.
    #[error(
        "the producer of transactional.id {transactional_id} was fenced: a newer one has taken over, or a transaction outlived transaction.timeout.ms ({source})"
    )]
    Fenced {
        /// The id.
        transactional_id: Arc<str>,
        /// What the broker said.
        source: Error,
    },
    /// This producer cannot go on.
    #[error("the transactional producer cannot go on: {0}")]
    Fatal(Error),
}

impl TransactionError {
    /// Whether the producer can go on with another transaction.
    pub fn is_abortable(&self) -> bool {
        match self {
            Self::Abortable(_) => true,
            Self::InDoubt(_) | Self::Fenced { .. } | Self::Fatal(_) => false,
        }
    }

    /// Whether only a new producer can go on.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Fenced { .. } | Self::Fatal(_) => true,
            Self::Abortable(_) | Self::InDoubt(_) => false,
        }
    }

    /// What went wrong.
    pub fn cause(&self) -> &Error {
        match self {
            Self::Abortable(error) | Self::InDoubt(error) | Self::Fatal(error) => error,
            Self::Fenced { source, .. } => source,
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything in it is visible.
    Committed,
    /// Nothing in it is.
    Aborted,
}

/// A producer whose records belong to transactions. Needs `transactional.id`: whoever
/// connects with the same id later takes over, aborts what this one left open and fences it.
///
/// Both protocols are spoken: KIP-890's where the cluster's `transaction.version` is 2,
/// KIP-98's otherwise.
///
/// Consuming, transforming and producing, so that each input counts once:
///
/// ```no_run
/// # use std::time::Duration;
/// # use yuxi_client::{ClientConfig, Consumer, Record, TransactionalProducer};
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = ClientConfig::new("localhost:9092")?;
/// config.set("group.id", "shouting")?;
/// config.set("enable.auto.commit", "false")?;
/// let mut consumer = Consumer::connect(config.clone()).await?;
/// consumer.subscribe(["quiet".into()])?;
///
/// config.set("transactional.id", "shouting-1")?;
/// let mut producer = TransactionalProducer::connect(config).await?;
/// loop {
///     let records = consumer.poll(Duration::from_millis(100)).await?;
///     let Some(group) = consumer.group_metadata().filter(|_| !records.is_empty()) else {
///         continue;
///     };
///     let transaction = producer.begin().await?;
///     let written = async {
///         for record in &records {
///             let text = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
///             transaction.enqueue(Record::new("loud", text.to_uppercase())).await?;
///         }
///         transaction.send_offsets(consumer.positions(), &group).await?;
///         transaction.commit().await
///     };
///     match written.await {
///         Ok(()) => {}
///         // It is aborted; its input is read again.
///         Err(error) if error.is_abortable() => consumer.rewind().await?,
///         Err(error) => return Err(error.into()),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct TransactionalProducer {
    producer: Producer,
}

impl TransactionalProducer {
    /// A producer with connections of its own; see [`TransactionalProducer::new`].
    pub async fn connect(config: ClientConfig) -> Result<Self> {
        Self::new(Cluster::connect(config).await?).await
    }

    /// A producer over an existing cluster handle. Waits, at most `max.block.ms`, until the
    /// coordinator has fenced earlier producers of the same `transactional.id` and ended
    /// what they left open.
    pub async fn new(cluster: Cluster) -> Result<Self> {
        let this = Self {
            producer: Producer::start(cluster, true)?,
        };
        match this.until_settled().await {
            Ok(()) => Ok(this),
            Err(error) => Err(error.cause().clone()),
        }
    }

    /// Begins a transaction, once the one before has ended; waits for that at most
    /// `max.block.ms`, and may be called again after [`TransactionError::InDoubt`].
    pub async fn begin(&mut self) -> Result<Transaction<'_>, TransactionError> {
        loop {
            self.until_settled().await?;
            let begun = self.machine(Machine::begin)?;
            self.producer.handle.shared.wake.notify_one();
            if begun {
                return Ok(Transaction { producer: self });
            }
        }
    }

    /// How the last transaction ended, once that is known; `None` if there was none. Waits
    /// for it at most `max.block.ms`.
    pub async fn ending(&mut self) -> Result<Option<Ending>, TransactionError> {
        self.until_settled().await?;
        Ok(self.machine(|machine| machine.last()))
    }

    /// What has been delivered and what has failed, committed or not.
    pub fn totals(&self) -> Totals {
        self.producer.totals()
    }

    /// The cluster handle.
    pub fn cluster(&self) -> &Cluster {
        &self.producer.handle.shared.cluster
    }

    /// Sees the last transaction to its end, for at most `limit`, and stops.
    pub async fn close(self, limit: Duration) {
        self.producer.close(limit).await;
    }

    fn machine<T>(&self, with: impl FnOnce(&mut Machine) -> T) -> T {
        with(self.producer.handle.shared.lock().machine())
    }

    /// Waits for an identity, or the end of the last transaction.
    async fn until_settled(&self) -> Result<(), TransactionError> {
        let settled = self.producer.until_settled(|state| {
            let machine = state.transaction.as_ref();
            state.closing || machine.is_none_or(Machine::is_settled)
        });
        self.in_time("waiting for the transaction coordinator", settled)
            .await
            .map_err(TransactionError::InDoubt)?;
        match self.machine(|machine| machine.trouble()) {
            Some(trouble) => Err(trouble),
            None => Ok(()),
        }
    }

    async fn in_time(&self, what: &str, work: impl Future<Output = ()>) -> Result<()> {
        let limit = self.cluster().config().max_block;
        tokio::time::timeout(limit, work)
            .await
            .map_err(|_| Error::TimedOut {
                what: what.to_owned(),
                timeout_ms: limit.as_millis() as u64,
            })
    }
}

/// A transaction that is open. After any error it can only be aborted. Dropping it
/// without [`Transaction::commit`] aborts it in the background.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is aborted"]
pub struct Transaction<'a> {
    producer: &'a mut TransactionalProducer,
}

impl Transaction<'_> {
    /// Sends a record and waits until it is written; it is visible once the transaction is
    /// committed.
    pub async fn send(&self, record: Record) -> Result<RecordMetadata, TransactionError> {
        let delivery = self.enqueue(record).await?;
        let written = delivery.await;
        written.map_err(|error| self.fail(error))
    }

    /// Queues a record, waiting for room if need be. The delivery need not be waited for:
    /// a commit fails if any record of the transaction was not written.
    pub async fn enqueue(&self, record: Record) -> Result<Delivery, TransactionError> {
        self.still_good()?;
        let queued = self.producer.producer.enqueue(record).await;
        queued.map_err(|error| self.fail(error))
    }

    /// Queues a borrowed record if that needs no waiting.
    pub fn try_enqueue(
        &self,
        topic: &str,
        record: &RecordRef<'_>,
    ) -> Result<Queued, TransactionError> {
        self.still_good()?;
        let queued = self.producer.producer.try_enqueue(topic, record);
        queued.map_err(|error| self.fail(error))
    }

    /// Waits until the topic's partitions are known and a record of `size` bytes has
    /// room, at most `max.block.ms`.
    pub async fn ready(&self, topic: &Arc<str>, size: usize) -> Result<(), TransactionError> {
        let ready = self.producer.producer.ready(topic, size).await;
        ready.map_err(|error| self.fail(error))
    }

    /// Makes the group's progress part of the transaction (KIP-447): of each partition,
    /// the next record to read. The offsets count once the transaction is committed. A
    /// member that is no longer of the group's generation is refused.
    pub async fn send_offsets(
        &self,
        offsets: impl IntoIterator<Item = (TopicPartition, CommittedOffset)>,
        group: &GroupMetadata,
    ) -> Result<(), TransactionError> {
        self.still_good()?;
        let offsets: machine::Offsets = offsets.into_iter().collect();
        if offsets.is_empty() {
            return Ok(());
        }
        let id = self
            .producer
            .machine(|machine| machine.add_offsets(group.clone(), offsets));
        self.producer.producer.handle.shared.wake.notify_one();
        let taken = self.producer.producer.until(|state| {
            let machine = state.transaction.as_ref();
            state.closing || machine.is_none_or(|machine| !machine.has_offsets(id))
        });
        let taken = self.producer.in_time("committing offsets", taken).await;
        taken.map_err(|error| self.fail(error))?;
        self.still_good()
    }

    /// Makes everything in the transaction visible, once all of it is written.
    ///
    /// [`TransactionError::Abortable`] says that it is not committed and is being aborted.
    pub async fn commit(self) -> Result<(), TransactionError> {
        self.producer.machine(Machine::commit)?;
        let ended = self.producer.producer.until_settled(has_ended);
        let ended = self
            .producer
            .in_time("committing a transaction", ended)
            .await;
        if let Err(error) = ended {
            let asked = self.producer.machine(|machine| machine.is_commit_asked());
            return Err(if asked {
                TransactionError::InDoubt(error)
            } else {
                self.fail(error)
            });
        }
        self.still_good()
    }

    /// Takes everything in the transaction back, and waits until that is done.
    pub async fn abort(self) -> Result<(), TransactionError> {
        self.producer.machine(Machine::abort);
        let ended = self.producer.producer.until_settled(has_ended);
        let ended = self.producer.in_time("aborting a transaction", ended).await;
        ended.map_err(TransactionError::InDoubt)?;
        self.still_good()
    }

    /// Nothing but an abort is left after this error.
    fn fail(&self, error: Error) -> TransactionError {
        self.producer.machine(|machine| {
            machine.doom(error.clone());
            machine
                .trouble()
                .unwrap_or(TransactionError::Abortable(error))
        })
    }

    fn still_good(&self) -> Result<(), TransactionError> {
        let mut state = self.producer.producer.handle.shared.lock();
        state.heed_failures();
        match state.machine().trouble() {
            Some(trouble) => Err(trouble),
            None if state.closing => Err(TransactionError::Fatal(Error::Closed)),
            None => Ok(()),
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.producer.machine(Machine::abort);
        self.producer.producer.handle.shared.wake.notify_one();
    }
}

fn has_ended(state: &State) -> bool {
    let machine = state.transaction.as_ref();
    state.closing || machine.is_none_or(|machine| !machine.is_ending())
}
