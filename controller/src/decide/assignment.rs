//! Which replicas the partitions of a new or growing topic get: ours to choose, or the
//! caller's to say and ours to check. What comes out are first states, led by an active
//! broker each; nothing is written here.

use std::collections::BTreeMap;

use rand::{Rng as _, RngCore};
use yuxi_protocol::ids::{BrokerId, PartitionId};

use super::{
    leaders::first_state,
    placement::Ring,
    topics::{NewPartitions, NewTopic},
};
use crate::{
    ControllerError,
    image::{ClusterImage, TopicImage},
    keys::PartitionState,
    settings::ServerSettings,
};

/// The most partitions that one call may create.
pub const MAX_NEW_PARTITIONS: usize = 20_000;

/// Replicas by our choice.
pub(super) fn chosen(
    image: &ClusterImage,
    settings: &ServerSettings,
    ring: &Ring,
    topic: &NewTopic,
    budget: &mut usize,
    random: &mut dyn RngCore,
) -> Result<Vec<PartitionState>, ControllerError> {
    let replication_factor = match topic.replication_factor {
        -1 => settings.default_replication_factor,
        given => given,
    };
    let replicas = usize::try_from(replication_factor)
        .ok()
        .filter(|&replicas| replicas > 0)
        .ok_or_else(|| {
            ControllerError::InvalidReplicationFactor(
                "Replication factor must be larger than 0, or -1 to use the default value."
                    .to_owned(),
            )
        })?;
    let partitions = match topic.partitions {
        -1 => settings.num_partitions,
        given => given,
    };
    let partitions = usize::try_from(partitions)
        .ok()
        .filter(|&partitions| partitions > 0)
        .ok_or_else(|| {
            ControllerError::InvalidPartitions(
                "Number of partitions was set to an invalid non-positive value.".to_owned(),
            )
        })?;
    check_replication_factor(ring, replicas)?;
    spend(budget, partitions)?;
    let start = random.random_range(0..ring.active());
    (0..partitions)
        .map(|partition| first(image, ring.replicas(start, partition, replicas)))
        .collect()
}

/// Replicas by the caller's choice.
pub(super) fn assigned(
    image: &ClusterImage,
    topic: &NewTopic,
    budget: &mut usize,
) -> Result<Vec<PartitionState>, ControllerError> {
    let not_default = |what: &str| {
        ControllerError::InvalidRequest(format!(
            "A manual partition assignment was specified, but {what} was not set to -1."
        ))
    };
    if topic.replication_factor != -1 {
        return Err(not_default("replication factor"));
    }
    if topic.partitions != -1 {
        return Err(not_default("numPartitions"));
    }
    spend(budget, topic.assignments.len())?;
    let mut by_partition = BTreeMap::new();
    let mut replication_factor = None;
    for assignment in &topic.assignments {
        check_assignment(image, &assignment.replicas, replication_factor)?;
        replication_factor = Some(assignment.replicas.len());
        let partition = assignment.partition;
        let state = first_assigned(image, partition, assignment.replicas.clone())?;
        if by_partition.insert(partition, state).is_some() {
            return Err(ControllerError::InvalidReplicaAssignment(format!(
                "Found multiple manual partition assignments for partition {partition}"
            )));
        }
    }
    let consecutive = (0..).map(PartitionId::new);
    if !by_partition
        .keys()
        .copied()
        .zip(consecutive)
        .all(|(given, expected)| given == expected)
    {
        return Err(ControllerError::InvalidReplicaAssignment(
            "partitions should be a consecutive 0-based integer sequence".to_owned(),
        ));
    }
    Ok(by_partition.into_values().collect())
}

/// The states of the partitions that a topic is to get.
pub(super) fn additional(
    image: &ClusterImage,
    ring: &Ring,
    topic: &TopicImage,
    request: &NewPartitions,
    budget: &mut usize,
    random: &mut dyn RngCore,
) -> Result<Vec<PartitionState>, ControllerError> {
    let current = topic.partition_count();
    let wanted = usize::try_from(request.count).unwrap_or(0);
    if wanted == current {
        return Err(ControllerError::InvalidPartitions(format!(
            "Topic already has {current} partition(s)."
        )));
    }
    if wanted < current {
        return Err(ControllerError::InvalidPartitions(format!(
            "The topic {} currently has {current} partition(s); {} would not be an increase.",
            request.topic, request.count
        )));
    }
    let added = wanted - current;
    spend(budget, added)?;
    let replicas = topic.replication_factor();
    let Some(assignments) = &request.assignments else {
        check_replication_factor(ring, replicas)?;
        // Leaders go on in turn where the existing partitions left off.
        let start = topic
            .partition(PartitionId::new(0))
            .and_then(|state| ring.place_of(*state.replicas.first()?))
            .unwrap_or_else(|| random.random_range(0..ring.active()));
        return (current..wanted)
            .map(|partition| first(image, ring.replicas(start, partition, replicas)))
            .collect();
    };
    if assignments.len() != added {
        return Err(ControllerError::InvalidReplicaAssignment(format!(
            "Attempted to add {added} additional partition(s), but only {} assignment(s) were \
             specified.",
            assignments.len()
        )));
    }
    assignments
        .iter()
        .zip(current..)
        .map(|(assignment, partition)| {
            check_assignment(image, assignment, Some(replicas))?;
            first_assigned(
                image,
                PartitionId::new(partition as i32),
                assignment.clone(),
            )
        })
        .collect()
}

fn first(image: &ClusterImage, replicas: Vec<BrokerId>) -> Result<PartitionState, ControllerError> {
    let count = replicas.len();
    first_state(replicas, &|id| image.is_active(id)).ok_or_else(|| nobody_active(count))
}

fn first_assigned(
    image: &ClusterImage,
    partition: PartitionId,
    replicas: Vec<BrokerId>,
) -> Result<PartitionState, ControllerError> {
    first_state(replicas, &|id| image.is_active(id)).ok_or_else(|| {
        ControllerError::InvalidReplicaAssignment(format!(
            "All brokers specified in the manual partition assignment for partition {partition} \
             are fenced or in controlled shutdown."
        ))
    })
}

fn check_replication_factor(ring: &Ring, replicas: usize) -> Result<(), ControllerError> {
    match ring.len() {
        _ if ring.active() == 0 => Err(nobody_active(replicas)),
        brokers if replicas > brokers => Err(ControllerError::InvalidReplicationFactor(format!(
            "Unable to replicate the partition {replicas} time(s): The target replication \
                 factor of {replicas} cannot be reached because only {brokers} broker(s) are \
                 registered."
        ))),
        _ => Ok(()),
    }
}

fn nobody_active(replicas: usize) -> ControllerError {
    ControllerError::InvalidReplicationFactor(format!(
        "Unable to replicate the partition {replicas} time(s): All brokers are currently fenced \
         or in controlled shutdown."
    ))
}

/// Whether replicas can be as the caller says: known brokers, alive or not, each once.
pub(super) fn check_assignment(
    image: &ClusterImage,
    replicas: &[BrokerId],
    replication_factor: Option<usize>,
) -> Result<(), ControllerError> {
    let invalid = |reason: String| {
        Err(ControllerError::InvalidReplicaAssignment(format!(
            "The manual partition assignment includes {reason}"
        )))
    };
    if replicas.is_empty() {
        return invalid("an empty replica list.".to_owned());
    }
    for (at, &id) in replicas.iter().enumerate() {
        if image.registration(id).is_none() && image.admission(id).is_none() {
            return invalid(format!("broker {id}, but no such broker is registered."));
        }
        if replicas[..at].contains(&id) {
            return invalid(format!("the broker {id} more than once."));
        }
    }
    match replication_factor {
        Some(expected) if expected != replicas.len() => invalid(format!(
            "a partition with {} replica(s), but this is not consistent with previous \
             partitions, which have {expected} replica(s).",
            replicas.len()
        )),
        _ => Ok(()),
    }
}

fn spend(budget: &mut usize, partitions: usize) -> Result<(), ControllerError> {
    *budget = budget.checked_sub(partitions).ok_or_else(|| {
        ControllerError::PolicyViolation(format!(
            "Excessively large number of partitions per request: at most {MAX_NEW_PARTITIONS} \
             can be created in one."
        ))
    })?;
    Ok(())
}
