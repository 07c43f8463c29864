//! What configs can be set on, as the four config APIs name it.

use std::sync::Arc;
use yuxi_controller::{ControllerError, keys::ConfigScope};
use yuxi_protocol::ids::BrokerId;

pub(super) const TOPIC: i8 = 2;
pub(super) const BROKER: i8 = 4;
pub(super) const GROUP: i8 = 32;

/// The scope that a resource means. A broker without a name is the whole cluster.
pub(super) fn scope(kind: i8, name: &str) -> Result<ConfigScope, ControllerError> {
    match kind {
        TOPIC => Ok(ConfigScope::Topic(Arc::from(name))),
        BROKER if name.is_empty() => Ok(ConfigScope::Cluster),
        BROKER => name
            .parse()
            .map(|id| ConfigScope::Broker(BrokerId::new(id)))
            .map_err(|_| {
                ControllerError::InvalidRequest(format!(
                    "Broker id must be an integer, but it is: {name}"
                ))
            }),
        GROUP => Ok(ConfigScope::Group(Arc::from(name))),
        _ => Err(ControllerError::InvalidRequest(format!(
            "configs of resource type {kind} are not supported: only topics ({TOPIC}), brokers \
             ({BROKER}) and groups ({GROUP}) have any"
        ))),
    }
}
