//! The runtime that the coordinators of groups and of transactions share: a shard for each
//! partition of their topic that this broker leads, its loading, its log and its deadlines.
//!
//! [`Shards`] owns which shards there are. A shard owns one pure coordinator, behind one
//! lock, from the moment this broker leads its partition until it no longer does, in one
//! leader epoch. Under that lock a request is handled, its records are appended and the
//! coordinator is told so; so the order of the log is the order of its decisions. The lock
//! is taken before that of the partition, never after. What rests on records leaves only
//! when they are below the high watermark.

use crate::{
    node::{Lookup, Node},
    partition::{Partition, PartitionError, RequiredAcks, VerificationGuard, admission::Admitted},
    sync::{read, write},
    time::{self, Monotonic, Now},
};
use std::{
    collections::HashMap,
    fmt::Display,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, oneshot};
use yuxi_controller::image::ClusterImage;
use yuxi_coordinator::{CoordinatorRecord, groups::Ticket};
use yuxi_protocol::{
    codec::Bytes,
    error_code::ErrorCode,
    ids::{LeaderEpoch, Offset, PartitionId},
    record::{
        BatchError, BatchHeader, EndMarker, RecordBatchBuilder, batches, builder::BuildError,
    },
};

/// How long an answer waits for followers to have the records that it rests on.
pub(crate) const COMMIT_TIME: Duration = Duration::from_secs(5);

/// How much of the log is looked at before the partition's lock is taken again.
const READ_BYTES: usize = 1024 * 1024;

/// What one batch of a coordinator's topic may decompress to.
const MAX_DECOMPRESSED_BYTES: usize = 256 * 1024 * 1024;

/// What the runtime knows of the pure coordinator of one partition.
pub(crate) trait Coordinator: Send + 'static {
    type Response: Send + 'static;
    type RecordError: Display;

    /// Takes in a record while it loads. After an error it goes on with the next.
    fn load_record(
        &mut self,
        batch: &BatchHeader,
        key: &Bytes,
        value: Option<&Bytes>,
    ) -> Result<(), Self::RecordError>;

    /// Takes in the end of a producer's transaction in this partition while it loads.
    fn load_marker(&mut self, batch: &BatchHeader, commit: bool);

    /// When it next wants to be told that time has passed.
    fn next_deadline(&self) -> Option<Monotonic>;
}

/// The shards of this broker.
pub(crate) struct Shards<C: Coordinator> {
    topic: &'static str,
    led: RwLock<HashMap<i32, Arc<Shard<C>>>>,
    next_ticket: AtomicU64,
    /// When the timer looks next, a [`Monotonic`]; while it is looking, never.
    next_look: AtomicI64,
    /// A shard has an earlier deadline than the timer knew.
    timer: Notify,
}

pub(crate) struct Shard<C: Coordinator> {
    pub(crate) partition: Arc<Partition>,
    pub(crate) epoch: LeaderEpoch,
    /// When this broker learned that it leads in that epoch.
    since: Instant,
    state: Mutex<State<C>>,
}

pub(crate) struct State<C: Coordinator> {
    phase: Phase<C>,
    /// Who waits for which answer.
    waiting: HashMap<Ticket, oneshot::Sender<C::Response>>,
    /// The end of the last append: what every answer rests on.
    pub(crate) written_end: Offset,
}

enum Phase<C> {
    Loading,
    Serving(Box<C>),
    /// The log could not be read, or this broker leads it no more.
    Closed,
}

/// An answer, and who waits for it.
pub(crate) type Answer<R> = (oneshot::Sender<R>, R);

impl<C: Coordinator> Shards<C> {
    /// Those of a topic, of which none is led here yet.
    pub(crate) fn new(topic: &'static str) -> Self {
        Self {
            topic,
            led: RwLock::default(),
            next_ticket: AtomicU64::new(0),
            next_look: AtomicI64::new(Monotonic::NEVER.value()),
            timer: Notify::new(),
        }
    }

    pub(crate) fn get(&self, partition: i32) -> Option<Arc<Shard<C>>> {
        read(&self.led).get(&partition).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Shard<C>>> {
        read(&self.led).values().cloned().collect()
    }

    /// The name of one more request.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(self.next_ticket.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes on the partitions that this broker has come to lead and lets go of others. Who
    /// is new is returned, and is to be loaded.
    pub(crate) fn follow(&self, node: &Node, new: &ClusterImage) -> Vec<Arc<Shard<C>>> {
        let count = new
            .topic(self.topic)
            .map_or(0, |topic| topic.partition_count());
        let mut leads = HashMap::new();
        for number in 0..i32::try_from(count).unwrap_or(i32::MAX) {
            let state = new.partition(self.topic, PartitionId::new(number));
            if let Some(state) = state.filter(|state| state.leader == node.broker_id)
                && let Lookup::Here(partition) = node.replicas.find(self.topic, number)
            {
                leads.insert(number, (partition, state.leader_epoch));
            }
        }
        let mut begun = Vec::new();
        let mut shards = write(&self.led);
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
        begun
    }

    /// Has `new` take in all that a shard's log says, and puts it into service. `begin` is
    /// called first, under the shard's lock. Blocks.
    pub(crate) fn load(
        &self,
        node: &Node,
        shard: &Arc<Shard<C>>,
        mut new: C,
        begin: impl FnOnce(&mut State<C>),
    ) {
        let began = Instant::now();
        let replayed = replay_log(&shard.partition, shard.epoch, &mut new);
        let mut state = shard.state();
        if !matches!(state.phase, Phase::Loading) {
            return;
        }
        match replayed {
            Ok(end) => {
                node.metrics.shard_loaded(self.topic, began.elapsed());
                state.phase = Phase::Serving(Box::new(new));
                state.written_end = end;
                begin(&mut state);
                self.timer.notify_one();
            }
            Err(error) => {
                tracing::error!(partition = %shard.partition.id(), %error, "a shard was not loaded");
                state.phase = Phase::Closed;
            }
        }
    }

    /// Wakes the timer if a deadline is earlier than its next look; most requests leave
    /// every deadline later.
    pub(crate) fn deadlines_changed(&self, state: &State<C>) {
        if let Phase::Serving(coordinator) = &state.phase
            && coordinator
                .next_deadline()
                .is_some_and(|at| at.value() < self.next_look.load(Ordering::SeqCst))
        {
            self.timer.notify_one();
        }
    }

    /// Calls `tick` for each shard that has a deadline behind it. Runs until aborted.
    pub(crate) async fn keep_time(
        &self,
        mut tick: impl FnMut(&Arc<Shard<C>>, &mut State<C>, Now) + Send,
    ) {
        loop {
            // Whoever sets a deadline during the look wakes the timer for another.
            self.next_look
                .store(Monotonic::NEVER.value(), Ordering::SeqCst);
            let now = time::now();
            let mut next: Option<Monotonic> = None;
            for shard in self.all() {
                let mut state = shard.state();
                if state.next_deadline().is_some_and(|at| at <= now.monotonic) {
                    tick(&shard, &mut state, now);
                }
                if let Some(at) = state.next_deadline() {
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
            self.next_look
                .store(next.unwrap_or(Monotonic::NEVER).value(), Ordering::SeqCst);
            let changed = self.timer.notified();
            match next {
                None => changed.await,
                Some(at) => {
                    // At least a little, so that a deadline in the past cannot spin.
                    let wait = u64::try_from(at.since(now.monotonic)).unwrap_or(0).max(1);
                    let _ = tokio::time::timeout(Duration::from_millis(wait), changed).await;
                }
            }
        }
    }
}

impl<C: Coordinator> Shard<C> {
    fn new(partition: Arc<Partition>, epoch: LeaderEpoch) -> Arc<Self> {
        Arc::new(Self {
            partition,
            epoch,
            since: Instant::now(),
            state: Mutex::new(State {
                phase: Phase::Loading,
                waiting: HashMap::new(),
                written_end: Offset::ZERO,
            }),
        })
    }

    /// Whether a connection that was made at `connected` may bring what was sent to the
    /// coordinator of an earlier epoch.
    pub(crate) fn has_predecessors_since(&self, connected: Instant) -> bool {
        self.epoch > LeaderEpoch::new(0) && connected < self.since
    }

    /// A panic in a shard leaves it in an unknown state: whoever comes next panics too,
    /// until the broker is restarted.
    pub(crate) fn state(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().expect("a shard's lock is poisoned")
    }

    /// Drops the coordinator. Dropping the senders tells those who wait.
    fn close(&self) {
        let mut state = self.state();
        state.phase = Phase::Closed;
        state.waiting.clear();
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state().phase, Phase::Closed)
    }

    /// Appends records in one batch, with the guard of its transaction if it is part of one;
    /// the offset after it.
    pub(crate) fn append(
        &self,
        node: &Arc<Node>,
        mut builder: RecordBatchBuilder,
        records: &[CoordinatorRecord],
        guard: Option<VerificationGuard>,
        now_ms: i64,
    ) -> Result<Offset, WriteError> {
        for record in records {
            builder.append(now_ms, Some(&record.key), record.value.as_deref(), &[])?;
        }
        let batch = Admitted::own(builder.build()?, records.len() as i32);
        let batch = match guard {
            Some(guard) => batch.verified(guard),
            None => batch,
        };
        let appended = self.partition.append(&batch, RequiredAcks::All, now_ms)?;
        if appended.start_flush {
            node.start_flush(&self.partition);
        }
        Ok(appended.end_offset)
    }
}

impl<C: Coordinator> State<C> {
    /// The coordinator, or what a client is told while there is none.
    pub(crate) fn serving(&mut self) -> Result<&mut C, ErrorCode> {
        match &mut self.phase {
            Phase::Serving(coordinator) => Ok(coordinator),
            Phase::Loading => Err(ErrorCode::CoordinatorLoadInProgress),
            Phase::Closed => Err(ErrorCode::NotCoordinator),
        }
    }

    /// Somebody waits for the answer to `ticket`.
    pub(crate) fn wait_for(&mut self, ticket: Ticket) -> oneshot::Receiver<C::Response> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(ticket, sender);
        receiver
    }

    /// Those of `replies` that are waited for.
    pub(crate) fn answers(
        &mut self,
        replies: Vec<(Ticket, C::Response)>,
    ) -> Vec<Answer<C::Response>> {
        replies
            .into_iter()
            .filter_map(|(ticket, response)| Some((self.waiting.remove(&ticket)?, response)))
            .collect()
    }

    fn next_deadline(&self) -> Option<Monotonic> {
        match &self.phase {
            Phase::Serving(coordinator) => coordinator.next_deadline(),
            Phase::Loading | Phase::Closed => None,
        }
    }
}

/// Sends answers whose records are committed.
pub(crate) fn send<R>(answers: Vec<Answer<R>>) {
    for (client, response) in answers {
        // A client that went away needs no answer.
        let _ = client.send(response);
    }
}

/// Why records were not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Partition(#[from] PartitionError),
}

impl WriteError {
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            // More at once than a batch can hold.
            Self::Build(_) => ErrorCode::RecordListTooLarge,
            Self::Partition(error) => error.code(),
        }
    }
}

/// Why a shard could not be loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Partition(#[from] PartitionError),
    #[error("the log at offset {offset}: {error}")]
    Batch { offset: Offset, error: BatchError },
}

/// Tells a coordinator all that the log of `partition` says, as its leader in `epoch`;
/// where that ended.
fn replay_log<C: Coordinator>(
    partition: &Partition,
    epoch: LeaderEpoch,
    coordinator: &mut C,
) -> Result<Offset, LoadError> {
    let (mut at, end) =
        partition.with_led_log(epoch, |_, offsets| (offsets.log_start, offsets.log_end))?;
    let mut unreadable = 0_u64;
    while at < end {
        let read = partition.with_led_log(epoch, |log, _| log.read(at, READ_BYTES, true, end))?;
        let Some(slice) = read.map_err(PartitionError::from)?.slice else {
            break;
        };
        for batch in batches(slice.as_bytes()) {
            let from = at;
            let at_batch = move |error| LoadError::Batch {
                offset: from,
                error,
            };
            let batch = batch.map_err(at_batch)?;
            let header = *batch.header();
            at = header.next_offset();
            if header.is_control() {
                if let Some(marker) = EndMarker::read(&batch).map_err(at_batch)? {
                    coordinator.load_marker(&header, marker.commit);
                }
                continue;
            }
            for record in batch.records(MAX_DECOMPRESSED_BYTES) {
                let record = record.map_err(at_batch)?;
                let Some(key) = &record.key else { continue };
                if let Err(error) = coordinator.load_record(&header, key, record.value.as_ref()) {
                    // One damaged record must not take a whole shard away.
                    unreadable += 1;
                    tracing::warn!(
                        partition = %partition.id(), offset = %record.offset, %error,
                        "a coordinator's record is skipped"
                    );
                }
            }
        }
    }
    if unreadable > 0 {
        tracing::error!(partition = %partition.id(), unreadable, "a coordinator's records were skipped");
    }
    Ok(end)
}
