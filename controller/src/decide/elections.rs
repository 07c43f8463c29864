//! Elections that somebody asks for: an operator, of the preferred or of any replica
//! (KIP-460), and the cluster's own check that leaders are where they should be.
//!
//! Invariants: a preferred leader is elected only from the ISR, without loss; outside
//! ISR and ELR only an operator's word elects, and only where there is no leader.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use yuxi_protocol::ids::{BrokerId, PartitionId};

use super::{
    ChangeSet, PartitionEdits,
    leaders::{Circumstances, Target, next_state},
    min_isr,
};
use crate::{ControllerError, image::ClusterImage, keys::PartitionState, settings::ServerSettings};

/// The most leaders that one check moves, so that clients do not all look for new ones at
/// the same time.
pub const MAX_ELECTIONS_PER_CHECK: usize = 1000;

/// Which replica shall lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ElectionKind {
    /// The first of the assignment.
    Preferred,
    /// Any that lives, where there is none, though records may be lost.
    Unclean,
}

impl ElectionKind {
    /// What the number in a request means.
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            0 => Some(Self::Preferred),
            1 => Some(Self::Unclean),
            _ => None,
        }
    }
}

/// Partitions that shall elect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Elections {
    /// Whom.
    pub kind: ElectionKind,
    /// The partitions; `None` for all of the cluster.
    pub partitions: Option<Vec<(String, PartitionId)>>,
}

/// What became of each election.
pub type ElectionAnswers = Vec<(String, PartitionId, Result<(), ControllerError>)>;

/// Holds the elections, one answer for each partition. Where all of the cluster was
/// named, those that needed none are left out.
pub fn elect(
    image: &ClusterImage,
    settings: &ServerSettings,
    elections: &Elections,
) -> (Vec<ChangeSet>, ElectionAnswers) {
    let mut edits = PartitionEdits::new(image);
    let kind = elections.kind;
    let answers = match &elections.partitions {
        Some(partitions) => partitions
            .iter()
            .map(|(topic, partition)| {
                let elected = hold(image, settings, &mut edits, kind, topic, *partition);
                (topic.clone(), *partition, elected)
            })
            .collect(),
        None => image
            .topics()
            .flat_map(|topic| topic.partitions().map(|(id, _)| (&topic.name, id)))
            .filter_map(
                |(topic, id)| match hold(image, settings, &mut edits, kind, topic, id) {
                    Err(ControllerError::ElectionNotNeeded) => None,
                    elected => Some((topic.to_string(), id, elected)),
                },
            )
            .collect(),
    };
    (edits.into_changes(), answers)
}

/// Gives the leaders back to their preferred replicas, where a broker leads so few of the
/// partitions that it should that `leader.imbalance.per.broker.percentage` is passed.
/// At most [`MAX_ELECTIONS_PER_CHECK`]; the second value says whether there may be more.
pub fn rebalance(image: &ClusterImage, settings: &ServerSettings) -> (Vec<ChangeSet>, bool) {
    let mut brokers: BTreeMap<BrokerId, Preferences<'_>> = BTreeMap::new();
    for topic in image.topics() {
        for (partition, state) in topic.partitions() {
            let Some(&preferred) = state.replicas.first() else {
                continue;
            };
            let preferences = brokers.entry(preferred).or_default();
            preferences.partitions += 1;
            if state.leader != preferred {
                preferences.led_by_others.push((&*topic.name, partition));
            }
        }
    }
    let allowed = usize::try_from(settings.leader_imbalance_per_broker_percentage).unwrap_or(0);
    let imbalanced = brokers.into_iter().filter(|(broker, preferences)| {
        image.is_active(*broker)
            && preferences.led_by_others.len() * 100 > preferences.partitions * allowed
    });
    let mut edits = PartitionEdits::new(image);
    let elected = imbalanced
        .flat_map(|(_, preferences)| preferences.led_by_others)
        .filter(|&(topic, partition)| {
            let kind = ElectionKind::Preferred;
            hold(image, settings, &mut edits, kind, topic, partition).is_ok()
        })
        .take(MAX_ELECTIONS_PER_CHECK)
        .count();
    (edits.into_changes(), elected == MAX_ELECTIONS_PER_CHECK)
}

/// The partitions that one broker should lead.
#[derive(Default)]
struct Preferences<'a> {
    partitions: usize,
    led_by_others: Vec<(&'a str, PartitionId)>,
}

fn hold<'a>(
    image: &'a ClusterImage,
    settings: &ServerSettings,
    edits: &mut PartitionEdits<'a>,
    kind: ElectionKind,
    topic: &str,
    partition: PartitionId,
) -> Result<(), ControllerError> {
    let topic = image
        .topic(topic)
        .ok_or(ControllerError::UnknownTopicOrPartition)?;
    let state = edits
        .get(topic.id, partition)
        .ok_or(ControllerError::UnknownTopicOrPartition)?;
    let preferred = state.replicas.first().copied().unwrap_or(BrokerId::NONE);
    let suits = |state: &PartitionState| match kind {
        ElectionKind::Preferred => state.leader == preferred,
        ElectionKind::Unclean => state.leader != BrokerId::NONE,
    };
    if suits(state) {
        return Err(ControllerError::ElectionNotNeeded);
    }
    let circumstances = Circumstances {
        is_active: &|id| image.is_active(id),
        is_alive: &|id| image.broker(id).is_some(),
        min_isr: min_isr(image, settings, &topic.name),
        unclean_election: kind == ElectionKind::Unclean,
    };
    let target = Target {
        prefer_first: kind == ElectionKind::Preferred,
        ..Target::same(state)
    };
    match next_state(state, target, &circumstances) {
        Some(next) if suits(&next) => {
            edits.set(topic, partition, next);
            Ok(())
        }
        _ => Err(match kind {
            ElectionKind::Preferred => ControllerError::PreferredLeaderNotAvailable,
            ElectionKind::Unclean => ControllerError::EligibleLeadersNotAvailable,
        }),
    }
}

#[cfg(test)]
#[path = "elections_tests.rs"]
mod tests;
