//! Records waiting to be sent, and batches that wait to be sent again.
//!
//! Plain synchronous state behind the producer's one lock: no clock, no socket.
//! `append` copies a record straight into its partition's open batch; `drain`
//! takes out what may be sent now, at most one batch a partition; `complete`,
//! `retry` and `refuse` bring the answer back. Always holds:
//!
//! - a partition's queue is ordered by batch id, stamped batches first, and at
//!   most its last batch is open;
//! - a sequence number is given to a batch when it is first taken out, and the
//!   next batch gets the number behind its last record (KIP-98);
//! - a batch that comes back is sent again under its old number, and only when
//!   nothing older of its partition is in flight, so nothing overtakes;
//! - what is numbered and open is among its partition's last five numbers;
//! - numbers are given anew only under a new epoch, and only when nothing of the
//!   partition is in flight (KIP-360).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::partitioner::partition_for_key;
use yuxi_protocol::record::{Compression, RecordBatchBuilder};

use super::RecordRef;
use super::batch::{Batch, Identity};
use super::delivery::{Delivery, Written};
use super::partition::PartitionQueue;
use crate::backoff::Backoff;
use crate::error::Error;
use crate::metadata::Partition;

/// The settings that batches are made by.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) batch_bytes: usize,
    pub(crate) message_max_bytes: usize,
    pub(crate) compression: Compression,
    pub(crate) compression_level: Option<i32>,
    pub(crate) linger: Duration,
    pub(crate) delivery_timeout: Duration,
    pub(crate) buffer_bytes: usize,
    pub(crate) idempotent: bool,
    pub(crate) transactional: bool,
    pub(crate) retry_backoff: Duration,
    pub(crate) retry_backoff_max: Duration,
    pub(crate) retries: u32,
}

#[derive(Debug)]
pub(crate) struct Accumulator {
    settings: Settings,
    topics: Vec<TopicQueues>,
    by_name: HashMap<Arc<str>, usize>,
    /// Partitions with something queued, by topic and partition index.
    active: VecDeque<(usize, usize)>,
    reserved_bytes: usize,
    next_batch_id: u64,
    /// Batches whose outcome is open, by id: more than one where one was split.
    outstanding: BTreeMap<u64, u32>,
    identity: Option<Identity>,
    /// Callers that wait for a flush, or for room: lingering would only delay them.
    hurried: usize,
    pub(crate) delivered: u64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<Error>,
    /// Of a transactional producer: the first failure that its transaction has not heeded.
    unheeded_failure: Option<Error>,
}

#[derive(Debug)]
struct TopicQueues {
    name: Arc<str>,
    partitions: Vec<PartitionQueue>,
    /// Where records without a key go until its batch is full (KIP-480).
    sticky: usize,
    /// Smaller than the setting once the broker found a batch too large.
    batch_bytes: usize,
}

/// What `append` did.
#[derive(Debug)]
pub(crate) enum Append {
    Queued { delivery: Delivery, wake: bool },
    NoRoom,
    Refused(Error),
}

/// Whether a batch can go to its partition's leader now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<B> {
    To(B),
    Busy,
    NoLeader,
}

/// What `drain` found besides the batches.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// When to look again, if nothing happens before.
    pub(crate) wake_at: Option<Instant>,
    /// Topics with a batch whose partition has no known leader.
    pub(crate) leaderless: BTreeSet<Arc<str>>,
    /// Batches can only go once there is a producer id.
    pub(crate) needs_identity: bool,
}

impl Drained {
    fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

// A batch that is given back is gone: it gets one outcome, or goes into the queue again.
#[allow(clippy::needless_pass_by_value)]
impl Accumulator {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            topics: Vec::new(),
            by_name: HashMap::new(),
            active: VecDeque::new(),
            reserved_bytes: 0,
            next_batch_id: 0,
            outstanding: BTreeMap::new(),
            identity: None,
            hurried: 0,
            delivered: 0,
            failed: 0,
            first_failure: None,
            unheeded_failure: None,
        }
    }

    /// The index by which `append` knows a topic, if its partitions are known.
    pub(crate) fn topic(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Takes a topic's partitions with their leaders; what waits to be tried again goes
    /// to a new leader at once. Partitions are never taken away; a topic cannot shrink.
    pub(crate) fn learn_topic(&mut self, name: &Arc<str>, partitions: &[Partition]) {
        let at = self.topic(name).unwrap_or_else(|| {
            self.by_name.insert(name.clone(), self.topics.len());
            self.topics.push(TopicQueues {
                name: name.clone(),
                partitions: Vec::new(),
                sticky: 0,
                batch_bytes: self
                    .settings
                    .batch_bytes
                    .min(self.settings.message_max_bytes),
            });
            self.topics.len() - 1
        });
        let topic = &mut self.topics[at];
        let new = topic.partitions.is_empty();
        for (index, learnt) in partitions.iter().enumerate() {
            if index == topic.partitions.len() {
                topic.partitions.push(PartitionQueue::default());
            }
            let partition = &mut topic.partitions[index];
            let leader = learnt.leader.map(|leader| (leader, learnt.leader_epoch));
            if leader.is_some() && leader != partition.leader {
                partition.not_before = None;
            }
            partition.leader = leader;
        }
        if new {
            topic.stick_elsewhere();
        }
    }

    pub(crate) fn topic_names(&self) -> Vec<Arc<str>> {
        self.topics.iter().map(|topic| topic.name.clone()).collect()
    }

    /// Puts a record into its partition's open batch.
    pub(crate) fn append(
        &mut self,
        topic_index: usize,
        record: &RecordRef<'_>,
        timestamp_ms: i64,
        now: Instant,
    ) -> Append {
        let size = record.size_bound();
        let limit = self.settings.message_max_bytes;
        if size > limit {
            return Append::Refused(Error::RecordTooLarge { size, limit });
        }
        if !self.has_room(size) {
            return Append::NoRoom;
        }
        let topic = &mut self.topics[topic_index];
        let mut wake = self.settings.linger.is_zero();
        let index = match topic.choose(record, size, &mut wake) {
            Ok(index) => index,
            Err(error) => return Append::Refused(error),
        };
        let partition = &mut topic.partitions[index];
        wake |= partition.close_if_full(size, topic.batch_bytes);
        if !partition.has_open_batch() {
            let builder = self.settings.builder();
            let id = self.next_batch_id;
            self.next_batch_id += 1;
            self.outstanding.insert(id, 1);
            partition.queue.push_back(Batch::open(
                id,
                topic_index,
                topic.name.clone(),
                index as i32,
                builder,
                now,
            ));
        }
        if !partition.active {
            partition.active = true;
            self.active.push_back((topic_index, index));
            wake = true;
        }
        let Some(batch) = partition.queue.back_mut() else {
            return Append::NoRoom;
        };
        let at = batch.records;
        let appended = batch
            .builder()
            .map(|open| open.append(timestamp_ms, record.key, record.value, record.headers));
        if let Some(Err(error)) = appended {
            return Append::Refused(Error::Config(error.to_string()));
        }
        batch.records += 1;
        batch.reserved_bytes += size;
        self.reserved_bytes += size;
        Append::Queued {
            delivery: batch.completion().delivery(at, timestamp_ms),
            wake,
        }
    }

    /// Takes out every batch that may be sent at `now`, at most one a partition.
    /// `route` says where a partition's batch of so many bytes goes.
    pub(crate) fn drain<B>(
        &mut self,
        now: Instant,
        mut route: impl FnMut(&Arc<str>, i32, usize) -> Route<B>,
        mut take: impl FnMut(B, Batch),
    ) -> Drained {
        let mut drained = Drained::default();
        for _ in 0..self.active.len() {
            let Some((topic, index)) = self.active.pop_front() else {
                break;
            };
            self.expire(topic, index, now);
            if let Some(destination) = self.route_head(topic, index, now, &mut route, &mut drained)
                && let Some(batch) = self.partition(topic, index).take_head()
            {
                take(destination, batch);
            }
            let partition = &mut self.topics[topic].partitions[index];
            partition.active = !partition.queue.is_empty();
            if partition.active {
                self.active.push_back((topic, index));
            }
        }
        drained
    }

    /// Where the partition's next batch goes, if it may go now.
    fn route_head<B>(
        &mut self,
        topic: usize,
        index: usize,
        now: Instant,
        route: &mut impl FnMut(&Arc<str>, i32, usize) -> Route<B>,
        drained: &mut Drained,
    ) -> Option<B> {
        let name = self.topics[topic].name.clone();
        let partition = &mut self.topics[topic].partitions[index];
        let head = partition.queue.front()?;
        drained.wake_by(head.created + self.settings.delivery_timeout);
        let lingered = head.created + self.settings.linger;
        if !head.closed && self.hurried == 0 && now < lingered {
            drained.wake_by(lingered);
            return None;
        }
        if let Some(not_before) = partition.not_before {
            if now < not_before {
                drained.wake_by(not_before);
                return None;
            }
            partition.not_before = None;
        }
        if self.settings.idempotent && !self.number_head(topic, index, drained) {
            return None;
        }
        let head = self.topics[topic].partitions[index].queue.front()?;
        match route(&name, index as i32, head.reserved_bytes) {
            Route::To(destination) => Some(destination),
            Route::Busy => None,
            Route::NoLeader => {
                drained.leaderless.insert(name);
                None
            }
        }
    }

    /// Makes sure that the head may go as an idempotent batch. Its number is given
    /// in `take_head`; this decides by which epoch, and whether it must wait.
    fn number_head(&mut self, topic: usize, index: usize, drained: &mut Drained) -> bool {
        let partition = &mut self.topics[topic].partitions[index];
        let Some(head) = partition.queue.front() else {
            return false;
        };
        let sequencing = &partition.sequencing;
        // A transactional producer gets its epochs from the coordinator.
        let own_epochs = !self.settings.transactional;
        let anew =
            own_epochs && (sequencing.broken || head.stamp.is_none() && sequencing.is_unresolved());
        if let Some(stamp) = head.stamp
            && !anew
        {
            return partition.window.is_next(stamp.base_sequence);
        }
        let another = self
            .identity
            .is_some_and(|identity| sequencing.identity != Some(identity));
        if (anew || another) && !partition.window.is_quiet() {
            return false;
        }
        if anew {
            partition.number_anew();
            self.bump_epoch();
        }
        let Some(identity) = self.identity else {
            drained.needs_identity = true;
            return false;
        };
        let partition = self.partition(topic, index);
        if partition.sequencing.identity != Some(identity) {
            partition.number_for(identity);
        }
        !partition.window.is_full()
    }

    /// The broker has the batch.
    pub(crate) fn complete(&mut self, batch: Batch, written: Written) {
        self.partition_of(&batch).written(&batch);
        self.finish(&batch, Ok(written));
    }

    /// The batch may not have arrived: it is sent again under the same number.
    pub(crate) fn retry(&mut self, batch: Batch, error: Error, now: Instant) {
        self.retry_from(self.settings.retry_backoff, batch, error, now);
    }

    /// The same, where the first pause is another.
    fn retry_from(&mut self, first: Duration, mut batch: Batch, error: Error, now: Instant) {
        if batch.attempts > self.settings.retries {
            self.give_up(batch, error);
            return;
        }
        let pause = Backoff::pause(
            first,
            self.settings.retry_backoff_max,
            batch.attempts.saturating_sub(1),
        );
        batch.last_error = Some(error);
        let (topic, index) = (batch.topic_index, batch.partition as usize);
        let partition = &mut self.topics[topic].partitions[index];
        partition.not_before = Some(now + pause);
        partition.requeue(batch);
        self.activate(topic, index);
        self.expire(topic, index, now);
    }

    /// The partition has a new leader, so that a retry need not wait.
    pub(crate) fn retry_at_once(&mut self, topic: usize, index: usize) {
        self.topics[topic].partitions[index].not_before = None;
    }

    /// The broker's refusal of a batch: retried, split, or failed.
    pub(crate) fn refuse(&mut self, batch: Batch, code: ErrorCode, error: Error, now: Instant) {
        match code {
            // It was written before, and the answer lost.
            ErrorCode::DuplicateSequenceNumber => {
                self.complete(
                    batch,
                    Written {
                        base_offset: None,
                        append_time_ms: None,
                    },
                );
            }
            ErrorCode::OutOfOrderSequenceNumber
            | ErrorCode::UnknownProducerId
            | ErrorCode::InvalidProducerEpoch
                if batch.stamp.is_some() =>
            {
                let sequencing = &mut self.partition_of(&batch).sequencing;
                sequencing.judge(&batch, code);
                let broken = sequencing.broken;
                if self.settings.transactional && broken {
                    self.give_up(batch, error);
                } else {
                    self.retry(batch, error, now);
                }
            }
            ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge if batch.records > 1 => {
                self.split(batch, error);
            }
            // The transaction before is still being ended: a matter of milliseconds.
            ErrorCode::ConcurrentTransactions => {
                self.retry_from(PAUSE_WHILE_ENDING, batch, error, now);
            }
            _ if error.is_retriable() => self.retry(batch, error, now),
            _ => self.give_up(batch, error),
        }
    }

    /// The batch has failed for good.
    pub(crate) fn give_up(&mut self, batch: Batch, error: Error) {
        self.partition_of(&batch).give_up(&batch);
        self.finish(&batch, Err(error));
    }

    /// A batch that the broker finds too large becomes two. The numbers count
    /// records, so the halves share the whole's without a gap.
    fn split(&mut self, mut batch: Batch, error: Error) {
        let settings = &self.settings;
        let halves = batch.split(|| settings.builder());
        let (topic, index) = (batch.topic_index, batch.partition as usize);
        match halves {
            Ok((first, second)) => {
                let smaller = (batch.reserved_bytes / 2).max(MIN_BATCH_BYTES);
                let queues = &mut self.topics[topic];
                queues.batch_bytes = queues.batch_bytes.min(smaller);
                *self.outstanding.entry(batch.id).or_default() += 1;
                let partition = &mut queues.partitions[index];
                if let (Some(whole), Some(second)) = (batch.stamp, second.stamp) {
                    partition
                        .window
                        .split(whole.base_sequence, second.base_sequence);
                }
                partition.requeue(second);
                partition.requeue(first);
                self.activate(topic, index);
            }
            Err(_) => self.give_up(batch, error),
        }
    }

    /// Fails every batch, because the producer is closed.
    pub(crate) fn abandon(&mut self, error: &Error) {
        for topic in 0..self.topics.len() {
            for index in 0..self.topics[topic].partitions.len() {
                let queue = std::mem::take(&mut self.topics[topic].partitions[index].queue);
                for batch in queue {
                    self.give_up(batch, error.clone());
                }
            }
        }
    }

    /// Fails what has waited longer than `delivery.timeout.ms`.
    fn expire(&mut self, topic: usize, index: usize, now: Instant) {
        let timeout = self.settings.delivery_timeout;
        while let Some(batch) = self.topics[topic].partitions[index]
            .queue
            .pop_front_if(|batch| now >= batch.created + timeout)
        {
            let last = batch
                .last_error
                .as_ref()
                .map(|error| format!("; the last error: {error}"));
            let error = Error::TimedOut {
                what: format!(
                    "delivery to {}-{}{}",
                    batch.topic,
                    batch.partition,
                    last.unwrap_or_default()
                ),
                timeout_ms: timeout.as_millis() as u64,
            };
            self.give_up(batch, error);
        }
    }

    fn partition(&mut self, topic: usize, index: usize) -> &mut PartitionQueue {
        &mut self.topics[topic].partitions[index]
    }

    fn partition_of(&mut self, batch: &Batch) -> &mut PartitionQueue {
        self.partition(batch.topic_index, batch.partition as usize)
    }

    fn finish(&mut self, batch: &Batch, outcome: Result<Written, Error>) {
        if let Some(open) = self.outstanding.get_mut(&batch.id) {
            *open -= 1;
            if *open == 0 {
                self.outstanding.remove(&batch.id);
            }
        }
        self.reserved_bytes -= batch.reserved_bytes;
        match &outcome {
            Ok(_) => self.delivered += u64::from(batch.records),
            Err(error) => {
                self.failed += u64::from(batch.records);
                self.first_failure.get_or_insert_with(|| error.clone());
                if self.settings.transactional {
                    self.unheeded_failure.get_or_insert_with(|| error.clone());
                }
            }
        }
        batch.resolve(outcome);
    }

    fn activate(&mut self, topic: usize, index: usize) {
        let partition = &mut self.topics[topic].partitions[index];
        if !partition.active {
            partition.active = true;
            self.active.push_back((topic, index));
        }
    }

    /// Begins the next epoch of this producer. The broker takes any higher epoch of
    /// a producer without a transactional id; when they are used up, a new id is asked for.
    fn bump_epoch(&mut self) {
        self.identity = self.identity.and_then(|identity| {
            let epoch = identity.epoch.checked_add(1)?;
            Some(Identity { epoch, ..identity })
        });
    }

    pub(crate) fn set_identity(&mut self, identity: Identity) {
        self.identity = Some(identity);
    }

    /// Whether a record of `size` bytes would be taken.
    pub(crate) fn has_room(&self, size: usize) -> bool {
        self.reserved_bytes == 0 || self.reserved_bytes + size <= self.settings.buffer_bytes
    }

    /// The id that the next batch will get: everything older is what a flush waits for.
    pub(crate) fn next_batch_id(&self) -> u64 {
        self.next_batch_id
    }

    /// Whether every batch older than `id` has its outcome.
    pub(crate) fn is_settled(&self, id: u64) -> bool {
        self.outstanding
            .first_key_value()
            .is_none_or(|(oldest, _)| *oldest >= id)
    }

    /// Whether every batch has its outcome.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// The first failure since the last call, of a transactional producer.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        self.unheeded_failure.take()
    }

    /// Whether there are numbers of the present epoch of which nobody knows if the broker
    /// has them.
    pub(crate) fn has_gap(&self) -> bool {
        let mut partitions = self.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.any(|partition| {
            let sequencing = &partition.sequencing;
            sequencing.identity == self.identity && sequencing.has_gap()
        })
    }

    /// From now on, until as many `relax` as `hurry`, batches do not linger.
    pub(crate) fn hurry(&mut self) {
        self.hurried += 1;
    }

    pub(crate) fn relax(&mut self) {
        self.hurried -= 1;
    }
}

/// The first pause before a batch of the next transaction is tried again.
const PAUSE_WHILE_ENDING: Duration = Duration::from_millis(5);
/// Splitting never makes later batches smaller than this.
const MIN_BATCH_BYTES: usize = 16 << 10;

impl Settings {
    fn builder(&self) -> RecordBatchBuilder {
        let builder =
            RecordBatchBuilder::new().compression(self.compression, self.compression_level);
        if self.transactional {
            builder.transactional()
        } else {
            builder
        }
    }
}

impl TopicQueues {
    /// The partition of a record: the one it names, its key's, or the sticky one.
    fn choose(
        &mut self,
        record: &RecordRef<'_>,
        size: usize,
        wake: &mut bool,
    ) -> Result<usize, Error> {
        let count = self.partitions.len();
        if let Some(partition) = record.partition {
            return usize::try_from(partition)
                .ok()
                .filter(|index| *index < count)
                .ok_or_else(|| Error::NoSuchPartition {
                    topic: self.name.to_string(),
                    partition,
                    count,
                });
        }
        if let Some(key) = record.key
            && let Some(partition) = partition_for_key(key, count as u32)
        {
            return Ok(partition.value() as usize);
        }
        // A full or already sent batch is the moment to go on to another partition.
        let partition = &mut self.partitions[self.sticky];
        *wake |= partition.close_if_full(size, self.batch_bytes);
        if !partition.has_open_batch() {
            self.stick_elsewhere();
        }
        Ok(self.sticky)
    }

    /// Picks another partition at random, one with a leader if there is one.
    fn stick_elsewhere(&mut self) {
        let candidates: Vec<usize> = (0..self.partitions.len())
            .filter(|index| *index != self.sticky && self.partitions[*index].leader.is_some())
            .collect();
        if !candidates.is_empty() {
            self.sticky = candidates[rand::rng().random_range(0..candidates.len())];
        }
    }
}

#[cfg(test)]
mod tests;
