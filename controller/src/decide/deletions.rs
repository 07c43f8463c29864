//! What is remembered of deleted topics, until no broker holds replicas of them.
//!
//! A broker that is away while a topic is deleted comes back with its directories. That it does
//! not find the topic would not tell it that it was deleted: the metadata store may have been put
//! back from a backup, and then these may be the last copies. So the deletion of a topic writes
//! down, in the same transaction, who holds replicas. Only a broker that is named there removes
//! them, and it is named until it has said that it did, so that those which died before are told
//! again. A broker that is unregistered is named no more.

use std::collections::BTreeSet;

use yuxi_protocol::ids::{BrokerId, TopicId};

use super::ChangeSet;
use crate::{
    image::{ClusterImage, DeletionImage, TopicImage},
    keys::{DeletionValue, Key, print_value},
};

/// Adds to the deletion of a topic what is to be remembered of it.
pub(super) fn remember(image: &ClusterImage, topic: &TopicImage, deletion: &mut ChangeSet) {
    let brokers: BTreeSet<BrokerId> = topic
        .partitions()
        .flat_map(|(_, state)| state.replicas.iter().copied())
        .filter(|&broker| is_known(image, broker))
        .collect();
    if !brokers.is_empty() {
        let value = DeletionValue {
            topic: topic.name.to_string(),
            brokers: brokers.into_iter().collect(),
        };
        deletion.put(&Key::Deletion(topic.id), print_value(&value));
    }
}

/// A broker says that it holds nothing of deleted topics. What is known already is passed over.
pub(crate) fn confirm(
    image: &ClusterImage,
    broker: BrokerId,
    topics: &[TopicId],
) -> Vec<ChangeSet> {
    let topics: BTreeSet<TopicId> = topics.iter().copied().collect();
    topics
        .into_iter()
        .filter_map(|topic| without(topic, image.deletion(topic)?, |id| id == broker))
        .collect()
}

/// A broker is unregistered: nobody waits for it any more.
pub(super) fn forget_broker(image: &ClusterImage, broker: BrokerId) -> Vec<ChangeSet> {
    forget(image, |id| id == broker)
}

/// As [`forget_broker`], where that was interrupted.
pub(crate) fn forget_unknown_brokers(image: &ClusterImage) -> Vec<ChangeSet> {
    forget(image, |id| !is_known(image, id))
}

/// Whether the broker was ever let in and not unregistered since, or is about to be.
fn is_known(image: &ClusterImage, broker: BrokerId) -> bool {
    image.admission(broker).is_some() || image.registration(broker).is_some()
}

fn forget(image: &ClusterImage, is_gone: impl Fn(BrokerId) -> bool) -> Vec<ChangeSet> {
    image
        .deletions()
        .filter_map(|(topic, deletion)| without(topic, deletion, &is_gone))
        .collect()
}

/// Names some of the brokers no more. `None` if none of them is named.
fn without(
    topic: TopicId,
    deletion: &DeletionImage,
    is_gone: impl Fn(BrokerId) -> bool,
) -> Option<ChangeSet> {
    let named = &deletion.value.brokers;
    let brokers: Vec<BrokerId> = named.iter().copied().filter(|&id| !is_gone(id)).collect();
    if brokers.len() == named.len() {
        return None;
    }
    let key = Key::Deletion(topic);
    let mut changes = ChangeSet::default();
    changes.require_modified(&key, deletion.mod_revision);
    if brokers.is_empty() {
        changes.delete(&key);
    } else {
        let topic = deletion.value.topic.clone();
        changes.put(&key, print_value(&DeletionValue { topic, brokers }));
    }
    Some(changes)
}

#[cfg(test)]
#[path = "deletions_tests.rs"]
mod tests;
