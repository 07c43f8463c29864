//! Transactions that the loop commits one after the other, and what they are for.

use std::collections::VecDeque;

use crate::{command::Asked, store::Transaction};

/// See the module.
pub(super) struct Task {
    pub(super) cause: Cause,
    pub(super) transactions: VecDeque<Transaction>,
    pub(super) applied: usize,
    pub(super) attempts: u32,
    /// Whether the first of them may have been applied.
    pub(super) in_doubt: bool,
}

/// What a task is for, as far as it matters when the task ends.
pub(super) enum Cause {
    /// Somebody waits for the answer.
    Command(Asked),
    /// A new controller compares every partition with the live brokers.
    Reconcile,
    /// The first who comes gets it: the seal, or the number of this process.
    Race,
    /// Whatever else the image asks for; it goes on asking until it is done.
    Upkeep,
}

impl Task {
    pub(super) fn new(cause: Cause, transactions: VecDeque<Transaction>) -> Self {
        Self {
            cause,
            transactions,
            applied: 0,
            attempts: 0,
            in_doubt: false,
        }
    }

    /// A task of one transaction.
    pub(super) fn one(cause: Cause, transaction: Transaction) -> Self {
        Self::new(cause, [transaction].into())
    }

    /// The first of them is applied; whether that was the last.
    pub(super) fn advance(&mut self) -> bool {
        self.transactions.pop_front();
        self.applied += 1;
        self.attempts = 0;
        self.in_doubt = false;
        self.transactions.is_empty()
    }
}
