//! Partition directories that the metadata store does not know.
//!
//! On the first start on a directory that another broker wrote (Kafka's own, say), its
//! topics are taken over under their ids, with everything in them, and the numbers of their
//! producers are not given out again. That is finished by a later start if the first ends
//! before it is ([`yuxi_log::AdoptionMark`]). Later, such a
//! directory may be all that is left of a topic that the store has lost, or was put there by hand:
//! it is renamed as Kafka does, `…-stray`, so that a new topic of the name can be made, and
//! its files are left to the operator. What is known to have been deleted is gone by then
//! ([`crate::replicas`]).

use crate::{StartError, internal_topics, node::Node, partition::Partition};
use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::Path,
    sync::Arc,
};
use yuxi_controller::decide::topics::{Adopted, NewTopic, check_name};
use yuxi_log::{AdoptionMark, Log, StoredPartition};
use yuxi_protocol::ids::{LeaderEpoch, ProducerId, TopicId};

/// The log in which Kafka's controllers keep their metadata; it is no topic.
const KAFKA_METADATA: &str = "__cluster_metadata";

/// Whether the topics in `directory` are to be taken over: the metadata store is new, or was
/// when a start began that did not come so far.
pub(crate) fn is_due(directory: &Path, is_new: bool) -> Result<bool, StartError> {
    let mark = AdoptionMark::new(directory);
    if is_new {
        // The next start, should this one get no further, finds a store that is not empty.
        mark.write().map_err(|error| mark_error(directory, error))?;
    }
    mark.is_there()
        .map_err(|error| mark_error(directory, error))
}

fn mark_error(directory: &Path, error: io::Error) -> StartError {
    StartError::File {
        path: directory.join(AdoptionMark::FILE_NAME),
        error,
    }
}

/// Takes over the topics that are found, or sets their directories aside.
pub(crate) async fn settle_strays(node: &Arc<Node>, adopt: bool) -> Result<(), StartError> {
    let strays: Vec<StoredPartition> = node
        .replicas
        .strays()?
        .into_iter()
        .filter(|stored| &*stored.partition.topic != KAFKA_METADATA)
        .collect();
    if !adopt {
        return node.replicas.set_aside(&strays);
    }
    take_over(node, strays).await?;
    let directory = node.settings.data_dir();
    let removed = AdoptionMark::new(directory).remove();
    removed.map_err(|error| mark_error(directory, error))
}

/// May be called again if it came to nothing or half-way: those that were taken over already
/// are no strays any more.
async fn take_over(node: &Arc<Node>, strays: Vec<StoredPartition>) -> Result<(), StartError> {
    let found = tokio::task::spawn_blocking({
        let node = Arc::clone(node);
        move || find_topics(&node, strays)
    })
    .await
    .map_err(|error| StartError::Adoption(error.to_string()))??;
    let count = found.len();
    let created = match count {
        0 => Vec::new(),
        _ => node.controller.create_topics(found, false).await,
    };
    for created in created {
        let created = created.map_err(|error| StartError::Adoption(error.to_string()))?;
        tracing::info!(topic = created.name, id = %created.id, "a topic was taken over");
    }
    node.caught_up().await;
    if let Some(last) = last_producer_id(node) {
        let passed_over = node.producer_ids.pass_over(node, last).await;
        passed_over.map_err(|error| StartError::Adoption(error.to_string()))?;
    }
    if count > 0 {
        tracing::info!(
            topics = count,
            "the data directory of another broker was taken over"
        );
    }
    Ok(())
}

/// The highest number of the producers that the logs here know.
fn last_producer_id(node: &Node) -> Option<ProducerId> {
    let of = |partition: &Arc<Partition>| {
        let ids = |log: &mut Log, _| log.active_producers().map(|(id, _)| id).max();
        partition.with_log(ids).flatten()
    };
    node.replicas.all().iter().filter_map(of).max()
}

/// One topic for each name, with as many partitions as its largest number says.
fn find_topics(node: &Node, strays: Vec<StoredPartition>) -> Result<Vec<NewTopic>, StartError> {
    let mut by_topic: BTreeMap<Arc<str>, Vec<StoredPartition>> = BTreeMap::new();
    for stored in strays {
        by_topic
            .entry(Arc::clone(&stored.partition.topic))
            .or_default()
            .push(stored);
    }
    let mut topics = Vec::new();
    for (name, partitions) in by_topic {
        check_name(&name).map_err(|error| StartError::Adoption(error.to_string()))?;
        topics.push(find_topic(node, &name, &partitions)?);
    }
    Ok(topics)
}

fn find_topic(
    node: &Node,
    name: &str,
    partitions: &[StoredPartition],
) -> Result<NewTopic, StartError> {
    let mut ids = HashSet::new();
    let mut latest = LeaderEpoch::NONE;
    let mut count = 0;
    for stored in partitions {
        let about = |what: &dyn std::fmt::Display| {
            StartError::Adoption(format!("{}: {what}", stored.dir.display()))
        };
        let id = yuxi_log::read_partition_metadata(&stored.dir).map_err(|error| about(&error))?;
        ids.insert(id.ok_or_else(|| about(&"partition.metadata names no topic id"))?);
        let epoch = node
            .replicas
            .latest_epoch(&stored.partition, &node.settings)
            .map_err(|error| about(&error))?;
        latest = latest.max(epoch);
        count = count.max(stored.partition.partition.value() + 1);
    }
    let id: TopicId = match ids.iter().copied().collect::<Vec<_>>()[..] {
        [id] => id,
        _ => {
            return Err(StartError::Adoption(format!(
                "the directories of '{name}' name different topic ids"
            )));
        }
    };
    Ok(NewTopic {
        name: name.to_owned(),
        partitions: count,
        replication_factor: 1,
        assignments: Vec::new(),
        configs: internal_topics::new_topic(name, &node.settings, true)
            .map_or_else(Vec::new, |topic| topic.configs),
        adopted: Some(Adopted {
            id,
            leader_epoch: LeaderEpoch::new(latest.value() + 1),
        }),
    })
}
