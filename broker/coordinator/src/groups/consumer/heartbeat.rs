//! ConsumerGroupHeartbeat: a member joins, tells what it reads and has given up, and learns
//! what it is to read.

use std::collections::BTreeSet;

use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::TopicId,
    message,
    messages::{
        ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse,
        consumer_group_heartbeat_request::TopicPartitions as OwnedPartitions,
        consumer_group_heartbeat_response::{Assignment, TopicPartitions},
    },
};

use super::{
    Assignor, ConsumerGroup, ConsumerTimer, Current, Member, MemberState, Partitions, Subscription,
    change::Change, member::LEFT_FOR_A_WHILE, subscriptions,
};
use crate::groups::{
    ClusterView, GroupShard,
    api::{Completion, Effects, Refused, RequestContext},
    copied,
    timers::Task,
};
use crate::time::Now;
use crate::{CoordinatorRecord, records::MAX_STRING_BYTES};

/// From this version on, members make their ids themselves (KIP-1082).
const FIRST_VERSION_WITH_OWN_MEMBER_ID: i16 = 1;

/// The epochs that mean something else than where a member stands.
const JOINS: i32 = 0;
const LEAVES: i32 = -1;

impl GroupShard {
    pub(in crate::groups) fn consumer_heartbeat(
        &mut self,
        context: &RequestContext,
        request: &ConsumerGroupHeartbeatRequest,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) -> ConsumerGroupHeartbeatResponse {
        let answer =
            self.validate_heartbeat(context, request)
                .and_then(|()| match request.member_epoch {
                    LEAVES | LEFT_FOR_A_WHILE => {
                        self.leave_consumer_group(request, cluster, now, effects)
                    }
                    _ => self.join_or_beat(context, request, cluster, now, effects),
                });
        answer.unwrap_or_else(|refused| {
            message!(ConsumerGroupHeartbeatResponse {
                error_code: refused.error.code(),
                error_message: Some(refused.message.into())
            })
        })
    }

    fn validate_heartbeat(
        &self,
        context: &RequestContext,
        request: &ConsumerGroupHeartbeatRequest,
    ) -> Result<(), Refused> {
        let invalid = |message: &str| Err(Refused::new(ErrorCode::InvalidRequest, message));
        let is_blank = |text: &StrBytes| text.trim().is_empty();
        if is_blank(&request.group_id) {
            return invalid("GroupId can't be empty.");
        }
        if request.instance_id.as_ref().is_some_and(is_blank) {
            return invalid("InstanceId can't be empty.");
        }
        if request.rack_id.as_ref().is_some_and(is_blank) {
            return invalid("RackId can't be empty.");
        }
        let epoch = request.member_epoch;
        if (context.api_version >= FIRST_VERSION_WITH_OWN_MEMBER_ID || epoch != JOINS)
            && is_blank(&request.member_id)
        {
            return invalid("MemberId can't be empty.");
        }
        match epoch {
            JOINS if request.rebalance_timeout_ms == -1 => {
                return invalid("RebalanceTimeoutMs must be provided in first request.");
            }
            JOINS
                if request
                    .topic_partitions
                    .as_ref()
                    .is_none_or(|owned| !owned.is_empty()) =>
            {
                return invalid("TopicPartitions must be empty when (re-)joining.");
            }
            JOINS
                if request.subscribed_topic_names.is_none()
                    && request.subscribed_topic_regex.is_none() =>
            {
                return invalid(
                    "Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when \
                     (re-)joining.",
                );
            }
            LEFT_FOR_A_WHILE if request.instance_id.is_none() => {
                return invalid("InstanceId can't be null.");
            }
            ..LEFT_FOR_A_WHILE => return invalid("MemberEpoch is invalid."),
            _ => {}
        }
        let texts = [Some(&request.group_id), Some(&request.member_id)]
            .into_iter()
            .chain([
                request.instance_id.as_ref(),
                request.rack_id.as_ref(),
                request.subscribed_topic_regex.as_ref(),
            ])
            .flatten()
            .chain(request.subscribed_topic_names.iter().flatten());
        if texts.into_iter().any(|text| text.len() > MAX_STRING_BYTES) {
            return invalid("A text is longer than a record can hold.");
        }
        match &request.server_assignor {
            Some(name) if self.config.consumer.assignor(name).is_none() => {
                let supported: Vec<&str> = self
                    .config
                    .consumer
                    .assignors
                    .iter()
                    .map(|assignor| Assignor::name(*assignor))
                    .collect();
                Err(Refused::new(
                    ErrorCode::UnsupportedAssignor,
                    format!(
                        "ServerAssignor {} is not supported. Supported assignors: {}.",
                        name.as_str(),
                        supported.join(", ")
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    fn join_or_beat(
        &mut self,
        context: &RequestContext,
        request: &ConsumerGroupHeartbeatRequest,
        cluster: &dyn ClusterView,
        now: Now,
        effects: &mut Effects,
    ) -> Result<ConsumerGroupHeartbeatResponse, Refused> {
        let joins = request.member_epoch == JOINS;
        let member_id = if request.member_id.is_empty() {
            TopicId::from_bytes((self.uuids)()).to_string().into()
        } else {
            copied(&request.member_id)
        };
        if let Some(regex) = request.subscribed_topic_regex.as_ref()
            && !regex.is_empty()
        {
            subscriptions::check(regex, cluster)?;
        }
        let group_id = copied(&request.group_id);
        let (mut change, converts) = self.consumer_change(&group_id, joins, cluster)?;
        if change.group.members.len() >= self.config.consumer.max_size
            && !change.group.members.contains_key(&member_id)
        {
            return Err(Refused::new(
                ErrorCode::GroupMaxSizeReached,
                format!(
                    "The consumer group has reached its maximum capacity of {} members.",
                    self.config.consumer.max_size
                ),
            ));
        }
        let owned = request.topic_partitions.as_deref().map(owned_partitions);
        let is_new = identify(&mut change, request, &member_id, owned.as_ref())?;
        let before = change
            .group
            .members
            .get(&member_id)
            .cloned()
            .unwrap_or_default();
        let subscription = told(&before.subscription, context, request);
        let reads_else = subscription.topic_names != before.subscription.topic_names
            || subscription.topic_regex != before.subscription.topic_regex;
        if is_new || subscription != before.subscription {
            change.set_subscription(&member_id, Some(subscription.clone()));
        }
        change.check_topics(is_new || reads_else || converts, cluster, now.wall_ms);
        change.update_target(&self.config, cluster);
        let current = change.reconcile(&member_id, owned.as_ref());
        let overrides = cluster.group_overrides(&group_id);
        let session_timeout_ms = self.config.consumer.session_timeout_ms(&overrides);
        let is_full = joins
            || (request.rebalance_timeout_ms != -1
                && (request.subscribed_topic_names.is_some()
                    || request.subscribed_topic_regex.is_some())
                && request.topic_partitions.is_some());
        let response = message!(ConsumerGroupHeartbeatResponse {
            member_id: Some(member_id.clone()),
            member_epoch: current.epoch,
            heartbeat_interval_ms: self.config.consumer.heartbeat_interval_ms(&overrides),
            assignment: (is_full || current.assigned != before.current.assigned)
                .then(|| assignment(&current.assigned))
        });
        let done = Done::of(change);
        if converts {
            self.convert_members(&group_id, now, effects);
        }
        self.arm(
            &group_id,
            &member_id,
            ConsumerTimer::Session,
            session_timeout_ms,
            now,
        );
        self.arm_rebalance(&group_id, &member_id, &before, &current, &subscription, now);
        self.hand_over(done, effects);
        Ok(response)
    }

    /// Hands a change over to be written. One that takes no records is done.
    pub(super) fn hand_over(&mut self, done: Done, effects: &mut Effects) {
        if done.records.is_empty() {
            if let Some(group) = self.consumers.get_mut(&done.group) {
                group.checked_version = done.checked_version;
            }
            return;
        }
        effects.records.extend(done.records);
        effects.completions.push(Completion::TopicsChecked {
            group: done.group,
            version: done.checked_version,
        });
    }

    pub(super) fn arm(
        &mut self,
        group: &StrBytes,
        member: &StrBytes,
        timer: ConsumerTimer,
        timeout_ms: i32,
        now: Now,
    ) {
        self.timers.schedule(
            timer.key(group, member),
            now.after(timeout_ms),
            Task::FenceMember { epoch: None },
        );
    }

    /// A member that is to give partitions up has its rebalance time-out for that; one that
    /// speaks the classic protocol has other limits.
    fn arm_rebalance(
        &mut self,
        group: &StrBytes,
        member: &StrBytes,
        before: &Member,
        current: &Current,
        subscription: &Subscription,
        now: Now,
    ) {
        if *current == before.current {
            return;
        }
        let key = ConsumerTimer::Rebalance.key(group, member);
        if current.state == MemberState::UnrevokedPartitions {
            let deadline = now.after(subscription.rebalance_timeout_ms);
            let epoch = Some(current.epoch);
            self.timers
                .schedule(key, deadline, Task::FenceMember { epoch });
        } else {
            self.timers.cancel(&key);
        }
    }
}

/// A change that is complete.
pub(super) struct Done {
    group: StrBytes,
    records: Vec<CoordinatorRecord>,
    checked_version: Option<i64>,
}

impl Done {
    pub(super) fn of(change: Change<'_>) -> Self {
        Self {
            group: change.id,
            records: change.records,
            checked_version: change.checked_version,
        }
    }
}

/// Finds out whether the request comes from the member that it names, or from a new one.
/// A static member that comes back takes the place that it left, under its new id.
fn identify(
    change: &mut Change<'_>,
    request: &ConsumerGroupHeartbeatRequest,
    member_id: &StrBytes,
    owned: Option<&Partitions>,
) -> Result<bool, Refused> {
    let joins = request.member_epoch == JOINS;
    let Some(instance_id) = &request.instance_id else {
        return match change.group.members.get(member_id) {
            Some(member) => {
                validate_epoch(member, request.member_epoch, owned)?;
                Ok(false)
            }
            None if joins => Ok(true),
            None => Err(unknown_member(&change.id, member_id)),
        };
    };
    let holder = change
        .group
        .static_member(instance_id)
        .map(|(id, member)| (id.clone(), member.clone()));
    match holder {
        None if joins => Ok(!change.group.members.contains_key(member_id)),
        None => Err(Refused::new(
            ErrorCode::UnknownMemberId,
            format!("Instance id {} is unknown.", instance_id.as_str()),
        )),
        Some((holder, member)) if holder == *member_id => {
            if joins && member.current.epoch == LEFT_FOR_A_WHILE {
                replace_static_member(change, &holder, &member, member_id);
            } else {
                validate_epoch(&member, request.member_epoch, owned)?;
            }
            Ok(false)
        }
        Some((holder, member)) if joins => {
            if member.current.epoch != LEFT_FOR_A_WHILE && !member.is_classic() {
                return Err(Refused::new(
                    ErrorCode::UnreleasedInstanceId,
                    format!(
                        "Static member {} with instance id {} cannot join the group because the \
                         instance id is owned by {} member.",
                        member_id.as_str(),
                        instance_id.as_str(),
                        holder.as_str()
                    ),
                ));
            }
            replace_static_member(change, &holder, &member, member_id);
            Ok(false)
        }
        Some((holder, _)) => Err(fenced_instance(member_id, instance_id, &holder)),
    }
}

/// Everything of the member that was there goes to the id of the one that takes its place,
/// which begins at epoch 0.
pub(super) fn replace_static_member(
    change: &mut Change<'_>,
    old: &StrBytes,
    member: &Member,
    new: &StrBytes,
) {
    let target = change.group.target(old);
    change.remove_member(old);
    change.set_subscription(new, Some(member.subscription.clone()));
    change.set_target(new, Some(target));
    change.set_current(
        new,
        Some(Current {
            epoch: 0,
            previous_epoch: 0,
            ..member.current.clone()
        }),
    );
}

/// A member that names the epoch before has not had the answer with the newer one, if it
/// has nothing that it was not given. One that joins again may always.
fn validate_epoch(member: &Member, epoch: i32, owned: Option<&Partitions>) -> Result<(), Refused> {
    let current = &member.current;
    let missed_the_answer = || {
        epoch == current.previous_epoch
            && owned.is_some_and(|owned| owned.iter().all(|(t, p)| current.assigned.contains(t, p)))
    };
    if epoch == JOINS || epoch == current.epoch {
        return Ok(());
    }
    let relation = if epoch > current.epoch {
        "greater"
    } else if missed_the_answer() {
        return Ok(());
    } else {
        "smaller"
    };
    Err(Refused::new(
        ErrorCode::FencedMemberEpoch,
        format!(
            "The consumer group member has a {relation} member epoch ({epoch}) than the one known \
             by the group coordinator ({}). The member must abandon all its partitions and rejoin.",
            current.epoch
        ),
    ))
}

/// What the member has said of itself by now: what it leaves out stays.
fn told(
    before: &Subscription,
    context: &RequestContext,
    request: &ConsumerGroupHeartbeatRequest,
) -> Subscription {
    let or_before = |said: &Option<StrBytes>, before: &Option<StrBytes>| match said {
        Some(said) => Some(copied(said)),
        None => before.clone(),
    };
    Subscription {
        instance_id: or_before(&request.instance_id, &before.instance_id),
        rack_id: or_before(&request.rack_id, &before.rack_id),
        client_id: shortened(&context.client_id),
        client_host: shortened(&context.client_host),
        topic_names: match &request.subscribed_topic_names {
            Some(names) => names.iter().map(copied).collect::<BTreeSet<_>>(),
            None => before.topic_names.clone(),
        },
        topic_regex: or_before(&request.subscribed_topic_regex, &before.topic_regex)
            .filter(|regex| !regex.is_empty()),
        rebalance_timeout_ms: match request.rebalance_timeout_ms {
            -1 => before.rebalance_timeout_ms,
            said => said,
        },
        server_assignor: or_before(&request.server_assignor, &before.server_assignor),
        classic: None,
    }
}

/// The text, or as much of it as a record holds.
pub(super) fn shortened(text: &StrBytes) -> StrBytes {
    let text = text.as_str();
    text[..text.floor_char_boundary(MAX_STRING_BYTES)].into()
}

fn owned_partitions(owned: &[OwnedPartitions]) -> Partitions {
    owned
        .iter()
        .flat_map(|topic| {
            let id = TopicId::from(topic.topic_id);
            topic
                .partitions
                .iter()
                .map(move |&partition| (id, partition))
        })
        .collect()
}

fn assignment(assigned: &Partitions) -> Assignment {
    let topics = assigned.topics().map(|(topic, partitions)| {
        message!(TopicPartitions {
            topic_id: topic.into(),
            partitions: partitions.iter().copied().collect()
        })
    });
    message!(Assignment {
        topic_partitions: topics.collect()
    })
}

pub(super) fn unknown_member(group: &StrBytes, member: &StrBytes) -> Refused {
    Refused::new(
        ErrorCode::UnknownMemberId,
        format!(
            "Member {} is not a member of group {}.",
            member.as_str(),
            group.as_str()
        ),
    )
}

pub(super) fn fenced_instance(
    member: &StrBytes,
    instance_id: &StrBytes,
    holder: &StrBytes,
) -> Refused {
    Refused::new(
        ErrorCode::FencedInstanceId,
        format!(
            "Static member {} with instance id {} was fenced by member {}.",
            member.as_str(),
            instance_id.as_str(),
            holder.as_str()
        ),
    )
}

impl ConsumerGroup {
    /// The epoch is right for this version of the topics.
    pub(in crate::groups) fn topics_checked(&mut self, version: Option<i64>) {
        self.checked_version = version;
    }
}
