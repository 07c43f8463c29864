//! A batch on its way: records in a builder, then bytes, then sent, perhaps again.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use yuxi_protocol::ids::{ProducerEpoch, ProducerId};
use yuxi_protocol::record::batch::advance_sequence;
use yuxi_protocol::record::iter::RecordRefs;
use yuxi_protocol::record::{BatchHeader, BatchView, RecordBatchBuilder, crc32c};

use super::delivery::{Completion, Written};
use crate::error::Error;

/// A producer's id and epoch, as the broker gave them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
}

/// What makes a batch recognisable when it arrives twice (KIP-98). It stays with
/// the batch through every retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) identity: Identity,
    pub(crate) base_sequence: i32,
}

#[derive(Debug)]
pub(crate) struct Batch {
    /// Rises with every batch of the producer, so it orders those of one partition.
    pub(crate) id: u64,
    pub(crate) topic_index: usize,
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    body: Body,
    pub(crate) records: u32,
    /// The place of the first record in the completion; not 0 after a split.
    first_index: u32,
    /// What the batch counts for in `buffer.memory`.
    pub(crate) reserved_bytes: usize,
    pub(crate) created: Instant,
    /// No more records are added.
    pub(crate) closed: bool,
    pub(crate) stamp: Option<Stamp>,
    /// Whether everything before it had been acknowledged when it was sent last.
    pub(crate) was_next: bool,
    pub(crate) attempts: u32,
    pub(crate) last_error: Option<Error>,
    completion: Arc<Completion>,
}

#[derive(Debug)]
enum Body {
    Open(Box<RecordBatchBuilder>),
    Built(Bytes),
}

impl Batch {
    pub(crate) fn open(
        id: u64,
        topic_index: usize,
        topic: Arc<str>,
        partition: i32,
        builder: RecordBatchBuilder,
        now: Instant,
    ) -> Self {
        let completion = Completion::new(topic.clone(), partition);
        Self {
            id,
            topic_index,
            topic,
            partition,
            body: Body::Open(Box::new(builder)),
            records: 0,
            first_index: 0,
            reserved_bytes: 0,
            created: now,
            closed: false,
            stamp: None,
            was_next: false,
            attempts: 0,
            last_error: None,
            completion,
        }
    }

    /// The builder, while records may still be added.
    pub(crate) fn builder(&mut self) -> Option<&mut RecordBatchBuilder> {
        match &mut self.body {
            Body::Open(builder) if !self.closed => Some(builder),
            Body::Open(_) | Body::Built(_) => None,
        }
    }

    pub(crate) fn completion(&self) -> &Arc<Completion> {
        &self.completion
    }

    pub(crate) fn resolve(&self, outcome: Result<Written, Error>) {
        self.completion
            .resolve(self.first_index, self.records, outcome);
    }

    /// The last sequence number of the batch's records.
    pub(crate) fn last_sequence(&self) -> Option<i32> {
        let stamp = self.stamp?;
        Some(advance_sequence(
            stamp.base_sequence,
            self.records as i32 - 1,
        ))
    }

    /// The bytes to send, with the current stamp in them. Compresses on the first call.
    pub(crate) fn encode(&mut self) -> Result<Bytes, Error> {
        let bytes = match std::mem::replace(&mut self.body, Body::Built(Bytes::new())) {
            Body::Open(builder) => match self.stamp {
                Some(stamp) => builder.producer(
                    ProducerId::new(stamp.identity.producer_id),
                    ProducerEpoch::new(stamp.identity.epoch),
                    stamp.base_sequence,
                ),
                None => *builder,
            }
            .build()
            .map_err(|error| self.unencodable(&error))?,
            Body::Built(bytes) => {
                let header =
                    BatchHeader::parse(&bytes).map_err(|error| self.unencodable(&error))?;
                match self.stamp {
                    Some(stamp) if !carries(&header, stamp) => restamped(&bytes, stamp),
                    Some(_) | None => bytes,
                }
            }
        };
        self.body = Body::Built(bytes.clone());
        Ok(bytes)
    }

    /// Two batches of half the records each, with the whole's number and completion
    /// shared between them.
    pub(crate) fn split(
        &mut self,
        new: impl Fn() -> RecordBatchBuilder,
    ) -> Result<(Self, Self), Error> {
        let bytes = self.encode()?;
        let unreadable = |error: &dyn std::fmt::Display| self.unencodable(error);
        let view = BatchView::parse(&bytes).map_err(|error| unreadable(&error))?;
        // Our own batch: it cannot hold more than was put into it.
        let payload = view
            .decompressed(self.reserved_bytes)
            .map_err(|error| unreadable(&error))?;
        let middle = self.records / 2;
        let mut halves = [new(), new()];
        for (at, record) in RecordRefs::new(view.header(), &payload).enumerate() {
            let record = record.map_err(|error| unreadable(&error))?;
            let headers: Vec<(String, Option<&[u8]>)> = record
                .headers()
                .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value))
                .collect();
            let headers: Vec<(&str, Option<&[u8]>)> = headers
                .iter()
                .map(|(name, value)| (name.as_str(), *value))
                .collect();
            halves[usize::from(at as u32 >= middle)]
                .append(
                    record.timestamp(view.header()),
                    record.key,
                    record.value,
                    &headers,
                )
                .map_err(|error| unreadable(&error))?;
        }
        let first_bytes = self.reserved_bytes / 2;
        let [first, second] = halves;
        let part = |builder, first_index, records, reserved_bytes| Self {
            id: self.id,
            topic_index: self.topic_index,
            topic: self.topic.clone(),
            partition: self.partition,
            body: Body::Open(Box::new(builder)),
            records,
            first_index,
            reserved_bytes,
            created: self.created,
            closed: true,
            stamp: self.stamp.map(|stamp| Stamp {
                base_sequence: advance_sequence(
                    stamp.base_sequence,
                    (first_index - self.first_index) as i32,
                ),
                ..stamp
            }),
            was_next: false,
            attempts: self.attempts,
            last_error: self.last_error.clone(),
            completion: self.completion.clone(),
        };
        Ok((
            part(first, self.first_index, middle, first_bytes),
            part(
                second,
                self.first_index + middle,
                self.records - middle,
                self.reserved_bytes - first_bytes,
            ),
        ))
    }

    fn unencodable(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Malformed {
            what: "batch",
            address: format!("{}-{}", self.topic, self.partition),
            detail: error.to_string(),
        }
    }
}

fn carries(header: &BatchHeader, stamp: Stamp) -> bool {
    header.producer_id.value() == stamp.identity.producer_id
        && header.producer_epoch.value() == stamp.identity.epoch
        && header.base_sequence == stamp.base_sequence
}

/// The same batch under another number. The producer's fields lie within the
/// checksum, so that is made anew:
///
/// ```text
/// 17 crc | 21 attributes … | 43 producer id | 51 epoch | 53 base sequence | 57 count
/// ```
fn restamped(bytes: &[u8], stamp: Stamp) -> Bytes {
    let mut bytes = BytesMut::from(bytes);
    bytes[43..51].copy_from_slice(&stamp.identity.producer_id.to_be_bytes());
    bytes[51..53].copy_from_slice(&stamp.identity.epoch.to_be_bytes());
    bytes[53..57].copy_from_slice(&stamp.base_sequence.to_be_bytes());
    let crc = crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.freeze()
}
