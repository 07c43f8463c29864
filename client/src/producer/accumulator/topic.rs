//! A topic's queues, and which of them a record goes to.
//!
//! Records without a key stay with one partition until its batch is full (KIP-480).

use std::sync::Arc;

use rand::Rng;
use yuxi_protocol::partitioner::partition_for_key;

use super::super::RecordRef;
use super::super::partition::PartitionQueue;
use crate::error::Error;

#[derive(Debug)]
pub(super) struct TopicQueues {
    pub(super) name: Arc<str>,
    pub(super) partitions: Vec<PartitionQueue>,
    /// Where records without a key go until its batch is full (KIP-480).
    sticky: usize,
    /// Smaller than the setting once the broker found a batch too large.
    pub(super) batch_bytes: usize,
}

impl TopicQueues {
    pub(super) fn new(name: Arc<str>, batch_bytes: usize) -> Self {
        Self {
            name,
            partitions: Vec::new(),
            sticky: 0,
            batch_bytes,
        }
    }

    /// The partition of a record: the one it names, its key's, or the sticky one.
    pub(super) fn choose(
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
    pub(super) fn stick_elsewhere(&mut self) {
        let candidates: Vec<usize> = (0..self.partitions.len())
            .filter(|index| *index != self.sticky && self.partitions[*index].leader.is_some())
            .collect();
        if !candidates.is_empty() {
            self.sticky = candidates[rand::rng().random_range(0..candidates.len())];
        }
    }
}
