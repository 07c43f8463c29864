//! The file of the producers' state at an offset, `%020d.snapshot`, in Kafka's version 1.
//!
//! ```text
//!  0         2         6         10
//! +---------+---------+---------+----------------------
//! | version | crc-32c | entries | entries of 46 bytes
//! |  (1)    | of what | i32     |
//! |         | follows |         |
//! +---------+---------+---------+----------------------
//!
//! +----------+-------+----------+--------+--------+-----------+-------------+-------------+
//! | producer | epoch | last     | last   | offset | timestamp | coordinator | transaction |
//! | id i64   | i16   | sequence | offset | delta  | i64       | epoch i32   | first offset|
//! |          |       | i32      | i64    | i32    |           |             | i64 or -1   |
//! +----------+-------+----------+--------+--------+-----------+-------------+-------------+
//! ```
//!
//! Kafka writes one entry for a producer, with its last batch. We write one for each of
//! its last five batches, the oldest first, so that a repetition of any of them is still
//! recognised after a clean restart; Kafka lets a later entry of the same producer take
//! the place of an earlier one, and so reads what it would have written.

use std::{collections::HashMap, fs, io, path::PathBuf};

use yuxi_protocol::{
    ids::{Offset, ProducerEpoch, ProducerId},
    record::crc32c,
};

use crate::{
    file_io, file_names,
    producers::{ProducerBatch, ProducerEntry},
};

const VERSION: i16 = 1;
const HEADER_BYTES: usize = 10;
const CRC_AT: usize = 2;
const CHECKSUMMED_FROM: usize = 6;
const ENTRY_BYTES: usize = 46;
const NONE: i64 = -1;

type Entries = HashMap<ProducerId, ProducerEntry>;

/// The snapshots of a log, by their offsets. Owned by the log.
#[derive(Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    /// Increasing.
    offsets: Vec<Offset>,
}

impl Snapshots {
    pub(crate) fn new(dir: PathBuf, mut offsets: Vec<Offset>) -> Self {
        offsets.sort_unstable();
        Self { dir, offsets }
    }

    pub(crate) fn latest(&self) -> Option<Offset> {
        self.offsets.last().copied()
    }

    /// The newest readable snapshot at or before `end_offset`. Damaged ones are removed.
    pub(crate) fn load(&mut self, end_offset: Offset) -> io::Result<Option<(Offset, Entries)>> {
        let mut count = self.offsets.partition_point(|&offset| offset <= end_offset);
        while let Some(at) = count.checked_sub(1) {
            let offset = self.offsets[at];
            let path = self.path(offset);
            match fs::read(&path) {
                Ok(bytes) => {
                    if let Some(entries) = decode(&bytes) {
                        return Ok(Some((offset, entries)));
                    }
                    tracing::warn!(path = %path.display(), "damaged producer snapshot removed");
                    file_io::allow_missing(fs::remove_file(&path))?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.offsets.remove(at);
            count = at;
        }
        Ok(None)
    }

    /// Writes the state at `offset`, unless that has been done.
    pub(crate) fn take(&mut self, offset: Offset, entries: &Entries) -> io::Result<()> {
        let at = self.offsets.partition_point(|&known| known < offset);
        if self.offsets.get(at) == Some(&offset) {
            return Ok(());
        }
        file_io::replace(&self.path(offset), &encode(entries), false)?;
        self.offsets.insert(at, offset);
        Ok(())
    }

    /// Removes the snapshots whose offset `drop` picks. One that can't be removed is
    /// still forgotten; the next start finds it again.
    pub(crate) fn remove(&mut self, drop: impl Fn(Offset) -> bool) {
        let dir = &self.dir;
        self.offsets.retain(|&offset| {
            if !drop(offset) {
                return true;
            }
            let path = file_names::path(dir, offset, file_names::SNAPSHOT);
            if let Err(error) = file_io::allow_missing(fs::remove_file(&path)) {
                tracing::warn!(path = %path.display(), %error, "snapshot not removed");
            }
            false
        });
    }

    pub(crate) fn path(&self, offset: Offset) -> PathBuf {
        file_names::path(&self.dir, offset, file_names::SNAPSHOT)
    }
}

fn encode(entries: &Entries) -> Vec<u8> {
    let rows: usize = entries
        .values()
        .map(|entry| entry.batches().len().max(1))
        .sum();
    let mut out = Vec::with_capacity(HEADER_BYTES + rows * ENTRY_BYTES);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(rows as i32).to_be_bytes());
    for (id, entry) in entries {
        // A producer that wrote only a marker under its epoch has no batch.
        let none = [ProducerBatch {
            last_sequence: -1,
            last_offset: Offset::new(NONE),
            offset_delta: 0,
            timestamp: entry.last_timestamp,
        }];
        let batches = match entry.batches() {
            [] => &none,
            batches => batches,
        };
        for (at, batch) in batches.iter().enumerate() {
            let is_last = at + 1 == batches.len();
            let timestamp = if is_last {
                entry.last_timestamp
            } else {
                batch.timestamp
            };
            let transaction = entry.transaction_first_offset.map_or(NONE, Offset::value);
            out.extend_from_slice(&id.value().to_be_bytes());
            out.extend_from_slice(&entry.epoch.value().to_be_bytes());
            out.extend_from_slice(&batch.last_sequence.to_be_bytes());
            out.extend_from_slice(&batch.last_offset.value().to_be_bytes());
            out.extend_from_slice(&batch.offset_delta.to_be_bytes());
            out.extend_from_slice(&timestamp.to_be_bytes());
            out.extend_from_slice(&entry.coordinator_epoch.to_be_bytes());
            out.extend_from_slice(&transaction.to_be_bytes());
        }
    }
    let crc = crc32c(&out[CHECKSUMMED_FROM..]);
    out[CRC_AT..CHECKSUMMED_FROM].copy_from_slice(&crc.to_be_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<Entries> {
    let (version, rest) = bytes.split_first_chunk::<2>()?;
    let (crc, checked) = rest.split_first_chunk::<4>()?;
    if i16::from_be_bytes(*version) != VERSION || u32::from_be_bytes(*crc) != crc32c(checked) {
        return None;
    }
    let (count, rows) = checked.split_first_chunk::<4>()?;
    let (rows, extra) = rows.as_chunks::<ENTRY_BYTES>();
    if !extra.is_empty() || usize::try_from(i32::from_be_bytes(*count)).ok()? != rows.len() {
        return None;
    }
    let mut entries = Entries::new();
    for row in rows {
        let mut fields = Fields(row);
        let id = ProducerId::new(i64::from_be_bytes(fields.take()));
        let epoch = ProducerEpoch::new(i16::from_be_bytes(fields.take()));
        let last_sequence = i32::from_be_bytes(fields.take());
        let last_offset = Offset::new(i64::from_be_bytes(fields.take()));
        let offset_delta = i32::from_be_bytes(fields.take());
        let timestamp = i64::from_be_bytes(fields.take());
        let coordinator_epoch = i32::from_be_bytes(fields.take());
        let transaction = i64::from_be_bytes(fields.take());
        let entry = entries
            .entry(id)
            .or_insert_with(|| ProducerEntry::new(epoch));
        entry.set_epoch(epoch);
        entry.coordinator_epoch = coordinator_epoch;
        entry.last_timestamp = timestamp;
        entry.transaction_first_offset = (transaction >= 0).then(|| Offset::new(transaction));
        if last_offset >= Offset::ZERO {
            entry.push(ProducerBatch {
                last_sequence,
                last_offset,
                offset_delta,
                timestamp,
            });
        }
    }
    Some(entries)
}

/// The fields of one row, from the left; the rows are as long as their fields.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("46 bytes of fields");
        self.0 = rest;
        *field
    }
}
