//! Every answer can be encoded in every version that is served. (The test runtime
//! encodes and decodes each answer that it delivers; here all paths and versions are
//! walked.)

use std::ops::RangeInclusive;

use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    messages::{
        ConsumerGroupDescribeRequest, DeleteGroupsRequest, DescribeGroupsRequest,
        ListGroupsRequest, OffsetDeleteRequest, OffsetFetchRequest, TxnOffsetCommitRequest,
        offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic},
        offset_fetch_request::{
            OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
        },
    },
};

use crate::{consumer_support::*, support::*};

/// API.md, rows 8, 9, 11–14, 15, 16, 28, 42, 47.
const JOIN: RangeInclusive<i16> = 0..=9;
const HEARTBEAT: RangeInclusive<i16> = 0..=4;
const LEAVE: RangeInclusive<i16> = 0..=5;
const SYNC: RangeInclusive<i16> = 0..=5;
const COMMIT: RangeInclusive<i16> = 2..=10;
const TXN_COMMIT: RangeInclusive<i16> = 0..=5;
const FETCH: RangeInclusive<i16> = 1..=10;
const DESCRIBE: RangeInclusive<i16> = 0..=6;
const LIST: RangeInclusive<i16> = 0..=5;
const DELETE: RangeInclusive<i16> = 0..=3;
const CONSUMER: RangeInclusive<i16> = 0..=1;
const OFFSET_DELETE: RangeInclusive<i16> = 0..=0;

fn names(ids: &[&str]) -> Vec<StrBytes> {
    ids.iter().map(|id| StrBytes::from(*id)).collect()
}

fn fetch_request(version: i16, all: bool) -> OffsetFetchRequest {
    let mut request = OffsetFetchRequest::default();
    if version < 8 {
        let mut topic = OffsetFetchRequestTopic::default();
        topic.name = "t".into();
        topic.partition_indexes = vec![0, 1];
        request.group_id = "g".into();
        request.topics = (!all || version < 2).then(|| vec![topic]);
        return request;
    }
    let mut topic = OffsetFetchRequestTopics::default();
    topic.name = "t".into();
    topic.partition_indexes = vec![0, 1];
    let mut group = OffsetFetchRequestGroup::default();
    group.group_id = "g".into();
    group.topics = (!all).then(|| vec![topic]);
    request.groups = vec![group];
    request
}

fn offset_delete_request() -> OffsetDeleteRequest {
    let mut topic = OffsetDeleteRequestTopic::default();
    topic.name = "t".into();
    topic.partitions = vec![OffsetDeleteRequestPartition::default()];
    let mut request = OffsetDeleteRequest::default();
    request.group_id = "g".into();
    request.topics = vec![topic];
    request
}

fn txn_commit_request() -> TxnOffsetCommitRequest {
    TxnCommit::new("g", 9, 1).request()
}

fn describe_request() -> DescribeGroupsRequest {
    let mut request = DescribeGroupsRequest::default();
    request.groups = names(&["g", "unknown"]);
    request
}

fn consumer_describe_request() -> ConsumerGroupDescribeRequest {
    let mut request = ConsumerGroupDescribeRequest::default();
    request.group_ids = names(&["g", "unknown"]);
    request
}

fn delete_groups_request() -> DeleteGroupsRequest {
    let mut request = DeleteGroupsRequest::default();
    request.groups_names = names(&["g", "unknown"]);
    request
}

#[test]
fn joins_are_answered_in_every_version() {
    for version in JOIN {
        for instance_id in [None, Some("i")]
            .into_iter()
            .take(if version < 5 { 1 } else { 2 })
        {
            let mut rt = Runtime::undelayed();
            let join = Join {
                version,
                instance_id,
                ..Join::new("g")
            };
            let mut ticket = rt.join(&join);
            if rt.error(ticket) == ErrorCode::MemberIdRequired {
                let member_id = rt.joined(ticket).member_id.to_string();
                ticket = rt.join(&Join {
                    member_id: &member_id,
                    ..join.clone()
                });
            }
            let joined = rt.joined(ticket).clone();
            assert_eq!(
                (joined.error_code, joined.members.len()),
                (0, 1),
                "version {version}"
            );
            let member = joined.member_id.to_string();
            rt.sync("g", &member, 1, &[(&member, "x")]);
            // Back under its id, back without it, refused, and not written.
            rt.join(&Join {
                member_id: &member,
                ..join.clone()
            });
            rt.sync("g", &member, 2, &[(&member, "x")]);
            rt.join(&join);
            rt.join(&Join {
                protocols: &[],
                ..join.clone()
            });
            rt.join(&Join {
                session_ms: 1,
                ..join.clone()
            });
            for group in ["g", "new"] {
                rt.fail_next = Some(ErrorCode::KafkaStorageError);
                rt.join(&Join {
                    group,
                    ..join.clone()
                });
            }
        }
    }
}

#[test]
fn everything_else_is_answered_in_every_version() {
    let mut rt = Runtime::undelayed();
    let (members, generation) = rt.stable_group("g", 1);
    let member = members[0].as_str();
    for version in SYNC {
        for generation in [generation, generation + 1] {
            let request = sync_request("g", member, generation, &[]);
            rt.send(version, GroupRequest::Sync(request));
        }
    }
    for version in HEARTBEAT {
        for generation in [generation, generation + 1] {
            let request = heartbeat_request("g", member, generation);
            rt.send(version, GroupRequest::Heartbeat(request));
        }
    }
    for version in COMMIT {
        for generation in [generation, generation + 1] {
            let commit = Commit {
                version,
                member_id: member,
                generation,
                ..Commit::new("g", 7)
            };
            rt.commit(&commit);
        }
    }
    for version in TXN_COMMIT {
        let request = txn_commit_request();
        rt.send(version, GroupRequest::TxnOffsetCommit(request));
    }
    for version in FETCH {
        for all in [false, true] {
            rt.send(
                version,
                GroupRequest::OffsetFetch(fetch_request(version, all)),
            );
        }
    }
    for version in OFFSET_DELETE {
        rt.send(version, GroupRequest::OffsetDelete(offset_delete_request()));
    }
    for version in CONSUMER {
        for group in ["new", "g"] {
            let mut request = Beat::joining(group, "m", &["t"]).request();
            rt.send(version, GroupRequest::ConsumerHeartbeat(request.clone()));
            request.member_epoch = 1;
            rt.send(version, GroupRequest::ConsumerHeartbeat(request));
        }
        rt.send(
            version,
            GroupRequest::ConsumerDescribe(consumer_describe_request()),
        );
    }
    for version in DESCRIBE {
        rt.send(version, GroupRequest::DescribeGroups(describe_request()));
    }
    for version in LIST {
        rt.send(
            version,
            GroupRequest::ListGroups(ListGroupsRequest::default()),
        );
    }
    for version in DELETE {
        rt.send(version, GroupRequest::DeleteGroups(delete_groups_request()));
    }
    for version in LEAVE {
        for group in ["unknown", "g", ""] {
            let mut request = leave_request(group, &[(member, None)]);
            if version < 3 {
                request.members.clear();
                request.member_id = member.into();
            }
            rt.send(version, GroupRequest::Leave(request));
        }
    }
}

#[test]
fn every_refusal_and_every_failure_can_be_encoded() {
    let versions = |request: &GroupRequest| match request {
        GroupRequest::Join(_) => JOIN,
        GroupRequest::Sync(_) => SYNC,
        GroupRequest::Heartbeat(_) => HEARTBEAT,
        GroupRequest::Leave(_) => LEAVE,
        GroupRequest::OffsetCommit(_) => COMMIT,
        GroupRequest::TxnOffsetCommit(_) => TXN_COMMIT,
        GroupRequest::OffsetFetch(request) if request.groups.is_empty() => 1..=7,
        GroupRequest::OffsetFetch(_) => 8..=10,
        GroupRequest::OffsetDelete(_) => OFFSET_DELETE,
        GroupRequest::DescribeGroups(_) => DESCRIBE,
        GroupRequest::ListGroups(_) => LIST,
        GroupRequest::DeleteGroups(_) => DELETE,
        GroupRequest::ConsumerHeartbeat(_) | GroupRequest::ConsumerDescribe(_) => CONSUMER,
    };
    for request in [
        GroupRequest::Join(Join::new("g").request()),
        GroupRequest::Sync(sync_request("g", "m", 1, &[])),
        GroupRequest::Heartbeat(heartbeat_request("g", "m", 1)),
        GroupRequest::Leave(leave_request("g", &[("m", None)])),
        GroupRequest::OffsetCommit(Commit::new("g", 1).request()),
        GroupRequest::TxnOffsetCommit(txn_commit_request()),
        GroupRequest::OffsetFetch(fetch_request(1, false)),
        GroupRequest::OffsetFetch(fetch_request(9, false)),
        GroupRequest::OffsetDelete(offset_delete_request()),
        GroupRequest::DescribeGroups(describe_request()),
        GroupRequest::ListGroups(ListGroupsRequest::default()),
        GroupRequest::DeleteGroups(delete_groups_request()),
        GroupRequest::ConsumerHeartbeat(Beat::joining("g", "m", &["t"]).request()),
        GroupRequest::ConsumerDescribe(consumer_describe_request()),
    ] {
        for version in versions(&request) {
            for error in [ErrorCode::None, ErrorCode::NotCoordinator] {
                let refused = request.refused(version, error);
                assert_encodes(&refused, version);
                let failed = refused.failed(ErrorCode::CoordinatorNotAvailable);
                assert_encodes(&failed, version);
            }
        }
    }
}

#[test]
fn a_loading_shard_refuses_all_but_heartbeats() {
    let refused = |request: GroupRequest| request.refused(4, ErrorCode::CoordinatorLoadInProgress);
    let GroupResponse::Heartbeat(response) =
        refused(GroupRequest::Heartbeat(heartbeat_request("g", "m", 1)))
    else {
        panic!("a Heartbeat is answered by one");
    };
    assert_eq!(response.error_code, 0);
    let GroupResponse::Sync(response) = refused(GroupRequest::Sync(sync_request("g", "m", 1, &[])))
    else {
        panic!("a SyncGroup is answered by one");
    };
    assert_eq!(
        response.error_code,
        ErrorCode::CoordinatorLoadInProgress.code()
    );
}

#[test]
fn version_1_of_offset_fetch_has_its_error_at_each_partition() {
    let request = GroupRequest::OffsetFetch(fetch_request(1, false));
    let GroupResponse::OffsetFetch(response) = request.refused(1, ErrorCode::NotCoordinator) else {
        panic!("an OffsetFetch is answered by one");
    };
    let codes: Vec<i16> = response.topics[0]
        .partitions
        .iter()
        .map(|p| p.error_code)
        .collect();
    assert_eq!(codes, [ErrorCode::NotCoordinator.code(); 2]);
}

#[test]
fn a_null_protocol_name_is_empty_before_version_7() {
    for version in JOIN {
        let mut rt = Runtime::undelayed();
        let ticket = rt.join(&Join {
            version,
            session_ms: 1,
            ..Join::new("g")
        });
        let expected = (version < 7).then(StrBytes::default);
        assert_eq!(rt.joined(ticket).protocol_name, expected);
    }
}

#[test]
fn topic_ids_come_back_with_the_names_that_they_were_resolved_to() {
    let id = yuxi_protocol::codec::Uuid::from_bytes([7; 16]);
    let mut rt = Runtime::undelayed();
    let mut request = Commit::new("g", 42).request();
    request.topics[0].topic_id = id;
    let ticket = rt.send(10, GroupRequest::OffsetCommit(request));
    let GroupResponse::OffsetCommit(response) = rt.answer(ticket) else {
        panic!("an OffsetCommit is answered by one");
    };
    assert_eq!(response.topics[0].topic_id, id);
    let mut request = fetch_request(10, false);
    request.groups[0].topics.as_mut().expect("it names topics")[0].topic_id = id;
    let ticket = rt.send(10, GroupRequest::OffsetFetch(request));
    let GroupResponse::OffsetFetch(response) = rt.answer(ticket) else {
        panic!("an OffsetFetch is answered by one");
    };
    assert_eq!(response.groups[0].topics[0].topic_id, id);
    assert_eq!(
        response.groups[0].topics[0].partitions[0].committed_offset,
        42
    );
}
