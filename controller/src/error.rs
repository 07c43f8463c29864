//! What the controller answers when it refuses, in Kafka's words where Kafka
//! has them, with the one mapping to Kafka's error codes.

use serde::{Deserialize, Serialize};
use yuxi_protocol::{error_code::ErrorCode, ids::TopicId};

use crate::{keys::ValueError, store::StoreError};

/// Why the controller refused or could not do something.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControllerError {
    /// The name is taken.
    #[error("Topic '{0}' already exists.")]
    TopicAlreadyExists(String),
    /// The name is not legal, or collides with another.
    #[error("{0}")]
    InvalidTopic(String),
    /// The number of partitions is out of range.
    #[error("{0}")]
    InvalidPartitions(String),
    /// The replication factor can't be had.
    #[error("{0}")]
    InvalidReplicationFactor(String),
    /// The given assignment can't be had.
    #[error("{0}")]
    InvalidReplicaAssignment(String),
    /// The request contradicts itself.
    #[error("{0}")]
    InvalidRequest(String),
    /// A config is unknown or its value out of range.
    #[error("{0}")]
    InvalidConfig(String),
    /// The request asks for more than one call may.
    #[error("{0}")]
    PolicyViolation(String),
    /// No topic or partition of that name.
    #[error("This server does not host this topic-partition.")]
    UnknownTopicOrPartition,
    /// No topic of that name, where its configs were asked for.
    #[error("The topic '{0}' does not exist.")]
    UnknownTopic(String),
    /// No topic of that id.
    #[error("This server does not host topic ID {0}.")]
    UnknownTopicId(TopicId),
    /// `delete.topic.enable` is off where the deletion was asked for.
    #[error("delete.topic.enable=false on this broker")]
    TopicDeletionDisabled,
    /// No broker of that id.
    #[error("No broker with id {0} found.")]
    BrokerIdNotRegistered(i32),
    /// Another process is registered under the id.
    #[error(
        "Another process of the cluster has node.id={0}: give each broker and each yuxi-controller \
         its own."
    )]
    DuplicateBrokerRegistration(i32),
    /// The caller is an earlier incarnation of the broker.
    #[error("The broker epoch is not that of the current registration.")]
    StaleBrokerEpoch,
    /// The proposal is from an earlier leader epoch.
    #[error("The leader epoch in the request is older than the epoch of the partition.")]
    FencedLeaderEpoch,
    /// The proposal rests on an earlier partition epoch.
    #[error("The partition epoch in the request is not the current one.")]
    InvalidUpdateVersion,
    /// A feature can't have the level that was asked for.
    #[error("{0}")]
    InvalidFeatureUpdate(String),
    /// A proposed ISR member is not alive in the incarnation that the leader saw.
    #[error("The new ISR contains at least one ineligible replica.")]
    IneligibleReplica,
    /// The request came from something that is not a broker of this cluster.
    #[error("Only a broker of this cluster may ask for this.")]
    ClusterAuthorizationFailed,
    /// The controller could not be asked, or did not say what became of the request.
    #[error("The controller did not answer in time; what was asked for may have been done.")]
    TimedOut,
    /// The proposal was accepted, and with it another broker leads.
    #[error("The reassignment is complete and the partition has another leader.")]
    NewLeaderElected,
    /// There is no reassignment to cancel.
    #[error("No partition reassignment is in progress.")]
    NoReassignmentInProgress,
    /// The leader is the one that was asked for.
    #[error("Leader election not needed for topic partition.")]
    ElectionNotNeeded,
    /// The first replica is not in sync or not alive.
    #[error("The preferred leader was not available.")]
    PreferredLeaderNotAvailable,
    /// No replica can lead.
    #[error("Eligible topic partition leaders are not available.")]
    EligibleLeadersNotAvailable,
    /// A live broker can't be unregistered.
    #[error("Broker {0} is alive: stop it before it is unregistered.")]
    BrokerIsAlive(i32),
    /// This node is not the controller just now.
    #[error("This is not the correct controller for this cluster.")]
    NotController,
    /// The metadata store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A value in the metadata store can't be read.
    #[error(transparent)]
    Image(#[from] ValueError),
    /// The controller has stopped.
    #[error("The controller of this process has stopped.")]
    Stopped,
    /// All producer ids have been given out.
    #[error("No producer ids are left.")]
    ProducerIdsExhausted,
}

impl ControllerError {
    /// Whether this is a metadata store that is away and may come back by itself.
    pub fn is_store_unavailable(&self) -> bool {
        matches!(self, Self::Store(StoreError::Unavailable(_)))
    }

    /// The code that a client is answered with.
    pub fn error_code(&self) -> ErrorCode {
        match self {
            Self::TopicAlreadyExists(_) => ErrorCode::TopicAlreadyExists,
            Self::InvalidTopic(_) => ErrorCode::InvalidTopic,
            Self::InvalidPartitions(_) => ErrorCode::InvalidPartitions,
            Self::InvalidReplicationFactor(_) => ErrorCode::InvalidReplicationFactor,
            Self::InvalidReplicaAssignment(_) => ErrorCode::InvalidReplicaAssignment,
            Self::InvalidRequest(_) | Self::BrokerIsAlive(_) => ErrorCode::InvalidRequest,
            Self::InvalidConfig(_) => ErrorCode::InvalidConfig,
            Self::PolicyViolation(_) | Self::Store(StoreError::TooLarge { .. }) => {
                ErrorCode::PolicyViolation
            }
            Self::UnknownTopicOrPartition | Self::UnknownTopic(_) => {
                ErrorCode::UnknownTopicOrPartition
            }
            Self::UnknownTopicId(_) => ErrorCode::UnknownTopicId,
            Self::TopicDeletionDisabled => ErrorCode::TopicDeletionDisabled,
            Self::BrokerIdNotRegistered(_) => ErrorCode::BrokerIdNotRegistered,
            Self::DuplicateBrokerRegistration(_) => ErrorCode::DuplicateBrokerRegistration,
            Self::StaleBrokerEpoch => ErrorCode::StaleBrokerEpoch,
            Self::FencedLeaderEpoch => ErrorCode::FencedLeaderEpoch,
            Self::InvalidUpdateVersion | Self::InvalidFeatureUpdate(_) => {
                ErrorCode::InvalidUpdateVersion
            }
            Self::IneligibleReplica => ErrorCode::IneligibleReplica,
            Self::NewLeaderElected => ErrorCode::NewLeaderElected,
            Self::NoReassignmentInProgress => ErrorCode::NoReassignmentInProgress,
            Self::ElectionNotNeeded => ErrorCode::ElectionNotNeeded,
            Self::PreferredLeaderNotAvailable => ErrorCode::PreferredLeaderNotAvailable,
            Self::EligibleLeadersNotAvailable => ErrorCode::EligibleLeadersNotAvailable,
            // Clients try these again.
            Self::NotController | Self::Stopped => ErrorCode::NotController,
            Self::ClusterAuthorizationFailed => ErrorCode::ClusterAuthorizationFailed,
            Self::TimedOut
            | Self::Store(
                StoreError::Unavailable(_) | StoreError::Unknown(_) | StoreError::SessionLost,
            ) => ErrorCode::RequestTimedOut,
            Self::Store(StoreError::Damaged(_) | StoreError::Denied(_))
            | Self::Image(_)
            | Self::ProducerIdsExhausted => ErrorCode::UnknownServerError,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn what_is_wrong_with_the_store_is_said_once() {
        // A daemon prints an error and whatever has caused it.
        for error in [
            ControllerError::from(StoreError::Denied("no".to_owned())),
            ControllerError::from(ValueError::new("cluster", "no")),
        ] {
            let cause = error.source().map(ToString::to_string);
            assert_ne!(cause, Some(error.to_string()));
        }
    }
}
