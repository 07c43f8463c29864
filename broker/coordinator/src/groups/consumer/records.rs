//! The records of consumer groups in `__consumer_offsets` (KIP-848), in Kafka's formats to
//! the byte; written as Kafka 4.2 writes them.
//!
//! ```text
//! key   3  group                 value: epoch:i32  [tag 0: metadata_hash:i64]
//!       4  group                 only tombstones are written; 4.0 kept topics here
//!       5  group  member         value: what the member said of itself
//!       6  group                 value: assignment_epoch:i32
//!       7  group  member         value: the member's target assignment
//!       8  group  member         value: epoch, previous epoch, state:i8, assigned, revoking
//!      16  group  regex          value: topics, version:i64 of the metadata, timestamp:i64
//! ```
//! A key is `version:i16` and plain strings; a value is `version:i16 = 0` and a flexible
//! structure: compact lengths, tagged fields at its end and at the end of each part.

use bytes::{Bytes, BytesMut};
use yuxi_protocol::{
    codec::{DecodeError, Decoder, EncodeError, Encoder, StrBytes, TaggedFields},
    ids::TopicId,
    tags,
};

use super::{ClassicMember, Current, MemberState, Partitions, Subscription};
use crate::groups::records::RecordError;
use crate::records::{CoordinatorRecord, Out, decoder, encode, finish};

const EPOCH: i16 = 3;
const PARTITION_METADATA: i16 = 4;
const MEMBER: i16 = 5;
const TARGET_EPOCH: i16 = 6;
const TARGET: i16 = 7;
const CURRENT: i16 = 8;
const REGEX: i16 = 16;

const VALUE_VERSION: i16 = 0;
const METADATA_HASH_TAG: u32 = 0;
const CLASSIC_TAG: u32 = 0;

/// A record about a consumer group. No value deletes what the key names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the key")]
pub enum ConsumerRecord {
    /// The group is there, at this epoch.
    Epoch {
        group: StrBytes,
        value: Option<GroupEpoch>,
    },
    /// The topics that the group reads, as versions before 4.1 kept them.
    PartitionMetadata { group: StrBytes, is_tombstone: bool },
    /// What a member said of itself.
    Member {
        group: StrBytes,
        member: StrBytes,
        value: Option<Subscription>,
    },
    /// The group's epoch that the target assignment is for.
    TargetEpoch { group: StrBytes, value: Option<i32> },
    /// What a member is to have.
    Target {
        group: StrBytes,
        member: StrBytes,
        value: Option<Partitions>,
    },
    /// Where a member stands.
    Current {
        group: StrBytes,
        member: StrBytes,
        value: Option<Current>,
    },
    /// The topics that match a regex.
    Regex {
        group: StrBytes,
        regex: StrBytes,
        value: Option<ResolvedRegex>,
    },
}

/// A group's epoch, and a hash of the topics it reads as they were then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupEpoch {
    /// Raised whenever what the group's assignment rests on changes.
    pub epoch: i32,
    /// The same as long as the topics are.
    pub metadata_hash: i64,
}

/// The topics that matched a regex when it was last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedRegex {
    /// Their names, sorted.
    pub topics: Vec<StrBytes>,
    /// The version of the cluster's metadata then.
    pub version: i64,
    /// When that was.
    pub timestamp_ms: i64,
}

/// Whether a key's version is that of a record read here.
pub(in crate::groups) fn is_consumer_key(key_version: i16) -> bool {
    matches!(key_version, EPOCH..=CURRENT | REGEX)
}

/// Reads a record whose key's version was `key_version`; `key` stands behind that.
pub(in crate::groups) fn decode(
    key_version: i16,
    mut key: Decoder,
    value: Option<&Bytes>,
) -> Result<ConsumerRecord, RecordError> {
    let group = key.read_string()?;
    let second = match key_version {
        MEMBER | TARGET | CURRENT | REGEX => key.read_string()?,
        _ => StrBytes::default(),
    };
    key.finish()?;
    // What is read lives as long as the group: it shares a copy of the value, so that it
    // does not keep the whole batch.
    let value = value.map(|value| Bytes::copy_from_slice(value));
    let value = value.as_ref();
    Ok(match key_version {
        EPOCH => ConsumerRecord::Epoch {
            group,
            value: value.map(read_epoch).transpose()?,
        },
        PARTITION_METADATA => ConsumerRecord::PartitionMetadata {
            group,
            is_tombstone: value.is_none(),
        },
        MEMBER => ConsumerRecord::Member {
            group,
            member: second,
            value: value.map(read_subscription).transpose()?,
        },
        TARGET_EPOCH => ConsumerRecord::TargetEpoch {
            group,
            value: value.map(read_target_epoch).transpose()?,
        },
        TARGET => ConsumerRecord::Target {
            group,
            member: second,
            value: value.map(read_target).transpose()?,
        },
        CURRENT => ConsumerRecord::Current {
            group,
            member: second,
            value: value.map(read_current).transpose()?,
        },
        _ => ConsumerRecord::Regex {
            group,
            regex: second,
            value: value.map(read_regex).transpose()?,
        },
    })
}

/// The record as it stands in the log.
pub fn to_record(record: &ConsumerRecord) -> CoordinatorRecord {
    match record {
        ConsumerRecord::Epoch { group, value } => CoordinatorRecord {
            key: key(EPOCH, group, None),
            value: value
                .as_ref()
                .map(|value| encode_value(|out| write_epoch(out, value))),
        },
        ConsumerRecord::PartitionMetadata { group, .. } => CoordinatorRecord {
            key: key(PARTITION_METADATA, group, None),
            value: None,
        },
        ConsumerRecord::Member {
            group,
            member,
            value,
        } => CoordinatorRecord {
            key: key(MEMBER, group, Some(member)),
            value: value
                .as_ref()
                .map(|value| encode_value(|out| write_subscription(out, value))),
        },
        ConsumerRecord::TargetEpoch { group, value } => CoordinatorRecord {
            key: key(TARGET_EPOCH, group, None),
            value: value.map(|epoch| {
                encode_value(|out| {
                    out.write_i32(epoch)?;
                    end(out)
                })
            }),
        },
        ConsumerRecord::Target {
            group,
            member,
            value,
        } => CoordinatorRecord {
            key: key(TARGET, group, Some(member)),
            value: value.as_ref().map(|value| {
                encode_value(|out| {
                    write_partitions(out, value)?;
                    end(out)
                })
            }),
        },
        ConsumerRecord::Current {
            group,
            member,
            value,
        } => CoordinatorRecord {
            key: key(CURRENT, group, Some(member)),
            value: value
                .as_ref()
                .map(|value| encode_value(|out| write_current(out, value))),
        },
        ConsumerRecord::Regex {
            group,
            regex,
            value,
        } => CoordinatorRecord {
            key: key(REGEX, group, Some(regex)),
            value: value
                .as_ref()
                .map(|value| encode_value(|out| write_regex(out, value))),
        },
    }
}

fn key(version: i16, group: &StrBytes, second: Option<&StrBytes>) -> Bytes {
    encode(|out| {
        out.write_i16(version)?;
        out.write_string(group)?;
        match second {
            Some(second) => out.write_string(second),
            None => Ok(()),
        }
    })
}

fn encode_value(write: impl FnOnce(Out<'_, '_>) -> Result<(), EncodeError>) -> Bytes {
    encode(|out| {
        out.write_i16(VALUE_VERSION)?;
        write(out)
    })
}

/// No tagged fields.
fn end(out: Out<'_, '_>) -> Result<(), EncodeError> {
    out.write_tagged_fields(&TaggedFields::default())
}

fn write_epoch(out: Out<'_, '_>, value: &GroupEpoch) -> Result<(), EncodeError> {
    out.write_i32(value.epoch)?;
    if value.metadata_hash == 0 {
        return end(out);
    }
    write_one_tagged(out, METADATA_HASH_TAG, &value.metadata_hash.to_be_bytes())
}

fn write_one_tagged(out: Out<'_, '_>, tag: u32, data: &[u8]) -> Result<(), EncodeError> {
    out.write_unsigned_varint(1)?;
    out.write_unsigned_varint(tag)?;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    out.write_unsigned_varint(length)?;
    out.write_raw_slice(data)
}

fn write_subscription(out: Out<'_, '_>, value: &Subscription) -> Result<(), EncodeError> {
    out.write_compact_nullable_string(value.instance_id.as_ref())?;
    out.write_compact_nullable_string(value.rack_id.as_ref())?;
    out.write_compact_string(&value.client_id)?;
    out.write_compact_string(&value.client_host)?;
    out.write_compact_array_len(value.topic_names.len())?;
    for name in &value.topic_names {
        out.write_compact_string(name)?;
    }
    out.write_compact_nullable_string(value.topic_regex.as_ref())?;
    out.write_i32(value.rebalance_timeout_ms)?;
    out.write_compact_nullable_string(value.server_assignor.as_ref())?;
    let Some(classic) = &value.classic else {
        return end(out);
    };
    let mut buffer = BytesMut::new();
    write_classic(&mut Encoder::new(&mut buffer), classic)?;
    write_one_tagged(out, CLASSIC_TAG, &buffer)
}

/// As a tagged structure that may be null, it begins with a byte that says that it is not.
fn write_classic(out: Out<'_, '_>, value: &ClassicMember) -> Result<(), EncodeError> {
    out.write_struct_presence(true)?;
    out.write_i32(value.session_timeout_ms)?;
    out.write_compact_array_len(value.protocols.len())?;
    for (name, metadata) in &value.protocols {
        out.write_compact_string(name)?;
        out.write_compact_bytes(metadata)?;
        end(out)?;
    }
    end(out)
}

fn write_current(out: Out<'_, '_>, value: &Current) -> Result<(), EncodeError> {
    out.write_i32(value.epoch)?;
    out.write_i32(value.previous_epoch)?;
    out.write_i8(value.state.code())?;
    write_partitions(out, &value.assigned)?;
    write_partitions(out, &value.revoking)?;
    end(out)
}

fn write_regex(out: Out<'_, '_>, value: &ResolvedRegex) -> Result<(), EncodeError> {
    out.write_compact_array_len(value.topics.len())?;
    for topic in &value.topics {
        out.write_compact_string(topic)?;
    }
    out.write_i64(value.version)?;
    out.write_i64(value.timestamp_ms)?;
    end(out)
}

fn write_partitions(out: Out<'_, '_>, value: &Partitions) -> Result<(), EncodeError> {
    out.write_compact_array_len(value.topics().len())?;
    for (topic, partitions) in value.topics() {
        out.write_uuid(topic.into())?;
        out.write_compact_array_len(partitions.len())?;
        for &partition in partitions {
            out.write_i32(partition)?;
        }
        end(out)?;
    }
    Ok(())
}

fn value_decoder(bytes: &Bytes, kind: &'static str) -> Result<Decoder, RecordError> {
    let mut decoder = decoder(bytes)?;
    match decoder.read_i16()? {
        VALUE_VERSION => Ok(decoder),
        version => Err(RecordError::UnknownValueVersion { kind, version }),
    }
}

fn read_epoch(bytes: &Bytes) -> Result<GroupEpoch, RecordError> {
    let mut from = value_decoder(bytes, "ConsumerGroupMetadata")?;
    let epoch = from.read_i32()?;
    let fields = from.read_tagged_fields()?;
    from.finish()?;
    let metadata_hash = match tags::find(&fields, METADATA_HASH_TAG) {
        Some(data) => {
            let mut data = decoder(data)?;
            let hash = data.read_i64()?;
            data.finish()?;
            hash
        }
        None => 0,
    };
    Ok(GroupEpoch {
        epoch,
        metadata_hash,
    })
}

fn read_subscription(bytes: &Bytes) -> Result<Subscription, RecordError> {
    let mut from = value_decoder(bytes, "ConsumerGroupMemberMetadata")?;
    let mut value = Subscription {
        instance_id: from.read_compact_nullable_string()?,
        rack_id: from.read_compact_nullable_string()?,
        client_id: from.read_compact_string()?,
        client_host: from.read_compact_string()?,
        topic_names: {
            let count = from.read_compact_array_len()?;
            let names = from.read_vec(count, Decoder::read_compact_string)?;
            names.into_iter().collect()
        },
        topic_regex: from
            .read_compact_nullable_string()?
            .filter(|regex| !regex.is_empty()),
        rebalance_timeout_ms: from.read_i32()?,
        server_assignor: from.read_compact_nullable_string()?,
        classic: None,
    };
    let fields = from.read_tagged_fields()?;
    from.finish()?;
    if let Some(data) = tags::find(&fields, CLASSIC_TAG) {
        value.classic = read_classic(data)?;
    }
    Ok(value)
}

fn read_classic(bytes: &Bytes) -> Result<Option<ClassicMember>, RecordError> {
    let mut from = decoder(bytes)?;
    if !from.read_struct_presence()? {
        from.finish()?;
        return Ok(None);
    }
    let value = ClassicMember {
        session_timeout_ms: from.read_i32()?,
        protocols: {
            let count = from.read_compact_array_len()?;
            from.read_vec(count, |from| {
                let protocol = (from.read_compact_string()?, from.read_compact_bytes()?);
                from.read_tagged_fields()?;
                Ok(protocol)
            })?
        },
    };
    finish(from, true)?;
    Ok(Some(value))
}

fn read_target_epoch(bytes: &Bytes) -> Result<i32, RecordError> {
    let mut from = value_decoder(bytes, "ConsumerGroupTargetAssignmentMetadata")?;
    let epoch = from.read_i32()?;
    finish(from, true)?;
    Ok(epoch)
}

fn read_target(bytes: &Bytes) -> Result<Partitions, RecordError> {
    let mut from = value_decoder(bytes, "ConsumerGroupTargetAssignmentMember")?;
    let partitions = read_partitions(&mut from)?;
    finish(from, true)?;
    Ok(partitions)
}

fn read_current(bytes: &Bytes) -> Result<Current, RecordError> {
    let mut from = value_decoder(bytes, "ConsumerGroupCurrentMemberAssignment")?;
    let value = Current {
        epoch: from.read_i32()?,
        previous_epoch: from.read_i32()?,
        state: MemberState::from_code(from.read_i8()?),
        assigned: read_partitions(&mut from)?,
        revoking: read_partitions(&mut from)?,
    };
    finish(from, true)?;
    Ok(value)
}

fn read_regex(bytes: &Bytes) -> Result<ResolvedRegex, RecordError> {
    let mut from = value_decoder(bytes, "ConsumerGroupRegularExpression")?;
    let value = ResolvedRegex {
        topics: {
            let count = from.read_compact_array_len()?;
            from.read_vec(count, Decoder::read_compact_string)?
        },
        version: from.read_i64()?,
        timestamp_ms: from.read_i64()?,
    };
    finish(from, true)?;
    Ok(value)
}

fn read_partitions(from: &mut Decoder) -> Result<Partitions, DecodeError> {
    let count = from.read_compact_array_len()?;
    let topics = from.read_vec(count, |from| {
        let topic = TopicId::from(from.read_uuid()?);
        let count = from.read_compact_array_len()?;
        let partitions = from.read_vec(count, Decoder::read_i32)?;
        from.read_tagged_fields()?;
        Ok((topic, partitions))
    })?;
    Ok(topics
        .into_iter()
        .flat_map(|(topic, partitions)| partitions.into_iter().map(move |at| (topic, at)))
        .collect())
}
