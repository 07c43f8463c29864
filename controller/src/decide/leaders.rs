//! How one partition goes from one state to the next: who leads, who is in
//! sync, who stays eligible. Every change of a partition's state passes through
//! [`next_state`].
//!
//! Invariants: a leader comes from ISR ∩ alive in the order of the assignment, then
//! from the eligible leader replicas, else there is none (I9); at
//! `min.insync.replicas` or above nobody is eligible outside the ISR; a new leader, or
//! a new incarnation of the old one, is a new leader epoch (I14); every change is a
//! new partition epoch (I5).

use yuxi_protocol::ids::{BrokerId, LeaderEpoch};

use crate::keys::{LeaderRecovery, PartitionState};

/// What a choice of leader rests on, besides the partition's own state.
pub struct Circumstances<'a> {
    /// Whether a broker may lead: alive, let in, not shutting down.
    pub is_active: &'a dyn Fn(BrokerId) -> bool,
    /// Whether a broker may go on leading where no active one could take over: alive and
    /// let in, be it shutting down.
    pub is_alive: &'a dyn Fn(BrokerId) -> bool,
    /// `min.insync.replicas`, at most the number of replicas.
    pub min_isr: usize,
    /// `unclean.leader.election.enable`.
    pub unclean_election: bool,
}

/// What is to become of a partition.
pub struct Target<'a> {
    /// The replicas that stay or come in sync.
    pub isr: Vec<BrokerId>,
    /// Replicas that may have lost what they had: they are not eligible either.
    pub lost: &'a dyn Fn(BrokerId) -> bool,
    /// Whether the leader is another process now, which must not go on in the
    /// same epoch: its high watermark starts over.
    pub leader_restarted: bool,
    /// Whether the leader has still to recover.
    pub leader_recovery: LeaderRecovery,
}

impl Target<'_> {
    /// The ISR shall be `isr`; nothing else happened.
    pub fn isr(isr: Vec<BrokerId>, leader_recovery: LeaderRecovery) -> Self {
        Self {
            isr,
            lost: &|_| false,
            leader_restarted: false,
            leader_recovery,
        }
    }
}

/// The state that follows `old`; `None` if it is the same.
pub fn next_state(
    old: &PartitionState,
    target: Target<'_>,
    circumstances: &Circumstances<'_>,
) -> Option<PartitionState> {
    let mut next = PartitionState {
        elr: eligible(old, &target, circumstances.min_isr),
        isr: target.isr,
        leader_recovery: target.leader_recovery,
        ..old.clone()
    };
    match elect(old, &next, target.leader_restarted, circumstances) {
        Election::InSync(leader) => next.leader = leader,
        Election::Eligible(leader) => {
            next.leader = leader;
            next.isr = vec![leader];
            next.elr.retain(|&replica| replica != leader);
            if next.isr.len() >= circumstances.min_isr {
                // From now on it can acknowledge records that the others don't have.
                next.elr.clear();
            }
        }
        Election::Unclean(leader) => {
            next.leader = leader;
            next.isr = vec![leader];
            next.elr.clear();
            next.leader_recovery = LeaderRecovery::Recovering;
        }
        Election::Nobody => next.leader = BrokerId::NONE,
    }
    next.last_known_leader = match next.leader {
        BrokerId::NONE => last_leader(old),
        _ => None,
    };
    if next.leader != old.leader || target.leader_restarted {
        next.leader_epoch = LeaderEpoch::new(old.leader_epoch.value() + 1);
    }
    if next == *old {
        return None;
    }
    next.partition_epoch += 1;
    assert!(
        next.leader == BrokerId::NONE || next.isr.contains(&next.leader),
        "a leader is in sync with itself: {next:?}"
    );
    Some(next)
}

/// The first state of a partition; `None` if no replica may lead.
pub fn first_state(
    replicas: Vec<BrokerId>,
    is_active: &dyn Fn(BrokerId) -> bool,
) -> Option<PartitionState> {
    let isr: Vec<BrokerId> = replicas
        .iter()
        .copied()
        .filter(|&id| is_active(id))
        .collect();
    Some(PartitionState {
        leader: *isr.first()?,
        replicas,
        isr,
        elr: Vec::new(),
        leader_epoch: LeaderEpoch::new(0),
        partition_epoch: 0,
        leader_recovery: LeaderRecovery::Recovered,
        last_known_leader: None,
    })
}

enum Election {
    InSync(BrokerId),
    Eligible(BrokerId),
    /// Records may be lost.
    Unclean(BrokerId),
    Nobody,
}

fn elect(
    old: &PartitionState,
    next: &PartitionState,
    leader_restarted: bool,
    circumstances: &Circumstances<'_>,
) -> Election {
    let is_active = circumstances.is_active;
    let first = |of: &[BrokerId]| {
        let mut replicas = next.replicas.iter().copied();
        replicas.find(|id| of.contains(id) && is_active(*id))
    };
    let may_go_on = !leader_restarted && next.isr.contains(&old.leader);
    if may_go_on && is_active(old.leader) {
        return Election::InSync(old.leader);
    }
    if let Some(leader) = first(&next.isr) {
        return Election::InSync(leader);
    }
    if may_go_on && (circumstances.is_alive)(old.leader) {
        return Election::InSync(old.leader);
    }
    if next.isr.is_empty() {
        if let Some(leader) = first(&next.elr) {
            return Election::Eligible(leader);
        }
        // Every replica that had all records may have lost some: the last leader is
        // the best there is (KIP-966's balanced recovery).
        if let Some(leader) = last_leader(old)
            && next.elr.is_empty()
            && is_active(leader)
            && next.replicas.contains(&leader)
        {
            return Election::Unclean(leader);
        }
    }
    if circumstances.unclean_election
        && let Some(leader) = first(&next.replicas)
    {
        return Election::Unclean(leader);
    }
    Election::Nobody
}

/// Below min ISR no record could be acknowledged without those that leave, so they
/// keep having them all.
fn eligible(old: &PartitionState, target: &Target<'_>, min_isr: usize) -> Vec<BrokerId> {
    if target.isr.len() >= min_isr {
        return Vec::new();
    }
    let had_all = |id: &&BrokerId| old.isr.contains(id) || old.elr.contains(id);
    old.replicas
        .iter()
        .filter(had_all)
        .filter(|id| !target.isr.contains(id) && !(target.lost)(**id))
        .copied()
        .collect()
}

fn last_leader(old: &PartitionState) -> Option<BrokerId> {
    match old.leader {
        BrokerId::NONE => old.last_known_leader,
        leader => Some(leader),
    }
}

#[cfg(test)]
#[path = "leaders_tests.rs"]
mod tests;
