//! The limits and periods of the transaction coordinator, as one plain value.
//!
//! The broker fills it from its settings table, which owns names, ranges and docs;
//! the defaults here are Kafka's and serve tests.

use super::TransactionVersion;

/// What the operator can set about transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionConfig {
    /// The cluster's `transaction.version`: which form records have, and how producers
    /// are fenced.
    pub version: TransactionVersion,
    /// `transaction.max.timeout.ms`: producers that ask for more are refused.
    pub max_timeout_ms: i32,
    /// `transactional.id.expiration.ms`: how long a transactional id that does nothing is
    /// remembered.
    pub id_expiration_ms: i64,
    /// `transaction.abort.timed.out.transaction.cleanup.interval.ms`: how often
    /// transactions are looked at for having been open too long.
    pub abort_interval_ms: i64,
    /// `transaction.remove.expired.transaction.cleanup.interval.ms`: how often
    /// transactional ids are looked at for having expired.
    pub expiry_interval_ms: i64,
}

impl Default for TransactionConfig {
    fn default() -> Self {
        Self {
            version: TransactionVersion::V2,
            max_timeout_ms: 900_000,
            id_expiration_ms: 7 * 24 * 60 * 60 * 1_000,
            abort_interval_ms: 10_000,
            expiry_interval_ms: 3_600_000,
        }
    }
}
