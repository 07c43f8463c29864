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
            let allocated = node.controller.allocate_producer_ids().await?;
            let first = allocated.first.value();
            *block = first..first + i64::from(allocated.count);
        }
        let id = block.start;
        block.start += 1;
        Ok(ProducerId::new(id))
    }
}
