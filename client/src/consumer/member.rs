//! A group's member by the classic protocol: join, sync, heartbeat, leave.
//!
//! The task never touches a partition that it has asked back until the consumer has
//! said [`Command::Revoked`]; with the eager assignors everything is asked back before
//! joining again, with cooperative-sticky only what moves (KIP-429).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::TopicPartition;
use yuxi_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use yuxi_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use yuxi_protocol::messages::{
    JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse,
};

use super::assignors::assign;
use super::group::{Command, GroupEvent, LastPoll, Offsets};
use super::group_api::{self, GroupMetadata};
use crate::backoff::Backoff;
use crate::cluster::{Cluster, Coordinator, wire_ms};
use crate::config::Assignor;
use crate::connection::Connection;
use crate::error::{Error, Result, check};

/// JoinGroup waits for the slowest member; the request gets so much more than that.
const JOIN_SLACK: Duration = Duration::from_secs(5);

/// The task's state.
pub(super) struct Member {
    cluster: Cluster,
    coordinator: Coordinator,
    identity: GroupMetadata,
    topics: BTreeSet<Arc<str>>,
    owned: BTreeSet<TopicPartition>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<GroupEvent>,
    last_poll: Arc<LastPoll>,
    /// As leader: the partition counts that the present assignment was made from.
    counts: BTreeMap<Arc<str>, i32>,
}

/// Why a stage of membership ended without an error.
enum Next {
    Join,
    Left,
}

impl Member {
    pub(super) fn new(
        cluster: Cluster,
        identity: GroupMetadata,
        topics: BTreeSet<Arc<str>>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<GroupEvent>,
        last_poll: Arc<LastPoll>,
    ) -> Self {
        Self {
            coordinator: Coordinator::of(&cluster, &identity.group),
            cluster,
            identity,
            topics,
            owned: BTreeSet::new(),
            commands,
            events,
            last_poll,
            counts: BTreeMap::new(),
        }
    }

    /// Until the consumer leaves or the membership fails for good.
    pub(super) async fn run(mut self) {
        let config = self.cluster.config().clone();
        let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        loop {
            match self.one_generation(&mut backoff).await {
                Ok(Next::Join) => {}
                Ok(Next::Left) => return,
                Err(error) => match self.recover(error).await {
                    Ok(()) => {
                        if self.pause(backoff.next()).await {
                            return;
                        }
                    }
                    Err(error) => {
                        let _ = self.events.send(GroupEvent::Failed(error)).await;
                        return;
                    }
                },
            }
        }
    }

    /// Joins, syncs, and stays until the group rebalances.
    async fn one_generation(&mut self, backoff: &mut Backoff) -> Result<Next> {
        let group = self.identity.group.clone();
        if !self.is_cooperative() && !self.owned.is_empty() {
            let all = std::mem::take(&mut self.owned);
            if let Some(next) = self.revoke(all, false).await? {
                return Ok(next);
            }
        }
        let request = self.join_request()?;
        let limit = self.cluster.config().max_poll_interval + JOIN_SLACK;
        let joined = self.unless_told(|connection| join(connection, request, limit));
        let joined = match joined.await {
            Ok(joined) => joined?,
            Err(done) => return Ok(self.say_goodbye(done).await),
        };
        if let Some(code) = crate::error::error_code(joined.error_code) {
            if code == ErrorCode::MemberIdRequired {
                self.identity.member = joined.member_id.to_string();
                return Ok(Next::Join);
            }
            return Err(Error::broker(format!("joining group {group}"), code, None));
        }
        self.identity.member = joined.member_id.to_string();
        self.identity.generation = joined.generation_id;
        tracing::debug!(
            group,
            member = self.identity.member,
            generation = joined.generation_id,
            "joined"
        );
        let assignments = if joined.leader == joined.member_id && !joined.skip_assignment {
            self.lead(&joined).await?
        } else {
            Vec::new()
        };
        let request = self.sync_request(&joined, assignments);
        let synced = self.unless_told(|connection| sync(connection, request, limit));
        let synced = match synced.await {
            Ok(synced) => synced?,
            Err(done) => return Ok(self.say_goodbye(done).await),
        };
        check(synced.error_code, None, || {
            format!("syncing with group {group}")
        })?;
        self.tell(GroupEvent::Joined(self.identity.clone())).await?;
        let assigned: BTreeSet<TopicPartition> =
            group_api::decode_assignment(&group, synced.assignment)?
                .into_iter()
                .collect();
        if let Some(next) = self.take(assigned).await? {
            return Ok(next);
        }
        backoff.reset();
        self.stay().await
    }

    /// Brings what the consumer reads in line with the assignment.
    async fn take(&mut self, assigned: BTreeSet<TopicPartition>) -> Result<Option<Next>> {
        let given_up: BTreeSet<_> = self.owned.difference(&assigned).cloned().collect();
        let added: Vec<_> = assigned.difference(&self.owned).cloned().collect();
        if !added.is_empty() {
            let group = &self.identity.group;
            let mut offsets =
                group_api::fetch_committed(&mut self.coordinator, group, Some(&added)).await?;
            let partitions = added
                .into_iter()
                .map(|partition| {
                    let offset = offsets.remove(&partition);
                    (partition, offset)
                })
                .collect();
            self.tell(GroupEvent::Assign { partitions }).await?;
        }
        self.owned = assigned;
        if !given_up.is_empty() {
            let next = self.revoke(given_up, false).await?;
            // What was given up is assigned in the rebalance that this join begins.
            return Ok(Some(next.unwrap_or(Next::Join)));
        }
        Ok(None)
    }

    /// Heartbeats and commits, until the group rebalances or the consumer leaves. While
    /// the coordinator is away or moves, the membership stands: the new one knows it.
    async fn stay(&mut self) -> Result<Next> {
        let config = self.cluster.config().clone();
        let mut tick = tokio::time::interval(config.heartbeat_interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut retry = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        let mut checked = Instant::now();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    if self.last_poll.elapsed() > config.max_poll_interval {
                        return self.stop_for_silence().await;
                    }
                    match self.heartbeat().await {
                        Ok(()) => retry.reset(),
                        Err(error) if error.code() == Some(ErrorCode::RebalanceInProgress) => {
                            return Ok(Next::Join);
                        }
                        Err(error) if error.is_retriable() => {
                            tracing::debug!(group = self.identity.group, %error, "heartbeat failed");
                            tick.reset_after(retry.next().min(config.heartbeat_interval));
                        }
                        Err(error) => return Err(error),
                    }
                    if checked.elapsed() > config.metadata_max_age && !self.counts.is_empty() {
                        checked = Instant::now();
                        if self.partition_counts(self.counts.keys().cloned()).await? != self.counts {
                            return Ok(Next::Join);
                        }
                    }
                }
                command = self.commands.recv() => match command {
                    Some(Command::Commit { offsets, done }) => {
                        let result = self.commit(&offsets).await;
                        let failed = result.as_ref().err().cloned();
                        match done {
                            Some(done) => { let _ = done.send(result); }
                            None => if let Some(error) = &failed {
                                tracing::warn!(%error, "automatic commit failed");
                            },
                        }
                        match failed.as_ref().and_then(Error::code) {
                            Some(ErrorCode::RebalanceInProgress) => return Ok(Next::Join),
                            Some(code) if is_expulsion(code) => {
                                return Err(Error::broker("committing", code, None));
                            }
                            Some(_) | None => {}
                        }
                    }
                    Some(Command::Revoked) => {}
                    Some(Command::Leave { done }) => return Ok(self.say_goodbye(Some(done)).await),
                    None => return Ok(self.say_goodbye(None).await),
                },
            }
        }
    }

    async fn heartbeat(&mut self) -> Result<()> {
        let identity = &self.identity;
        self.coordinator
            .call(|connection| group_api::heartbeat(connection, identity))
            .await
    }

    async fn commit(&mut self, offsets: &Offsets) -> Result<()> {
        group_api::commit(&mut self.coordinator, &self.identity, offsets).await
    }

    async fn leave(&mut self) {
        let identity = &self.identity;
        let left = self
            .coordinator
            .call(|connection| group_api::leave(connection, identity))
            .await;
        if let Err(error) = left {
            tracing::debug!(group = identity.group, %error, "the group was not told");
        }
    }

    /// The consumer has not polled for too long: others take its partitions over.
    /// It joins again when it polls again.
    async fn stop_for_silence(&mut self) -> Result<Next> {
        tracing::warn!(
            group = self.identity.group,
            "poll was not called for longer than max.poll.interval.ms; leaving the group"
        );
        self.leave().await;
        self.forget_membership();
        let lost = std::mem::take(&mut self.owned);
        if let Some(next) = self.revoke(lost, true).await? {
            return Ok(next);
        }
        Ok(Next::Join)
    }

    /// Asks the consumer for partitions and waits until it has given them up. Unless they
    /// are lost, its commits are still made meanwhile, and heartbeats keep its place.
    async fn revoke(
        &mut self,
        partitions: BTreeSet<TopicPartition>,
        lost: bool,
    ) -> Result<Option<Next>> {
        let config = self.cluster.config().clone();
        self.tell(GroupEvent::Revoke { partitions, lost }).await?;
        let mut tick = tokio::time::interval(config.heartbeat_interval);
        loop {
            tokio::select! {
                _ = tick.tick(), if !lost => {
                    match self.heartbeat().await {
                        Err(error) if error.code().is_some_and(is_expulsion) => return Err(error),
                        // It is known that the group rebalances; anything else shows in joining.
                        Ok(()) | Err(_) => {}
                    }
                }
                command = self.commands.recv() => match command {
                    Some(Command::Revoked) => return Ok(None),
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
                        if let Some(done) = done {
                            let _ = done.send(result);
                        }
                    }
                    Some(Command::Leave { done }) => {
                        if !lost {
                            return Ok(Some(self.say_goodbye(Some(done)).await));
                        }
                        let _ = done.send(());
                        return Ok(Some(Next::Left));
                    }
                    None => return Ok(Some(Next::Left)),
                },
            }
        }
    }

    /// Makes one attempt at a request that may take long, unless the consumer wants to
    /// leave. Commits are refused meanwhile: the offsets are of a generation that is over.
    async fn unless_told<T, F>(
        &mut self,
        request: impl FnOnce(Connection) -> F,
    ) -> std::result::Result<Result<T>, Option<oneshot::Sender<()>>>
    where
        F: Future<Output = Result<T>>,
    {
        unless_told(&mut self.commands, self.coordinator.call(request)).await
    }

    async fn say_goodbye(&mut self, done: Option<oneshot::Sender<()>>) -> Next {
        // A static member does not leave: it will be back (KIP-345).
        if self.identity.instance.is_none() && !self.identity.member.is_empty() {
            self.leave().await;
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
        Next::Left
    }

    /// Makes ready to join again after an error, or gives the error back as final.
    async fn recover(&mut self, error: Error) -> Result<()> {
        tracing::debug!(group = self.identity.group, %error, "group membership interrupted");
        let Some(code) = error.code() else {
            return if error.is_retriable() {
                Ok(())
            } else {
                Err(error)
            };
        };
        if is_expulsion(code) {
            if code == ErrorCode::UnknownMemberId {
                self.forget_membership();
            }
            self.identity.generation = -1;
            let lost = std::mem::take(&mut self.owned);
            if !lost.is_empty() {
                self.revoke(lost, true).await?;
            }
            return Ok(());
        }
        if error.is_retriable() || code == ErrorCode::RebalanceInProgress {
            Ok(())
        } else {
            Err(error)
        }
    }

    fn forget_membership(&mut self) {
        self.identity.member.clear();
        self.identity.generation = -1;
    }

    /// Waits; true if the consumer left meanwhile.
    async fn pause(&mut self, pause: Duration) -> bool {
        match unless_told(&mut self.commands, tokio::time::sleep(pause)).await {
            Ok(()) => false,
            Err(done) => {
                // The coordinator is away; the session will time out.
                if let Some(done) = done {
                    let _ = done.send(());
                }
                true
            }
        }
    }

    async fn tell(&self, event: GroupEvent) -> Result<()> {
        self.events.send(event).await.map_err(|_| Error::Closed)
    }

    fn is_cooperative(&self) -> bool {
        self.cluster
            .config()
            .assignors
            .contains(&Assignor::CooperativeSticky)
    }

    fn join_request(&self) -> Result<JoinGroupRequest> {
        let config = self.cluster.config();
        let owned: Vec<TopicPartition> = self.owned.iter().cloned().collect();
        let mut request = JoinGroupRequest::default();
        request.group_id = self.identity.group.as_str().into();
        request.session_timeout_ms = wire_ms(config.session_timeout);
        request.rebalance_timeout_ms = wire_ms(config.max_poll_interval);
        request.member_id = self.identity.member.as_str().into();
        request.group_instance_id = self.identity.instance.as_deref().map(Into::into);
        request.protocol_type = "consumer".into();
        for assignor in &config.assignors {
            let mut protocol = JoinGroupRequestProtocol::default();
            protocol.name = assignor.name().into();
            let topics = self.topics.iter().map(|topic| &**topic);
            protocol.metadata =
                group_api::encode_subscription(topics, &owned, self.identity.generation)?;
            request.protocols.push(protocol);
        }
        Ok(request)
    }

    /// As leader: assigns the partitions of every topic that any member wants.
    async fn lead(
        &mut self,
        joined: &JoinGroupResponse,
    ) -> Result<Vec<SyncGroupRequestAssignment>> {
        let chosen = joined.protocol_name.as_deref().unwrap_or_default();
        let assignor = self
            .cluster
            .config()
            .assignors
            .iter()
            .find(|a| a.name() == chosen)
            .copied();
        let assignor = assignor.ok_or_else(|| Error::Malformed {
            what: "JoinGroup answer",
            address: self.identity.group.clone(),
            detail: format!("the protocol '{chosen}', which was not offered"),
        })?;
        let members = joined
            .members
            .iter()
            .map(|member| {
                group_api::decode_member(
                    &member.member_id,
                    member.group_instance_id.as_deref(),
                    member.metadata.clone(),
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let topics: BTreeSet<Arc<str>> = members
            .iter()
            .flat_map(|member| member.topics.iter().cloned())
            .collect();
        self.counts = self.partition_counts(topics.into_iter()).await?;
        assign(assignor, &members, &self.counts)
            .into_iter()
            .map(|(member, partitions)| {
                let mut assignment = SyncGroupRequestAssignment::default();
                assignment.member_id = member.into();
                assignment.assignment = group_api::encode_assignment(&partitions)?;
                Ok(assignment)
            })
            .collect()
    }

    /// How many partitions each topic has now; 0 for those that do not exist, so that
    /// their creation is noticed.
    async fn partition_counts(
        &self,
        topics: impl Iterator<Item = Arc<str>>,
    ) -> Result<BTreeMap<Arc<str>, i32>> {
        let topics: Vec<Arc<str>> = topics.collect();
        let create = self.cluster.config().auto_create_topics;
        let metadata = self.cluster.refresh(&topics, create).await?;
        let count = |topic: &Arc<str>| {
            metadata
                .topic(topic)
                .map_or(0, |known| known.partitions.len() as i32)
        };
        Ok(topics
            .iter()
            .map(|topic| (topic.clone(), count(topic)))
            .collect())
    }

    fn sync_request(
        &self,
        joined: &JoinGroupResponse,
        assignments: Vec<SyncGroupRequestAssignment>,
    ) -> SyncGroupRequest {
        let mut request = SyncGroupRequest::default();
        request.group_id = self.identity.group.as_str().into();
        request.generation_id = self.identity.generation;
        request.member_id = self.identity.member.as_str().into();
        request.group_instance_id = self.identity.instance.as_deref().map(Into::into);
        request.protocol_type = joined
            .protocol_type
            .clone()
            .or_else(|| Some("consumer".into()));
        request.protocol_name.clone_from(&joined.protocol_name);
        request.assignments = assignments;
        request
    }
}

/// Does `work` to its end, unless the consumer wants to leave.
async fn unless_told<T>(
    commands: &mut mpsc::Receiver<Command>,
    work: impl Future<Output = T>,
) -> std::result::Result<T, Option<oneshot::Sender<()>>> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return Ok(result),
            command = commands.recv() => match command {
                Some(Command::Commit { done, .. }) => {
                    if let Some(done) = done {
                        let error =
                            Error::broker("committing", ErrorCode::RebalanceInProgress, None);
                        let _ = done.send(Err(error));
                    }
                }
                Some(Command::Revoked) => {}
                Some(Command::Leave { done }) => return Err(Some(done)),
                None => return Err(None),
            },
        }
    }
}

/// The group goes on without this member: what it held may be another's already.
fn is_expulsion(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration
    )
}

async fn join(
    coordinator: Connection,
    mut request: JoinGroupRequest,
    limit: Duration,
) -> Result<JoinGroupResponse> {
    let version = coordinator.version::<JoinGroupRequest>(i16::MAX)?;
    if version.value() < 5 {
        request.group_instance_id = None;
    }
    let reply = coordinator.start(&request, version, limit).await?;
    coordinator_moved(reply.answer().await?, |answer| answer.error_code)
}

async fn sync(
    coordinator: Connection,
    mut request: SyncGroupRequest,
    limit: Duration,
) -> Result<SyncGroupResponse> {
    let version = coordinator.version::<SyncGroupRequest>(i16::MAX)?;
    if version.value() < 3 {
        request.group_instance_id = None;
    }
    if version.value() < 5 {
        request.protocol_type = None;
        request.protocol_name = None;
    }
    let reply = coordinator.start(&request, version, limit).await?;
    coordinator_moved(reply.answer().await?, |answer| answer.error_code)
}

/// Makes the codes that tell of another coordinator an error, so that it is looked for.
fn coordinator_moved<T>(answer: T, code: impl Fn(&T) -> i16) -> Result<T> {
    match crate::error::error_code(code(&answer)) {
        Some(code @ (ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable)) => {
            Err(Error::broker("joining the group", code, None))
        }
        Some(_) | None => Ok(answer),
    }
}
