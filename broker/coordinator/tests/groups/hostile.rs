//! Requests that no honest client sends: a clear error, and nothing else changes.

use yuxi_coordinator::groups::GroupRequest;
use yuxi_protocol::{
    codec::Bytes, error_code::ErrorCode, messages::join_group_request::JoinGroupRequestProtocol,
};

use crate::support::*;

#[test]
fn ids_too_long_for_a_record_are_refused() {
    let long = "x".repeat(40_000);
    let mut rt = Runtime::undelayed();
    let mut check = |join: Join<'_>, expected| {
        let ticket = rt.join(&join);
        assert_eq!(rt.error(ticket), expected);
    };
    check(
        Join {
            group: &long,
            ..Join::new("g")
        },
        ErrorCode::InvalidGroupId,
    );
    check(
        Join {
            member_id: &long,
            ..Join::new("g")
        },
        ErrorCode::UnknownMemberId,
    );
    check(
        Join {
            instance_id: Some(&long),
            ..Join::new("g")
        },
        ErrorCode::InvalidRequest,
    );
    check(
        Join {
            protocol_type: &long,
            ..Join::new("g")
        },
        ErrorCode::InconsistentGroupProtocol,
    );
    check(
        Join {
            protocols: &[(&long, b"")],
            ..Join::new("g")
        },
        ErrorCode::InconsistentGroupProtocol,
    );
    let ticket = rt.commit(&Commit::new(&long, 1));
    assert_eq!(rt.error(ticket), ErrorCode::InvalidGroupId);
    let ticket = rt.commit(&Commit {
        generation: 1,
        ..Commit::new(&long, 1)
    });
    assert_eq!(rt.error(ticket), ErrorCode::GroupIdNotFound);
    let ticket = rt.commit(&Commit {
        topic: &long,
        ..Commit::new("g", 1)
    });
    assert_eq!(rt.error(ticket), ErrorCode::UnknownTopicOrPartition);
    let ticket = rt.commit(&Commit {
        metadata: Some(&long),
        ..Commit::new("g", 1)
    });
    assert_eq!(rt.error(ticket), ErrorCode::OffsetMetadataTooLarge);
    for request in [
        GroupRequest::Sync(sync_request(&long, &long, 1, &[(&long, &long)])),
        GroupRequest::Heartbeat(heartbeat_request(&long, &long, 1)),
        GroupRequest::Leave(leave_request(&long, &[(&long, Some(&long))])),
    ] {
        let version = if matches!(request, GroupRequest::Heartbeat(_)) {
            4
        } else {
            5
        };
        let ticket = rt.send(version, request);
        assert_eq!(rt.error(ticket), ErrorCode::UnknownMemberId);
    }
    assert!(rt.shard.counts().groups.is_empty());
    assert!(rt.log.is_empty());
}

#[test]
fn a_long_setting_for_metadata_does_not_lift_the_limit_of_the_record() {
    let mut rt = Runtime::undelayed();
    rt.config.offset_metadata_max_bytes = usize::MAX;
    rt.reload();
    let fits = "x".repeat(32_767);
    let ticket = rt.commit(&Commit {
        metadata: Some(&fits),
        ..Commit::new("g", 1)
    });
    assert_eq!(rt.error(ticket), ErrorCode::None);
    let too_long = "x".repeat(32_768);
    let ticket = rt.commit(&Commit {
        metadata: Some(&too_long),
        ..Commit::new("g", 2)
    });
    assert_eq!(rt.error(ticket), ErrorCode::OffsetMetadataTooLarge);
}

#[test]
fn the_longest_client_id_still_makes_a_member_id_that_can_be_written() {
    // Two bytes each, so that the cut would fall inside of one.
    let client_id = "\u{e9}".repeat(16_383);
    let mut rt = Runtime::undelayed();
    let join = Join {
        client_id: &client_id,
        ..Join::new("g")
    };
    let (_, member) = rt.join_new(&join);
    assert!(member.len() <= 32_767);
    let ticket = rt.sync("g", &member, 1, &[]);
    assert_eq!(rt.error(ticket), ErrorCode::None);
    rt.reload();
    assert_eq!(rt.state("g"), "Stable");
}

#[test]
fn thousands_of_protocols_are_refused() {
    let mut rt = Runtime::undelayed();
    let mut request = Join::new("g").request();
    request.protocols = (0..1_001)
        .map(|n| {
            let mut protocol = JoinGroupRequestProtocol::default();
            protocol.name = format!("p{n}").into();
            protocol
        })
        .collect();
    let ticket = rt.send(9, GroupRequest::Join(request.clone()));
    assert_eq!(rt.error(ticket), ErrorCode::InconsistentGroupProtocol);
    request.protocols.pop();
    let ticket = rt.send(9, GroupRequest::Join(request));
    assert_eq!(rt.error(ticket), ErrorCode::MemberIdRequired);
}

#[test]
fn a_protocol_named_twice_counts_once() {
    let mut rt = Runtime::undelayed();
    let twice: &[(&str, &[u8])] = &[("range", b"first"), ("range", b"second")];
    let (first, member) = rt.join_new(&Join {
        protocols: twice,
        ..Join::new("g")
    });
    assert_eq!(rt.joined(first).members[0].metadata.as_ref(), b"first");
    let (second, _) = rt.join_new(&Join::new("g"));
    rt.join(&Join {
        member_id: &member,
        protocols: twice,
        ..Join::new("g")
    });
    assert_eq!(rt.joined(second).protocol_name.as_deref(), Some("range"));
}

#[test]
fn huge_metadata_and_assignments_are_carried() {
    let huge = vec![7_u8; 4 * 1024 * 1024];
    let mut rt = Runtime::undelayed();
    let protocols: &[(&str, &[u8])] = &[("range", &huge)];
    let (ticket, member) = rt.join_new(&Join {
        protocols,
        ..Join::new("g")
    });
    assert_eq!(rt.joined(ticket).members[0].metadata.len(), huge.len());
    let mut request = sync_request("g", &member, 1, &[(&member, "")]);
    request.assignments[0].assignment = Bytes::from(huge.clone());
    let ticket = rt.send(5, GroupRequest::Sync(request));
    assert_eq!(rt.synced(ticket).assignment.len(), huge.len());
}

#[test]
fn timeouts_of_any_size_do_not_make_the_shard_spin() {
    for rebalance_ms in [i32::MIN, -1, 0, 1, i32::MAX] {
        let mut rt = Runtime::undelayed();
        let join = Join {
            rebalance_ms,
            ..Join::new("g")
        };
        for instance_id in ["a", "b"] {
            rt.join(&Join {
                instance_id: Some(instance_id),
                ..join.clone()
            });
            rt.join_new(&join);
        }
        rt.advance(120_000);
        assert!(rt.shard.counts().members < 5);
    }
}

#[test]
fn a_commit_of_any_numbers_is_stored_as_it_is() {
    let mut rt = Runtime::undelayed();
    for offset in [i64::MIN, -1, 0, i64::MAX] {
        rt.commit(&Commit {
            partition: i32::MIN,
            ..Commit::new("g", offset)
        });
        assert_eq!(rt.fetch("g", "t", i32::MIN), offset);
    }
    for retention_ms in [i64::MIN, 0, i64::MAX] {
        rt.commit(&Commit {
            version: 4,
            retention_ms,
            ..Commit::new("h", 1)
        });
    }
    rt.advance(600_000);
    assert_eq!(rt.fetch("h", "t", 0), 1, "the last one never expires");
}

#[test]
fn empty_ids_name_a_group_for_offsets_only() {
    let mut rt = Runtime::undelayed();
    let ticket = rt.commit(&Commit::new("", 5));
    assert_eq!(rt.error(ticket), ErrorCode::None);
    assert_eq!(rt.fetch("", "t", 0), 5);
    let ticket = rt.join(&Join::new(""));
    assert_eq!(rt.error(ticket), ErrorCode::InvalidGroupId);
}

#[test]
fn requests_with_nothing_in_them_are_answered() {
    use yuxi_protocol::messages::*;
    let mut rt = Runtime::undelayed();
    for request in [
        GroupRequest::Join(JoinGroupRequest::default()),
        GroupRequest::Sync(SyncGroupRequest::default()),
        GroupRequest::Leave(LeaveGroupRequest::default()),
        GroupRequest::OffsetCommit(OffsetCommitRequest::default()),
        GroupRequest::OffsetFetch(OffsetFetchRequest::default()),
        GroupRequest::DescribeGroups(DescribeGroupsRequest::default()),
        GroupRequest::ListGroups(ListGroupsRequest::default()),
    ] {
        let ticket = rt.send(5, request);
        assert!(!rt.is_waiting(ticket));
    }
    rt.send(
        2,
        GroupRequest::DeleteGroups(DeleteGroupsRequest::default()),
    );
    rt.send(
        0,
        GroupRequest::OffsetDelete(OffsetDeleteRequest::default()),
    );
    assert!(rt.log.is_empty());
}
