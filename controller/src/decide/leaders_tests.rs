use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::decide::testing::{id, ids};

fn state(replicas: &[i32], isr: &[i32], elr: &[i32], leader: i32) -> PartitionState {
    PartitionState {
        replicas: ids(replicas),
        isr: ids(isr),
        elr: ids(elr),
        leader: id(leader),
        leader_epoch: LeaderEpoch::new(3),
        partition_epoch: 7,
        leader_recovery: LeaderRecovery::Recovered,
        last_known_leader: None,
        adding_replicas: Vec::new(),
        removing_replicas: Vec::new(),
        lost_data: Vec::new(),
    }
}

/// The next state when exactly `active` are alive.
fn next(
    old: &PartitionState,
    isr: &[i32],
    active: &[i32],
    min_isr: usize,
    unclean_election: bool,
) -> Option<PartitionState> {
    let active = ids(active);
    let circumstances = Circumstances {
        is_active: &|id| active.contains(&id),
        is_alive: &|id| active.contains(&id),
        min_isr,
        unclean_election,
    };
    next_state(
        old,
        Target::isr(ids(isr), old.leader_recovery),
        &circumstances,
    )
}

/// Checks who leads and who is in ISR and ELR after a change of the ISR.
#[track_caller]
fn check(
    old: &PartitionState,
    (isr, active, min_isr): (&[i32], &[i32], usize),
    expected: (i32, &[i32], &[i32]),
) -> PartitionState {
    let next = next(old, isr, active, min_isr, false).expect("a change");
    assert_eq!(
        (next.leader, next.isr.clone(), next.elr.clone()),
        (id(expected.0), ids(expected.1), ids(expected.2))
    );
    next
}

#[test]
fn when_nothing_changes_there_is_no_new_state() {
    let old = state(&[1, 2], &[1, 2], &[], 1);
    assert_eq!(next(&old, &[1, 2], &[1, 2], 1, false), None);
}

#[test]
fn a_leader_that_is_gone_is_followed_by_the_first_in_sync_in_assignment_order() {
    let old = state(&[3, 1, 2], &[2, 1, 3], &[], 3);
    let new = check(&old, (&[2, 1], &[1, 2], 1), (1, &[2, 1], &[]));
    assert_eq!((new.leader_epoch.value(), new.partition_epoch), (4, 8));
}

#[test]
fn an_isr_change_keeps_the_leader_and_its_epoch() {
    let old = state(&[1, 2, 3], &[1, 2, 3], &[], 1);
    let new = check(&old, (&[1, 2], &[1, 2, 3], 2), (1, &[1, 2], &[]));
    assert_eq!((new.leader_epoch.value(), new.partition_epoch), (3, 8));
}

#[test]
fn below_min_isr_those_that_leave_stay_eligible_and_from_min_isr_on_nobody_is() {
    let old = state(&[1, 2, 3], &[1, 2, 3], &[], 1);
    let two = check(&old, (&[1, 2], &[1, 2], 2), (1, &[1, 2], &[]));
    let one = check(&two, (&[1], &[1], 2), (1, &[1], &[2]));
    let none = check(&one, (&[], &[], 2), (-1, &[], &[1, 2]));
    // 3 was behind before; it may not lead though it is the only one alive.
    assert_eq!(next(&none, &[], &[3], 2, false), None);
    let back = check(&none, (&[], &[2, 3], 2), (2, &[2], &[1]));
    check(&back, (&[2, 3], &[2, 3], 2), (2, &[2, 3], &[]));
}

#[test]
fn a_leader_from_the_elr_that_can_acknowledge_alone_makes_the_others_ineligible() {
    let old = state(&[1, 2], &[1, 2], &[], 1);
    let none = check(&old, (&[], &[], 1), (-1, &[], &[1, 2]));
    check(&none, (&[], &[2], 1), (2, &[2], &[]));
}

#[test]
fn nobody_leads_while_the_isr_is_dead_though_the_elr_lives() {
    // 1 may have acknowledged what 2 doesn't have, as long as it is in the ISR.
    let old = state(&[1, 2], &[1], &[2], 1);
    check(&old, (&[1], &[2], 2), (-1, &[1], &[2]));
}

#[test]
fn outside_isr_and_elr_only_the_operators_word_makes_a_leader_and_it_has_to_recover() {
    let old = state(&[1, 2], &[1], &[], 1);
    check(&old, (&[], &[2], 1), (-1, &[], &[1]));
    let new = next(&old, &[], &[2], 1, true).unwrap();
    assert_eq!(
        (new.leader, new.isr.clone(), new.elr),
        (id(2), ids(&[2]), ids(&[]))
    );
    assert_eq!(new.leader_recovery, LeaderRecovery::Recovering);
}

#[test]
fn when_every_eligible_replica_may_have_lost_records_the_last_leader_leads_again() {
    let old = state(&[1, 2], &[1], &[], 1);
    let loss = |broker| {
        if broker == id(1) {
            Loss::Tail
        } else {
            Loss::Nothing
        }
    };
    let circumstances = Circumstances {
        is_active: &|_| true,
        is_alive: &|_| true,
        min_isr: 1,
        unclean_election: false,
    };
    let target = Target {
        loss: &loss,
        leader_restarted: true,
        ..Target::isr(Vec::new(), LeaderRecovery::Recovered)
    };
    let new = next_state(&old, target, &circumstances).unwrap();
    assert_eq!((new.leader, new.isr), (id(1), ids(&[1])));
    assert_eq!(new.leader_recovery, LeaderRecovery::Recovering);
    assert_eq!(new.leader_epoch.value(), 4);
}

#[test]
fn the_last_leader_is_remembered_while_there_is_none() {
    let old = state(&[1, 2], &[1], &[], 1);
    let none = check(&old, (&[], &[], 1), (-1, &[], &[1]));
    assert_eq!(none.last_known_leader, Some(id(1)));
    let back = check(&none, (&[], &[1], 1), (1, &[1], &[]));
    assert_eq!(back.last_known_leader, None);
}

#[test]
fn a_new_incarnation_of_the_leader_leads_in_a_new_epoch() {
    let old = state(&[1], &[1], &[], 1);
    let circumstances = Circumstances {
        is_active: &|_| true,
        is_alive: &|_| true,
        min_isr: 1,
        unclean_election: false,
    };
    let target = Target {
        leader_restarted: true,
        ..Target::isr(ids(&[1]), LeaderRecovery::Recovered)
    };
    let new = next_state(&old, target, &circumstances).unwrap();
    assert_eq!((new.leader, new.leader_epoch.value()), (id(1), 4));
}

#[test]
fn a_leader_that_shuts_down_leads_on_while_nobody_can_take_over() {
    let old = state(&[1, 2], &[1], &[], 1);
    let circumstances = Circumstances {
        is_active: &|broker| broker == id(2),
        is_alive: &|_| true,
        min_isr: 1,
        unclean_election: false,
    };
    let joined = Target::isr(ids(&[1, 2]), LeaderRecovery::Recovered);
    assert_eq!(
        next_state(&old, joined, &circumstances).unwrap().leader,
        id(2)
    );
    let alone = Target::isr(ids(&[1]), LeaderRecovery::Recovered);
    assert_eq!(next_state(&old, alone, &circumstances), None);
}

proptest! {
    /// Whatever comes and goes: the invariants of the module hold after each step, and a
    /// clean leader always had every record that could be acknowledged.
    #[test]
    fn no_sequence_of_failures_elects_a_replica_that_lacks_an_acknowledged_record(
        min_isr in 1_usize..4,
        steps in prop::collection::vec((0_u8..8, 0_u8..8), 1..60),
    ) {
        let mut old = state(&[1, 2, 3], &[1, 2, 3], &[], 1);
        // Who has every acknowledged record: a model that knows nothing of the ELR.
        let mut complete: BTreeSet<BrokerId> = ids(&[1, 2, 3]).into_iter().collect();
        for (active, shrink) in steps {
            let members = |mask: u8| -> Vec<BrokerId> {
                ids(&[1, 2, 3]).into_iter().filter(|id| mask & (1 << (id.value() - 1)) != 0).collect()
            };
            let active = members(active);
            // A live leader lets join and leave as it likes; the dead leave. Without a leader only
            // the dead leave.
            let isr: Vec<BrokerId> = if active.contains(&old.leader) {
                let mut isr: Vec<_> =
                    members(shrink).into_iter().filter(|id| active.contains(id)).collect();
                if !isr.contains(&old.leader) {
                    isr.push(old.leader);
                }
                isr
            } else {
                old.isr.iter().copied().filter(|id| active.contains(id)).collect()
            };
            let joining: Vec<BrokerId> =
                isr.iter().copied().filter(|id| !old.isr.contains(id)).collect();
            let target = Target::isr(isr.clone(), LeaderRecovery::Recovered);
            let circumstances = Circumstances {
                is_active: &|id| active.contains(&id),
                is_alive: &|id| active.contains(&id),
                min_isr,
                unclean_election: false,
            };
            // Who joins has caught up with its leader.
            complete.extend(joining);
            let Some(new) = next_state(&old, target, &circumstances) else { continue };
            prop_assert_eq!(new.partition_epoch, old.partition_epoch + 1);
            prop_assert_eq!(new.leader != old.leader, new.leader_epoch != old.leader_epoch);
            prop_assert_eq!(new.leader_recovery, LeaderRecovery::Recovered);
            prop_assert!(new.isr.len() < min_isr || new.elr.is_empty());
            prop_assert!(new.elr.iter().all(|id| !new.isr.contains(id)));
            if new.leader != BrokerId::NONE {
                prop_assert!(active.contains(&new.leader));
                prop_assert!(complete.contains(&new.leader), "{new:?} of {complete:?}");
                // With enough in sync a record is acknowledged that only the ISR has.
                if new.isr.len() >= min_isr {
                    complete = new.isr.iter().copied().collect();
                }
            }
            old = new;
        }
    }
}
