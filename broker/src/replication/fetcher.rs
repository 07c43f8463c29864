//! Reads from one leader for all the partitions that follow it: one connection, one
//! incremental session, the next request as soon as an answer is taken in.
//!
//! While a request waits at the leader for records, a second one that brings new
//! partitions may follow it; the leader then answers the first at once. What an answer
//! may change is for the partition to say (I2).

use super::{
    Key, lock,
    session::{Sent, Session},
};
use crate::{
    node::{self, Node},
    partition::{Cut, Divergence, FromLeader, Partition, Position},
    time,
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use yuxi_client::{ClientConfig, Connection, connection::Reply};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerId, LeaderEpoch, Offset, TopicId},
    messages::{FetchRequest, FetchResponse, fetch_response::PartitionData},
    tags,
};

/// Followers say which incarnation they are from this version of Fetch on; a leader that
/// speaks only older ones is no broker of ours.
const OLDEST_VERSION: i16 = 15;

/// Requests that may be unanswered: one that waits for records, and one with news.
const MOST_OUTSTANDING: usize = 2;

/// The first rest after a connection failed.
const FIRST_REST: Duration = Duration::from_millis(10);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The handle: tells the task what to follow.
pub(super) struct Fetcher {
    changes: Mutex<Vec<Change>>,
    changed: Notify,
}

enum Change {
    Follow(Key, Arc<Partition>, LeaderEpoch),
    Remove(Key),
}

impl Fetcher {
    pub(super) fn start(node: &Arc<Node>, leader: BrokerId) -> (Arc<Self>, JoinHandle<()>) {
        let fetcher = Arc::new(Self {
            changes: Mutex::default(),
            changed: Notify::new(),
        });
        let settings = &node.settings;
        let longest_rest = millis(settings.replica_fetch_backoff_ms).max(FIRST_REST);
        let task = Task {
            node: Arc::downgrade(node),
            fetcher: Arc::clone(&fetcher),
            leader,
            config: config(node),
            session: Session::new(longest_rest),
            connection: None,
            outstanding: VecDeque::new(),
            rest: FIRST_REST,
            longest_rest,
        };
        let task = tokio::runtime::Handle::current().spawn(task.run());
        (fetcher, task)
    }

    pub(super) fn follow(&self, key: Key, partition: Arc<Partition>, epoch: LeaderEpoch) {
        lock(&self.changes).push(Change::Follow(key, partition, epoch));
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, key: Key) {
        lock(&self.changes).push(Change::Remove(key));
        self.changed.notify_one();
    }
}

fn millis(value: i32) -> Duration {
    Duration::from_millis(u64::try_from(value).unwrap_or(0))
}

fn config(node: &Node) -> ClientConfig {
    let mut config = ClientConfig::default();
    config.client_id = format!("broker-{}-fetcher", node.broker_id);
    config.connect_timeout = CONNECT_TIMEOUT;
    // An answer has at least one batch, however large; memory is taken as bytes come.
    config.receive_max_bytes = i32::MAX as usize;
    config
}

struct Task {
    /// The node owns this task.
    node: Weak<Node>,
    fetcher: Arc<Fetcher>,
    leader: BrokerId,
    config: ClientConfig,
    session: Session,
    connection: Option<Connection>,
    outstanding: VecDeque<(u64, Reply<FetchRequest>)>,
    rest: Duration,
    longest_rest: Duration,
}

/// Why the connection was given up.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the leader is not registered")]
    NoLeader,
    #[error("this broker is not registered")]
    NotRegistered,
    #[error("{0}")]
    Connection(#[from] yuxi_client::Error),
    #[error("the leader speaks only version {0} of Fetch")]
    OldLeader(i16),
    #[error("the leader refused the fetch: {0:?}")]
    Refused(Option<ErrorCode>),
}

enum Event {
    Answered(u64, Result<FetchResponse, yuxi_client::Error>),
    News,
}

impl Task {
    async fn run(mut self) {
        loop {
            let Some(node) = self.node.upgrade() else {
                return;
            };
            match self.turn(&node).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(leader = %self.leader, %error, "replication is interrupted");
                    self.connection = None;
                    self.outstanding.clear();
                    self.session.reset();
                    drop(node);
                    sleep(self.rest).await;
                    self.rest = (self.rest * 2).min(self.longest_rest);
                }
            }
        }
    }

    /// Sends what is to be sent, and takes in the next thing that happens.
    async fn turn(&mut self, node: &Arc<Node>) -> Result<(), FetchError> {
        for change in std::mem::take(&mut *lock(&self.fetcher.changes)) {
            match change {
                Change::Follow(key, partition, epoch) => {
                    self.session.follow(key, partition, epoch);
                }
                Change::Remove(key) => self.session.remove(key),
            }
        }
        let next_rested = self.session.wake_rested(Instant::now());
        let may_send = match self.outstanding.len() {
            0 => true,
            outstanding => {
                outstanding < MOST_OUTSTANDING
                    && self.session.is_incremental()
                    && self.session.has_news()
            }
        };
        if may_send {
            self.send(node).await?;
        }
        let fetcher = Arc::clone(&self.fetcher);
        let event = {
            let answer = async {
                match self.outstanding.front_mut() {
                    Some((number, reply)) => (*number, reply.answer_ref().await),
                    None => std::future::pending().await,
                }
            };
            let rested = async {
                match next_rested {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                (number, answer) = answer => Event::Answered(number, answer),
                () = fetcher.changed.notified() => Event::News,
                () = rested => Event::News,
            }
        };
        match event {
            Event::News => Ok(()),
            Event::Answered(number, answer) => {
                self.outstanding.pop_front();
                self.take(node, number, answer?).await
            }
        }
    }

    async fn send(&mut self, node: &Arc<Node>) -> Result<(), FetchError> {
        let settings = &node.settings;
        let Some((number, mut request)) = self.session.request(settings.replica_fetch_max_bytes)
        else {
            return Ok(());
        };
        let connection = self.connection(node).await?;
        let registration = node.controller.image();
        let own = registration
            .broker(node.broker_id)
            .ok_or(FetchError::NotRegistered)?;
        request.replica_state.replica_id = node.broker_id.value();
        request.replica_state.replica_epoch = own.epoch.value();
        let incarnation = Bytes::from(own.registration.incarnation.clone());
        request.unknown_tagged_fields = tags::one(tags::INCARNATION, incarnation);
        request.max_wait_ms = settings.replica_fetch_wait_max_ms;
        request.min_bytes = settings.replica_fetch_min_bytes;
        request.max_bytes = settings.replica_fetch_response_max_bytes;
        let version = connection.version::<FetchRequest>(i16::MAX)?;
        if version.value() < OLDEST_VERSION {
            return Err(FetchError::OldLeader(version.value()));
        }
        let timeout = millis(settings.replica_socket_timeout_ms);
        let reply = connection.start(&request, version, timeout).await?;
        self.outstanding.push_back((number, reply));
        Ok(())
    }

    async fn connection(&mut self, node: &Arc<Node>) -> Result<Connection, FetchError> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        let endpoint = node::endpoints(&node.controller.image())
            .into_iter()
            .find(|endpoint| endpoint.id == self.leader)
            .ok_or(FetchError::NoLeader)?;
        let address = endpoint.address();
        let connection = Connection::open(&address, &self.config).await?;
        tracing::debug!(leader = %self.leader, address, "replication is connected");
        self.connection = Some(connection.clone());
        Ok(connection)
    }

    async fn take(
        &mut self,
        node: &Arc<Node>,
        number: u64,
        answer: FetchResponse,
    ) -> Result<(), FetchError> {
        if answer.error_code != 0 {
            let code = ErrorCode::from_code(answer.error_code);
            if matches!(
                code,
                Some(
                    ErrorCode::FetchSessionIdNotFound
                        | ErrorCode::InvalidFetchSessionEpoch
                        | ErrorCode::FetchSessionTopicIdError
                )
            ) {
                // The leader has forgotten the session. A request behind this one is of it too.
                self.outstanding.clear();
                self.session.reset();
                return Ok(());
            }
            return Err(FetchError::Refused(code));
        }
        self.rest = FIRST_REST;
        self.session.answered(answer.session_id);
        let mut cuts = Vec::new();
        let mut flushes = Vec::new();
        for topic in &answer.responses {
            let topic_id = TopicId::from(topic.topic_id);
            for data in &topic.partitions {
                let key = (topic_id, data.partition_index);
                let Some(wanted) = self.session.get(key) else {
                    continue;
                };
                let Some(sent) = wanted.sent.filter(|sent| sent.request <= number) else {
                    continue;
                };
                let partition = Arc::clone(&wanted.partition);
                match judge(node, &partition, sent, data) {
                    Verdict::Unchanged => {}
                    Verdict::Moved { flush } => {
                        if flush {
                            flushes.push(Arc::clone(&partition));
                        }
                        self.session.moved(key);
                    }
                    Verdict::Cut(position, cut) => {
                        cuts.push((partition, position, cut));
                        self.session.moved(key);
                    }
                    Verdict::Rest => self.session.rest(key, Instant::now()),
                }
            }
        }
        if !cuts.is_empty() || !flushes.is_empty() {
            settle(node, cuts, flushes).await;
        }
        Ok(())
    }
}

/// What follows from a partition's part of an answer.
enum Verdict {
    Unchanged,
    Moved { flush: bool },
    Cut(Position, Cut),
    Rest,
}

fn judge(node: &Node, partition: &Arc<Partition>, sent: Sent, data: &PartitionData) -> Verdict {
    let position = sent.position;
    match ErrorCode::from_code(data.error_code) {
        Some(ErrorCode::None) => {}
        Some(ErrorCode::OffsetOutOfRange) if data.log_start_offset >= 0 => {
            // The leader has deleted where this log ends. (Had this log more than the
            // leader's, it would be told where they diverge.)
            let start = Offset::new(data.log_start_offset);
            tracing::info!(
                partition = %partition.id(), end = %position.offset, %start,
                "the leader's log starts elsewhere; this one begins anew there"
            );
            return Verdict::Cut(position, Cut::StartAt(start));
        }
        error => {
            tracing::debug!(partition = %partition.id(), ?error, "a fetch was refused");
            return Verdict::Rest;
        }
    }
    if data.diverging_epoch.epoch >= 0 || data.diverging_epoch.end_offset >= 0 {
        let divergence = Divergence {
            epoch: LeaderEpoch::new(data.diverging_epoch.epoch),
            end_offset: Offset::new(data.diverging_epoch.end_offset),
        };
        return match partition.cut_for(&position, divergence) {
            Some(cut) => Verdict::Cut(position, cut),
            None => Verdict::Unchanged,
        };
    }
    let answer = FromLeader {
        position,
        high_watermark: Offset::new(data.high_watermark),
        log_start: Offset::new(data.log_start_offset),
        records: data.records.as_deref().unwrap_or_default(),
    };
    let taken = match partition.take(answer, time::wall_ms()) {
        Ok(Some(taken)) => taken,
        Ok(None) => return Verdict::Unchanged,
        Err(error) => {
            tracing::error!(partition = %partition.id(), %error, "replication failed");
            return Verdict::Rest;
        }
    };
    node.metrics
        .replication_bytes_in(&partition.id().topic, taken.bytes);
    if let Some(error) = taken.error {
        tracing::error!(partition = %partition.id(), %error, "what the leader sent was not appended");
        if taken.start_flush {
            // Whoever appends next would wait for it.
            return Verdict::Moved { flush: true };
        }
        return Verdict::Rest;
    }
    if taken.bytes > 0 || position.log_start < answer.log_start {
        Verdict::Moved {
            flush: taken.start_flush,
        }
    } else {
        Verdict::Unchanged
    }
}

/// Cuts logs, and flushes those whose records the next fetch may only then acknowledge.
async fn settle(
    node: &Arc<Node>,
    cuts: Vec<(Arc<Partition>, Position, Cut)>,
    flushes: Vec<Arc<Partition>>,
) {
    let settling = Arc::clone(node);
    let settled = node.run_blocking(move || {
        let node = settling;
        if !cuts.is_empty()
            && let Err(error) = node.replicas.cut(&cuts)
        {
            tracing::error!(%error, "logs that diverge from their leader's could not be cut");
        }
        for partition in flushes {
            if let Err(error) = partition.flush_wanted(&node.metrics) {
                node.storage_failed(&format!("fsync of {}: {error}", partition.id()));
            }
        }
    });
    if let Err(error) = settled.await {
        tracing::error!(%error, "following a leader failed");
    }
}
