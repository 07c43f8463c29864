//! What may be sent now: at most one batch a partition, where its leader is, and by which
//! epoch it is numbered.
//!
//! A partition's next batch goes when it is full or has lingered, when no pause is left,
//! and, if the producer is idempotent, when its number is the next one. Numbers are given
//! anew, or under another epoch, only when nothing of the partition is in flight (KIP-360).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::super::batch::{Batch, Identity};
use super::Accumulator;

/// Whether a batch can go to its partition's leader now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route<B> {
    To(B),
    Busy,
    NoLeader,
}

/// What `drain` found besides the batches.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// When to look again, if nothing happens before.
    pub(crate) wake_at: Option<Instant>,
    /// Topics with a batch whose partition has no known leader.
    pub(crate) leaderless: BTreeSet<Arc<str>>,
    /// Batches can only go once there is a producer id.
    pub(crate) needs_identity: bool,
}

impl Drained {
    fn wake_by(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

impl Accumulator {
    /// Takes out every batch that may be sent at `now`, at most one a partition.
    /// `route` says where a partition's batch of so many bytes goes.
    pub(crate) fn drain<B>(
        &mut self,
        now: Instant,
        mut route: impl FnMut(&Arc<str>, i32, usize) -> Route<B>,
        mut take: impl FnMut(B, Batch),
    ) -> Drained {
        let mut drained = Drained::default();
        for _ in 0..self.active.len() {
            let Some((topic, index)) = self.active.pop_front() else {
                break;
            };
            self.expire(topic, index, now);
            if let Some(destination) = self.route_head(topic, index, now, &mut route, &mut drained)
                && let Some(batch) = self.partition(topic, index).take_head()
            {
                take(destination, batch);
            }
            let partition = &mut self.topics[topic].partitions[index];
            partition.active = !partition.queue.is_empty();
            if partition.active {
                self.active.push_back((topic, index));
            }
        }
        drained
    }

    /// Where the partition's next batch goes, if it may go now.
    fn route_head<B>(
        &mut self,
        topic: usize,
        index: usize,
        now: Instant,
        route: &mut impl FnMut(&Arc<str>, i32, usize) -> Route<B>,
        drained: &mut Drained,
    ) -> Option<B> {
        let name = self.topics[topic].name.clone();
        let partition = &mut self.topics[topic].partitions[index];
        let head = partition.queue.front()?;
        drained.wake_by(head.created + self.settings.delivery_timeout);
        let lingered = head.created + self.settings.linger;
        if !head.closed && self.hurried == 0 && now < lingered {
            drained.wake_by(lingered);
            return None;
        }
        if let Some(not_before) = partition.not_before {
            if now < not_before {
                drained.wake_by(not_before);
                return None;
            }
            partition.not_before = None;
        }
        if self.settings.idempotent && !self.number_head(topic, index, drained) {
            return None;
        }
        let head = self.topics[topic].partitions[index].queue.front()?;
        match route(&name, index as i32, head.reserved_bytes) {
            Route::To(destination) => Some(destination),
            Route::Busy => None,
            Route::NoLeader => {
                drained.leaderless.insert(name);
                None
            }
        }
    }

    /// Makes sure that the head may go as an idempotent batch. Its number is given
    /// in `take_head`; this decides by which epoch, and whether it must wait.
    fn number_head(&mut self, topic: usize, index: usize, drained: &mut Drained) -> bool {
        let partition = &mut self.topics[topic].partitions[index];
        let Some(head) = partition.queue.front() else {
            return false;
        };
        let sequencing = &partition.sequencing;
        // A transactional producer gets its epochs from the coordinator.
        let own_epochs = !self.settings.transactional;
        let anew =
            own_epochs && (sequencing.broken || head.stamp.is_none() && sequencing.is_unresolved());
        if let Some(stamp) = head.stamp
            && !anew
        {
            return partition.window.is_next(stamp.base_sequence);
        }
        let another = self
            .identity
            .is_some_and(|identity| sequencing.identity != Some(identity));
        if (anew || another) && !partition.window.is_quiet() {
            return false;
        }
        if anew {
            partition.number_anew();
            self.bump_epoch();
        }
        let Some(identity) = self.identity else {
            drained.needs_identity = true;
            return false;
        };
        let partition = self.partition(topic, index);
        if partition.sequencing.identity != Some(identity) {
            partition.number_for(identity);
        }
        !partition.window.is_full()
    }

    /// Begins the next epoch of this producer. The broker takes any higher epoch of
    /// a producer without a transactional id; when they are used up, a new id is asked for.
    fn bump_epoch(&mut self) {
        self.identity = self.identity.and_then(|identity| {
            let epoch = identity.epoch.checked_add(1)?;
            Some(Identity { epoch, ..identity })
        });
    }
}
