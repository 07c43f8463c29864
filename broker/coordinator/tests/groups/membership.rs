//! Dynamic members: requests repeated, leaving, limits, and a coordinator that moves.

use crate::support::*;
use yuxi_coordinator::groups::{GroupConfig, GroupRequest};
use yuxi_protocol::error_code::ErrorCode;

#[test]
fn a_join_repeated_on_another_connection_leaves_no_request_unanswered() {
    let mut rt = Runtime::undelayed();
    let (members, _) = rt.stable_group("g", 2);
    let first = rt.join(&Join {
        member_id: &members[0],
        ..Join::new("g")
    });
    let second = rt.join(&Join {
        member_id: &members[0],
        ..Join::new("g")
    });
    assert_eq!(rt.error(first), ErrorCode::RebalanceInProgress);
    assert!(rt.is_waiting(second));
}

#[test]
fn a_sync_repeated_on_another_connection_leaves_no_request_unanswered() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    for member in &members {
        rt.join(&Join {
            member_id: member,
            ..Join::new("g")
        });
    }
    let first = rt.sync("g", &members[1], generation + 1, &[]);
    let second = rt.sync("g", &members[1], generation + 1, &[]);
    assert_eq!(rt.error(first), ErrorCode::RebalanceInProgress);
    rt.sync("g", &members[0], generation + 1, &[]);
    assert_eq!(rt.error(second), ErrorCode::None);
}

#[test]
fn a_new_member_whose_client_is_gone_is_dropped_after_five_minutes() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    let (waiting, _) = rt.join_new(&Join {
        rebalance_ms: 1_000_000,
        session_ms: 1_800_000,
        ..Join::new("g")
    });
    for _ in 0..59 {
        rt.advance(5_000);
        rt.heartbeat("g", &members[0], generation);
    }
    assert!(rt.is_waiting(waiting));
    rt.advance(5_000);
    assert_eq!(rt.error(waiting), ErrorCode::UnknownMemberId);
}

#[test]
fn leaving_begins_a_rebalance_and_answers_for_each_member() {
    let mut rt = Runtime::undelayed();
    let (members, _) = rt.stable_group("g", 3);
    let ticket = rt.leave(
        "g",
        &[
            (&members[1], None),
            ("stranger", None),
            (&members[1], None),
            ("", None),
            ("", Some("i")),
        ],
    );
    let yuxi_coordinator::groups::GroupResponse::Leave(response) = rt.answer(ticket) else {
        panic!("a LeaveGroup is answered by one");
    };
    let codes: Vec<i16> = response
        .members
        .iter()
        .map(|member| member.error_code)
        .collect();
    let unknown = ErrorCode::UnknownMemberId.code();
    assert_eq!(
        (response.error_code, codes),
        (0, vec![0, unknown, unknown, unknown, unknown])
    );
    assert_eq!(rt.state("g"), "PreparingRebalance");
    assert_eq!(rt.describe("g").members.len(), 2);
}

#[test]
fn leaving_answers_what_the_member_was_waiting_for() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    let joining = rt.join(&Join {
        member_id: &members[0],
        ..Join::new("g")
    });
    rt.leave("g", &[(&members[0], None)]);
    assert_eq!(rt.error(joining), ErrorCode::UnknownMemberId);
    rt.join(&Join {
        member_id: &members[1],
        ..Join::new("g")
    });
    let (_, third) = rt.join_new(&Join::new("g"));
    rt.join(&Join {
        member_id: &members[1],
        ..Join::new("g")
    });
    let syncing = rt.sync("g", &third, generation + 2, &[]);
    assert!(rt.is_waiting(syncing));
    rt.leave("g", &[(&third, None)]);
    assert_eq!(rt.error(syncing), ErrorCode::UnknownMemberId);
}

#[test]
fn a_leave_that_cannot_be_is_refused_in_the_form_of_its_version() {
    let mut rt = Runtime::undelayed();
    let ticket = rt.leave("", &[("m", None)]);
    assert_eq!(rt.error(ticket), ErrorCode::InvalidGroupId);
    let ticket = rt.leave("unknown", &[("m", None), ("n", None)]);
    let yuxi_coordinator::groups::GroupResponse::Leave(response) = rt.answer(ticket) else {
        panic!("a LeaveGroup is answered by one");
    };
    assert_eq!((response.error_code, response.members.len()), (0, 2));
    let mut request = leave_request("unknown", &[]);
    request.member_id = "m".into();
    let ticket = rt.send(2, GroupRequest::Leave(request));
    let yuxi_coordinator::groups::GroupResponse::Leave(response) = rt.answer(ticket) else {
        panic!("a LeaveGroup is answered by one");
    };
    assert_eq!(response.error_code, ErrorCode::UnknownMemberId.code());
}

#[test]
fn before_version_3_one_member_leaves_under_its_own_id() {
    let mut rt = Runtime::undelayed();
    let (members, _) = rt.stable_group("g", 1);
    let mut request = leave_request("g", &[]);
    request.member_id = members[0].as_str().into();
    let ticket = rt.send(1, GroupRequest::Leave(request));
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!(rt.state("g"), "Empty");
}

#[test]
fn a_group_grows_no_larger_than_is_allowed() {
    let config = GroupConfig {
        initial_rebalance_delay_ms: 0,
        max_size: 2,
        ..GroupConfig::default()
    };
    let mut rt = Runtime::new(config);
    let (members, generation) = rt.stable_group("g", 2);
    let ticket = rt.join(&Join::new("g"));
    assert_eq!(rt.error(ticket), ErrorCode::GroupMaxSizeReached);
    assert_eq!(rt.joined(ticket).member_id.as_str(), "");
    let ticket = rt.join(&Join {
        member_id: &members[1],
        ..Join::new("g")
    });
    assert_eq!(
        rt.joined(ticket).generation_id,
        generation,
        "a member may repeat itself"
    );
}

#[test]
fn a_lowered_size_limit_leaves_out_the_last_to_rejoin_after_a_load() {
    let mut rt = Runtime::undelayed();
    let (members, _) = rt.stable_group("g", 3);
    rt.config.max_size = 2;
    rt.reload();
    assert_eq!(rt.state("g"), "PreparingRebalance");
    let tickets: Vec<u64> = members
        .iter()
        .map(|member| {
            rt.join(&Join {
                member_id: member,
                ..Join::new("g")
            })
        })
        .collect();
    assert_eq!(rt.error(tickets[2]), ErrorCode::GroupMaxSizeReached);
    rt.advance(60_000);
    assert_eq!(rt.error(tickets[0]), ErrorCode::None);
    assert_eq!(rt.error(tickets[1]), ErrorCode::None);
}

#[test]
fn version_0_rejoins_within_the_session_timeout() {
    let mut rt = Runtime::undelayed();
    let join = Join {
        version: 0,
        rebalance_ms: -1,
        ..Join::new("g")
    };
    let first = rt.join(&join);
    let leader = rt.joined(first).member_id.to_string();
    let second = rt.join(&join);
    rt.advance(9_999);
    assert!(rt.is_waiting(second));
    rt.advance(1);
    assert_eq!(rt.error(second), ErrorCode::None);
    assert_ne!(rt.joined(second).leader.as_str(), leader);
}

#[test]
fn members_keep_their_places_across_a_load_and_have_their_sessions_anew() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    rt.advance(9_000);
    rt.reload();
    rt.advance(9_999);
    assert_eq!(rt.state("g"), "Stable");
    for member in &members {
        let ticket = rt.heartbeat("g", member, generation);
        assert_eq!(rt.error(ticket), ErrorCode::None);
        let ticket = rt.sync("g", member, generation, &[]);
        assert_eq!(rt.synced(ticket).assignment.as_ref(), member.as_bytes());
    }
    rt.advance(10_000);
    assert_eq!(rt.state("g"), "Empty");
}

#[test]
fn requests_that_wait_are_sent_elsewhere_when_the_shard_is_unloaded() {
    let mut rt = Runtime::undelayed();
    let (members, _) = rt.stable_group("g", 2);
    let joining = rt.join(&Join {
        member_id: &members[0],
        ..Join::new("g")
    });
    let (_, other) = rt.join_new(&Join::new("h"));
    let (_, third) = rt.join_new(&Join::new("h"));
    rt.join(&Join {
        member_id: &other,
        ..Join::new("h")
    });
    let syncing = rt.sync("h", &third, 2, &[]);
    assert!(rt.is_waiting(joining) && rt.is_waiting(syncing));
    rt.reload();
    assert_eq!(rt.error(joining), ErrorCode::NotCoordinator);
    assert_eq!(rt.error(syncing), ErrorCode::NotCoordinator);
}

#[test]
fn after_the_last_generation_the_count_begins_again() {
    use yuxi_coordinator::groups::records::{self, GroupMetadataValue};
    let value = GroupMetadataValue {
        protocol_type: "consumer".into(),
        generation: i32::MAX,
        protocol: None,
        leader: None,
        current_state_timestamp_ms: START_MS,
        members: Vec::new(),
    };
    let mut rt = Runtime::undelayed();
    rt.log = vec![records::group_metadata(&"g".into(), &value)];
    rt.reload();
    let (ticket, _) = rt.join_new(&Join::new("g"));
    assert_eq!(rt.joined(ticket).generation_id, 1);
}

#[test]
fn ten_thousand_idle_groups_cost_a_tick_nothing() {
    let mut rt = Runtime::new(GroupConfig::default());
    for group in 0..10_000 {
        rt.commit(&Commit::new(&format!("group-{group}"), 1));
    }
    assert_eq!(
        rt.next_deadline_ms(),
        Some(START_MS + 600_000),
        "one timer, whatever the groups"
    );
    let effects = rt.shard.tick(&rt.cluster, at(START_MS + 1));
    assert!(effects.records.is_empty());
}

#[test]
fn a_session_that_ran_out_while_the_member_waited_for_us_begins_anew() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    for member in &members {
        rt.join(&Join {
            member_id: member,
            ..Join::new("g")
        });
    }
    let waiting = rt.sync("g", &members[1], generation + 1, &[]);
    for _ in 0..4 {
        rt.advance(5_000);
        rt.heartbeat("g", &members[0], generation + 1);
    }
    assert!(
        rt.is_waiting(waiting),
        "twice its session has passed, but it waits for us"
    );
    rt.sync("g", &members[0], generation + 1, &[]);
    assert_eq!(rt.error(waiting), ErrorCode::None);
    rt.advance(9_999);
    rt.heartbeat("g", &members[0], generation + 1);
    assert_eq!(rt.state("g"), "Stable");
    rt.advance(1);
    assert_eq!(
        rt.state("g"),
        "PreparingRebalance",
        "it has been silent since"
    );
}
