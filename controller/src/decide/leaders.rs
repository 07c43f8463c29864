//! How one partition goes from one state to the next: who leads, who is in
//! sync, who stays eligible, and when a reassignment is complete. Every change of a
//! partition's state passes through [`next_state`].
//!
//! Invariants: a leader comes from ISR ∩ alive in the order of the assignment, then
//! from the eligible leader replicas, else there is none (I9); at
//! `min.insync.replicas` or above nobody is eligible outside the ISR; a new leader, a
//! new incarnation of the old one, or one that lost a replica, is a new leader epoch
//! (I14); every change is a new partition epoch (I5); a replica that lost its data
//! leads by itself only where it is the only one.

use yuxi_protocol::ids::{BrokerId, LeaderEpoch};

use crate::keys::{LeaderRecovery, PartitionState};

/// What a choice of leader rests on, besides the partition's own state.
pub struct Circumstances<'a> {
    /// Whether a broker may lead: alive, let in, not shutting down.
    pub is_active: &'a dyn Fn(BrokerId) -> bool,
    /// Whether a broker may go on leading where no active one could take over: alive and
    /// let in, be it shutting down.
    pub is_alive: &'a dyn Fn(BrokerId) -> bool,
    /// `min.insync.replicas` as configured; a partition with fewer replicas needs only
    /// those.
    pub min_isr: usize,
    /// `unclean.leader.election.enable`, or an operator's word.
    pub unclean_election: bool,
}

/// What is to become of a partition.
pub struct Target<'a> {
    /// The replicas that stay or come in sync.
    pub isr: Vec<BrokerId>,
    /// The replicas, if they are to be others.
    pub assignment: Option<Assignment>,
    /// What each replica lost when it came back; who lost anything is not eligible.
    pub loss: &'a dyn Fn(BrokerId) -> Loss,
    /// Whether the leader is another process now, which must not go on in the
    /// same epoch: its high watermark starts over.
    pub leader_restarted: bool,
    /// Whether the leader has still to recover.
    pub leader_recovery: LeaderRecovery,
    /// Whether the first replica shall lead, where it can do so without loss.
    pub prefer_first: bool,
}

/// What a replica that comes back may lack of what it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    Nothing,
    /// The end of its logs, which was not yet on disk when the power failed.
    Tail,
    /// Anything up to all of it: another or a damaged disk.
    Data,
}

/// The replicas of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// All of them, in order of preference.
    pub replicas: Vec<BrokerId>,
    /// Those that a reassignment adds.
    pub adding: Vec<BrokerId>,
    /// Those that leave at its end.
    pub removing: Vec<BrokerId>,
}

impl Target<'_> {
    /// The ISR shall be `isr`; nothing else happened.
    pub fn isr(isr: Vec<BrokerId>, leader_recovery: LeaderRecovery) -> Self {
        Self {
            isr,
            assignment: None,
            loss: &|_| Loss::Nothing,
            leader_restarted: false,
            leader_recovery,
            prefer_first: false,
        }
    }

    /// The partition stays as it is, as far as the circumstances allow.
    pub fn same(state: &PartitionState) -> Self {
        Self::isr(state.isr.clone(), state.leader_recovery)
    }
}

/// The state that follows `old`; `None` if it is the same.
pub fn next_state(
    old: &PartitionState,
    target: Target<'_>,
    circumstances: &Circumstances<'_>,
) -> Option<PartitionState> {
    let mut next = old.clone();
    next.isr = target.isr;
    next.leader_recovery = target.leader_recovery;
    if let Some(assignment) = target.assignment {
        next.replicas = assignment.replicas;
        next.adding_replicas = assignment.adding;
        next.removing_replicas = assignment.removing;
        let replicas = &next.replicas;
        next.isr.retain(|id| replicas.contains(id));
    }
    complete_reassignment(&mut next, circumstances);
    let min_isr = circumstances.min_isr.clamp(1, next.replicas.len().max(1));
    next.elr = eligible(old, &next, target.loss, min_isr);
    next.lost_data = without_data(old, &next, target.loss);
    let (leader_restarted, prefer_first) = (target.leader_restarted, target.prefer_first);
    match elect(old, &next, leader_restarted, prefer_first, circumstances) {
        Election::InSync(leader) => next.leader = leader,
        Election::Eligible(leader) => {
            next.leader = leader;
            next.isr = vec![leader];
            next.elr.retain(|&replica| replica != leader);
            if next.isr.len() >= min_isr {
                // From now on it can acknowledge records that the others don't have.
                next.elr.clear();
            }
        }
        Election::Unclean(leader) => {
            next.leader = leader;
            next.isr = vec![leader];
            next.elr.clear();
            next.lost_data.retain(|&replica| replica != leader);
            next.leader_recovery = LeaderRecovery::Recovering;
        }
        Election::Nobody => next.leader = BrokerId::NONE,
    }
    next.last_known_leader = match next.leader {
        BrokerId::NONE => last_leader(old).filter(|leader| next.replicas.contains(leader)),
        _ => None,
    };
    // One that was removed may still fetch from the leader; in a new epoch it is known
    // not to belong.
    let lost_a_replica = old.replicas.iter().any(|id| !next.replicas.contains(id));
    if next.leader != old.leader || leader_restarted || lost_a_replica {
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
        adding_replicas: Vec::new(),
        removing_replicas: Vec::new(),
        lost_data: Vec::new(),
    })
}

enum Election {
    InSync(BrokerId),
    Eligible(BrokerId),
    /// Records may be lost.
    Unclean(BrokerId),
    Nobody,
}

/// Ends a running reassignment once every replica that it keeps or adds is in sync, and
/// one of them can lead.
fn complete_reassignment(next: &mut PartitionState, circumstances: &Circumstances<'_>) {
    if !next.is_reassigning() {
        return;
    }
    let target = next.target_replicas();
    let in_sync = target.iter().all(|id| next.isr.contains(id));
    let can_lead = target.iter().any(|&id| {
        (circumstances.is_active)(id) || (id == next.leader && (circumstances.is_alive)(id))
    });
    if in_sync && can_lead {
        next.isr.retain(|id| target.contains(id));
        next.replicas = target;
        next.adding_replicas.clear();
        next.removing_replicas.clear();
    }
}

fn elect(
    old: &PartitionState,
    next: &PartitionState,
    leader_restarted: bool,
    prefer_first: bool,
    circumstances: &Circumstances<'_>,
) -> Election {
    let is_active = circumstances.is_active;
    let first = |suits: &dyn Fn(BrokerId) -> bool| {
        let mut replicas = next.replicas.iter().copied();
        replicas.find(|&id| suits(id) && is_active(id))
    };
    let may_go_on = !leader_restarted && next.isr.contains(&old.leader);
    let first_in_sync = first(&|id| next.isr.contains(&id));
    let gives_way = prefer_first && first_in_sync == next.replicas.first().copied();
    if may_go_on && is_active(old.leader) && !gives_way {
        return Election::InSync(old.leader);
    }
    if let Some(leader) = first_in_sync {
        return Election::InSync(leader);
    }
    if may_go_on && (circumstances.is_alive)(old.leader) {
        return Election::InSync(old.leader);
    }
    let last = last_leader(old).filter(|&id| next.replicas.contains(&id) && is_active(id));
    if next.isr.is_empty() {
        if let Some(leader) = first(&|id| next.elr.contains(&id)) {
            return Election::Eligible(leader);
        }
        // Every replica that had all records has come back and may have lost the end of
        // them: the last leader is the best there is (KIP-966's balanced recovery). Not
        // so if it lost more than that: the others would throw away what they have.
        if let Some(leader) = last
            && next.elr.is_empty()
            && (!next.lost_data.contains(&leader) || next.replicas.len() == 1)
        {
            return Election::Unclean(leader);
        }
    }
    if circumstances.unclean_election {
        let has_data =
            |id: BrokerId| !next.lost_data.contains(&id) && !next.adding_replicas.contains(&id);
        if let Some(leader) = last
            .filter(|&id| has_data(id))
            .or_else(|| first(&has_data))
            .or_else(|| first(&|_| true))
        {
            return Election::Unclean(leader);
        }
    }
    Election::Nobody
}

/// Below min ISR no record could be acknowledged without those that leave, so they
/// keep having them all.
fn eligible(
    old: &PartitionState,
    next: &PartitionState,
    loss: &dyn Fn(BrokerId) -> Loss,
    min_isr: usize,
) -> Vec<BrokerId> {
    if next.isr.len() >= min_isr {
        return Vec::new();
    }
    let had_all = |id: &&BrokerId| old.isr.contains(id) || old.elr.contains(id);
    next.replicas
        .iter()
        .filter(had_all)
        .filter(|id| !next.isr.contains(id) && loss(**id) == Loss::Nothing)
        .copied()
        .collect()
}

fn without_data(
    old: &PartitionState,
    next: &PartitionState,
    loss: &dyn Fn(BrokerId) -> Loss,
) -> Vec<BrokerId> {
    next.replicas
        .iter()
        .filter(|id| old.lost_data.contains(id) || loss(**id) == Loss::Data)
        .filter(|id| !next.isr.contains(id))
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
