//! ListConfigResources (key 74): what has configs (KIP-1142). Version 0 of it was
//! ListClientMetricsResources.

use super::{Context, config_resource};
use yuxi_controller::keys::ConfigScope;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{
        ListConfigResourcesRequest, ListConfigResourcesResponse,
        list_config_resources_response::ConfigResource,
    },
};

/// Kinds that Kafka has and this broker has none of.
const CLIENT_METRICS: i8 = 16;
const BROKER_LOGGER: i8 = 8;

pub(super) fn handle(
    context: &Context,
    request: &ListConfigResourcesRequest,
) -> ListConfigResourcesResponse {
    let all = [
        config_resource::TOPIC,
        config_resource::BROKER,
        BROKER_LOGGER,
        CLIENT_METRICS,
        config_resource::GROUP,
    ];
    let kinds: &[i8] = match (context.version, request.resource_types.as_slice()) {
        (0, _) => &[CLIENT_METRICS],
        (_, []) => &all,
        (_, asked) => asked,
    };
    if kinds.iter().any(|kind| !all.contains(kind)) {
        return message!(ListConfigResourcesResponse {
            error_code: ErrorCode::UnsupportedVersion.code(),
        });
    }
    let image = context.node.image();
    let resource = |kind: i8, name: StrBytes| {
        message!(ConfigResource {
            resource_name: name,
            // Version 0 only knows one kind, which is the field's default.
            resource_type: kind,
        })
    };
    let mut config_resources = Vec::new();
    for &kind in kinds {
        match kind {
            config_resource::TOPIC => config_resources.extend(
                image
                    .topics()
                    .map(|topic| resource(kind, StrBytes::from(&*topic.name))),
            ),
            config_resource::BROKER => config_resources.extend(
                image
                    .brokers()
                    .map(|broker| resource(kind, broker.id.to_string().into())),
            ),
            config_resource::GROUP => {
                config_resources.extend(image.config_scopes().filter_map(
                    |(scope, _)| match scope {
                        ConfigScope::Group(id) => Some(resource(kind, StrBytes::from(&**id))),
                        ConfigScope::Topic(_) | ConfigScope::Broker(_) | ConfigScope::Cluster => {
                            None
                        }
                    },
                ));
            }
            // There are none.
            _ => {}
        }
    }
    message!(ListConfigResourcesResponse { config_resources })
}
