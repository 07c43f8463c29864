//! What a shard of groups does with the effects of its pure coordinator.

use crate::{
    node::Node,
    partition::{Ack, VerificationGuard},
    shards::{COMMIT_TIME, Coordinator, Shard, State, send},
    time::{Monotonic, Now},
};
use std::sync::Arc;
use yuxi_coordinator::groups::{Effects, GroupResponse, GroupShard, RecordError};
use yuxi_protocol::{
    codec::Bytes,
    ids::{ProducerEpoch, ProducerId},
    record::{BatchHeader, RecordBatchBuilder, batch::NO_SEQUENCE},
};

impl Coordinator for GroupShard {
    type Response = GroupResponse;
    type RecordError = RecordError;

    fn load_record(
        &mut self,
        batch: &BatchHeader,
        key: &Bytes,
        value: Option<&Bytes>,
    ) -> Result<(), RecordError> {
        let replayed = if batch.is_transactional() {
            self.replay_transactional(batch.producer_id.value(), key, value)
        } else {
            self.replay(key, value)
        };
        replayed.map(|_| ())
    }

    fn load_marker(&mut self, batch: &BatchHeader, commit: bool) {
        self.transaction_ended(batch.producer_id.value(), commit);
    }

    fn next_deadline(&self) -> Option<Monotonic> {
        Self::next_deadline(self)
    }
}

impl Shard<GroupShard> {
    /// Appends what the coordinator wants written, tells it how that went, and sends the
    /// answers once that is committed.
    pub(super) fn carry_out(
        &self,
        node: &Arc<Node>,
        state: &mut State<GroupShard>,
        effects: Effects,
        guard: Option<VerificationGuard>,
        now: Now,
    ) {
        let mut effects = effects;
        let mut replies = Vec::new();
        // A failed write may have the coordinator write something else instead.
        loop {
            if effects.records.is_empty() {
                replies.append(&mut effects.replies);
                break;
            }
            let written = self.append(
                node,
                builder(&effects),
                &effects.records,
                guard,
                now.wall_ms,
            );
            let Ok(group) = state.serving() else {
                return;
            };
            match written {
                Ok(end) => {
                    replies.extend(group.written(effects, now));
                    state.written_end = end;
                    break;
                }
                Err(error) => {
                    tracing::warn!(
                        partition = %self.partition.id(), %error,
                        "group state was not written"
                    );
                    effects = group.write_failed(effects, error.code(), now);
                }
            }
        }
        if replies.is_empty() {
            return;
        }
        let answers = state.answers(replies);
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
}

fn builder(effects: &Effects) -> RecordBatchBuilder {
    let builder = RecordBatchBuilder::new();
    match effects.transaction {
        None => builder,
        Some(producer) => {
            let id = ProducerId::new(producer.producer_id);
            let epoch = ProducerEpoch::new(producer.producer_epoch);
            builder.producer(id, epoch, NO_SEQUENCE).transactional()
        }
    }
}
