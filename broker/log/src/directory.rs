//! A log directory, one of `log.dirs`: who may use it, and which partitions it holds.
//!
//! One process owns it, by a lock on `.lock` that the system takes back when the process
//! ends; `meta.properties` says of which cluster and node it is.

use std::{
    fmt::Write,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use yuxi_protocol::ids::{BrokerId, TopicId, TopicPartition};

use crate::file_io;

const LOCK: &str = ".lock";
const META_PROPERTIES: &str = "meta.properties";
/// What Kafka appends to a partition's directory that is to be deleted.
const DELETE_SUFFIX: &str = "-delete";
/// What Kafka appends to the directory of a partition that the cluster does not know.
const STRAY_SUFFIX: &str = "-stray";
/// The longest name that a file system takes.
const MAX_NAME_BYTES: usize = 255;

/// Why a log directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LogDirError {
    /// Another process has it.
    #[error(
        "{path} is in use by another broker (its .lock file is held): stop that one, or set \
         another log.dirs",
        path = path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It can't be made, or not be written to.
    #[error(
        "{path} can't be used as the data directory: {error}: set log.dirs to one that can",
        path = path.display()
    )]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is another cluster's.
    #[error(
        "{path} belongs to cluster {stored}, and the metadata store to cluster {expected}: \
         set another log.dirs, or empty the directory, or correct etcd.endpoints and etcd.prefix",
        path = path.display()
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster in its `meta.properties`.
        stored: String,
        /// The broker's cluster.
        expected: String,
    },
    /// It is another node's.
    #[error(
        "{path} belongs to node {stored}, and this is node {expected}: \
         set node.id={stored} or another log.dirs",
        path = path.display()
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// The node in its `meta.properties`.
        stored: BrokerId,
        /// This node.
        expected: BrokerId,
    },
    /// Its `meta.properties` makes no sense.
    #[error("{path}: {reason}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system refused.
    #[error("{path}: {error}", path = path.display())]
    Storage {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl LogDirError {
    fn storage(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| Self::Storage { path, error }
    }
}

/// A log directory that this process owns for as long as the value lives.
#[derive(Debug)]
pub struct LogDir {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

/// A partition that a log directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPartition {
    /// Which one, by the directory's name.
    pub partition: TopicPartition,
    /// Its directory.
    pub dir: PathBuf,
}

impl LogDir {
    /// Takes the directory, and creates it if it is missing.
    pub fn open(path: &Path) -> Result<Self, LogDirError> {
        let unusable = |error| LogDirError::Unusable {
            path: path.to_path_buf(),
            error,
        };
        fs::create_dir_all(path).map_err(unusable)?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_path_buf(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(LogDirError::Locked {
                path: path.to_path_buf(),
            }),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `meta.properties` says, if there is one.
    pub fn meta_properties(&self) -> Result<Option<MetaProperties>, LogDirError> {
        let path = self.path.join(META_PROPERTIES);
        match fs::read_to_string(&path) {
            Ok(text) => match MetaProperties::parse(&text) {
                Ok(meta) => Ok(Some(meta)),
                Err(reason) => Err(LogDirError::Malformed { path, reason }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LogDirError::storage(&path)(error)),
        }
    }

    /// Makes sure that the directory is this node's, and notes it in a directory that has
    /// no `meta.properties` yet. Returns what stands there now.
    pub fn claim(&self, meta: &MetaProperties) -> Result<MetaProperties, LogDirError> {
        let Some(stored) = self.meta_properties()? else {
            let path = self.path.join(META_PROPERTIES);
            file_io::replace(&path, meta.format().as_bytes(), true)
                .map_err(LogDirError::storage(&path))?;
            return Ok(meta.clone());
        };
        if stored.cluster_id != meta.cluster_id {
            return Err(LogDirError::OtherCluster {
                path: self.path.clone(),
                stored: stored.cluster_id,
                expected: meta.cluster_id.clone(),
            });
        }
        if stored.node_id != meta.node_id {
            return Err(LogDirError::OtherNode {
                path: self.path.clone(),
                stored: stored.node_id,
                expected: meta.node_id,
            });
        }
        Ok(stored)
    }

    /// Makes all that was written to the file system of this directory durable, as if
    /// every file of it were fsynced.
    pub fn sync(&self) -> Result<(), LogDirError> {
        File::open(&self.path)
            .and_then(|dir| rustix::fs::syncfs(dir).map_err(io::Error::from))
            .map_err(LogDirError::storage(&self.path))
    }

    /// Where the log of `partition` is or goes.
    pub fn partition_dir(&self, partition: &TopicPartition) -> PathBuf {
        self.path.join(partition.to_string())
    }

    /// The partitions whose directories are here, in no order. Other directories are
    /// left alone.
    pub fn partitions(&self) -> Result<Vec<StoredPartition>, LogDirError> {
        let mut found = Vec::new();
        self.each_dir(|name, dir| {
            if let Some(partition) = parse_dir_name(name) {
                found.push(StoredPartition { partition, dir });
            }
        })?;
        Ok(found)
    }

    /// Directories that were renamed to be deleted, of which a crash left something.
    pub fn deleted_partitions(&self) -> Result<Vec<PathBuf>, LogDirError> {
        let mut found = Vec::new();
        self.each_dir(|name, dir| {
            if name.ends_with(DELETE_SUFFIX) {
                found.push(dir);
            }
        })?;
        Ok(found)
    }

    /// Renames a partition's directory so that it is one no more, durably. The files stay
    /// for those who still read them, until [`LogDir::remove`]. `unique` tells it from
    /// an earlier partition of the same name.
    pub fn rename_deleted(
        &self,
        partition: &TopicPartition,
        unique: u128,
    ) -> Result<PathBuf, LogDirError> {
        self.rename_away(partition, unique, DELETE_SUFFIX)
    }

    /// Renames the directory of a partition that nobody knows, durably, and leaves the
    /// files to the operator.
    pub fn rename_stray(
        &self,
        partition: &TopicPartition,
        unique: u128,
    ) -> Result<PathBuf, LogDirError> {
        self.rename_away(partition, unique, STRAY_SUFFIX)
    }

    fn rename_away(
        &self,
        partition: &TopicPartition,
        unique: u128,
        suffix: &str,
    ) -> Result<PathBuf, LogDirError> {
        let suffix = format!(".{unique:032x}{suffix}");
        let mut name = partition.to_string();
        name.truncate(MAX_NAME_BYTES - suffix.len());
        let to = self.path.join(name + &suffix);
        fs::rename(self.partition_dir(partition), &to)
            .and_then(|()| file_io::sync_dir(&self.path))
            .map_err(LogDirError::storage(&to))?;
        Ok(to)
    }

    /// Removes a directory that was renamed.
    pub fn remove(&self, deleted: &Path) -> Result<(), LogDirError> {
        file_io::allow_missing(fs::remove_dir_all(deleted)).map_err(LogDirError::storage(deleted))
    }

    fn each_dir(&self, mut visit: impl FnMut(&str, PathBuf)) -> Result<(), LogDirError> {
        let storage = |error| LogDirError::storage(&self.path)(error);
        for entry in fs::read_dir(&self.path).map_err(storage)? {
            let entry = entry.map_err(storage)?;
            if entry.file_type().map_err(storage)?.is_dir()
                && let Some(name) = entry.file_name().to_str()
            {
                visit(name, entry.path());
            }
        }
        Ok(())
    }
}

/// `TOPIC-N`. Names that Kafka gives to directories on their way in or out are none.
fn parse_dir_name(name: &str) -> Option<TopicPartition> {
    let (topic, partition) = name.rsplit_once('-')?;
    let canonical = partition == "0" || !partition.starts_with('0');
    let digits = !partition.is_empty() && partition.bytes().all(|byte| byte.is_ascii_digit());
    let partition =
        (canonical && digits && !topic.is_empty()).then(|| partition.parse().ok())??;
    Some(TopicPartition::new(topic, partition))
}

/// Of which cluster and node a log directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaProperties {
    /// The cluster's id.
    pub cluster_id: String,
    /// The node's id.
    pub node_id: BrokerId,
    /// The directory's own id (KIP-858).
    pub directory_id: Option<TopicId>,
}

impl MetaProperties {
    fn format(&self) -> String {
        let mut text = String::from("#\n");
        if let Some(id) = self.directory_id {
            let _ = writeln!(text, "directory.id={id}");
        }
        let _ = writeln!(text, "node.id={}", self.node_id);
        let _ = writeln!(text, "version=1");
        let _ = writeln!(text, "cluster.id={}", escape(&self.cluster_id));
        text
    }

    /// Reads Kafka's versions 0 (`broker.id`) and 1 (`node.id`).
    fn parse(text: &str) -> Result<Self, String> {
        let mut version = "0".to_owned();
        let (mut cluster_id, mut node_id, mut directory_id) = (None, None, None);
        for line in text.lines() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| format!("{line:?} has no '='"))?;
            let value = unescape(value.trim_start());
            match key.trim_end() {
                "version" => version = value,
                "cluster.id" => cluster_id = Some(value),
                "node.id" | "broker.id" => {
                    let id: i32 = value
                        .trim()
                        .parse()
                        .map_err(|_| format!("{value:?} is not a node id"))?;
                    node_id = Some(BrokerId::new(id));
                }
                "directory.id" => {
                    let id = value.parse().map_err(|error| format!("{error}"))?;
                    directory_id = Some(id);
                }
                _ => {}
            }
        }
        if !["0", "1"].contains(&version.as_str()) {
            return Err(format!("version {version} is not known"));
        }
        Ok(Self {
            cluster_id: cluster_id.ok_or("cluster.id is missing")?,
            node_id: node_id.ok_or("node.id is missing")?,
            directory_id,
        })
    }
}

/// As Java writes a property's value.
fn escape(value: &str) -> String {
    let mut out = String::new();
    for character in value.chars() {
        if "=:#!\\ ".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

fn unescape(value: &str) -> String {
    let mut out = String::new();
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => out.extend(characters.next()),
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(cluster_id: &str, node_id: i32) -> MetaProperties {
        MetaProperties {
            cluster_id: cluster_id.to_owned(),
            node_id: BrokerId::new(node_id),
            directory_id: None,
        }
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = LogDir::open(&path).unwrap();
        assert!(matches!(
            LogDir::open(&path),
            Err(LogDirError::Locked { .. })
        ));
        drop(first);
        LogDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_of_another_cluster_or_node_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = LogDir::open(dir.path()).unwrap();
        assert_eq!(log_dir.meta_properties().unwrap(), None);
        let mine = MetaProperties {
            directory_id: Some(TopicId::from_bytes([9; 16])),
            ..meta("a:b", 3)
        };
        log_dir.claim(&mine).unwrap();
        assert_eq!(log_dir.claim(&meta("a:b", 3)).unwrap(), mine);
        assert!(matches!(
            log_dir.claim(&meta("other", 3)),
            Err(LogDirError::OtherCluster { .. })
        ));
        assert!(matches!(
            log_dir.claim(&meta("a:b", 4)),
            Err(LogDirError::OtherNode { .. })
        ));
    }

    #[test]
    fn what_kafka_writes_into_meta_properties_is_read() {
        let text = "#\n#Thu Jan 01 00:00:00 UTC 2026\ncluster.id=5L6g3nShT-eMCtK--X86sw\n\
                    directory.id=AAAAAAAAAAAAAAAAAAAAAQ\nnode.id=1\nversion=1\n";
        let read = MetaProperties::parse(text).unwrap();
        assert_eq!(read.cluster_id, "5L6g3nShT-eMCtK--X86sw");
        assert_eq!(read.node_id, BrokerId::new(1));
        let old = MetaProperties::parse("version=0\nbroker.id=7\ncluster.id=c\n").unwrap();
        assert_eq!(old, meta("c", 7));
        for bad in [
            "",
            "version=9\nnode.id=1\ncluster.id=c",
            "node.id=x\ncluster.id=c",
            "garbage",
        ] {
            assert!(MetaProperties::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn partitions_are_listed_by_their_directories_names() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = LogDir::open(dir.path()).unwrap();
        for name in [
            "a-0",
            "b-c-11",
            "x.y_z-2",
            "a-1.0000-delete",
            "a-2.1-future",
            "-3",
            "a-",
            "a-01",
            "plain",
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("file-0"), "").unwrap();
        let mut found: Vec<_> = log_dir
            .partitions()
            .unwrap()
            .into_iter()
            .map(|stored| stored.partition)
            .collect();
        found.sort();
        let expected = [("a", 0), ("b-c", 11), ("x.y_z", 2)];
        assert_eq!(
            found,
            expected.map(|(topic, n)| TopicPartition::new(topic, n))
        );
        assert_eq!(log_dir.deleted_partitions().unwrap().len(), 1);

        let renamed = log_dir
            .rename_deleted(&TopicPartition::new("a", 0), 0xab)
            .unwrap();
        assert!(renamed.ends_with("a-0.000000000000000000000000000000ab-delete"));
        log_dir.remove(&renamed).unwrap();
        assert_eq!(log_dir.partitions().unwrap().len(), 2);
    }
}
