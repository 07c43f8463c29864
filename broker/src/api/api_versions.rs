//! ApiVersions (key 18): which APIs and versions are served.

use super::{APIS, Request, Started};
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{ApiVersionsRequest, ApiVersionsResponse, api_versions_response::ApiVersion},
};

/// The newest version of this API that is served.
const NEWEST: i16 = 4;

pub(super) fn start(mut request: Request) -> Started {
    if !(0..=NEWEST).contains(&request.head.api_version) {
        // A client that is newer than this broker gets a version 0 answer with the list
        // and tries again (KIP-511). Its body may have any layout, so it is not read.
        let mut context = request.into_context();
        context.version = 0;
        return Started::Ready(context.answer(&listing(ErrorCode::UnsupportedVersion)));
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
    Started::Ready(context.answer(&listing(error)))
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

fn listing(error: ErrorCode) -> ApiVersionsResponse {
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
    message!(ApiVersionsResponse {
        error_code: error.code(),
        api_keys,
    })
}
