//! The runtime around the pure transaction coordinator: it gives each shard the clock,
//! its partition of `__transaction_state` to write to, producer ids, and the clients to
//! answer, and has markers written for it ([`markers`]).
//!
//! A shard lives behind one lock from the moment this broker leads its partition until
//! it no longer does. Under that lock a request is handled, its records are appended and
//! the shard is told so; so the order of the log is the order of the shard's decisions.
//! An answer leaves, and a marker is sent, only when every record that it rests on is
//! below the high watermark: an outcome that a client or a partition knows of is one that
//! every later coordinator finds.

pub(crate) mod admission;
mod loading;
mod markers;
mod peers;

use crate::{
    internal_topics::TRANSACTION_STATE,
    node::{Lookup, Node},
    partition::{Ack, AckReceiver, Partition, PartitionError, RequiredAcks, admission::Admitted},
    time,
};
use markers::Markers;
use peers::Peers;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicI16, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, oneshot};
use yuxi_controller::{
    decide::features::TRANSACTION_VERSION, image::ClusterImage, settings::ServerSettings,
};
use yuxi_coordinator::transactions::{
    CoordinatorRecord, Effects, Handled, ListFilter, Listed, MarkerOrder, MarkerWritten, Released,
    Reply, Ticket, TransactionConfig, TransactionRequest, TransactionResponse, TransactionShard,
    TransactionVersion, partition_for,
};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerId, LeaderEpoch, Offset, PartitionId, ProducerId},
    record::{RecordBatchBuilder, builder::BuildError},
};

/// How long an answer waits for followers to have the records that it rests on.
const COMMIT_TIME: Duration = Duration::from_secs(5);

/// The transaction coordinators of this broker, one for each partition of
/// `__transaction_state` that it leads.
pub(crate) struct Transactions {
    config: TransactionConfig,
    /// The cluster's `transaction.version`.
    version: AtomicI16,
    shards: RwLock<HashMap<i32, Arc<Shard>>>,
    next_ticket: AtomicU64,
    /// When the timer looks next; while it is looking, `i64::MAX`.
    next_look_ms: AtomicI64,
    /// A shard has an earlier deadline than the timer knew.
    timer: Notify,
    markers: Markers,
    peers: Peers,
}

struct Shard {
    partition: Arc<Partition>,
    epoch: LeaderEpoch,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// Who waits for which answer.
    waiting: HashMap<Ticket, oneshot::Sender<TransactionResponse>>,
    /// The end of the last append: what every answer rests on.
    written_end: Offset,
}

enum Phase {
    Loading,
    Serving(Box<TransactionShard>),
    /// The log could not be read, or this broker leads it no more.
    Closed,
}

/// A request that was begun.
pub(crate) enum Begun {
    Answered(TransactionResponse),
    /// The answer comes later; the second is the answer if it never does, because the
    /// shard was closed meanwhile.
    Waiting(oneshot::Receiver<TransactionResponse>, TransactionResponse),
    /// Nothing was done: it needs a producer id.
    NeedsProducerId(TransactionRequest),
}

impl Begun {
    /// The answer, once it is there. A request that needs a producer id has none.
    pub(crate) async fn answer(self) -> Result<TransactionResponse, TransactionRequest> {
        match self {
            Self::Answered(answer) => Ok(answer),
            Self::Waiting(receiver, refused) => Ok(receiver.await.unwrap_or(refused)),
            Self::NeedsProducerId(request) => Err(request),
        }
    }
}

impl Transactions {
    pub(crate) fn new(settings: &ServerSettings) -> Self {
        Self {
            config: config(settings),
            version: AtomicI16::new(0),
            shards: RwLock::default(),
            next_ticket: AtomicU64::new(0),
            next_look_ms: AtomicI64::new(i64::MAX),
            timer: Notify::new(),
            markers: Markers::default(),
            peers: Peers::default(),
        }
    }

    /// Answers a request about one transactional id, if this is its coordinator.
    pub(crate) async fn handle(
        &self,
        node: &Arc<Node>,
        request: TransactionRequest,
    ) -> TransactionResponse {
        match self.begin(node, request, None).answer().await {
            Ok(answer) => answer,
            Err(request) => match node.producer_ids.next(node).await {
                Ok(id) => {
                    let refused = request.refused(ErrorCode::CoordinatorNotAvailable);
                    let begun = self.begin(node, request, Some(id));
                    begun.answer().await.unwrap_or(refused)
                }
                Err(error) => {
                    tracing::warn!(%error, "no producer id could be given out");
                    request.refused(ErrorCode::CoordinatorNotAvailable)
                }
            },
        }
    }

    /// Has a request about one transactional id take effect; only its answer may come
    /// later.
    pub(crate) fn begin(
        &self,
        node: &Arc<Node>,
        request: TransactionRequest,
        spare: Option<ProducerId>,
    ) -> Begun {
        let image = node.image();
        let found = request
            .transactional_id()
            .and_then(|id| coordinator_of(&image, id));
        let Some((number, _)) = found else {
            return Begun::Answered(request.refused(ErrorCode::CoordinatorNotAvailable));
        };
        let Some(shard) = self.shard(number) else {
            return Begun::Answered(request.refused(ErrorCode::NotCoordinator));
        };
        self.begin_at(node, &shard, request, spare)
    }

    fn begin_at(
        &self,
        node: &Arc<Node>,
        shard: &Arc<Shard>,
        request: TransactionRequest,
        spare: Option<ProducerId>,
    ) -> Begun {
        let now_ms = time::now_ms();
        let mut state = shard.state();
        let state = &mut *state;
        let ids = match &mut state.phase {
            Phase::Serving(ids) => ids,
            Phase::Loading => {
                return Begun::Answered(request.refused(ErrorCode::CoordinatorLoadInProgress));
            }
            Phase::Closed => return Begun::Answered(request.refused(ErrorCode::NotCoordinator)),
        };
        let refused = request.refused(ErrorCode::NotCoordinator);
        let ticket = Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed));
        let effects = match ids.handle(request, ticket, spare, now_ms) {
            Handled::Done(effects) => effects,
            Handled::NeedsProducerId(request) => return Begun::NeedsProducerId(request),
        };
        let (sender, receiver) = oneshot::channel();
        state.waiting.insert(ticket, sender);
        shard.carry_out(node, state, effects, now_ms);
        self.deadlines_changed(state);
        Begun::Waiting(receiver, refused)
    }

    /// The transactions here that pass `filter`.
    pub(crate) async fn list(
        &self,
        node: &Arc<Node>,
        filter: &ListFilter,
    ) -> Result<Vec<Listed>, ErrorCode> {
        let begun: Vec<_> = self
            .all()
            .iter()
            .map(|shard| {
                let request = TransactionRequest::List(filter.clone());
                self.begin_at(node, shard, request, None)
            })
            .collect();
        let mut all = Vec::new();
        for part in begun {
            match part.answer().await {
                Ok(TransactionResponse::List(Ok(listed))) => all.extend(listed),
                // Another broker tells of these.
                Ok(TransactionResponse::List(Err(ErrorCode::NotCoordinator))) => {}
                Ok(TransactionResponse::List(Err(error))) => return Err(error),
                other => unreachable!("a list was asked for, not {other:?}"),
            }
        }
        Ok(all)
    }

    fn shard(&self, partition: i32) -> Option<Arc<Shard>> {
        self.shards
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&partition)
            .cloned()
    }

    fn all(&self) -> Vec<Arc<Shard>> {
        self.shards
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Most requests leave every deadline later than the timer's next look.
    fn deadlines_changed(&self, state: &State) {
        if let Phase::Serving(ids) = &state.phase
            && ids
                .next_deadline()
                .is_some_and(|at| at < self.next_look_ms.load(Ordering::SeqCst))
        {
            self.timer.notify_one();
        }
    }

    /// Takes on the partitions of `__transaction_state` that this broker has come to lead
    /// and lets go of others.
    pub(crate) fn follow(&self, node: &Arc<Node>, new: &ClusterImage) {
        let count = new
            .topic(TRANSACTION_STATE)
            .map_or(0, |topic| topic.partition_count());
        let mut leads = HashMap::new();
        for number in 0..i32::try_from(count).unwrap_or(i32::MAX) {
            let state = new.partition(TRANSACTION_STATE, PartitionId::new(number));
            if let Some(state) = state.filter(|state| state.leader == node.broker_id)
                && let Lookup::Here(partition) = node.replicas.find(TRANSACTION_STATE, number)
            {
                leads.insert(number, (partition, state.leader_epoch));
            }
        }
        let mut begun = Vec::new();
        {
            let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
            shards.retain(|number, shard| {
                let stays = leads
                    .get(number)
                    .is_some_and(|(_, epoch)| *epoch == shard.epoch);
                if !stays {
                    shard.close();
                }
                stays
            });
            for (number, (partition, epoch)) in leads {
                shards.entry(number).or_insert_with(|| {
                    let shard = Shard::new(partition, epoch);
                    begun.push(Arc::clone(&shard));
                    shard
                });
            }
        }
        let version = new.feature(TRANSACTION_VERSION);
        if self.version.swap(version, Ordering::SeqCst) != version {
            for shard in self.all() {
                if let Phase::Serving(ids) = &mut shard.state().phase {
                    ids.set_config(self.config_now());
                }
            }
        }
        for shard in begun {
            let node = Arc::clone(node);
            tokio::runtime::Handle::current().spawn_blocking(move || {
                node.transactions.load(&node, &shard);
            });
        }
        // Leaders of partitions that wait for a marker may have come or gone.
        self.markers.look_again();
    }

    fn config_now(&self) -> TransactionConfig {
        TransactionConfig {
            version: TransactionVersion::new(self.version.load(Ordering::SeqCst)),
            ..self.config.clone()
        }
    }

    fn load(&self, node: &Arc<Node>, shard: &Arc<Shard>) {
        let replayed = loading::replay(&shard.partition, shard.epoch, self.config_now());
        let mut state = shard.state();
        let state = &mut *state;
        if !matches!(state.phase, Phase::Loading) {
            return;
        }
        match replayed {
            Ok(mut replayed) => {
                // It may have changed since the log was begun.
                replayed.shard.set_config(self.config_now());
                let markers = replayed.shard.loaded(time::now_ms());
                state.phase = Phase::Serving(Box::new(replayed.shard));
                state.written_end = replayed.end;
                let released = Released {
                    replies: Vec::new(),
                    markers,
                };
                shard.release(node, state, released);
                self.timer.notify_one();
            }
            Err(error) => {
                tracing::error!(
                    partition = %shard.partition.id(), %error,
                    "transactions were not loaded"
                );
                state.phase = Phase::Closed;
            }
        }
    }

    /// Markers of a shard's orders are committed where they belong.
    fn markers_written(&self, node: &Arc<Node>, shard: &Arc<Shard>, written: &[MarkerWritten]) {
        let now_ms = time::now_ms();
        let mut state = shard.state();
        let state = &mut *state;
        if let Phase::Serving(ids) = &mut state.phase {
            let effects = ids.markers_written(written, now_ms);
            shard.carry_out(node, state, effects, now_ms);
            self.deadlines_changed(state);
        }
    }

    /// Has markers written until aborted.
    pub(crate) async fn write_markers(&self, node: &Arc<Node>) {
        self.markers.run(node).await;
    }

    /// Lets time pass for the shards: transactions that time out, ids that expire. Runs
    /// until aborted.
    pub(crate) async fn keep_time(&self, node: &Arc<Node>) {
        loop {
            // Whoever sets a deadline during the look wakes the timer for another.
            self.next_look_ms.store(i64::MAX, Ordering::SeqCst);
            let now_ms = time::now_ms();
            let mut next: Option<i64> = None;
            for shard in self.all() {
                let mut state = shard.state();
                let state = &mut *state;
                if let Phase::Serving(ids) = &mut state.phase
                    && ids.next_deadline().is_some_and(|at| at <= now_ms)
                {
                    let effects = ids.tick(now_ms);
                    shard.carry_out(node, state, effects, now_ms);
                }
                if let Phase::Serving(ids) = &state.phase
                    && let Some(at) = ids.next_deadline()
                {
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
            self.next_look_ms
                .store(next.unwrap_or(i64::MAX), Ordering::SeqCst);
            let changed = self.timer.notified();
            match next {
                None => changed.await,
                Some(at) => {
                    // At least a little, so that a deadline in the past cannot spin.
                    let wait = u64::try_from(at.saturating_sub(now_ms)).unwrap_or(0).max(1);
                    let _ = tokio::time::timeout(Duration::from_millis(wait), changed).await;
                }
            }
        }
    }
}

/// The partition of `__transaction_state` that holds a transactional id, and its leader.
pub(crate) fn coordinator_of(
    image: &ClusterImage,
    transactional_id: &str,
) -> Option<(i32, BrokerId)> {
    let topic = image.topic(TRANSACTION_STATE)?;
    let count = i32::try_from(topic.partition_count()).ok()?;
    let number = partition_for(transactional_id, count);
    let leader = topic.partition(PartitionId::new(number))?.leader;
    Some((number, leader))
}

/// Why a transaction's state was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Partition(#[from] PartitionError),
}

impl WriteError {
    fn code(&self) -> ErrorCode {
        match self {
            // More in one transaction than a batch can hold.
            Self::Build(_) => ErrorCode::RecordListTooLarge,
            Self::Partition(error) => error.code(),
        }
    }
}

impl Shard {
    fn new(partition: Arc<Partition>, epoch: LeaderEpoch) -> Arc<Self> {
        Arc::new(Self {
            partition,
            epoch,
            state: Mutex::new(State {
                phase: Phase::Loading,
                waiting: HashMap::new(),
                written_end: Offset::ZERO,
            }),
        })
    }

    /// A panic in a shard leaves it in an unknown state: whoever comes next panics too,
    /// until the broker is restarted.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("a transaction shard's lock is poisoned")
    }

    /// Drops the state. Dropping the senders tells those who wait.
    fn close(&self) {
        let mut state = self.state();
        state.phase = Phase::Closed;
        state.waiting.clear();
    }

    fn is_closed(&self) -> bool {
        matches!(self.state().phase, Phase::Closed)
    }

    /// Appends the records of `effects` and tells the shard, then has what rests on them
    /// go out once it is committed.
    fn carry_out(
        self: &Arc<Self>,
        node: &Arc<Node>,
        state: &mut State,
        effects: Effects,
        now_ms: i64,
    ) {
        let Phase::Serving(ids) = &mut state.phase else {
            return;
        };
        let released = if effects.records.is_empty() {
            Released {
                replies: effects.replies,
                markers: Vec::new(),
            }
        } else {
            match self.append(node, &effects.records, now_ms) {
                Ok(end) => {
                    state.written_end = end;
                    ids.written(effects, now_ms)
                }
                Err(error) => {
                    tracing::warn!(
                        partition = %self.partition.id(), %error,
                        "a transaction's state was not written"
                    );
                    Released {
                        replies: ids.write_failed(effects, error.code(), now_ms),
                        markers: Vec::new(),
                    }
                }
            }
        };
        self.release(node, state, released);
    }

    /// Lets go what rests on all that is written so far.
    fn release(self: &Arc<Self>, node: &Arc<Node>, state: &mut State, released: Released) {
        let answers: Vec<_> = released
            .replies
            .into_iter()
            .filter_map(|(ticket, response): Reply| {
                Some((state.waiting.remove(&ticket)?, response))
            })
            .collect();
        let markers = released.markers;
        if answers.is_empty() && markers.is_empty() {
            return;
        }
        match self.partition.committed(self.epoch, state.written_end) {
            Ack::Now => self.let_go(node, answers, markers),
            Ack::Later(committed) => {
                let (shard, node) = (Arc::clone(self), Arc::clone(node));
                tokio::spawn(async move {
                    shard
                        .once_committed(&node, committed, answers, markers)
                        .await;
                });
            }
        }
    }

    async fn once_committed(
        self: Arc<Self>,
        node: &Arc<Node>,
        mut committed: AckReceiver,
        answers: Vec<Answer>,
        markers: Vec<MarkerOrder>,
    ) {
        match tokio::time::timeout(COMMIT_TIME, &mut committed).await {
            Ok(Ok(Ok(()))) => self.let_go(node, answers, markers),
            // Another broker leads, and finds out what is committed.
            Ok(_) => {}
            Err(_) => {
                // Without an answer the client asks again.
                drop(answers);
                if let Ok(Ok(())) = committed.await {
                    self.let_go(node, Vec::new(), markers);
                }
            }
        }
    }

    fn let_go(self: &Arc<Self>, node: &Node, answers: Vec<Answer>, markers: Vec<MarkerOrder>) {
        for (client, response) in answers {
            // A client that went away needs no answer.
            let _ = client.send(response);
        }
        for order in markers {
            node.transactions.markers.write(self, order);
        }
    }

    /// The offset after the appended records.
    fn append(
        &self,
        node: &Arc<Node>,
        records: &[CoordinatorRecord],
        now_ms: i64,
    ) -> Result<Offset, WriteError> {
        let mut builder = RecordBatchBuilder::new();
        for record in records {
            builder.append(now_ms, Some(&record.key), record.value.as_deref(), &[])?;
        }
        let batch = Admitted::own(builder.build()?, records.len() as i32);
        let appended = self.partition.append(&batch, RequiredAcks::All, now_ms)?;
        if appended.start_flush {
            node.start_flush(&self.partition);
        }
        Ok(appended.end_offset)
    }
}

type Answer = (oneshot::Sender<TransactionResponse>, TransactionResponse);

fn config(settings: &ServerSettings) -> TransactionConfig {
    TransactionConfig {
        version: TransactionVersion::default(),
        max_timeout_ms: settings.transaction_max_timeout_ms,
        id_expiration_ms: i64::from(settings.transactional_id_expiration_ms),
        abort_interval_ms: i64::from(
            settings.transaction_abort_timed_out_transaction_cleanup_interval_ms,
        ),
        expiry_interval_ms: i64::from(
            settings.transaction_remove_expired_transaction_cleanup_interval_ms,
        ),
    }
}
