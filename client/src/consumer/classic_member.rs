//! A group's member by the classic protocol: join, sync, heartbeat, leave.
//!
//! With the eager assignors everything is asked back before joining again, with
//! cooperative-sticky only what moves (KIP-429). A regex is matched before each joining.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
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
use super::group::{Command, GroupEvent, Offsets};
use super::group_api;
use super::group_member::{GroupMember, Protocol};
use crate::backoff::Backoff;
use crate::cluster::wire_ms;
use crate::config::Assignor;
use crate::connection::Connection;
use crate::error::{Error, Result, check};

/// JoinGroup waits for the slowest member; the request gets so much more than that.
const JOIN_SLACK: Duration = Duration::from_secs(5);

/// The task's state.
pub(super) struct ClassicMember {
    member: GroupMember,
    /// The topics of the subscription, as of the last time that it was looked at.
    topics: BTreeSet<Arc<str>>,
    /// As leader: the partition counts that the present assignment was made from.
    counts: BTreeMap<Arc<str>, i32>,
}

/// Why a stage of membership ended without an error.
enum Next {
    Join,
    Left,
}

impl From<ControlFlow<()>> for Next {
    fn from(flow: ControlFlow<()>) -> Self {
        match flow {
            ControlFlow::Continue(()) => Self::Join,
            ControlFlow::Break(()) => Self::Left,
        }
    }
}

impl Protocol for ClassicMember {
    fn member(&mut self) -> &mut GroupMember {
        &mut self.member
    }

    fn heartbeat_interval(&self) -> Duration {
        self.member.cluster.config().heartbeat_interval()
    }

    async fn heartbeat(&mut self) -> Result<()> {
        let identity = &self.member.identity;
        self.member
            .coordinator
            .call(|connection| group_api::heartbeat(connection, identity))
            .await
    }

    async fn commit(&mut self, offsets: &Offsets) -> Result<()> {
        let member = &mut self.member;
        group_api::commit(&mut member.coordinator, &member.identity, offsets).await
    }

    async fn leave(&mut self) {
        let identity = &self.member.identity;
        // A static member does not leave: it will be back (KIP-345).
        if identity.instance.is_some() || identity.member.is_empty() {
            return;
        }
        let left = self
            .member
            .coordinator
            .call(|connection| group_api::leave(connection, identity))
            .await;
        if let Err(error) = left {
            tracing::debug!(group = identity.group, %error, "the group was not told");
        }
    }

    fn is_expulsion(code: ErrorCode) -> bool {
        matches!(
            code,
            ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration
        )
    }
}

impl ClassicMember {
    pub(super) fn new(member: GroupMember) -> Self {
        Self {
            member,
            topics: BTreeSet::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Until the consumer leaves or the membership fails for good.
    pub(super) async fn run(mut self) {
        let config = self.member.cluster.config().clone();
        let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        loop {
            match self.one_generation(&mut backoff).await {
                Ok(Next::Join) => {}
                Ok(Next::Left) => return,
                Err(error) => match self.recover(error).await {
                    Ok(Next::Left) => return,
                    Ok(Next::Join) => {
                        if self.pause(backoff.next()).await {
                            return;
                        }
                    }
                    Err(error) => {
                        let _ = self.member.tell(GroupEvent::Failed(error)).await;
                        return;
                    }
                },
            }
        }
    }

    /// Joins, syncs, and stays until the group rebalances.
    async fn one_generation(&mut self, backoff: &mut Backoff) -> Result<Next> {
        let group = self.member.identity.group.clone();
        if !self.is_cooperative() && !self.member.owned.is_empty() {
            let all = std::mem::take(&mut self.member.owned);
            if self.revoke(all, false).await?.is_break() {
                return Ok(Next::Left);
            }
        }
        self.topics = self
            .member
            .subscription
            .topics(&self.member.cluster)
            .await?;
        let request = self.join_request()?;
        let limit = self.member.cluster.config().max_poll_interval + JOIN_SLACK;
        let joined = self.unless_told(|connection| join(connection, request, limit));
        let joined = match joined.await {
            Ok(joined) => joined?,
            Err(done) => return Ok(self.say_goodbye(done).await),
        };
        if let Some(code) = crate::error::error_code(joined.error_code) {
            if code == ErrorCode::MemberIdRequired {
                self.member.identity.member = joined.member_id.to_string();
                return Ok(Next::Join);
            }
            return Err(Error::broker(format!("joining group {group}"), code, None));
        }
        self.member.identity.member = joined.member_id.to_string();
        self.member.identity.generation = joined.generation_id;
        tracing::debug!(
            group,
            member = self.member.identity.member,
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
        self.member
            .tell(GroupEvent::Joined(self.member.identity.clone()))
            .await?;
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
        let given_up: BTreeSet<_> = self.member.owned.difference(&assigned).cloned().collect();
        let added = assigned.difference(&self.member.owned).cloned().collect();
        self.member.assign(added).await?;
        self.member.owned = assigned;
        if !given_up.is_empty() {
            // What was given up is assigned in the rebalance that this join begins.
            return Ok(Some(self.revoke(given_up, false).await?.into()));
        }
        Ok(None)
    }

    /// Heartbeats and commits, until the group rebalances or the consumer leaves. While
    /// the coordinator is away or moves, the membership stands: the new one knows it.
    async fn stay(&mut self) -> Result<Next> {
        let config = self.member.cluster.config().clone();
        let mut tick = tokio::time::interval(config.heartbeat_interval());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut retry = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        let mut checked = Instant::now();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    if self.member.is_silent() {
                        self.leave().await;
                        self.forget_membership();
                        return Ok(self.lose_all().await?.into());
                    }
                    match self.heartbeat().await {
                        Ok(()) => retry.reset(),
                        Err(error) if error.code() == Some(ErrorCode::RebalanceInProgress) => {
                            return Ok(Next::Join);
                        }
                        Err(error) if error.is_retriable() => {
                            tracing::debug!(group = self.member.identity.group, %error, "heartbeat failed");
                            tick.reset_after(retry.next().min(config.heartbeat_interval()));
                        }
                        Err(error) => return Err(error),
                    }
                    if checked.elapsed() > config.metadata_max_age {
                        checked = Instant::now();
                        match self.topics_have_changed().await {
                            Ok(true) => return Ok(Next::Join),
                            Err(error) if !error.is_retriable() => return Err(error),
                            Ok(false) | Err(_) => {}
                        }
                    }
                }
                command = self.member.commands.recv() => match command {
                    Some(Command::Commit { offsets, done }) => {
                        let result = self.commit(&offsets).await;
                        let failed = result.as_ref().err().cloned();
                        let _ = done.send(result);
                        match failed.as_ref().and_then(Error::code) {
                            Some(ErrorCode::RebalanceInProgress) => return Ok(Next::Join),
                            Some(code) if Self::is_expulsion(code) => {
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

    /// Whether the subscription has other topics now, or one that this member assigned as
    /// leader other partitions.
    async fn topics_have_changed(&self) -> Result<bool> {
        if self
            .member
            .subscription
            .topics(&self.member.cluster)
            .await?
            != self.topics
        {
            return Ok(true);
        }
        Ok(!self.counts.is_empty()
            && self.partition_counts(self.counts.keys().cloned()).await? != self.counts)
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
        let member = &mut self.member;
        unless_told(&mut member.commands, member.coordinator.call(request)).await
    }

    async fn say_goodbye(&mut self, done: Option<oneshot::Sender<()>>) -> Next {
        self.leave().await;
        if let Some(done) = done {
            let _ = done.send(());
        }
        Next::Left
    }

    /// Makes ready to join again after an error, or gives the error back as final.
    async fn recover(&mut self, error: Error) -> Result<Next> {
        tracing::debug!(group = self.member.identity.group, %error, "group membership interrupted");
        match error.code() {
            Some(code) if Self::is_expulsion(code) => {
                if code == ErrorCode::UnknownMemberId {
                    self.member.identity.member.clear();
                }
                self.member.identity.generation = -1;
                Ok(self.lose_all().await?.into())
            }
            Some(ErrorCode::RebalanceInProgress) => Ok(Next::Join),
            _ if error.is_retriable() => Ok(Next::Join),
            _ => Err(error),
        }
    }

    fn forget_membership(&mut self) {
        self.member.identity.member.clear();
        self.member.identity.generation = -1;
    }

    /// Waits; true if the consumer left meanwhile.
    async fn pause(&mut self, pause: Duration) -> bool {
        match unless_told(&mut self.member.commands, tokio::time::sleep(pause)).await {
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

    fn is_cooperative(&self) -> bool {
        self.member
            .cluster
            .config()
            .assignors()
            .contains(&Assignor::CooperativeSticky)
    }

    fn join_request(&self) -> Result<JoinGroupRequest> {
        let config = self.member.cluster.config();
        let owned: Vec<TopicPartition> = self.member.owned.iter().cloned().collect();
        let mut request = JoinGroupRequest::default();
        request.group_id = self.member.identity.group.as_str().into();
        request.session_timeout_ms = wire_ms(config.session_timeout());
        request.rebalance_timeout_ms = wire_ms(config.max_poll_interval);
        request.member_id = self.member.identity.member.as_str().into();
        request.group_instance_id = self.member.identity.instance.as_deref().map(Into::into);
        request.protocol_type = "consumer".into();
        for assignor in config.assignors() {
            let mut protocol = JoinGroupRequestProtocol::default();
            protocol.name = assignor.name().into();
            let topics = self.topics.iter().map(|topic| &**topic);
            protocol.metadata =
                group_api::encode_subscription(topics, &owned, self.member.identity.generation)?;
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
            .member
            .cluster
            .config()
            .assignors()
            .iter()
            .find(|a| a.name() == chosen)
            .copied();
        let assignor = assignor.ok_or_else(|| Error::Malformed {
            what: "JoinGroup answer",
            address: self.member.identity.group.clone(),
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
        let create = self.member.cluster.config().auto_create_topics;
        let metadata = self.member.cluster.refresh(&topics, create).await?;
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
        request.group_id = self.member.identity.group.as_str().into();
        request.generation_id = self.member.identity.generation;
        request.member_id = self.member.identity.member.as_str().into();
        request.group_instance_id = self.member.identity.instance.as_deref().map(Into::into);
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
                    let error = Error::broker("committing", ErrorCode::RebalanceInProgress, None);
                    let _ = done.send(Err(error));
                }
                Some(Command::Revoked) => {}
                Some(Command::Leave { done }) => return Err(Some(done)),
                None => return Err(None),
            },
        }
    }
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
