//! The topics that brokers keep for themselves.

use yuxi_controller::{decide::topics::NewTopic, image::ClusterImage, settings::ServerSettings};
use yuxi_coordinator::groups::partition_for;

/// Where groups commit their offsets.
pub(crate) const CONSUMER_OFFSETS: &str = "__consumer_offsets";
/// Where the coordinators of transactions keep what they know.
pub(crate) const TRANSACTION_STATE: &str = "__transaction_state";

/// Whether clients see the topic marked as internal and may not write it.
pub(crate) fn is_internal(topic: &str) -> bool {
    matches!(topic, CONSUMER_OFFSETS | TRANSACTION_STATE)
}

/// The partition of such a topic that holds a group or a transactional id, once the topic is
/// there. Its leader is the coordinator.
pub(crate) fn partition_of(image: &ClusterImage, topic: &str, key: &str) -> Option<i32> {
    let count = image.topic(topic)?.partition_count();
    Some(partition_for(key, i32::try_from(count).unwrap_or(i32::MAX)))
}

/// How such a topic is made on its first use; `None` for one that is not of these. A broker
/// that is a cluster by itself has one replica of it.
pub(crate) fn new_topic(
    topic: &str,
    settings: &ServerSettings,
    is_alone: bool,
) -> Option<NewTopic> {
    let config = |name: &str, value: String| (name.to_owned(), Some(value));
    let (partitions, replication_factor, configs) = match topic {
        CONSUMER_OFFSETS => (
            settings.offsets_topic_num_partitions,
            settings.offsets_topic_replication_factor,
            vec![
                config("cleanup.policy", "compact".to_owned()),
                config("compression.type", "producer".to_owned()),
                config(
                    "segment.bytes",
                    settings.offsets_topic_segment_bytes.to_string(),
                ),
            ],
        ),
        TRANSACTION_STATE => (
            settings.transaction_state_log_num_partitions,
            settings.transaction_state_log_replication_factor,
            vec![
                config("cleanup.policy", "compact".to_owned()),
                config("compression.type", "uncompressed".to_owned()),
                config(
                    "min.insync.replicas",
                    settings.transaction_state_log_min_isr.to_string(),
                ),
                config(
                    "segment.bytes",
                    settings.transaction_state_log_segment_bytes.to_string(),
                ),
                // An outcome that was told must not be forgotten.
                config("unclean.leader.election.enable", "false".to_owned()),
            ],
        ),
        _ => return None,
    };
    Some(NewTopic {
        adopted: None,
        name: topic.to_owned(),
        partitions,
        replication_factor: if is_alone { 1 } else { replication_factor },
        assignments: Vec::new(),
        configs,
    })
}
