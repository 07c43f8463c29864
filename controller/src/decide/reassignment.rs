//! Reassignments (KIP-455): the replicas of a partition become others while it serves.
//!
//! One is three states in the store and nothing beside it, so that a new controller goes
//! on where the last one stopped. *Started*: the new replicas are added to the old ones and
//! catch up. *Complete*, by [`super::leaders::next_state`] with whatever change brings the
//! last of the target into the ISR: the others leave. *Cancelled*: the added ones leave.
//! What always holds: nobody leaves an ISR or ELR that has no other member.

use serde::{Deserialize, Serialize};
use yuxi_protocol::ids::{BrokerId, PartitionId};

use super::{
    ChangeSet, PartitionEdits, allows_unclean_election,
    assignment::check_assignment,
    leaders::{Assignment, Circumstances, Target, next_state},
    min_isr,
    topics::Answers,
};
use crate::{
    ControllerError,
    image::{ClusterImage, TopicImage},
    keys::PartitionState,
    settings::ServerSettings,
};

/// Partitions whose replicas shall be others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reassignments {
    /// The partitions.
    pub partitions: Vec<Reassignment>,
    /// Whether a partition may come to have more or fewer replicas.
    pub allow_replication_factor_change: bool,
}

/// What shall become of the replicas of one partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reassignment {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: PartitionId,
    /// Its replicas, preferred leader first; `None` cancels the running reassignment.
    pub replicas: Option<Vec<BrokerId>>,
}

/// Starts, replaces and cancels reassignments, one answer for each partition.
pub fn reassign(
    image: &ClusterImage,
    settings: &ServerSettings,
    request: &Reassignments,
) -> (Vec<ChangeSet>, Answers<()>) {
    let mut edits = PartitionEdits::new(image);
    let answers = request
        .partitions
        .iter()
        .map(|reassignment| {
            let topic = image
                .topic(&reassignment.topic)
                .ok_or(ControllerError::UnknownTopicOrPartition)?;
            let state = edits
                .get(topic.id, reassignment.partition)
                .ok_or(ControllerError::UnknownTopicOrPartition)?
                .clone();
            let assignment = match &reassignment.replicas {
                Some(replicas) => {
                    let may_resize = request.allow_replication_factor_change;
                    check_target(image, &state, replicas, may_resize)?;
                    towards(&state, replicas)
                }
                None if state.is_reassigning() => backwards(&state),
                None => return Err(ControllerError::NoReassignmentInProgress),
            };
            if let Some(next) = reassigned(image, settings, topic, &state, assignment)? {
                edits.set(topic, reassignment.partition, next);
            }
            Ok(())
        })
        .collect();
    (edits.into_changes(), answers)
}

fn check_target(
    image: &ClusterImage,
    state: &PartitionState,
    replicas: &[BrokerId],
    may_resize: bool,
) -> Result<(), ControllerError> {
    check_assignment(image, replicas, None)?;
    let current = state.target_replicas().len();
    if current != replicas.len() && !may_resize {
        return Err(ControllerError::InvalidReplicationFactor(format!(
            "The replication factor is changed from {current} to {}",
            replicas.len()
        )));
    }
    Ok(())
}

/// What an earlier reassignment was still adding and this one does not want leaves at
/// once: it is neither where the partition was nor where it goes.
fn towards(state: &PartitionState, target: &[BrokerId]) -> Assignment {
    let original = state.original_replicas();
    let only = |these: &[BrokerId], those: &[BrokerId]| -> Vec<BrokerId> {
        let mut ids: Vec<_> = these.to_vec();
        ids.retain(|id| !those.contains(id));
        ids
    };
    let removing = only(&original, target);
    Assignment {
        replicas: [target, &removing].concat(),
        adding: only(target, &original),
        removing,
    }
}

fn backwards(state: &PartitionState) -> Assignment {
    Assignment {
        replicas: state.original_replicas(),
        adding: Vec::new(),
        removing: Vec::new(),
    }
}

fn reassigned(
    image: &ClusterImage,
    settings: &ServerSettings,
    topic: &TopicImage,
    state: &PartitionState,
    assignment: Assignment,
) -> Result<Option<PartitionState>, ControllerError> {
    let unclean_election = allows_unclean_election(image, settings, &topic.name);
    let mut complete = state.isr.iter().chain(&state.elr).peekable();
    let loses_all =
        complete.peek().is_some() && complete.all(|id| !assignment.replicas.contains(id));
    if loses_all && !unclean_election {
        return Err(ControllerError::InvalidReplicaAssignment(format!(
            "Unable to change the partition assignment of topic {} because it would require an \
             unclean leader election.",
            topic.name
        )));
    }
    let circumstances = Circumstances {
        is_active: &|id| image.is_active(id),
        is_alive: &|id| image.broker(id).is_some(),
        min_isr: min_isr(image, settings, &topic.name),
        unclean_election,
    };
    let target = Target {
        assignment: Some(assignment),
        ..Target::same(state)
    };
    Ok(next_state(state, target, &circumstances))
}

#[cfg(test)]
#[path = "reassignment_tests.rs"]
mod tests;
