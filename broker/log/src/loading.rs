//! What a log knows of its producers, read back: the newest snapshot, and what the log
//! holds after it (I12). The indexes of aborted transactions that a crash has left behind
//! their segments are made anew on the way.

use std::{collections::HashMap, ops::ControlFlow};

use yuxi_protocol::ids::Offset;

use crate::{
    error::ReadError, producers::Producers, segment::Segment, snapshot::Snapshots,
    txn_index::AbortedTransaction,
};

/// Of which log.
pub(crate) struct Loading {
    pub(crate) log_start_offset: Offset,
    pub(crate) log_end_offset: Offset,
    pub(crate) now_ms: i64,
    pub(crate) expiration_ms: i64,
}

impl Loading {
    /// The state at the log's end. The segments `anew`, in their order, have empty indexes
    /// of aborted transactions, which are filled; so everything is read from before them on.
    pub(crate) fn run(
        &self,
        snapshots: &mut Snapshots,
        segments: &mut [Segment],
        anew: &[usize],
    ) -> Result<Producers, ReadError> {
        let first_anew = anew.first().map(|&at| segments[at].base_offset());
        let latest = self
            .log_end_offset
            .min(first_anew.unwrap_or(Offset::new(i64::MAX)));
        let (from, entries) = match snapshots.load(latest)? {
            Some(found) => found,
            None => (self.log_start_offset, HashMap::new()),
        };
        let mut producers = Producers::new(entries, self.now_ms, self.expiration_ms);
        if from >= self.log_end_offset {
            return Ok(producers);
        }
        let first = segments
            .partition_point(|segment| segment.base_offset() <= from)
            .saturating_sub(1);
        for (at, segment) in segments.iter_mut().enumerate().skip(first) {
            let is_anew = anew.contains(&at);
            replay(segment, from, &mut producers, |segment, aborted| {
                if is_anew {
                    segment.aborted_mut().push(aborted);
                }
            })?;
        }
        Ok(producers)
    }
}

/// Takes in the batches of one segment from `from` on.
fn replay(
    segment: &mut Segment,
    from: Offset,
    producers: &mut Producers,
    mut was_aborted: impl FnMut(&mut Segment, AbortedTransaction),
) -> Result<(), ReadError> {
    let Some(first) = segment.find(from)? else {
        return Ok(());
    };
    let mut position = first.position;
    while let Some(batch) = segment.walk(position, |batch| {
        if batch.header.has_producer_id() {
            ControlFlow::Break(batch)
        } else {
            ControlFlow::Continue(())
        }
    })? {
        position = batch.end();
        match segment.with_batch(&batch, |view| Ok(producers.replay(view)))? {
            Ok(None) => {}
            Ok(Some(aborted)) => was_aborted(segment, aborted),
            Err(error) => {
                let path = segment.log_path();
                tracing::warn!(path = %path.display(), %error, "control batch not understood");
            }
        }
    }
    Ok(())
}
