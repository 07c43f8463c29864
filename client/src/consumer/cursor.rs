//! One partition as a consumer reads it: where it stands, what is fetched ahead.
//!
//! Plain state, no I/O. The fetch position runs ahead of the read position by
//! what is buffered. An answer counts only if it is to the request that was sent
//! from the present fetch position; `seek` therefore makes older answers void.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use yuxi_protocol::ids::{BrokerId, TopicPartition};
use yuxi_protocol::messages::fetch_response::PartitionData;
use yuxi_protocol::record::BatchError;
use yuxi_protocol::record::iter::{Records, SharedBatch, shared_batches};

use super::ConsumerRecord;
use crate::error::{Error, Result};
use crate::metadata::ClusterMetadata;
use crate::offsets::OffsetSpec;

/// A batch may unpack to so many bytes; more is taken for an attack.
const MAX_DECOMPRESSED_BYTES: usize = 512 << 20;

/// Where a partition's reading stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// To be asked for.
    Unknown(OffsetSpec),
    /// The next record to hand out has this offset or a higher one.
    At(i64),
}

/// A batch that was fetched and not yet handed out.
#[derive(Debug)]
struct Ahead {
    batch: SharedBatch,
    /// Markers and aborted records are passed over.
    hidden: bool,
}

#[derive(Debug)]
pub(super) struct Cursor {
    topic: Arc<str>,
    partition: i32,
    pub(super) position: Position,
    /// The next offset to fetch; meaningless while the position is unknown.
    pub(super) fetch_from: i64,
    ready: VecDeque<Ahead>,
    /// The batch being handed out, the offset behind it, and its leader epoch.
    current: Option<(Records, i64, i32)>,
    pub(super) buffered_bytes: usize,
    /// Where the log ended for this consumer at the last answer.
    pub(super) end: Option<i64>,
    pub(super) paused: bool,
    /// Set while a fetch or an offset request for this partition is outstanding.
    pub(super) asked: bool,
    /// Not to be fetched before, after the leader refused.
    pub(super) not_before: Option<Instant>,
    /// Changes with every seek, so that older answers are known as such.
    pub(super) generation: u64,
    /// The leader epoch of the last record handed out; -1 if unknown.
    position_epoch: i32,
    /// The leader epoch of the last record fetched; -1 if unknown.
    pub(super) fetch_epoch: i32,
    /// The current leader's epoch under which the fetch position was last known to be
    /// in the log; -1 if never.
    pub(super) valid_under: i32,
    /// Who was asked last, and as leader of which epoch.
    pub(super) asked_of: Option<(BrokerId, i32)>,
    check_crcs: bool,
    /// The first record that was handed out.
    pub(super) first: Option<i64>,
}

impl Cursor {
    pub(super) fn new(
        partition: &TopicPartition,
        position: Position,
        generation: u64,
        check_crcs: bool,
    ) -> Self {
        Self {
            topic: partition.topic.clone(),
            partition: partition.partition.value(),
            position,
            fetch_from: match position {
                Position::At(offset) => offset,
                Position::Unknown(_) => 0,
            },
            ready: VecDeque::new(),
            current: None,
            buffered_bytes: 0,
            end: None,
            paused: false,
            asked: false,
            not_before: None,
            generation,
            position_epoch: -1,
            fetch_epoch: -1,
            valid_under: -1,
            asked_of: None,
            check_crcs,
            first: None,
        }
    }

    /// The same, where the leader epoch of the record before the position is known.
    pub(super) fn of_epoch(mut self, epoch: Option<i32>) -> Self {
        self.position_epoch = epoch.unwrap_or(-1);
        self.fetch_epoch = self.position_epoch;
        self
    }

    /// The leader epoch of the last record before the position, if it is known.
    pub(super) fn position_epoch(&self) -> Option<i32> {
        (self.position_epoch >= 0).then_some(self.position_epoch)
    }

    /// Fetches anew what was not handed out: the leader of epoch `under` may have other
    /// records there.
    pub(super) fn drop_ahead(&mut self, under: i32) {
        let position_epoch = self.position_epoch;
        self.seek(self.position, self.generation);
        self.position_epoch = position_epoch;
        self.fetch_epoch = position_epoch;
        self.valid_under = under;
    }

    /// Goes elsewhere; what was fetched ahead is dropped.
    pub(super) fn seek(&mut self, position: Position, generation: u64) {
        let partition = TopicPartition::new(self.topic.clone(), self.partition);
        let paused = self.paused;
        *self = Self::new(&partition, position, generation, self.check_crcs);
        self.paused = paused;
    }

    /// Until when the partition is put off, if it is.
    pub(super) fn put_off(&self) -> Option<Instant> {
        self.not_before
            .filter(|at| !self.asked && Instant::now() < *at)
    }

    /// Whether everything up to the end that the last answer told has been handed out.
    pub(super) fn is_at_end(&self) -> bool {
        match (self.position, self.end) {
            (Position::At(position), Some(end)) => position >= end,
            (Position::At(_) | Position::Unknown(_), _) => false,
        }
    }

    /// Takes a fetch answer without an error. Returns how many bytes it brought.
    pub(super) fn accept(&mut self, answer: PartitionData, read_committed: bool) -> Result<usize> {
        self.end = Some(if read_committed && answer.last_stable_offset >= 0 {
            answer.last_stable_offset
        } else {
            answer.high_watermark
        });
        let mut aborted = Aborted::new(&answer, read_committed);
        let Some(bytes) = answer.records.filter(|bytes| !bytes.is_empty()) else {
            return Ok(0);
        };
        let length = bytes.len();
        for (at, batch) in shared_batches(bytes).enumerate() {
            let batch = match batch {
                Ok(batch) => batch,
                // The size limit cut the last batch off; it comes again.
                Err(BatchError::Truncated { .. }) if at > 0 => break,
                Err(error) => return Err(self.malformed(&error)),
            };
            if self.check_crcs {
                let checked = batch.view().and_then(|view| view.check_crc());
                checked.map_err(|error| self.malformed(&error))?;
            }
            let header = *batch.header();
            if header.next_offset().value() <= self.fetch_from {
                continue;
            }
            self.fetch_from = header.next_offset().value();
            self.fetch_epoch = header.partition_leader_epoch.value();
            let hidden = aborted
                .hides(&batch)
                .map_err(|error| self.malformed(&error))?;
            self.buffered_bytes += header.size_in_bytes();
            self.ready.push_back(Ahead { batch, hidden });
        }
        Ok(length)
    }

    /// Hands out up to `most` records.
    pub(super) fn take(&mut self, most: usize, records: &mut Vec<ConsumerRecord>) -> Result<()> {
        let limit = records.len() + most;
        while records.len() < limit {
            let Some((current, behind, epoch)) = &mut self.current else {
                if !self.open_next_batch() {
                    break;
                }
                continue;
            };
            self.position_epoch = *epoch;
            match current.next() {
                Some(Ok(record)) => {
                    let offset = record.offset.value();
                    // A fetch from the middle of a batch brings the whole batch.
                    if self.is_due(offset) {
                        self.position = Position::At(offset + 1);
                        self.first.get_or_insert(offset);
                        records.push(ConsumerRecord {
                            topic: self.topic.clone(),
                            partition: self.partition,
                            offset,
                            timestamp_ms: record.timestamp,
                            timestamp_type: record.timestamp_type,
                            key: record.key,
                            value: record.value,
                            headers: record.headers,
                        });
                    }
                }
                Some(Err(error)) => return Err(self.malformed(&error)),
                None => {
                    self.position = Position::At(*behind);
                    self.current = None;
                }
            }
        }
        Ok(())
    }

    fn is_due(&self, offset: i64) -> bool {
        match self.position {
            Position::At(position) => offset >= position,
            Position::Unknown(_) => false,
        }
    }

    /// Whether there is something that may be handed out now.
    pub(super) fn may_hand_out(
        &self,
        metadata: &ClusterMetadata,
        partition: &TopicPartition,
    ) -> bool {
        let has_ready = self.current.is_some() || !self.ready.is_empty();
        has_ready && !self.paused && self.is_valid(metadata, partition)
    }

    /// Whether the fetch position was checked against the present leader's log, if there
    /// is a leader (KIP-320).
    fn is_valid(&self, metadata: &ClusterMetadata, partition: &TopicPartition) -> bool {
        let index = partition.partition.value();
        metadata
            .partition(&partition.topic, index)
            .filter(|known| known.leader.is_some())
            .is_none_or(|known| known.leader_epoch.value() <= self.valid_under)
    }

    fn open_next_batch(&mut self) -> bool {
        let Some(Ahead { batch, hidden }) = self.ready.pop_front() else {
            return false;
        };
        self.buffered_bytes -= batch.header().size_in_bytes();
        let behind = batch.header().next_offset().value();
        let epoch = batch.header().partition_leader_epoch.value();
        if hidden {
            self.position = Position::At(behind);
            self.position_epoch = epoch;
        } else {
            self.current = Some((batch.records(MAX_DECOMPRESSED_BYTES), behind, epoch));
        }
        true
    }

    fn malformed(&self, error: &BatchError) -> Error {
        Error::Malformed {
            what: "record batch",
            address: format!("{}-{}", self.topic, self.partition),
            detail: error.to_string(),
        }
    }
}

/// Which producers' records are part of aborted transactions, as the log is walked.
struct Aborted {
    read_committed: bool,
    /// Aborted transactions not reached yet: first offset and producer, last first.
    ahead: Vec<(i64, i64)>,
    open: HashSet<i64>,
}

impl Aborted {
    fn new(answer: &PartitionData, read_committed: bool) -> Self {
        let listed = answer.aborted_transactions.iter().flatten();
        let mut ahead: Vec<(i64, i64)> = listed
            .map(|aborted| (aborted.first_offset, aborted.producer_id))
            .collect();
        ahead.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            read_committed,
            ahead,
            open: HashSet::new(),
        }
    }

    /// Whether the next batch of the log is not for the application: a control
    /// batch, or records of an aborted transaction.
    fn hides(&mut self, batch: &SharedBatch) -> Result<bool, BatchError> {
        let header = batch.header();
        while let Some((_, producer)) = self
            .ahead
            .pop_if(|(first_offset, _)| *first_offset <= header.last_offset().value())
        {
            self.open.insert(producer);
        }
        let producer = header.producer_id.value();
        if header.is_control() {
            if is_abort_marker(batch)? {
                self.open.remove(&producer);
            }
            return Ok(true);
        }
        Ok(self.read_committed && header.is_transactional() && self.open.contains(&producer))
    }
}

/// A control record's key is version and type, two bytes each; type 0 aborts.
fn is_abort_marker(batch: &SharedBatch) -> Result<bool, BatchError> {
    const ABORT: [u8; 2] = [0, 0];
    let Some(record) = batch.records(MAX_DECOMPRESSED_BYTES).next() else {
        return Ok(false);
    };
    let key: Option<Bytes> = record?.key;
    Ok(key.is_some_and(|key| key.get(2..4) == Some(&ABORT)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use yuxi_protocol::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId};
    use yuxi_protocol::messages::fetch_response::AbortedTransaction;
    use yuxi_protocol::record::RecordBatchBuilder;

    fn builder(at: i64, values: &[&str]) -> RecordBatchBuilder {
        let mut builder = RecordBatchBuilder::new().placed_at(Offset::new(at), LeaderEpoch::new(0));
        for value in values {
            builder
                .append(1, None, Some(value.as_bytes()), &[])
                .expect("small");
        }
        builder
    }

    fn transactional(at: i64, producer: i64, value: &str) -> Bytes {
        builder(at, &[value])
            .producer(ProducerId::new(producer), ProducerEpoch::new(0), 0)
            .transactional()
            .build()
            .expect("small")
    }

    fn marker(at: i64, producer: i64, kind: u8) -> Bytes {
        let mut builder = RecordBatchBuilder::new().placed_at(Offset::new(at), LeaderEpoch::new(0));
        builder
            .append(1, Some(&[0, 0, 0, kind]), Some(b""), &[])
            .expect("small");
        builder
            .producer(ProducerId::new(producer), ProducerEpoch::new(0), -1)
            .transactional()
            .control()
            .build()
            .expect("small")
    }

    fn answer(batches: &[Bytes]) -> PartitionData {
        let mut answer = PartitionData::default();
        answer.high_watermark = 100;
        answer.records = Some(batches.concat().into());
        answer
    }

    fn cursor(at: i64) -> Cursor {
        Cursor::new(&TopicPartition::new("t", 0), Position::At(at), 0, true)
    }

    fn values(cursor: &mut Cursor) -> Vec<String> {
        let mut records = Vec::new();
        cursor.take(100, &mut records).expect("well-formed");
        let text = |record: ConsumerRecord| {
            String::from_utf8(record.value.expect("a value").to_vec()).expect("text")
        };
        records.into_iter().map(text).collect()
    }

    #[test]
    fn records_before_the_position_in_the_first_batch_are_passed_over() {
        let mut cursor = cursor(11);
        let batch = builder(10, &["a", "b", "c"]).build().expect("small");
        cursor.accept(answer(&[batch]), true).expect("well-formed");
        assert_eq!(values(&mut cursor), ["b", "c"]);
        assert_eq!((cursor.position, cursor.fetch_from), (Position::At(13), 13));
    }

    #[test]
    fn aborted_records_are_hidden_only_from_read_committed() {
        let log = [
            transactional(0, 7, "aborted"),
            transactional(1, 8, "committed"),
            marker(2, 7, 0),
            transactional(3, 7, "later"),
            marker(4, 8, 1),
        ];
        let mut aborted = AbortedTransaction::default();
        aborted.producer_id = 7;
        for (read_committed, expected) in [
            (true, vec!["committed", "later"]),
            (false, vec!["aborted", "committed", "later"]),
        ] {
            let mut answer = answer(&log);
            answer.aborted_transactions = Some(vec![aborted.clone()]);
            let mut cursor = cursor(0);
            cursor.accept(answer, read_committed).expect("well-formed");
            assert_eq!(values(&mut cursor), expected, "{read_committed}");
            assert_eq!(cursor.position, Position::At(5), "markers are passed over");
        }
    }

    #[test]
    fn a_batch_cut_off_at_the_end_is_left_for_the_next_fetch() {
        let whole = builder(0, &["a"]).build().expect("small");
        let next = builder(1, &["b"]).build().expect("small");
        let mut cursor = cursor(0);
        cursor
            .accept(answer(&[whole, next.slice(..30)]), true)
            .expect("well-formed");
        assert_eq!(values(&mut cursor), ["a"]);
        assert_eq!(cursor.fetch_from, 1);
    }

    #[test]
    fn a_batch_with_a_wrong_checksum_is_an_error_that_names_the_partition() {
        let mut bytes = builder(0, &["a"]).build().expect("small").to_vec();
        *bytes.last_mut().expect("not empty") ^= 1;
        let error = cursor(0)
            .accept(answer(&[bytes.into()]), true)
            .expect_err("corrupt");
        assert!(error.to_string().contains("t-0"), "{error}");
    }

    #[test]
    fn the_end_is_reached_when_everything_was_handed_out_not_when_it_was_fetched() {
        let mut cursor = cursor(0);
        let mut answer = answer(&[builder(0, &["a"]).build().expect("small")]);
        answer.high_watermark = 1;
        answer.last_stable_offset = 1;
        cursor.accept(answer, true).expect("well-formed");
        assert!(!cursor.is_at_end());
        values(&mut cursor);
        assert!(cursor.is_at_end());
    }
}
