//! What was sent, what was acknowledged and what was read, and whether these agree.
//!
//! Each partition has a sequence of its own, from 0 on; a record carries its run,
//! partition and sequence number in its value. Records may belong to transactions, which
//! are to be seen whole or not at all. Plain state without time or I/O: the command writes
//! down what it sees, and [`Ledger::verdict`] is the judgement.

use std::collections::{HashMap, HashSet};

/// What became of one record that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody knows: it may stand in the log, or not.
    Open,
    /// Acknowledged at this offset; `None` where the broker did not say.
    Acknowledged(Option<i64>),
}

/// One record that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    fate: Fate,
    /// Whose it is: the order of one producer's records is kept.
    producer: u32,
    transaction: Option<TransactionNumber>,
}

/// One transaction of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TransactionNumber(usize);

impl TransactionNumber {
    pub(super) fn index(self) -> usize {
        self.0
    }
}

/// What is known of a transaction.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    outcome: Outcome,
    /// In which life of its producer: each has fenced those before.
    life: u32,
}

/// How a transaction ended, for all that its producer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    Aborted,
    Unknown,
}

/// One partition's part.
#[derive(Debug, Default)]
struct Partition {
    sent: Vec<Sent>,
    /// What a consumer was given while the run went on: offset and sequence.
    seen_live: Vec<(i64, u64)>,
    /// What stood in the log at the end: offset and sequence, in the log's order.
    read: Vec<(i64, u64)>,
}

/// The records of one run.
#[derive(Debug)]
pub(super) struct Ledger {
    partitions: Vec<Partition>,
    transactions: Vec<Transaction>,
}

/// How a run ended. Everything but `acknowledged`, `unknown`, `read`, `committed`, `aborted`
/// and `in_doubt` should be zero.
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
    /// Transactions that were committed.
    pub(super) committed: u64,
    /// Transactions that were aborted.
    pub(super) aborted: u64,
    /// Transactions of which the producer never learnt the end.
    pub(super) in_doubt: u64,
    /// Transactions of which some records are there and some are not.
    pub(super) torn: u64,
    /// Records of aborted transactions that a consumer was given, during the run or at its end.
    pub(super) aborted_reads: u64,
    /// Records that stand behind one of a later life of their producer, which had fenced it.
    pub(super) zombie_writes: u64,
}

impl Ledger {
    pub(super) fn new(partitions: usize) -> Self {
        Self {
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
            transactions: Vec::new(),
        }
    }

    pub(super) fn partition_count(&self) -> usize {
        self.partitions.len()
    }

    /// The next record of a partition goes out; its sequence number.
    pub(super) fn send(&mut self, partition: usize) -> u64 {
        self.add(partition, 0, None)
    }

    /// The same, as a part of a transaction of one of several producers.
    pub(super) fn send_in(
        &mut self,
        transaction: TransactionNumber,
        producer: u32,
        partition: usize,
    ) -> u64 {
        self.add(partition, producer, Some(transaction))
    }

    fn add(
        &mut self,
        partition: usize,
        producer: u32,
        transaction: Option<TransactionNumber>,
    ) -> u64 {
        let sent = &mut self.partitions[partition].sent;
        sent.push(Sent {
            fate: Fate::Open,
            producer,
            transaction,
        });
        sent.len() as u64 - 1
    }

    pub(super) fn acknowledge(&mut self, partition: usize, sequence: u64, offset: Option<i64>) {
        self.partitions[partition].sent[sequence as usize].fate = Fate::Acknowledged(offset);
    }

    /// A transaction begins in a life of its producer. Until it is told otherwise, nobody knows
    /// how it ends.
    pub(super) fn begin(&mut self, life: u32) -> TransactionNumber {
        let outcome = Outcome::Unknown;
        self.transactions.push(Transaction { outcome, life });
        TransactionNumber(self.transactions.len() - 1)
    }

    pub(super) fn end(&mut self, transaction: TransactionNumber, outcome: Outcome) {
        self.transactions[transaction.0].outcome = outcome;
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
            partition.judge(&self.transactions, &mut verdict);
        }
        for transaction in &self.transactions {
            match transaction.outcome {
                Outcome::Committed => verdict.committed += 1,
                Outcome::Aborted => verdict.aborted += 1,
                Outcome::Unknown => verdict.in_doubt += 1,
            }
        }
        verdict.torn = self.torn();
        verdict
    }

    fn torn(&self) -> u64 {
        // Of each transaction: how many records were sent, and how many are there.
        let mut counts = vec![(0_u64, 0_u64); self.transactions.len()];
        for partition in &self.partitions {
            let there: HashSet<u64> = partition.read.iter().map(|(_, number)| *number).collect();
            for (sequence, sent) in (0..).zip(&partition.sent) {
                if let Some(transaction) = sent.transaction {
                    let (all, seen) = &mut counts[transaction.0];
                    *all += 1;
                    *seen += u64::from(there.contains(&sequence));
                }
            }
        }
        let torn = counts.iter().filter(|(all, seen)| *seen > 0 && seen < all);
        torn.count() as u64
    }
}

impl Partition {
    fn judge(&self, transactions: &[Transaction], verdict: &mut Verdict) {
        let at: HashMap<i64, u64> = self.read.iter().copied().collect();
        let mut copies = vec![0_u32; self.sent.len()];
        let mut newest: HashMap<u32, (u32, u64)> = HashMap::new();
        for &(_, sequence) in &self.read {
            let copies = &mut copies[sequence as usize];
            *copies += 1;
            if *copies > 1 {
                verdict.duplicated += 1;
                continue;
            }
            let sent = self.sent[sequence as usize];
            let life = sent.transaction.map_or(0, |at| transactions[at.0].life);
            let newest = newest.entry(sent.producer).or_insert((life, sequence));
            if life < newest.0 {
                verdict.zombie_writes += 1;
            } else {
                verdict.out_of_order += u64::from(sequence < newest.1);
            }
            *newest = (life.max(newest.0), sequence.max(newest.1));
        }
        let seen = self.seen_live.iter().chain(&self.read);
        let numbers: HashSet<u64> = seen.map(|(_, sequence)| *sequence).collect();
        let is_aborted = |sequence: &&u64| {
            let transaction = self.sent[**sequence as usize].transaction;
            transaction.is_some_and(|at| transactions[at.0].outcome == Outcome::Aborted)
        };
        verdict.aborted_reads += numbers.iter().filter(is_aborted).count() as u64;
        verdict.read += self.read.len() as u64;
        for (sequence, sent) in (0..).zip(&self.sent) {
            match sent.fate {
                Fate::Open => {
                    let transaction = sent.transaction.map(|at| transactions[at.0].outcome);
                    verdict.unknown += u64::from(transaction != Some(Outcome::Aborted));
                }
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
        let whole = self.torn == 0 && self.aborted_reads == 0 && self.zombie_writes == 0;
        let kept = self.lost == 0 && self.misplaced == 0 && self.vanished == 0 && whole;
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

    /// A transaction over two partitions of which `read` was found, by partition.
    fn transaction(outcome: Outcome, read: [bool; 2]) -> Verdict {
        let mut ledger = Ledger::new(2);
        let number = ledger.begin(0);
        for (partition, read) in read.into_iter().enumerate() {
            let sequence = ledger.send_in(number, 0, partition);
            if outcome == Outcome::Committed {
                ledger.acknowledge(partition, sequence, Some(0));
            }
            if read {
                assert!(ledger.read(partition, 0, sequence));
            }
        }
        ledger.end(number, outcome);
        ledger.verdict()
    }

    #[test]
    fn a_transaction_is_there_whole_or_not_at_all() {
        for (outcome, read, good, torn) in [
            (Outcome::Committed, [true, true], true, 0),
            (Outcome::Committed, [true, false], false, 1),
            (Outcome::Committed, [false, false], false, 0),
            (Outcome::Aborted, [false, false], true, 0),
            (Outcome::Aborted, [true, true], false, 0),
            (Outcome::Unknown, [true, true], true, 0),
            (Outcome::Unknown, [false, false], true, 0),
            (Outcome::Unknown, [false, true], false, 1),
        ] {
            let verdict = transaction(outcome, read);
            assert_eq!(verdict.is_good(true), good, "{outcome:?} {read:?}");
            assert_eq!(verdict.torn, torn, "{outcome:?} {read:?}");
        }
    }

    #[test]
    fn an_aborted_record_that_was_seen_only_during_the_run_is_an_aborted_read() {
        let mut ledger = Ledger::new(1);
        let number = ledger.begin(0);
        let sequence = ledger.send_in(number, 0, 0);
        assert!(ledger.see(0, 0, sequence));
        ledger.end(number, Outcome::Aborted);
        assert_eq!(ledger.verdict().aborted_reads, 1);
    }

    #[test]
    fn the_order_is_kept_for_each_producer_and_not_between_them() {
        let mut ledger = Ledger::new(1);
        let numbers = [ledger.begin(0), ledger.begin(0)];
        for (producer, number) in (0..).zip(numbers) {
            ledger.send_in(number, producer, 0);
            ledger.send_in(number, producer, 0);
        }
        for (offset, sequence) in [(0, 2), (1, 0), (2, 3), (3, 1)] {
            assert!(ledger.read(0, offset, sequence));
        }
        assert_eq!(ledger.verdict().out_of_order, 0);
        let mut ledger = Ledger::new(1);
        let number = ledger.begin(0);
        ledger.send_in(number, 0, 0);
        ledger.send_in(number, 0, 0);
        assert!(ledger.read(0, 0, 1) && ledger.read(0, 1, 0));
        assert_eq!(ledger.verdict().out_of_order, 1);
    }

    #[test]
    fn a_record_of_a_life_that_was_fenced_is_a_zombies_where_a_later_one_has_written() {
        // By producer and life, in the order of the log.
        for (written, zombies) in [
            (&[(0, 0), (0, 0), (0, 1)][..], 0),
            (&[(0, 1), (0, 0)][..], 1),
            (&[(0, 0), (0, 2), (0, 1), (0, 0), (0, 2)][..], 2),
            (&[(0, 1), (1, 0)][..], 0),
        ] {
            let mut ledger = Ledger::new(1);
            // They were sent in the order of their lives.
            let mut sent: Vec<(i64, (u32, u32))> = (0..).zip(written.iter().copied()).collect();
            sent.sort_by_key(|(_, (_, life))| *life);
            let mut log = Vec::new();
            for (offset, (producer, life)) in sent {
                let number = ledger.begin(life);
                log.push((offset, ledger.send_in(number, producer, 0)));
                ledger.end(number, Outcome::Committed);
            }
            log.sort_unstable();
            for (offset, sequence) in log {
                assert!(ledger.read(0, offset, sequence));
            }
            let verdict = ledger.verdict();
            assert_eq!((verdict.zombie_writes, verdict.out_of_order), (zombies, 0));
            assert_eq!(verdict.is_good(true), zombies == 0, "{written:?}");
        }
    }

    #[test]
    fn a_record_that_was_never_sent_is_refused() {
        let mut ledger = Ledger::new(1);
        assert!(!ledger.see(0, 0, 0));
        assert!(!ledger.read(7, 0, 0));
    }
}
