//! DescribeCluster (key 60): the brokers and the controller.

use super::{Context, authorized_operations, metadata};
use crate::node;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{
        DescribeClusterRequest, DescribeClusterResponse,
        describe_cluster_response::DescribeClusterBroker,
    },
    seal::SealHolder,
};

/// The request asks for brokers; the other kind, KRaft controllers, does not exist here.
const BROKERS: i8 = 1;

pub(super) fn handle(
    context: &Context,
    request: &DescribeClusterRequest,
) -> DescribeClusterResponse {
    if context.version >= 1 && request.endpoint_type != BROKERS {
        return message!(DescribeClusterResponse {
            error_code: ErrorCode::MismatchedEndpointType.code(),
            error_message: Some("only endpoint type 1, brokers, can be described here".into()),
            endpoint_type: BROKERS,
        });
    }
    let image = context.node.image();
    let brokers = node::endpoints(&image)
        .into_iter()
        .map(|endpoint| {
            message!(DescribeClusterBroker {
                broker_id: endpoint.id.value(),
                host: endpoint.host.into(),
                port: i32::from(endpoint.port),
                rack: endpoint.rack.map(StrBytes::from),
            })
        })
        .collect();
    let holder = image.controller().map(|controller| SealHolder {
        node: controller.node_id,
        epoch: controller.epoch,
    });
    message!(DescribeClusterResponse {
        unknown_tagged_fields: holder.map(SealHolder::to_tags).unwrap_or_default(),
        cluster_id: image
            .cluster_id()
            .map_or_else(StrBytes::default, |id| StrBytes::from(&**id)),
        controller_id: metadata::controller_id(&image).value(),
        brokers,
        cluster_authorized_operations: if request.include_cluster_authorized_operations {
            authorized_operations::CLUSTER
        } else {
            authorized_operations::NOT_ASKED
        },
    })
}
