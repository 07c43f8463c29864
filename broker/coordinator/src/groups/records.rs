//! The records of `__consumer_offsets`, in Kafka's formats to the byte.
//!
//! Pure: bytes to values and back. Decoding refuses malformed records with an error, and
//! hands back kinds that are not served yet as [`GroupRecord::Other`]. Written are the
//! versions that Kafka 4 writes. The records of consumer groups (KIP-848) are in
//! `consumer/records.rs`.
//!
//! ```text
//! key    version:i16 = 0|1  group:string  topic:string  partition:i32     an offset
//!        version:i16 = 2    group:string                                  a group
//!
//! offset version:i16 = 0..4
//!        offset:i64  leader_epoch:i32 (3+)  metadata:string
//!        commit_timestamp:i64  expire_timestamp:i64 (1 only)
//!
//! group  version:i16 = 0..4
//!        protocol_type:string  generation:i32  protocol:string?  leader:string?
//!        current_state_timestamp:i64 (2+)
//!        members:[ member_id:string  group_instance_id:string? (3+)
//!                  client_id:string  client_host:string
//!                  rebalance_timeout:i32 (1+)  session_timeout:i32
//!                  subscription:bytes  assignment:bytes ]
//! ```
//! A string is `length:i16` and UTF-8; version 4 has compact lengths and tagged fields
//! instead. No value (a tombstone) deletes what the key names.

use bytes::Bytes;
use thiserror::Error;
use yuxi_protocol::codec::{DecodeError, Decoder, StrBytes};

use super::consumer::{self, ConsumerRecord};
use crate::records::{
    CoordinatorRecord, decoder, encode, finish, read_count, read_end, read_string,
};

const OFFSET_COMMIT_KEY_VERSION: i16 = 1;
const GROUP_METADATA_KEY_VERSION: i16 = 2;
const GROUP_METADATA_VALUE_VERSION: i16 = 3;
/// The version written when the client asked for a retention time of its own
/// (OffsetCommit 2 to 4); the only one with an expiry in it.
const OFFSET_COMMIT_VALUE_VERSION_WITH_EXPIRY: i16 = 1;
const OFFSET_COMMIT_VALUE_VERSION: i16 = 3;
const HIGHEST_VALUE_VERSION: i16 = 4;
const FIRST_FLEXIBLE_VALUE_VERSION: i16 = 4;

/// What a record of `__consumer_offsets` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupRecord {
    /// An offset was committed, or deleted.
    OffsetCommit {
        /// Which group's offset of which partition.
        key: OffsetCommitKey,
        /// None deletes it.
        value: Option<OffsetCommitValue>,
    },
    /// A classic group changed, or was deleted.
    GroupMetadata {
        /// The group's id.
        group: StrBytes,
        /// None deletes it.
        value: Option<GroupMetadataValue>,
    },
    /// A consumer group changed, or was deleted.
    Consumer(ConsumerRecord),
    /// A kind that is not served yet: share and streams groups (KIP-932, 1071), or one from
    /// the future.
    Other {
        /// The number that the key begins with.
        key_version: i16,
    },
}

/// Whose offset of which partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommitKey {
    /// The group's id.
    pub group: StrBytes,
    /// The topic's name.
    pub topic: StrBytes,
    /// The partition's number.
    pub partition: i32,
}

/// A committed offset and what was said with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommitValue {
    /// The committed offset.
    pub offset: i64,
    /// The leader epoch of the record before it, or -1.
    pub leader_epoch: i32,
    /// The client's own note.
    pub metadata: StrBytes,
    /// When it was committed.
    pub commit_timestamp_ms: i64,
    /// When it expires, if the client asked for a retention time of its own.
    pub expire_timestamp_ms: Option<i64>,
}

/// A classic group as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetadataValue {
    /// `consumer`, `connect`, …; empty for a group that only stores offsets.
    pub protocol_type: StrBytes,
    /// The generation.
    pub generation: i32,
    /// The protocol that the members agreed on.
    pub protocol: Option<StrBytes>,
    /// The leader's member id.
    pub leader: Option<StrBytes>,
    /// When the group came into its state, or -1.
    pub current_state_timestamp_ms: i64,
    /// The members; none in an empty group.
    pub members: Vec<MemberMetadata>,
}

/// A member of a classic group as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberMetadata {
    /// The id that the coordinator gave the member.
    pub member_id: StrBytes,
    /// The name of a static member (KIP-345).
    pub group_instance_id: Option<StrBytes>,
    /// The client's name for itself.
    pub client_id: StrBytes,
    /// The client's address, as `/127.0.0.1`.
    pub client_host: StrBytes,
    /// How long the member may take to rejoin; -1 in old records means the session
    /// time-out.
    pub rebalance_timeout_ms: i32,
    /// How long the member may be silent.
    pub session_timeout_ms: i32,
    /// The member's metadata for the group's protocol.
    pub subscription: Bytes,
    /// What the leader assigned to the member.
    pub assignment: Bytes,
}

/// Why a record cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// The key or value is cut short, has a bad length, or goes on after its end.
    #[error("malformed record: {0}")]
    Malformed(#[from] DecodeError),
    /// The value has a version that is not known.
    #[error("{kind} value has the unknown version {version}")]
    UnknownValueVersion {
        /// Which record it is.
        kind: &'static str,
        /// Its version.
        version: i16,
    },
    /// The bytes are in order but contradict each other.
    #[error("group '{group}': {problem}")]
    Inconsistent {
        /// The group's id.
        group: StrBytes,
        /// What cannot be.
        problem: &'static str,
    },
}

/// Reads one record.
pub fn decode(key: &Bytes, value: Option<&Bytes>) -> Result<GroupRecord, RecordError> {
    let mut decoder = decoder(key)?;
    match decoder.read_i16()? {
        0 | OFFSET_COMMIT_KEY_VERSION => {
            let key = OffsetCommitKey {
                group: decoder.read_string()?,
                topic: decoder.read_string()?,
                partition: decoder.read_i32()?,
            };
            decoder.finish()?;
            let value = value.map(decode_offset_commit).transpose()?;
            Ok(GroupRecord::OffsetCommit { key, value })
        }
        GROUP_METADATA_KEY_VERSION => {
            let group = decoder.read_string()?;
            decoder.finish()?;
            // A group lives long: its strings share a copy of the value, so that they do
            // not keep the whole batch that it was read with.
            let value = value.map(|value| Bytes::copy_from_slice(value));
            let value = value.as_ref().map(decode_group_metadata).transpose()?;
            Ok(GroupRecord::GroupMetadata { group, value })
        }
        key_version if consumer::records::is_consumer_key(key_version) => {
            let record = consumer::records::decode(key_version, decoder, value)?;
            Ok(GroupRecord::Consumer(record))
        }
        key_version => Ok(GroupRecord::Other { key_version }),
    }
}

/// The record that commits an offset.
pub fn offset_commit(key: &OffsetCommitKey, value: &OffsetCommitValue) -> CoordinatorRecord {
    let version = match value.expire_timestamp_ms {
        Some(_) => OFFSET_COMMIT_VALUE_VERSION_WITH_EXPIRY,
        None => OFFSET_COMMIT_VALUE_VERSION,
    };
    CoordinatorRecord {
        key: offset_commit_key(key),
        value: Some(encode(|out| {
            out.write_i16(version)?;
            out.write_i64(value.offset)?;
            if version >= 3 {
                out.write_i32(value.leader_epoch)?;
            }
            out.write_string(&value.metadata)?;
            out.write_i64(value.commit_timestamp_ms)?;
            match value.expire_timestamp_ms {
                Some(expire_timestamp_ms) => out.write_i64(expire_timestamp_ms),
                None => Ok(()),
            }
        })),
    }
}

/// The record that deletes an offset.
pub fn offset_tombstone(key: &OffsetCommitKey) -> CoordinatorRecord {
    CoordinatorRecord {
        key: offset_commit_key(key),
        value: None,
    }
}

/// The record that says how a classic group stands.
pub fn group_metadata(group: &StrBytes, value: &GroupMetadataValue) -> CoordinatorRecord {
    CoordinatorRecord {
        key: group_metadata_key(group),
        value: Some(encode(|out| {
            out.write_i16(GROUP_METADATA_VALUE_VERSION)?;
            out.write_string(&value.protocol_type)?;
            out.write_i32(value.generation)?;
            out.write_nullable_string(value.protocol.as_ref())?;
            out.write_nullable_string(value.leader.as_ref())?;
            out.write_i64(value.current_state_timestamp_ms)?;
            out.write_array_len(value.members.len())?;
            for member in &value.members {
                out.write_string(&member.member_id)?;
                out.write_nullable_string(member.group_instance_id.as_ref())?;
                out.write_string(&member.client_id)?;
                out.write_string(&member.client_host)?;
                out.write_i32(member.rebalance_timeout_ms)?;
                out.write_i32(member.session_timeout_ms)?;
                out.write_bytes(&member.subscription)?;
                out.write_bytes(&member.assignment)?;
            }
            Ok(())
        })),
    }
}

/// The record that deletes a classic group.
pub fn group_tombstone(group: &StrBytes) -> CoordinatorRecord {
    CoordinatorRecord {
        key: group_metadata_key(group),
        value: None,
    }
}

fn offset_commit_key(key: &OffsetCommitKey) -> Bytes {
    encode(|out| {
        out.write_i16(OFFSET_COMMIT_KEY_VERSION)?;
        out.write_string(&key.group)?;
        out.write_string(&key.topic)?;
        out.write_i32(key.partition)
    })
}

fn group_metadata_key(group: &StrBytes) -> Bytes {
    encode(|out| {
        out.write_i16(GROUP_METADATA_KEY_VERSION)?;
        out.write_string(group)
    })
}

/// Reads the version that a value begins with.
fn value_version(decoder: &mut Decoder, kind: &'static str) -> Result<i16, RecordError> {
    let version = decoder.read_i16()?;
    if (0..=HIGHEST_VALUE_VERSION).contains(&version) {
        Ok(version)
    } else {
        Err(RecordError::UnknownValueVersion { kind, version })
    }
}

fn decode_offset_commit(bytes: &Bytes) -> Result<OffsetCommitValue, RecordError> {
    let mut decoder = decoder(bytes)?;
    let version = value_version(&mut decoder, "OffsetCommit")?;
    let flexible = version >= FIRST_FLEXIBLE_VALUE_VERSION;
    let value = OffsetCommitValue {
        offset: decoder.read_i64()?,
        leader_epoch: if version >= 3 {
            decoder.read_i32()?
        } else {
            -1
        },
        metadata: read_string(&mut decoder, flexible)?,
        commit_timestamp_ms: decoder.read_i64()?,
        expire_timestamp_ms: if version == 1 {
            Some(decoder.read_i64()?).filter(|timestamp| *timestamp != -1)
        } else {
            None
        },
    };
    finish(decoder, flexible)?;
    Ok(value)
}

fn decode_group_metadata(bytes: &Bytes) -> Result<GroupMetadataValue, RecordError> {
    let mut decoder = decoder(bytes)?;
    let version = value_version(&mut decoder, "GroupMetadata")?;
    let flexible = version >= FIRST_FLEXIBLE_VALUE_VERSION;
    let value = GroupMetadataValue {
        protocol_type: read_string(&mut decoder, flexible)?,
        generation: decoder.read_i32()?,
        protocol: read_nullable_string(&mut decoder, flexible)?,
        leader: read_nullable_string(&mut decoder, flexible)?,
        current_state_timestamp_ms: if version >= 2 {
            decoder.read_i64()?
        } else {
            -1
        },
        members: {
            let count = read_count(&mut decoder, flexible)?;
            decoder.read_vec(count, |decoder| decode_member(decoder, version))?
        },
    };
    finish(decoder, flexible)?;
    Ok(value)
}

fn decode_member(decoder: &mut Decoder, version: i16) -> Result<MemberMetadata, DecodeError> {
    let flexible = version >= FIRST_FLEXIBLE_VALUE_VERSION;
    let member = MemberMetadata {
        member_id: read_string(decoder, flexible)?,
        group_instance_id: if version >= 3 {
            read_nullable_string(decoder, flexible)?
        } else {
            None
        },
        client_id: read_string(decoder, flexible)?,
        client_host: read_string(decoder, flexible)?,
        rebalance_timeout_ms: if version >= 1 {
            decoder.read_i32()?
        } else {
            -1
        },
        session_timeout_ms: decoder.read_i32()?,
        subscription: read_bytes(decoder, flexible)?,
        assignment: read_bytes(decoder, flexible)?,
    };
    read_end(decoder, flexible)?;
    Ok(member)
}

fn read_nullable_string(
    decoder: &mut Decoder,
    flexible: bool,
) -> Result<Option<StrBytes>, DecodeError> {
    if flexible {
        decoder.read_compact_nullable_string()
    } else {
        decoder.read_nullable_string()
    }
}

fn read_bytes(decoder: &mut Decoder, flexible: bool) -> Result<Bytes, DecodeError> {
    if flexible {
        decoder.read_compact_bytes()
    } else {
        decoder.read_bytes()
    }
}
