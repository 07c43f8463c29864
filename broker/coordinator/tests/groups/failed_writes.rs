//! Nothing is reported as done, and nothing stays half done, when a write fails.

use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::{codec::StrBytes, error_code::ErrorCode, messages::DeleteGroupsRequest};

use crate::support::*;

#[test]
fn an_assignment_that_is_not_written_makes_the_members_rejoin() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 2);
    for member in &members {
        rt.join(&Join {
            member_id: member,
            ..Join::new("g")
        });
    }
    let follower = rt.sync("g", &members[1], generation + 1, &[]);
    rt.fail_next = Some(ErrorCode::NotEnoughReplicas);
    let leader = rt.sync("g", &members[0], generation + 1, &[(&members[0], "x")]);
    assert_eq!(rt.error(leader), ErrorCode::CoordinatorNotAvailable);
    assert_eq!(rt.error(follower), ErrorCode::CoordinatorNotAvailable);
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
    assert_eq!(rt.joined(tickets[0]).generation_id, generation + 2);
    assert_eq!(rt.joined(tickets[1]).generation_id, generation + 2);
}

#[test]
fn a_write_error_is_told_in_words_that_clients_know() {
    for (failure, told) in [
        (
            ErrorCode::NotEnoughReplicas,
            ErrorCode::CoordinatorNotAvailable,
        ),
        (
            ErrorCode::UnknownTopicOrPartition,
            ErrorCode::CoordinatorNotAvailable,
        ),
        (
            ErrorCode::RequestTimedOut,
            ErrorCode::CoordinatorNotAvailable,
        ),
        (ErrorCode::NotLeaderOrFollower, ErrorCode::NotCoordinator),
        (ErrorCode::KafkaStorageError, ErrorCode::NotCoordinator),
        (ErrorCode::MessageTooLarge, ErrorCode::UnknownServerError),
        (ErrorCode::RecordListTooLarge, ErrorCode::UnknownServerError),
        (ErrorCode::NotCoordinator, ErrorCode::NotCoordinator),
    ] {
        let mut rt = Runtime::undelayed();
        rt.fail_next = Some(failure);
        let ticket = rt.commit(&Commit::new("g", 1));
        assert_eq!(rt.error(ticket), told, "{failure:?}");
    }
}

#[test]
fn a_commit_that_is_not_written_is_not_read() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit::new("g", 1));
    rt.fail_next = Some(ErrorCode::KafkaStorageError);
    rt.commit(&Commit::new("g", 2));
    rt.fail_next = Some(ErrorCode::KafkaStorageError);
    rt.commit(&Commit::new("other", 2));
    assert_eq!(rt.fetch("g", "t", 0), 1);
    assert_eq!(rt.state("other"), "Dead");
}

#[test]
fn a_group_that_is_not_written_is_forgotten() {
    let mut rt = Runtime::undelayed();
    for version in [3, 9] {
        rt.fail_next = Some(ErrorCode::NotLeaderOrFollower);
        let ticket = rt.join(&Join {
            version,
            ..Join::new("g")
        });
        assert_eq!(rt.error(ticket), ErrorCode::NotCoordinator);
        assert_eq!(rt.state("g"), "Dead");
        assert_eq!(
            rt.next_deadline_ms(),
            Some(START_MS + 600_000),
            "no timer is left"
        );
    }
    rt.stable_group("g", 1);
}

#[test]
fn a_static_member_that_could_not_be_replaced_is_as_it_was() {
    let mut rt = Runtime::undelayed();
    let join = Join {
        instance_id: Some("i"),
        ..Join::new("g")
    };
    let ticket = rt.join(&join);
    let member = rt.joined(ticket).member_id.to_string();
    rt.sync("g", &member, 1, &[(&member, "x")]);
    rt.fail_next = Some(ErrorCode::KafkaStorageError);
    let ticket = rt.join(&join);
    assert_eq!(rt.error(ticket), ErrorCode::NotCoordinator);
    assert_eq!(rt.joined(ticket).member_id.as_str(), "");
    assert_eq!(rt.state("g"), "Stable");
    let ticket = rt.heartbeat("g", &member, 1);
    assert_eq!(rt.error(ticket), ErrorCode::None);
    rt.advance(9_999);
    assert_eq!(rt.state("g"), "Stable");
    rt.advance(1);
    assert_eq!(rt.state("g"), "Empty", "its session is watched again");
}

#[test]
fn a_leave_that_empties_the_group_is_not_confirmed_when_that_is_not_written() {
    let mut rt = Runtime::undelayed();
    let (members, _) = rt.stable_group("g", 1);
    rt.fail_next = Some(ErrorCode::RequestTimedOut);
    let ticket = rt.leave("g", &[(&members[0], None)]);
    assert_eq!(rt.error(ticket), ErrorCode::CoordinatorNotAvailable);
    assert_eq!(rt.state("g"), "Empty");
    rt.reload();
    assert_eq!(
        rt.state("g"),
        "Stable",
        "the log has the member still, until its session ends"
    );
    rt.advance(10_000);
    assert_eq!(rt.state("g"), "Empty");
}

#[test]
fn a_deletion_that_is_not_written_deletes_nothing() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit::new("g", 1));
    rt.fail_next = Some(ErrorCode::KafkaStorageError);
    let mut request = DeleteGroupsRequest::default();
    request.groups_names = vec!["g".into(), "unknown".into()];
    let ticket = rt.send(2, GroupRequest::DeleteGroups(request));
    let GroupResponse::DeleteGroups(response) = rt.answer(ticket) else {
        panic!("a DeleteGroups is answered by one");
    };
    let codes: Vec<i16> = response
        .results
        .iter()
        .map(|result| result.error_code)
        .collect();
    let expected = [ErrorCode::NotCoordinator, ErrorCode::GroupIdNotFound].map(ErrorCode::code);
    assert_eq!(codes, expected);
    assert_eq!(rt.fetch("g", "t", 0), 1);
}

#[test]
fn a_clean_up_that_is_not_written_is_tried_again_at_the_next_interval() {
    let mut rt = Runtime::undelayed();
    for group in 0..20_000 {
        rt.commit(&Commit {
            version: 2,
            retention_ms: 1,
            ..Commit::new(&format!("g{group}"), 1)
        });
    }
    rt.fail_next = Some(ErrorCode::KafkaStorageError);
    rt.advance(600_000);
    assert_eq!(rt.shard.counts().offsets, 20_000);
    assert_eq!(
        rt.next_deadline_ms(),
        Some(rt.now_ms + 600_000),
        "it does not spin"
    );
    rt.advance(600_000);
    assert_eq!(rt.shard.counts().offsets, 0);
}

#[test]
fn topics_deleted_without_a_write_keeps_the_offsets() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit::new("g", 1));
    let topics = std::collections::BTreeSet::from([StrBytes::from("t")]);
    let effects = rt.shard.topics_deleted(&topics);
    rt.fail_next = Some(ErrorCode::KafkaStorageError);
    rt.settle(effects);
    assert_eq!(rt.fetch("g", "t", 0), 1);
}

#[test]
#[should_panic(expected = "no write is under way")]
fn a_call_before_the_outcome_of_a_write_is_known_is_a_bug_of_the_runtime() {
    let mut rt = Runtime::undelayed();
    rt.commit(&Commit::new("g", 1));
    let topics = std::collections::BTreeSet::from([StrBytes::from("t")]);
    let effects = rt.shard.topics_deleted(&topics);
    assert!(!effects.records.is_empty());
    let _ = rt.shard.tick(&rt.cluster, rt.now());
}
