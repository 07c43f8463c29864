//! Static members (KIP-345, KIP-814): leaving without a trace, coming back, fencing.

use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::{error_code::ErrorCode, messages::JoinGroupResponse};

use crate::support::*;

fn member(instance: &str) -> Join<'_> {
    Join {
        instance_id: Some(instance),
        ..Join::new("g")
    }
}

/// A stable group of two static members `a` (the leader) and `b`; their member ids.
fn pair(rt: &mut Runtime) -> (String, String) {
    let a = rt.join(&member("a"));
    let id_a = rt.joined(a).member_id.to_string();
    let b = rt.join(&member("b"));
    assert!(rt.is_waiting(b));
    rt.join(&Join {
        member_id: &id_a,
        ..member("a")
    });
    let id_b = rt.joined(b).member_id.to_string();
    rt.sync("g", &id_b, 2, &[]);
    rt.sync("g", &id_a, 2, &[(&id_a, "for a"), (&id_b, "for b")]);
    assert_eq!(rt.state("g"), "Stable");
    (id_a, id_b)
}

#[test]
fn a_static_member_joins_in_one_step_under_an_id_made_from_its_own() {
    let mut rt = Runtime::undelayed();
    let ticket = rt.join(&member("a"));
    assert_eq!(
        rt.joined(ticket).member_id.as_str(),
        "a-00000000-0000-0000-0000-000000000001"
    );
    assert_eq!(rt.joined(ticket).generation_id, 1);
    let members = &rt.joined(ticket).members;
    assert_eq!(members[0].group_instance_id.as_deref(), Some("a"));
}

#[test]
fn a_follower_that_comes_back_takes_its_place_without_a_rebalance() {
    let mut rt = Runtime::undelayed();
    let (id_a, id_b) = pair(&mut rt);
    let records = rt.log.len();
    let ticket = rt.join(&member("b"));
    let joined: &JoinGroupResponse = rt.joined(ticket);
    assert_eq!((joined.error_code, joined.generation_id), (0, 2));
    assert_eq!(
        (joined.leader.as_str(), joined.skip_assignment),
        (id_a.as_str(), false)
    );
    assert!(joined.members.is_empty());
    let new_b = joined.member_id.to_string();
    assert_ne!(new_b, id_b);
    assert_eq!(rt.log.len(), records + 1, "its new id is written");
    let ticket = rt.sync("g", &new_b, 2, &[]);
    assert_eq!(rt.synced(ticket).assignment.as_ref(), b"for b");
    // And after a load it is still there under the new id.
    rt.reload();
    let ticket = rt.sync("g", &new_b, 2, &[]);
    assert_eq!(rt.synced(ticket).assignment.as_ref(), b"for b");
}

#[test]
fn a_leader_that_comes_back_must_not_assign_again() {
    let mut rt = Runtime::undelayed();
    let (id_a, _) = pair(&mut rt);
    let ticket = rt.join(&member("a"));
    let joined = rt.joined(ticket).clone();
    assert_eq!(joined.leader, joined.member_id);
    assert!(joined.skip_assignment);
    assert_eq!(joined.members.len(), 2, "but it watches the topics of all");
    assert_eq!(rt.state("g"), "Stable");
    // Older clients are made to believe that they are followers.
    let ticket = rt.join(&Join {
        version: 8,
        ..member("a")
    });
    let older = rt.joined(ticket);
    assert_eq!(older.leader, joined.member_id);
    assert_ne!(older.leader, older.member_id);
    assert!(!older.skip_assignment && older.members.is_empty());
    assert_ne!(older.member_id.as_str(), id_a);
}

#[test]
fn whoever_uses_the_old_member_id_is_fenced() {
    let mut rt = Runtime::undelayed();
    let (_, id_b) = pair(&mut rt);
    rt.join(&member("b"));
    let ticket = rt.join(&Join {
        member_id: &id_b,
        ..member("b")
    });
    assert_eq!(rt.error(ticket), ErrorCode::FencedInstanceId);
    let mut heartbeat = heartbeat_request("g", &id_b, 2);
    heartbeat.group_instance_id = Some("b".into());
    let ticket = rt.send(4, GroupRequest::Heartbeat(heartbeat));
    assert_eq!(rt.error(ticket), ErrorCode::FencedInstanceId);
    let mut sync = sync_request("g", &id_b, 2, &[]);
    sync.group_instance_id = Some("b".into());
    let ticket = rt.send(5, GroupRequest::Sync(sync));
    assert_eq!(rt.error(ticket), ErrorCode::FencedInstanceId);
    let commit = Commit {
        member_id: &id_b,
        instance_id: Some("b"),
        generation: 2,
        ..Commit::new("g", 1)
    };
    let ticket = rt.commit(&commit);
    assert_eq!(rt.error(ticket), ErrorCode::FencedInstanceId);
    let ticket = rt.leave("g", &[(&id_b, Some("b"))]);
    assert_eq!(rt.error(ticket), ErrorCode::FencedInstanceId);
    // Without the instance id the old member id is just unknown.
    let ticket = rt.heartbeat("g", &id_b, 2);
    assert_eq!(rt.error(ticket), ErrorCode::UnknownMemberId);
}

#[test]
fn a_waiting_request_of_the_process_before_is_fenced_at_once() {
    let mut rt = Runtime::undelayed();
    let (id_a, id_b) = pair(&mut rt);
    let joining = rt.join(&Join {
        member_id: &id_a,
        ..member("a")
    });
    assert!(rt.is_waiting(joining));
    rt.join(&member("a"));
    assert_eq!(rt.error(joining), ErrorCode::FencedInstanceId);
    let b = rt.join(&Join {
        member_id: &id_b,
        ..member("b")
    });
    let generation = rt.joined(b).generation_id;
    let syncing = rt.sync("g", &id_b, generation, &[]);
    assert!(rt.is_waiting(syncing));
    let again = rt.join(&member("b"));
    assert_eq!(rt.error(syncing), ErrorCode::FencedInstanceId);
    assert!(
        rt.is_waiting(again),
        "the leader may be assigning to the id of before"
    );
    assert_eq!(rt.state("g"), "PreparingRebalance");
}

#[test]
fn a_static_member_that_comes_back_with_other_protocols_begins_a_rebalance() {
    let mut rt = Runtime::undelayed();
    let protocols: &[(&str, &[u8])] = &[("range", b""), ("sticky", b"")];
    let a = rt.join(&Join {
        protocols,
        ..member("a")
    });
    let id = rt.joined(a).member_id.to_string();
    rt.sync("g", &id, 1, &[]);
    let protocols: &[(&str, &[u8])] = &[("sticky", b"")];
    let ticket = rt.join(&Join {
        protocols,
        ..member("a")
    });
    assert_eq!(rt.joined(ticket).generation_id, 2);
    assert_eq!(rt.joined(ticket).protocol_name.as_deref(), Some("sticky"));
}

#[test]
fn a_static_member_that_is_slow_to_rejoin_stays_until_its_session_ends() {
    let mut rt = Runtime::undelayed();
    let join = |instance| Join {
        session_ms: 300_000,
        ..member(instance)
    };
    let a = rt.join(&join("a"));
    let id_a = rt.joined(a).member_id.to_string();
    let b = rt.join(&join("b"));
    rt.advance(60_000);
    assert_eq!(
        rt.joined(b).members.len(),
        2,
        "a did not rejoin but is there"
    );
    let id_b = rt.joined(b).member_id.to_string();
    rt.sync("g", &id_b, 2, &[(&id_a, "kept for a")]);
    let ticket = rt.heartbeat("g", &id_a, 2);
    assert_eq!(rt.error(ticket), ErrorCode::None);
}

#[test]
fn an_administrator_removes_a_static_member_by_its_instance_id() {
    let mut rt = Runtime::undelayed();
    let (_, id_b) = pair(&mut rt);
    let ticket = rt.leave("g", &[("", Some("b")), ("", Some("stranger"))]);
    let GroupResponse::Leave(response) = rt.answer(ticket) else {
        panic!("a LeaveGroup is answered by one");
    };
    assert_eq!(response.members[0].error_code, 0);
    assert_eq!(response.members[0].group_instance_id.as_deref(), Some("b"));
    assert_eq!(
        response.members[1].error_code,
        ErrorCode::UnknownMemberId.code()
    );
    let ticket = rt.heartbeat("g", &id_b, 2);
    assert_eq!(rt.error(ticket), ErrorCode::UnknownMemberId);
}

#[test]
fn a_given_out_member_id_is_not_for_static_members() {
    let mut rt = Runtime::undelayed();
    let ticket = rt.join(&Join::new("g"));
    let pending = rt.joined(ticket).member_id.to_string();
    let ticket = rt.join(&Join {
        member_id: &pending,
        ..member("a")
    });
    assert_eq!(rt.error(ticket), ErrorCode::UnknownMemberId);
}

#[test]
fn a_join_phase_that_only_absent_static_members_are_in_does_not_spin() {
    let mut rt = Runtime::undelayed();
    let (b, id_b) = rt.join_new(&Join::new("g"));
    let a = rt.join(&Join {
        rebalance_ms: 0,
        ..member("a")
    });
    assert!(rt.is_waiting(a));
    rt.join(&Join {
        member_id: &id_b,
        ..Join::new("g")
    });
    let id_a = rt.joined(a).member_id.to_string();
    assert_ne!(rt.joined(b).generation_id, 2);
    rt.sync("g", &id_a, 2, &[]);
    rt.sync("g", &id_b, 2, &[]);
    assert_eq!(rt.state("g"), "Stable");
    // From here on the only one left gives itself no time to rejoin at all.
    rt.leave("g", &[(&id_b, None)]);
    assert_eq!(rt.state("g"), "PreparingRebalance");
    rt.advance(9_999);
    let ticket = rt.heartbeat("g", &id_a, 2);
    assert_eq!(rt.error(ticket), ErrorCode::RebalanceInProgress);
    rt.advance(10_000);
    assert_eq!(rt.state("g"), "Empty");
}
