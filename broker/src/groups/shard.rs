//! One partition of `__consumer_offsets` and the groups in it: the pure shard, the log that
//! it writes to, and the clients that wait for its answers, behind one lock.

use crate::node::Node;
use crate::partition::{
    Ack, Partition, PartitionError, RequiredAcks, VerificationGuard, admission::Admitted,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::oneshot;
use yuxi_coordinator::groups::{Effects, GroupResponse, GroupShard, Reply, Ticket};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId},
    record::{RecordBatchBuilder, batch::NO_SEQUENCE, builder::BuildError},
};

/// How long an answer waits for followers to have the records that it rests on.
const COMMIT_TIME: Duration = Duration::from_secs(5);

pub(super) struct Shard {
    pub(super) partition: Arc<Partition>,
    pub(super) epoch: LeaderEpoch,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// Who waits for which answer.
    pub(super) waiting: HashMap<Ticket, oneshot::Sender<GroupResponse>>,
    /// The end of the last append: what every answer rests on.
    pub(super) written_end: Offset,
}

pub(super) enum Phase {
    Loading,
    Serving(Box<GroupShard>),
    /// The log could not be read, or this broker leads it no more.
    Closed,
}

impl Shard {
    pub(super) fn new(partition: Arc<Partition>, epoch: LeaderEpoch) -> Arc<Self> {
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
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a group shard's lock is poisoned")
    }

    /// Drops the state. Dropping the senders tells those who wait.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.phase = Phase::Closed;
        state.waiting.clear();
    }

    /// Appends what the shard wants written, tells it how that went, and sends the
    /// answers once that is committed.
    pub(super) fn carry_out(
        &self,
        node: &Arc<Node>,
        state: &mut State,
        effects: Effects,
        guard: Option<VerificationGuard>,
        now_ms: i64,
    ) {
        let Phase::Serving(group) = &mut state.phase else {
            return;
        };
        let mut effects = effects;
        let mut replies = Vec::new();
        // A failed write may have the shard write something else instead.
        loop {
            if effects.records.is_empty() {
                replies.append(&mut effects.replies);
                break;
            }
            match self.append(node, &effects, guard, now_ms) {
                Ok(end) => {
                    state.written_end = end;
                    replies.extend(group.written(effects, now_ms));
                    break;
                }
                Err(error) => {
                    tracing::warn!(
                        partition = %self.partition.id(), %error,
                        "group state was not written"
                    );
                    effects = group.write_failed(effects, error.code(), now_ms);
                }
            }
        }
        if replies.is_empty() {
            return;
        }
        let answers: Vec<_> = replies
            .into_iter()
            .filter_map(|(ticket, response): Reply| {
                Some((state.waiting.remove(&ticket)?, response))
            })
            .collect();
        match self.partition.committed(self.epoch, state.written_end) {
            Ack::Now => send(answers),
            Ack::Later(committed) => {
                tokio::spawn(async move {
                    // Without an answer the client asks again, perhaps another broker.
                    if let Ok(Ok(Ok(()))) = tokio::time::timeout(COMMIT_TIME, committed).await {
                        send(answers);
                    }
                });
            }
        }
    }

    /// The offset after the appended records.
    fn append(
        &self,
        node: &Arc<Node>,
        effects: &Effects,
        guard: Option<VerificationGuard>,
        now_ms: i64,
    ) -> Result<Offset, WriteError> {
        let mut builder = RecordBatchBuilder::new();
        if let Some(producer) = effects.transaction {
            let id = ProducerId::new(producer.producer_id);
            let epoch = ProducerEpoch::new(producer.producer_epoch);
            builder = builder.producer(id, epoch, NO_SEQUENCE).transactional();
        }
        for record in &effects.records {
            builder.append(now_ms, Some(&record.key), record.value.as_deref(), &[])?;
        }
        let batch = Admitted::own(builder.build()?, effects.records.len() as i32);
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

fn send(answers: Vec<(oneshot::Sender<GroupResponse>, GroupResponse)>) {
    for (client, response) in answers {
        // A client that went away needs no answer.
        let _ = client.send(response);
    }
}

/// Why group state was not written.
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
            // More in one group than a batch can hold.
            Self::Build(_) => ErrorCode::RecordListTooLarge,
            Self::Partition(error) => error.code(),
        }
    }
}
