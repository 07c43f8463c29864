//! Dynamic members: heartbeats, and what makes a group rebalance or go on without one.

use crate::support::*;
use yuxi_protocol::error_code::ErrorCode;

#[test]
fn a_heartbeat_says_what_the_member_must_do() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    let (leader, follower) = (members[0].as_str(), members[1].as_str());
    let check = |rt: &mut Runtime, group: &str, member: &str, generation, expected| {
        let ticket = rt.heartbeat(group, member, generation);
        assert_eq!(rt.error(ticket), expected);
    };
    check(&mut rt, "g", leader, generation, ErrorCode::None);
    check(&mut rt, "", leader, generation, ErrorCode::InvalidGroupId);
    check(
        &mut rt,
        "other",
        leader,
        generation,
        ErrorCode::UnknownMemberId,
    );
    check(
        &mut rt,
        "g",
        "other",
        generation,
        ErrorCode::UnknownMemberId,
    );
    check(&mut rt, "g", "", generation, ErrorCode::UnknownMemberId);
    check(
        &mut rt,
        "g",
        leader,
        generation - 1,
        ErrorCode::IllegalGeneration,
    );
    rt.join(&Join {
        member_id: leader,
        ..Join::new("g")
    });
    check(
        &mut rt,
        "g",
        follower,
        generation,
        ErrorCode::RebalanceInProgress,
    );
    let ticket = rt.sync("g", follower, generation, &[]);
    assert_eq!(rt.error(ticket), ErrorCode::RebalanceInProgress);
    rt.join(&Join {
        member_id: follower,
        ..Join::new("g")
    });
    check(&mut rt, "g", follower, generation + 1, ErrorCode::None);
}

#[test]
fn a_silent_members_session_ends_and_the_others_rebalance() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    rt.advance(9_999);
    let ticket = rt.heartbeat("g", &members[0], generation);
    assert_eq!(rt.error(ticket), ErrorCode::None);
    rt.advance(1);
    let ticket = rt.heartbeat("g", &members[0], generation);
    assert_eq!(rt.error(ticket), ErrorCode::RebalanceInProgress);
    let ticket = rt.heartbeat("g", &members[1], generation);
    assert_eq!(rt.error(ticket), ErrorCode::UnknownMemberId);
    let ticket = rt.join(&Join {
        member_id: &members[0],
        ..Join::new("g")
    });
    assert_eq!(rt.joined(ticket).generation_id, generation + 1);
    assert_eq!(rt.joined(ticket).members.len(), 1);
}

#[test]
fn the_last_members_end_leaves_an_empty_group_of_the_next_generation() {
    let mut rt = Runtime::undelayed();
    let (_, generation) = rt.stable_group("g", 1);
    rt.advance(10_000);
    assert_eq!(rt.state("g"), "Empty");
    let (ticket, _) = rt.join_new(&Join::new("g"));
    assert_eq!(rt.joined(ticket).generation_id, generation + 2);
}

#[test]
fn a_member_id_that_is_not_used_expires() {
    let mut rt = Runtime::undelayed();
    let ticket = rt.join(&Join::new("g"));
    let member = rt.joined(ticket).member_id.to_string();
    rt.advance(10_000);
    let ticket = rt.join(&Join {
        member_id: &member,
        ..Join::new("g")
    });
    assert_eq!(rt.error(ticket), ErrorCode::UnknownMemberId);
}

#[test]
fn a_rebalance_waits_for_member_ids_that_were_given_out() {
    let mut rt = Runtime::undelayed();
    let (members, _) = rt.stable_group("g", 1);
    let pending = rt.join(&Join::new("g"));
    let leader = rt.join(&Join {
        member_id: &members[0],
        ..Join::new("g")
    });
    assert!(rt.is_waiting(leader));
    let member = rt.joined(pending).member_id.to_string();
    let second = rt.join(&Join {
        member_id: &member,
        ..Join::new("g")
    });
    assert_eq!(
        rt.joined(leader).generation_id,
        rt.joined(second).generation_id
    );
}

#[test]
fn a_pending_member_that_expires_or_leaves_no_longer_holds_up_the_rebalance() {
    for leaves in [false, true] {
        let mut rt = Runtime::undelayed();
        let (members, _) = rt.stable_group("g", 1);
        let pending = rt.join(&Join::new("g"));
        let member = rt.joined(pending).member_id.to_string();
        let leader = rt.join(&Join {
            member_id: &members[0],
            ..Join::new("g")
        });
        assert!(rt.is_waiting(leader));
        if leaves {
            let ticket = rt.leave("g", &[(&member, None)]);
            assert_eq!(rt.error(ticket), ErrorCode::None);
        } else {
            rt.advance(10_000);
        }
        assert_eq!(rt.error(leader), ErrorCode::None);
    }
}

#[test]
fn a_pending_member_that_leaves_a_stable_group_disturbs_nobody() {
    let mut rt = Runtime::undelayed();
    rt.stable_group("g", 1);
    let pending = rt.join(&Join::new("g"));
    let member = rt.joined(pending).member_id.to_string();
    let ticket = rt.leave("g", &[(&member, None)]);
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!(rt.state("g"), "Stable");
}

#[test]
fn members_that_do_not_rejoin_in_time_are_out() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    let leader = rt.join(&Join {
        member_id: &members[0],
        ..Join::new("g")
    });
    for _ in 0..11 {
        rt.advance(5_000);
        let ticket = rt.heartbeat("g", &members[1], generation);
        assert_eq!(rt.error(ticket), ErrorCode::RebalanceInProgress);
    }
    assert!(rt.is_waiting(leader));
    rt.advance(5_000);
    assert_eq!(rt.joined(leader).members.len(), 1);
    let ticket = rt.join(&Join {
        member_id: &members[1],
        ..Join::new("g")
    });
    assert_eq!(rt.error(ticket), ErrorCode::UnknownMemberId);
}

#[test]
fn the_leadership_goes_to_a_member_that_has_joined() {
    let mut rt = Runtime::undelayed();
    let (members, _) = rt.stable_group("g", 2);
    let changed = Join {
        member_id: &members[1],
        protocols: &[("range", b"changed")],
        ..Join::new("g")
    };
    let ticket = rt.join(&changed);
    assert!(rt.is_waiting(ticket));
    rt.advance(60_000);
    assert_eq!(rt.joined(ticket).leader.as_str(), members[1]);
    assert_eq!(rt.joined(ticket).members.len(), 1);
}

#[test]
fn a_follower_that_repeats_itself_is_answered_without_a_rebalance() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    let ticket = rt.join(&Join {
        member_id: &members[1],
        ..Join::new("g")
    });
    assert_eq!(rt.joined(ticket).generation_id, generation);
    assert!(rt.joined(ticket).members.is_empty());
    assert_eq!(rt.joined(ticket).leader.as_str(), members[0]);
    assert_eq!(rt.state("g"), "Stable");
}

#[test]
fn a_member_that_missed_its_answer_gets_it_again_while_assignments_are_made() {
    let mut rt = Runtime::undelayed();
    let (ticket, member) = rt.join_new(&Join::new("g"));
    let again = rt.join(&Join {
        member_id: &member,
        ..Join::new("g")
    });
    assert_eq!(rt.joined(again), rt.joined(ticket));
}

#[test]
fn changed_metadata_while_assignments_are_made_begins_a_rebalance() {
    let mut rt = Runtime::undelayed();
    let (_, member) = rt.join_new(&Join::new("g"));
    let protocols: &[(&str, &[u8])] = &[("range", b"changed")];
    let ticket = rt.join(&Join {
        member_id: &member,
        protocols,
        ..Join::new("g")
    });
    assert_eq!(rt.joined(ticket).generation_id, 2);
    assert_eq!(rt.joined(ticket).members[0].metadata.as_ref(), b"changed");
}

#[test]
fn the_leader_that_joins_again_begins_a_rebalance() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    let ticket = rt.join(&Join {
        member_id: &members[0],
        ..Join::new("g")
    });
    assert_eq!(rt.joined(ticket).generation_id, generation + 1);
}

#[test]
fn waiting_syncs_are_told_of_a_new_rebalance() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    for member in &members {
        rt.join(&Join {
            member_id: member,
            ..Join::new("g")
        });
    }
    let waiting = rt.sync("g", &members[1], generation + 1, &[]);
    assert!(rt.is_waiting(waiting));
    rt.join_new(&Join::new("g"));
    assert_eq!(rt.error(waiting), ErrorCode::RebalanceInProgress);
}

#[test]
fn members_that_do_not_sync_in_time_are_out() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    for member in &members {
        rt.join(&Join {
            member_id: member,
            ..Join::new("g")
        });
    }
    let generation = generation + 1;
    let waiting = rt.sync("g", &members[1], generation, &[]);
    for _ in 0..11 {
        rt.advance(5_000);
        let ticket = rt.heartbeat("g", &members[0], generation);
        assert_eq!(rt.error(ticket), ErrorCode::None);
    }
    rt.advance(5_000);
    assert_eq!(rt.error(waiting), ErrorCode::RebalanceInProgress);
    let ticket = rt.heartbeat("g", &members[0], generation);
    assert_eq!(
        rt.error(ticket),
        ErrorCode::UnknownMemberId,
        "the leader never assigned"
    );
    let ticket = rt.join(&Join {
        member_id: &members[1],
        ..Join::new("g")
    });
    assert_eq!(rt.joined(ticket).members.len(), 1);
}

#[test]
fn a_follower_that_does_not_fetch_its_assignment_is_out() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    for member in &members {
        rt.join(&Join {
            member_id: member,
            ..Join::new("g")
        });
    }
    rt.sync("g", &members[0], generation + 1, &[]);
    assert_eq!(rt.state("g"), "Stable");
    for _ in 0..12 {
        rt.advance(5_000);
        rt.heartbeat("g", &members[0], generation + 1);
        rt.heartbeat("g", &members[1], generation + 1);
    }
    assert_eq!(rt.state("g"), "PreparingRebalance");
    let ticket = rt.heartbeat("g", &members[1], generation + 1);
    assert_eq!(rt.error(ticket), ErrorCode::UnknownMemberId);
}
