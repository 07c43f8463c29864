//! What becomes of a batch that was taken out: written, tried again, split, or failed.
//!
//! A batch that is given back is gone: it gets one outcome, or goes into the queue again
//! at its old place and under its old number. Its room is free when it has its outcome.

use std::time::{Duration, Instant};

use yuxi_protocol::error_code::ErrorCode;

use super::super::batch::Batch;
use super::super::delivery::Written;
use super::Accumulator;
use crate::backoff::Backoff;
use crate::error::Error;

/// The first pause before a batch of the next transaction is tried again.
const PAUSE_WHILE_ENDING: Duration = Duration::from_millis(5);
/// Splitting never makes later batches smaller than this.
const MIN_BATCH_BYTES: usize = 16 << 10;

#[allow(
    clippy::needless_pass_by_value,
    reason = "a batch that is given back is gone"
)]
impl Accumulator {
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
    pub(super) fn expire(&mut self, topic: usize, index: usize, now: Instant) {
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
}
