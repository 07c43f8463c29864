//! ISR proposals: a leader says who is in sync with it, the controller checks
//! that it is still the leader, that nothing changed in between and that each member is
//! alive in the incarnation that the leader saw, and writes it (I5, I7; KIP-497, 841, 903).

use serde::{Deserialize, Serialize};
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionId, TopicId};

use super::{
    ChangeSet, PartitionEdits, is_current,
    leaders::{Circumstances, Target, next_state},
    min_isr,
};
use crate::{
    ControllerError,
    image::ClusterImage,
    keys::{LeaderRecovery, PartitionState},
    settings::ServerSettings,
};

/// What one broker proposes for the partitions that it leads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IsrProposals {
    /// The leader.
    pub broker: BrokerId,
    /// Its broker epoch.
    pub broker_epoch: BrokerEpoch,
    /// The proposals.
    pub partitions: Vec<IsrProposal>,
}

/// What a leader proposes for one partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IsrProposal {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The epoch that it leads in.
    pub leader_epoch: LeaderEpoch,
    /// The partition epoch that the proposal rests on.
    pub partition_epoch: i32,
    /// The replicas that are in sync, each with the broker epoch that it fetched under;
    /// `None` where the leader doesn't know it.
    pub isr: Vec<(BrokerId, Option<BrokerEpoch>)>,
    /// Whether the leader has still to recover from an unclean election.
    pub leader_recovery: LeaderRecovery,
}

/// Each proposal's new state, or why it is refused, in the order of the proposals.
pub type IsrAnswers = Vec<Result<PartitionState, ControllerError>>;

/// Decides on the proposals of one broker. One that completes a reassignment and takes
/// the leadership from it is made and answered with
/// [`ControllerError::NewLeaderElected`], as in Kafka.
pub fn alter_partitions(
    image: &ClusterImage,
    settings: &ServerSettings,
    proposals: &IsrProposals,
) -> (Vec<ChangeSet>, IsrAnswers) {
    if !is_current(image, proposals.broker, proposals.broker_epoch) {
        let refused = vec![Err(ControllerError::StaleBrokerEpoch); proposals.partitions.len()];
        return (Vec::new(), refused);
    }
    let mut edits = PartitionEdits::new(image);
    let answers = proposals
        .partitions
        .iter()
        .map(|proposal| alter(image, settings, &mut edits, proposals.broker, proposal))
        .collect();
    (edits.into_changes(), answers)
}

fn alter<'a>(
    image: &'a ClusterImage,
    settings: &ServerSettings,
    edits: &mut PartitionEdits<'a>,
    broker: BrokerId,
    proposal: &IsrProposal,
) -> Result<PartitionState, ControllerError> {
    let topic = image
        .topic_by_id(proposal.topic)
        .ok_or(ControllerError::UnknownTopicId(proposal.topic))?;
    let old = edits
        .get(proposal.topic, proposal.partition)
        .ok_or(ControllerError::UnknownTopicOrPartition)?
        .clone();
    check(image, &old, broker, proposal)?;
    let isr = proposal.isr.iter().map(|&(id, _)| id).collect();
    let circumstances = Circumstances {
        is_active: &|id| image.is_active(id),
        is_alive: &|id| image.broker(id).is_some(),
        min_isr: min_isr(image, settings, &topic.name),
        // Who proposes is alive and in sync with itself.
        unclean_election: false,
    };
    let target = Target::isr(isr, proposal.leader_recovery);
    let Some(next) = next_state(&old, target, &circumstances) else {
        return Ok(old);
    };
    edits.set(topic, proposal.partition, next.clone());
    if next.leader == broker {
        Ok(next)
    } else {
        // It completes a reassignment that takes the leader away. The change is made, and
        // the proposer learns the rest from the image.
        Err(ControllerError::NewLeaderElected)
    }
}

fn check(
    image: &ClusterImage,
    state: &PartitionState,
    broker: BrokerId,
    proposal: &IsrProposal,
) -> Result<(), ControllerError> {
    let invalid = |reason: &str| Err(ControllerError::InvalidRequest(reason.to_owned()));
    if proposal.leader_epoch > state.leader_epoch
        || proposal.partition_epoch > state.partition_epoch
    {
        // The leader knows of a later state than this controller, which must be an old one.
        return Err(ControllerError::NotController);
    }
    if proposal.leader_epoch < state.leader_epoch {
        return Err(ControllerError::FencedLeaderEpoch);
    }
    if broker != state.leader {
        return invalid("Only the leader of a partition can change its ISR.");
    }
    if proposal.partition_epoch < state.partition_epoch {
        return Err(ControllerError::InvalidUpdateVersion);
    }
    let members = &proposal.isr;
    for (at, (id, _)) in members.iter().enumerate() {
        if !state.replicas.contains(id) || members[..at].iter().any(|(other, _)| other == id) {
            return invalid("The ISR must consist of different replicas of the partition.");
        }
    }
    if !members.iter().any(|&(id, _)| id == broker) {
        return invalid("The ISR must include the leader.");
    }
    if proposal.leader_recovery == LeaderRecovery::Recovering {
        if members.len() > 1 {
            return invalid("A leader that is still recovering must be the only ISR member.");
        }
        if state.leader_recovery == LeaderRecovery::Recovered {
            return invalid("A leader that has recovered can't go back to recovering.");
        }
    }
    let ineligible = |&(id, epoch): &(BrokerId, Option<BrokerEpoch>)| {
        !image.is_active(id) || epoch.is_some_and(|epoch| !is_current(image, id, epoch))
    };
    // A leader that is shutting down and could not hand over goes on leading.
    if members
        .iter()
        .any(|member| member.0 != broker && ineligible(member))
    {
        return Err(ControllerError::IneligibleReplica);
    }
    Ok(())
}

#[cfg(test)]
#[path = "isr_tests.rs"]
mod tests;
