//! Fetch (key 1): reads record batches, waiting for them if there are too few.
//!
//! The answer is never copied: it is a list of encoded bytes and slices of segment
//! files. Sessions (KIP-227) remember the partitions of a consumer between requests.
//!
//! A fetch with a replica id changes what this leader knows of its followers, so it is
//! believed only from a broker that is registered in that very incarnation (I7).

#[cfg(feature = "bench")]
pub mod bench;
mod response;
mod session;

pub(crate) use session::FetchSessions;

use super::{Context, Request, Started};
use crate::{
    node::{self, Lookup},
    partition::{FetchWaiter, Follower, Isolation, Now, Partition, PartitionError, Read, Seen},
    time,
};
use response::{FetchedPartition, Response};
use session::{Opened, Wanted};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::Instant;
use yuxi_controller::settings::ReplicaSelector;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{BrokerEpoch, BrokerId, Offset, PartitionId},
    messages::{FetchRequest, KafkaRequest},
};

const UNKNOWN: Offset = Offset::new(-1);

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
    Replica(BrokerId, BrokerEpoch),
    /// It says that it is a replica, and not which incarnation of which broker.
    Pretender,
}

/// What a request asks for, apart from its partitions.
struct Limits {
    max_bytes: usize,
    min_bytes: usize,
    isolation: Isolation,
    deadline: Instant,
    reader: Reader,
}

pub(super) fn start(mut request: Request) -> Started {
    let fetch: FetchRequest = match request.decode() {
        Ok(fetch) => fetch,
        Err(error) => return Started::Ready(Err(error)),
    };
    let context = request.into_context();
    let limits = Limits::of(&fetch, &context);
    let opened = match context.node.fetch_sessions.open(&fetch, context.version) {
        Ok(opened) => opened,
        Err(error) => return Started::Ready(response::error(&context, error)),
    };
    let (found, fetched) = collect(&context, &opened.wanted, &limits);
    if is_enough(&fetched, &limits) || opened.wanted.is_empty() {
        return Started::Ready(finish(&context, &opened, &limits, fetched));
    }
    let parked = Parked::park(found, fetched, &limits);
    Started::Pending(Box::pin(wait(context, opened, limits, parked)))
}

/// Reads again whenever the bytes that were missing have come, until that is enough.
async fn wait(
    context: Context,
    opened: Opened,
    limits: Limits,
    mut parked: Option<Parked>,
) -> super::Outcome {
    loop {
        if let Some(mut parked) = parked.take()
            && opened.wait_with(&parked.waiter)
        {
            let woken = tokio::time::timeout_at(limits.deadline, parked.waiter.woken()).await;
            if woken.is_err() && !parked.waiter.has_news() {
                let fetched = std::mem::take(&mut parked.fetched);
                return finish(&context, &opened, &limits, fetched);
            }
            // Whether woken or out of time, what is there now is looked at.
        }
        let (found, fetched) = collect(&context, &opened.wanted, &limits);
        if is_enough(&fetched, &limits) || opened.is_superseded() {
            return finish(&context, &opened, &limits, fetched);
        }
        parked = Parked::park(found, fetched, &limits);
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
            reader: Reader::of(fetch, context),
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
        } else if context.version < REPLICA_STATE_FROM {
            Self::Pretender
        } else {
            let epoch = BrokerEpoch::new(state.replica_epoch);
            Self::Replica(BrokerId::new(state.replica_id), epoch)
        }
    }
}

/// Reads every wanted partition, in order, until the request's limit is reached. The
/// first that has anything gives at least one batch, so that a batch larger than every
/// limit can still be consumed (KIP-74).
fn collect(
    context: &Context,
    wanted: &[Wanted],
    limits: &Limits,
) -> (Vec<Option<Arc<Partition>>>, Vec<FetchedPartition>) {
    let mut left = limits.max_bytes;
    let mut any = false;
    let mut found = Vec::with_capacity(wanted.len());
    let mut fetched = Vec::with_capacity(wanted.len());
    let now = Now {
        now_ms: time::now_ms(),
        lag_ms: context.node.settings.replica_lag_time_max_ms,
    };
    let follower = follower(context, limits);
    for want in wanted {
        let lookup = match follower {
            Ok(_) => find(context, want),
            Err(error) => Err(error),
        };
        let partition = match lookup {
            Ok(partition) => partition,
            Err(error) => {
                found.push(None);
                fetched.push(refused(context, want, error));
                continue;
            }
        };
        if let Some(replica) = preferred_replica(context, &partition, want, limits) {
            let offsets = partition.offsets();
            let mut answer = FetchedPartition::elsewhere(want.partition, offsets, replica);
            answer.topic = Some(Arc::clone(&partition.id().topic));
            fetched.push(answer);
            found.push(Some(partition));
            continue;
        }
        let read = Read {
            from: want.fetch_offset,
            max_bytes: left.min(want.max_bytes),
            at_least_one_batch: !any,
            isolation: limits.isolation,
            leader_epoch: want.current_leader_epoch,
            last_fetched_epoch: want.last_fetched_epoch,
            leader_only: context.version < FROM_FOLLOWERS_FROM,
        };
        let read = match follower {
            Ok(Some(follower)) => {
                let follower = Follower {
                    log_start: want.log_start_offset,
                    ..follower
                };
                partition.read_as_leader_of(follower, read, now)
            }
            Ok(None) | Err(_) => partition.read(read),
        };
        let mut answer = match read {
            Ok(answer) => {
                if let Some(slice) = &answer.records {
                    left = left.saturating_sub(slice.len());
                    any = true;
                }
                if answer.isr_change_due {
                    context.node.replication.isr_change_due(&partition);
                }
                FetchedPartition::read(want.partition, answer, limits.isolation)
            }
            Err(error) => {
                let mut answer = refused(context, want, error.code());
                if let PartitionError::OffsetOutOfRange { start, .. } = error
                    && matches!(follower, Ok(Some(_)))
                {
                    // A follower that lacks it begins anew there.
                    answer.log_start_offset = start;
                }
                answer
            }
        };
        answer.topic = Some(Arc::clone(&partition.id().topic));
        fetched.push(answer);
        found.push(Some(partition));
    }
    (found, fetched)
}

/// The broker that fetches as a follower, if one does. An ordinary client that set a
/// replica id moved the high watermark and lost data (CVE-2018-1288), so it must be
/// registered, in this incarnation.
fn follower(context: &Context, limits: &Limits) -> Result<Option<Follower>, ErrorCode> {
    match limits.reader {
        Reader::Consumer { .. } => Ok(None),
        Reader::Pretender => Err(ErrorCode::ClusterAuthorizationFailed),
        Reader::Replica(id, broker_epoch) => {
            let image = context.node.image();
            match image.broker(id) {
                Some(broker) if broker.epoch == broker_epoch && id != context.node.broker_id => {
                    Ok(Some(Follower {
                        id,
                        broker_epoch,
                        is_active: image.is_active(id),
                        log_start: UNKNOWN,
                    }))
                }
                Some(_) | None => Err(ErrorCode::ClusterAuthorizationFailed),
            }
        }
    }
}

/// The in-sync follower in the reader's rack that it should read from, if this leader is
/// not in that rack itself (KIP-392).
fn preferred_replica(
    context: &Context,
    partition: &Partition,
    want: &Wanted,
    limits: &Limits,
) -> Option<BrokerId> {
    let Reader::Consumer { rack: Some(rack) } = &limits.reader else {
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

/// A refusal; with it, the leader to go to (KIP-951).
fn refused(context: &Context, want: &Wanted, code: ErrorCode) -> FetchedPartition {
    let mut fetched = FetchedPartition::error(want.partition, code);
    let look_elsewhere = matches!(
        code,
        ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch
    );
    if look_elsewhere && context.version >= LEADER_HINTS_FROM {
        let image = context.node.image();
        let topic = if context.version >= TOPIC_IDS_FROM {
            image.topic_by_id(want.topic_id)
        } else {
            image.topic(&want.topic)
        };
        fetched.current_leader = topic
            .and_then(|topic| topic.partition(PartitionId::new(want.partition)))
            .map(|state| (state.leader, state.leader_epoch));
    }
    fetched
}

fn readable_bytes(fetched: &[FetchedPartition]) -> usize {
    fetched.iter().map(FetchedPartition::record_bytes).sum()
}

/// An answer that has what was asked for, or an error to tell, or whose time is over.
fn is_enough(fetched: &[FetchedPartition], limits: &Limits) -> bool {
    readable_bytes(fetched) >= limits.min_bytes
        || fetched.iter().any(FetchedPartition::must_be_told)
        // The rest is in the next segment, for the next fetch.
        || fetched.iter().any(|fetched| fetched.cannot_grow)
        || limits.deadline <= Instant::now()
}

fn finish(
    context: &Context,
    opened: &Opened,
    limits: &Limits,
    fetched: Vec<FetchedPartition>,
) -> super::Outcome {
    let metrics = &context.node.metrics;
    let is_replica = matches!(limits.reader, Reader::Replica(..));
    for partition in &fetched {
        if partition.error != ErrorCode::None {
            metrics.request_failed(FetchRequest::API_KEY.value(), partition.error);
        }
        let Some(topic) = &partition.topic else {
            continue;
        };
        if is_replica {
            metrics.replication_bytes_out(topic, partition.record_bytes());
            continue;
        }
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
    let leaders: BTreeSet<BrokerId> = fetched
        .iter()
        .filter_map(|partition| partition.current_leader.map(|(leader, _)| leader))
        .collect();
    let endpoints = if leaders.is_empty() || context.version < ENDPOINTS_FROM {
        Vec::new()
    } else {
        let mut endpoints = node::endpoints(&context.node.image());
        endpoints.retain(|endpoint| leaders.contains(&endpoint.id));
        endpoints
    };
    let response = Response {
        session_id,
        endpoints,
        wanted: &opened.wanted,
        fetched,
        keep: &keep,
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
        limits: &Limits,
    ) -> Option<Self> {
        let missing_bytes = limits.min_bytes.saturating_sub(readable_bytes(&fetched));
        let mut parked = Self {
            waiter: FetchWaiter::new(i64::try_from(missing_bytes).unwrap_or(i64::MAX)),
            partitions: Vec::with_capacity(found.len()),
            fetched,
        };
        for (partition, seen) in found.into_iter().zip(&parked.fetched) {
            let Some(partition) = partition else {
                continue;
            };
            let seen = match limits.reader {
                Reader::Consumer { .. } | Reader::Pretender => match limits.isolation {
                    Isolation::Uncommitted => Seen::HighWatermark(seen.high_watermark),
                    Isolation::Committed => Seen::LastStable(seen.last_stable_offset),
                },
                Reader::Replica(..) => Seen::Log {
                    start: seen.log_start_offset,
                    end: seen.log_end_offset,
                    high_watermark: seen.high_watermark,
                },
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
