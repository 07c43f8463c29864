//! What a shard of transactions does with the effects of its pure coordinator.

use super::Shard;
use crate::{
    node::Node,
    partition::{Ack, AckReceiver},
    shards::{self, COMMIT_TIME, Coordinator, send},
    time::{Monotonic, Now},
};
use std::sync::Arc;
use yuxi_coordinator::transactions::{
    Effects, MarkerOrder, Released, TransactionRecordError, TransactionResponse, TransactionShard,
};
use yuxi_protocol::{
    codec::Bytes,
    record::{BatchHeader, RecordBatchBuilder},
};

type State = shards::State<TransactionShard>;
type Answer = shards::Answer<TransactionResponse>;

impl Coordinator for TransactionShard {
    type Response = TransactionResponse;
    type RecordError = TransactionRecordError;

    fn load_record(
        &mut self,
        _: &BatchHeader,
        key: &Bytes,
        value: Option<&Bytes>,
    ) -> Result<(), TransactionRecordError> {
        self.replay(key, value)
    }

    /// A coordinator writes its records outside of transactions: whoever sent the marker, it
    /// ends nothing here.
    fn load_marker(&mut self, _: &BatchHeader, _: bool) {}

    fn next_deadline(&self) -> Option<Monotonic> {
        Self::next_deadline(self)
    }
}

impl Shard {
    /// Appends the records of `effects` and tells the coordinator, then has what rests on
    /// them go out once it is committed.
    pub(super) fn carry_out(
        self: &Arc<Self>,
        node: &Arc<Node>,
        state: &mut State,
        effects: Effects,
        now: Now,
    ) {
        let released = if effects.records.is_empty() {
            Released {
                replies: effects.replies,
                markers: Vec::new(),
            }
        } else {
            let builder = RecordBatchBuilder::new();
            let written = self.append(node, builder, &effects.records, None, now.wall_ms);
            let Ok(ids) = state.serving() else {
                return;
            };
            match written {
                Ok(end) => {
                    let released = ids.written(effects, now);
                    state.written_end = end;
                    released
                }
                Err(error) => {
                    tracing::warn!(
                        partition = %self.partition.id(), %error,
                        "a transaction's state was not written"
                    );
                    Released {
                        replies: ids.write_failed(effects, error.code(), now),
                        markers: Vec::new(),
                    }
                }
            }
        };
        self.release(node, state, released);
    }

    /// Lets go what rests on all that is written so far.
    pub(super) fn release(
        self: &Arc<Self>,
        node: &Arc<Node>,
        state: &mut State,
        released: Released,
    ) {
        let answers = state.answers(released.replies);
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
        send(answers);
        for order in markers {
            node.transactions.markers.write(self, order);
        }
    }
}
