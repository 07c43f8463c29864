//! Log compaction: of each key only the last record stays.
//!
//! A log has one owner, behind a lock, and compaction takes minutes. So it has three
//! parts:
//! 1. under the lock [`Log::plan_compaction`] notes which closed segments there are;
//! 2. without it [`Compaction::index_keys`] reads their files for the last offset of every
//!    key, and [`Cleaning::clean_next`] writes one new segment after the other into
//!    `.cleaned` files;
//! 3. under the lock again [`Log::begin_swap`] and [`Log::finish_swap`] put each in the
//!    place of the segments that it was made of.
//!
//! Whoever had something else to do with those segments meanwhile wins: a compaction whose
//! segments were truncated or removed is [`CompactionError::Abandoned`].
//!
//! Invariants: offsets and the order of what stays never change; nothing at or above the
//! end that the plan was given (the last stable offset) is touched; the batch with a known
//! producer's last sequence stays, if need be without records, and so does the last batch
//! that was cleaned, so that a follower which reads the log reaches its end. The keys that
//! are known at a time take no more memory than the caller allows; when they are more, the
//! log is cleaned up to where they were known, and the rest the next time.

mod clean;
mod group;
mod offset_map;
mod output;
mod plan;
mod source;
mod swap;
mod transactions;

use std::ops::ControlFlow;

pub use clean::{Cleaning, CompactionStats, KeyMemory};
pub use output::CleanedSegment;
pub use plan::{Compaction, CompactionTicket, Dirtiness};
pub(crate) use swap::{CompactionState, settle};

use crate::error::LogError;

/// Why a compaction did not come to its end. The log is as it was, but for the segments
/// that were swapped in before.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    /// The log's segments changed meanwhile, or the caller wanted it to stop.
    #[error("the log's segments changed meanwhile, or it was told to stop")]
    Abandoned,
    /// The disk is full or failing, or a segment is damaged. Damage counts only if the
    /// plan is still current ([`Log::is_current`](crate::Log::is_current)): a segment that is truncated while it is
    /// read looks damaged too.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Is told of every so many bytes read or written, so that it can wait or say stop.
pub type Pace<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

/// Lets `pace` wait, or gives up.
fn keep_pace(pace: &mut Pace<'_>, bytes: u64) -> Result<(), CompactionError> {
    match pace(bytes) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(CompactionError::Abandoned),
    }
}
