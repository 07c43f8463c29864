//! FindCoordinator (key 10): which broker coordinates a group or a transactional id.

use super::Context;
use crate::{
    internal_topics::{CONSUMER_OFFSETS, TRANSACTION_STATE, partition_of},
    node::{self, Endpoint},
};
use std::{collections::BTreeSet, sync::Arc};
use yuxi_controller::image::ClusterImage;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::PartitionId,
    message,
    messages::{
        FindCoordinatorRequest, FindCoordinatorResponse, find_coordinator_response::Coordinator,
    },
};

/// Several keys may be asked for at once from this version on.
const BATCHES_FROM: i16 = 4;

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
const SHARE: i8 = 2;

/// What a client is told of one key.
struct Answer {
    error: ErrorCode,
    message: Option<&'static str>,
    endpoint: Option<Endpoint>,
}

impl Answer {
    fn error(error: ErrorCode, message: &'static str) -> Self {
        Self {
            error,
            message: Some(message),
            endpoint: None,
        }
    }

    fn node(&self) -> (i32, StrBytes, i32) {
        match &self.endpoint {
            Some(endpoint) => (
                endpoint.id.value(),
                StrBytes::from(endpoint.host.as_str()),
                i32::from(endpoint.port),
            ),
            None => (-1, StrBytes::default(), -1),
        }
    }
}

pub(super) async fn handle(
    context: Context,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    if let Some(topic) = topic_of(request.key_type)
        && context.node.image().topic(topic).is_none()
    {
        context
            .node
            .auto_create(BTreeSet::from([Arc::from(topic)]))
            .await;
    }
    let image = context.node.image();
    if context.version < BATCHES_FROM {
        let answer = find(&image, request.key_type, &request.key);
        let (node_id, host, port) = answer.node();
        return message!(FindCoordinatorResponse {
            error_code: answer.error.code(),
            error_message: (context.version >= 1)
                .then_some(answer.message)
                .flatten()
                .map(StrBytes::from),
            node_id,
            host,
            port,
        });
    }
    let coordinators = request
        .coordinator_keys
        .into_iter()
        .map(|key| {
            let answer = find(&image, request.key_type, &key);
            let (node_id, host, port) = answer.node();
            message!(Coordinator {
                key,
                node_id,
                host,
                port,
                error_code: answer.error.code(),
                error_message: answer.message.map(StrBytes::from),
            })
        })
        .collect();
    message!(FindCoordinatorResponse { coordinators })
}

/// Where the coordinators of that kind keep what they know.
fn topic_of(key_type: i8) -> Option<&'static str> {
    match key_type {
        GROUP => Some(CONSUMER_OFFSETS),
        TRANSACTION => Some(TRANSACTION_STATE),
        _ => None,
    }
}

fn find(image: &ClusterImage, key_type: i8, key: &str) -> Answer {
    let Some(topic) = topic_of(key_type) else {
        return if key_type == SHARE {
            Answer::error(
                ErrorCode::UnsupportedVersion,
                "share groups are not supported by this broker",
            )
        } else {
            Answer::error(ErrorCode::InvalidRequest, "the key type is unknown")
        };
    };
    let leader = partition_of(image, topic, key)
        .and_then(|number| image.partition(topic, PartitionId::new(number)))
        .map(|partition| partition.leader);
    let coordinator = node::endpoints(image)
        .into_iter()
        .find(|endpoint| Some(endpoint.id) == leader);
    match coordinator {
        Some(endpoint) => Answer {
            error: ErrorCode::None,
            message: None,
            endpoint: Some(endpoint),
        },
        None => Answer::error(
            ErrorCode::CoordinatorNotAvailable,
            "the coordinator is not available",
        ),
    }
}
