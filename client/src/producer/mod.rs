//! The producer: records in, acknowledgements out.
//!
//! [`Producer::send`] copies a record into the open batch of its partition and
//! hands out a [`Delivery`]; one background task sends the batches. The queues
//! between the two are an `Accumulator` behind one short lock, never held
//! across an await. Memory is bounded by `buffer.memory`; `send` waits for room.

mod accumulator;
mod batch;
mod delivery;
mod partition;
mod sender;
mod transaction;
mod window;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use yuxi_protocol::codec::StrBytes;
use yuxi_protocol::record::RecordBatchBuilder;
use yuxi_protocol::record::batch::RECORD_BATCH_OVERHEAD;

use crate::cluster::Cluster;
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::sync::lock;
use accumulator::{Accumulator, Append, Settings};
pub use delivery::{Delivery, RecordMetadata};
pub use transaction::{Ending, Transaction, TransactionError, TransactionalProducer};
use transaction::{Machine, Next};

/// A record's headers: names with values.
pub type Header = (StrBytes, Option<Bytes>);

/// A record to send.
#[derive(Clone, Debug)]
pub struct Record {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition; by the key's hash, or any, if `None`.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; `None` deletes the key from a compacted topic.
    pub value: Option<Bytes>,
    /// The headers.
    pub headers: Vec<Header>,
    /// Milliseconds since the epoch; now, if `None`.
    pub timestamp_ms: Option<i64>,
}

impl Record {
    /// A record without a key.
    pub fn new(topic: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            partition: None,
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }
}

/// A borrowed record, for callers that send from a buffer of their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordRef<'a> {
    /// The partition; by the key's hash, or any, if `None`.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// The headers.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// Milliseconds since the epoch; now, if `None`.
    pub timestamp_ms: Option<i64>,
}

impl RecordRef<'_> {
    /// The most bytes that the record takes as a batch of its own.
    fn size_bound(&self) -> usize {
        RECORD_BATCH_OVERHEAD
            + RecordBatchBuilder::record_size_bound(self.key, self.value, self.headers)
    }
}

/// How many records have been delivered and how many have failed so far.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Acknowledged as `acks` asks for it.
    pub delivered: u64,
    /// Given up.
    pub failed: u64,
    /// Why the first of them failed.
    pub first_failure: Option<Error>,
}

/// What became of an attempt to queue a record without waiting.
#[derive(Debug)]
pub enum Queued {
    /// It is in a batch.
    Yes(Delivery),
    /// `buffer.memory` is used up, or the topic's partitions are not known yet:
    /// [`Producer::ready`] waits for both.
    NotYet,
}

/// An asynchronous producer. Clones share everything.
#[derive(Clone, Debug)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// Dropping the last handle stops the sender task.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    sender: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
    }
}

/// What the handles and the sender task share.
#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    state: Mutex<State>,
    /// There may be something to send.
    wake: Notify,
    /// A batch got its outcome: there is room, and a flush may be over.
    settled: Notify,
}

#[derive(Debug)]
struct State {
    accumulator: Accumulator,
    closing: bool,
    /// Why nothing can be sent any more.
    fatal: Option<Error>,
    /// Of a transactional producer.
    transaction: Option<Machine>,
}

impl State {
    /// Of a transactional producer: how far its transaction has come.
    fn machine(&mut self) -> &mut Machine {
        self.transaction
            .as_mut()
            .expect("only a transactional producer's transactions are asked after")
    }

    /// Tells the transaction of batches that failed.
    fn heed_failures(&mut self) {
        if let Some(machine) = &mut self.transaction
            && let Some(error) = self.accumulator.take_failure()
        {
            machine.doom(error);
        }
    }

    /// Brings transaction and batches in line; what a coordinator is to be asked next.
    fn coordinate(&mut self, now: Instant) -> Next {
        self.heed_failures();
        let Some(machine) = &mut self.transaction else {
            return Next::Nothing;
        };
        if let Some(reason) = machine.refuses_batches() {
            self.accumulator.abandon(&reason);
            // Whoever gives up does not doom what is given up.
            self.accumulator.take_failure();
        }
        let (idle, has_gap) = (self.accumulator.is_idle(), self.accumulator.has_gap());
        machine.next(now, idle, has_gap)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Producer {
    /// A producer with connections of its own.
    pub async fn connect(config: ClientConfig) -> Result<Self> {
        Self::new(Cluster::connect(config).await?)
    }

    /// A producer over an existing cluster handle. Needs a tokio runtime.
    pub fn new(cluster: Cluster) -> Result<Self> {
        if cluster.config().transactional_id.is_some() {
            return Err(Error::Config(
                "transactional.id is set, so that records belong to transactions: use a TransactionalProducer".to_owned(),
            ));
        }
        Self::start(cluster, false)
    }

    fn start(cluster: Cluster, transactional: bool) -> Result<Self> {
        let config = cluster.config().clone();
        let (acks, idempotent) = config.acknowledgement()?;
        let transactional_id = if transactional {
            Some(config.transactional_id()?)
        } else {
            None
        };
        let machine = |id: &Arc<str>| {
            Machine::new(id.clone(), config.retry_backoff, config.retry_backoff_max)
        };
        let settings = Settings {
            batch_bytes: config.batch_bytes,
            message_max_bytes: config.message_max_bytes,
            compression: config.compression,
            compression_level: config.compression_level,
            linger: config.linger,
            // What is written after the coordinator gave up would be for nothing.
            delivery_timeout: if transactional {
                config.delivery_timeout.min(config.transaction_timeout)
            } else {
                config.delivery_timeout
            },
            buffer_bytes: config.buffer_bytes,
            idempotent,
            transactional,
            retry_backoff: config.retry_backoff,
            retry_backoff_max: config.retry_backoff_max,
            retries: config.retries,
        };
        let shared = Arc::new(Shared {
            cluster,
            state: Mutex::new(State {
                accumulator: Accumulator::new(settings),
                closing: false,
                fatal: None,
                transaction: transactional_id.as_ref().map(machine),
            }),
            wake: Notify::new(),
            settled: Notify::new(),
        });
        let sender = tokio::spawn(sender::run(shared.clone(), acks, transactional_id));
        Ok(Self {
            handle: Arc::new(Handle {
                shared,
                sender: Mutex::new(Some(sender)),
            }),
        })
    }

    /// Sends a record and waits until it is acknowledged.
    pub async fn send(&self, record: Record) -> Result<RecordMetadata> {
        self.enqueue(record).await?.await
    }

    /// Queues a record, waiting for room if need be; the [`Delivery`] tells later
    /// what became of it. Records of one partition are sent in the order of these calls.
    pub async fn enqueue(&self, record: Record) -> Result<Delivery> {
        let headers: Vec<(&str, Option<&[u8]>)> = record
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()))
            .collect();
        let borrowed = RecordRef {
            partition: record.partition,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
            timestamp_ms: record.timestamp_ms,
        };
        loop {
            match self.try_enqueue(&record.topic, &borrowed)? {
                Queued::Yes(delivery) => return Ok(delivery),
                Queued::NotYet => self.ready(&record.topic, borrowed.size_bound()).await?,
            }
        }
    }

    /// Queues a borrowed record if that needs no waiting.
    pub fn try_enqueue(&self, topic: &str, record: &RecordRef<'_>) -> Result<Queued> {
        let shared = &self.handle.shared;
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
        let now = Instant::now();
        let mut state = shared.lock();
        if let Some(error) = &state.fatal {
            return Err(error.clone());
        }
        if state.closing {
            return Err(Error::Closed);
        }
        let Some(topic) = state.accumulator.topic(topic) else {
            return Ok(Queued::NotYet);
        };
        match state.accumulator.append(topic, record, timestamp_ms, now) {
            Append::Queued { delivery, wake } => {
                drop(state);
                if wake {
                    shared.wake.notify_one();
                }
                Ok(Queued::Yes(delivery))
            }
            Append::NoRoom => Ok(Queued::NotYet),
            Append::Refused(error) => Err(error),
        }
    }

    /// Waits until the topic's partitions are known and a record of `size` bytes has
    /// room, at most `max.block.ms`.
    pub async fn ready(&self, topic: &Arc<str>, size: usize) -> Result<()> {
        let shared = &self.handle.shared;
        let limit = shared.cluster.config().max_block;
        let waited = tokio::time::timeout(limit, async {
            if shared.lock().accumulator.topic(topic).is_none() {
                let known = shared.cluster.topic(topic, true).await?;
                let accumulator = &mut shared.lock().accumulator;
                accumulator.learn_topic(topic, &known.partitions);
            }
            self.until_settled(|state| {
                state.closing || state.fatal.is_some() || state.accumulator.has_room(size)
            })
            .await;
            Ok(())
        });
        waited.await.unwrap_or_else(|_| {
            Err(Error::TimedOut {
                what: "waiting for room in buffer.memory".to_owned(),
                timeout_ms: limit.as_millis() as u64,
            })
        })
    }

    /// Waits until every record that was queued before has its outcome.
    pub async fn flush(&self) {
        let upto = self.handle.shared.lock().accumulator.next_batch_id();
        self.until_settled(|state| state.accumulator.is_settled(upto))
            .await;
    }

    /// What has been delivered and what has failed.
    pub fn totals(&self) -> Totals {
        let state = self.handle.shared.lock();
        Totals {
            delivered: state.accumulator.delivered,
            failed: state.accumulator.failed,
            first_failure: state.accumulator.first_failure.clone(),
        }
    }

    /// Delivers what is queued, for at most `limit`, and stops. What is not delivered
    /// by then fails with [`Error::Closed`].
    pub async fn close(self, limit: Duration) {
        let delivered = self.until_settled(|state| {
            let machine = state.transaction.as_ref();
            state.accumulator.is_idle() && machine.is_none_or(|machine| !machine.is_ending())
        });
        let _ = tokio::time::timeout(limit, delivered).await;
        let shared = &self.handle.shared;
        shared.lock().closing = true;
        shared.wake.notify_one();
        let sender = lock(&self.handle.sender).take();
        if let Some(sender) = sender {
            let _ = sender.await;
        }
    }

    /// Waits until `enough` holds; batches do not linger meanwhile.
    async fn until_settled(&self, enough: impl Fn(&State) -> bool) {
        let shared = &self.handle.shared;
        if enough(&shared.lock()) {
            return;
        }
        let _hurry = Hurry::new(shared);
        self.until(enough).await;
    }

    /// As [`Producer::until_settled`], and batches linger as they do.
    async fn until(&self, enough: impl Fn(&State) -> bool) {
        let shared = &self.handle.shared;
        loop {
            let settled = shared.settled.notified();
            tokio::pin!(settled);
            // Registered before looking, so that nothing is missed in between.
            settled.as_mut().enable();
            if enough(&shared.lock()) {
                return;
            }
            settled.await;
        }
    }
}

/// While it lives, batches do not linger.
struct Hurry<'a>(&'a Shared);

impl<'a> Hurry<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.lock().accumulator.hurry();
        shared.wake.notify_one();
        Self(shared)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.lock().accumulator.relax();
    }
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as i64)
}
