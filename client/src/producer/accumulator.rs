//! Records waiting to be sent, and batches that wait to be sent again.
//!
//! Plain synchronous state behind the producer's one lock: no clock, no socket.
//! `append` copies a record straight into its partition's open batch; `drain`
//! (`drain.rs`) takes out what may be sent now, at most one batch a partition;
//! `complete`, `retry` and `refuse` (`outcome.rs`) bring the answer back. Always holds:
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

mod drain;
mod outcome;
mod topic;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use yuxi_protocol::record::{Compression, RecordBatchBuilder};

use super::RecordRef;
use super::batch::{Batch, Identity};
use super::delivery::Delivery;
use super::partition::PartitionQueue;
use crate::error::Error;
use crate::metadata::Partition;
pub(crate) use drain::Route;
use topic::TopicQueues;

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

/// What `append` did.
#[derive(Debug)]
pub(crate) enum Append {
    Queued { delivery: Delivery, wake: bool },
    NoRoom,
    Refused(Error),
}

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
            let settings = &self.settings;
            let batch_bytes = settings.batch_bytes.min(settings.message_max_bytes);
            self.topics
                .push(TopicQueues::new(name.clone(), batch_bytes));
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

    fn partition(&mut self, topic: usize, index: usize) -> &mut PartitionQueue {
        &mut self.topics[topic].partitions[index]
    }

    fn partition_of(&mut self, batch: &Batch) -> &mut PartitionQueue {
        self.partition(batch.topic_index, batch.partition as usize)
    }

    fn activate(&mut self, topic: usize, index: usize) {
        let partition = &mut self.topics[topic].partitions[index];
        if !partition.active {
            partition.active = true;
            self.active.push_back((topic, index));
        }
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

#[cfg(test)]
mod tests;
