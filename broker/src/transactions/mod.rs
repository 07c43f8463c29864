//! The coordinators of transactions: they get the clock, their partitions of
//! `__transaction_state` to write to, producer ids, and the clients to answer ([`shards`]),
//! and have markers written for them ([`markers`]).
//!
//! An answer leaves, and a marker is sent, only when every record that it rests on is
//! below the high watermark: an outcome that a client or a partition knows of is one that
//! every later coordinator finds.
//!
//! [`shards`]: crate::shards

pub(crate) mod admission;
mod markers;
mod peers;
mod shard;

use crate::{
    internal_topics::{TRANSACTION_STATE, partition_of},
    node::Node,
    shards::Shards,
    time,
};
use markers::Markers;
use peers::Peers;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI16, Ordering},
    },
};
use tokio::sync::oneshot;
use yuxi_controller::{
    decide::features::TRANSACTION_VERSION, image::ClusterImage, settings::ServerSettings,
};
use yuxi_coordinator::transactions::{
    Handled, ListFilter, Listed, MarkerWritten, Released, TransactionConfig, TransactionRequest,
    TransactionResponse, TransactionShard, TransactionState, TransactionVersion,
};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{BrokerId, PartitionId, ProducerId},
};

type Shard = crate::shards::Shard<TransactionShard>;

/// The transaction coordinators of this broker, one for each partition of
/// `__transaction_state` that it leads.
pub(crate) struct Transactions {
    config: TransactionConfig,
    /// The cluster's `transaction.version`.
    version: AtomicI16,
    shards: Shards<TransactionShard>,
    markers: Markers,
    peers: Peers,
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
            shards: Shards::new(TRANSACTION_STATE),
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
        let Some(shard) = self.shards.get(number) else {
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
        let now = time::now();
        let mut state = shard.state();
        let state = &mut *state;
        let ids = match state.serving() {
            Ok(ids) => ids,
            Err(error) => return Begun::Answered(request.refused(error)),
        };
        let refused = request.refused(ErrorCode::NotCoordinator);
        let ticket = self.shards.ticket();
        let effects = match ids.handle(request, ticket, spare, now) {
            Handled::Done(effects) => effects,
            Handled::NeedsProducerId(request) => return Begun::NeedsProducerId(request),
        };
        let receiver = state.wait_for(ticket);
        shard.carry_out(node, state, effects, now);
        self.shards.deadlines_changed(state);
        Begun::Waiting(receiver, refused)
    }

    /// The transactions here that pass `filter`.
    pub(crate) async fn list(
        &self,
        node: &Arc<Node>,
        filter: &ListFilter,
    ) -> Result<Vec<Listed>, ErrorCode> {
        let begun: Vec<_> = self
            .shards
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

    /// How many transactional ids are coordinated here, by the state of their last
    /// transaction.
    pub(crate) fn counts(&self) -> BTreeMap<TransactionState, usize> {
        let mut all = BTreeMap::new();
        for shard in self.shards.all() {
            if let Ok(ids) = shard.state().serving() {
                for (state, count) in ids.counts() {
                    *all.entry(state).or_default() += count;
                }
            }
        }
        all
    }

    /// How many markers are still to be written.
    pub(crate) fn unwritten_markers(&self) -> usize {
        self.markers.unwritten()
    }

    /// Takes on the partitions of `__transaction_state` that this broker has come to lead
    /// and lets go of others.
    pub(crate) fn follow(&self, node: &Arc<Node>, new: &ClusterImage) {
        let begun = self.shards.follow(node, new);
        let version = new.feature(TRANSACTION_VERSION);
        if self.version.swap(version, Ordering::SeqCst) != version {
            for shard in self.shards.all() {
                if let Ok(ids) = shard.state().serving() {
                    ids.set_config(self.config_now());
                }
            }
        }
        for shard in begun {
            let loading = Arc::clone(node);
            node.run_blocking(move || {
                loading.transactions.load(&loading, &shard);
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
        let new = TransactionShard::new(self.config_now());
        self.shards.load(node, shard, new, |state| {
            if let Ok(ids) = state.serving() {
                // It may have changed since the log was begun.
                ids.set_config(self.config_now());
                let markers = ids.loaded(time::now());
                let replies = Vec::new();
                shard.release(node, state, Released { replies, markers });
            }
        });
    }

    /// Markers of a shard's orders are committed where they belong.
    fn markers_written(&self, node: &Arc<Node>, shard: &Arc<Shard>, written: &[MarkerWritten]) {
        let now = time::now();
        let mut state = shard.state();
        if let Ok(ids) = state.serving() {
            let effects = ids.markers_written(written, now);
            shard.carry_out(node, &mut state, effects, now);
            self.shards.deadlines_changed(&state);
        }
    }

    /// Has markers written until aborted.
    pub(crate) async fn write_markers(&self, node: &Arc<Node>) {
        self.markers.run(node).await;
    }

    /// Lets time pass for the shards: transactions that time out, ids that expire. Runs
    /// until aborted.
    pub(crate) async fn keep_time(&self, node: &Arc<Node>) {
        self.shards
            .keep_time(|shard, state, now| {
                if let Ok(ids) = state.serving() {
                    let effects = ids.tick(now);
                    shard.carry_out(node, state, effects, now);
                }
            })
            .await;
    }
}

/// The partition of `__transaction_state` that holds a transactional id, and its leader.
pub(crate) fn coordinator_of(
    image: &ClusterImage,
    transactional_id: &str,
) -> Option<(i32, BrokerId)> {
    let number = partition_of(image, TRANSACTION_STATE, transactional_id)?;
    let leader = image
        .partition(TRANSACTION_STATE, PartitionId::new(number))?
        .leader;
    Some((number, leader))
}

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
