//! Whether a transaction coordinator knows that a producer's transaction reaches this
//! partition (I13, KIP-890). Without that, a batch that arrives after its transaction has
//! ended would begin another one that nobody ever ends.
//!
//! A transaction's first batch is appended with a guard, which was given out before its
//! coordinator was asked. Owned by the partition, behind its lock. Invariant: a guard is
//! worth nothing once anything of its producer was appended, a marker above all: what the
//! coordinator said of one transaction says nothing of the next.

use std::collections::HashMap;
use yuxi_protocol::{
    ids::{ProducerEpoch, ProducerId},
    record::{BatchHeader, batch::NO_SEQUENCE},
};

/// Shows that a transaction's coordinator was asked since the guard was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VerificationGuard(u64);

/// The producers whose coordinators are being asked.
#[derive(Debug, Default)]
pub(super) struct Verifications {
    asked: HashMap<ProducerId, Asked>,
    given_out: u64,
}

#[derive(Debug)]
struct Asked {
    guard: VerificationGuard,
    epoch: ProducerEpoch,
    /// The first of the sequences that wait: if its verification fails and a later one's
    /// does not, that must not overtake it, or its retry would never be in order.
    lowest_sequence: i32,
    /// It was there at the last clearing.
    is_old: bool,
}

/// Why a batch is not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    /// Nobody asked the coordinator since the last marker.
    NoGuard,
    /// An earlier batch has to come first.
    Overtakes { lowest_sequence: i32 },
}

impl Verifications {
    /// The guard with which the coordinator is to be asked about a batch.
    pub(super) fn ask(
        &mut self,
        id: ProducerId,
        epoch: ProducerEpoch,
        sequence: i32,
    ) -> VerificationGuard {
        let given_out = &mut self.given_out;
        let asked = self.asked.entry(id).or_insert_with(|| {
            *given_out += 1;
            Asked {
                guard: VerificationGuard(*given_out),
                epoch,
                lowest_sequence: sequence,
                is_old: false,
            }
        });
        if epoch > asked.epoch {
            (asked.epoch, asked.lowest_sequence) = (epoch, sequence);
        } else if epoch == asked.epoch {
            asked.lowest_sequence = asked.lowest_sequence.min(sequence);
        }
        asked.guard
    }

    /// Whether a batch may begin its transaction with `guard`.
    pub(super) fn check(
        &self,
        header: &BatchHeader,
        guard: Option<VerificationGuard>,
    ) -> Result<(), Unverified> {
        let asked = self.asked.get(&header.producer_id);
        let Some(asked) = asked.filter(|asked| guard == Some(asked.guard)) else {
            return Err(Unverified::NoGuard);
        };
        let lowest_sequence = asked.lowest_sequence;
        if header.base_sequence != NO_SEQUENCE
            && header.producer_epoch == asked.epoch
            && header.base_sequence > lowest_sequence
        {
            return Err(Unverified::Overtakes { lowest_sequence });
        }
        Ok(())
    }

    /// Something of the producer was appended.
    pub(super) fn appended(&mut self, id: ProducerId) {
        self.asked.remove(&id);
    }

    /// Nothing that was asked before counts any more: another leader may have written.
    pub(super) fn clear(&mut self) {
        self.asked.clear();
    }

    /// Forgets those that were there at the last call already: nobody waits so long. To be
    /// called every few minutes.
    pub(super) fn clear_old(&mut self) {
        self.asked.retain(|_, asked| !asked.is_old);
        for asked in self.asked.values_mut() {
            asked.is_old = true;
        }
        if self.asked.is_empty() {
            self.asked.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yuxi_protocol::record::{BatchView, RecordBatchBuilder};

    const ID: ProducerId = ProducerId::new(7);

    fn header(epoch: i16, sequence: i32) -> BatchHeader {
        let mut builder = RecordBatchBuilder::new()
            .producer(ID, ProducerEpoch::new(epoch), sequence)
            .transactional();
        builder.append(1, None, Some(b"v"), &[]).expect("a record");
        let bytes = builder.build().expect("a batch");
        *BatchView::parse(&bytes).expect("a batch").header()
    }

    fn ask(verifications: &mut Verifications, epoch: i16, sequence: i32) -> VerificationGuard {
        verifications.ask(ID, ProducerEpoch::new(epoch), sequence)
    }

    #[test]
    fn a_guard_from_before_a_marker_is_worth_nothing_after_it() {
        let mut verifications = Verifications::default();
        let first = ask(&mut verifications, 0, 0);
        assert_eq!(verifications.check(&header(0, 0), Some(first)), Ok(()));
        let no_guard = Err(Unverified::NoGuard);
        assert_eq!(verifications.check(&header(0, 0), None), no_guard);
        verifications.appended(ID);
        assert_eq!(verifications.check(&header(0, 0), Some(first)), no_guard);
        let second = ask(&mut verifications, 0, 0);
        assert_ne!(first, second);
        assert_eq!(verifications.check(&header(0, 0), Some(first)), no_guard);
        assert_eq!(verifications.check(&header(0, 0), Some(second)), Ok(()));
        verifications.clear();
        assert_eq!(verifications.check(&header(0, 0), Some(second)), no_guard);
    }

    #[test]
    fn a_batch_does_not_overtake_one_that_is_still_being_verified() {
        let mut verifications = Verifications::default();
        let guard = ask(&mut verifications, 0, 5);
        assert_eq!(ask(&mut verifications, 0, 3), guard);
        assert_eq!(ask(&mut verifications, 0, 9), guard);
        let overtakes = Err(Unverified::Overtakes { lowest_sequence: 3 });
        assert_eq!(verifications.check(&header(0, 5), Some(guard)), overtakes);
        assert_eq!(verifications.check(&header(0, 3), Some(guard)), Ok(()));
        // Another life of the producer starts anew.
        assert_eq!(ask(&mut verifications, 1, 6), guard);
        assert_eq!(verifications.check(&header(1, 6), Some(guard)), Ok(()));
        let overtakes = Err(Unverified::Overtakes { lowest_sequence: 6 });
        assert_eq!(verifications.check(&header(1, 7), Some(guard)), overtakes);
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_forgotten() {
        let mut verifications = Verifications::default();
        let guard = ask(&mut verifications, 0, 0);
        verifications.clear_old();
        assert_eq!(verifications.check(&header(0, 0), Some(guard)), Ok(()));
        verifications.clear_old();
        assert!(verifications.asked.is_empty());
    }
}
