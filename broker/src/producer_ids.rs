//! Numbers for idempotent producers, taken from the controller in blocks so that most
//! are given out without asking it.

use crate::node::Node;
use std::ops::Range;
use tokio::sync::Mutex;
use yuxi_controller::ControllerError;
use yuxi_protocol::ids::ProducerId;

/// The rest of this broker's block. What is left of it when the broker stops is never
/// used, so that no number is given out twice.
#[derive(Debug, Default)]
pub(crate) struct ProducerIds {
    block: Mutex<Range<i64>>,
}

impl ProducerIds {
    /// A number that nobody else has.
    pub(crate) async fn next(&self, node: &Node) -> Result<ProducerId, ControllerError> {
        let mut block = self.block.lock().await;
        if block.is_empty() {
            *block = allocate(node).await?;
        }
        let id = block.start;
        block.start += 1;
        Ok(ProducerId::new(id))
    }

    /// Gives out none up to `last`: they are in logs that were taken over from another
    /// cluster, whose producers' sequences a new producer must not be held to.
    pub(crate) async fn pass_over(
        &self,
        node: &Node,
        last: ProducerId,
    ) -> Result<(), ControllerError> {
        let mut block = self.block.lock().await;
        node.controller.pass_over_producer_ids(last).await?;
        *block = 0..0;
        Ok(())
    }
}

async fn allocate(node: &Node) -> Result<Range<i64>, ControllerError> {
    let allocated = node.controller.allocate_producer_ids().await?;
    let first = allocated.first.value();
    Ok(first..first + i64::from(allocated.count))
}
