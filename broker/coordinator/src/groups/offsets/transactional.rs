//! Offsets committed as part of a transaction (KIP-98, KIP-447): TxnOffsetCommit, and the
//! markers that end the transaction.

use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{
        TxnOffsetCommitRequest, TxnOffsetCommitResponse,
        txn_offset_commit_response::{
            TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
        },
    },
};

use super::NewOffset;
use crate::groups::{
    GroupShard,
    api::{self, Effects, TransactionalProducer},
    classic::Group,
};
use crate::records::MAX_STRING_BYTES;
use crate::time::Now;

impl GroupShard {
    /// Has the offsets written as part of the producer's transaction. That the
    /// transaction is open and covers this partition is for the caller to have verified,
    /// and that the producer is not fenced is checked by the log.
    pub(in crate::groups) fn commit_transactional_offsets(
        &self,
        request: &TxnOffsetCommitRequest,
        now: Now,
        effects: &mut Effects,
    ) -> TxnOffsetCommitResponse {
        if let Err(error) = self.validate_transactional_commit(request) {
            return api::txn_offset_commit_refused(request, error);
        }
        let topics = request.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| {
                let offset = NewOffset {
                    partition: partition.partition_index,
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: partition.committed_metadata.as_ref(),
                    commit_timestamp_ms: now.wall_ms,
                    expire_timestamp_ms: None,
                };
                let error = self
                    .commit_one(&request.group_id, &topic.name, offset, effects)
                    .err()
                    .unwrap_or(ErrorCode::None);
                message!(TxnOffsetCommitResponsePartition {
                    partition_index: partition.partition_index,
                    error_code: error.code()
                })
            });
            message!(TxnOffsetCommitResponseTopic {
                partitions: partitions.collect(),
                name: topic.name.clone()
            })
        });
        let topics = topics.collect();
        if !effects.records.is_empty() {
            effects.transaction = Some(TransactionalProducer {
                producer_id: request.producer_id,
                producer_epoch: request.producer_epoch,
            });
        }
        message!(TxnOffsetCommitResponse { topics })
    }

    fn validate_transactional_commit(
        &self,
        request: &TxnOffsetCommitRequest,
    ) -> Result<(), ErrorCode> {
        let group_id = &request.group_id;
        if group_id.is_empty() {
            return Err(ErrorCode::InvalidGroupId);
        }
        let generation = request.generation_id_or_member_epoch;
        if let Some(group) = self.consumers.get(group_id) {
            if says_nothing_of_the_group(request) {
                return Ok(());
            }
            let Some(member) = group.committing_member(&request.member_id, generation)? else {
                return Ok(());
            };
            // Producers know the errors of classic groups only.
            return match member.validate_epoch(generation) {
                Err(ErrorCode::StaleMemberEpoch) => Err(ErrorCode::IllegalGeneration),
                valid => valid,
            };
        }
        let Some(group) = self.groups.get(group_id) else {
            return if generation >= 0 {
                Err(ErrorCode::IllegalGeneration)
            } else if group_id.len() > MAX_STRING_BYTES {
                Err(ErrorCode::InvalidGroupId)
            } else {
                Ok(())
            };
        };
        validate_member(group, request)
    }

    /// The transaction of `producer_id` has ended: its marker is in the log, and all
    /// records of the transaction are before it. Comes in the log's order, while loading and
    /// while serving.
    pub fn transaction_ended(&mut self, producer_id: i64, commit: bool) {
        self.phase.assert_nothing_is_written();
        self.offsets.transaction_ended(producer_id, commit);
    }
}

fn says_nothing_of_the_group(request: &TxnOffsetCommitRequest) -> bool {
    request.generation_id_or_member_epoch < 0
        && request.member_id.is_empty()
        && request.group_instance_id.is_none()
}

/// Older producers send neither member nor generation, so that these are checked only if
/// they are there. Where the group stands in a rebalance does not matter: the transaction
/// was begun under the assignment of this generation (KIP-447).
fn validate_member(group: &Group, request: &TxnOffsetCommitRequest) -> Result<(), ErrorCode> {
    let generation = request.generation_id_or_member_epoch;
    if says_nothing_of_the_group(request) {
        return Ok(());
    }
    let instance_id = request.group_instance_id.as_ref();
    if generation < 0 && group.members().is_empty() {
        return Ok(());
    }
    group.validate_member(&request.member_id, instance_id)?;
    if generation == group.generation() {
        Ok(())
    } else {
        Err(ErrorCode::IllegalGeneration)
    }
}
