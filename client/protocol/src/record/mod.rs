//! Record batches in message format version 2, the only one that is stored.
//!
//! [`batch`] reads and patches the fixed header, [`iter`] walks and validates the
//! records behind it, [`builder`] writes new batches and rewrites existing ones,
//! [`retain`] leaves records out, [`compression`] is the four codecs, [`marker`] the
//! record that ends a transaction. Nothing here performs I/O, and nothing allocates more
//! than the bytes it was given or the cap it was told.

pub mod batch;
pub mod builder;
pub mod compression;
mod error;
pub mod iter;
pub mod marker;
pub mod retain;
mod varint;

pub use batch::{BatchHeader, BatchView, TimestampType, batches, crc32c};
pub use builder::{RecordBatchBuilder, recompress};
pub use compression::Compression;
pub use error::BatchError;
pub use iter::{Record, RecordHeader, RecordRef, ValidateOptions, validate_records};
pub use marker::EndMarker;
