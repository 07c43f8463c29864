//! Tells the controller of which deleted topics nothing is left here, so that it need not
//! remember them for this broker.
//!
//! One task, one call at a time, with everything that is gone by then. A call that failed is made
//! again, as long as the image still names this broker.

use crate::node::Node;
use std::{sync::Arc, time::Duration};
use yuxi_controller::ControllerError;

/// The rest after a call: topics are often deleted one after the other, and nobody waits.
const REST: Duration = Duration::from_secs(1);

/// The most topics in one call.
const MOST_AT_ONCE: usize = 1024;

/// Runs until the broker ends.
pub(crate) async fn confirm(node: Arc<Node>) {
    let mut images = node.images();
    loop {
        while node.replicas.gone_topics(1).is_empty() {
            if images.changed().await.is_err() {
                return;
            }
        }
        let gone = node.replicas.gone_topics(MOST_AT_ONCE);
        match node.controller.confirm_deletions(gone).await {
            Ok(()) => node.caught_up().await,
            Err(ControllerError::Stopped) => return,
            Err(error) => {
                tracing::debug!(%error, "the controller is told again what was removed");
            }
        }
        tokio::time::sleep(REST).await;
    }
}
