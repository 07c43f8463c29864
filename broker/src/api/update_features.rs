//! UpdateFeatures (key 57): the levels of the protocols that the whole cluster speaks
//! (KIP-584). All that a request asks for is done, or nothing.

use super::{Context, errors_told::of_decision};
use yuxi_controller::{
    ControllerError,
    decide::features::{Direction, FeatureUpdate},
};
use yuxi_protocol::{
    message,
    messages::{
        UpdateFeaturesRequest, UpdateFeaturesResponse, update_features_request::FeatureUpdateKey,
        update_features_response::UpdatableFeatureResult,
    },
};

/// The direction has a number from this version on.
const DIRECTIONS_FROM: i16 = 1;

/// Up to this version each feature has its own result.
const RESULTS_UNTIL: i16 = 1;

pub(super) async fn handle(
    context: Context,
    request: UpdateFeaturesRequest,
) -> UpdateFeaturesResponse {
    let updates: Result<Vec<_>, _> = request
        .feature_updates
        .iter()
        .map(|update| read(&context, update))
        .collect();
    let node = &context.node;
    let updated = match updates {
        Ok(updates) => {
            node.controller
                .update_features(updates, request.validate_only)
                .await
        }
        Err(error) => Err(error),
    };
    node.caught_up().await;
    let (error_code, error_message) = of_decision(updated.as_ref().err());
    let mut response = message!(UpdateFeaturesResponse {
        error_code,
        error_message,
    });
    if updated.is_ok() && context.version <= RESULTS_UNTIL {
        let updated = request.feature_updates.into_iter();
        response.results = updated
            .map(|update| {
                message!(UpdatableFeatureResult {
                    feature: update.feature,
                })
            })
            .collect();
    }
    response
}

fn read(context: &Context, update: &FeatureUpdateKey) -> Result<FeatureUpdate, ControllerError> {
    let direction = if context.version >= DIRECTIONS_FROM {
        match update.upgrade_type {
            1 => Direction::Upgrade,
            // No feature here loses anything on its way down, so that both are safe.
            2 | 3 => Direction::Downgrade,
            other => {
                return Err(ControllerError::InvalidFeatureUpdate(format!(
                    "Invalid update version {} for feature {}. The controller does not support \
                     the given upgrade type {other}.",
                    update.max_version_level,
                    update.feature.as_str(),
                )));
            }
        }
    } else if update.allow_downgrade {
        Direction::Downgrade
    } else {
        Direction::Upgrade
    };
    Ok(FeatureUpdate {
        name: update.feature.as_str().to_owned(),
        level: update.max_version_level,
        direction,
    })
}
