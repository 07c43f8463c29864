//! Fetch (key 1): reads record batches, waiting for them if there are too few.
//!
//! The answer is never copied: it is a list of encoded bytes and slices of segment
//! files. Sessions (KIP-227) remember the partitions of a consumer between requests.
//!
//! A fetch with a replica id changes what this leader knows of its followers, so it is
//! believed only from a broker that is registered in that very incarnation (I7), and that
//! names the incarnation, in a tagged field of ours: a broker's id and epoch are small numbers,
//! and this can only be read in the metadata store. Such a one is answered by [`followers`],
//! everybody else here.

#[cfg(feature = "bench")]
pub mod bench;
mod followers;
mod response;
mod session;

pub(crate) use followers::FollowerSessions;
pub(crate) use session::FetchSessions;

use super::{Context, Request, Started, leader_hints::LeaderHints};
use crate::{
    node::{Endpoint, Lookup, TopicName},
    partition::{FetchWaiter, Isolation, Partition, Read, Seen},
};
use followers::Replica;
use response::{FetchedPartition, Response};
use session::{Opened, Wanted};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use yuxi_controller::settings::ReplicaSelector;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{BrokerEpoch, BrokerId, TopicId},
    messages::{FetchRequest, KafkaRequest},
    tags,
};

/// Topics are named by their ids from this version on.
const TOPIC_IDS_FROM: i16 = 13;

/// Errors name the leader there is, from this version on (KIP-951).
const LEADER_HINTS_FROM: i16 = 12;

/// Where there is no leader here, the answer says how to reach it, from this version on.
const ENDPOINTS_FROM: i16 = 16;

/// Followers answer consumers, from this version on (KIP-392).
const FROM_FOLLOWERS_FROM: i16 = 11;

/// Followers say in which incarnation they are, from this version on (KIP-903).
const REPLICA_STATE_FROM: i16 = 15;

/// Who reads.
enum Reader {
    Consumer {
        /// Its rack, if a follower in the same one may do.
        rack: Option<StrBytes>,
    },
    /// A registered broker.
    Follower(Replica),
    /// It says that it is a replica, and is none.
    Pretender,
}

/// What a request asks for, apart from its partitions.
#[derive(Clone, Copy)]
struct Limits {
    max_bytes: usize,
    min_bytes: usize,
    isolation: Isolation,
    deadline: Instant,
}

pub(super) fn start(mut request: Request) -> Started {
    let fetch: FetchRequest = match request.decode() {
        Ok(fetch) => fetch,
        Err(error) => return Started::Ready(Err(error)),
    };
    let context = request.into_context();
    let limits = Limits::of(&fetch, &context);
    let asked = fetch.topics.iter().flat_map(|topic| {
        let name = topic_name(&context, &topic.topic, topic.topic_id.into());
        topic.partitions.iter().map(move |p| (name, p.partition))
    });
    let arriving = context.node.arriving(asked);
    match (Reader::of(&fetch, &context), arriving) {
        (Reader::Follower(replica), _) => {
            followers::start(&context, &fetch, replica, limits, arriving)
        }
        (reader, None) => read_for(&context, &fetch, limits, reader),
        (reader, Some(revision)) => Started::Pending(Box::pin(async move {
            context.node.applied_by(revision, limits.deadline).await;
            read_for(&context, &fetch, limits, reader).outcome().await
        })),
    }
}

/// Answers whoever is no follower.
fn read_for(context: &Context, fetch: &FetchRequest, limits: Limits, reader: Reader) -> Started {
    let opened = match context.node.fetch_sessions.open(fetch, context.version) {
        Ok(opened) => opened,
        Err(error) => return Started::Ready(response::error(context, error)),
    };
    let (found, fetched) = collect(context, &opened.wanted, limits, &reader);
    if is_enough(|| fetched.iter(), limits) || opened.wanted.is_empty() {
        return Started::Ready(finish(context, &opened, fetched));
    }
    let parked = Parked::park(found, fetched, limits);
    Started::Pending(Box::pin(wait(
        context.clone(),
        opened,
        limits,
        reader,
        parked,
    )))
}

/// Reads again whenever the bytes that were missing have come, until that is enough.
async fn wait(
    context: Context,
    opened: Opened,
    limits: Limits,
    reader: Reader,
    mut parked: Option<Parked>,
) -> super::Outcome {
    loop {
        if let Some(mut parked) = parked.take()
            && opened.wait_with(&parked.waiter)
        {
            let woken = tokio::time::timeout_at(limits.deadline, parked.waiter.woken()).await;
            if woken.is_err() && !parked.waiter.has_news() {
                let fetched = std::mem::take(&mut parked.fetched);
                return finish(&context, &opened, fetched);
            }
            // Whether woken or out of time, what is there now is looked at.
        }
        let (found, fetched) = collect(&context, &opened.wanted, limits, &reader);
        if is_enough(|| fetched.iter(), limits) || opened.is_superseded() {
            return finish(&context, &opened, fetched);
        }
        parked = Parked::park(found, fetched, limits);
    }
}

impl Limits {
    fn of(fetch: &FetchRequest, context: &Context) -> Self {
        let settings = &context.node.settings;
        let most = settings.fetch_max_bytes;
        let bytes = |value: i32| usize::try_from(value).unwrap_or(0);
        let max_bytes = bytes(fetch.max_bytes.min(most));
        Self {
            max_bytes,
            min_bytes: bytes(fetch.min_bytes).min(max_bytes),
            isolation: if fetch.isolation_level == 1 {
                Isolation::Committed
            } else {
                Isolation::Uncommitted
            },
            deadline: Instant::now()
                + Duration::from_millis(u64::try_from(fetch.max_wait_ms).unwrap_or(0)),
        }
    }
}

impl Reader {
    fn of(fetch: &FetchRequest, context: &Context) -> Self {
        let state = &fetch.replica_state;
        if fetch.replica_id >= 0 {
            Self::Pretender
        } else if state.replica_id < 0 {
            let by_rack =
                context.node.settings.replica_selector_class == ReplicaSelector::RackAware;
            let rack = Some(&fetch.rack_id).filter(|rack| by_rack && !rack.is_empty());
            Self::Consumer {
                rack: rack.cloned(),
            }
        } else {
            let replica = Replica {
                id: BrokerId::new(state.replica_id),
                broker_epoch: BrokerEpoch::new(state.replica_epoch),
            };
            let incarnation = tags::find(&fetch.unknown_tagged_fields, tags::INCARNATION);
            let proves_itself = incarnation.is_some_and(|it| replica.lives_as(it, context));
            if context.version >= REPLICA_STATE_FROM && proves_itself {
                Self::Follower(replica)
            } else {
                Self::Pretender
            }
        }
    }
}

/// Reads every wanted partition, in order, until the request's limit is reached. The
/// first that has anything gives at least one batch, so that a batch larger than every
/// limit can still be consumed (KIP-74).
fn collect(
    context: &Context,
    wanted: &[Wanted],
    limits: Limits,
    reader: &Reader,
) -> (Vec<Option<Arc<Partition>>>, Vec<FetchedPartition>) {
    let mut left = limits.max_bytes;
    let mut any = false;
    let mut found = Vec::with_capacity(wanted.len());
    let mut fetched = Vec::with_capacity(wanted.len());
    for want in wanted {
        let lookup = match reader {
            Reader::Consumer { .. } => find(context, want),
            Reader::Follower(_) | Reader::Pretender => Err(ErrorCode::ClusterAuthorizationFailed),
        };
        let partition = match lookup {
            Ok(partition) => partition,
            Err(error) => {
                found.push(None);
                fetched.push(refused(want, error));
                continue;
            }
        };
        if let Some(replica) = preferred_replica(context, &partition, want, reader) {
            let offsets = partition.offsets();
            let mut answer = FetchedPartition::elsewhere(want.partition, offsets, replica);
            answer.topic = Some(Arc::clone(&partition.id().topic));
            fetched.push(answer);
            found.push(Some(partition));
            continue;
        }
        let read = Read {
            max_bytes: left.min(want.max_bytes),
            at_least_one_batch: !any,
            leader_only: context.version < FROM_FOLLOWERS_FROM,
            ..want.read(limits.isolation)
        };
        let mut answer = match partition.read(read) {
            Ok(answer) => {
                if let Some(slice) = &answer.records {
                    left = left.saturating_sub(slice.len());
                    any = true;
                }
                FetchedPartition::read(want.partition, answer, limits.isolation)
            }
            Err(error) => refused(want, error.code()),
        };
        answer.topic = Some(Arc::clone(&partition.id().topic));
        fetched.push(answer);
        found.push(Some(partition));
    }
    (found, fetched)
}

impl Wanted {
    /// The question to the partition, as a leader is asked.
    fn read(&self, isolation: Isolation) -> Read {
        Read {
            from: self.fetch_offset,
            max_bytes: self.max_bytes,
            at_least_one_batch: false,
            isolation,
            leader_epoch: self.current_leader_epoch,
            last_fetched_epoch: self.last_fetched_epoch,
            leader_only: true,
        }
    }
}

/// The in-sync follower in the reader's rack that it should read from, if this leader is
/// not in that rack itself (KIP-392).
fn preferred_replica(
    context: &Context,
    partition: &Partition,
    want: &Wanted,
    reader: &Reader,
) -> Option<BrokerId> {
    let Reader::Consumer { rack: Some(rack) } = reader else {
        return None;
    };
    if context.version < FROM_FOLLOWERS_FROM {
        return None;
    }
    let rack = Some(rack.as_str());
    if context.node.settings.broker_rack.as_deref() == rack {
        return None;
    }
    let image = context.node.image();
    partition
        .followers_with(want.fetch_offset)
        .into_iter()
        .find(|&id| {
            image
                .broker(id)
                .is_some_and(|broker| broker.registration.rack.as_deref() == rack)
        })
}

fn find(context: &Context, want: &Wanted) -> Result<Arc<Partition>, ErrorCode> {
    let by_id = context.version >= TOPIC_IDS_FROM;
    let lookup = if by_id {
        context
            .node
            .replicas
            .find_by_id(want.topic_id, want.partition)
    } else {
        context.node.replicas.find(&want.topic, want.partition)
    };
    match lookup {
        Lookup::Here(partition) => Ok(partition),
        Lookup::Elsewhere => Err(ErrorCode::NotLeaderOrFollower),
        Lookup::Unknown if by_id => Err(ErrorCode::UnknownTopicId),
        Lookup::Unknown => Err(ErrorCode::UnknownTopicOrPartition),
    }
}

fn refused(want: &Wanted, code: ErrorCode) -> FetchedPartition {
    FetchedPartition::error(want.partition, code)
}

/// Says for what is led elsewhere where that is (KIP-951).
fn name_leaders(
    context: &Context,
    wanted: &[Wanted],
    fetched: &mut [FetchedPartition],
) -> Vec<Endpoint> {
    let elsewhere = |fetched: &FetchedPartition| {
        matches!(
            fetched.error,
            ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch
        )
    };
    if context.version < LEADER_HINTS_FROM || !fetched.iter().any(elsewhere) {
        return Vec::new();
    }
    let mut hints = LeaderHints::new(context);
    for (want, part) in wanted.iter().zip(fetched) {
        if elsewhere(part) {
            let topic = topic_name(context, &want.topic, want.topic_id);
            part.current_leader = hints.leader(topic, want.partition);
        }
    }
    if context.version < ENDPOINTS_FROM {
        return Vec::new();
    }
    hints.endpoints()
}

/// A topic as this version of the request names it.
fn topic_name<'a>(context: &Context, name: &'a str, id: TopicId) -> TopicName<'a> {
    if context.version >= TOPIC_IDS_FROM {
        TopicName::Id(id)
    } else {
        TopicName::Name(name)
    }
}

fn readable_bytes<'a>(fetched: impl Iterator<Item = &'a FetchedPartition>) -> usize {
    fetched.map(FetchedPartition::record_bytes).sum()
}

/// An answer that has what was asked for, or an error to tell, or whose time is over.
fn is_enough<'a, I: Iterator<Item = &'a FetchedPartition>>(
    fetched: impl Fn() -> I,
    limits: Limits,
) -> bool {
    readable_bytes(fetched()) >= limits.min_bytes
        || fetched().any(FetchedPartition::must_be_told)
        // The rest is in the next segment, for the next fetch.
        || fetched().any(|fetched| fetched.cannot_grow)
        || limits.deadline <= Instant::now()
}

fn finish(
    context: &Context,
    opened: &Opened,
    mut fetched: Vec<FetchedPartition>,
) -> super::Outcome {
    let metrics = &context.node.metrics;
    for partition in &fetched {
        if partition.error != ErrorCode::None {
            metrics.request_failed(FetchRequest::API_KEY.value(), partition.error);
        }
        let Some(topic) = &partition.topic else {
            continue;
        };
        metrics.fetch_requested(topic);
        if partition.error != ErrorCode::None {
            metrics.fetch_failed(topic);
        }
        let bytes = partition.record_bytes();
        if bytes > 0 {
            metrics.bytes_out(topic, bytes);
        }
    }
    let (session_id, keep) = opened.close(&fetched);
    let endpoints = name_leaders(context, &opened.wanted, &mut fetched);
    let parts = opened.wanted.iter().zip(fetched).zip(keep);
    let response = Response {
        session_id,
        endpoints,
        parts: parts
            .filter_map(|(part, is_kept)| is_kept.then_some(part))
            .collect(),
    };
    response.encode(context.version, context.correlation_id)
}

/// A fetch parked on its partitions; leaves them when dropped.
struct Parked {
    waiter: Arc<FetchWaiter>,
    partitions: Vec<Arc<Partition>>,
    /// What was read before the wait.
    fetched: Vec<FetchedPartition>,
}

impl Parked {
    /// Parks on every partition found, or `None` if one of them has moved on since it was
    /// read.
    fn park(
        found: Vec<Option<Arc<Partition>>>,
        fetched: Vec<FetchedPartition>,
        limits: Limits,
    ) -> Option<Self> {
        let readable_bytes = readable_bytes(fetched.iter());
        let missing_bytes = limits.min_bytes.saturating_sub(readable_bytes);
        let mut parked = Self {
            waiter: FetchWaiter::new(i64::try_from(missing_bytes).unwrap_or(i64::MAX)),
            partitions: Vec::with_capacity(found.len()),
            fetched,
        };
        for (partition, seen) in found.into_iter().zip(&parked.fetched) {
            let Some(partition) = partition else {
                continue;
            };
            let seen = match limits.isolation {
                Isolation::Uncommitted => Seen::HighWatermark(seen.high_watermark),
                Isolation::Committed => Seen::LastStable(seen.last_stable_offset),
            };
            let unchanged = partition.park_fetch(&parked.waiter, seen);
            parked.partitions.push(partition);
            if !unchanged {
                return None;
            }
        }
        Some(parked)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        for partition in &self.partitions {
            partition.unpark_fetch(&self.waiter);
        }
    }
}
