//! Metadata (key 3): the brokers, and topics with their leaders. Creates topics that are
//! asked for and do not exist, where that is allowed.

use super::{Context, authorized_operations};
use crate::{
    internal_topics,
    node::{self, Endpoint},
};
use std::{collections::BTreeSet, sync::Arc};
use yuxi_controller::image::{ClusterImage, TopicImage};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{BrokerId, TopicId},
    message,
    messages::{
        MetadataRequest, MetadataResponse,
        metadata_request::MetadataRequestTopic,
        metadata_response::{
            MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
        },
    },
};

/// Topics may be named by their ids from this version on.
const TOPIC_IDS_FROM: i16 = 10;

/// Fields of the answer by the version that brought them.
struct Fields {
    leader_epochs: bool,
    topic_ids: bool,
    topic_operations: bool,
    cluster_operations: bool,
}

pub(super) async fn handle(context: Context, request: MetadataRequest) -> MetadataResponse {
    let node = &context.node;
    // Null asks for all, and so does an empty list in version 0, which knows no null.
    let asked = request
        .topics
        .as_ref()
        .filter(|topics| context.version > 0 || !topics.is_empty());
    if let Some(asked) = asked
        && (request.allow_auto_topic_creation || context.version < 4)
        && node.settings.auto_create_topics_enable
    {
        create_missing(&context, asked).await;
    }
    let image = node.image();
    let fields = Fields {
        leader_epochs: context.version >= 7,
        topic_ids: context.version >= TOPIC_IDS_FROM,
        topic_operations: request.include_topic_authorized_operations,
        cluster_operations: request.include_cluster_authorized_operations
            && (8..=10).contains(&context.version),
    };
    let topics = match asked {
        None => image
            .topics()
            .map(|topic| describe(topic, &image, &fields))
            .collect(),
        Some(asked) => asked
            .iter()
            .map(|asked| find(asked, &image, &fields))
            .collect(),
    };
    let mut response = message!(MetadataResponse {
        brokers: node::endpoints(&image).into_iter().map(broker).collect(),
        cluster_id: (context.version >= 2)
            .then(|| image.cluster_id().map(|id| StrBytes::from(&**id)))
            .flatten(),
        controller_id: controller_id(&image).value(),
        topics,
    });
    if fields.cluster_operations {
        response.cluster_authorized_operations = authorized_operations::CLUSTER;
    }
    response
}

/// The controller, as clients see it: where they may send administrative requests. If that
/// is no broker, any broker will do, since it passes them on.
pub(super) fn controller_id(image: &ClusterImage) -> BrokerId {
    let Some(controller) = image.controller() else {
        return BrokerId::NONE;
    };
    image
        .broker(controller.node_id)
        .or_else(|| image.brokers().next())
        .map_or(BrokerId::NONE, |broker| broker.id)
}

/// Creates those of the named topics that do not exist. What cannot be created is told
/// as missing.
async fn create_missing(context: &Context, asked: &[MetadataRequestTopic]) {
    let image = context.node.image();
    let missing: BTreeSet<Arc<str>> = asked
        .iter()
        .filter(|topic| topic.topic_id.is_zero())
        .filter_map(|topic| topic.name.as_ref())
        .filter(|name| image.topic(name).is_none())
        .map(|name| Arc::from(name.as_str()))
        .collect();
    if !missing.is_empty() {
        context.node.auto_create(missing).await;
    }
}

fn find(
    asked: &MetadataRequestTopic,
    image: &ClusterImage,
    fields: &Fields,
) -> MetadataResponseTopic {
    let id = TopicId::from(asked.topic_id);
    // Java names no topic by an empty name next to its id, others by null.
    let (found, missing) = match &asked.name {
        Some(name) if id.is_zero() => {
            let missing = if yuxi_controller::decide::topics::check_name(name).is_ok() {
                ErrorCode::UnknownTopicOrPartition
            } else {
                ErrorCode::InvalidTopic
            };
            (image.topic(name), missing)
        }
        Some(_) | None => (image.topic_by_id(id), ErrorCode::UnknownTopicId),
    };
    if let Some(topic) = found {
        return describe(topic, image, fields);
    }
    message!(MetadataResponseTopic {
        error_code: missing.code(),
        // Only newer versions may leave the name out.
        name: asked
            .name
            .clone()
            .or_else(|| (!fields.topic_ids).then(StrBytes::default)),
        topic_id: asked.topic_id,
    })
}

fn describe(topic: &TopicImage, image: &ClusterImage, fields: &Fields) -> MetadataResponseTopic {
    let ids = |brokers: &[BrokerId]| brokers.iter().map(|id| id.value()).collect::<Vec<_>>();
    let partitions = topic
        .partitions()
        .map(|(id, state)| {
            let has_leader = state.leader != BrokerId::NONE;
            let offline = state
                .replicas
                .iter()
                .filter(|&&replica| image.broker(replica).is_none())
                .map(|replica| replica.value())
                .collect();
            message!(MetadataResponsePartition {
                error_code: if has_leader {
                    ErrorCode::None.code()
                } else {
                    ErrorCode::LeaderNotAvailable.code()
                },
                partition_index: id.value(),
                leader_id: state.leader.value(),
                leader_epoch: if fields.leader_epochs {
                    state.leader_epoch.value()
                } else {
                    -1
                },
                replica_nodes: ids(&state.replicas),
                isr_nodes: ids(&state.isr),
                offline_replicas: offline,
            })
        })
        .collect();
    message!(MetadataResponseTopic {
        error_code: ErrorCode::None.code(),
        name: Some(StrBytes::from(&*topic.name)),
        topic_id: if fields.topic_ids {
            topic.id.into()
        } else {
            TopicId::ZERO.into()
        },
        is_internal: internal_topics::is_internal(&topic.name),
        partitions,
        topic_authorized_operations: if fields.topic_operations {
            authorized_operations::TOPIC
        } else {
            authorized_operations::NOT_ASKED
        },
    })
}

fn broker(endpoint: Endpoint) -> MetadataResponseBroker {
    message!(MetadataResponseBroker {
        node_id: endpoint.id.value(),
        host: endpoint.host.into(),
        port: i32::from(endpoint.port),
        rack: endpoint.rack.map(StrBytes::from),
    })
}
