//! Dynamic members: joining, syncing, heartbeats, leaving, time running out.

use crate::support::*;
use yuxi_coordinator::groups::{GroupConfig, GroupRequest};
use yuxi_protocol::error_code::ErrorCode;

#[test]
fn a_lone_member_joins_in_two_steps_and_leads_the_first_generation() {
    let mut rt = Runtime::new(GroupConfig::default());
    let (ticket, member) = rt.join_new(&Join::new("g"));
    assert_eq!(member, "client-00000000-0000-0000-0000-000000000001");
    assert!(rt.is_waiting(ticket), "the first rebalance is delayed");
    assert_eq!(rt.state("g"), "PreparingRebalance");
    rt.advance(2_999);
    assert!(rt.is_waiting(ticket));
    rt.advance(1);
    let joined = rt.joined(ticket);
    assert_eq!((joined.error_code, joined.generation_id), (0, 1));
    assert_eq!(joined.leader.as_str(), member);
    assert_eq!(joined.members.len(), 1);
    assert_eq!(joined.protocol_name.as_deref(), Some("range"));
    assert_eq!(joined.protocol_type.as_deref(), Some("consumer"));
    assert_eq!(rt.state("g"), "CompletingRebalance");
    let ticket = rt.sync("g", &member, 1, &[(&member, "all of it")]);
    assert_eq!(rt.synced(ticket).assignment.as_ref(), b"all of it");
    assert_eq!(rt.state("g"), "Stable");
}

#[test]
fn before_version_4_a_member_is_added_at_once() {
    let mut rt = Runtime::undelayed();
    let ticket = rt.join(&Join {
        version: 3,
        ..Join::new("g")
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!(rt.joined(ticket).generation_id, 1);
}

#[test]
fn the_first_rebalance_waits_longer_while_members_keep_coming() {
    let mut rt = Runtime::new(GroupConfig::default());
    let (first, _) = rt.join_new(&Join::new("g"));
    rt.advance(2_000);
    let (second, _) = rt.join_new(&Join::new("g"));
    rt.advance(3_999);
    assert!(rt.is_waiting(first) && rt.is_waiting(second));
    rt.advance(1);
    assert_eq!(rt.joined(first).generation_id, 1);
    assert_eq!(rt.joined(second).generation_id, 1);
    assert_eq!(
        rt.joined(first).members.len() + rt.joined(second).members.len(),
        2
    );
}

#[test]
fn the_first_rebalance_ends_when_the_rebalance_timeout_is_used_up() {
    let mut rt = Runtime::new(GroupConfig::default());
    let join = Join {
        rebalance_ms: 7_000,
        ..Join::new("g")
    };
    let (first, _) = rt.join_new(&join);
    for _ in 0..6 {
        rt.advance(1_000);
        rt.join_new(&join);
    }
    assert!(rt.is_waiting(first));
    rt.advance(1_000);
    assert_eq!(rt.joined(first).generation_id, 1);
}

#[test]
fn followers_wait_for_the_leaders_assignment() {
    let mut rt = Runtime::undelayed();
    let (a, first) = rt.join_new(&Join::new("g"));
    let (b, second) = rt.join_new(&Join::new("g"));
    // The first generation began with the first member alone.
    assert_eq!(rt.joined(a).generation_id, 1);
    assert!(rt.is_waiting(b));
    let a = rt.join(&Join {
        member_id: &first,
        ..Join::new("g")
    });
    assert_eq!(
        (rt.joined(a).generation_id, rt.joined(b).generation_id),
        (2, 2)
    );
    assert_eq!(rt.joined(a).leader.as_str(), first);
    assert_eq!(rt.joined(b).members.len(), 0);
    let follower = rt.sync("g", &second, 2, &[]);
    assert!(rt.is_waiting(follower));
    let records = rt.log.len();
    let leader = rt.sync("g", &first, 2, &[(&first, "x"), ("stranger", "z")]);
    assert_eq!(rt.synced(leader).assignment.as_ref(), b"x");
    assert_eq!(
        rt.synced(follower).assignment.as_ref(),
        b"",
        "the leader forgot it"
    );
    assert_eq!(rt.log.len(), records + 1);
}

#[test]
fn a_join_is_refused_for_each_reason_that_there_is() {
    let check = |join: Join<'_>, expected: ErrorCode| {
        let mut rt = Runtime::undelayed();
        rt.stable_group("stable", 1);
        let records = rt.log.len();
        let ticket = rt.join(&join);
        assert_eq!(rt.error(ticket), expected);
        assert_eq!(rt.log.len(), records, "{expected:?}");
    };
    let new = Join::new("g");
    let stable = Join::new("stable");
    check(
        Join {
            group: "",
            ..new.clone()
        },
        ErrorCode::InvalidGroupId,
    );
    check(
        Join {
            session_ms: 5_999,
            ..new.clone()
        },
        ErrorCode::InvalidSessionTimeout,
    );
    check(
        Join {
            session_ms: 1_800_001,
            ..new.clone()
        },
        ErrorCode::InvalidSessionTimeout,
    );
    check(
        Join {
            session_ms: -1,
            ..new.clone()
        },
        ErrorCode::InvalidSessionTimeout,
    );
    check(
        Join {
            member_id: "unknown",
            ..new.clone()
        },
        ErrorCode::UnknownMemberId,
    );
    check(
        Join {
            protocols: &[],
            ..new.clone()
        },
        ErrorCode::InconsistentGroupProtocol,
    );
    check(
        Join {
            protocol_type: "",
            ..new.clone()
        },
        ErrorCode::InconsistentGroupProtocol,
    );
    check(
        Join {
            member_id: "unknown",
            ..stable.clone()
        },
        ErrorCode::UnknownMemberId,
    );
    check(
        Join {
            protocol_type: "connect",
            ..stable.clone()
        },
        ErrorCode::InconsistentGroupProtocol,
    );
    check(
        Join {
            protocols: &[("sticky", b"")],
            ..stable.clone()
        },
        ErrorCode::InconsistentGroupProtocol,
    );
    check(
        Join {
            instance_id: Some("i"),
            member_id: "unknown",
            ..stable
        },
        ErrorCode::UnknownMemberId,
    );
}

#[test]
fn a_refused_join_leaves_no_group_behind() {
    let mut rt = Runtime::undelayed();
    rt.join(&Join {
        protocols: &[],
        ..Join::new("g")
    });
    assert_eq!(rt.shard.counts().groups.len(), 0);
    assert!(rt.log.is_empty());
}

#[test]
fn the_protocol_that_most_members_prefer_of_those_all_support_is_chosen() {
    let mut rt = Runtime::new(GroupConfig::default());
    let prefer = |protocols| Join {
        protocols,
        ..Join::new("g")
    };
    let (a, _) = rt.join_new(&prefer(&[("range", b"a1"), ("sticky", b"a2")]));
    let (b, _) = rt.join_new(&prefer(&[
        ("new", b""),
        ("sticky", b"b2"),
        ("range", b"b1"),
    ]));
    let (c, _) = rt.join_new(&prefer(&[
        ("sticky", b"c2"),
        ("range", b"c1"),
        ("own", b""),
    ]));
    rt.advance(60_000);
    for ticket in [a, b, c] {
        assert_eq!(rt.joined(ticket).protocol_name.as_deref(), Some("sticky"));
    }
    let leader = [a, b, c]
        .into_iter()
        .find(|t| !rt.joined(*t).members.is_empty())
        .unwrap();
    let mut metadata: Vec<_> = rt
        .joined(leader)
        .members
        .iter()
        .map(|member| member.metadata.to_vec())
        .collect();
    metadata.sort();
    assert_eq!(metadata, [b"a2", b"b2", b"c2"]);
}

#[test]
fn a_sync_is_refused_for_each_reason_that_there_is() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    let member = members[0].as_str();
    let mut check = |change: &dyn Fn(&mut yuxi_protocol::messages::SyncGroupRequest), expected| {
        let mut request = sync_request("g", member, generation, &[]);
        change(&mut request);
        let ticket = rt.send(5, GroupRequest::Sync(request));
        assert_eq!(rt.error(ticket), expected);
    };
    check(&|_| (), ErrorCode::None);
    check(
        &|request| request.group_id = "".into(),
        ErrorCode::InvalidGroupId,
    );
    check(
        &|request| request.group_id = "other".into(),
        ErrorCode::UnknownMemberId,
    );
    check(
        &|request| request.member_id = "other".into(),
        ErrorCode::UnknownMemberId,
    );
    check(
        &|request| request.generation_id += 1,
        ErrorCode::IllegalGeneration,
    );
    check(
        &|request| request.generation_id -= 1,
        ErrorCode::IllegalGeneration,
    );
    check(
        &|request| request.protocol_type = Some("connect".into()),
        ErrorCode::InconsistentGroupProtocol,
    );
    check(
        &|request| request.protocol_name = Some("sticky".into()),
        ErrorCode::InconsistentGroupProtocol,
    );
    check(
        &|request| request.protocol_name = None,
        ErrorCode::InconsistentGroupProtocol,
    );
    check(
        &|request| request.protocol_type = None,
        ErrorCode::InconsistentGroupProtocol,
    );
    check(
        &|request| request.group_instance_id = Some("i".into()),
        ErrorCode::UnknownMemberId,
    );
    // Before version 5 the protocol need not be named.
    let mut request = sync_request("g", member, generation, &[]);
    request.protocol_type = None;
    request.protocol_name = None;
    let ticket = rt.send(4, GroupRequest::Sync(request));
    assert_eq!(rt.synced(ticket).assignment.as_ref(), member.as_bytes());
}

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
    let deadline = rt.shard.next_deadline();
    assert_eq!(
        deadline,
        Some(START_MS + 600_000),
        "one timer, whatever the groups"
    );
    let effects = rt.shard.tick(START_MS + 1);
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
