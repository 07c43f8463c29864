//! A change of a consumer group in the making: the records that it takes, and the group as
//! these records would have it.
//!
//! Nothing of the shard is touched; the group is copied when the first record comes.

use std::{borrow::Cow, collections::BTreeMap};

use yuxi_protocol::codec::StrBytes;

use super::{
    Assignor, ConsumerGroup, ConsumerRecord, Current, GroupEpoch, Member, MemberState, Partitions,
    Subscription,
    assignor::{Subscriber, Subscribers},
    reconcile::{Goal, next_step},
    records, subscriptions,
};
use crate::{
    CoordinatorRecord,
    groups::{ClusterView, GroupConfig},
};

/// Topics may come and go often; a regex is looked at again no more often than this.
const SHORTEST_REGEX_REFRESH_MS: i64 = 10_000;

pub(super) struct Change<'a> {
    pub(super) id: StrBytes,
    pub(super) group: Cow<'a, ConsumerGroup>,
    pub(super) records: Vec<CoordinatorRecord>,
    /// The version of the topics that the group's epoch will be right for.
    pub(super) checked_version: Option<i64>,
}

impl<'a> Change<'a> {
    pub(super) fn of(id: &StrBytes, group: &'a ConsumerGroup) -> Self {
        Self {
            id: id.clone(),
            checked_version: group.checked_version,
            group: Cow::Borrowed(group),
            records: Vec::new(),
        }
    }

    /// Of a group that is not there yet.
    pub(super) fn new(id: &StrBytes) -> Self {
        Self {
            id: id.clone(),
            group: Cow::Owned(ConsumerGroup::default()),
            records: Vec::new(),
            checked_version: None,
        }
    }

    pub(super) fn push(&mut self, record: ConsumerRecord) {
        self.records.push(records::to_record(&record));
        self.group.to_mut().apply(record);
    }

    pub(super) fn set_subscription(&mut self, member: &StrBytes, value: Option<Subscription>) {
        self.push(ConsumerRecord::Member {
            group: self.id.clone(),
            member: member.clone(),
            value,
        });
    }

    pub(super) fn set_current(&mut self, member: &StrBytes, value: Option<Current>) {
        self.push(ConsumerRecord::Current {
            group: self.id.clone(),
            member: member.clone(),
            value,
        });
    }

    pub(super) fn set_target(&mut self, member: &StrBytes, value: Option<Partitions>) {
        self.push(ConsumerRecord::Target {
            group: self.id.clone(),
            member: member.clone(),
            value,
        });
    }

    pub(super) fn set_epoch(&mut self, value: Option<GroupEpoch>) {
        self.push(ConsumerRecord::Epoch {
            group: self.id.clone(),
            value,
        });
    }

    pub(super) fn set_target_epoch(&mut self, value: Option<i32>) {
        self.push(ConsumerRecord::TargetEpoch {
            group: self.id.clone(),
            value,
        });
    }

    /// Takes a member out, in the order in which the log is to be read.
    pub(super) fn remove_member(&mut self, member: &StrBytes) {
        self.set_current(member, None);
        self.set_target(member, None);
        self.set_subscription(member, None);
    }

    /// Deletes everything about the group.
    pub(super) fn delete(&mut self) {
        let members: Vec<StrBytes> = self.group.members.keys().cloned().collect();
        for member in &members {
            self.remove_member(member);
        }
        let left: Vec<StrBytes> = self.group.targets.keys().cloned().collect();
        for member in &left {
            self.set_target(member, None);
        }
        self.set_target_epoch(None);
        let regexes: Vec<StrBytes> = self.group.regexes.keys().cloned().collect();
        for regex in regexes {
            self.push(ConsumerRecord::Regex {
                group: self.id.clone(),
                regex,
                value: None,
            });
        }
        if self.group.has_partition_metadata {
            self.push(ConsumerRecord::PartitionMetadata {
                group: self.id.clone(),
                is_tombstone: true,
            });
        }
        self.set_epoch(None);
    }

    /// Raises the group's epoch if `bump`, or if the topics that it reads have changed.
    pub(super) fn check_topics(&mut self, bump: bool, cluster: &dyn ClusterView, now_ms: i64) {
        if !bump && self.checked_version == Some(cluster.version()) {
            return;
        }
        let is_current = self.refresh_regexes(cluster, now_ms);
        let metadata_hash = self.group.metadata_hash(cluster);
        if bump || metadata_hash != self.group.epoch.metadata_hash {
            self.set_epoch(Some(GroupEpoch {
                epoch: next_epoch(self.group.epoch.epoch),
                metadata_hash,
            }));
        }
        if self.group.has_partition_metadata {
            self.push(ConsumerRecord::PartitionMetadata {
                group: self.id.clone(),
                is_tombstone: true,
            });
        }
        self.checked_version = is_current.then(|| cluster.version());
    }

    /// Looks at the regexes again whose topics may have changed; forgets those that nobody
    /// uses. False if one was looked at a moment ago and is left as it is for now.
    fn refresh_regexes(&mut self, cluster: &dyn ClusterView, now_ms: i64) -> bool {
        let in_use = self.group.regexes_in_use();
        let unused: Vec<StrBytes> = self
            .group
            .regexes
            .keys()
            .filter(|regex| !in_use.contains(*regex))
            .cloned()
            .collect();
        for regex in unused {
            self.push(ConsumerRecord::Regex {
                group: self.id.clone(),
                regex,
                value: None,
            });
        }
        let mut is_current = true;
        for regex in in_use {
            let before = self.group.regexes.get(&regex);
            if let Some(before) = before {
                if before.version == cluster.version() {
                    continue;
                }
                // One from the future is from before the time of day was set back.
                let since_ms = now_ms.saturating_sub(before.timestamp_ms);
                if (0..SHORTEST_REGEX_REFRESH_MS).contains(&since_ms) {
                    is_current = false;
                    continue;
                }
            }
            // It was right when its member came; if there are now more topics than it can be
            // matched with, its members keep those they have.
            let Ok(resolved) = subscriptions::resolve(&regex, cluster, now_ms) else {
                continue;
            };
            self.push(ConsumerRecord::Regex {
                group: self.id.clone(),
                regex,
                value: Some(resolved),
            });
        }
        is_current
    }

    /// Computes the target assignment if it is not the group epoch's.
    pub(super) fn update_target(&mut self, config: &GroupConfig, cluster: &dyn ClusterView) {
        if self.group.epoch.epoch <= self.group.target_epoch {
            return;
        }
        let targets = {
            let group = &*self.group;
            let members: Vec<Subscriber<'_>> = group
                .members
                .iter()
                .map(|(id, member)| Subscriber {
                    id,
                    instance_id: member.subscription.instance_id.as_ref(),
                    rack_id: member.subscription.rack_id.as_ref(),
                    topics: group.topics_of(&member.subscription, cluster),
                    before: group.targets.get(id),
                })
                .collect();
            let mut topics = BTreeMap::new();
            for member in group.members.values() {
                for name in group.subscribed_names(&member.subscription) {
                    if let Some(topic) = cluster.topic(name) {
                        topics.insert(topic.id, topic.partitions);
                    }
                }
            }
            group.assignor(config).assign(&Subscribers {
                members,
                topics,
                racks: &|topic, partition| cluster.racks(topic, partition),
            })
        };
        for (member, target) in targets {
            if self.group.targets.get(&member) != Some(&target) {
                self.set_target(&member, Some(target));
            }
        }
        let epoch = self.group.epoch.epoch;
        self.set_target_epoch(Some(epoch));
    }

    /// Takes the member one step towards its target; where it stands then.
    pub(super) fn reconcile(
        &mut self,
        member_id: &StrBytes,
        owned: Option<&Partitions>,
    ) -> Current {
        let group = &*self.group;
        let Some(member) = group.members.get(member_id) else {
            return Current::default();
        };
        let none = Partitions::default();
        let next = next_step(
            &member.current,
            &Goal {
                epoch: group.target_epoch,
                target: group.targets.get(member_id).unwrap_or(&none),
                owned,
                is_free: &|topic, partition| group.is_free(topic, partition),
            },
        );
        if next != member.current {
            // Nothing else of this change rests on it: the copy can be saved.
            self.records
                .push(records::to_record(&ConsumerRecord::Current {
                    group: self.id.clone(),
                    member: member_id.clone(),
                    value: Some(next.clone()),
                }));
        }
        next
    }
}

impl ConsumerGroup {
    /// The records that delete everything about the group.
    pub(in crate::groups) fn tombstones(&self, id: &StrBytes) -> Vec<CoordinatorRecord> {
        let mut change = Change::of(id, self);
        change.delete();
        change.records
    }

    /// The assignor that most of the members want who say so, else the broker's first.
    pub(super) fn assignor(&self, config: &GroupConfig) -> Assignor {
        let mut votes: BTreeMap<Assignor, usize> = BTreeMap::new();
        for member in self.members.values() {
            let wanted = member.subscription.server_assignor.as_ref();
            if let Some(assignor) = wanted.and_then(|name| config.consumer.assignor(name)) {
                *votes.entry(assignor).or_default() += 1;
            }
        }
        votes
            .into_iter()
            .rev()
            .max_by_key(|(_, votes)| *votes)
            .map_or_else(
                || config.consumer.default_assignor(),
                |(assignor, _)| assignor,
            )
    }

    /// Whether a member waits for a partition that another has not given up.
    pub(super) fn waits_for_others(&self, member_id: &StrBytes, member: &Member) -> bool {
        member.current.state == MemberState::UnreleasedPartitions
            && self.targets.get(member_id).is_some_and(|target| {
                target.iter().any(|(topic, partition)| {
                    !member.current.assigned.contains(topic, partition)
                        && !self.is_free(topic, partition)
                })
            })
    }
}

/// Epochs are positive.
pub(super) fn next_epoch(epoch: i32) -> i32 {
    epoch.saturating_add(1).max(1)
}
