//! The fetch of a follower: an incremental session (KIP-227) of maybe thousands of
//! partitions, of which a request looks at those that have changed.
//!
//! The broker owns one session for each follower, since a follower asks its leader over one
//! connection. Invariant: a partition of a session is on the session's list
//! ([`FollowerNews`]), or a request is looking at it, or it is settled: told as it is,
//! with nothing to read and its follower in sync. Whatever unsettles it puts it on the
//! list.

use super::{
    super::{Context, Outcome, Started},
    Limits, find, is_enough, name_leaders, refused,
    response::{self, FetchedPartition, Response},
    session::{
        FINAL_EPOCH, FIRST_INCREMENTAL_EPOCH, INITIAL_EPOCH, NO_SESSION, Told, Wanted, wanted_in,
    },
};
use crate::{
    partition::{Follower, FollowerNews, MaxLag, PartitionError, PartitionKey, Read},
    sync::lock,
    time,
};
use rand::Rng;
use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{Arc, Mutex},
};
use yuxi_controller::{image::BrokerImage, store::Revision};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerEpoch, BrokerId, TopicId},
    messages::{FetchRequest, KafkaRequest},
};

/// The sessions of the brokers that follow this one.
#[derive(Debug, Default)]
pub(crate) struct FollowerSessions {
    by_broker: Mutex<HashMap<BrokerId, Arc<Session>>>,
}

#[derive(Debug)]
struct Session {
    id: i32,
    broker_epoch: BrokerEpoch,
    news: Arc<FollowerNews>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The epoch that the next request must carry.
    epoch: i32,
    known: HashMap<PartitionKey, Known>,
}

#[derive(Debug)]
struct Known {
    wanted: Wanted,
    told: Told,
}

impl Known {
    /// An answer to `asked` says this; whether it is news to the follower. The follower drops
    /// what answers a question that it asks no more (I2): its log has grown since, by an answer
    /// before this one. So that does not count as told, or the follower would keep an older high
    /// watermark until the next one, and whoever reads there (KIP-392) would miss the last
    /// records. That it takes what is told in any order is safe: within an epoch it never lets
    /// its high watermark go back.
    fn tell(&mut self, asked: &Wanted, told: Told) -> bool {
        let is_news = self.told != told;
        if self.wanted.is_same_question(asked) {
            self.told = told;
        }
        is_news
    }
}

/// Which follower asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replica {
    pub(super) id: BrokerId,
    pub(super) broker_epoch: BrokerEpoch,
}

impl Replica {
    /// An ordinary client that set a replica id moved the high watermark and lost data
    /// (CVE-2018-1288), so a follower must be registered, and know in which incarnation.
    pub(super) fn lives_as(self, incarnation: &[u8], context: &Context) -> bool {
        self.finds_itself(context, |broker| {
            broker.registration.incarnation.as_bytes() == incarnation
        })
    }

    /// Whether it is still what it was when it proved that.
    fn is_registered(self, context: &Context) -> bool {
        self.finds_itself(context, |_| true)
    }

    fn finds_itself(self, context: &Context, suits: impl Fn(&BrokerImage) -> bool) -> bool {
        self.id != context.node.broker_id
            && context
                .node
                .image()
                .broker(self.id)
                .is_some_and(|broker| broker.epoch == self.broker_epoch && suits(broker))
    }
}

/// Answers the fetch of a registered follower. `arriving` is the revision at which this
/// broker will lead what it does not lead yet.
pub(super) fn start(
    context: &Context,
    fetch: &FetchRequest,
    replica: Replica,
    limits: Limits,
    arriving: Option<Revision>,
) -> Started {
    let mut answering = match context.node.follower_sessions.open(fetch, replica) {
        Ok(answering) => answering,
        Err(error) => return Started::Ready(response::error(context, error)),
    };
    if arriving.is_none() {
        match answering.look(context, limits) {
            Ok(()) if answering.is_enough(limits) => {
                return Started::Ready(answering.finish(context));
            }
            Ok(()) => {}
            Err(error) => return Started::Ready(response::error(context, error)),
        }
    }
    let context = context.clone();
    Started::Pending(Box::pin(async move {
        if let Some(revision) = arriving {
            context.node.applied_by(revision, limits.deadline).await;
        }
        answering.wait(&context, limits).await
    }))
}

impl FollowerSessions {
    /// Sessions open now.
    pub(crate) fn len(&self) -> usize {
        lock(&self.by_broker).len()
    }

    fn open(&self, fetch: &FetchRequest, replica: Replica) -> Result<Answering, ErrorCode> {
        let is_full = matches!(fetch.session_epoch, FINAL_EPOCH | INITIAL_EPOCH);
        let session = if is_full {
            let session = Arc::new(Session::new(fetch, replica.broker_epoch));
            if fetch.session_epoch == INITIAL_EPOCH {
                lock(&self.by_broker).insert(replica.id, Arc::clone(&session));
            }
            session
        } else {
            lock(&self.by_broker)
                .get(&replica.id)
                // In another incarnation it has to be heard on every partition.
                .filter(|known| {
                    known.id == fetch.session_id && known.broker_epoch == replica.broker_epoch
                })
                .cloned()
                .ok_or(ErrorCode::FetchSessionIdNotFound)?
        };
        let next_epoch = session.take_in(fetch)?;
        session.news.asked(time::monotonic());
        Ok(Answering {
            session,
            replica,
            next_epoch,
            is_full,
            looked: BTreeMap::new(),
        })
    }
}

impl Session {
    fn new(fetch: &FetchRequest, broker_epoch: BrokerEpoch) -> Self {
        Self {
            id: match fetch.session_epoch {
                FINAL_EPOCH => NO_SESSION,
                _ => rand::rng().random_range(1..=i32::MAX),
            },
            broker_epoch,
            news: Arc::default(),
            state: Mutex::new(State {
                epoch: fetch.session_epoch,
                known: HashMap::new(),
            }),
        }
    }

    /// Takes a request's changes in; returns the epoch of the next request.
    fn take_in(&self, fetch: &FetchRequest) -> Result<i32, ErrorCode> {
        let mut state = lock(&self.state);
        if fetch.session_epoch != state.epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        state.epoch = match state.epoch {
            FINAL_EPOCH | i32::MAX => FIRST_INCREMENTAL_EPOCH,
            epoch => epoch + 1,
        };
        // Whoever sends another request wants the answer to the last one now.
        self.news.wake();
        for wanted in wanted_in(fetch) {
            let key = (wanted.topic_id, wanted.partition);
            // Whatever was told as the answer to another question may have been dropped.
            let told = Told::NOTHING;
            state.known.insert(key, Known { wanted, told });
            self.news.note(key);
        }
        for topic in &fetch.forgotten_topics_data {
            let id = TopicId::from(topic.topic_id);
            for &partition in &topic.partitions {
                state.known.remove(&(id, partition));
            }
        }
        Ok(state.epoch)
    }
}

/// A request that is being answered.
struct Answering {
    session: Arc<Session>,
    replica: Replica,
    /// The session's epoch as long as no later request has come.
    next_epoch: i32,
    /// Every partition is answered, changed or not.
    is_full: bool,
    looked: BTreeMap<PartitionKey, Looked>,
}

/// What a look at a partition found.
struct Looked {
    wanted: Wanted,
    fetched: FetchedPartition,
    is_settled: bool,
}

impl Answering {
    async fn wait(mut self, context: &Context, limits: Limits) -> Outcome {
        loop {
            // What has changed since is for the next request, which is here.
            if lock(&self.session.state).epoch != self.next_epoch {
                return self.finish(context);
            }
            // Also before the first wait: the request before this one may have been woken
            // by what is this one's.
            if let Err(error) = self.look(context, limits) {
                return response::error(context, error);
            }
            if self.is_enough(limits) {
                return self.finish(context);
            }
            // Woken or out of time, what is there now is looked at.
            let _ = tokio::time::timeout_at(limits.deadline, self.session.news.woken()).await;
        }
    }

    /// Reads whatever is on the session's list, until the request's limit is reached. The
    /// first that has anything gives at least one batch.
    fn look(&mut self, context: &Context, limits: Limits) -> Result<(), ErrorCode> {
        if !self.replica.is_registered(context) {
            // As anybody's, its next request is refused, until it is registered again.
            return Err(ErrorCode::FetchSessionIdNotFound);
        }
        let max = MaxLag {
            now: time::monotonic(),
            lag_ms: context.node.settings.replica_lag_time_max_ms,
        };
        // By the newest image: a partition here may have lost the follower already, because
        // that shuts down, and must not take it for one that is about to join.
        let newest = context.node.controller.image();
        let is_active = newest.is_active(self.replica.id);
        for key in self.session.news.take() {
            self.looked.remove(&key);
            let Some(wanted) = lock(&self.session.state)
                .known
                .get(&key)
                .map(|known| known.wanted.clone())
            else {
                continue;
            };
            let taken: usize = self.record_bytes();
            let read = Read {
                max_bytes: limits.max_bytes.saturating_sub(taken).min(wanted.max_bytes),
                at_least_one_batch: taken == 0,
                ..wanted.read(limits.isolation)
            };
            let follower = Follower {
                id: self.replica.id,
                broker_epoch: self.replica.broker_epoch,
                is_active,
                log_start: wanted.log_start_offset,
                news: &self.session.news,
            };
            let (fetched, is_settled) = look_at(context, &wanted, follower, read, max);
            self.looked.insert(
                key,
                Looked {
                    wanted,
                    fetched,
                    is_settled,
                },
            );
        }
        Ok(())
    }

    fn record_bytes(&self) -> usize {
        let looked = self.looked.values();
        looked.map(|looked| looked.fetched.record_bytes()).sum()
    }

    fn is_enough(&self, limits: Limits) -> bool {
        let fetched = || self.looked.values().map(|looked| &looked.fetched);
        is_enough(fetched, limits) || lock(&self.session.state).known.is_empty()
    }

    fn finish(&mut self, context: &Context) -> Outcome {
        let metrics = &context.node.metrics;
        let looked = mem::take(&mut self.looked);
        let mut wanted = Vec::with_capacity(looked.len());
        let mut fetched = Vec::with_capacity(looked.len());
        let mut with_records = Vec::new();
        let mut state = lock(&self.session.state);
        for (key, looked) in looked {
            let told = Told::by(&looked.fetched);
            let bytes = looked.fetched.record_bytes();
            let mut is_news = self.is_full || bytes > 0 || looked.fetched.must_be_told();
            if let Some(known) = state.known.get_mut(&key) {
                is_news |= known.tell(&looked.wanted, told);
            }
            if bytes > 0 {
                with_records.push(key);
            } else if !looked.is_settled {
                self.session.news.note(key);
            }
            if looked.fetched.error != ErrorCode::None {
                metrics.request_failed(FetchRequest::API_KEY.value(), looked.fetched.error);
            } else if let Some(topic) = &looked.fetched.topic {
                metrics.replication_bytes_out(topic, bytes);
            }
            if is_news {
                wanted.push(looked.wanted);
                fetched.push(looked.fetched);
            }
        }
        drop(state);
        // Who gave records is read last next time, so that none starves.
        for key in with_records {
            self.session.news.note(key);
        }
        let endpoints = name_leaders(context, &wanted, &mut fetched);
        let response = Response {
            session_id: self.session.id,
            endpoints,
            parts: wanted.iter().zip(fetched).collect(),
        };
        response.encode(context.version, context.correlation_id)
    }
}

/// Reads one partition for a follower; with it, whether that is settled.
fn look_at(
    context: &Context,
    wanted: &Wanted,
    follower: Follower<'_>,
    read: Read,
    max: MaxLag,
) -> (FetchedPartition, bool) {
    let partition = match find(context, wanted) {
        Ok(partition) => partition,
        Err(error) => return (refused(wanted, error), false),
    };
    let (mut fetched, is_settled) = match partition.read_as_leader_of(follower, read, max) {
        Ok(answer) => {
            if answer.isr_change_due {
                context.node.replication.isr_change_due(&partition);
            }
            let is_settled = answer.is_settled;
            let fetched = FetchedPartition::read(wanted.partition, answer, read.isolation);
            (fetched, is_settled)
        }
        Err(error) => {
            let mut fetched = refused(wanted, error.code());
            if let PartitionError::OffsetOutOfRange { start, .. } = error {
                // A follower that lacks it begins anew there.
                fetched.log_start_offset = start;
            }
            (fetched, false)
        }
    };
    fetched.topic = Some(Arc::clone(&partition.id().topic));
    (fetched, is_settled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use yuxi_protocol::{
        ids::Offset,
        message,
        messages::fetch_request::{FetchPartition, FetchTopic},
    };

    fn fetch(session_epoch: i32, fetch_offset: i64) -> FetchRequest {
        message!(FetchRequest {
            session_epoch,
            topics: vec![message!(FetchTopic {
                partitions: vec![message!(FetchPartition { fetch_offset })],
            })],
        })
    }

    fn committed_up_to(offset: i64) -> Told {
        let mut fetched = FetchedPartition::error(0, ErrorCode::None);
        fetched.high_watermark = Offset::new(offset);
        Told::by(&fetched)
    }

    #[test]
    fn a_high_watermark_in_an_answer_that_the_follower_drops_is_told_again() {
        let key = (TopicId::ZERO, 0);
        let session = Session::new(&fetch(INITIAL_EPOCH, 5), BrokerEpoch::new(1));
        session.take_in(&fetch(INITIAL_EPOCH, 5)).expect("in order");
        let tell = |asked: &Wanted, offset| {
            let mut state = lock(&session.state);
            let known = state.known.get_mut(&key).expect("it is of the session");
            known.tell(asked, committed_up_to(offset))
        };
        let wanted = || lock(&session.state).known[&key].wanted.clone();
        let at_5 = wanted();
        assert!(tell(&at_5, 3));
        assert!(!tell(&at_5, 3), "it knows");
        // With records before it, this is dropped: by then the follower's log ends at 8.
        assert!(tell(&at_5, 4));
        session.take_in(&fetch(1, 8)).expect("in order");
        assert!(tell(&at_5, 4), "the request before is answered only now");
        assert!(tell(&wanted(), 4), "nor was that heard");
        assert!(!tell(&wanted(), 4));
    }
}
