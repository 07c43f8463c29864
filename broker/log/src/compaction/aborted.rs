//! Aborted transactions as `.txnindex` files hold them.
//!
//! ```text
//! 0         2             10             18            26                   34
//! +---------+-------------+--------------+-------------+--------------------+
//! | version | producer id | first offset | last offset | last stable offset |
//! +---------+-------------+--------------+-------------+--------------------+
//! ```

use std::{fs, io, path::Path};

use yuxi_protocol::ids::{Offset, ProducerId};

use crate::error::LogError;

const ENTRY_BYTES: usize = 34;
const VERSION: i16 = 0;

/// A transaction that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AbortedTransaction {
    pub(crate) producer_id: ProducerId,
    /// Its first record.
    pub(crate) first_offset: Offset,
    /// Its marker.
    pub(crate) last_offset: Offset,
    /// What the last stable offset was when the marker was written.
    pub(crate) last_stable_offset: Offset,
}

/// What the file says; nothing if there is none.
pub(super) fn read(path: &Path) -> Result<Vec<AbortedTransaction>, LogError> {
    match fs::read(path) {
        Ok(bytes) => Ok(decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(LogError::storage(path)(error)),
    }
}

/// A part of an entry at the end, as a crash leaves it, is none.
fn decode(bytes: &[u8]) -> Vec<AbortedTransaction> {
    let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
    let number = |entry: &[u8; ENTRY_BYTES], at: usize| {
        let mut field = [0; 8];
        field.copy_from_slice(&entry[at..at + 8]);
        i64::from_be_bytes(field)
    };
    entries
        .iter()
        .map(|entry| AbortedTransaction {
            producer_id: ProducerId::new(number(entry, 2)),
            first_offset: Offset::new(number(entry, 10)),
            last_offset: Offset::new(number(entry, 18)),
            last_stable_offset: Offset::new(number(entry, 26)),
        })
        .collect()
}

pub(super) fn encode(aborted: &[AbortedTransaction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(aborted.len() * ENTRY_BYTES);
    for entry in aborted {
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&entry.producer_id.value().to_be_bytes());
        bytes.extend_from_slice(&entry.first_offset.value().to_be_bytes());
        bytes.extend_from_slice(&entry.last_offset.value().to_be_bytes());
        bytes.extend_from_slice(&entry.last_stable_offset.value().to_be_bytes());
    }
    bytes
}
