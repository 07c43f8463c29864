//! What an error of etcd or of the way to it means for what was asked, in words that
//! name the setting or the command that mends it.
//!
//! etcd tells its errors apart by their text (`rpctypes/error.go` lists them); the
//! gRPC codes are too coarse. What is not known here counts as unsure.

use std::error::Error as _;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

use crate::store::StoreError;

/// How a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It had no effect, and another member or a moment may make a difference.
    NotDone(String),
    /// It had no effect and won't have any at this member with these settings; another
    /// member may differ.
    Misfit(String),
    /// It may have had its effect.
    Unsure(String),
    /// It had no effect, and asking another member makes no difference.
    Settled(StoreError),
    /// The revision that was asked for is no longer kept.
    Compacted,
    /// The answer was larger than this client reads at once.
    ReplyTooLarge,
}

impl Failure {
    /// The error of a request that changes nothing, or may be repeated freely.
    pub(super) fn of_query(self) -> StoreError {
        match self {
            Self::NotDone(why) | Self::Unsure(why) => StoreError::Unavailable(why),
            Self::Misfit(why) => StoreError::Denied(why),
            Self::Settled(error) => error,
            Self::Compacted => {
                StoreError::Unavailable("etcd compacts faster than it can be read".to_owned())
            }
            Self::ReplyTooLarge => {
                StoreError::Damaged("etcd holds a value that is too large to be ours".to_owned())
            }
        }
    }

    /// The error of a commit.
    pub(super) fn of_commit(self) -> StoreError {
        match self {
            Self::Unsure(why) => StoreError::Unknown(why),
            other => other.of_query(),
        }
    }
}

/// Where a request went, and as whom.
pub(super) struct Place<'a> {
    pub(super) url: &'a str,
    pub(super) prefix: &'a str,
    pub(super) user: Option<&'a str>,
}

impl Place<'_> {
    pub(super) fn no_leader(&self) -> String {
        format!(
            "the etcd at {} has no leader: a majority of its members must be running",
            self.url
        )
    }

    pub(super) fn permission_denied(&self) -> StoreError {
        let user = self.user.unwrap_or_default();
        StoreError::Denied(format!(
            "etcd.user={user} may not read and write the keys under etcd.prefix={prefix}: grant \
             it that (etcdctl role grant-permission ROLE readwrite --prefix=true {prefix}, \
             etcdctl user grant-role {user} ROLE)",
            prefix = self.prefix
        ))
    }
}

pub(super) fn classify(error: &Error, place: &Place<'_>) -> Failure {
    let denied = |why: String| Failure::Settled(StoreError::Denied(why));
    match error {
        Error::GRpcStatus(status) => classify_status(status, place),
        Error::LeaseKeepAliveError(why) if why == "lease not found" => {
            Failure::Settled(StoreError::SessionLost)
        }
        // The stream ended before it answered.
        Error::LeaseKeepAliveError(why) | Error::WatchError(why) => {
            Failure::Unsure(format!("etcd at {}: {why}", place.url))
        }
        Error::IoError(error) => Failure::Unsure(format!("etcd at {}: {error}", place.url)),
        Error::TransportError(error) => denied(format!(
            "etcd.endpoints={}: {}",
            place.url,
            with_causes(error)
        )),
        Error::InvalidArgs(_)
        | Error::InvalidUri(_)
        | Error::Utf8Error(_)
        | Error::ElectError(_)
        | Error::InvalidMetadataValue(_)
        | Error::EndpointError(_)
        | Error::EndpointsNotManaged
        | Error::Internal(_) => denied(format!("etcd.endpoints={}: {error}", place.url)),
    }
}

fn classify_status(status: &Status, place: &Place<'_>) -> Failure {
    if let Some(why) = connect_error(status) {
        return cannot_connect(&why, place.url);
    }
    let settled = |error| Failure::Settled(error);
    let denied = |why: String| Failure::Settled(StoreError::Denied(why));
    let user = place.user.unwrap_or_default();
    let message = status.message();
    match message.strip_prefix("etcdserver: ").unwrap_or(message) {
        "requested lease not found" => settled(StoreError::SessionLost),
        "mvcc: required revision has been compacted" => Failure::Compacted,
        "mvcc: database space exceeded" => settled(StoreError::Unavailable(
            "etcd is out of space (alarm NOSPACE): compact and defragment it, or raise its \
             --quota-backend-bytes, then run etcdctl alarm disarm"
                .to_owned(),
        )),
        "too many requests" => settled(StoreError::Unavailable(
            "etcd has too many requests to take another".to_owned(),
        )),
        "permission denied" => settled(place.permission_denied()),
        "user name is empty" => {
            denied("etcd lets in only known users: set etcd.user and etcd.password".to_owned())
        }
        "authentication failed, invalid user ID or password" => denied(format!(
            "etcd does not know etcd.user={user} with this etcd.password"
        )),
        "authentication is not enabled" => denied(
            "etcd knows no users: remove etcd.user and etcd.password, or enable authentication \
             there (etcdctl auth enable)"
                .to_owned(),
        ),
        "too many operations in txn request" => denied(
            "etcd allows fewer operations in a transaction than it does by default: run it with \
             --max-txn-ops=128 or more"
                .to_owned(),
        ),
        "request is too large" => denied(
            "etcd allows smaller requests than it does by default: run it with \
             --max-request-bytes=1572864 or more"
                .to_owned(),
        ),
        "no leader" => Failure::NotDone(place.no_leader()),
        // A new token is asked for with the next connection.
        "invalid auth token" | "revision of auth store is old" => {
            Failure::NotDone(format!("etcd at {}: {message}", place.url))
        }
        "rpc not supported for learner" => {
            Failure::NotDone(format!("the etcd at {} is a learner", place.url))
        }
        _ => classify_code(status, place),
    }
}

fn classify_code(status: &Status, place: &Place<'_>) -> Failure {
    let url = place.url;
    match status.code() {
        Code::Unimplemented => Failure::Settled(StoreError::Denied(format!(
            "what listens at {url} is no etcd of version 3.4 or later: check etcd.endpoints"
        ))),
        Code::OutOfRange if status.message().contains("message length too large") => {
            Failure::ReplyTooLarge
        }
        _ => {
            let causes = status.source().map(with_causes);
            Failure::Unsure(format!(
                "etcd at {url}: {}",
                causes.as_deref().unwrap_or(status.message())
            ))
        }
    }
}

/// Why no connection was made, if that is what went wrong: then nothing was sent.
fn connect_error(status: &Status) -> Option<String> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return Some(with_causes(error));
        }
        cause = error.source();
    }
    None
}

fn cannot_connect(why: &str, url: &str) -> Failure {
    // What another try, after etcd has come up or back, can't mend.
    let is_for_good = ["InvalidContentType", "ertificate", "UnknownCA"]
        .iter()
        .any(|sign| why.contains(sign));
    let hint = if why.contains("InvalidContentType") || why.contains("handshake eof") {
        "it does not speak TLS: use http:// in etcd.endpoints"
    } else if why.contains("CertificateRequired") || why.contains("BadCertificate") {
        "it wants a certificate of this client: set etcd.tls.certificate and etcd.tls.key"
    } else if why.contains("certificate") || why.contains("UnknownCA") {
        "check etcd.tls.ca, and the name in etcd.endpoints"
    } else if url.starts_with("https") && why.contains("reset by peer") {
        // In the middle of the handshake, so it may be either.
        "it hung up: if it does not speak TLS, use http:// in etcd.endpoints; if it wants a \
         certificate of this client, set etcd.tls.certificate and etcd.tls.key"
    } else {
        "check etcd.endpoints, and that etcd is running"
    };
    let told = format!("no connection to etcd at {url} ({hint}): {why}");
    if is_for_good {
        Failure::Misfit(told)
    } else {
        Failure::NotDone(told)
    }
}

/// The error and what caused it, without saying anything twice.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
