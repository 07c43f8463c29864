//! The small text files beside and in the partitions' directories, in Kafka's formats.
//! Each is replaced as a whole (I16).
//!
//! A checkpoint has a version, a count, and a line for each entry:
//! ```text
//! 0
//! 2
//! orders 0 1500
//! orders 1 1498
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use yuxi_protocol::ids::{Offset, TopicId, TopicPartition};

use crate::file_io;

const VERSION: &str = "0";

/// One of the files that hold an offset for every partition of a log directory. The
/// caller writes it; nothing is kept in memory.
#[derive(Clone, Debug)]
pub struct OffsetCheckpoint {
    path: PathBuf,
}

impl OffsetCheckpoint {
    /// Up to where each log has been fsynced.
    pub const RECOVERY_POINT: &'static str = "recovery-point-offset-checkpoint";
    /// Each partition's high watermark.
    pub const HIGH_WATERMARK: &'static str = "replication-offset-checkpoint";
    /// The start of each log that does not begin where its first segment does.
    pub const LOG_START: &'static str = "log-start-offset-checkpoint";
    /// Up to where each compacted log has been cleaned.
    pub const CLEANER: &'static str = "cleaner-offset-checkpoint";

    /// The file called `name` in `log_dir`, which need not exist yet.
    pub fn new(log_dir: &Path, name: &str) -> Self {
        Self {
            path: log_dir.join(name),
        }
    }

    /// What the file says; nothing if there is none. A damaged file is an error of kind
    /// [`io::ErrorKind::InvalidData`] that names the line.
    pub fn read(&self) -> io::Result<BTreeMap<TopicPartition, Offset>> {
        let mut offsets = BTreeMap::new();
        for line in read_entries(&self.path)?.unwrap_or_default() {
            let (partition, offset) =
                parse_offset(&line).ok_or_else(|| malformed(&self.path, &line))?;
            offsets.insert(partition, offset);
        }
        Ok(offsets)
    }

    /// Replaces the file, durably.
    pub fn write<'a>(
        &self,
        offsets: impl IntoIterator<Item = (&'a TopicPartition, Offset)>,
    ) -> io::Result<()> {
        let lines = offsets
            .into_iter()
            .map(|(at, offset)| format!("{} {} {offset}", at.topic, at.partition));
        file_io::replace(&self.path, &format_entries(lines), true)
    }
}

fn parse_offset(line: &str) -> Option<(TopicPartition, Offset)> {
    let mut words = line.split_whitespace();
    let topic = words.next()?;
    let partition: i32 = words.next()?.parse().ok()?;
    let offset: i64 = words.next()?.parse().ok()?;
    (words.next().is_none() && partition >= 0)
        .then(|| (TopicPartition::new(topic, partition), Offset::new(offset)))
}

/// The lines of a checkpoint after the version and the count; `None` without a file.
/// Kafka creates these files empty.
pub(crate) fn read_entries(path: &Path) -> io::Result<Option<Vec<String>>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut lines = text.lines();
    let Some(version) = lines.next() else {
        return Ok(Some(Vec::new()));
    };
    if version != VERSION {
        return Err(malformed(path, version));
    }
    let Some(count) = lines.next() else {
        return Ok(Some(Vec::new()));
    };
    let entries: Vec<String> = lines.map(str::to_owned).collect();
    if count.parse() != Ok(entries.len()) {
        return Err(malformed(path, count));
    }
    Ok(Some(entries))
}

pub(crate) fn format_entries(lines: impl Iterator<Item = String>) -> Vec<u8> {
    let lines: Vec<String> = lines.collect();
    let mut text = format!("{VERSION}\n{}\n", lines.len());
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text.into_bytes()
}

pub(crate) fn malformed(path: &Path, line: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{}: the line {line:?} makes no sense", path.display()),
    )
}

/// The file that a clean shutdown leaves and the next start takes away. It says that
/// every log was closed, and under which broker epoch (KIP-966).
#[derive(Clone, Debug)]
pub struct CleanShutdown {
    path: PathBuf,
}

impl CleanShutdown {
    /// The file's name.
    pub const FILE_NAME: &'static str = ".kafka_cleanshutdown";

    /// The file in `log_dir`, which need not exist.
    pub fn new(log_dir: &Path) -> Self {
        Self {
            path: log_dir.join(Self::FILE_NAME),
        }
    }

    /// Writes the file, durably. Every log of the directory must have been closed.
    pub fn write(&self, broker_epoch: i64) -> io::Result<()> {
        let text = format!("{{\"version\":0,\"brokerEpoch\":{broker_epoch}}}");
        file_io::replace(&self.path, text.as_bytes(), true)
    }

    /// Whether the last shutdown was clean, and the broker epoch it had: the outer
    /// `None` means that it was not, the inner one that the file does not say.
    pub fn read(&self) -> io::Result<Option<Option<i64>>> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(Some(broker_epoch(&String::from_utf8_lossy(&bytes)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the file, durably: from now on a stop is unclean. Before the first log is
    /// written to.
    pub fn remove(&self) -> io::Result<()> {
        remove_durably(&self.path)
    }
}

fn remove_durably(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => file_io::sync_dir(path.parent().unwrap_or(Path::new("."))),
        Err(error) => file_io::allow_missing(Err(error)),
    }
}

/// The file that says that the topics found in the directory are the cluster's, and are to be
/// taken over. It is there from before the cluster is founded until they all are, so that a
/// start that ends in between leaves the rest to the next one. Only ours, and empty.
#[derive(Clone, Debug)]
pub struct AdoptionMark {
    path: PathBuf,
}

impl AdoptionMark {
    /// The file's name.
    pub const FILE_NAME: &'static str = "adoption-not-finished";

    /// The file in `log_dir`, which need not exist.
    pub fn new(log_dir: &Path) -> Self {
        Self {
            path: log_dir.join(Self::FILE_NAME),
        }
    }

    /// Writes the file, durably.
    pub fn write(&self) -> io::Result<()> {
        file_io::replace(&self.path, b"", true)
    }

    /// Whether the file is there.
    pub fn is_there(&self) -> io::Result<bool> {
        self.path.try_exists()
    }

    /// Removes the file, durably.
    pub fn remove(&self) -> io::Result<()> {
        remove_durably(&self.path)
    }
}

/// The number after `"brokerEpoch":`. The file is one flat object that only brokers
/// write, and what it lacks is optional; it is not worth a JSON parser.
fn broker_epoch(text: &str) -> Option<i64> {
    let (_, rest) = text.split_once("\"brokerEpoch\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let end = rest
        .find(|character: char| character != '-' && !character.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// The file that names the incarnations of a broker that may have been the last to use a log
/// directory, in the order in which they began. Each is named before the cluster counts on
/// it, so a directory that does not name the last one that the cluster let in was put back
/// from a copy, and is older than what that one acknowledged (I8).
///
/// It is only ours: a line of the incarnations, and the CRC-32 of what stands before it.
#[derive(Clone, Debug)]
pub struct Incarnations {
    path: PathBuf,
}

impl Incarnations {
    /// The file's name.
    pub const FILE_NAME: &'static str = "incarnations";

    /// The file in `log_dir`, which need not exist.
    pub fn new(log_dir: &Path) -> Self {
        Self {
            path: log_dir.join(Self::FILE_NAME),
        }
    }

    /// Replaces the file, durably. An incarnation is a word without spaces.
    pub fn write(&self, incarnations: &[String]) -> io::Result<()> {
        let names = incarnations.join(" ");
        let line = format!("{names} {:08x}\n", crc32fast::hash(names.as_bytes()));
        file_io::replace(&self.path, line.as_bytes(), true)
    }

    /// Who the file names, nobody without it. A damaged one is an error of kind
    /// [`io::ErrorKind::InvalidData`].
    pub fn read(&self) -> io::Result<Vec<String>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let line = text.trim_end();
        let names = line.rsplit_once(' ').and_then(|(names, crc)| {
            let crc = u32::from_str_radix(crc, 16).ok()?;
            (crc == crc32fast::hash(names.as_bytes())).then_some(names)
        });
        let names = names.ok_or_else(|| malformed(&self.path, line))?;
        Ok(names.split(' ').map(str::to_owned).collect())
    }
}

const PARTITION_METADATA: &str = "partition.metadata";

/// The topic id that `partition.metadata` in a partition's directory names. `None`
/// without the file, or when it is empty as a power cut can leave it.
pub fn read_partition_metadata(partition_dir: &Path) -> io::Result<Option<TopicId>> {
    let path = partition_dir.join(PARTITION_METADATA);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if text.is_empty() {
        return Ok(None);
    }
    let mut id = None;
    for line in text.lines() {
        match line.split_once(':').map(|(key, value)| (key, value.trim())) {
            Some(("version", "0")) => {}
            Some(("topic_id", value)) => {
                id = Some(value.parse().map_err(|_| malformed(&path, line))?);
            }
            _ => return Err(malformed(&path, line)),
        }
    }
    id.map(Some).ok_or_else(|| malformed(&path, &text))
}

/// Writes `partition.metadata`. It is fsynced with the log's first flush.
pub fn write_partition_metadata(partition_dir: &Path, topic_id: TopicId) -> io::Result<()> {
    let text = format!("version: 0\ntopic_id: {topic_id}");
    file_io::replace(
        &partition_dir.join(PARTITION_METADATA),
        text.as_bytes(),
        false,
    )
}

/// The file that [`write_partition_metadata`] writes.
pub(crate) fn partition_metadata_path(partition_dir: &Path) -> PathBuf {
    partition_dir.join(PARTITION_METADATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_checkpoint_is_kafkas_text() {
        let dir = tempfile::tempdir().unwrap();
        let file = OffsetCheckpoint::new(dir.path(), OffsetCheckpoint::RECOVERY_POINT);
        assert!(file.read().unwrap().is_empty());
        let offsets = BTreeMap::from([
            (TopicPartition::new("orders", 0), Offset::new(1500)),
            (TopicPartition::new("orders", 11), Offset::new(7)),
        ]);
        file.write(offsets.iter().map(|(at, offset)| (at, *offset)))
            .unwrap();
        let path = dir.path().join("recovery-point-offset-checkpoint");
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "0\n2\norders 0 1500\norders 11 7\n"
        );
        assert_eq!(file.read().unwrap(), offsets);
        for damaged in [
            "0\n3\norders 0 1\n",
            "0\n1\norders 0\n",
            "0\n1\norders -1 5\n",
            "7\n0\n",
        ] {
            fs::write(&path, damaged).unwrap();
            let error = file.read().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{damaged:?}");
        }
    }

    #[test]
    fn the_clean_shutdown_file_carries_the_broker_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let file = CleanShutdown::new(dir.path());
        assert_eq!(file.read().unwrap(), None);
        file.write(42).unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join(".kafka_cleanshutdown")).unwrap(),
            "{\"version\":0,\"brokerEpoch\":42}"
        );
        assert_eq!(file.read().unwrap(), Some(Some(42)));
        fs::write(dir.path().join(".kafka_cleanshutdown"), "").unwrap();
        assert_eq!(file.read().unwrap(), Some(None));
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(file.read().unwrap(), None);
    }

    #[test]
    fn the_incarnations_are_kept_with_a_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let file = Incarnations::new(dir.path());
        assert!(file.read().unwrap().is_empty());
        file.write(&["first".to_owned()]).unwrap();
        let both = ["first".to_owned(), "second".to_owned()];
        file.write(&both).unwrap();
        assert_eq!(file.read().unwrap(), both);
        let path = dir.path().join(Incarnations::FILE_NAME);
        let line = fs::read_to_string(&path).unwrap();
        let shorter = line.replacen("first ", "", 1);
        for damaged in [
            line.replacen("second", "secund", 1),
            shorter,
            String::new(),
            "first".to_owned(),
        ] {
            fs::write(&path, &damaged).unwrap();
            let error = file.read().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{damaged:?}");
        }
    }

    #[test]
    fn partition_metadata_names_the_topic_id() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_partition_metadata(dir.path()).unwrap(), None);
        let id = TopicId::from_bytes([7; 16]);
        write_partition_metadata(dir.path(), id).unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join("partition.metadata")).unwrap(),
            format!("version: 0\ntopic_id: {id}")
        );
        assert_eq!(read_partition_metadata(dir.path()).unwrap(), Some(id));
        fs::write(dir.path().join("partition.metadata"), "version: 9").unwrap();
        assert!(read_partition_metadata(dir.path()).is_err());
    }
}
