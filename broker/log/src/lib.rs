//! Kafka-format partition logs: segments, indexes, recovery, retention, compaction.
//!
//! [`Log`] is one partition's log. It is plain synchronous code with one owner: the
//! partition object calls it behind its own lock, and passes in the time. What leaves
//! the lock is [`FileSlice`] (bytes to send) and [`Flush`] (files to fsync); both stay
//! valid on their own. [`LogDir`] is the directory that holds the partitions.
//!
//! Every file is in Kafka's own format, so that a Kafka data directory opens here and
//! Kafka's tools read ours.

mod checkpoint;
mod compaction;
mod config;
mod directory;
mod entry_file;
mod epochs;
mod error;
mod file_io;
mod file_names;
mod flush;
mod index;
mod loading;
mod log;
mod mapping;
mod producers;
mod read;
mod recovery;
mod retention;
mod segment;
mod snapshot;
mod time_index;
mod timestamps;
mod transactions;
mod truncation;
mod txn_index;

#[cfg(test)]
mod tests;

pub use checkpoint::{
    AdoptionMark, CleanShutdown, Incarnations, OffsetCheckpoint, read_partition_metadata,
    write_partition_metadata,
};
pub use compaction::{
    CleanedSegment, Cleaning, Compaction, CompactionError, CompactionStats, CompactionTicket,
    Dirtiness, KeyMemory, Pace,
};
pub use config::{CleanupPolicy, LogConfig};
pub use directory::{LogDir, LogDirError, MetaProperties, StoredPartition};
pub use epochs::EpochEntry;
pub use error::{AppendError, LogError, OffsetOutOfRange, ReadError};
pub use flush::Flush;
pub use log::{AppendInfo, AppendOrigin, Log, Opening, ReadInfo, SegmentInfo};
pub use mapping::{FileSlice, SegmentFile};
pub use producers::{ProducerBatch, ProducerEntry};
pub use timestamps::FoundTimestamp;
pub use txn_index::AbortedTransaction;
