//! A group's member by the consumer protocol (KIP-848): one request, the heartbeat, and a
//! coordinator that assigns.
//!
//! An answer may carry the partitions that the member shall have. It gives up what is not
//! among them, takes what is new, and says so with the next heartbeat; only then does the
//! coordinator give to others what was given up. Always holds: `owned` is what the consumer
//! may be reading, and a partition that was asked back stays in it until the consumer has
//! said [`Command::Revoked`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{TopicId, TopicPartition};
use yuxi_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use yuxi_protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::group::{Command, GroupEvent, LastPoll, Offsets};
use super::group_api::{self, GroupMetadata};
use crate::backoff::Backoff;
use crate::cluster::{Cluster, Coordinator, wire_ms};
use crate::connection::Connection;
use crate::error::{Error, Result, check};
use crate::metadata::indexes_by_topic;

const JOINING: i32 = 0;
const LEAVING: i32 = -1;
/// A static member that will be back.
const LEAVING_FOR_A_WHILE: i32 = -2;
/// How often a commit is made again under a newer epoch.
const COMMIT_ATTEMPTS: u32 = 5;

/// The partitions that the coordinator wants a member to have, by topic id.
type Target = BTreeMap<TopicId, Vec<i32>>;

/// The task's state.
pub(super) struct EpochMember {
    cluster: Cluster,
    coordinator: Coordinator,
    /// Its generation is the member's epoch.
    identity: GroupMetadata,
    topics: BTreeSet<Arc<str>>,
    owned: BTreeSet<TopicPartition>,
    /// What is to be reconciled still.
    target: Option<Target>,
    /// What the coordinator has not been told, or may not have heard.
    unsaid: Unsaid,
    interval: Duration,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<GroupEvent>,
    last_poll: Arc<LastPoll>,
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

impl EpochMember {
    pub(super) fn new(
        cluster: Cluster,
        mut identity: GroupMetadata,
        topics: BTreeSet<Arc<str>>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<GroupEvent>,
        last_poll: Arc<LastPoll>,
    ) -> Self {
        identity.member = format!("{:032x}", rand::random::<u128>());
        identity.generation = JOINING;
        Self {
            coordinator: Coordinator::of(&cluster, &identity.group),
            interval: cluster.config().heartbeat_interval,
            cluster,
            identity,
            topics,
            owned: BTreeSet::new(),
            target: None,
            unsaid: Unsaid::default(),
            commands,
            events,
            last_poll,
        }
    }

    /// Until the consumer leaves or the membership fails for good.
    pub(super) async fn run(mut self) {
        let config = self.cluster.config().clone();
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
                    if self.unsaid.owned || self.identity.generation == JOINING {
                        Duration::ZERO
                    } else {
                        self.interval
                    }
                }
                Err(error) => match self.recover(error).await {
                    Ok(Next::Left) => return,
                    Ok(Next::Stay) => retry.next().min(self.interval),
                    Err(error) => {
                        let _ = self.events.send(GroupEvent::Failed(error)).await;
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
                command = self.commands.recv() => match command {
                    Some(Command::Commit { offsets, done }) => {
                        let result = self.commit(&offsets).await;
                        answer_commit(result, done);
                    }
                    Some(Command::Revoked) => {}
                    Some(Command::Leave { done }) => {
                        self.leave(false).await;
                        let _ = done.send(());
                        return Next::Left;
                    }
                    None => {
                        self.leave(false).await;
                        return Next::Left;
                    }
                },
            }
        }
    }

    async fn beat_and_reconcile(&mut self) -> Result<Next> {
        if self.last_poll.elapsed() > self.cluster.config().max_poll_interval {
            return self.stop_for_silence().await;
        }
        self.heartbeat().await?;
        self.reconcile().await
    }

    /// One heartbeat, with whatever the coordinator does not know yet.
    async fn heartbeat(&mut self) -> Result<()> {
        let request = self.request();
        let joining = self.identity.generation == JOINING;
        // Until it is answered nobody knows whether it was heard.
        self.unsaid = Unsaid {
            subscription: true,
            owned: true,
        };
        let group = self.identity.group.clone();
        let asked = self.coordinator.call(|to| heartbeat(to, request, &group));
        let answer = asked.await?;
        self.unsaid = Unsaid::default();
        if let Some(member) = answer.member_id.as_ref().filter(|id| !id.is_empty()) {
            self.identity.member = member.to_string();
        }
        self.interval = Duration::from_millis(answer.heartbeat_interval_ms.max(1) as u64);
        if joining || self.identity.generation != answer.member_epoch {
            self.identity.generation = answer.member_epoch;
            tracing::debug!(
                group,
                member = self.identity.member,
                epoch = answer.member_epoch,
                "member of the group"
            );
            self.tell(GroupEvent::Joined(self.identity.clone())).await?;
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

    fn request(&self) -> ConsumerGroupHeartbeatRequest {
        let config = self.cluster.config();
        let joining = self.identity.generation == JOINING;
        let mut request = ConsumerGroupHeartbeatRequest::default();
        request.group_id = self.identity.group.as_str().into();
        request.member_id = self.identity.member.as_str().into();
        request.member_epoch = self.identity.generation;
        request.instance_id = self.identity.instance.as_deref().map(Into::into);
        if joining || self.unsaid.subscription {
            request.rebalance_timeout_ms = wire_ms(config.max_poll_interval);
            let topics = self.topics.iter().map(|topic| (&**topic).into());
            request.subscribed_topic_names = Some(topics.collect());
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
        let owned: Vec<TopicPartition> = self.owned.iter().cloned().collect();
        let metadata = self.cluster.metadata();
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
        let given_up: BTreeSet<_> = self.owned.difference(&wanted).cloned().collect();
        if !given_up.is_empty() {
            if let Next::Left = self.revoke(given_up.clone(), false).await? {
                return Ok(Next::Left);
            }
            self.owned.retain(|partition| !given_up.contains(partition));
        }
        let added: Vec<_> = wanted.difference(&self.owned).cloned().collect();
        if !added.is_empty() {
            let group = &self.identity.group;
            let fetched = group_api::fetch_committed(&mut self.coordinator, group, Some(&added));
            let mut offsets = match fetched.await {
                Ok(offsets) => offsets,
                Err(error) => {
                    // It is tried again with the next heartbeat.
                    self.target = Some(target);
                    return Err(error);
                }
            };
            let partitions = added
                .into_iter()
                .map(|partition| {
                    let offset = offsets.remove(&partition);
                    (partition, offset)
                })
                .collect();
            self.tell(GroupEvent::Assign { partitions }).await?;
        }
        self.owned = wanted;
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
            let metadata = self.cluster.metadata();
            let topic = metadata.topics.values().find(|topic| topic.id == *id);
            topic.map(|topic| topic.name.clone())
        };
        if target.keys().any(|id| known(id).is_none()) {
            let topics: Vec<Arc<str>> = self.topics.iter().cloned().collect();
            self.cluster.refresh(&topics, false).await?;
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

    /// Asks the consumer for partitions and waits until it has given them up. Unless they
    /// are lost, its commits are still made meanwhile, and heartbeats keep its place.
    async fn revoke(&mut self, partitions: BTreeSet<TopicPartition>, lost: bool) -> Result<Next> {
        self.tell(GroupEvent::Revoke { partitions, lost }).await?;
        let mut tick = tokio::time::interval(self.interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first is due at once, and one has just been sent.
        tick.reset();
        loop {
            tokio::select! {
                _ = tick.tick(), if !lost => {
                    match self.heartbeat().await {
                        Err(error) if error.code().is_some_and(is_expulsion) => return Err(error),
                        // Anything else shows with the heartbeats after this.
                        Ok(()) | Err(_) => {}
                    }
                }
                command = self.commands.recv() => match command {
                    Some(Command::Revoked) => return Ok(Next::Stay),
                    Some(Command::Commit { offsets, done }) => {
                        let result = if lost {
                            Err(Error::broker(
                                "committing",
                                ErrorCode::UnknownMemberId,
                                Some("the member has left its group"),
                            ))
                        } else {
                            self.commit(&offsets).await
                        };
                        answer_commit(result, done);
                    }
                    Some(Command::Leave { done }) => {
                        self.leave(lost).await;
                        let _ = done.send(());
                        return Ok(Next::Left);
                    }
                    None => {
                        self.leave(lost).await;
                        return Ok(Next::Left);
                    }
                },
            }
        }
    }

    /// Commits; an epoch that has moved on meanwhile is learnt by a heartbeat.
    async fn commit(&mut self, offsets: &Offsets) -> Result<()> {
        let mut attempt = 1;
        loop {
            let committed = group_api::commit(&mut self.coordinator, &self.identity, offsets).await;
            match committed {
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

    /// The consumer has not polled for too long: others take its partitions over.
    /// It joins again when it polls again.
    async fn stop_for_silence(&mut self) -> Result<Next> {
        tracing::warn!(
            group = self.identity.group,
            "poll was not called for longer than max.poll.interval.ms; leaving the group"
        );
        self.leave(false).await;
        self.lose_all().await
    }

    /// Makes ready to go on after an error, or gives the error back as final.
    async fn recover(&mut self, error: Error) -> Result<Next> {
        tracing::debug!(group = self.identity.group, %error, "group membership interrupted");
        match error.code() {
            Some(code) if is_expulsion(code) => self.lose_all().await,
            // The epoch was raised and the answer lost: the next heartbeat tells it.
            Some(ErrorCode::StaleMemberEpoch) => Ok(Next::Stay),
            _ if error.is_retriable() => Ok(Next::Stay),
            _ => Err(error),
        }
    }

    /// Others may have everything by now. The member joins again as a new one.
    async fn lose_all(&mut self) -> Result<Next> {
        self.identity.generation = JOINING;
        self.target = None;
        let lost = std::mem::take(&mut self.owned);
        if lost.is_empty() {
            return Ok(Next::Stay);
        }
        self.revoke(lost, true).await
    }

    /// Tells the group, unless it has let go of this member already.
    async fn leave(&mut self, is_out: bool) {
        if is_out || self.identity.generation <= JOINING {
            return;
        }
        let mut request = ConsumerGroupHeartbeatRequest::default();
        request.group_id = self.identity.group.as_str().into();
        request.member_id = self.identity.member.as_str().into();
        request.instance_id = self.identity.instance.as_deref().map(Into::into);
        request.member_epoch = match self.identity.instance {
            Some(_) => LEAVING_FOR_A_WHILE,
            None => LEAVING,
        };
        let group = self.identity.group.clone();
        let left = self.coordinator.call(|to| heartbeat(to, request, &group));
        if let Err(error) = left.await {
            tracing::debug!(group, %error, "the group was not told");
        }
    }

    async fn tell(&self, event: GroupEvent) -> Result<()> {
        self.events.send(event).await.map_err(|_| Error::Closed)
    }
}

/// The group goes on without this member: what it held may be another's already.
fn is_expulsion(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::UnknownMemberId | ErrorCode::FencedMemberEpoch
    )
}

fn answer_commit(result: Result<()>, done: Option<oneshot::Sender<Result<()>>>) {
    match done {
        Some(done) => {
            let _ = done.send(result);
        }
        None => {
            if let Err(error) = result {
                tracing::warn!(%error, "automatic commit failed");
            }
        }
    }
}

async fn heartbeat(
    coordinator: Connection,
    request: ConsumerGroupHeartbeatRequest,
    group: &str,
) -> Result<ConsumerGroupHeartbeatResponse> {
    let answer = coordinator.call(|_| request).await?;
    check(answer.error_code, answer.error_message.as_deref(), || {
        format!("heartbeat in group {group}")
    })?;
    Ok(answer)
}
