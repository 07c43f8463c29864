//! Fetch sessions (KIP-227): a consumer names its partitions once, later only what
//! changed, and is answered only with what changed.
//!
//! The broker owns the sessions, each behind its own lock; a client that breaks the
//! order of its epochs is told to begin anew. Slots are bounded; a new session takes
//! the place of the one unused for longest, once that has been idle for
//! [`EVICT_AFTER`]. Without a slot the client simply sends full requests. Followers have
//! theirs elsewhere ([`super::followers`]).

use super::{TOPIC_IDS_FROM, response::FetchedPartition};
use crate::{partition::FetchWaiter, sync::lock};
use rand::Rng;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{LeaderEpoch, Offset, TopicId},
    messages::{FetchRequest, fetch_request::FetchPartition},
};

/// A session unused for this long may lose its slot to a new one.
const EVICT_AFTER: Duration = Duration::from_mins(2);

pub(super) const NO_SESSION: i32 = 0;
pub(super) const FINAL_EPOCH: i32 = -1;
pub(super) const INITIAL_EPOCH: i32 = 0;
pub(super) const FIRST_INCREMENTAL_EPOCH: i32 = 1;

/// One partition that a client wants.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) topic: Arc<str>,
    pub(super) topic_id: TopicId,
    pub(super) partition: i32,
    pub(super) fetch_offset: Offset,
    /// Where a follower's log starts.
    pub(super) log_start_offset: Offset,
    pub(super) max_bytes: usize,
    pub(super) current_leader_epoch: LeaderEpoch,
    pub(super) last_fetched_epoch: LeaderEpoch,
}

impl Wanted {
    fn new(topic: &Arc<str>, topic_id: TopicId, partition: &FetchPartition) -> Self {
        Self {
            topic: Arc::clone(topic),
            topic_id,
            partition: partition.partition,
            fetch_offset: Offset::new(partition.fetch_offset),
            log_start_offset: Offset::new(partition.log_start_offset),
            max_bytes: usize::try_from(partition.partition_max_bytes).unwrap_or(0),
            current_leader_epoch: LeaderEpoch::new(partition.current_leader_epoch),
            last_fetched_epoch: LeaderEpoch::new(partition.last_fetched_epoch),
        }
    }

    /// Whether both read from the same place of the same history.
    pub(super) fn is_same_question(&self, other: &Self) -> bool {
        self.fetch_offset == other.fetch_offset
            && self.current_leader_epoch == other.current_leader_epoch
            && self.last_fetched_epoch == other.last_fetched_epoch
    }

    fn key(&self) -> Key {
        (Arc::clone(&self.topic), self.topic_id, self.partition)
    }
}

/// Topics are named or numbered, so one half of the name is always empty.
type Key = (Arc<str>, TopicId, i32);

/// A request's partitions, and the session that will remember its answer.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) wanted: Vec<Wanted>,
    mode: Mode,
    /// The session's epoch as long as no later request has come.
    next_epoch: i32,
}

#[derive(Debug)]
enum Mode {
    /// Answer everything, remember nothing.
    Sessionless,
    /// Answer everything, and the session's id with it.
    Full(Arc<Mutex<Session>>),
    /// Answer only what has changed since the last answer.
    Incremental(Arc<Mutex<Session>>),
}

impl Mode {
    fn session(&self) -> Option<&Mutex<Session>> {
        match self {
            Self::Sessionless => None,
            Self::Full(session) | Self::Incremental(session) => Some(session),
        }
    }
}

/// All sessions of the broker.
#[derive(Debug)]
pub(crate) struct FetchSessions {
    slots: usize,
    by_id: Mutex<HashMap<i32, Arc<Mutex<Session>>>>,
}

#[derive(Debug)]
struct Session {
    id: i32,
    /// The epoch that the next request must carry.
    epoch: i32,
    uses_topic_ids: bool,
    last_used: Instant,
    /// The fetch of the session that waits, if one does.
    waiting: Option<Arc<FetchWaiter>>,
    /// In the order in which they are read: one that gave records moves to the end.
    partitions: Vec<Remembered>,
}

#[derive(Debug)]
struct Remembered {
    wanted: Wanted,
    told: Told,
}

/// What the client was told last of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    high_watermark: Offset,
    last_stable_offset: Offset,
    log_start_offset: Offset,
}

impl Told {
    pub(super) const NOTHING: Self = Self {
        high_watermark: Offset::new(-1),
        last_stable_offset: Offset::new(-1),
        log_start_offset: Offset::new(-1),
    };

    /// What an answer tells; an error is told again until it is gone.
    pub(super) fn by(fetched: &FetchedPartition) -> Self {
        if fetched.must_be_told() {
            return Self::NOTHING;
        }
        Self {
            high_watermark: fetched.high_watermark,
            last_stable_offset: fetched.last_stable_offset,
            log_start_offset: fetched.log_start_offset,
        }
    }
}

impl FetchSessions {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots,
            by_id: Mutex::default(),
        }
    }

    /// Sessions open now.
    pub(crate) fn len(&self) -> usize {
        lock(&self.by_id).len()
    }

    /// Finds out what `fetch` wants, from it and from the session it names.
    pub(super) fn open(&self, fetch: &FetchRequest, version: i16) -> Result<Opened, ErrorCode> {
        if fetch.session_epoch == FINAL_EPOCH || fetch.session_epoch == INITIAL_EPOCH {
            if fetch.session_id != NO_SESSION {
                lock(&self.by_id).remove(&fetch.session_id);
            }
            let wanted: Vec<_> = wanted_in(fetch).collect();
            let session = if fetch.session_epoch == INITIAL_EPOCH && !wanted.is_empty() {
                self.create(&wanted, version)
            } else {
                None
            };
            return Ok(Opened {
                wanted,
                mode: session.map_or(Mode::Sessionless, Mode::Full),
                next_epoch: FIRST_INCREMENTAL_EPOCH,
            });
        }
        let session = lock(&self.by_id)
            .get(&fetch.session_id)
            .cloned()
            .ok_or(ErrorCode::FetchSessionIdNotFound)?;
        let (wanted, next_epoch) = lock(&session).update(fetch, version)?;
        Ok(Opened {
            wanted,
            mode: Mode::Incremental(session),
            next_epoch,
        })
    }

    /// A new session for `wanted`, if there is a slot or one that may be taken.
    fn create(&self, wanted: &[Wanted], version: i16) -> Option<Arc<Mutex<Session>>> {
        let mut by_id = lock(&self.by_id);
        let now = Instant::now();
        if by_id.len() >= self.slots {
            let (id, last_used) = by_id
                .iter()
                .map(|(&id, session)| (id, lock(session).last_used))
                .min_by_key(|&(_, last_used)| last_used)?;
            if now.duration_since(last_used) < EVICT_AFTER {
                return None;
            }
            by_id.remove(&id);
        }
        let mut random = rand::rng();
        let id = loop {
            let id = random.random_range(1..=i32::MAX);
            if !by_id.contains_key(&id) {
                break id;
            }
        };
        let session = Arc::new(Mutex::new(Session {
            id,
            epoch: FIRST_INCREMENTAL_EPOCH,
            uses_topic_ids: version >= TOPIC_IDS_FROM,
            last_used: now,
            waiting: None,
            partitions: wanted
                .iter()
                .map(|wanted| Remembered {
                    wanted: wanted.clone(),
                    told: Told::NOTHING,
                })
                .collect(),
        }));
        by_id.insert(id, Arc::clone(&session));
        Some(session)
    }
}

impl Session {
    /// Takes an incremental request's changes in; returns all that is wanted now, and the
    /// epoch of the next request.
    fn update(
        &mut self,
        fetch: &FetchRequest,
        version: i16,
    ) -> Result<(Vec<Wanted>, i32), ErrorCode> {
        if fetch.session_epoch != self.epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        if self.uses_topic_ids != (version >= TOPIC_IDS_FROM) {
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        self.epoch = self.epoch.checked_add(1).unwrap_or(FIRST_INCREMENTAL_EPOCH);
        // Whoever sends another request wants the answer to the last one now.
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        self.last_used = Instant::now();
        let mut changed: HashMap<Key, Wanted> = wanted_in(fetch)
            .map(|wanted| (wanted.key(), wanted))
            .collect();
        let forgotten: std::collections::HashSet<Key> = fetch
            .forgotten_topics_data
            .iter()
            .flat_map(|topic| {
                let name: Arc<str> = Arc::from(topic.topic.as_str());
                let id = TopicId::from(topic.topic_id);
                topic
                    .partitions
                    .iter()
                    .map(move |&partition| (Arc::clone(&name), id, partition))
            })
            .collect();
        if !changed.is_empty() || !forgotten.is_empty() {
            self.partitions.retain_mut(|known| {
                let key = known.wanted.key();
                if let Some(wanted) = changed.remove(&key) {
                    known.wanted = wanted;
                    return true;
                }
                !forgotten.contains(&key)
            });
            // New ones keep the order of the request.
            for wanted in wanted_in(fetch) {
                if let Some(wanted) = changed.remove(&wanted.key()) {
                    self.partitions.push(Remembered {
                        wanted,
                        told: Told::NOTHING,
                    });
                }
            }
        }
        let wanted = self
            .partitions
            .iter()
            .map(|known| known.wanted.clone())
            .collect();
        Ok((wanted, self.epoch))
    }

    /// Remembers what is told now; returns which partitions have anything new to tell.
    fn remember(&mut self, wanted: &[Wanted], fetched: &[FetchedPartition]) -> Vec<bool> {
        let mut keep = Vec::with_capacity(fetched.len());
        let mut gave_records = Vec::new();
        let mut at = 0;
        for (wanted, fetched) in wanted.iter().zip(fetched) {
            let told = Told::by(fetched);
            // Another request of the same session may have changed the list meanwhile.
            let same = |known: &Remembered| {
                known.wanted.partition == wanted.partition
                    && known.wanted.topic_id == wanted.topic_id
                    && known.wanted.topic == wanted.topic
            };
            let Some(found) = self.partitions[at..].iter().position(same) else {
                keep.push(true);
                continue;
            };
            at += found;
            let known = &mut self.partitions[at];
            let records = fetched.record_bytes() > 0;
            keep.push(records || fetched.must_be_told() || known.told != told);
            known.told = told;
            if records {
                gave_records.push(at);
            }
            at += 1;
        }
        // Who gave records is read last next time, so that none starves.
        let mut moved = gave_records.into_iter().peekable();
        let mut at = 0;
        let moved: Vec<Remembered> = self
            .partitions
            .extract_if(.., |_| {
                let moves = moved.next_if_eq(&at).is_some();
                at += 1;
                moves
            })
            .collect();
        self.partitions.extend(moved);
        keep
    }
}

impl Opened {
    /// The fetch is about to wait: the session's next request will wake it. False if that
    /// has come already.
    pub(super) fn wait_with(&self, waiter: &Arc<FetchWaiter>) -> bool {
        let Some(session) = self.mode.session() else {
            return true;
        };
        let mut session = lock(session);
        let is_last = session.epoch == self.next_epoch;
        if is_last {
            session.waiting = Some(Arc::clone(waiter));
        }
        is_last
    }

    /// The session's next request has come.
    pub(super) fn is_superseded(&self) -> bool {
        self.mode
            .session()
            .is_some_and(|session| lock(session).epoch != self.next_epoch)
    }

    /// The session id for the answer, and which partitions belong in it.
    pub(super) fn close(&self, fetched: &[FetchedPartition]) -> (i32, Vec<bool>) {
        match &self.mode {
            Mode::Sessionless => (NO_SESSION, vec![true; fetched.len()]),
            Mode::Full(session) => {
                let mut session = lock(session);
                session.remember(&self.wanted, fetched);
                (session.id, vec![true; fetched.len()])
            }
            Mode::Incremental(session) => {
                let mut session = lock(session);
                let keep = session.remember(&self.wanted, fetched);
                (session.id, keep)
            }
        }
    }
}

pub(super) fn wanted_in(fetch: &FetchRequest) -> impl Iterator<Item = Wanted> {
    fetch.topics.iter().flat_map(|topic| {
        let name: Arc<str> = Arc::from(topic.topic.as_str());
        let id = TopicId::from(topic.topic_id);
        topic
            .partitions
            .iter()
            .map(move |partition| Wanted::new(&name, id, partition))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use yuxi_protocol::{
        message,
        messages::fetch_request::{FetchTopic, ForgottenTopic},
    };

    fn request(session_id: i32, session_epoch: i32, partitions: &[(i32, i64)]) -> FetchRequest {
        message!(FetchRequest {
            session_id,
            session_epoch,
            topics: vec![message!(FetchTopic {
                topic: "t".into(),
                partitions: partitions
                    .iter()
                    .map(|&(partition, fetch_offset)| message!(FetchPartition {
                        partition,
                        fetch_offset,
                    }))
                    .collect(),
            })],
        })
    }

    fn told(opened: &Opened, high_watermarks: &[i64]) -> (i32, Vec<bool>) {
        let fetched: Vec<_> = opened
            .wanted
            .iter()
            .zip(high_watermarks)
            .map(|(wanted, &high_watermark)| {
                let mut fetched = FetchedPartition::error(wanted.partition, ErrorCode::None);
                fetched.high_watermark = Offset::new(high_watermark);
                fetched
            })
            .collect();
        opened.close(&fetched)
    }

    #[test]
    fn an_incremental_answer_has_only_what_changed() {
        let sessions = FetchSessions::new(10);
        let full = sessions
            .open(&request(0, 0, &[(0, 0), (1, 0)]), 12)
            .expect("a new session");
        let (id, keep) = told(&full, &[5, 7]);
        assert!(id != 0);
        assert_eq!(keep, [true, true]);
        let next = sessions.open(&request(id, 1, &[]), 12).expect("epoch 1");
        assert_eq!(next.wanted.len(), 2);
        assert_eq!(told(&next, &[5, 8]), (id, vec![false, true]));
    }

    #[test]
    fn changes_and_forgotten_partitions_are_taken_in() {
        let sessions = FetchSessions::new(10);
        let full = sessions
            .open(&request(0, 0, &[(0, 0), (1, 0)]), 12)
            .expect("a new session");
        let (id, _) = told(&full, &[5, 7]);
        let mut change = request(id, 1, &[(1, 6), (2, 0)]);
        change.forgotten_topics_data = vec![message!(ForgottenTopic {
            topic: "t".into(),
            partitions: vec![0],
        })];
        let next = sessions.open(&change, 12).expect("epoch 1");
        let wanted: Vec<_> = next
            .wanted
            .iter()
            .map(|wanted| (wanted.partition, wanted.fetch_offset.value()))
            .collect();
        assert_eq!(wanted, [(1, 6), (2, 0)]);
    }

    #[test]
    fn a_session_out_of_step_is_refused() {
        let sessions = FetchSessions::new(10);
        let full = sessions
            .open(&request(0, 0, &[(0, 0)]), 12)
            .expect("a new session");
        let (id, _) = told(&full, &[5]);
        let refuse = |request: &FetchRequest, version| sessions.open(request, version).err();
        assert_eq!(
            refuse(&request(id, 2, &[]), 12),
            Some(ErrorCode::InvalidFetchSessionEpoch)
        );
        assert_eq!(
            refuse(&request(id.wrapping_add(1), 1, &[]), 12),
            Some(ErrorCode::FetchSessionIdNotFound)
        );
        assert_eq!(
            refuse(&request(id, 1, &[]), 13),
            Some(ErrorCode::FetchSessionTopicIdError)
        );
        sessions
            .open(&request(id, FINAL_EPOCH, &[(0, 0)]), 12)
            .expect("closes it");
        assert_eq!(sessions.len(), 0);
    }

    #[test]
    fn without_a_free_slot_the_client_gets_no_session() {
        let sessions = FetchSessions::new(1);
        let first = sessions.open(&request(0, 0, &[(0, 0)]), 12).expect("one");
        let second = sessions.open(&request(0, 0, &[(0, 0)]), 12).expect("two");
        assert!(told(&first, &[1]).0 != 0);
        assert_eq!(told(&second, &[1]).0, 0);
    }
}
