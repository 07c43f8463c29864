//! How this broker's replicas keep up: it reads from the leaders that its followers have
//! ([`fetcher`]) and tells the controller who keeps up with those that it leads ([`isr`]).
//!
//! Owns one fetching task a leader and the one task that proposes in-sync replicas. What a
//! replica may take from an answer, and who is in sync, the partition decides; nothing
//! here changes either.

mod fetcher;
mod isr;
mod session;

use crate::{node::Node, partition::Partition, replicas::RoleChange, sync::lock};
use fetcher::Fetcher;
use isr::IsrProposer;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::task::JoinHandle;
use yuxi_protocol::ids::{BrokerId, TopicId};

/// A partition, as brokers name it to each other.
type Key = (TopicId, i32);

fn key_of(partition: &Partition) -> Key {
    (partition.topic_id(), partition.id().partition.value())
}

/// The replication of one broker.
#[derive(Default)]
pub(crate) struct Replication {
    followed: Mutex<Followed>,
    isr: IsrProposer,
}

#[derive(Default)]
struct Followed {
    /// One for each broker that has ever led a partition that is followed here.
    fetchers: HashMap<BrokerId, (Arc<Fetcher>, JoinHandle<()>)>,
    leaders: HashMap<Key, BrokerId>,
    is_stopped: bool,
}

impl Replication {
    /// Moves partitions to the fetchers of their leaders.
    pub(crate) fn follow(&self, node: &Arc<Node>, changes: Vec<RoleChange>) {
        let mut followed = lock(&self.followed);
        if followed.is_stopped {
            return;
        }
        for RoleChange { partition, follows } in changes {
            let key = key_of(&partition);
            let leader = follows.map(|(leader, _)| leader);
            if let Some(old) = followed.leaders.get(&key).copied()
                && leader != Some(old)
            {
                followed.leaders.remove(&key);
                if let Some((fetcher, _)) = followed.fetchers.get(&old) {
                    fetcher.remove(key);
                }
            }
            // A leader that has yet to recover says so to the controller.
            if follows.is_none() {
                self.isr.change_due(&partition);
            }
            if let Some((leader, epoch)) = follows {
                followed.leaders.insert(key, leader);
                let (fetcher, _) = followed
                    .fetchers
                    .entry(leader)
                    .or_insert_with(|| Fetcher::start(node, leader));
                fetcher.follow(key, partition, epoch);
            }
        }
    }

    /// The in-sync replicas of a partition that is led here should change.
    pub(crate) fn isr_change_due(&self, partition: &Arc<Partition>) {
        self.isr.change_due(partition);
    }

    /// Proposes in-sync replicas until aborted.
    pub(crate) async fn propose(&self, node: &Arc<Node>) {
        self.isr.run(node).await;
    }

    /// Reads from no leader any more, once these have ended.
    pub(crate) fn stop(&self) -> Vec<JoinHandle<()>> {
        let mut followed = lock(&self.followed);
        followed.is_stopped = true;
        followed
            .fetchers
            .drain()
            .map(|(_, (_, task))| {
                task.abort();
                task
            })
            .collect()
    }
}
