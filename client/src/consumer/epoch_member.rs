//! A group's member by the consumer protocol (KIP-848): one request, the heartbeat, and a
//! coordinator that assigns.
//!
//! An answer may carry the partitions that the member shall have. It gives up what is not
//! among them, takes what is new, and says so with the next heartbeat; only then does the
//! coordinator give to others what was given up.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{TopicId, TopicPartition};
use yuxi_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use yuxi_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::group::{Command, GroupEvent, Offsets};
use super::group_api;
use super::group_member::{GroupMember, Protocol};
use super::subscription::Subscription;
use crate::backoff::Backoff;
use crate::cluster::wire_ms;
use crate::connection::Connection;
use crate::error::{Error, Result, check};
use crate::metadata::indexes_by_topic;

const JOINING: i32 = 0;
const LEAVING: i32 = -1;
/// A static member that will be back.
const LEAVING_FOR_A_WHILE: i32 = -2;
/// The oldest version that can say a regex (KIP-848, as completed in Kafka 4.1).
const HEARTBEAT_WITH_REGEX: i16 = 1;
/// How often a commit is made again under a newer epoch.
const COMMIT_ATTEMPTS: u32 = 5;

/// The partitions that the coordinator wants a member to have, by topic id.
type Target = BTreeMap<TopicId, Vec<i32>>;

/// The task's state.
pub(super) struct EpochMember {
    /// The generation of its identity is the member's epoch.
    member: GroupMember,
    /// What is to be reconciled still.
    target: Option<Target>,
    /// What the coordinator has not been told, or may not have heard.
    unsaid: Unsaid,
    interval: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Unsaid {
    subscription: bool,
    owned: bool,
}

/// Whether the membership goes on.
enum Next {
    Stay,
    Left,
}

impl From<ControlFlow<()>> for Next {
    fn from(flow: ControlFlow<()>) -> Self {
        match flow {
            ControlFlow::Continue(()) => Self::Stay,
            ControlFlow::Break(()) => Self::Left,
        }
    }
}

impl Protocol for EpochMember {
    fn member(&mut self) -> &mut GroupMember {
        &mut self.member
    }

    fn heartbeat_interval(&self) -> Duration {
        self.interval
    }

    /// One heartbeat, with whatever the coordinator does not know yet.
    async fn heartbeat(&mut self) -> Result<()> {
        let request = self.request();
        let joining = self.member.identity.generation == JOINING;
        // Until it is answered nobody knows whether it was heard.
        self.unsaid = Unsaid {
            subscription: true,
            owned: true,
        };
        let group = self.member.identity.group.clone();
        let asked = self
            .member
            .coordinator
            .call(|to| heartbeat(to, request, &group));
        let answer = asked.await?;
        self.unsaid = Unsaid::default();
        if let Some(member) = answer.member_id.as_ref().filter(|id| !id.is_empty()) {
            self.member.identity.member = member.to_string();
        }
        self.interval = Duration::from_millis(answer.heartbeat_interval_ms.max(1) as u64);
        if joining || self.member.identity.generation != answer.member_epoch {
            self.member.identity.generation = answer.member_epoch;
            tracing::debug!(
                group,
                member = self.member.identity.member,
                epoch = answer.member_epoch,
                "member of the group"
            );
            self.member
                .tell(GroupEvent::Joined(self.member.identity.clone()))
                .await?;
        }
        if let Some(assignment) = answer.assignment {
            let topics = assignment.topic_partitions.into_iter();
            self.target = Some(
                topics
                    .map(|topic| (topic.topic_id.into(), topic.partitions))
                    .collect(),
            );
        }
        Ok(())
    }

    /// Commits; an epoch that has moved on meanwhile is learnt by a heartbeat.
    async fn commit(&mut self, offsets: &Offsets) -> Result<()> {
        let mut attempt = 1;
        loop {
            let member = &mut self.member;
            let committed = group_api::commit(&mut member.coordinator, &member.identity, offsets);
            match committed.await {
                Err(error)
                    if error.code() == Some(ErrorCode::StaleMemberEpoch)
                        && attempt < COMMIT_ATTEMPTS =>
                {
                    attempt += 1;
                    self.heartbeat().await?;
                }
                done => return done,
            }
        }
    }

    async fn leave(&mut self) {
        let GroupMember {
            coordinator,
            identity,
            ..
        } = &mut self.member;
        if identity.generation <= JOINING {
            return;
        }
        let mut request = ConsumerGroupHeartbeatRequest::default();
        request.group_id = identity.group.as_str().into();
        request.member_id = identity.member.as_str().into();
        request.instance_id = identity.instance.as_deref().map(Into::into);
        request.member_epoch = match identity.instance {
            Some(_) => LEAVING_FOR_A_WHILE,
            None => LEAVING,
        };
        let group = &identity.group;
        let left = coordinator.call(|to| heartbeat(to, request, group));
        if let Err(error) = left.await {
            tracing::debug!(group, %error, "the group was not told");
        }
    }

    fn is_expulsion(code: ErrorCode) -> bool {
        matches!(
            code,
            ErrorCode::UnknownMemberId | ErrorCode::FencedMemberEpoch
        )
    }
}

impl EpochMember {
    pub(super) fn new(mut member: GroupMember) -> Self {
        member.identity.member = format!("{:032x}", rand::random::<u128>());
        member.identity.generation = JOINING;
        Self {
            interval: member.cluster.config().heartbeat_interval(),
            member,
            target: None,
            unsaid: Unsaid::default(),
        }
    }

    /// Until the consumer leaves or the membership fails for good.
    pub(super) async fn run(mut self) {
        let config = self.member.cluster.config().clone();
        let mut retry = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        let mut pause = Duration::ZERO;
        loop {
            let next = match self.wait(pause).await {
                Next::Left => return,
                Next::Stay => self.beat_and_reconcile().await,
            };
            pause = match next {
                Ok(Next::Left) => return,
                // What changed is told at once: others may wait for it.
                Ok(Next::Stay) => {
                    retry.reset();
                    if self.unsaid.owned || self.member.identity.generation == JOINING {
                        Duration::ZERO
                    } else {
                        self.interval
                    }
                }
                Err(error) => match self.recover(error).await {
                    Ok(Next::Left) => return,
                    Ok(Next::Stay) => retry.next().min(self.interval),
                    Err(error) => {
                        let _ = self.member.tell(GroupEvent::Failed(error)).await;
                        return;
                    }
                },
            };
        }
    }

    /// Serves the consumer until it is time for the next heartbeat.
    async fn wait(&mut self, pause: Duration) -> Next {
        let until = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Next::Stay,
                command = self.member.commands.recv() => match command {
                    Some(Command::Commit { offsets, done }) => {
                        let result = self.commit(&offsets).await;
                        let _ = done.send(result);
                    }
                    Some(Command::Revoked) => {}
                    Some(Command::Leave { done }) => {
                        self.leave().await;
                        let _ = done.send(());
                        return Next::Left;
                    }
                    None => {
                        self.leave().await;
                        return Next::Left;
                    }
                },
            }
        }
    }

    async fn beat_and_reconcile(&mut self) -> Result<Next> {
        if self.member.is_silent() {
            self.leave().await;
            return self.join_as_a_new_one().await;
        }
        self.heartbeat().await?;
        self.reconcile().await
    }

    fn request(&self) -> ConsumerGroupHeartbeatRequest {
        let config = self.member.cluster.config();
        let joining = self.member.identity.generation == JOINING;
        let mut request = ConsumerGroupHeartbeatRequest::default();
        request.group_id = self.member.identity.group.as_str().into();
        request.member_id = self.member.identity.member.as_str().into();
        request.member_epoch = self.member.identity.generation;
        request.instance_id = self.member.identity.instance.as_deref().map(Into::into);
        if joining || self.unsaid.subscription {
            request.rebalance_timeout_ms = wire_ms(config.max_poll_interval);
            match &self.member.subscription {
                Subscription::Topics(topics) => {
                    let topics = topics.iter().map(|topic| (&**topic).into());
                    request.subscribed_topic_names = Some(topics.collect());
                }
                Subscription::Regex(regex) => {
                    request.subscribed_topic_regex = Some((&**regex).into());
                }
            }
            request.server_assignor = config.remote_assignor.as_deref().map(Into::into);
        }
        if joining {
            request.topic_partitions = Some(Vec::new());
        } else if self.unsaid.owned {
            request.topic_partitions = Some(self.owned_by_id());
        }
        request
    }

    fn owned_by_id(&self) -> Vec<TopicPartitions> {
        let owned: Vec<TopicPartition> = self.member.owned.iter().cloned().collect();
        let metadata = self.member.cluster.metadata();
        let topics = indexes_by_topic(&owned).into_iter();
        topics
            .filter_map(|(name, partitions)| {
                let mut topic = TopicPartitions::default();
                topic.topic_id = metadata.topics.get(name)?.id.into();
                topic.partitions = partitions;
                Some(topic)
            })
            .collect()
    }

    /// Brings what the consumer reads in line with what the coordinator wants.
    async fn reconcile(&mut self) -> Result<Next> {
        let Some(target) = self.target.take() else {
            return Ok(Next::Stay);
        };
        let (wanted, unknown) = self.named(&target).await?;
        let given_up: BTreeSet<_> = self.member.owned.difference(&wanted).cloned().collect();
        if !given_up.is_empty() {
            if self.revoke(given_up.clone(), false).await?.is_break() {
                return Ok(Next::Left);
            }
            self.member
                .owned
                .retain(|partition| !given_up.contains(partition));
        }
        let added = wanted.difference(&self.member.owned).cloned().collect();
        if let Err(error) = self.member.assign(added).await {
            // It is tried again with the next heartbeat.
            self.target = Some(target);
            return Err(error);
        }
        self.member.owned = wanted;
        self.unsaid.owned = true;
        if unknown {
            // A topic so new that this broker has not told of it.
            self.target.get_or_insert(target);
            self.unsaid.owned = false;
        }
        Ok(Next::Stay)
    }

    /// The partitions by name, and whether there are topics whose name is not known yet.
    async fn named(&self, target: &Target) -> Result<(BTreeSet<TopicPartition>, bool)> {
        let known = |id: &TopicId| {
            let metadata = self.member.cluster.metadata();
            let topic = metadata.topics.values().find(|topic| topic.id == *id);
            topic.map(|topic| topic.name.clone())
        };
        if target.keys().any(|id| known(id).is_none()) {
            self.member
                .subscription
                .refresh(&self.member.cluster)
                .await?;
        }
        let mut named = BTreeSet::new();
        let mut unknown = false;
        for (id, partitions) in target {
            match known(id) {
                Some(topic) => named.extend(
                    partitions
                        .iter()
                        .map(|index| TopicPartition::new(topic.clone(), *index)),
                ),
                None => unknown = true,
            }
        }
        Ok((named, unknown))
    }

    async fn join_as_a_new_one(&mut self) -> Result<Next> {
        self.member.identity.generation = JOINING;
        self.target = None;
        Ok(self.lose_all().await?.into())
    }

    /// Makes ready to go on after an error, or gives the error back as final.
    async fn recover(&mut self, error: Error) -> Result<Next> {
        tracing::debug!(group = self.member.identity.group, %error, "group membership interrupted");
        match error.code() {
            Some(code) if Self::is_expulsion(code) => self.join_as_a_new_one().await,
            // The epoch was raised and the answer lost: the next heartbeat tells it.
            Some(ErrorCode::StaleMemberEpoch) => Ok(Next::Stay),
            _ if error.is_retriable() => Ok(Next::Stay),
            _ => Err(error),
        }
    }
}

async fn heartbeat(
    coordinator: Connection,
    request: ConsumerGroupHeartbeatRequest,
    group: &str,
) -> Result<ConsumerGroupHeartbeatResponse> {
    if request.subscribed_topic_regex.is_some() {
        coordinator.needs::<ConsumerGroupHeartbeatRequest>(
            HEARTBEAT_WITH_REGEX,
            "for a subscription by regular expression",
        )?;
    }
    let answer = coordinator.call(|_| request).await?;
    check(answer.error_code, answer.error_message.as_deref(), || {
        format!("heartbeat in group {group}")
    })?;
    Ok(answer)
}
