//! The producer's one task: takes batches out of the accumulator, sends them to
//! the leaders, and brings the answers back.
//!
//! Everything it waits for is an [`Event`]. Requests to one broker are started in
//! the order in which their batches were taken out, at most
//! `max.in.flight.requests.per.connection` unanswered.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use yuxi_protocol::ids::{BrokerId, TopicId};
use yuxi_protocol::message;
use yuxi_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use yuxi_protocol::messages::produce_response::{NodeEndpoint, PartitionProduceResponse};
use yuxi_protocol::messages::{
    InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse,
};

use super::accumulator::Route;
use super::batch::{Batch, Identity};
use super::delivery::Written;
use super::transaction::{Answer, Coordinators, Machine, Next, Protocol, Request};
use super::{Shared, State};
use crate::backoff::Backoff;
use crate::cluster::{Cluster, wire_ms};
use crate::config::{Acks, ClientConfig};
use crate::connection::Connection;
use crate::error::{Error, Result, check, error_code};
use crate::metadata::{Broker, ClusterMetadata};

/// A request carries no more than this unless a single batch does.
const MAX_REQUEST_BYTES: usize = 8 << 20;
/// Newer versions of Produce name topics by id.
const NEWEST_PRODUCE_BY_NAME: i16 = 12;
/// Newer versions of Produce add the partition to the transaction (KIP-890).
const NEWEST_PRODUCE_ANNOUNCED: i16 = 11;
/// Newer versions of InitProducerId are for transactions that outlive their producer.
const NEWEST_INIT_PRODUCER_ID: i16 = 5;

enum Event {
    Connected(BrokerId, Result<Connection>),
    Answered(BrokerId, Vec<Batch>, Result<ProduceResponse>),
    Metadata(Result<()>),
    Identity(Result<Identity>),
    Coordinated(Box<Coordinators>, Box<Request>, Result<Answer>),
}

/// What is known of one broker as a place to send to.
#[derive(Default)]
struct Target {
    connection: Option<Connection>,
    connecting: bool,
    in_flight: usize,
    not_before: Option<Instant>,
}

struct Sender {
    shared: Arc<Shared>,
    config: Arc<ClientConfig>,
    acks: Acks,
    targets: HashMap<BrokerId, Target>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    refreshing: bool,
    refresh_wanted: bool,
    refresh_failed: bool,
    refresh_backoff: Backoff,
    refreshed: Instant,
    identifying: bool,
    identity_failed: bool,
    identity_backoff: Backoff,
    transactional_id: Option<Arc<str>>,
    /// Lent to the request to a coordinator that is on its way.
    coordinators: Option<Box<Coordinators>>,
    /// Until when a transaction may still be ended after the producer was closed.
    grace: Option<Instant>,
}

/// Runs until the producer is closed.
pub(super) async fn run(shared: Arc<Shared>, acks: Acks, transactional_id: Option<Arc<str>>) {
    let config = shared.cluster.config().clone();
    let backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
    let coordinators = |id: &Arc<str>| Coordinators::new(shared.cluster.clone(), id.clone());
    Sender {
        coordinators: transactional_id.as_ref().map(coordinators).map(Box::new),
        transactional_id,
        grace: None,
        shared,
        config,
        acks,
        targets: HashMap::new(),
        events: FuturesUnordered::new(),
        refreshing: false,
        refresh_wanted: false,
        refresh_failed: false,
        refresh_backoff: backoff.clone(),
        refreshed: Instant::now(),
        identifying: false,
        identity_failed: false,
        identity_backoff: backoff,
    }
    .run()
    .await;
}

impl Sender {
    async fn run(mut self) {
        loop {
            if self.is_over() {
                break;
            }
            let wake_at = self.send_what_is_ready().await;
            let wake_at = [wake_at, self.grace].into_iter().flatten().min();
            let shared = self.shared.clone();
            let timer = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = self.events.next() => self.handle(event),
                () = shared.wake.notified() => {}
                () = timer => {}
            }
        }
        self.shared.lock().accumulator.abandon(&Error::Closed);
        self.await_in_flight().await;
        self.shared.settled.notify_waiters();
    }

    /// Whether the producer is closed, and its transaction has had time to be ended.
    fn is_over(&mut self) -> bool {
        let state = self.shared.lock();
        if !state.closing {
            return false;
        }
        let machine = state.transaction.as_ref();
        let is_ending = machine.is_some_and(Machine::is_ending);
        let now = Instant::now();
        !is_ending || now >= *self.grace.get_or_insert(now + CLOSING_GRACE)
    }

    /// Waits for the answers that are outstanding, so that their records get an
    /// outcome; what then wants to be sent again fails.
    async fn await_in_flight(&mut self) {
        let waiting = self.targets.values().any(|target| target.in_flight > 0);
        let limit = if waiting {
            CLOSING_GRACE
        } else {
            Duration::ZERO
        };
        let deadline = tokio::time::Instant::now() + limit;
        while self.targets.values().any(|target| target.in_flight > 0) {
            match tokio::time::timeout_at(deadline, self.events.next()).await {
                Ok(Some(event)) => self.handle(event),
                Ok(None) | Err(_) => break,
            }
        }
        self.shared.lock().accumulator.abandon(&Error::Closed);
    }

    /// Sends batches until nothing more can go, and says when to look again.
    async fn send_what_is_ready(&mut self) -> Option<Instant> {
        loop {
            let now = Instant::now();
            let metadata = self.shared.cluster.metadata();
            let mut requests: BTreeMap<BrokerId, Vec<Batch>> = BTreeMap::new();
            let mut bytes: HashMap<BrokerId, usize> = HashMap::new();
            let mut unconnected = Vec::new();
            let drained = {
                let targets = &self.targets;
                let limit = self.config.max_in_flight;
                let mut state = self.shared.lock();
                let State {
                    accumulator,
                    transaction,
                    ..
                } = &mut *state;
                accumulator.drain(
                    now,
                    |topic, partition, size| {
                        let Some(leader) = metadata.leader(topic, partition) else {
                            return Route::NoLeader;
                        };
                        let target = targets.get(&leader);
                        let connected = target.is_some_and(|t| {
                            t.connection.as_ref().is_some_and(Connection::is_open)
                        });
                        if !connected {
                            unconnected.push(leader);
                            return Route::Busy;
                        }
                        let sum = bytes.entry(leader).or_default();
                        let full = *sum > 0 && *sum + size > MAX_REQUEST_BYTES;
                        if full || target.is_some_and(|t| t.in_flight >= limit) {
                            return Route::Busy;
                        }
                        // Last, because it takes the partition into the transaction.
                        if let Some(machine) = transaction
                            && !machine.admits(topic, partition)
                        {
                            return Route::Busy;
                        }
                        *sum += size;
                        Route::To(leader)
                    },
                    |leader, batch| requests.entry(leader).or_default().push(batch),
                )
            };
            let mut wake_at = self.coordinate(now);
            // Expired batches got their outcome, and a transaction may have ended.
            self.shared.settled.notify_waiters();
            if !drained.leaderless.is_empty()
                || self.refreshed.elapsed() > self.config.metadata_max_age
            {
                self.refresh_wanted = true;
            }
            self.refresh_if_wanted();
            if drained.needs_identity && self.transactional_id.is_none() {
                self.identify();
            }
            for leader in unconnected {
                let not_before = self.connect(leader, now);
                wake_at = [wake_at, not_before].into_iter().flatten().min();
            }
            if requests.is_empty() {
                return [wake_at, drained.wake_at].into_iter().flatten().min();
            }
            for (leader, batches) in requests {
                self.send(leader, batches, &metadata, now).await;
            }
        }
    }

    /// Asks a coordinator what the transaction needs next; when to look again.
    fn coordinate(&mut self, now: Instant) -> Option<Instant> {
        let next = self.shared.lock().coordinate(now);
        match next {
            Next::Ask(request) => {
                // They are here: only one request is on its way at a time.
                let mut coordinators = self.coordinators.take()?;
                self.events.push(Box::pin(async move {
                    let answer = coordinators.ask(&request).await;
                    Event::Coordinated(coordinators, Box::new(request), answer)
                }));
                None
            }
            Next::WaitUntil(at) => Some(at),
            Next::Nothing => None,
        }
    }

    /// Starts one produce request.
    async fn send(
        &mut self,
        leader: BrokerId,
        mut batches: Vec<Batch>,
        metadata: &ClusterMetadata,
        now: Instant,
    ) {
        let connection = self
            .targets
            .get(&leader)
            .and_then(|target| target.connection.clone());
        let Some(connection) = connection else {
            return self.not_sent(batches, &Error::Closed);
        };
        let oldest = batches
            .iter()
            .map(|batch| batch.created)
            .min()
            .unwrap_or(now);
        let left = (oldest + self.config.delivery_timeout).saturating_duration_since(now);
        // Ends with the request's own limit or the oldest batch's, whichever is first.
        let timeout = self.config.request_timeout.min(left.max(SHORTEST_TIMEOUT));
        let ids = topic_ids(&batches, metadata);
        let transaction = self
            .shared
            .lock()
            .transaction
            .as_ref()
            .map(Machine::protocol);
        let version = connection.version::<ProduceRequest>(match (transaction, &ids) {
            (Some(Protocol::Announced), _) => NEWEST_PRODUCE_ANNOUNCED,
            (Some(Protocol::Implied) | None, Some(_)) => i16::MAX,
            (Some(Protocol::Implied) | None, None) => NEWEST_PRODUCE_BY_NAME,
        });
        let version = match version {
            Ok(version) => version,
            Err(error) => return self.not_sent(batches, &error),
        };
        let mut request = ProduceRequest::default();
        request.transactional_id = self.transactional_id.as_deref().map(Into::into);
        request.acks = self.acks.code();
        request.timeout_ms = wire_ms(timeout);
        // Batches of one topic lie together, because requests name a topic once.
        batches.sort_by_key(|batch| batch.topic_index);
        let mut sent = Vec::with_capacity(batches.len());
        for mut batch in batches {
            let mut partition = PartitionProduceData::default();
            partition.index = batch.partition;
            match batch.encode() {
                Ok(bytes) => partition.records = Some(bytes),
                Err(error) => {
                    self.shared.lock().accumulator.give_up(batch, error);
                    continue;
                }
            }
            match request
                .topic_data
                .last_mut()
                .filter(|topic| *topic.name == *batch.topic)
            {
                Some(topic) => topic.partition_data.push(partition),
                None => {
                    let mut topic = TopicProduceData::default();
                    topic.name = (&*batch.topic).into();
                    if let Some(id) = ids.as_ref().and_then(|ids| ids.get(&*batch.topic)) {
                        topic.topic_id = (*id).into();
                    }
                    topic.partition_data.push(partition);
                    request.topic_data.push(topic);
                }
            }
            sent.push(batch);
        }
        let batches = sent;
        if batches.is_empty() {
            return;
        }
        if self.acks == Acks::None {
            return match connection.start_unanswered(&request, version).await {
                Ok(()) => self.sent_without_answer(batches),
                Err(error) => self.not_sent(batches, &error),
            };
        }
        match connection.start(&request, version, timeout).await {
            Ok(reply) => {
                self.targets.entry(leader).or_default().in_flight += 1;
                let cluster = self.shared.cluster.clone();
                self.events.push(Box::pin(async move {
                    let answer = cluster.attend(&connection, Duration::ZERO, reply.answer());
                    Event::Answered(leader, batches, answer.await)
                }));
            }
            Err(error) => self.not_sent(batches, &error),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected(broker, connected) => self.connected(broker, connected),
            Event::Answered(broker, batches, answer) => self.answered(broker, batches, answer),
            Event::Metadata(result) => {
                self.refreshing = false;
                self.refreshed = Instant::now();
                self.refresh_failed = result.is_err();
                match result {
                    Ok(()) => {
                        self.refresh_backoff.reset();
                        self.learn_topics();
                    }
                    Err(error) => {
                        tracing::warn!(%error, "metadata refresh failed");
                        self.refresh_wanted = true;
                    }
                }
            }
            Event::Coordinated(coordinators, request, answer) => {
                let mut state = self.shared.lock();
                let offered = coordinators.transaction_version;
                let machine = state.machine();
                machine.answered(&request, answer, offered, Instant::now());
                if let Some(identity) = machine.identity() {
                    state.accumulator.set_identity(identity);
                }
                drop(state);
                self.coordinators = Some(coordinators);
                self.shared.settled.notify_waiters();
            }
            Event::Identity(Ok(identity)) => {
                self.identifying = false;
                self.identity_failed = false;
                self.identity_backoff.reset();
                self.shared.lock().accumulator.set_identity(identity);
            }
            Event::Identity(Err(error)) => {
                self.identifying = false;
                self.identity_failed = true;
                if !error.is_retriable() {
                    let mut state = self.shared.lock();
                    state.accumulator.abandon(&error);
                    state.fatal = Some(error);
                    drop(state);
                    self.shared.settled.notify_waiters();
                }
            }
        }
    }

    /// Brings a produce answer, or its failure, back to the batches.
    fn answered(&mut self, broker: BrokerId, batches: Vec<Batch>, answer: Result<ProduceResponse>) {
        let target = self.targets.entry(broker).or_default();
        target.in_flight = target.in_flight.saturating_sub(1);
        match answer {
            Err(error) => {
                tracing::debug!(%broker, %error, "produce request failed");
                if target.connection.as_ref().is_some_and(|c| !c.is_open()) {
                    target.connection = None;
                }
                self.not_sent(batches, &error);
            }
            Ok(answer) => {
                let now = Instant::now();
                let metadata = self.shared.cluster.metadata();
                let endpoints = endpoints(&answer);
                let mut answers = answers_by_partition(answer, &metadata);
                for batch in batches {
                    let key = (batch.topic.clone(), batch.partition);
                    self.settle(batch, answers.remove(&key), &endpoints, now);
                }
            }
        }
        self.shared.settled.notify_waiters();
    }

    /// Gives back batches that were not sent, or of which nothing was heard.
    fn not_sent(&mut self, batches: Vec<Batch>, error: &Error) {
        self.refresh_wanted = true;
        // A lost or unreadable answer says nothing about the batch.
        let lost = error.is_retriable() || matches!(error, Error::Malformed { .. });
        let now = Instant::now();
        let mut state = self.shared.lock();
        for batch in batches {
            if lost {
                state.accumulator.retry(batch, error.clone(), now);
            } else {
                state.accumulator.give_up(batch, error.clone());
            }
        }
        drop(state);
        self.shared.settled.notify_waiters();
    }

    fn settle(
        &mut self,
        batch: Batch,
        answer: Option<PartitionProduceResponse>,
        endpoints: &[Broker],
        now: Instant,
    ) {
        let context = || format!("producing to {}-{}", batch.topic, batch.partition);
        let Some(answer) = answer else {
            let error = Error::Malformed {
                what: "Produce answer",
                address: context(),
                detail: "the partition is missing from it".to_owned(),
            };
            return self.shared.lock().accumulator.retry(batch, error, now);
        };
        let Some(code) = error_code(answer.error_code) else {
            let written = Written {
                base_offset: (answer.base_offset >= 0).then_some(answer.base_offset),
                append_time_ms: (answer.log_append_time_ms >= 0)
                    .then_some(answer.log_append_time_ms),
            };
            return self.shared.lock().accumulator.complete(batch, written);
        };
        let leader = &answer.current_leader;
        let told = self.shared.cluster.learn_leader(
            (&batch.topic, batch.partition),
            (leader.leader_id, leader.leader_epoch),
            endpoints,
        );
        self.refresh_wanted |= code.is_retriable() && !told;
        let error = Error::broker(context(), code, answer.error_message.as_deref());
        tracing::debug!(topic = %batch.topic, partition = batch.partition, %error, "batch refused");
        let (topic, partition) = (batch.topic_index, batch.partition);
        let mut state = self.shared.lock();
        state.accumulator.refuse(batch, code, error, now);
        if told {
            // The answer named the new leader: nothing to wait for (KIP-951).
            state.accumulator.retry_at_once(topic, partition as usize);
        }
    }

    fn sent_without_answer(&mut self, batches: Vec<Batch>) {
        let mut state = self.shared.lock();
        for batch in batches {
            state.accumulator.complete(
                batch,
                Written {
                    base_offset: None,
                    append_time_ms: None,
                },
            );
        }
        drop(state);
        self.shared.settled.notify_waiters();
    }

    /// Opens a connection if none is being opened; says when to try if not now.
    fn connect(&mut self, broker: BrokerId, now: Instant) -> Option<Instant> {
        let target = self.targets.entry(broker).or_default();
        if target.connecting {
            return None;
        }
        if let Some(not_before) = target.not_before.filter(|at| now < *at) {
            return Some(not_before);
        }
        target.connecting = true;
        let cluster = self.shared.cluster.clone();
        self.events.push(Box::pin(async move {
            Event::Connected(broker, cluster.broker(broker).await)
        }));
        None
    }

    fn connected(&mut self, broker: BrokerId, connected: Result<Connection>) {
        let target = self.targets.entry(broker).or_default();
        target.connecting = false;
        match connected {
            Ok(connection) => {
                target.connection = Some(connection);
                target.not_before = None;
            }
            Err(error) => {
                tracing::warn!(%broker, %error, "cannot reach the leader");
                target.not_before = Some(Instant::now() + self.config.reconnect_backoff);
                self.refresh_wanted = true;
            }
        }
    }

    /// Records wait for a new leader, so that its name is asked for every
    /// `retry.backoff.ms` without growing pauses, as long as somebody answers.
    fn refresh_if_wanted(&mut self) {
        if !self.refresh_wanted || self.refreshing {
            return;
        }
        self.refresh_wanted = false;
        self.refreshing = true;
        let least = self
            .config
            .retry_backoff
            .saturating_sub(self.refreshed.elapsed());
        let pause = if self.refresh_failed {
            self.refresh_backoff.next()
        } else {
            least
        };
        let cluster = self.shared.cluster.clone();
        let topics = self.shared.lock().accumulator.topic_names();
        self.events.push(Box::pin(async move {
            tokio::time::sleep(pause).await;
            Event::Metadata(cluster.refresh(&topics, true).await.map(drop))
        }));
    }

    fn learn_topics(&mut self) {
        let metadata = self.shared.cluster.metadata();
        let mut state = self.shared.lock();
        for name in state.accumulator.topic_names() {
            if let Some(topic) = metadata.topic(&name) {
                state.accumulator.learn_topic(&name, &topic.partitions);
            }
        }
    }

    fn identify(&mut self) {
        if self.identifying {
            return;
        }
        self.identifying = true;
        let pause = if self.identity_failed {
            self.identity_backoff.next()
        } else {
            Duration::ZERO
        };
        let cluster = self.shared.cluster.clone();
        self.events.push(Box::pin(async move {
            tokio::time::sleep(pause).await;
            Event::Identity(init_producer_id(&cluster).await)
        }));
    }
}

/// Answers that are on their way when the producer closes are waited for this long.
const CLOSING_GRACE: Duration = Duration::from_secs(5);
/// A request gets at least this long, however late its oldest batch is.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);

/// Any broker gives ids out; one that is not used is lost and that is all.
async fn init_producer_id(cluster: &Cluster) -> Result<Identity> {
    let answer: InitProducerIdResponse = cluster
        .ask_any_up_to(NEWEST_INIT_PRODUCER_ID, |_| {
            message!(InitProducerIdRequest {
                transactional_id: None,
                transaction_timeout_ms: i32::MAX
            })
        })
        .await?;
    check(answer.error_code, None, || {
        "getting a producer id".to_owned()
    })?;
    Ok(Identity {
        producer_id: answer.producer_id,
        epoch: answer.producer_epoch,
    })
}

/// The ids of the batches' topics, if all are known.
fn topic_ids(batches: &[Batch], metadata: &ClusterMetadata) -> Option<HashMap<Arc<str>, TopicId>> {
    batches
        .iter()
        .map(|batch| {
            let id = metadata.topic(&batch.topic)?.id;
            (!id.is_zero()).then(|| (batch.topic.clone(), id))
        })
        .collect()
}

/// Where the leaders are that the answer names (KIP-951).
fn endpoints(answer: &ProduceResponse) -> Vec<Broker> {
    let broker = |endpoint: &NodeEndpoint| Broker {
        id: BrokerId::new(endpoint.node_id),
        host: endpoint.host.to_string(),
        port: endpoint.port,
        rack: endpoint.rack.as_ref().map(ToString::to_string),
    };
    answer.node_endpoints.iter().map(broker).collect()
}

/// The answer's parts by topic name, whichever way it names topics.
fn answers_by_partition(
    answer: ProduceResponse,
    metadata: &ClusterMetadata,
) -> HashMap<(Arc<str>, i32), PartitionProduceResponse> {
    let mut parts = HashMap::new();
    for topic in answer.responses {
        let id = TopicId::from(topic.topic_id);
        let name: Option<Arc<str>> = if id.is_zero() {
            Some(topic.name.as_str().into())
        } else {
            metadata
                .topics
                .values()
                .find(|known| known.id == id)
                .map(|known| known.name.clone())
        };
        let Some(name) = name else { continue };
        for partition in topic.partition_responses {
            parts.insert((name.clone(), partition.index), partition);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use yuxi_protocol::error_code::ErrorCode;

    #[test]
    fn every_code_that_tells_of_another_leader_is_retriable() {
        for code in [
            ErrorCode::NotLeaderOrFollower,
            ErrorCode::FencedLeaderEpoch,
            ErrorCode::UnknownTopicOrPartition,
            ErrorCode::UnknownTopicId,
            ErrorCode::LeaderNotAvailable,
        ] {
            assert!(code.is_retriable(), "{code:?}");
        }
    }
}
