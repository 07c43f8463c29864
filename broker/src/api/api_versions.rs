//! ApiVersions (key 18): which APIs and versions are served, and which features the
//! cluster has.

use super::{APIS, Context, Request, Started};
use yuxi_controller::decide::features::FEATURES;
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{
        ApiVersionsRequest, ApiVersionsResponse,
        api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey},
    },
};

/// The newest version of this API that is served.
const NEWEST: i16 = 4;

/// Answers tell of features from this version on (KIP-584).
const FEATURES_FROM: i16 = 3;

/// Clients of earlier versions fail on a feature whose lowest level is 0 (KIP-1022).
const LEVEL_0_FROM: i16 = 4;

pub(super) fn start(mut request: Request) -> Started {
    if !(0..=NEWEST).contains(&request.head.api_version) {
        // A client that is newer than this broker gets a version 0 answer with the list
        // and tries again (KIP-511). Its body may have any layout, so it is not read.
        let mut context = request.into_context();
        context.version = 0;
        return Started::Ready(context.answer(&listing(&context, ErrorCode::UnsupportedVersion)));
    }
    let asked: ApiVersionsRequest = match request.decode() {
        Ok(asked) => asked,
        Err(error) => return Started::Ready(Err(error)),
    };
    let context = request.into_context();
    let error = if context.version >= 3 && !is_client_software(&asked) {
        ErrorCode::InvalidRequest
    } else {
        ErrorCode::None
    };
    Started::Ready(context.answer(&listing(&context, error)))
}

/// Name and version of the client are limited to what is safe in a metric's label
/// (KIP-511).
fn is_client_software(asked: &ApiVersionsRequest) -> bool {
    let valid = |text: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        edge(text.chars().next())
            && edge(text.chars().next_back())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
    };
    valid(&asked.client_software_name) && valid(&asked.client_software_version)
}

fn listing(context: &Context, error: ErrorCode) -> ApiVersionsResponse {
    let api_keys = APIS
        .iter()
        .filter(|api| api.offered)
        .map(|api| {
            message!(ApiVersion {
                api_key: api.key,
                min_version: api.min,
                max_version: api.max,
            })
        })
        .collect();
    let mut response = message!(ApiVersionsResponse {
        error_code: error.code(),
        api_keys,
    });
    if context.version >= FEATURES_FROM {
        let image = context.node.image();
        response.finalized_features_epoch = image
            .features()
            .map_or(0, |features| features.mod_revision.value());
        for feature in FEATURES {
            if context.version >= LEVEL_0_FROM {
                response
                    .supported_features
                    .push(message!(SupportedFeatureKey {
                        name: feature.name.into(),
                        max_version: feature.highest,
                    }));
            }
            let level = image.feature(feature.name);
            if level > 0 {
                response
                    .finalized_features
                    .push(message!(FinalizedFeatureKey {
                        name: feature.name.into(),
                        max_version_level: level,
                        min_version_level: level,
                    }));
            }
        }
    }
    response
}
