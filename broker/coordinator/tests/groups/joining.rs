//! Dynamic members: joining, syncing, and why either is refused.

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
