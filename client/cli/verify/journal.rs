//! The journal of a run: a line for each thing that happened to a record, as it happens.
//!
//! ```text
//! ack  MICROSECONDS PARTITION SEQUENCE OFFSET
//! fail MICROSECONDS PARTITION SEQUENCE ERROR…
//! read MICROSECONDS PARTITION OFFSET
//! ```

use std::fmt::Arguments;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use yuxi_client::{ConsumerRecord, Error};

use crate::failure::{Failure, Outcome};

/// Writes nothing if nobody asked for one.
pub(super) struct Journal {
    file: Option<Mutex<File>>,
}

impl Journal {
    pub(super) fn open(path: Option<&Path>) -> Outcome<Self> {
        let open = |path: &Path| {
            File::create(path).map_err(|source| Failure::Io {
                what: format!("creating {}", path.display()),
                source,
            })
        };
        let file = path.map(open).transpose()?.map(Mutex::new);
        Ok(Self { file })
    }

    pub(super) fn acknowledged(&self, partition: usize, sequence: u64, offset: Option<i64>) {
        let offset = offset.unwrap_or(-1);
        self.write(format_args!(
            "ack {} {partition} {sequence} {offset}\n",
            now_us()
        ));
    }

    pub(super) fn failed(&self, partition: usize, sequence: u64, error: &Error) {
        tracing::warn!(partition, sequence, %error, "a record was given up");
        self.write(format_args!(
            "fail {} {partition} {sequence} {error}\n",
            now_us()
        ));
    }

    pub(super) fn read(&self, record: &ConsumerRecord) {
        self.write(format_args!(
            "read {} {} {}\n",
            now_us(),
            record.partition,
            record.offset
        ));
    }

    fn write(&self, line: Arguments<'_>) {
        let Some(file) = &self.file else {
            return;
        };
        // One write for the whole line, so that a reader at its heels sees it whole.
        let line = line.to_string();
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::error!(%error, "the journal lacks a line");
        }
    }
}

fn now_us() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros())
}
