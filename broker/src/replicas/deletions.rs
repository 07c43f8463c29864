//! What is deleted here, and when: directories of deleted partitions, once nobody reads them any
//! more, and what is left of topics that were deleted while this broker could not follow.
//!
//! The metadata store names the deleted topics of which this broker may hold replicas, and this
//! broker says of which it holds none. What always holds: only what is named there is removed, and
//! a topic is said to be gone when no directory is one of its partitions any more, durably.

use super::Replicas;
use crate::{
    node::Lookup,
    sync::lock,
    time::{self, Monotonic},
};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Mutex, MutexGuard},
};
use yuxi_controller::image::ClusterImage;
use yuxi_log::{LogDirError, StoredPartition, read_partition_metadata};
use yuxi_protocol::ids::TopicId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    due: Mutex<Vec<(Monotonic, PathBuf)>>,
    /// Deleted topics of which nothing is left here, as long as the image still asks for them.
    gone: Mutex<BTreeSet<TopicId>>,
}

impl Deletions {
    pub(super) fn add(&self, due: Monotonic, directory: PathBuf) {
        self.due().push((due, directory));
    }

    /// Those whose time has come.
    pub(super) fn take_due(&self, now: Monotonic) -> Vec<PathBuf> {
        let mut due = self.due();
        due.extract_if(.., |(at, _)| *at <= now)
            .map(|(_, directory)| directory)
            .collect()
    }

    fn due(&self) -> MutexGuard<'_, Vec<(Monotonic, PathBuf)>> {
        lock(&self.due)
    }

    /// Those of `deleted`, which the image asks for now, that have not been looked for yet.
    fn begin(&self, mut deleted: BTreeSet<TopicId>) -> BTreeSet<TopicId> {
        let mut gone = lock(&self.gone);
        gone.retain(|topic| deleted.contains(topic));
        deleted.retain(|topic| !gone.contains(topic));
        deleted
    }
}

impl Replicas {
    /// At most `limit` of the deleted topics of which nothing is left here, and the controller
    /// does not know yet.
    pub(crate) fn gone_topics(&self, limit: usize) -> Vec<TopicId> {
        let gone = lock(&self.deletions.gone);
        gone.iter().take(limit).copied().collect()
    }

    /// Removes what is left here of the topics that `image` says were deleted: while this broker
    /// was away, or before it had removed everything. What can't be removed is tried again.
    pub(super) fn remove_deleted_topics(&self, image: &ClusterImage) {
        let deleted = image.deleted_topics(self.broker).collect();
        let mut deleted = self.deletions.begin(deleted);
        if deleted.is_empty() {
            return;
        }
        match self.left_of(&deleted) {
            Ok(left) => {
                for (topic, stored) in left {
                    // It may have been deleted after its log was opened for the first image.
                    drop(self.found.take_opened(topic, stored.partition.partition));
                    if let Err(error) = self.remove_left_of_topic(&stored) {
                        tracing::error!(
                            partition = %stored.partition, %error,
                            "a deleted partition's files stay"
                        );
                        deleted.remove(&topic);
                    }
                }
                lock(&self.deletions.gone).extend(deleted);
            }
            Err(error) => tracing::error!(%error, "deleted partitions' files stay"),
        }
    }

    /// The directories of partitions of these topics, which are not in the map.
    fn left_of(
        &self,
        topics: &BTreeSet<TopicId>,
    ) -> Result<Vec<(TopicId, StoredPartition)>, LogDirError> {
        let mut stored = self.directory.partitions()?;
        stored.retain(|stored| {
            let partition = &stored.partition;
            let found = self.find(&partition.topic, partition.partition.value());
            !matches!(found, Lookup::Here(_))
        });
        let of_topic = |stored: StoredPartition| {
            // One that names no topic is nobody's to remove.
            let topic = read_partition_metadata(&stored.dir).ok().flatten()?;
            topics.contains(&topic).then_some((topic, stored))
        };
        Ok(stored.into_iter().filter_map(of_topic).collect())
    }

    fn remove_left_of_topic(&self, left: &StoredPartition) -> Result<(), LogDirError> {
        let unique = uuid::Uuid::new_v4().as_u128();
        let directory = self.directory.rename_deleted(&left.partition, unique)?;
        // Nobody reads what was never served.
        self.deletions.add(time::monotonic(), directory);
        tracing::info!(
            partition = %left.partition,
            "a partition's directory is removed, since its topic was deleted"
        );
        Ok(())
    }
}
