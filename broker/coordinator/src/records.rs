//! How the records of both coordinators are written and read, in Kafka's formats.
//!
//! Decoding is bounded by the bytes that are there. Strings are never longer than the
//! older, narrower format can hold: longer ones are refused where a request comes in, so
//! that encoding a record cannot fail.

use bytes::{Bytes, BytesMut};
use yuxi_protocol::codec::{
    BoundedCount, BufferTarget, DecodeError, DecodeLimits, Decoder, EncodeError, Encoder, StrBytes,
};

/// The longest string that these records can hold.
pub(crate) const MAX_STRING_BYTES: usize = i16::MAX as usize;

/// One record to append to a shard's partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorRecord {
    /// The record's key.
    pub key: Bytes,
    /// The record's value; none deletes what the key names.
    pub value: Option<Bytes>,
}

/// Where a key or a value is written to.
pub(crate) type Out<'a, 'b> = &'a mut Encoder<BufferTarget<'b>>;

pub(crate) fn encode(write: impl FnOnce(Out<'_, '_>) -> Result<(), EncodeError>) -> Bytes {
    let mut buffer = BytesMut::new();
    write(&mut Encoder::new(&mut buffer))
        .expect("strings too long for a record are refused where requests come in");
    buffer.freeze()
}

pub(crate) fn decoder(bytes: &Bytes) -> Result<Decoder, DecodeError> {
    let mut limits = DecodeLimits::default();
    // What was read must be writable in the older, narrower string format.
    limits.max_string_bytes = MAX_STRING_BYTES;
    limits.max_array_elements = bytes.len();
    Decoder::new(bytes.clone(), limits)
}

/// The end of a value, or of a part of one: newer formats, the flexible ones, have tagged
/// fields there.
pub(crate) fn read_end(decoder: &mut Decoder, flexible: bool) -> Result<(), DecodeError> {
    if flexible {
        decoder.read_tagged_fields()?;
    }
    Ok(())
}

/// The end of a value, behind which there is nothing.
pub(crate) fn finish(mut decoder: Decoder, flexible: bool) -> Result<(), DecodeError> {
    read_end(&mut decoder, flexible)?;
    decoder.finish()
}

pub(crate) fn read_string(decoder: &mut Decoder, flexible: bool) -> Result<StrBytes, DecodeError> {
    if flexible {
        decoder.read_compact_string()
    } else {
        decoder.read_string()
    }
}

pub(crate) fn read_count(
    decoder: &mut Decoder,
    flexible: bool,
) -> Result<BoundedCount, DecodeError> {
    if flexible {
        decoder.read_compact_array_len()
    } else {
        decoder.read_array_len()
    }
}
