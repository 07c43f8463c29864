//! What only a leader knows of its partition: who is in sync and how far each has come.

use std::collections::HashMap;
use yuxi_protocol::ids::{BrokerId, Offset};

/// The leader's part of a partition's state; made anew with each leader epoch.
#[derive(Debug)]
pub(super) struct Leader {
    /// Where this leader epoch begins in the log.
    epoch_start: Offset,
    isr: Vec<BrokerId>,
    /// The log end of each follower as its last fetch in this epoch told it.
    follower_ends: HashMap<BrokerId, Offset>,
}

impl Leader {
    pub(super) fn new(epoch_start: Offset, isr: Vec<BrokerId>) -> Self {
        Self {
            epoch_start,
            isr,
            follower_ends: HashMap::new(),
        }
    }

    pub(super) fn set_isr(&mut self, isr: Vec<BrokerId>) {
        self.follower_ends.retain(|id, _| isr.contains(id));
        self.isr = isr;
    }

    pub(super) fn isr(&self) -> &[BrokerId] {
        &self.isr
    }
}

/// How far the log is held by every in-sync replica: the high watermark that I3 allows.
/// `None` while a member has not said in this epoch how far it is, while fewer than
/// `min_insync_replicas` are in sync (KIP-966), or before this epoch's start is reached,
/// below which nothing new can be told.
pub(super) fn committed_end(
    leader: &Leader,
    own_id: BrokerId,
    own_end: Offset,
    min_insync_replicas: usize,
) -> Option<Offset> {
    if leader.isr.len() < min_insync_replicas {
        return None;
    }
    let mut committed = own_end;
    for member in leader.isr.iter().filter(|&&member| member != own_id) {
        committed = committed.min(*leader.follower_ends.get(member)?);
    }
    (committed >= leader.epoch_start).then_some(committed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: BrokerId = BrokerId::new(1);

    fn leader(isr: &[i32], follower_ends: &[(i32, i64)]) -> Leader {
        Leader {
            epoch_start: Offset::new(10),
            isr: isr.iter().copied().map(BrokerId::new).collect(),
            follower_ends: follower_ends
                .iter()
                .map(|&(id, end)| (BrokerId::new(id), Offset::new(end)))
                .collect(),
        }
    }

    #[track_caller]
    fn check(leader: &Leader, min_isr: usize, expected: Option<i64>) {
        assert_eq!(
            committed_end(leader, ME, Offset::new(30), min_isr),
            expected.map(Offset::new)
        );
    }

    #[test]
    fn a_leader_alone_in_sync_commits_what_it_holds() {
        check(&leader(&[1], &[]), 1, Some(30));
    }

    #[test]
    fn the_slowest_in_sync_replica_sets_the_high_watermark() {
        check(&leader(&[1, 2, 3], &[(2, 25), (3, 20)]), 2, Some(20));
    }

    #[test]
    fn nothing_is_committed_while_an_in_sync_replica_has_not_reported() {
        check(&leader(&[1, 2, 3], &[(2, 25)]), 2, None);
    }

    #[test]
    fn nothing_is_committed_below_min_insync_replicas() {
        check(&leader(&[1], &[]), 2, None);
    }

    #[test]
    fn nothing_is_committed_before_this_epochs_start_is_held_by_all() {
        check(&leader(&[1, 2], &[(2, 9)]), 1, None);
        check(&leader(&[1, 2], &[(2, 10)]), 1, Some(10));
    }
}
