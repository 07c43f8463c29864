//! Which transactions a batch belongs to while a log is read from its beginning, and which
//! markers nobody needs any more.
//!
//! A marker is superfluous once all records of its transaction are gone: its own log was
//! read from the start, and no batch of the transaction came by. Data of an aborted
//! transaction is dropped at once, whatever its keys.

use std::collections::{HashMap, HashSet};

use yuxi_protocol::{
    ids::ProducerId,
    record::{BatchError, BatchView, EndMarker},
};

use crate::txn_index::AbortedTransaction;

#[derive(Debug)]
pub(super) struct Transactions {
    /// Aborted transactions that begin further on, the first one last.
    ahead: Vec<AbortedTransaction>,
    /// Aborted transactions whose marker has not come yet, and whether any batch of each has.
    aborted: HashMap<ProducerId, (AbortedTransaction, bool)>,
    /// Producers of other transactions of which a batch has come and the marker has not.
    committed: HashSet<ProducerId>,
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
            return self.observe_marker(batch);
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

    fn observe_marker(&mut self, batch: &BatchView<'_>) -> Result<Fate, BatchError> {
        let header = batch.header();
        let id = header.producer_id;
        Ok(match EndMarker::read(batch)? {
            Some(marker) if marker.commit => {
                if self.committed.remove(&id) {
                    Fate::NeededMarker(None)
                } else {
                    Fate::SuperfluousMarker
                }
            }
            Some(_) => match self.aborted.remove(&id) {
                Some((aborted, true)) => Fate::NeededMarker(Some(aborted)),
                Some((_, false)) | None => Fate::SuperfluousMarker,
            },
            // Its record is gone already.
            None if header.record_count == 0 => Fate::SuperfluousMarker,
            None => Fate::NeededMarker(None),
        })
    }
}
