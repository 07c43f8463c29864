//! When a partition's log is forced to disk: for appends that wait for it, by age, and in
//! the background for closed segments. The fsyncs run without the partition's lock; while
//! one does, later appends gather for the next.

use super::{Partition, Role};
use crate::metrics::Metrics;
use std::{io, time::Instant};
use yuxi_log::Log;

/// An fsync that producers wait for. While one runs, later appends gather for the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushing {
    Idle,
    Running,
    RunningAndWanted,
}

impl Partition {
    /// Flushes what the flush policy wants by now, and closed segments. Must run where
    /// blocking is allowed.
    pub(crate) fn flush_due(&self, metrics: &Metrics, now_ms: i64) -> io::Result<()> {
        {
            let mut state = self.state();
            if state.ended().is_some()
                || state.flushing != Flushing::Idle
                || !(state.log.is_flush_due(now_ms) || has_unflushed_closed_segments(&state.log))
            {
                return Ok(());
            }
            state.flushing = Flushing::RunningAndWanted;
        }
        self.flush_wanted(metrics)
    }

    /// Runs the fsyncs that appends wait for, until none does. An error means that the log
    /// directory must not be used any more. Call it on a thread that
    /// may block; while one runs, another call returns at once.
    pub(crate) fn flush_wanted(&self, metrics: &Metrics) -> io::Result<()> {
        loop {
            let (flush, end, cuts) = {
                let mut state = self.state();
                if matches!(state.role, Role::Deleted) {
                    // Its directory may be another topic's by now.
                    state.flushing = Flushing::Idle;
                    return Ok(());
                }
                match state.flushing {
                    Flushing::RunningAndWanted => state.flushing = Flushing::Running,
                    Flushing::Running => {
                        state.flushing = Flushing::Idle;
                        return Ok(());
                    }
                    Flushing::Idle => return Ok(()),
                }
                let plan = match state.log.flush_plan() {
                    Ok(plan) => plan,
                    // A full disk, mostly: nothing was promised, so nothing is lost. Those
                    // who wait for it go on waiting, and it is tried again with the next
                    // append or housekeeping.
                    Err(error) => {
                        tracing::warn!(partition = %self.id, %error, "a flush is put off");
                        state.flushing = Flushing::Idle;
                        return Ok(());
                    }
                };
                (plan, state.log.log_end_offset(), state.cuts)
            };
            let started = Instant::now();
            let run = flush.run();
            let mut state = self.state();
            match run {
                Ok(()) => metrics.log_flushed(started.elapsed()),
                // The files were on their way out while they were flushed.
                Err(_) if matches!(state.role, Role::Deleted) => return Ok(()),
                Err(error) => return Err(error),
            }
            state.log.flushed(&flush);
            if state.cuts == cuts {
                state.held_end = state.held_end.max(end);
            }
            state.advance();
        }
    }
}

/// Whether a segment was closed since the last flush: then it is flushed in the background,
/// so that a recovery has little to check.
fn has_unflushed_closed_segments(log: &Log) -> bool {
    log.segments()
        .next_back()
        .is_some_and(|active| active.base_offset > log.recovery_point())
}
