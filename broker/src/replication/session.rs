//! A follower's side of one incremental fetch session (KIP-227): which partitions it wants
//! from one leader, what the leader knows of that, and what the next request must say.
//!
//! Pure: partitions, answers and the time in, requests out. Invariant: the leader's idea
//! of a partition is what [`Wanted::sent`] says or the partition is in `dirty`.

use super::Key;
use crate::partition::{Partition, Position};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use yuxi_protocol::{
    ids::{LeaderEpoch, TopicId},
    message,
    messages::{
        FetchRequest,
        fetch_request::{FetchPartition, FetchTopic, ForgottenTopic},
    },
};

/// The first rest of a partition after an error: mostly the leader or this broker is a
/// moment behind the other in what it knows of the cluster.
const FIRST_REST: Duration = Duration::from_millis(5);

/// One partition that is followed.
pub(super) struct Wanted {
    pub(super) partition: Arc<Partition>,
    pub(super) epoch: LeaderEpoch,
    /// What the leader was asked last, and in which request; `None` if it was told to
    /// forget the partition, or never heard of it.
    pub(super) sent: Option<Sent>,
    rest: Duration,
}

#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub(super) position: Position,
    pub(super) request: u64,
}

/// The session.
pub(super) struct Session {
    id: i32,
    epoch: i32,
    requests: u64,
    wanted: HashMap<Key, Wanted>,
    /// To be said in the next request.
    dirty: BTreeSet<Key>,
    forgotten: BTreeSet<Key>,
    /// Not to be asked for before then.
    resting: BTreeMap<Instant, Vec<Key>>,
    longest_rest: Duration,
}

impl Session {
    pub(super) fn new(longest_rest: Duration) -> Self {
        Self {
            id: 0,
            epoch: 0,
            requests: 0,
            wanted: HashMap::new(),
            dirty: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            resting: BTreeMap::new(),
            longest_rest,
        }
    }

    /// Asks for the partition from now on, in this epoch.
    pub(super) fn follow(&mut self, key: Key, partition: Arc<Partition>, epoch: LeaderEpoch) {
        let sent = self.wanted.get(&key).and_then(|wanted| wanted.sent);
        self.wanted.insert(
            key,
            Wanted {
                partition,
                epoch,
                sent,
                rest: FIRST_REST,
            },
        );
        self.dirty.insert(key);
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.dirty.remove(&key);
        if self
            .wanted
            .remove(&key)
            .is_some_and(|wanted| wanted.sent.is_some())
        {
            self.forgotten.insert(key);
        }
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Wanted> {
        self.wanted.get_mut(&key)
    }

    /// The partition has another position now.
    pub(super) fn moved(&mut self, key: Key) {
        if let Some(wanted) = self.wanted.get_mut(&key) {
            wanted.rest = FIRST_REST;
            self.dirty.insert(key);
        }
    }

    /// Asks for the partition no more for a while, each time longer.
    pub(super) fn rest(&mut self, key: Key, now: Instant) {
        let Some(wanted) = self.wanted.get_mut(&key) else {
            return;
        };
        self.resting
            .entry(now + wanted.rest.min(self.longest_rest))
            .or_default()
            .push(key);
        wanted.rest = (wanted.rest * 2).min(self.longest_rest);
        self.dirty.remove(&key);
        if wanted.sent.take().is_some() {
            self.forgotten.insert(key);
        }
    }

    /// The connection or the session is gone: everything is said anew.
    pub(super) fn reset(&mut self) {
        self.id = 0;
        self.epoch = 0;
        self.forgotten.clear();
        let resting: BTreeSet<Key> = self.resting.values().flatten().copied().collect();
        for (key, wanted) in &mut self.wanted {
            wanted.sent = None;
            if !resting.contains(key) {
                self.dirty.insert(*key);
            }
        }
    }

    /// The leader answered the session's first request: it has a number, or 0 if the leader
    /// remembers nothing.
    pub(super) fn answered(&mut self, id: i32) {
        if self.epoch == 0 && id != 0 {
            self.id = id;
            self.epoch = 1;
        }
    }

    /// Whether a request would say anything new.
    pub(super) fn has_news(&self) -> bool {
        !self.dirty.is_empty() || !self.forgotten.is_empty()
    }

    /// Whether another request may be sent before the last one's answer.
    pub(super) fn is_incremental(&self) -> bool {
        self.epoch > 0
    }

    /// Partitions whose rest is over are asked for again. Returns when the next one's is.
    pub(super) fn wake_rested(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.resting.first_entry() {
            if *first.key() > now {
                return Some(*first.key());
            }
            for key in first.remove() {
                if self.wanted.contains_key(&key) {
                    self.dirty.insert(key);
                }
            }
        }
        None
    }

    /// The next request's part that is about partitions, with its number; `None` if there
    /// is nothing to ask for.
    pub(super) fn request(&mut self, partition_max_bytes: i32) -> Option<(u64, FetchRequest)> {
        let number = self.requests + 1;
        let mut topics: BTreeMap<TopicId, Vec<FetchPartition>> = BTreeMap::new();
        let dirty = if self.epoch > 0 {
            std::mem::take(&mut self.dirty)
        } else {
            // Without a session everything is said each time.
            self.dirty.clear();
            let resting: BTreeSet<Key> = self.resting.values().flatten().copied().collect();
            let all = self.wanted.keys().copied();
            all.filter(|key| !resting.contains(key)).collect()
        };
        for key in dirty {
            let Some(wanted) = self.wanted.get_mut(&key) else {
                continue;
            };
            let Some(position) = wanted.partition.position(wanted.epoch) else {
                // It follows somebody else by now, which is on its way here.
                if wanted.sent.take().is_some() {
                    self.forgotten.insert(key);
                }
                continue;
            };
            self.forgotten.remove(&key);
            wanted.sent = Some(Sent {
                position,
                request: number,
            });
            topics
                .entry(key.0)
                .or_default()
                .push(message!(FetchPartition {
                    partition: key.1,
                    current_leader_epoch: position.leader_epoch.value(),
                    fetch_offset: position.offset.value(),
                    last_fetched_epoch: position.last_epoch.value(),
                    log_start_offset: position.log_start.value(),
                    partition_max_bytes,
                }));
        }
        let forgotten = std::mem::take(&mut self.forgotten);
        if self.epoch == 0 && topics.is_empty()
            || self.wanted.values().all(|wanted| wanted.sent.is_none())
        {
            // The leader would answer at once that there is nothing.
            if self.epoch > 0 {
                self.reset();
            }
            return None;
        }
        self.requests = number;
        let mut forgotten_topics: BTreeMap<TopicId, Vec<i32>> = BTreeMap::new();
        if self.epoch > 0 {
            for (topic, partition) in forgotten {
                forgotten_topics.entry(topic).or_default().push(partition);
            }
        }
        let request = message!(FetchRequest {
            session_id: self.id,
            session_epoch: self.epoch,
            topics: topics
                .into_iter()
                .map(|(topic, partitions)| {
                    message!(FetchTopic {
                        topic_id: topic.into(),
                        partitions,
                    })
                })
                .collect(),
            forgotten_topics_data: forgotten_topics
                .into_iter()
                .map(|(topic, partitions)| {
                    message!(ForgottenTopic {
                        topic_id: topic.into(),
                        partitions,
                    })
                })
                .collect(),
        });
        if self.epoch > 0 {
            self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        }
        Some((number, request))
    }
}
