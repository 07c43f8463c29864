//! Frames on a connection: the length before them, the heads of requests and answers,
//! and the bodies behind those, typed by `kafka-wire`.
//!
//! ```text
//! request:  length i32 | api key i16 | api version i16 | correlation id i32
//!           | client id nullable string | tagged fields, if flexible | body
//! answer:   length i32 | correlation id i32 | tagged fields, if flexible | body
//! ```
//!
//! Which heads are flexible follows from the API and its version. Invariant: every
//! answer's head is of the version that the client derives from its request, and an
//! ApiVersions answer's is always the plain one, because its client can't know yet.

use bytes::{Buf, Bytes, BytesMut};
use kafka_wire::{
    API_DESCRIPTORS, ApiDescriptor, KafkaRequest, KafkaResponse, RequestHeader, ResponseHeader,
    request_header_version, response_header_version,
};
use kafka_wire_core::{
    ApiVersion, DecodeError, DecodeLimits, Decoder, EncodeError, KafkaDecode, StrBytes,
};

/// Bytes of the length before a frame, which it does not count.
pub const LENGTH_PREFIX: usize = 4;
/// API key, API version and correlation id: what the shortest request has.
const SHORTEST_REQUEST: usize = 8;
/// Strings are at most this long in every encoding, Kafka's own limit.
const MAX_STRING_BYTES: usize = i16::MAX as usize;

/// Why bytes are not the frame that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length before the frame is negative.
    #[error("a frame can't have the length {0}")]
    NegativeLength(i32),
    /// The frame is larger than is accepted here.
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLarge {
        /// What the length says.
        length: usize,
        /// What is accepted.
        limit: usize,
    },
    /// The frame ends inside the part of the head that all versions share.
    #[error("a request of {0} bytes has no head")]
    NoHead(usize),
    /// The head is malformed.
    #[error("malformed head: {0}")]
    Head(DecodeError),
    /// The body is malformed, or of a version that is not known here.
    #[error("malformed body of api {api_key} version {api_version}: {error}")]
    Body {
        /// The API.
        api_key: i16,
        /// Its version.
        api_version: i16,
        /// What was wrong.
        error: DecodeError,
    },
    /// The answer belongs to another request.
    #[error("the answer has correlation id {found} where {expected} was due")]
    WrongCorrelationId {
        /// The id of the request.
        expected: i32,
        /// The id in the answer.
        found: i32,
    },
}

/// The length of the frame after `prefix`, if it is at most `limit`.
pub fn frame_length(prefix: [u8; LENGTH_PREFIX], limit: usize) -> Result<usize, FrameError> {
    let length = i32::from_be_bytes(prefix);
    let length = usize::try_from(length).map_err(|_| FrameError::NegativeLength(length))?;
    if length > limit {
        return Err(FrameError::TooLarge { length, limit });
    }
    Ok(length)
}

/// The bounds for requests that a broker decodes.
///
/// Whatever a count claims, memory grows only as elements are really decoded; these bounds
/// are for what the bytes could still blow up to. A string is at most 32,767 bytes, as in
/// Kafka; a blob (records, member metadata) at most the frame; an array 200,000 elements,
/// twice the partitions that one request names in the largest clusters known; and unknown
/// tagged fields, which are kept, at most 64 in a structure with 64 KiB between them.
pub fn request_limits(max_frame_bytes: usize) -> DecodeLimits {
    let mut limits = DecodeLimits::default();
    limits.max_frame_bytes = max_frame_bytes;
    limits.max_string_bytes = MAX_STRING_BYTES;
    limits.max_bytes_bytes = max_frame_bytes;
    limits.max_array_elements = 200_000;
    limits.max_tagged_fields = 64;
    limits.max_tag_bytes = 64 * 1024;
    limits.max_total_tag_bytes = 64 * 1024;
    limits
}

/// The bounds for answers that a client decodes: as [`request_limits`], but a broker is
/// trusted with more, since Metadata lists everything that there is.
pub fn response_limits(max_frame_bytes: usize) -> DecodeLimits {
    let mut limits = request_limits(max_frame_bytes);
    limits.max_array_elements = 2_000_000;
    limits.max_tagged_fields = 1_024;
    limits.max_tag_bytes = 1024 * 1024;
    limits.max_total_tag_bytes = 4 * 1024 * 1024;
    limits
}

/// What is known here of the API and version that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Both: the body can be decoded.
    Yes(&'static ApiDescriptor),
    /// The API, not this version of it.
    OtherVersions(&'static ApiDescriptor),
    /// Not even the API.
    No,
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The API.
    pub api_key: i16,
    /// The version of the API.
    pub api_version: i16,
    /// The number that the answer has to carry.
    pub correlation_id: i32,
    /// How the client calls itself.
    pub client_id: Option<StrBytes>,
}

impl RequestHead {
    /// Splits a request, without its length, into head and body.
    ///
    /// Of an API or a version that is not known here, the correlation id is sure and the
    /// rest a best effort, so that the client can be told (an ApiVersions request of an
    /// unknown version must be answered, KIP-511). The body is then whatever is left.
    pub fn decode(mut frame: Bytes, limits: DecodeLimits) -> Result<(Self, Bytes), FrameError> {
        let Some(&[k0, k1, v0, v1, c0, c1, c2, c3]) = frame.first_chunk::<SHORTEST_REQUEST>()
        else {
            return Err(FrameError::NoHead(frame.len()));
        };
        let mut head = Self {
            api_key: i16::from_be_bytes([k0, k1]),
            api_version: i16::from_be_bytes([v0, v1]),
            correlation_id: i32::from_be_bytes([c0, c1, c2, c3]),
            client_id: None,
        };
        let (must_parse, version) = match head.known() {
            Known::Yes(api) => (
                true,
                request_header_version(is_flexible(api, head.api_version)),
            ),
            Known::OtherVersions(api) => (
                false,
                request_header_version(is_flexible(api, head.api_version)),
            ),
            Known::No => (false, 1),
        };
        let mut decoder = Decoder::new(frame.clone(), limits).map_err(FrameError::Head)?;
        let head_bytes = match RequestHeader::decode(&mut decoder, ApiVersion::new(version)) {
            Ok(header) => {
                head.client_id = header.client_id;
                decoder.offset()
            }
            Err(error) if must_parse => return Err(FrameError::Head(error)),
            Err(_) => SHORTEST_REQUEST,
        };
        frame.advance(head_bytes);
        Ok((head, frame))
    }

    /// What is known here of the request's API and version.
    pub fn known(&self) -> Known {
        match api_descriptor(self.api_key) {
            Some(api)
                if api
                    .supported_versions
                    .contains(ApiVersion::new(self.api_version)) =>
            {
                Known::Yes(api)
            }
            Some(api) => Known::OtherVersions(api),
            None => Known::No,
        }
    }

    /// The body as the request that the head names. Bytes after it are passed over, as
    /// Kafka does: librdkafka 2.x sends three too many in Metadata 13.
    pub fn decode_body<R: KafkaRequest>(
        &self,
        body: Bytes,
        limits: DecodeLimits,
    ) -> Result<R, FrameError> {
        debug_assert_eq!(R::API_KEY.value(), self.api_key);
        Decoder::new(body, limits)
            .and_then(|mut body| R::decode(&mut body, ApiVersion::new(self.api_version)))
            .map_err(|error| FrameError::Body {
                api_key: self.api_key,
                api_version: self.api_version,
                error,
            })
    }
}

/// The API with this key, if it is known here.
pub fn api_descriptor(api_key: i16) -> Option<&'static ApiDescriptor> {
    API_DESCRIPTORS
        .binary_search_by_key(&api_key, |api| api.api_key.value())
        .ok()
        .map(|at| &API_DESCRIPTORS[at])
}

/// Whether a version of the API has tagged fields and compact lengths. Versions newer than
/// those known here do if the newest known one does.
fn is_flexible(api: &ApiDescriptor, version: i16) -> bool {
    api.flexible_versions
        .is_some_and(|flexible| version >= flexible.min().value())
}

/// An answer as a whole frame with its length, to be written to the connection as it is.
pub fn encode_response<R: KafkaResponse>(
    correlation_id: i32,
    version: i16,
    response: &R,
) -> Result<Bytes, EncodeError> {
    let mut frame = BytesMut::new();
    encode_response_into(&mut frame, correlation_id, version, response)?;
    Ok(frame.freeze())
}

/// Appends an answer as a whole frame with its length. On an error `out` is as it was.
pub fn encode_response_into<R: KafkaResponse>(
    out: &mut BytesMut,
    correlation_id: i32,
    version: i16,
    response: &R,
) -> Result<(), EncodeError> {
    let start = out.len();
    let version = ApiVersion::new(version);
    out.extend_from_slice(&[0; LENGTH_PREFIX]);
    encode_response_head(
        out,
        correlation_id,
        response_header_version(R::API_KEY, version, R::is_flexible(version)),
    );
    let written = response.encode_into(out, version).and_then(|_| {
        let bytes = out.len() - start - LENGTH_PREFIX;
        i32::try_from(bytes).map_err(|_| EncodeError::FrameTooLarge { bytes })
    });
    match written {
        Ok(length) => {
            out[start..start + LENGTH_PREFIX].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// The version of the head before an answer of this API and version: 1 has tagged fields,
/// 0 has none. For answers that are not encoded by [`encode_response`].
pub fn response_head_version(api: &ApiDescriptor, version: i16) -> i16 {
    response_header_version(
        api.api_key,
        ApiVersion::new(version),
        is_flexible(api, version),
    )
}

/// Appends the head of an answer, without any tagged field.
pub fn encode_response_head(out: &mut BytesMut, correlation_id: i32, head_version: i16) {
    out.extend_from_slice(&correlation_id.to_be_bytes());
    if head_version >= 1 {
        out.extend_from_slice(&[0]);
    }
}

/// The correlation id of an answer, which stands before all that depends on the version.
pub fn response_correlation_id(frame: &[u8]) -> Option<i32> {
    frame.first_chunk().map(|id| i32::from_be_bytes(*id))
}

/// Decodes an answer, without its length, to the request with this correlation id.
///
/// An ApiVersions answer of version 0 to a request of a later one is the caller's to
/// expect: it carries [`UnsupportedVersion`](crate::error_code::ErrorCode) and a client
/// then decodes it again as version 0 (KIP-511).
pub fn decode_response<R: KafkaResponse>(
    frame: Bytes,
    correlation_id: i32,
    version: i16,
    limits: DecodeLimits,
) -> Result<R, FrameError> {
    let api_version = ApiVersion::new(version);
    let head_version =
        response_header_version(R::API_KEY, api_version, R::is_flexible(api_version));
    let mut decoder = Decoder::new(frame, limits).map_err(FrameError::Head)?;
    let head = ResponseHeader::decode(&mut decoder, ApiVersion::new(head_version))
        .map_err(FrameError::Head)?;
    if head.correlation_id != correlation_id {
        return Err(FrameError::WrongCorrelationId {
            expected: correlation_id,
            found: head.correlation_id,
        });
    }
    R::decode(&mut decoder, api_version)
        .and_then(|response| decoder.finish().map(|()| response))
        .map_err(|error| FrameError::Body {
            api_key: R::API_KEY.value(),
            api_version: version,
            error,
        })
}
