//! One member's next step towards its target assignment.
//!
//! A pure function of what the member has, what it is to have, and what it says it still
//! reads. Invariant: a partition is given to a member only if nobody has it, the member
//! itself included, and a member keeps what it is to give up until it has said that it
//! did; so a partition has one owner at any time. The states:
//!
//! ```text
//!                 must give up                  gave up
//!   Stable ──────────────────► UnrevokedPartitions ───┬──► Stable
//!     ▲ └──── others have not given up yet ──┐        │
//!     └──────── all is there ─── UnreleasedPartitions ◄┘
//! ```

use super::{Current, MemberState, Partitions};

/// What a member is to have, and what stands in the way.
pub(super) struct Goal<'a> {
    /// The epoch of the target assignment.
    pub(super) epoch: i32,
    /// What the member is to have.
    pub(super) target: &'a Partitions,
    /// What the member says it reads; none if it did not say.
    pub(super) owned: Option<&'a Partitions>,
    /// Whether nobody has a partition.
    pub(super) is_free: &'a dyn Fn(yuxi_protocol::ids::TopicId, i32) -> bool,
}

/// Where the member stands after its next step. It may be where it stood.
pub(super) fn next_step(current: &Current, goal: &Goal<'_>) -> Current {
    match current.state {
        MemberState::Stable if current.epoch == goal.epoch => current.clone(),
        MemberState::UnrevokedPartitions if goal.still_reads(&current.revoking) => current.clone(),
        MemberState::Stable
        | MemberState::UnrevokedPartitions
        | MemberState::UnreleasedPartitions
        | MemberState::Unknown => towards(current, goal),
    }
}

fn towards(current: &Current, goal: &Goal<'_>) -> Current {
    let (kept, to_revoke) = current
        .assigned
        .partition(|topic, partition| goal.target.contains(topic, partition));
    if !to_revoke.is_empty() && goal.still_reads(&to_revoke) {
        // The epoch stays: commits of what is being given up are still its own.
        return Current {
            epoch: current.epoch,
            previous_epoch: current.epoch,
            state: MemberState::UnrevokedPartitions,
            assigned: kept,
            revoking: to_revoke,
        };
    }
    let mut assigned = kept;
    let mut state = MemberState::Stable;
    for (topic, partition) in goal.target.iter() {
        if assigned.contains(topic, partition) {
            continue;
        }
        if (goal.is_free)(topic, partition) {
            assigned.insert(topic, partition);
        } else {
            state = MemberState::UnreleasedPartitions;
        }
    }
    Current {
        epoch: goal.epoch,
        previous_epoch: current.epoch,
        state,
        assigned,
        revoking: Partitions::default(),
    }
}

impl Goal<'_> {
    /// A member that says nothing is taken to read what it was given.
    fn still_reads(&self, partitions: &Partitions) -> bool {
        match self.owned {
            None => true,
            Some(owned) => owned
                .iter()
                .any(|(topic, partition)| partitions.contains(topic, partition)),
        }
    }
}
