//! DescribeConfigs (key 32): settings with their values and where these come from.

use super::{Context, config_resource, errors_told::of_decision};
use std::collections::{BTreeMap, HashSet};
use yuxi_controller::{
    ControllerError,
    keys::ConfigScope,
    settings::describe::{self, DescribedConfig},
};
use yuxi_protocol::{
    codec::StrBytes,
    message,
    messages::{
        DescribeConfigsRequest, DescribeConfigsResponse,
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::{
            DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
        },
    },
};

/// Types and documentation are told from this version on.
const TYPES_FROM: i16 = 3;

pub(super) fn handle(
    context: &Context,
    request: &DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let wants = Wants {
        synonyms: request.include_synonyms,
        documentation: request.include_documentation && context.version >= TYPES_FROM,
        types: context.version >= TYPES_FROM,
    };
    let results = request
        .resources
        .iter()
        .map(|resource| {
            let described = describe(context, resource);
            let (error_code, error_message) = of_decision(described.as_ref().err());
            message!(DescribeConfigsResult {
                error_code,
                error_message,
                resource_type: resource.resource_type,
                resource_name: resource.resource_name.clone(),
                configs: named(resource, described.unwrap_or_default(), &wants),
            })
        })
        .collect();
    message!(DescribeConfigsResponse { results })
}

struct Wants {
    synonyms: bool,
    documentation: bool,
    types: bool,
}

fn describe(
    context: &Context,
    resource: &DescribeConfigsResource,
) -> Result<Vec<DescribedConfig>, ControllerError> {
    let node = &context.node;
    let image = node.image();
    let scope = config_resource::scope(resource.resource_type, &resource.resource_name)?;
    let none = BTreeMap::new();
    let overrides = image.config(&scope).map_or(&none, |config| &config.values);
    match &scope {
        ConfigScope::Topic(name) => {
            if image.topic(name).is_none() {
                return Err(yuxi_controller::decide::topics::check_name(name)
                    .err()
                    .unwrap_or(ControllerError::UnknownTopicOrPartition));
            }
            Ok(describe::topic(&node.live_settings(), overrides))
        }
        ConfigScope::Cluster => Ok(describe::cluster_defaults(overrides)),
        ConfigScope::Group(id) if id.is_empty() => Err(ControllerError::InvalidRequest(
            "Group name must not be empty".to_owned(),
        )),
        ConfigScope::Group(_) => Ok(describe::group(&node.live_settings(), overrides)),
        ConfigScope::Broker(id) if *id == node.broker_id => {
            Ok(describe::broker(&node.live_settings()))
        }
        ConfigScope::Broker(id) => Err(ControllerError::InvalidRequest(format!(
            "Unexpected broker id, expected {} or empty string, but received {id}",
            node.broker_id
        ))),
    }
}

fn named(
    resource: &DescribeConfigsResource,
    configs: Vec<DescribedConfig>,
    wants: &Wants,
) -> Vec<DescribeConfigsResourceResult> {
    // Null asks for all, and so does an empty list (KAFKA-9343).
    let names: Option<HashSet<&str>> = resource
        .configuration_keys
        .as_ref()
        .filter(|keys| !keys.is_empty())
        .map(|keys| keys.iter().map(StrBytes::as_str).collect());
    configs
        .into_iter()
        .filter(|config| {
            names
                .as_ref()
                .is_none_or(|names| names.contains(config.name))
        })
        .map(|config| answer(config, wants))
        .collect()
}

fn answer(config: DescribedConfig, wants: &Wants) -> DescribeConfigsResourceResult {
    let synonyms = config
        .synonyms
        .iter()
        .filter(|_| wants.synonyms)
        .map(|synonym| {
            message!(DescribeConfigsSynonym {
                name: synonym.name.into(),
                value: (!config.is_sensitive()).then(|| synonym.value.as_str().into()),
                source: synonym.source as i8,
            })
        })
        .collect();
    message!(DescribeConfigsResourceResult {
        name: config.name.into(),
        read_only: config.read_only,
        config_source: config.source as i8,
        is_sensitive: config.is_sensitive(),
        synonyms,
        config_type: if wants.types { config.kind as i8 } else { 0 },
        documentation: wants
            .documentation
            .then(|| StrBytes::from(config.documentation)),
        value: config.value.map(StrBytes::from),
    })
}
