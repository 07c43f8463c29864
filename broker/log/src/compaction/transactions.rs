//! Which transactions a batch belongs to while a log is read from its beginning, and which
//! markers nobody needs any more.
//!
//! A marker is superfluous once all records of its transaction are gone: its own log was
//! read from the start, and no batch of the transaction came by. Data of an aborted
//! transaction is dropped at once, whatever its keys.

use std::collections::{HashMap, HashSet};

use yuxi_protocol::{
    ids::ProducerId,
    record::{BatchError, BatchHeader, BatchView, iter::RecordRefs},
};

use super::aborted::AbortedTransaction;

/// More than any control batch takes.
const MAX_MARKER_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Transactions {
    /// Aborted transactions that begin further on, the first one last.
    ahead: Vec<AbortedTransaction>,
    /// Aborted transactions whose marker has not come yet, and whether any batch of each has.
    aborted: HashMap<ProducerId, (AbortedTransaction, bool)>,
    /// Producers of other transactions of which a batch has come and the marker has not.
    committed: HashSet<ProducerId>,
}

/// What a control batch says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Commit,
    Abort,
    /// Nothing about a transaction.
    Other,
    /// Nothing any more: its record has been compacted away.
    Gone,
}

/// What becomes of a batch because of its transaction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is no marker, and its transaction, if any, has not been aborted.
    Ordinary,
    /// It was written in a transaction that was aborted.
    Aborted,
    /// A marker of a transaction that still has records here. `Some` if it was aborted.
    NeededMarker(Option<AbortedTransaction>),
    /// A marker of a transaction without records.
    SuperfluousMarker,
}

impl Transactions {
    /// `aborted` are those whose records or markers may come, in any order.
    pub(super) fn new(mut aborted: Vec<AbortedTransaction>) -> Self {
        aborted.sort_by_key(|aborted| std::cmp::Reverse(aborted.first_offset));
        Self {
            ahead: aborted,
            aborted: HashMap::new(),
            committed: HashSet::new(),
        }
    }

    /// Takes in the next batch of the log.
    pub(super) fn observe(&mut self, batch: &BatchView<'_>) -> Result<Fate, BatchError> {
        let header = batch.header();
        while let Some(next) = self
            .ahead
            .pop_if(|next| next.first_offset <= header.last_offset())
        {
            self.aborted
                .entry(next.producer_id)
                .or_insert((next, false));
        }
        if header.is_control() {
            let marker = marker(batch)?;
            return Ok(self.observe_marker(header, &marker));
        }
        if !header.is_transactional() {
            return Ok(Fate::Ordinary);
        }
        if let Some((_, seen)) = self.aborted.get_mut(&header.producer_id) {
            *seen = true;
            return Ok(Fate::Aborted);
        }
        self.committed.insert(header.producer_id);
        Ok(Fate::Ordinary)
    }

    fn observe_marker(&mut self, header: &BatchHeader, marker: &Marker) -> Fate {
        match marker {
            Marker::Abort => match self.aborted.remove(&header.producer_id) {
                Some((aborted, true)) => Fate::NeededMarker(Some(aborted)),
                Some((_, false)) | None => Fate::SuperfluousMarker,
            },
            Marker::Commit if self.committed.remove(&header.producer_id) => {
                Fate::NeededMarker(None)
            }
            Marker::Commit | Marker::Gone => Fate::SuperfluousMarker,
            Marker::Other => Fate::NeededMarker(None),
        }
    }
}

/// The record of a control batch: its key is a version (i16) and a type (i16).
fn marker(batch: &BatchView<'_>) -> Result<Marker, BatchError> {
    let payload = batch.decompressed(MAX_MARKER_BYTES)?;
    let Some(record) = RecordRefs::new(batch.header(), &payload).next() else {
        return Ok(Marker::Gone);
    };
    Ok(match record?.key.and_then(|key| key.get(2..4)) {
        Some([0, 0]) => Marker::Abort,
        Some([0, 1]) => Marker::Commit,
        _ => Marker::Other,
    })
}
