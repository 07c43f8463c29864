//! From what was decided to what is committed: change sets into transactions of a reign,
//! and how to tell whether a transaction of unknown outcome was applied.

use std::{
    collections::{HashSet, VecDeque},
    mem,
};

use yuxi_protocol::ids::ControllerEpoch;

use crate::{
    decide::ChangeSet,
    election::reign,
    store::{MAX_TRANSACTION_BYTES, MAX_TRANSACTION_OPERATIONS, Operation, Snapshot, Transaction},
};

/// What one transaction changes at most when leaders that work are moved: a few hundred
/// partitions. Brokers follow one after the other, and nobody can write to a partition
/// between the first and the last of them, so that a gap would grow with what moves at once.
const PORTION_BYTES: usize = 32 << 10;

/// Puts change sets into as few transactions of a reign as they fit in, in their order.
pub(crate) fn pack(changes: Vec<ChangeSet>, epoch: ControllerEpoch) -> VecDeque<Transaction> {
    pack_within(MAX_TRANSACTION_BYTES, changes, epoch)
}

/// As [`pack`], into transactions that each interrupt little.
pub(crate) fn pack_in_portions(
    changes: Vec<ChangeSet>,
    epoch: ControllerEpoch,
) -> VecDeque<Transaction> {
    pack_within(PORTION_BYTES, changes, epoch)
}

fn pack_within(
    max_bytes: usize,
    changes: Vec<ChangeSet>,
    epoch: ControllerEpoch,
) -> VecDeque<Transaction> {
    let mut transactions = VecDeque::new();
    let mut current = Transaction::default();
    let mut keys: HashSet<String> = HashSet::new();
    let mut bytes = 0;
    for set in changes {
        let size: usize = set.operations.iter().map(Operation::size_in_bytes).sum();
        let fits = current.guards.len() + set.guards.len() <= MAX_TRANSACTION_OPERATIONS
            && current.operations.len() + set.operations.len() <= MAX_TRANSACTION_OPERATIONS
            && bytes + size <= max_bytes
            && !set
                .operations
                .iter()
                .any(|operation| keys.contains(operation.key()));
        if current.guards.is_empty() || !fits {
            if !current.operations.is_empty() {
                transactions.push_back(mem::take(&mut current));
            }
            current.guards = vec![reign(epoch)];
            current.operations.clear();
            keys.clear();
            bytes = 0;
        }
        keys.extend(
            set.operations
                .iter()
                .map(|operation| operation.key().to_owned()),
        );
        bytes += size;
        current.guards.extend(set.guards);
        current.operations.extend(set.operations);
    }
    if !current.operations.is_empty() {
        transactions.push_back(current);
    }
    transactions
}

/// Whether a snapshot shows everything that a transaction would have done.
pub(crate) fn is_applied(transaction: &Transaction, snapshot: &Snapshot) -> bool {
    transaction.operations.iter().all(|operation| {
        let found = snapshot
            .entries
            .binary_search_by(|entry| (*entry.key).cmp(operation.key()))
            .ok()
            .map(|at| &snapshot.entries[at]);
        match operation {
            Operation::Put { value, session, .. } => {
                found.is_some_and(|entry| entry.value == *value && entry.session == *session)
            }
            Operation::Delete { .. } => found.is_none(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Guard;

    fn put(key: &str, bytes: usize) -> Operation {
        Operation::Put {
            key: key.to_owned(),
            value: vec![b'x'; bytes].into(),
            session: None,
        }
    }

    fn set(operations: Vec<Operation>) -> ChangeSet {
        ChangeSet {
            guards: vec![Guard::Absent("other".to_owned())],
            operations,
        }
    }

    #[test]
    fn transactions_are_full_within_the_limits_in_order_and_guarded_by_the_reign() {
        let epoch = ControllerEpoch::new(5);
        let sets = (0..300)
            .map(|i| set(vec![put(&format!("k{i}"), 1)]))
            .collect();
        let packed = pack(sets, epoch);
        // The reign's own guard takes one of 128.
        let sizes: Vec<usize> = packed.iter().map(|t| t.operations.len()).collect();
        assert_eq!(sizes, [127, 127, 46]);
        let order: Vec<&str> = packed
            .iter()
            .flat_map(|t| &t.operations)
            .map(Operation::key)
            .collect();
        assert_eq!(order, (0..300).map(|i| format!("k{i}")).collect::<Vec<_>>());
        for transaction in &packed {
            assert_eq!(transaction.guards[0], reign(epoch));
            assert_eq!(transaction.check_limits(), Ok(()));
        }
        let large = (0..3)
            .map(|i| set(vec![put(&format!("k{i}"), 600_000)]))
            .collect();
        assert_eq!(pack(large, epoch).len(), 3);
    }

    #[test]
    fn leaders_that_work_are_moved_in_portions_of_which_each_is_whole() {
        let epoch = ControllerEpoch::new(5);
        let sizes = [20_000, 10_000, 10_000, 50_000, 1];
        let sets = || {
            let sets = sizes.iter().enumerate();
            sets.map(|(i, &bytes)| set(vec![put(&format!("k{i}"), bytes)]))
                .collect()
        };
        let operations = |packed: VecDeque<Transaction>| -> Vec<usize> {
            packed.iter().map(|t| t.operations.len()).collect()
        };
        assert_eq!(operations(pack_in_portions(sets(), epoch)), [2, 1, 1, 1]);
        assert_eq!(operations(pack(sets(), epoch)), [5]);
    }

    #[test]
    fn a_key_is_changed_once_in_a_transaction() {
        let epoch = ControllerEpoch::new(5);
        let sets = vec![set(vec![put("k", 1)]), set(vec![put("k", 2)])];
        assert_eq!(pack(sets, epoch).len(), 2);
    }

    #[test]
    fn nothing_to_change_is_no_transaction() {
        assert!(pack(Vec::new(), ControllerEpoch::new(5)).is_empty());
    }
}
