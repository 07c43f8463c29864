//! What records do to a shard, at load and once they are written; and what is taken back
//! when they are not.

use bytes::Bytes;
use yuxi_protocol::{codec::StrBytes, error_code::ErrorCode};

use super::{
    GroupShard, Replayed,
    api::{Completion, Effects},
    classic::Group,
    consumer::ConsumerRecord,
    copied,
    records::{self, GroupRecord, RecordError},
};
use crate::CoordinatorRecord;
use crate::time::{Monotonic, Now};

impl GroupShard {
    /// A record of ours is in the log. That of a group with members says what the group
    /// is already; all others take effect now.
    pub(super) fn apply_written(&mut self, producer_id: Option<i64>, record: &CoordinatorRecord) {
        let is_group = matches!(
            records::decode(&record.key, None),
            Ok(GroupRecord::GroupMetadata { .. })
        );
        if !is_group || record.value.is_none() {
            let applied = self.apply(producer_id, &record.key, record.value.as_ref());
            assert_eq!(
                applied,
                Ok(Replayed::Applied),
                "our own records are in order"
            );
        }
    }

    /// Takes a record into the state; an offset in a transaction of `producer_id` if it is
    /// part of one.
    pub(super) fn apply(
        &mut self,
        producer_id: Option<i64>,
        key: &Bytes,
        value: Option<&Bytes>,
    ) -> Result<Replayed, RecordError> {
        match records::decode(key, value)? {
            GroupRecord::OffsetCommit {
                key,
                value: Some(value),
            } => {
                if !self.groups.contains_key(&key.group) && !self.consumers.contains_key(&key.group)
                {
                    let simple = Group::new(value.commit_timestamp_ms);
                    self.groups.insert(copied(&key.group), simple);
                }
                match producer_id {
                    None => self.offsets.put(&key, value),
                    Some(producer_id) => self.offsets.put_pending(producer_id, &key, value),
                }
            }
            GroupRecord::OffsetCommit { key, value: None } => self.offsets.remove(&key),
            GroupRecord::GroupMetadata { group, value: None } => {
                let mut effects = Effects::default();
                self.forget(&group, ErrorCode::UnknownMemberId, &mut effects);
                assert!(
                    effects.replies.is_empty(),
                    "only groups without members are deleted"
                );
            }
            GroupRecord::GroupMetadata {
                group,
                value: Some(value),
            } => {
                let loaded = Group::from_record(&group, value)?;
                if self.consumers.contains_key(&group) {
                    return Err(RecordError::Inconsistent {
                        group,
                        problem: "it is a consumer group",
                    });
                }
                self.groups.insert(copied(&group), loaded);
            }
            GroupRecord::Consumer(record) => self.apply_consumer(record)?,
            GroupRecord::Other { key_version } => {
                self.skipped_records += 1;
                return Ok(Replayed::Skipped { key_version });
            }
        }
        Ok(Replayed::Applied)
    }

    fn apply_consumer(&mut self, record: ConsumerRecord) -> Result<(), RecordError> {
        match &record {
            ConsumerRecord::Epoch { group, value: None } => {
                let removed = self.consumers.remove(group);
                for member in removed.iter().flat_map(|group| group.members().keys()) {
                    self.cancel_consumer_timers(group, member);
                }
                return Ok(());
            }
            ConsumerRecord::Member {
                group,
                member,
                value: None,
            } => self.cancel_consumer_timers(group, member),
            _ => {}
        }
        if record.is_tombstone() {
            if let Some(group) = self.consumers.get_mut(record.group()) {
                group.apply(record);
            }
            return Ok(());
        }
        let id = copied(record.group());
        // A classic group that only stores offsets has no record of its own.
        if let Some(classic) = self.groups.get(&id) {
            if !classic.members().is_empty() || classic.protocol_type().is_some() {
                return Err(RecordError::Inconsistent {
                    group: id,
                    problem: "it is a classic group",
                });
            }
            self.forget(&id, ErrorCode::UnknownMemberId, &mut Effects::default());
        }
        self.consumers.entry(id).or_default().apply(record);
        Ok(())
    }

    /// The group has become a classic one in the log, and does so here.
    pub(super) fn became_classic(
        &mut self,
        id: &StrBytes,
        classic: Group,
        rebalance: bool,
        now: Now,
        effects: &mut Effects,
    ) {
        self.groups.insert(copied(id), classic);
        let Some(mut turn) = self.turn(id, now, effects) else {
            return;
        };
        for member_id in turn.group.member_ids() {
            turn.renew_session(&member_id);
        }
        if rebalance {
            turn.prepare_rebalance("the last member that spoke the consumer protocol has gone");
        }
    }

    pub(super) fn undo(
        &mut self,
        completion: Completion,
        error: ErrorCode,
        now: Now,
        out: &mut Effects,
    ) {
        match completion {
            Completion::Assign { group, .. } => {
                if let Some(mut turn) = self.turn(&group, now, out) {
                    turn.fail_assignment(error);
                    turn.prepare_rebalance("the assignment could not be written");
                }
            }
            Completion::ForgetOnFailure { group } => self.forget(&group, error, out),
            Completion::RearmOnFailure { group, member } => {
                self.rearm_consumer_session(&group, &member, now);
            }
            // Nothing of it has happened.
            Completion::TopicsChecked { .. } | Completion::BecameClassic { .. } => {}
            Completion::RestoreOnFailure {
                group,
                before,
                replaced,
                by,
            } => {
                if let Some(mut turn) = self.turn(&group, now, out) {
                    turn.timers.cancel(&turn.member_key(&by));
                    *turn.group = *before;
                    turn.renew_session(&replaced);
                }
            }
        }
    }

    /// Drops a group and its timers, and answers whoever waits in it.
    pub(super) fn forget(&mut self, id: &StrBytes, error: ErrorCode, effects: &mut Effects) {
        // Nothing is armed and nothing written, so that it does not matter when.
        let now = Now {
            monotonic: Monotonic::LONG_AGO,
            wall_ms: 0,
        };
        let Some(mut turn) = self.turn(id, now, effects) else {
            return;
        };
        turn.cancel_timers();
        for member_id in turn.group.member_ids() {
            let owed = turn.group.remove(&member_id);
            turn.settle(owed, &member_id, error);
        }
        self.groups.remove(id);
    }
}
