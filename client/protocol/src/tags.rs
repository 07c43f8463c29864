//! Tagged fields (KIP-482) one at a time, and the numbers of ours: Kafka counts its own from
//! 0 on, and whoever does not know a field passes over it.

use crate::codec::{Bytes, TaggedField, TaggedFields};

/// Which life of a broker asks the controller, or fetches as a follower: text.
pub const INCARNATION: u32 = 10_000;

/// From which revision of the metadata on the controller's answer can be seen: an `i64`.
pub const REVISION: u32 = 10_001;

/// Who holds the seal, [`crate::seal`].
pub const SEAL_HOLDER: u32 = 10_002;

/// A single field.
#[must_use]
pub fn one(tag: u32, data: Bytes) -> TaggedFields {
    // One field is always in order.
    TaggedFields::from_sorted(vec![TaggedField::new(tag, data)]).unwrap_or_default()
}

/// The data of a field, if it is there.
#[must_use]
pub fn find(fields: &TaggedFields, tag: u32) -> Option<&Bytes> {
    let field = fields.iter().find(|field| field.tag() == tag);
    field.map(TaggedField::data)
}
