//! Committed offsets: commit, fetch, delete, expire.
//!
//! The store is owned by the shard and changes only when a record or a transaction's
//! marker is taken in: at load, and when a write has succeeded. A request turns into
//! records, never into a change.

mod store;
mod transactional;

use std::collections::BTreeSet;

use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{
        OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
        OffsetFetchRequest, OffsetFetchResponse,
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
    records::{self, OffsetCommitKey, OffsetCommitValue},
};
use crate::time::Now;
use crate::{CoordinatorRecord, records::MAX_STRING_BYTES};

pub(super) use store::OffsetStore;

/// From this version on, a commit to a group that does not exist is told so.
const FIRST_COMMIT_VERSION_WITH_GROUP_ID_NOT_FOUND: i16 = 9;

/// From this version on, OffsetFetch asks about several groups.
const FIRST_FETCH_VERSION_WITH_GROUPS: i16 = 8;

/// What a client reads for a partition whose offset is not known.
const NO_OFFSET: i64 = -1;

/// Tombstones that housekeeping writes at once, so that a batch of them stays under
/// the topic's `max.message.bytes`; what is left follows in the next one.
pub(super) const MAX_HOUSEKEEPING_BYTES: usize = 256 * 1024;

/// An offset that a client wants committed.
#[derive(Clone, Copy)]
struct NewOffset<'a> {
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: Option<&'a StrBytes>,
    commit_timestamp_ms: i64,
    expire_timestamp_ms: Option<i64>,
}

impl GroupShard {
    pub(super) fn commit_offsets(
        &mut self,
        context: &RequestContext,
        request: &OffsetCommitRequest,
        now: Now,
        effects: &mut Effects,
    ) -> OffsetCommitResponse {
        if let Err(error) = self.validate_commit(context, request) {
            return api::offset_commit_refused(request, error);
        }
        if let Some(mut turn) = self.turn(&request.group_id, now, effects)
            && matches!(
                turn.group.state(),
                GroupState::Stable | GroupState::PreparingRebalance
            )
        {
            turn.renew_session(&request.member_id);
        }
        // Only versions 2 to 4 can ask for a retention of their own.
        let expire_timestamp_ms = (request.retention_time_ms != -1)
            .then(|| now.wall_ms.saturating_add(request.retention_time_ms));
        let mut response = api::offset_commit_refused(request, ErrorCode::None);
        for (topic, answer) in request.topics.iter().zip(&mut response.topics) {
            for (partition, answer) in topic.partitions.iter().zip(&mut answer.partitions) {
                let offset = NewOffset {
                    partition: partition.partition_index,
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: partition.committed_metadata.as_ref(),
                    commit_timestamp_ms: now.wall_ms,
                    expire_timestamp_ms,
                };
                if let Err(error) = self.commit_one(&request.group_id, &topic.name, offset, effects)
                {
                    answer.error_code = error.code();
                }
            }
        }
        response
    }

    /// Adds the record that commits `new`, unless it can't be stored.
    fn commit_one(
        &self,
        group: &StrBytes,
        topic: &StrBytes,
        new: NewOffset<'_>,
        effects: &mut Effects,
    ) -> Result<(), ErrorCode> {
        let metadata = new.metadata.cloned().unwrap_or_default();
        if topic.len() > MAX_STRING_BYTES {
            return Err(ErrorCode::UnknownTopicOrPartition);
        }
        if metadata.len() > MAX_STRING_BYTES
            || metadata.encode_utf16().count() > self.config.offset_metadata_max_bytes
        {
            return Err(ErrorCode::OffsetMetadataTooLarge);
        }
        let key = OffsetCommitKey {
            group: group.clone(),
            topic: topic.clone(),
            partition: new.partition,
        };
        let value = OffsetCommitValue {
            offset: new.offset,
            leader_epoch: new.leader_epoch,
            metadata,
            commit_timestamp_ms: new.commit_timestamp_ms,
            expire_timestamp_ms: new.expire_timestamp_ms,
        };
        effects.records.push(records::offset_commit(&key, &value));
        Ok(())
    }

    fn validate_commit(
        &self,
        context: &RequestContext,
        request: &OffsetCommitRequest,
    ) -> Result<(), ErrorCode> {
        let generation = request.generation_id_or_member_epoch;
        if let Some(group) = self.consumers.get(&request.group_id) {
            let Some(member) = group.committing_member(&request.member_id, generation)? else {
                return Ok(());
            };
            // Older clients do not know what a stale member epoch is, and are not told of one.
            let knows_epochs = context.api_version >= FIRST_COMMIT_VERSION_WITH_GROUP_ID_NOT_FOUND;
            return if member.is_classic() || knows_epochs {
                member.validate_epoch(generation)
            } else {
                Err(ErrorCode::UnsupportedVersion)
            };
        }
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

    /// With `require_stable` an offset that a transaction may be about to replace is not
    /// told (KIP-447). That it is committed needs nothing here: the answer waits until all
    /// earlier records are below the high watermark.
    pub(super) fn fetch_offsets(
        &self,
        context: &RequestContext,
        request: OffsetFetchRequest,
    ) -> OffsetFetchResponse {
        if context.api_version >= FIRST_FETCH_VERSION_WITH_GROUPS {
            let groups = request
                .groups
                .into_iter()
                .map(|group| self.fetch_group(group, request.require_stable));
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
        let topics = self
            .fetch_group(group, request.require_stable)
            .topics
            .into_iter()
            .map(|topic| {
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
    fn fetch_group(
        &self,
        request: OffsetFetchRequestGroup,
        require_stable: bool,
    ) -> OffsetFetchResponseGroup {
        let group_id = request.group_id;
        let refusal = self.consumers.get(&group_id).and_then(|group| {
            let member_id = request.member_id.as_ref();
            group.validate_fetch(member_id, request.member_epoch).err()
        });
        if let Some(error) = refusal {
            return message!(OffsetFetchResponseGroup {
                group_id,
                error_code: error.code()
            });
        }
        let fetch = |topic: &StrBytes, partition: i32| {
            if require_stable && self.offsets.is_pending(&group_id, topic, partition) {
                unstable(partition)
            } else {
                fetched(partition, self.offsets.get(&group_id, topic, partition))
            }
        };
        let topics = match request.topics {
            Some(topics) => topics
                .into_iter()
                .map(|topic| {
                    let partitions = topic
                        .partition_indexes
                        .into_iter()
                        .map(|partition| fetch(&topic.name, partition));
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
                            .keys()
                            .map(|&partition| fetch(name, partition))
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
        let consumers = self.consumers.get(&request.group_id);
        let classic = self.groups.get(&request.group_id);
        if consumers.is_none() {
            let group = classic.ok_or(ErrorCode::GroupIdNotFound)?;
            if group.state() != GroupState::Empty && !group.uses_consumer_protocol() {
                // What such members read cannot be known.
                return Err(ErrorCode::NonEmptyGroup);
            }
        }
        let is_read = |topic: &StrBytes| {
            consumers.is_some_and(|group| group.is_subscribed_to(topic))
                || classic.is_some_and(|group| group.is_subscribed_to(topic))
        };
        let topics = request.topics.iter().map(|topic| {
            let error = if is_read(&topic.name) {
                ErrorCode::GroupSubscribedToTopic
            } else {
                ErrorCode::None
            };
            let partitions = topic.partitions.iter().map(|partition| {
                let partition = partition.partition_index;
                let group = &request.group_id;
                let is_there = self.offsets.get(group, &topic.name, partition).is_some()
                    || self.offsets.is_pending(group, &topic.name, partition);
                if error.is_ok() && is_there {
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

    /// The tombstones of all offsets that the group has, pending ones too.
    pub(super) fn tombstones_of(&self, group: &StrBytes) -> Vec<CoordinatorRecord> {
        let partitions = self.offsets.partitions_of(group).into_iter();
        partitions
            .map(|(topic, partition)| tombstone(group, &topic, partition))
            .collect()
    }

    /// Deletes the offsets that groups have for `topics`, which are no more. Some are
    /// done at a time: call again until there are no records to write.
    pub fn topics_deleted(&mut self, topics: &BTreeSet<StrBytes>) -> Effects {
        self.phase.assert_ready();
        let mut effects = Effects::default();
        let mut bytes = 0;
        'groups: for group in self.offsets.groups() {
            for (topic, partition) in self.offsets.partitions_of(&group) {
                if !topics.contains(&topic) {
                    continue;
                }
                if bytes >= MAX_HOUSEKEEPING_BYTES {
                    break 'groups;
                }
                let record = tombstone(&group, &topic, partition);
                bytes += record.key.len();
                effects.records.push(record);
            }
        }
        self.hand_out(effects)
    }

    /// Deletes offsets that nobody needs any more, and the groups that are then left
    /// with nothing (KIP-211). False if it stopped early because there is a lot to do.
    pub(super) fn clean_up(&self, now_ms: i64, effects: &mut Effects) -> bool {
        let mut room = MAX_HOUSEKEEPING_BYTES;
        for (id, group) in &self.groups {
            let expired = |topic: &StrBytes, offset: &OffsetCommitValue| {
                !group.is_subscribed_to(topic) && self.is_expired(group, offset, now_ms)
            };
            let Some(keeps_offsets) = self.expire_offsets(id, expired, &mut room, effects) else {
                return false;
            };
            // A member that was just told its id is about to join.
            if !keeps_offsets && group.state() == GroupState::Empty && !group.has_pending() {
                clean_up_group(id, [records::group_tombstone(id)], &mut room, effects);
            }
        }
        for (id, group) in &self.consumers {
            let expired = |topic: &StrBytes, offset: &OffsetCommitValue| {
                let since_ms = offset.commit_timestamp_ms;
                !group.is_subscribed_to(topic) && self.is_past_retention(offset, since_ms, now_ms)
            };
            let Some(keeps_offsets) = self.expire_offsets(id, expired, &mut room, effects) else {
                return false;
            };
            if !keeps_offsets && group.members().is_empty() {
                clean_up_group(id, group.tombstones(id), &mut room, effects);
            }
        }
        true
    }

    /// Adds the tombstones of a group's offsets that are `expired`; whether it keeps any.
    /// None if there was no room for all.
    fn expire_offsets(
        &self,
        id: &StrBytes,
        expired: impl Fn(&StrBytes, &OffsetCommitValue) -> bool,
        room: &mut usize,
        effects: &mut Effects,
    ) -> Option<bool> {
        if *room == 0 {
            return None;
        }
        // What a transaction is about to commit is an offset too.
        let mut keeps_offsets = self.offsets.has_open_transactions(id);
        for (topic, partitions) in self.offsets.of_group(id).into_iter().flatten() {
            for (partition, offset) in partitions {
                if *room == 0 {
                    return None;
                }
                if !expired(topic, &offset.value) || self.offsets.is_pending(id, topic, *partition)
                {
                    keeps_offsets = true;
                    continue;
                }
                let record = tombstone(id, topic, *partition);
                *room = room.saturating_sub(record.key.len());
                effects.records.push(record);
            }
        }
        Some(keeps_offsets)
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
        self.is_past_retention(offset, since_ms, now_ms)
    }

    fn is_past_retention(&self, offset: &OffsetCommitValue, since_ms: i64, now_ms: i64) -> bool {
        match offset.expire_timestamp_ms {
            Some(expire_timestamp_ms) => now_ms >= expire_timestamp_ms,
            None => now_ms.saturating_sub(since_ms) >= self.config.offsets_retention_ms,
        }
    }
}

/// Deletes a group that is empty and has no offsets left.
fn clean_up_group(
    id: &StrBytes,
    tombstones: impl IntoIterator<Item = CoordinatorRecord>,
    room: &mut usize,
    effects: &mut Effects,
) {
    tracing::info!(
        group = id.as_str(),
        "the group is empty and has no offsets left"
    );
    for record in tombstones {
        *room = room.saturating_sub(record.key.len());
        effects.records.push(record);
    }
}

fn tombstone(group: &StrBytes, topic: &StrBytes, partition: i32) -> CoordinatorRecord {
    records::offset_tombstone(&OffsetCommitKey {
        group: group.clone(),
        topic: topic.clone(),
        partition,
    })
}

/// The answer for an offset that a transaction may be about to replace.
fn unstable(partition: i32) -> OffsetFetchResponsePartitions {
    let mut answer = fetched(partition, None);
    answer.error_code = ErrorCode::UnstableOffsetCommit.code();
    answer
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
