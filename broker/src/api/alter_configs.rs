//! AlterConfigs (key 33) and IncrementalAlterConfigs (key 44): the same call to the
//! controller, with all overrides of a resource or with steps that change some.

use super::{Context, config_resource, errors_told::of_decision};
use yuxi_controller::{
    ControllerError,
    decide::configs::{ConfigAlteration, ConfigChange, ConfigStep},
};
use yuxi_protocol::{
    codec::StrBytes,
    message,
    messages::{
        AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest,
        IncrementalAlterConfigsResponse, alter_configs_response, incremental_alter_configs_request,
        incremental_alter_configs_response,
    },
};

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

/// How one resource is answered: the code, and why it is not 0.
type Answer = (i16, Option<StrBytes>);

pub(super) async fn handle_full(
    context: Context,
    request: AlterConfigsRequest,
) -> AlterConfigsResponse {
    let alterations = request
        .resources
        .iter()
        .map(|resource| {
            let values = resource.configs.iter().map(|config| {
                let value = config.value.as_ref().map(|value| value.as_str().to_owned());
                (config.name.as_str().to_owned(), value)
            });
            Ok(ConfigAlteration {
                scope: config_resource::scope(resource.resource_type, &resource.resource_name)?,
                change: ConfigChange::Full(values.collect()),
            })
        })
        .collect();
    let answers = alter(&context, alterations, request.validate_only).await;
    let responses = request
        .resources
        .into_iter()
        .zip(answers)
        .map(|(resource, (error_code, error_message))| {
            message!(alter_configs_response::AlterConfigsResourceResponse {
                error_code,
                error_message,
                resource_type: resource.resource_type,
                resource_name: resource.resource_name,
            })
        })
        .collect();
    message!(AlterConfigsResponse { responses })
}

pub(super) async fn handle_incremental(
    context: Context,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let alterations = request
        .resources
        .iter()
        .map(|resource| {
            let steps = resource
                .configs
                .iter()
                .map(step)
                .collect::<Result<_, _>>()?;
            Ok(ConfigAlteration {
                scope: config_resource::scope(resource.resource_type, &resource.resource_name)?,
                change: ConfigChange::Incremental(steps),
            })
        })
        .collect();
    let answers = alter(&context, alterations, request.validate_only).await;
    let responses = request
        .resources
        .into_iter()
        .zip(answers)
        .map(|(resource, (error_code, error_message))| {
            message!(
                incremental_alter_configs_response::AlterConfigsResourceResponse {
                    error_code,
                    error_message,
                    resource_type: resource.resource_type,
                    resource_name: resource.resource_name,
                }
            )
        })
        .collect();
    message!(IncrementalAlterConfigsResponse { responses })
}

fn step(
    config: &incremental_alter_configs_request::AlterableConfig,
) -> Result<(String, ConfigStep), ControllerError> {
    let name = config.name.as_str().to_owned();
    if config.config_operation == DELETE {
        return Ok((name, ConfigStep::Delete));
    }
    let Some(value) = &config.value else {
        return Err(ControllerError::InvalidRequest(format!(
            "Null value not supported for : {name}"
        )));
    };
    let value = value.as_str().to_owned();
    let step = match config.config_operation {
        SET => ConfigStep::Set(value),
        APPEND => ConfigStep::Append(value),
        SUBTRACT => ConfigStep::Subtract(value),
        unknown => {
            return Err(ControllerError::InvalidRequest(format!(
                "Unknown operation type {unknown}"
            )));
        }
    };
    Ok((name, step))
}

/// Has the controller change what can be changed; one answer for each resource, in order.
async fn alter(
    context: &Context,
    alterations: Vec<Result<ConfigAlteration, ControllerError>>,
    validate_only: bool,
) -> Vec<Answer> {
    let node = &context.node;
    let valid = alterations.iter().flatten().cloned().collect();
    let mut altered = node
        .controller
        .alter_configs(valid, validate_only)
        .await
        .into_iter();
    node.caught_up().await;
    alterations
        .into_iter()
        .map(|alteration| {
            let outcome = match alteration {
                Ok(_) => altered.next().unwrap_or(Err(ControllerError::Stopped)),
                Err(error) => Err(error),
            };
            of_decision(outcome.err().as_ref())
        })
        .collect()
}
