//! Which shard a group belongs to, and requests about groups of several shards.

use yuxi_coordinator::groups::{GroupRequest, GroupResponse, partition_for};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    messages::{
        DeleteGroupsRequest, DescribeGroupsRequest, ListGroupsRequest, OffsetFetchRequest,
        offset_fetch_request::OffsetFetchRequestGroup,
    },
};

use crate::support::*;

#[test]
fn a_group_is_on_the_partition_where_kafka_looks_for_it() {
    // hashCode() of the JDK: "" 0, "a" 97, "g" 103, "hello" 99162322,
    // "polygenelubricants" Integer.MIN_VALUE, "é" 233, U+1F980 as two chars.
    for (group, hash) in [
        ("", 0),
        ("a", 97),
        ("g", 103),
        ("hello", 99_162_322),
        ("polygenelubricants", 0),
        ("\u{e9}", 233),
        ("\u{1f980}", 0xd83e * 31 + 0xdd80),
    ] {
        assert_eq!(partition_for(group, 50), hash % 50, "{group}");
    }
    assert_eq!(partition_for("a", 1), 0);
    for group in [
        "console-consumer-12345",
        "zzzzzzzzzzzzzzzz",
        "\u{ffff}\u{ffff}\u{ffff}",
    ] {
        assert!((0..50).contains(&partition_for(group, 50)));
    }
}

#[test]
fn a_request_about_one_group_is_its_own_only_part() {
    let parts = GroupRequest::Join(Join::new("hello").request()).split(50);
    assert_eq!(
        parts
            .iter()
            .map(|(partition, _)| *partition)
            .collect::<Vec<_>>(),
        [22]
    );
    let mut request = OffsetFetchRequest::default();
    request.group_id = "hello".into();
    assert_eq!(GroupRequest::OffsetFetch(request).split(50)[0].0, 22);
}

#[test]
fn a_request_about_many_groups_is_split_and_its_answers_merged() {
    let names: Vec<StrBytes> = (0..100)
        .map(|n| StrBytes::from(format!("group-{n}")))
        .collect();
    let mut describe = DescribeGroupsRequest::default();
    describe.groups.clone_from(&names);
    describe.include_authorized_operations = true;
    let mut delete = DeleteGroupsRequest::default();
    delete.groups_names.clone_from(&names);
    let mut fetch = OffsetFetchRequest::default();
    fetch.require_stable = true;
    for name in &names {
        let mut group = OffsetFetchRequestGroup::default();
        group.group_id = name.clone();
        fetch.groups.push(group);
    }
    for request in [
        GroupRequest::DescribeGroups(describe),
        GroupRequest::DeleteGroups(delete),
        GroupRequest::OffsetFetch(fetch),
    ] {
        let parts = request.split(50);
        assert!(parts.len() > 10);
        let answers = parts.into_iter().map(|(partition, part)| {
            let answer = part.refused(9, ErrorCode::NotCoordinator);
            for group in groups_of(&answer) {
                assert_eq!(partition_for(&group, 50), partition);
            }
            answer
        });
        let merged = answers
            .reduce(GroupResponse::merge)
            .expect("there are parts");
        let mut groups = groups_of(&merged);
        groups.sort();
        let mut expected = names.clone();
        expected.sort();
        assert_eq!(groups, expected);
    }
}

#[test]
fn a_list_asks_every_partition_and_an_empty_question_still_has_an_answer() {
    let parts = GroupRequest::ListGroups(ListGroupsRequest::default()).split(50);
    let partitions: Vec<i32> = parts.into_iter().map(|(partition, _)| partition).collect();
    assert_eq!(partitions, (0..50).collect::<Vec<_>>());
    let parts = GroupRequest::DescribeGroups(DescribeGroupsRequest::default()).split(50);
    assert_eq!(parts.len(), 1);
}

fn groups_of(response: &GroupResponse) -> Vec<StrBytes> {
    match response {
        GroupResponse::DescribeGroups(response) => response
            .groups
            .iter()
            .map(|group| group.group_id.clone())
            .collect(),
        GroupResponse::DeleteGroups(response) => response
            .results
            .iter()
            .map(|result| result.group_id.clone())
            .collect(),
        GroupResponse::OffsetFetch(response) => response
            .groups
            .iter()
            .map(|group| group.group_id.clone())
            .collect(),
        other => panic!("{other:?} is not about many groups"),
    }
}
