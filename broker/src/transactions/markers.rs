//! Has the markers of ended transactions written: to the leader of each partition, again
//! and again until it is committed there or the partition is gone.
//!
//! One task sorts what waits by leader and sends each leader its part, without waiting for
//! what was sent before; what failed comes back to it after a rest, and goes to whoever
//! leads then. Owned by [`super::Transactions`]. Invariant: a marker that a shard has
//! ordered is in the queue, under way or resting, until the shard is told that it is
//! written or the shard is closed; the coordinator's epoch in it is the leader epoch of
//! the shard's partition, so that a coordinator that is no more loses against the next.

use super::Shard;
use crate::{
    api::write_txn_markers,
    node::Node,
    partition::{Ack, TxnMarker},
    sync::lock,
    time,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use yuxi_controller::image::ClusterImage;
use yuxi_coordinator::transactions::{MarkerOrder, MarkerWritten};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{BrokerId, PartitionId},
    message,
    messages::{
        WriteTxnMarkersRequest, WriteTxnMarkersResponse,
        write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic},
    },
};

/// The most markers in one request.
const MOST_IN_ONE_REQUEST: usize = 2_000;

/// The first rest of a marker that could not be written, and the longest.
const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// How long the followers of a partition here may take.
const ACK_TIME: Duration = Duration::from_secs(10);

/// Requests say by which protocol a transaction ended from this version on.
const TRANSACTION_VERSION_FROM: i16 = 2;

/// What is still to be sent.
#[derive(Default)]
pub(super) struct Markers {
    queue: Mutex<Vec<Pending>>,
    changed: Notify,
    /// In the queue, under way or resting.
    unwritten: AtomicUsize,
}

/// What the markers of one transaction have in common.
struct Order {
    shard: Arc<Shard>,
    number: u64,
    transactional_id: StrBytes,
    marker: TxnMarker,
}

/// One marker for one partition.
struct Pending {
    order: Arc<Order>,
    topic: StrBytes,
    partition: i32,
    failures: u32,
}

impl Markers {
    /// Takes on an order of `shard`.
    pub(super) fn write(&self, shard: &Arc<Shard>, order: MarkerOrder) {
        let partitions = order.partitions;
        let order = Arc::new(Order {
            shard: Arc::clone(shard),
            number: order.order,
            transactional_id: order.transactional_id,
            marker: TxnMarker {
                producer_id: order.producer.id,
                producer_epoch: order.producer.epoch,
                coordinator_epoch: shard.epoch.value(),
                commit: order.commit,
                transaction_version: i8::try_from(order.version.level()).unwrap_or(i8::MAX),
            },
        });
        let pending: Vec<Pending> = partitions
            .iter()
            .map(|(topic, partition)| Pending {
                order: Arc::clone(&order),
                topic: topic.clone(),
                partition,
                failures: 0,
            })
            .collect();
        self.unwritten.fetch_add(pending.len(), Ordering::Relaxed);
        self.queue().extend(pending);
        self.changed.notify_one();
    }

    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.load(Ordering::Relaxed)
    }

    /// So many are written, or nobody waits for them any more.
    fn settled(&self, count: usize) {
        self.unwritten.fetch_sub(count, Ordering::Relaxed);
    }

    /// Who leads which partition may have changed.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    fn put_back(&self, pending: Vec<Pending>) {
        self.queue().extend(pending);
        self.changed.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Pending>> {
        lock(&self.queue)
    }

    /// Sends until aborted.
    pub(super) async fn run(&self, node: &Arc<Node>) {
        loop {
            let waiting = std::mem::take(&mut *self.queue());
            if !waiting.is_empty() {
                send_all(node, waiting);
            }
            self.changed.notified().await;
        }
    }
}

/// Starts to write each of `waiting` where it belongs.
fn send_all(node: &Arc<Node>, mut waiting: Vec<Pending>) {
    let all = waiting.len();
    waiting.retain(|pending| !pending.order.shard.is_closed());
    node.transactions.markers.settled(all - waiting.len());
    let image = node.image();
    let mut by_leader: BTreeMap<BrokerId, Vec<Pending>> = BTreeMap::new();
    let mut gone = Vec::new();
    for pending in waiting {
        match leader(&image, &pending) {
            Some(leader) => by_leader.entry(leader).or_default().push(pending),
            None => gone.push(pending),
        }
    }
    if !gone.is_empty() {
        for pending in &gone {
            tracing::info!(
                topic = pending.topic.as_str(), partition = pending.partition,
                producer_id = %pending.order.marker.producer_id,
                "a partition is gone before its transaction has ended there"
            );
        }
        written(node, gone);
    }
    for (leader, mut pending) in by_leader {
        while !pending.is_empty() {
            let rest = pending.split_off(pending.len().min(MOST_IN_ONE_REQUEST));
            let part = std::mem::replace(&mut pending, rest);
            let node = Arc::clone(node);
            if leader == node.broker_id {
                // Appended at once: only the acknowledgement is waited for.
                let begun = begin_here(&node, part);
                tokio::spawn(async move { finish_here(&node, begun).await });
            } else {
                tokio::spawn(async move { send(&node, leader, part).await });
            }
        }
    }
}

/// Who leads the partition, perhaps nobody; `None` if there is no such partition any more.
fn leader(image: &ClusterImage, pending: &Pending) -> Option<BrokerId> {
    let state = image.partition(&pending.topic, PartitionId::new(pending.partition))?;
    Some(state.leader)
}

/// Markers that are in the log of a partition here, or why they are not.
type Begun = Vec<(Pending, Result<Ack, ErrorCode>)>;

fn begin_here(node: &Arc<Node>, pending: Vec<Pending>) -> Begun {
    let now_ms = time::wall_ms();
    pending
        .into_iter()
        .map(|pending| {
            let marker = &pending.order.marker;
            let appended =
                write_txn_markers::append(node, &pending.topic, pending.partition, marker, now_ms);
            (pending, appended)
        })
        .collect()
}

async fn finish_here(node: &Arc<Node>, begun: Begun) {
    let deadline = tokio::time::Instant::now() + ACK_TIME;
    let mut results = Vec::with_capacity(begun.len());
    for (pending, appended) in begun {
        let error = match appended {
            Ok(Ack::Now) => ErrorCode::None,
            Ok(Ack::Later(ack)) => match tokio::time::timeout_at(deadline, ack).await {
                Ok(Ok(Ok(()))) => ErrorCode::None,
                Ok(Ok(Err(error))) => error,
                Ok(Err(_)) => ErrorCode::NotLeaderOrFollower,
                Err(_) => ErrorCode::RequestTimedOut,
            },
            Err(error) => error,
        };
        results.push((pending, error));
    }
    settle(node, results);
}

async fn send(node: &Arc<Node>, leader: BrokerId, pending: Vec<Pending>) {
    if leader == BrokerId::NONE {
        return settle(node, failed(pending, ErrorCode::LeaderNotAvailable));
    }
    let answer = node
        .transactions
        .peers
        .ask(node, leader, i16::MAX, |version| request(&pending, version))
        .await;
    match answer {
        Ok(answer) => {
            let told = told(&answer);
            let error_of = |pending: &Pending| {
                let key = (
                    pending.order.marker.producer_id.value(),
                    pending.topic.clone(),
                    pending.partition,
                );
                told.get(&key).copied()
            };
            let results = pending
                .into_iter()
                .map(|pending| {
                    // What is not told of is not known to be done.
                    let error = error_of(&pending).unwrap_or(ErrorCode::UnknownServerError);
                    (pending, error)
                })
                .collect();
            settle(node, results);
        }
        Err(error) => {
            tracing::debug!(%leader, %error, "markers were not sent");
            settle(node, failed(pending, ErrorCode::NetworkException));
        }
    }
}

fn failed(pending: Vec<Pending>, error: ErrorCode) -> Vec<(Pending, ErrorCode)> {
    pending.into_iter().map(|one| (one, error)).collect()
}

fn request(pending: &[Pending], version: i16) -> WriteTxnMarkersRequest {
    let mut markers: Vec<WritableTxnMarker> = Vec::new();
    let mut at: HashMap<*const Order, usize> = HashMap::new();
    for one in pending {
        let order = &one.order;
        let index = *at.entry(Arc::as_ptr(order)).or_insert_with(|| {
            markers.push(message!(WritableTxnMarker {
                producer_id: order.marker.producer_id.value(),
                producer_epoch: order.marker.producer_epoch.value(),
                transaction_result: order.marker.commit,
                coordinator_epoch: order.marker.coordinator_epoch,
                transaction_version: if version >= TRANSACTION_VERSION_FROM {
                    order.marker.transaction_version
                } else {
                    0
                },
            }));
            markers.len() - 1
        });
        let topics = &mut markers[index].topics;
        // The partitions of a topic follow one another.
        match topics.last_mut().filter(|topic| topic.name == one.topic) {
            Some(topic) => topic.partition_indexes.push(one.partition),
            None => topics.push(message!(WritableTxnMarkerTopic {
                name: one.topic.clone(),
                partition_indexes: vec![one.partition],
            })),
        }
    }
    message!(WriteTxnMarkersRequest { markers })
}

/// What an answer says of each producer's marker in each partition.
fn told(answer: &WriteTxnMarkersResponse) -> HashMap<(i64, StrBytes, i32), ErrorCode> {
    let mut told = HashMap::new();
    for marker in &answer.markers {
        for topic in &marker.topics {
            for partition in &topic.partitions {
                let error = ErrorCode::from_code(partition.error_code)
                    .unwrap_or(ErrorCode::UnknownServerError);
                let key = (
                    marker.producer_id,
                    topic.name.clone(),
                    partition.partition_index,
                );
                told.insert(key, error);
            }
        }
    }
    told
}

/// Tells the shards what is done, and has the rest tried again.
fn settle(node: &Arc<Node>, results: Vec<(Pending, ErrorCode)>) {
    let mut done = Vec::new();
    let mut again: BTreeMap<Duration, Vec<Pending>> = BTreeMap::new();
    for (mut pending, error) in results {
        if is_done(error) {
            done.push(pending);
            continue;
        }
        tracing::debug!(
            topic = pending.topic.as_str(), partition = pending.partition,
            producer_id = %pending.order.marker.producer_id, error = error.name(),
            "a marker is not written yet"
        );
        again.entry(rest(pending.failures)).or_default().push({
            pending.failures += 1;
            pending
        });
    }
    written(node, done);
    for (rest, pending) in again {
        let node = Arc::clone(node);
        tokio::spawn(async move {
            tokio::time::sleep(rest).await;
            node.transactions.markers.put_back(pending);
        });
    }
}

/// Whether the partition has the marker, or has no transaction that it could end.
fn is_done(error: ErrorCode) -> bool {
    match error {
        // A newer epoch of the producer is in the log: this marker was there before it. A
        // producer gets no newer epoch before its markers are written.
        ErrorCode::None | ErrorCode::InvalidProducerEpoch => true,
        // Nothing else is final. A coordinator that is fenced is closed when it hears that
        // another leads its partition; whatever is wrong with a partition may be mended.
        _ => false,
    }
}

fn rest(failures: u32) -> Duration {
    FIRST_REST
        .saturating_mul(1 << failures.min(10))
        .min(LONGEST_REST)
}

fn written(node: &Arc<Node>, done: Vec<Pending>) {
    node.transactions.markers.settled(done.len());
    let mut by_shard: Vec<(Arc<Shard>, Vec<MarkerWritten>)> = Vec::new();
    for pending in done {
        let order = &pending.order;
        let marker = MarkerWritten {
            order: order.number,
            transactional_id: order.transactional_id.clone(),
            topic: pending.topic,
            partition: pending.partition,
        };
        match by_shard
            .iter_mut()
            .find(|(shard, _)| Arc::ptr_eq(shard, &order.shard))
        {
            Some((_, markers)) => markers.push(marker),
            None => by_shard.push((Arc::clone(&order.shard), vec![marker])),
        }
    }
    for (shard, markers) in by_shard {
        node.transactions.markers_written(node, &shard, &markers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_up_to_a_second() {
        assert_eq!(rest(0), Duration::from_millis(10));
        assert_eq!(rest(3), Duration::from_millis(80));
        assert_eq!(rest(u32::MAX), LONGEST_REST);
    }

    #[test]
    fn only_a_written_marker_is_done() {
        let done: Vec<_> = ErrorCode::ALL
            .iter()
            .copied()
            .filter(|&error| is_done(error))
            .collect();
        assert_eq!(done, [ErrorCode::None, ErrorCode::InvalidProducerEpoch]);
    }
}
