//! Membership in a group, as the consumer sees it.
//!
//! A task of its own ([`super::classic_member`], or by `group.protocol=consumer`
//! [`super::epoch_member`]) keeps it up, because the group must hear
//! from a member that is busy with its records. The consumer and the task talk
//! through two channels: [`Command`]s in, [`GroupEvent`]s out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::TopicPartition;

use super::CommittedOffset;
use super::classic_member::ClassicMember;
use super::epoch_member::EpochMember;
use super::group_api::GroupMetadata;
use super::group_member::GroupMember;
use super::subscription::Subscription;
use crate::cluster::Cluster;
use crate::config::GroupProtocol;
use crate::error::{Error, Result};

/// Commands and events that may wait.
const CHANNEL_LENGTH: usize = 64;
/// A farewell gets at most this long.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

pub(super) type Offsets = BTreeMap<TopicPartition, CommittedOffset>;

/// What the group tells the consumer.
#[derive(Debug)]
pub(super) enum GroupEvent {
    /// The member is of a new generation: what comes after belongs to it.
    Joined(GroupMetadata),
    /// Give these up and say so. When they are lost, others may have them already.
    Revoke {
        partitions: BTreeSet<TopicPartition>,
        lost: bool,
    },
    /// Read these too, from the offsets that the group has.
    Assign {
        partitions: BTreeMap<TopicPartition, Option<CommittedOffset>>,
    },
    /// The membership has ended for good.
    Failed(Error),
}

/// What the consumer tells the task.
#[derive(Debug)]
pub(super) enum Command {
    Commit {
        offsets: Offsets,
        done: oneshot::Sender<Result<()>>,
    },
    Revoked,
    Leave {
        done: oneshot::Sender<()>,
    },
}

/// The consumer's end.
#[derive(Debug)]
pub(super) struct Membership {
    commands: mpsc::Sender<Command>,
    events: mpsc::Receiver<GroupEvent>,
    waiting: Option<GroupEvent>,
    last_poll: Arc<LastPoll>,
    /// The answer to the automatic commit that is under way, if one is.
    auto_commit: Option<oneshot::Receiver<Result<()>>>,
    task: tokio::task::AbortHandle,
}

/// When the consumer last polled, in milliseconds since the membership began.
#[derive(Debug)]
pub(super) struct LastPoll {
    began: Instant,
    at_ms: AtomicU64,
}

impl LastPoll {
    pub(super) fn elapsed(&self) -> Duration {
        let at = Duration::from_millis(self.at_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(at)
    }

    fn now(&self) {
        self.at_ms
            .store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Membership {
    pub(super) fn start(cluster: Cluster, subscription: Subscription) -> Result<Self> {
        let config = cluster.config().clone();
        config.check_group_settings()?;
        let group = config
            .group_id
            .clone()
            .ok_or(Error::State("subscribing needs group.id"))?;
        let (commands, command_queue) = mpsc::channel(CHANNEL_LENGTH);
        let (event_queue, events) = mpsc::channel(CHANNEL_LENGTH);
        let last_poll = Arc::new(LastPoll {
            began: Instant::now(),
            at_ms: AtomicU64::new(0),
        });
        let identity = GroupMetadata {
            group,
            member: String::new(),
            instance: config.group_instance_id.clone(),
            generation: -1,
        };
        let seen = last_poll.clone();
        let member = GroupMember::new(
            cluster,
            identity,
            subscription,
            command_queue,
            event_queue,
            seen,
        );
        let task = match config.group_protocol {
            GroupProtocol::Classic => tokio::spawn(ClassicMember::new(member).run()),
            GroupProtocol::Consumer => tokio::spawn(EpochMember::new(member).run()),
        }
        .abort_handle();
        Ok(Self {
            commands,
            events,
            waiting: None,
            last_poll,
            auto_commit: None,
            task,
        })
    }

    /// The consumer is alive.
    pub(super) fn polled(&self) {
        self.last_poll.now();
    }

    /// Waits until there is an event.
    pub(super) async fn ready(&mut self) {
        if self.waiting.is_none() {
            match self.events.recv().await {
                Some(event) => self.waiting = Some(event),
                // The task has said why it ended, and that was handled.
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn next_event(&mut self) -> Option<GroupEvent> {
        self.waiting.take().or_else(|| self.events.try_recv().ok())
    }

    /// What was asked back is given up.
    pub(super) fn revoked(&self) {
        // A full queue cannot be: at most one revocation is outstanding.
        let _ = self.commands.try_send(Command::Revoked);
    }

    pub(super) async fn commit(&self, offsets: Offsets) -> Result<()> {
        let (done, committed) = oneshot::channel();
        let command = Command::Commit { offsets, done };
        self.commands
            .send(command)
            .await
            .map_err(|_| Error::Closed)?;
        committed.await.map_err(|_| Error::Closed)?
    }

    /// Whether an automatic commit is still under way. A coordinator that is away keeps
    /// one waiting, not one for each interval.
    pub(super) fn is_committing(&mut self) -> bool {
        let Some(answer) = &mut self.auto_commit else {
            return false;
        };
        match answer.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return true,
            Ok(Err(error)) if error.code() != Some(ErrorCode::RebalanceInProgress) => {
                tracing::warn!(%error, "automatic commit failed");
            }
            // In a rebalance the consumer commits before it gives partitions up.
            Ok(Ok(()) | Err(_)) | Err(oneshot::error::TryRecvError::Closed) => {}
        }
        self.auto_commit = None;
        false
    }

    pub(super) fn commit_in_background(&mut self, offsets: Offsets) {
        let (done, committed) = oneshot::channel();
        let command = Command::Commit { offsets, done };
        if self.commands.try_send(command).is_ok() {
            self.auto_commit = Some(committed);
        }
    }

    pub(super) async fn leave(self) {
        let (done, left) = oneshot::channel();
        if self.commands.send(Command::Leave { done }).await.is_ok() {
            let _ = tokio::time::timeout(LEAVE_LIMIT, left).await;
        }
    }
}
