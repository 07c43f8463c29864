//! The first part of a shutdown in a cluster: others take over what this broker leads,
//! while it goes on answering.

use crate::node::Node;
use std::{sync::Arc, time::Duration};
use yuxi_controller::ControllerError;

/// The rest after the controller could not be asked.
const REST: Duration = Duration::from_millis(50);

/// Asks the controller to give what this broker leads to others, and returns when it leads
/// only what nobody else can. Clients that ask for the rest are sent to the new leaders
/// meanwhile. It may take for ever, if no controller is to be had.
pub(crate) async fn hand_over(node: &Arc<Node>) {
    loop {
        let registered = node.controller.image();
        let Some(registration) = registered.registration(node.broker_id) else {
            // Its session has ended, so others lead already.
            return;
        };
        match node.controller.shut_down_broker(registration.epoch).await {
            Ok(still_led) => {
                // The roles here are as the answer says.
                node.caught_up().await;
                tracing::info!(still_led, "other brokers have taken over");
                return;
            }
            Err(ControllerError::Stopped) => return,
            Err(error) => {
                tracing::debug!(%error, "the controller did not let this broker go yet");
                tokio::time::sleep(REST).await;
            }
        }
    }
}
