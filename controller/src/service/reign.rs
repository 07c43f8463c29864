//! What a controller does unasked as long as it holds the seal: it writes down what all must
//! see alike, compares every partition with the live brokers (I11), and moves leaders back
//! to their preferred replicas.

use std::sync::Arc;

use tokio::time::Instant;
use yuxi_protocol::ids::ControllerEpoch;

use super::{
    endings::Endings,
    task::{Cause, Task},
};
use crate::{
    decide::{brokers, configs, deletions, elections},
    image::ClusterImage,
    liveness::Liveness,
    rebalance::RebalanceTimer,
    settings::ServerSettings,
    transactions::{pack, pack_in_portions},
};

/// See the module.
pub(super) struct Reign {
    settings: Arc<ServerSettings>,
    /// There will never be another process.
    is_alone: bool,
    /// The reign in which every partition was compared with the live brokers, as they
    /// still are.
    reconciled: Option<ControllerEpoch>,
    rebalance: RebalanceTimer,
}

impl Reign {
    pub(super) fn new(settings: &Arc<ServerSettings>, is_alone: bool) -> Self {
        Self {
            settings: Arc::clone(settings),
            is_alone,
            reconciled: None,
            rebalance: RebalanceTimer::new(settings),
        }
    }

    /// When there is something to look at again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.rebalance.deadline()
    }

    /// Another process holds the seal, or nobody does.
    pub(super) fn is_over(&mut self) {
        self.rebalance.stop();
    }

    /// Brokers came, went or were found dead, or what followed from that was not written.
    pub(super) fn reconcile_again(&mut self) {
        self.reconciled = None;
    }

    /// What followed from comparing is written.
    pub(super) fn has_reconciled(&self) {
        if let Some(epoch) = self.reconciled {
            tracing::info!(%epoch, "this controller has reconciled every partition");
        }
    }

    /// What is to be committed next in the reign `epoch`. Sessions of dead brokers go to
    /// `endings`.
    pub(super) fn next_task(
        &mut self,
        epoch: ControllerEpoch,
        image: &ClusterImage,
        liveness: &Liveness,
        endings: &mut Endings,
    ) -> Option<Task> {
        if self.reconciled == Some(epoch) {
            return self.rebalance(epoch, image);
        }
        if !self.is_alone {
            let settling = configs::settle_min_isr(image, &self.settings);
            if !settling.is_empty() {
                return Some(Task::new(Cause::Upkeep, pack(settling, epoch)));
            }
        }
        let dead = liveness.dead_brokers(image);
        let mut changes = brokers::remove_orphans(image);
        changes.extend(deletions::forget_unknown_brokers(image));
        let spared = liveness.spared();
        changes.extend(brokers::fence(image, &self.settings, &dead, spared));
        endings.add(
            dead.iter()
                .filter_map(|&id| image.registration(id)?.session),
        );
        self.reconciled = Some(epoch);
        let transactions = pack(changes, epoch);
        if transactions.is_empty() {
            self.has_reconciled();
            return None;
        }
        Some(Task::new(Cause::Reconcile, transactions))
    }

    fn rebalance(&mut self, epoch: ControllerEpoch, image: &ClusterImage) -> Option<Task> {
        let now = Instant::now();
        if !self.rebalance.is_due(now) {
            return None;
        }
        let (changes, more) = elections::rebalance(image, &self.settings);
        self.rebalance.looked(now, more);
        let transactions = pack_in_portions(changes, epoch);
        (!transactions.is_empty()).then(|| Task::new(Cause::Upkeep, transactions))
    }
}
