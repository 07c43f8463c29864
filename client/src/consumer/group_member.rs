//! What a member of a group is by either protocol: the way to its consumer and to its
//! coordinator, and what it owns.
//!
//! Always holds: `owned` is what the consumer may be reading. A partition that was asked
//! back stays in the group as this member's until the consumer has said
//! [`Command::Revoked`].

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::TopicPartition;

use super::group::{Command, GroupEvent, LastPoll, Offsets};
use super::group_api::{self, GroupMetadata};
use super::subscription::Subscription;
use crate::cluster::{Cluster, Coordinator};
use crate::error::{Error, Result};

/// The state that both protocols have; a membership's task owns it.
pub(super) struct GroupMember {
    pub(super) cluster: Cluster,
    pub(super) coordinator: Coordinator,
    pub(super) identity: GroupMetadata,
    pub(super) subscription: Subscription,
    pub(super) owned: BTreeSet<TopicPartition>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) events: mpsc::Sender<GroupEvent>,
    last_poll: Arc<LastPoll>,
}

impl GroupMember {
    pub(super) fn new(
        cluster: Cluster,
        identity: GroupMetadata,
        subscription: Subscription,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<GroupEvent>,
        last_poll: Arc<LastPoll>,
    ) -> Self {
        Self {
            coordinator: Coordinator::of(&cluster, &identity.group),
            cluster,
            identity,
            subscription,
            owned: BTreeSet::new(),
            commands,
            events,
            last_poll,
        }
    }

    pub(super) async fn tell(&self, event: GroupEvent) -> Result<()> {
        self.events.send(event).await.map_err(|_| Error::Closed)
    }

    /// Lets the consumer read these too, from the offsets that the group has.
    pub(super) async fn assign(&mut self, added: Vec<TopicPartition>) -> Result<()> {
        if added.is_empty() {
            return Ok(());
        }
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
        self.tell(GroupEvent::Assign { partitions }).await
    }

    /// Whether the consumer has not polled for too long, so that others are to take its
    /// partitions over. It joins again when it polls again.
    pub(super) fn is_silent(&self) -> bool {
        let silent = self.last_poll.elapsed() > self.cluster.config().max_poll_interval;
        if silent {
            tracing::warn!(
                group = self.identity.group,
                "poll was not called for longer than max.poll.interval.ms; leaving the group"
            );
        }
        silent
    }
}

/// How a protocol does what both must do while partitions are given up.
pub(super) trait Protocol {
    fn member(&mut self) -> &mut GroupMember;

    fn heartbeat_interval(&self) -> Duration;

    async fn heartbeat(&mut self) -> Result<()>;

    async fn commit(&mut self, offsets: &Offsets) -> Result<()>;

    /// Tells the group, if it has this member and is to let go of it.
    async fn leave(&mut self);

    /// Whether the group goes on without this member: what it held may be another's already.
    fn is_expulsion(code: ErrorCode) -> bool;

    /// Asks the consumer for partitions and waits until it has given them up, or has left.
    /// Unless they are lost, its commits are still made meanwhile, and heartbeats keep its
    /// place.
    async fn revoke(
        &mut self,
        partitions: BTreeSet<TopicPartition>,
        lost: bool,
    ) -> Result<ControlFlow<()>> {
        let event = GroupEvent::Revoke { partitions, lost };
        self.member().tell(event).await?;
        let mut tick = tokio::time::interval(self.heartbeat_interval());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first is due at once, and the coordinator has just heard of the member.
        tick.reset();
        loop {
            tokio::select! {
                _ = tick.tick(), if !lost => {
                    match self.heartbeat().await {
                        Err(error) if error.code().is_some_and(Self::is_expulsion) => {
                            return Err(error);
                        }
                        // Anything else shows in what comes after this.
                        Ok(()) | Err(_) => {}
                    }
                }
                command = self.member().commands.recv() => match command {
                    Some(Command::Revoked) => return Ok(ControlFlow::Continue(())),
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
                        let _ = done.send(result);
                    }
                    Some(Command::Leave { done }) => {
                        if !lost {
                            self.leave().await;
                        }
                        let _ = done.send(());
                        return Ok(ControlFlow::Break(()));
                    }
                    None => return Ok(ControlFlow::Break(())),
                },
            }
        }
    }

    /// Others may have everything by now.
    async fn lose_all(&mut self) -> Result<ControlFlow<()>> {
        let lost = std::mem::take(&mut self.member().owned);
        if lost.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        self.revoke(lost, true).await
    }
}
