//! Fetch (key 1): reads record batches, waiting for them if there are too few.
//!
//! The answer is never copied: it is a list of encoded bytes and slices of segment
//! files. Sessions (KIP-227) remember the partitions of a consumer between requests.

#[cfg(feature = "bench")]
pub mod bench;
mod response;
mod session;

pub(crate) use session::FetchSessions;

use super::{Context, Request, Started};
use crate::{
    node::Lookup,
    partition::{FetchWaiter, Isolation, Partition, PartitionError, Read},
};
use response::{FetchedPartition, Response};
use session::{Opened, Wanted};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::PartitionId,
    messages::{FetchRequest, KafkaRequest},
};

/// Topics are named by their ids from this version on.
const TOPIC_IDS_FROM: i16 = 13;

/// Errors name the leader there is, from this version on (KIP-951).
const LEADER_HINTS_FROM: i16 = 12;

/// What a request asks for, apart from its partitions.
struct Limits {
    max_bytes: usize,
    min_bytes: usize,
    isolation: Isolation,
    deadline: Instant,
    /// A replica id is set, which only brokers may do.
    as_replica: bool,
}

pub(super) fn start(mut request: Request) -> Started {
    let fetch: FetchRequest = match request.decode() {
        Ok(fetch) => fetch,
        Err(error) => return Started::Ready(Err(error)),
    };
    let context = request.into_context();
    let limits = Limits::of(&fetch, context.node.settings.fetch_max_bytes);
    let opened = match context.node.fetch_sessions.open(&fetch, context.version) {
        Ok(opened) => opened,
        Err(error) => return Started::Ready(response::error(&context, error)),
    };
    let (found, fetched) = collect(&context, &opened.wanted, &limits);
    if is_enough(&fetched, &limits) || opened.wanted.is_empty() {
        return Started::Ready(finish(&context, &opened, fetched));
    }
    let parked = Parked::park(found, &fetched, &limits);
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
        if let Some(parked) = parked.take() {
            // Whether woken or out of time, what is there now is looked at.
            let _ = tokio::time::timeout_at(limits.deadline, parked.waiter.woken()).await;
        }
        let (found, fetched) = collect(&context, &opened.wanted, &limits);
        if is_enough(&fetched, &limits) {
            return finish(&context, &opened, fetched);
        }
        parked = Parked::park(found, &fetched, &limits);
    }
}

impl Limits {
    fn of(fetch: &FetchRequest, most: i32) -> Self {
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
            as_replica: fetch.replica_id >= 0 || fetch.replica_state.replica_id >= 0,
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
    for want in wanted {
        let partition = match find(context, want, limits) {
            Ok(partition) => partition,
            Err(error) => {
                found.push(None);
                fetched.push(FetchedPartition::error(want.partition, error));
                continue;
            }
        };
        let read = partition.read(Read {
            from: want.fetch_offset,
            max_bytes: left.min(want.max_bytes),
            at_least_one_batch: !any,
            isolation: limits.isolation,
            leader_epoch: want.current_leader_epoch,
            last_fetched_epoch: want.last_fetched_epoch,
        });
        let mut answer = match read {
            Ok(answer) => {
                if let Some(slice) = &answer.records {
                    left = left.saturating_sub(slice.len());
                    any = true;
                }
                FetchedPartition::read(want.partition, answer, limits.isolation)
            }
            Err(error) => refused(context, want, &error),
        };
        answer.topic = Some(Arc::clone(&partition.id().topic));
        fetched.push(answer);
        found.push(Some(partition));
    }
    (found, fetched)
}

fn find(context: &Context, want: &Wanted, limits: &Limits) -> Result<Arc<Partition>, ErrorCode> {
    if limits.as_replica {
        // An ordinary client that set a replica id moved the high watermark and lost
        // data (CVE-2018-1288).
        return Err(ErrorCode::ClusterAuthorizationFailed);
    }
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

fn refused(context: &Context, want: &Wanted, error: &PartitionError) -> FetchedPartition {
    let code = error.code();
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

fn finish(context: &Context, opened: &Opened, fetched: Vec<FetchedPartition>) -> super::Outcome {
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
    let response = Response {
        session_id,
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
}

impl Parked {
    /// Parks on every partition found, or `None` if one of them has moved on since it was
    /// read.
    fn park(
        found: Vec<Option<Arc<Partition>>>,
        fetched: &[FetchedPartition],
        limits: &Limits,
    ) -> Option<Self> {
        let missing_bytes = limits.min_bytes.saturating_sub(readable_bytes(fetched));
        let mut parked = Self {
            waiter: FetchWaiter::new(i64::try_from(missing_bytes).unwrap_or(i64::MAX)),
            partitions: Vec::with_capacity(found.len()),
        };
        for (partition, seen) in found.into_iter().zip(fetched) {
            let Some(partition) = partition else {
                continue;
            };
            let unchanged = partition.park_fetch(&parked.waiter, seen.high_watermark);
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
