//! What was sent, what was acknowledged and what was read, and whether these agree.
//!
//! Each partition has a sequence of its own, from 0 on; a record carries its run,
//! partition and sequence number in its value. Plain state without time or I/O: the
//! command writes down what it sees, and [`Ledger::verdict`] is the judgement.

use std::collections::HashMap;

/// What became of one record that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody knows: it may stand in the log, or not.
    Open,
    /// Acknowledged at this offset; `None` where the broker did not say.
    Acknowledged(Option<i64>),
}

/// One partition's part.
#[derive(Debug, Default)]
struct Partition {
    sent: Vec<Fate>,
    /// What a consumer was given while the run went on: offset and sequence.
    seen_live: Vec<(i64, u64)>,
    /// What stood in the log at the end: offset and sequence, in the log's order.
    read: Vec<(i64, u64)>,
}

/// The records of one run.
#[derive(Debug)]
pub(super) struct Ledger {
    partitions: Vec<Partition>,
}

/// How a run ended. Everything but `acknowledged`, `unknown` and `read` should be zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Records that a broker acknowledged.
    pub(super) acknowledged: u64,
    /// Records that were sent and neither acknowledged nor surely refused.
    pub(super) unknown: u64,
    /// Records found at the end.
    pub(super) read: u64,
    /// Acknowledged records that are not there.
    pub(super) lost: u64,
    /// Records that are there again.
    pub(super) duplicated: u64,
    /// Records that stand behind one that was sent later.
    pub(super) out_of_order: u64,
    /// Acknowledged at an offset where another record stands.
    pub(super) misplaced: u64,
    /// Records that a consumer was given and that are no longer where they were.
    pub(super) vanished: u64,
}

impl Ledger {
    pub(super) fn new(partitions: usize) -> Self {
        Self {
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
        }
    }

    pub(super) fn partition_count(&self) -> usize {
        self.partitions.len()
    }

    /// The next record of a partition goes out; its sequence number.
    pub(super) fn send(&mut self, partition: usize) -> u64 {
        let sent = &mut self.partitions[partition].sent;
        sent.push(Fate::Open);
        sent.len() as u64 - 1
    }

    pub(super) fn acknowledge(&mut self, partition: usize, sequence: u64, offset: Option<i64>) {
        self.partitions[partition].sent[sequence as usize] = Fate::Acknowledged(offset);
    }

    /// A consumer was given a record while the run went on. False if no such record was sent.
    pub(super) fn see(&mut self, partition: usize, offset: i64, sequence: u64) -> bool {
        let known = self.is_sent(partition, sequence);
        if known {
            self.partitions[partition]
                .seen_live
                .push((offset, sequence));
        }
        known
    }

    /// A record stands in the log at the end. False if no such record was sent.
    pub(super) fn read(&mut self, partition: usize, offset: i64, sequence: u64) -> bool {
        let known = self.is_sent(partition, sequence);
        if known {
            self.partitions[partition].read.push((offset, sequence));
        }
        known
    }

    fn is_sent(&self, partition: usize, sequence: u64) -> bool {
        self.partitions
            .get(partition)
            .is_some_and(|partition| sequence < partition.sent.len() as u64)
    }

    pub(super) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for partition in &self.partitions {
            partition.judge(&mut verdict);
        }
        verdict
    }
}

impl Partition {
    fn judge(&self, verdict: &mut Verdict) {
        let at: HashMap<i64, u64> = self.read.iter().copied().collect();
        let mut copies = vec![0_u32; self.sent.len()];
        let mut newest = None;
        for &(_, sequence) in &self.read {
            let copies = &mut copies[sequence as usize];
            *copies += 1;
            if *copies > 1 {
                verdict.duplicated += 1;
            } else if newest.is_some_and(|newest| sequence < newest) {
                verdict.out_of_order += 1;
            } else {
                newest = Some(sequence);
            }
        }
        verdict.read += self.read.len() as u64;
        for (sequence, fate) in (0..).zip(&self.sent) {
            match fate {
                Fate::Open => verdict.unknown += 1,
                Fate::Acknowledged(offset) => {
                    verdict.acknowledged += 1;
                    if copies[sequence as usize] == 0 {
                        verdict.lost += 1;
                    } else if offset.is_some_and(|offset| at.get(&offset) != Some(&sequence)) {
                        verdict.misplaced += 1;
                    }
                }
            }
        }
        verdict.vanished += self
            .seen_live
            .iter()
            .filter(|(offset, sequence)| at.get(offset) != Some(sequence))
            .count() as u64;
    }
}

impl Verdict {
    /// Whether the run is what was promised: nothing acknowledged is missing, and, where
    /// the producer is idempotent, nothing is there twice or out of order.
    pub(super) fn is_good(&self, idempotent: bool) -> bool {
        let kept = self.lost == 0 && self.misplaced == 0 && self.vanished == 0;
        kept && (!idempotent || (self.duplicated == 0 && self.out_of_order == 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A partition of which `sent` records went out, `acknowledged` came back with their
    /// offsets, and `read` was found.
    fn verdict(sent: u64, acknowledged: &[(u64, i64)], read: &[(i64, u64)]) -> Verdict {
        let mut ledger = Ledger::new(1);
        for sequence in 0..sent {
            assert_eq!(ledger.send(0), sequence);
        }
        for &(sequence, offset) in acknowledged {
            ledger.acknowledge(0, sequence, Some(offset));
        }
        for &(offset, sequence) in read {
            assert!(ledger.read(0, offset, sequence));
        }
        ledger.verdict()
    }

    #[test]
    fn a_calm_run_is_good() {
        let verdict = verdict(2, &[(0, 10), (1, 11)], &[(10, 0), (11, 1)]);
        assert_eq!((verdict.acknowledged, verdict.read), (2, 2));
        assert!(verdict.is_good(true));
    }

    #[test]
    fn an_acknowledged_record_that_is_not_there_is_lost() {
        let verdict = verdict(2, &[(0, 0), (1, 1)], &[(0, 0)]);
        assert_eq!(verdict.lost, 1);
        assert!(!verdict.is_good(false));
    }

    #[test]
    fn a_record_of_unknown_fate_may_be_there_or_not() {
        assert!(verdict(2, &[(0, 0)], &[(0, 0), (1, 1)]).is_good(true));
        assert!(verdict(2, &[(0, 0)], &[(0, 0)]).is_good(true));
    }

    #[test]
    fn a_record_twice_is_bad_only_for_an_idempotent_producer() {
        let verdict = verdict(2, &[(0, 1), (1, 2)], &[(0, 0), (1, 0), (2, 1)]);
        assert_eq!(verdict.duplicated, 1);
        assert!(!verdict.is_good(true));
        assert!(verdict.is_good(false));
    }

    #[test]
    fn records_that_changed_places_are_out_of_order() {
        let verdict = verdict(3, &[(0, 1), (1, 0), (2, 2)], &[(0, 1), (1, 0), (2, 2)]);
        assert_eq!(verdict.out_of_order, 1);
        assert!(!verdict.is_good(true));
    }

    #[test]
    fn another_record_at_the_acknowledged_offset_is_bad() {
        let verdict = verdict(2, &[(0, 0), (1, 1)], &[(1, 0), (2, 1)]);
        assert_eq!(verdict.misplaced, 2);
        assert!(!verdict.is_good(false));
    }

    #[test]
    fn what_a_consumer_was_given_must_still_be_there() {
        let mut ledger = Ledger::new(1);
        ledger.send(0);
        assert!(ledger.see(0, 0, 0));
        assert_eq!(ledger.verdict().vanished, 1);
        assert!(ledger.read(0, 0, 0));
        assert_eq!(ledger.verdict().vanished, 0);
    }

    #[test]
    fn a_record_that_was_never_sent_is_refused() {
        let mut ledger = Ledger::new(1);
        assert!(!ledger.see(0, 0, 0));
        assert!(!ledger.read(7, 0, 0));
    }
}
