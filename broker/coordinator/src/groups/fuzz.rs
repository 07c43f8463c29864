//! The body of the fuzz target for records of `__consumer_offsets`.

use bytes::Bytes;
use yuxi_protocol::{codec::StrBytes, ids::TopicId};

use crate::time::{Monotonic, Now};

use super::{
    ClusterView, GroupConfig, GroupOverrides, GroupShard, TopicView,
    consumer::{self, ConsumerRecord},
    records::{self, GroupRecord},
};

/// Takes any bytes as one record, its key's length first: it must be read or refused,
/// what was read must be written and read back the same, and a shard that loads it must
/// live with it. Panics only if one of these does not hold.
pub fn fuzz_record(bytes: &[u8]) {
    let (key, value) = match bytes.split_first() {
        Some((&split, rest)) => rest.split_at(usize::from(split).min(rest.len())),
        None => (bytes, bytes),
    };
    let key = Bytes::copy_from_slice(key);
    let value = Bytes::copy_from_slice(value);
    if let Ok(record) = records::decode(&key, Some(&value)) {
        write_and_read_back(record);
    }
    for value in [Some(&value), None] {
        let mut shard = GroupShard::new(GroupConfig::default(), Box::new(|| [0; 16]));
        // A refusal must leave the shard as usable as it was.
        let _ = shard.replay(&key, Some(&Bytes::new()));
        let _ = shard.replay(&key, value);
        shard.loaded(&NoTopics, at(Monotonic::new(0)));
        for _ in 0..8 {
            let Some(deadline) = shard.next_deadline() else {
                break;
            };
            let effects = shard.tick(&NoTopics, at(deadline));
            if !effects.records.is_empty() {
                let replies = shard.written(effects, at(deadline));
                assert!(replies.is_empty(), "nobody has asked");
            }
        }
        assert!(shard.unload().is_empty(), "nobody has asked");
    }
}

/// A cluster without topics.
struct NoTopics;

impl ClusterView for NoTopics {
    fn version(&self) -> i64 {
        0
    }

    fn topic(&self, _: &str) -> Option<TopicView> {
        None
    }

    fn topic_name(&self, _: TopicId) -> Option<StrBytes> {
        None
    }

    fn visit_topic_names(&self, _: &mut dyn FnMut(&str)) {}

    fn racks(&self, _: TopicId, _: i32) -> Vec<StrBytes> {
        Vec::new()
    }

    fn group_overrides(&self, _: &str) -> GroupOverrides {
        GroupOverrides::default()
    }
}

fn write_and_read_back(record: GroupRecord) {
    let (said, written) = match record {
        GroupRecord::OffsetCommit {
            key,
            value: Some(mut value),
        } => {
            if value.expire_timestamp_ms.is_some() {
                // The version with an expiry has no room for it.
                value.leader_epoch = -1;
            }
            let written = records::offset_commit(&key, &value);
            (
                GroupRecord::OffsetCommit {
                    key,
                    value: Some(value),
                },
                written,
            )
        }
        GroupRecord::GroupMetadata {
            group,
            value: Some(value),
        } => {
            let written = records::group_metadata(&group, &value);
            (
                GroupRecord::GroupMetadata {
                    group,
                    value: Some(value),
                },
                written,
            )
        }
        // What older versions wrote is only ever deleted.
        GroupRecord::Consumer(ConsumerRecord::PartitionMetadata { .. })
        | GroupRecord::OffsetCommit { value: None, .. }
        | GroupRecord::GroupMetadata { value: None, .. }
        | GroupRecord::Other { .. } => return,
        GroupRecord::Consumer(record) => {
            let written = consumer::records::to_record(&record);
            (GroupRecord::Consumer(record), written)
        }
    };
    assert_eq!(
        records::decode(&written.key, written.value.as_ref()),
        Ok(said)
    );
}

fn at(monotonic: Monotonic) -> Now {
    Now {
        monotonic,
        wall_ms: 0,
    }
}
