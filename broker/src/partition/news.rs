//! What a follower has not been told yet: the partitions of its fetch session that have
//! changed since the leader last looked at them for it.
//!
//! A leader may have thousands of partitions in common with one follower, of which few are
//! written at any time. So a partition puts itself on this list whenever it changes, and a
//! fetch looks at what is on it. One list for each session, owned by the session and known
//! to the leaders of its partitions. A partition is on it at most once.

use crate::{sync::lock, time::Monotonic};
use std::{
    collections::HashSet,
    mem,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
    },
};
use tokio::sync::Notify;
use yuxi_protocol::ids::TopicId;

/// A partition, as brokers name it to each other.
pub(crate) type PartitionKey = (TopicId, i32);

/// The list of one session.
#[derive(Debug)]
pub(crate) struct FollowerNews {
    changed: Mutex<Changed>,
    wake: Notify,
    /// A [`Monotonic`].
    asked: AtomicI64,
}

#[derive(Debug, Default)]
struct Changed {
    /// Who has waited longest comes first.
    order: Vec<PartitionKey>,
    listed: HashSet<PartitionKey>,
}

impl Default for FollowerNews {
    fn default() -> Self {
        Self {
            changed: Mutex::default(),
            wake: Notify::default(),
            asked: AtomicI64::new(Monotonic::LONG_AGO.value()),
        }
    }
}

impl FollowerNews {
    /// Puts the partition on the list; a fetch that waits goes on waiting.
    pub(crate) fn note(&self, key: PartitionKey) {
        let mut changed = self.changed();
        if changed.listed.insert(key) {
            changed.order.push(key);
        }
    }

    /// Ends the wait whatever is there.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Empties the list.
    pub(crate) fn take(&self) -> Vec<PartitionKey> {
        mem::take(&mut *self.changed()).order
    }

    /// Resolves when something has come that must not wait.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The follower has sent a request, which is about all that is not on the list, too: it
    /// has everything there.
    pub(crate) fn asked(&self, now: Monotonic) {
        self.asked.store(now.value(), Ordering::Relaxed);
    }

    /// When the follower asked last.
    pub(crate) fn last_asked(&self) -> Monotonic {
        Monotonic::new(self.asked.load(Ordering::Relaxed))
    }

    fn changed(&self) -> MutexGuard<'_, Changed> {
        lock(&self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_listed_once_and_in_the_order_of_its_first_change() {
        let news = FollowerNews::default();
        let key = |partition| (TopicId::ZERO, partition);
        for partition in [2, 1, 2] {
            news.note(key(partition));
        }
        assert_eq!(news.take(), [key(2), key(1)]);
        assert!(news.take().is_empty());
        news.note(key(2));
        assert_eq!(news.take(), [key(2)]);
    }
}
