//! Committed offsets: commit, fetch, delete, expire.
//!
//! The store is owned by the shard and changes only when a record is replayed: at load,
//! and when a write has succeeded. A request turns into records, never into a change.

use std::collections::{BTreeMap, BTreeSet};

use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{
        OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
        OffsetFetchRequest, OffsetFetchResponse,
        offset_commit_request::OffsetCommitRequestPartition,
        offset_commit_response::OffsetCommitResponsePartition,
        offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
        offset_fetch_response::{
            OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
            OffsetFetchResponseTopic, OffsetFetchResponseTopics,
        },
    },
};

use super::{
    GroupShard,
    api::{self, Effects, RequestContext},
    classic::{Group, GroupState},
    copied,
    records::{self, CoordinatorRecord, MAX_STRING_BYTES, OffsetCommitKey, OffsetCommitValue},
};

/// From this version on, a commit to a group that does not exist is told so.
const FIRST_COMMIT_VERSION_WITH_GROUP_ID_NOT_FOUND: i16 = 9;

/// From this version on, OffsetFetch asks about several groups.
const FIRST_FETCH_VERSION_WITH_GROUPS: i16 = 8;

/// What a client reads for a partition whose offset is not known.
const NO_OFFSET: i64 = -1;

/// Tombstones that housekeeping writes at once, so that a batch of them stays under
/// the topic's `max.message.bytes`; what is left follows in the next one.
pub(super) const MAX_HOUSEKEEPING_BYTES: usize = 256 * 1024;

type TopicOffsets = BTreeMap<StrBytes, BTreeMap<i32, OffsetCommitValue>>;

#[derive(Debug, Default)]
pub(super) struct OffsetStore {
    by_group: BTreeMap<StrBytes, TopicOffsets>,
    len: usize,
}

impl OffsetStore {
    pub(super) fn put(&mut self, key: &OffsetCommitKey, mut value: OffsetCommitValue) {
        value.metadata = copied(&value.metadata);
        let topics = entry(&mut self.by_group, &key.group);
        let partitions = entry(topics, &key.topic);
        if partitions.insert(key.partition, value).is_none() {
            self.len += 1;
        }
    }

    pub(super) fn remove(&mut self, key: &OffsetCommitKey) {
        let Some(topics) = self.by_group.get_mut(&key.group) else {
            return;
        };
        let Some(partitions) = topics.get_mut(&key.topic) else {
            return;
        };
        if partitions.remove(&key.partition).is_some() {
            self.len -= 1;
        }
        if partitions.is_empty() {
            topics.remove(&key.topic);
        }
        if topics.is_empty() {
            self.by_group.remove(&key.group);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn of_group(&self, group: &StrBytes) -> Option<&TopicOffsets> {
        self.by_group.get(group)
    }

    fn get(
        &self,
        group: &StrBytes,
        topic: &StrBytes,
        partition: i32,
    ) -> Option<&OffsetCommitValue> {
        self.by_group.get(group)?.get(topic)?.get(&partition)
    }
}

/// The entry for a name, made under a copy of the name if it is not there.
fn entry<'a, V: Default>(map: &'a mut BTreeMap<StrBytes, V>, name: &StrBytes) -> &'a mut V {
    if !map.contains_key(name) {
        map.insert(copied(name), V::default());
    }
    map.entry(name.clone()).or_default()
}

impl GroupShard {
    pub(super) fn commit_offsets(
        &mut self,
        context: &RequestContext,
        request: &OffsetCommitRequest,
        now_ms: i64,
        effects: &mut Effects,
    ) -> OffsetCommitResponse {
        if let Err(error) = self.validate_commit(context, request) {
            return api::offset_commit_refused(request, error);
        }
        if let Some(mut turn) = self.turn(&request.group_id, now_ms, effects)
            && matches!(
                turn.group.state(),
                GroupState::Stable | GroupState::PreparingRebalance
            )
        {
            turn.renew_session(&request.member_id);
        }
        // Only versions 2 to 4 can ask for a retention of their own.
        let expire_timestamp_ms = (request.retention_time_ms != -1)
            .then(|| now_ms.saturating_add(request.retention_time_ms));
        let mut response = api::offset_commit_refused(request, ErrorCode::None);
        for (topic, answer) in request.topics.iter().zip(&mut response.topics) {
            self.commit_topic(
                &request.group_id,
                &topic.name,
                topic.partitions.iter().zip(&mut answer.partitions),
                (now_ms, expire_timestamp_ms),
                effects,
            );
        }
        response
    }

    fn commit_topic<'a>(
        &self,
        group: &StrBytes,
        topic: &StrBytes,
        partitions: impl Iterator<
            Item = (
                &'a OffsetCommitRequestPartition,
                &'a mut OffsetCommitResponsePartition,
            ),
        >,
        (commit_timestamp_ms, expire_timestamp_ms): (i64, Option<i64>),
        effects: &mut Effects,
    ) {
        for (partition, answer) in partitions {
            let metadata = partition.committed_metadata.clone().unwrap_or_default();
            if topic.len() > MAX_STRING_BYTES {
                answer.error_code = ErrorCode::UnknownTopicOrPartition.code();
            } else if metadata.len() > MAX_STRING_BYTES
                || metadata.encode_utf16().count() > self.config.offset_metadata_max_bytes
            {
                answer.error_code = ErrorCode::OffsetMetadataTooLarge.code();
            } else {
                let key = OffsetCommitKey {
                    group: group.clone(),
                    topic: topic.clone(),
                    partition: partition.partition_index,
                };
                effects.records.push(records::offset_commit(
                    &key,
                    &OffsetCommitValue {
                        offset: partition.committed_offset,
                        leader_epoch: partition.committed_leader_epoch,
                        metadata,
                        commit_timestamp_ms,
                        expire_timestamp_ms,
                    },
                ));
            }
        }
    }

    fn validate_commit(
        &self,
        context: &RequestContext,
        request: &OffsetCommitRequest,
    ) -> Result<(), ErrorCode> {
        let generation = request.generation_id_or_member_epoch;
        let Some(group) = self.groups.get(&request.group_id) else {
            // A consumer that only stores offsets, or an administrator, makes the group
            // by committing; the record's replay does that.
            return if generation < 0 && request.group_id.len() <= MAX_STRING_BYTES {
                Ok(())
            } else if generation < 0 {
                Err(ErrorCode::InvalidGroupId)
            } else if context.api_version >= FIRST_COMMIT_VERSION_WITH_GROUP_ID_NOT_FOUND {
                Err(ErrorCode::GroupIdNotFound)
            } else {
                Err(ErrorCode::IllegalGeneration)
            };
        };
        if generation < 0 && group.state() == GroupState::Empty {
            return Ok(());
        }
        let instance_id = request.group_instance_id.as_ref();
        if generation < 0 && request.member_id.is_empty() && instance_id.is_none() {
            // Whoever is not a member may not commit over the members' heads.
            return Err(ErrorCode::UnknownMemberId);
        }
        group.validate_member(&request.member_id, instance_id)?;
        if generation != group.generation() {
            return Err(ErrorCode::IllegalGeneration);
        }
        if group.state() == GroupState::CompletingRebalance {
            return Err(ErrorCode::RebalanceInProgress);
        }
        Ok(())
    }

    /// `require_stable` needs nothing here: the answer waits until all earlier records
    /// are below the high watermark, and without transactions no offset is pending.
    pub(super) fn fetch_offsets(
        &self,
        context: &RequestContext,
        request: OffsetFetchRequest,
    ) -> OffsetFetchResponse {
        if context.api_version >= FIRST_FETCH_VERSION_WITH_GROUPS {
            let groups = request
                .groups
                .into_iter()
                .map(|group| self.fetch_group(group));
            return message!(OffsetFetchResponse {
                groups: groups.collect()
            });
        }
        let topics = request.topics.map(|topics| {
            let topics = topics.into_iter().map(|topic| {
                message!(OffsetFetchRequestTopics {
                    name: topic.name,
                    partition_indexes: topic.partition_indexes
                })
            });
            topics.collect()
        });
        let group = message!(OffsetFetchRequestGroup {
            group_id: request.group_id,
            topics
        });
        let topics = self.fetch_group(group).topics.into_iter().map(|topic| {
            let partitions = topic.partitions.into_iter().map(|partition| {
                message!(OffsetFetchResponsePartition {
                    partition_index: partition.partition_index,
                    committed_offset: partition.committed_offset,
                    committed_leader_epoch: partition.committed_leader_epoch,
                    metadata: partition.metadata,
                    error_code: partition.error_code
                })
            });
            message!(OffsetFetchResponseTopic {
                name: topic.name,
                partitions: partitions.collect()
            })
        });
        message!(OffsetFetchResponse {
            topics: topics.collect()
        })
    }

    /// The offsets of one group: those asked for, or all.
    fn fetch_group(&self, request: OffsetFetchRequestGroup) -> OffsetFetchResponseGroup {
        let group_id = request.group_id;
        let topics = match request.topics {
            Some(topics) => topics
                .into_iter()
                .map(|topic| {
                    let partitions = topic.partition_indexes.into_iter().map(|partition| {
                        let offset = self.offsets.get(&group_id, &topic.name, partition);
                        fetched(partition, offset)
                    });
                    message!(OffsetFetchResponseTopics {
                        partitions: partitions.collect(),
                        name: topic.name,
                        topic_id: topic.topic_id
                    })
                })
                .collect(),
            None => self
                .offsets
                .of_group(&group_id)
                .into_iter()
                .flatten()
                .map(|(name, partitions)| {
                    message!(OffsetFetchResponseTopics {
                        name: name.clone(),
                        partitions: partitions
                            .iter()
                            .map(|(partition, offset)| fetched(*partition, Some(offset)))
                            .collect()
                    })
                })
                .collect(),
        };
        message!(OffsetFetchResponseGroup { group_id, topics })
    }

    pub(super) fn delete_offsets(
        &self,
        request: &OffsetDeleteRequest,
        effects: &mut Effects,
    ) -> Result<OffsetDeleteResponse, ErrorCode> {
        if request.group_id.is_empty() {
            return Err(ErrorCode::InvalidGroupId);
        }
        let group = self
            .groups
            .get(&request.group_id)
            .ok_or(ErrorCode::GroupIdNotFound)?;
        if group.state() != GroupState::Empty && !group.uses_consumer_protocol() {
            // What such members read cannot be known.
            return Err(ErrorCode::NonEmptyGroup);
        }
        let topics = request.topics.iter().map(|topic| {
            let error = if group.is_subscribed_to(&topic.name) {
                ErrorCode::GroupSubscribedToTopic
            } else {
                ErrorCode::None
            };
            let partitions = topic.partitions.iter().map(|partition| {
                let partition = partition.partition_index;
                let offset = self.offsets.get(&request.group_id, &topic.name, partition);
                if error.is_ok() && offset.is_some() {
                    effects
                        .records
                        .push(tombstone(&request.group_id, &topic.name, partition));
                }
                message!(OffsetDeleteResponsePartition {
                    partition_index: partition,
                    error_code: error.code()
                })
            });
            message!(OffsetDeleteResponseTopic {
                partitions: partitions.collect(),
                name: topic.name.clone()
            })
        });
        Ok(message!(OffsetDeleteResponse {
            topics: topics.collect()
        }))
    }

    /// The tombstones of all offsets that the group has.
    pub(super) fn tombstones_of(&self, group: &StrBytes) -> Vec<CoordinatorRecord> {
        let topics = self.offsets.of_group(group).into_iter().flatten();
        topics
            .flat_map(|(topic, partitions)| {
                partitions
                    .keys()
                    .map(move |partition| tombstone(group, topic, *partition))
            })
            .collect()
    }

    /// Deletes the offsets that groups have for `topics`, which are no more. Some are
    /// done at a time: call again until there are no records to write.
    pub fn topics_deleted(&mut self, topics: &BTreeSet<StrBytes>) -> Effects {
        self.assert_ready();
        let mut effects = Effects::default();
        let mut bytes = 0;
        'groups: for (group, by_topic) in &self.offsets.by_group {
            for (topic, partitions) in by_topic {
                if !topics.contains(topic) {
                    continue;
                }
                for partition in partitions.keys() {
                    if bytes >= MAX_HOUSEKEEPING_BYTES {
                        break 'groups;
                    }
                    let record = tombstone(group, topic, *partition);
                    bytes += record.key.len();
                    effects.records.push(record);
                }
            }
        }
        self.hand_out(effects)
    }

    /// Deletes offsets that nobody needs any more, and the groups that are then left
    /// with nothing (KIP-211). False if it stopped early because there is a lot to do.
    pub(super) fn clean_up(&self, now_ms: i64, effects: &mut Effects) -> bool {
        let mut bytes = 0;
        for (id, group) in &self.groups {
            if bytes >= MAX_HOUSEKEEPING_BYTES {
                return false;
            }
            let mut keeps_offsets = false;
            for (topic, partitions) in self.offsets.of_group(id).into_iter().flatten() {
                let subscribed = group.is_subscribed_to(topic);
                for (partition, offset) in partitions {
                    if bytes >= MAX_HOUSEKEEPING_BYTES {
                        return false;
                    }
                    if subscribed || !self.is_expired(group, offset, now_ms) {
                        keeps_offsets = true;
                        continue;
                    }
                    let record = tombstone(id, topic, *partition);
                    bytes += record.key.len();
                    effects.records.push(record);
                }
            }
            // A member that was just told its id is about to join.
            if !keeps_offsets && group.state() == GroupState::Empty && !group.has_pending() {
                tracing::info!(
                    group = id.as_str(),
                    "the group is empty and has no offsets left"
                );
                let record = records::group_tombstone(id);
                bytes += record.key.len();
                effects.records.push(record);
            }
        }
        true
    }

    fn is_expired(&self, group: &Group, offset: &OffsetCommitValue, now_ms: i64) -> bool {
        let since_ms = if group.protocol_type().is_none() {
            // Nobody joins this group; it only stores offsets.
            offset.commit_timestamp_ms
        } else if group.state() == GroupState::Empty {
            group.state_since_ms().unwrap_or(offset.commit_timestamp_ms)
        } else if group.state() == GroupState::Stable && group.knows_subscribed_topics() {
            offset.commit_timestamp_ms
        } else {
            return false;
        };
        match offset.expire_timestamp_ms {
            Some(expire_timestamp_ms) => now_ms >= expire_timestamp_ms,
            None => now_ms.saturating_sub(since_ms) >= self.config.offsets_retention_ms,
        }
    }
}

fn tombstone(group: &StrBytes, topic: &StrBytes, partition: i32) -> CoordinatorRecord {
    records::offset_tombstone(&OffsetCommitKey {
        group: group.clone(),
        topic: topic.clone(),
        partition,
    })
}

fn fetched(partition: i32, offset: Option<&OffsetCommitValue>) -> OffsetFetchResponsePartitions {
    message!(OffsetFetchResponsePartitions {
        partition_index: partition,
        committed_offset: offset.map_or(NO_OFFSET, |offset| offset.offset),
        committed_leader_epoch: offset.map_or(-1, |offset| offset.leader_epoch),
        metadata: Some(
            offset
                .map(|offset| offset.metadata.clone())
                .unwrap_or_default()
        )
    })
}
