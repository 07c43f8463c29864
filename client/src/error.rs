//! The client's one error type.
//!
//! Every message says what failed and with whom, and where there is one the
//! setting that mends it. Errors are cheap to clone, because all records of a
//! failed batch share the failure of that batch.

use std::sync::Arc;

use yuxi_protocol::codec::{DecodeError, EncodeError};
use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::BrokerId;

/// What the client's calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No TCP connection could be made.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port that were tried.
        address: String,
        /// What the operating system said.
        source: Arc<std::io::Error>,
    },
    /// None of the bootstrap servers answered.
    #[error(
        "no bootstrap server answered ({addresses}); the last one: {last}; check --bootstrap or bootstrap.servers"
    )]
    NoBootstrap {
        /// The addresses that were tried.
        addresses: String,
        /// The last failure.
        last: Arc<Error>,
    },
    /// The connection broke while an answer was outstanding.
    #[error("the connection to {address} was lost: {reason}")]
    Disconnected {
        /// Host and port of the broker.
        address: String,
        /// How it was lost.
        reason: Arc<str>,
    },
    /// No answer came in time.
    #[error("{what} did not finish within {timeout_ms} ms")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// The limit, in milliseconds.
        timeout_ms: u64,
    },
    /// The broker's bytes are not what the protocol says.
    #[error("malformed {what} from {address}: {detail}")]
    Malformed {
        /// Which answer.
        what: &'static str,
        /// Host and port of the broker, or the partition.
        address: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A request cannot be written in the version that the broker speaks.
    #[error("cannot send {what}: {source}")]
    Encode {
        /// Which request.
        what: &'static str,
        /// Why not.
        source: EncodeError,
    },
    /// Client and broker have no version of an API in common.
    #[error(
        "{address} does not speak a version of {api} that this client knows (it offers {offered}, needed {needed})"
    )]
    Unsupported {
        /// Host and port of the broker.
        address: String,
        /// The API's name.
        api: &'static str,
        /// The versions that the broker offers.
        offered: String,
        /// The versions that this client speaks.
        needed: String,
    },
    /// The broker refused, with one of Kafka's error codes.
    #[error("{context}: {message} ({})", code.name())]
    Broker {
        /// What was asked for.
        context: String,
        /// Kafka's code.
        code: ErrorCode,
        /// The broker's own message, or Kafka's standard one.
        message: String,
    },
    /// A record is larger than the producer may send.
    #[error(
        "a record of {size} bytes is larger than message.max.bytes = {limit}; raise it with -X message.max.bytes=… and max.message.bytes on the topic"
    )]
    RecordTooLarge {
        /// Its size in bytes, headers included.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A request for one broker, which the cluster does not list as alive.
    #[error("broker {broker}: no such broker is alive; the cluster has {alive}")]
    NoSuchBroker {
        /// The broker that was named.
        broker: BrokerId,
        /// Those that are alive.
        alive: String,
    },
    /// The topic does not have that partition.
    #[error("topic {topic} has no partition {partition}; it has {count}, numbered from 0")]
    NoSuchPartition {
        /// The topic's name.
        topic: String,
        /// The partition that was named.
        partition: i32,
        /// How many it has.
        count: usize,
    },
    /// Records that were read are no longer in the log, after an unclean election (KIP-320).
    #[error(
        "the log of {partition} was cut off below the position {position}: {}; set auto.offset.reset to go on, or seek",
        match common { Some(end) => format!("it still agrees up to offset {end}"), None => "nothing that was read is in it".to_owned() }
    )]
    LogTruncated {
        /// The partition.
        partition: String,
        /// The next record that would have been handed out.
        position: i64,
        /// Up to where the log still holds what was read, if anywhere.
        common: Option<i64>,
    },
    /// A setting's name or value is wrong, or two settings contradict each other.
    #[error("{0}")]
    Config(String),
    /// A call that the consumer or producer is not set up for.
    #[error("{0}")]
    State(&'static str),
    /// The record belongs to a transaction that was given up before it was written.
    #[error("the record's transaction was aborted")]
    TransactionAborted,
    /// The producer or consumer was closed.
    #[error("the client was closed")]
    Closed,
}

impl Error {
    /// A refusal by the broker; its own message wins over the standard one.
    pub(crate) fn broker(
        context: impl Into<String>,
        code: ErrorCode,
        message: Option<&str>,
    ) -> Self {
        Self::Broker {
            context: context.into(),
            code,
            message: message
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| code.message())
                .trim_end_matches('.')
                .to_owned(),
        }
    }

    pub(crate) fn decode(what: &'static str, address: &str, source: &DecodeError) -> Self {
        Self::Malformed {
            what,
            address: address.to_owned(),
            detail: source.to_string(),
        }
    }

    /// Kafka's error code, when the broker sent one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Broker { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the same call may succeed later without anything being mended.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::NoBootstrap { .. }
            | Self::Disconnected { .. }
            // It may come back.
            | Self::NoSuchBroker { .. }
            | Self::TimedOut { .. } => true,
            Self::Broker { code, .. } => code.is_retriable(),
            Self::Malformed { .. }
            | Self::Encode { .. }
            | Self::Unsupported { .. }
            | Self::RecordTooLarge { .. }
            | Self::NoSuchPartition { .. }
            | Self::LogTruncated { .. }
            | Self::Config(_)
            | Self::State(_)
            | Self::TransactionAborted
            | Self::Closed => false,
        }
    }
}

/// The error that a wire code stands for; `None` for success. A number from a
/// newer broker than this client counts as an unknown error.
pub(crate) fn error_code(code: i16) -> Option<ErrorCode> {
    match ErrorCode::from_code(code) {
        Some(ErrorCode::None) => None,
        Some(error) => Some(error),
        None => Some(ErrorCode::UnknownServerError),
    }
}

/// `Ok` for code 0, otherwise the broker's refusal.
pub(crate) fn check(
    code: i16,
    message: Option<&str>,
    context: impl FnOnce() -> String,
) -> Result<()> {
    match error_code(code) {
        None => Ok(()),
        Some(error) => Err(Error::broker(context(), error, message)),
    }
}
