//! The records of `__transaction_state`, in Kafka's formats to the byte.
//!
//! Pure: bytes to values and back. Decoding refuses malformed records with an error.
//!
//! ```text
//! key    version:i16 = 0  transactional_id:string
//!
//! value  version:i16 = 0|1
//!        producer_id:i64  producer_epoch:i16  timeout_ms:i32  status:i8
//!        partitions:[ topic:string  partition_ids:[i32] ]?
//!        last_update_ms:i64  start_ms:i64
//!        tags (1): 0 previous_producer_id:i64  1 next_producer_id:i64
//!                  2 client_transaction_version:i16
//! ```
//! Version 1 has compact lengths and tagged fields. A tag that says its default is left
//! out. No value (a tombstone) deletes what the key names.

use bytes::Bytes;
use thiserror::Error;
use yuxi_protocol::{
    codec::{DecodeError, Decoder, EncodeError, StrBytes, TagOutcome},
    ids::{ProducerEpoch, ProducerId},
};

use super::{
    Partitions, Producer, TransactionVersion,
    transaction::{Transaction, TransactionState},
};
use crate::records::{CoordinatorRecord, Out, decoder, encode, read_count, read_end, read_string};

const KEY_VERSION: i16 = 0;
const FLEXIBLE_VALUE_VERSION: i16 = 1;

const PREVIOUS_PRODUCER_ID: u32 = 0;
const NEXT_PRODUCER_ID: u32 = 1;
const CLIENT_VERSION: u32 = 2;

/// What a record of `__transaction_state` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionRecord {
    /// A transactional id is as described, or, without a value, forgotten.
    Transaction {
        /// The id.
        transactional_id: StrBytes,
        /// What is known of it.
        value: Option<Transaction>,
    },
    /// A kind from the future.
    Other {
        /// The number that the key begins with.
        key_version: i16,
    },
}

/// Why a record cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TransactionRecordError {
    /// The key or value is cut short, has a bad length, or goes on after its end.
    #[error("malformed record: {0}")]
    Malformed(#[from] DecodeError),
    /// The value has a version that is not known.
    #[error("the value has the unknown version {0}")]
    UnknownValueVersion(i16),
    /// The value has a state that is none, or is never written.
    #[error("the transaction is in the unknown state {0}")]
    UnknownState(i8),
    /// The value names no producer that could be.
    #[error("producer {id} in epoch {epoch}")]
    NoProducer {
        /// Its number.
        id: ProducerId,
        /// Its epoch.
        epoch: ProducerEpoch,
    },
}

/// Reads one record.
pub fn decode(
    key: &Bytes,
    value: Option<&Bytes>,
) -> Result<TransactionRecord, TransactionRecordError> {
    let mut decoder = decoder(key)?;
    let key_version = decoder.read_i16()?;
    if key_version != KEY_VERSION {
        return Ok(TransactionRecord::Other { key_version });
    }
    let transactional_id = decoder.read_string()?;
    decoder.finish()?;
    let value = value.map(decode_value).transpose()?;
    Ok(TransactionRecord::Transaction {
        transactional_id,
        value,
    })
}

/// The record that says how a transactional id stands, in a cluster of `version`.
pub fn transaction(
    transactional_id: &StrBytes,
    value: &Transaction,
    version: TransactionVersion,
) -> CoordinatorRecord {
    // The next producer id is the one thing that must not be lost: its producer has been
    // told of it.
    let flexible = version >= TransactionVersion::V1 || value.next_producer_id != ProducerId::NONE;
    CoordinatorRecord {
        key: encode_key(transactional_id),
        value: Some(encode(|out| {
            if flexible {
                encode_flexible(out, value)
            } else {
                encode_first(out, value)
            }
        })),
    }
}

/// The record that forgets a transactional id.
pub fn tombstone(transactional_id: &StrBytes) -> CoordinatorRecord {
    CoordinatorRecord {
        key: encode_key(transactional_id),
        value: None,
    }
}

fn encode_key(transactional_id: &StrBytes) -> Bytes {
    encode(|out| {
        out.write_i16(KEY_VERSION)?;
        out.write_string(transactional_id)
    })
}

fn encode_first(out: Out<'_, '_>, value: &Transaction) -> Result<(), EncodeError> {
    out.write_i16(0)?;
    encode_head(out, value)?;
    let topics = value.partitions.topics();
    out.write_nullable_array_len(writes_partitions(value).then_some(topics.len()))?;
    for (topic, partitions) in topics {
        out.write_string(topic)?;
        out.write_array_len(partitions.len())?;
        for &partition in partitions {
            out.write_i32(partition)?;
        }
    }
    out.write_i64(value.last_update_ms)?;
    out.write_i64(value.start_ms)
}

fn encode_flexible(out: Out<'_, '_>, value: &Transaction) -> Result<(), EncodeError> {
    out.write_i16(FLEXIBLE_VALUE_VERSION)?;
    encode_head(out, value)?;
    let topics = value.partitions.topics();
    out.write_compact_nullable_array_len(writes_partitions(value).then_some(topics.len()))?;
    for (topic, partitions) in topics {
        out.write_compact_string(topic)?;
        out.write_compact_array_len(partitions.len())?;
        for &partition in partitions {
            out.write_i32(partition)?;
        }
        out.write_unsigned_varint(0)?;
    }
    out.write_i64(value.last_update_ms)?;
    out.write_i64(value.start_ms)?;
    let previous = Some(value.previous_producer_id).filter(|id| *id != ProducerId::NONE);
    let next = Some(value.next_producer_id).filter(|id| *id != ProducerId::NONE);
    let client = Some(value.client).filter(|client| *client != TransactionVersion::V0);
    let tags = [previous.is_some(), next.is_some(), client.is_some()];
    out.write_unsigned_varint(tags.into_iter().map(u32::from).sum())?;
    for (tag, id) in [(PREVIOUS_PRODUCER_ID, previous), (NEXT_PRODUCER_ID, next)] {
        if let Some(id) = id {
            out.write_unsigned_varint(tag)?;
            out.write_unsigned_varint(8)?;
            out.write_i64(id.value())?;
        }
    }
    if let Some(client) = client {
        out.write_unsigned_varint(CLIENT_VERSION)?;
        out.write_unsigned_varint(2)?;
        out.write_i16(client.level())?;
    }
    Ok(())
}

fn encode_head(out: Out<'_, '_>, value: &Transaction) -> Result<(), EncodeError> {
    out.write_i64(value.producer.id.value())?;
    out.write_i16(value.producer.epoch.value())?;
    out.write_i32(value.timeout_ms)?;
    out.write_i8(value.state.code())
}

/// Kafka writes no list at all for a transaction that has not begun.
fn writes_partitions(value: &Transaction) -> bool {
    value.state != TransactionState::Empty
}

fn decode_value(bytes: &Bytes) -> Result<Transaction, TransactionRecordError> {
    let mut decoder = decoder(bytes)?;
    let version = decoder.read_i16()?;
    let flexible = match version {
        0 => false,
        FLEXIBLE_VALUE_VERSION => true,
        other => return Err(TransactionRecordError::UnknownValueVersion(other)),
    };
    let producer = Producer {
        id: ProducerId::new(decoder.read_i64()?),
        epoch: ProducerEpoch::new(decoder.read_i16()?),
    };
    let timeout_ms = decoder.read_i32()?;
    let status = decoder.read_i8()?;
    let partitions = decode_partitions(&mut decoder, flexible)?;
    let last_update_ms = decoder.read_i64()?;
    let start_ms = decoder.read_i64()?;
    let (mut previous, mut next) = (ProducerId::NONE, ProducerId::NONE);
    let mut client = TransactionVersion::V0;
    if flexible {
        decoder.read_tagged_fields_with(|tag, field| {
            match tag {
                PREVIOUS_PRODUCER_ID => previous = ProducerId::new(field.read_i64()?),
                NEXT_PRODUCER_ID => next = ProducerId::new(field.read_i64()?),
                CLIENT_VERSION => client = TransactionVersion::new(field.read_i16()?),
                _ => return Ok(TagOutcome::Retained),
            }
            Ok(TagOutcome::Decoded)
        })?;
    }
    decoder.finish()?;
    if producer.id <= ProducerId::NONE || producer.epoch <= ProducerEpoch::NONE {
        return Err(TransactionRecordError::NoProducer {
            id: producer.id,
            epoch: producer.epoch,
        });
    }
    let state =
        TransactionState::from_code(status).ok_or(TransactionRecordError::UnknownState(status))?;
    Ok(Transaction {
        producer,
        previous_producer_id: previous.max(ProducerId::NONE),
        next_producer_id: next.max(ProducerId::NONE),
        last_epoch: ProducerEpoch::NONE,
        timeout_ms,
        state,
        partitions: match state {
            TransactionState::Ongoing
            | TransactionState::PrepareCommit
            | TransactionState::PrepareAbort => partitions,
            TransactionState::Empty
            | TransactionState::CompleteCommit
            | TransactionState::CompleteAbort => Partitions::default(),
        },
        start_ms,
        last_update_ms,
        client,
    })
}

fn decode_partitions(decoder: &mut Decoder, flexible: bool) -> Result<Partitions, DecodeError> {
    let topics = if flexible {
        decoder.read_compact_nullable_array_len()?
    } else {
        decoder.read_nullable_array_len()?
    };
    let mut partitions = Partitions::default();
    let Some(topics) = topics else {
        return Ok(partitions);
    };
    decoder.read_vec(topics, |decoder| {
        let topic = read_string(decoder, flexible)?;
        let count = read_count(decoder, flexible)?;
        for partition in decoder.read_vec(count, Decoder::read_i32)? {
            partitions.insert(&topic, partition);
        }
        read_end(decoder, flexible)
    })?;
    Ok(partitions)
}
