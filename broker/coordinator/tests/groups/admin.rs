//! Describing, listing and deleting groups.

use yuxi_coordinator::groups::{GroupRequest, GroupResponse};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    messages::{DeleteGroupsRequest, DescribeGroupsRequest, ListGroupsRequest},
};

use crate::support::*;

fn list(rt: &mut Runtime, states: &[&str], types: &[&str]) -> Vec<(String, String, String)> {
    let mut request = ListGroupsRequest::default();
    request.states_filter = states.iter().map(|state| StrBytes::from(*state)).collect();
    request.types_filter = types.iter().map(|kind| StrBytes::from(*kind)).collect();
    let ticket = rt.send(5, GroupRequest::ListGroups(request));
    let GroupResponse::ListGroups(response) = rt.answer(ticket) else {
        panic!("a ListGroups is answered by one");
    };
    let listed = response.groups.iter().map(|group| {
        assert_eq!(group.group_type.as_str(), "classic");
        let text = |text: &StrBytes| text.to_string();
        (
            text(&group.group_id),
            text(&group.protocol_type),
            text(&group.group_state),
        )
    });
    listed.collect()
}

#[test]
fn groups_are_listed_with_their_states_and_by_filters() {
    let mut rt = Runtime::undelayed();
    rt.stable_group("stable", 1);
    rt.join_new(&Join::new("completing"));
    rt.commit(&Commit::new("simple", 1));
    let row = |group: &str, kind: &str, state: &str| {
        (group.to_owned(), kind.to_owned(), state.to_owned())
    };
    let completing = row("completing", "consumer", "CompletingRebalance");
    let simple = row("simple", "", "Empty");
    let stable = row("stable", "consumer", "Stable");
    let all = vec![completing.clone(), simple.clone(), stable.clone()];
    assert_eq!(list(&mut rt, &[], &[]), all);
    assert_eq!(list(&mut rt, &[], &["Classic"]), all);
    assert_eq!(list(&mut rt, &[], &["consumer", "nonsense"]), []);
    assert_eq!(list(&mut rt, &[" stable "], &[]), [stable]);
    assert_eq!(
        list(&mut rt, &["EMPTY", "CompletingRebalance"], &[]),
        [completing, simple]
    );
    assert_eq!(list(&mut rt, &["Dead", "nonsense"], &[]), []);
}

#[test]
fn a_stable_group_is_described_with_what_its_members_said_and_got() {
    let mut rt = Runtime::undelayed();
    let (members, _) = rt.stable_group("g", 2);
    let group = rt.describe("g");
    assert_eq!(
        (
            group.error_code,
            group.group_state.as_str(),
            group.protocol_type.as_str()
        ),
        (0, "Stable", "consumer"),
    );
    assert_eq!(group.protocol_data.as_str(), "range");
    assert_eq!(group.members.len(), 2);
    for member in &group.members {
        assert!(members.contains(&member.member_id.to_string()));
        assert_eq!(
            (member.client_id.as_str(), member.client_host.as_str()),
            ("client", "/127.0.0.1")
        );
        assert_eq!(
            member.member_metadata.as_ref(),
            Join::new("g").protocols[0].1
        );
        assert_eq!(
            member.member_assignment.as_ref(),
            member.member_id.as_bytes()
        );
    }
}

#[test]
fn a_rebalancing_group_is_described_without_metadata() {
    let mut rt = Runtime::undelayed();
    rt.join_new(&Join::new("g"));
    let group = rt.describe("g");
    assert_eq!(group.group_state.as_str(), "CompletingRebalance");
    assert_eq!(group.protocol_data.as_str(), "");
    assert!(group.members[0].member_metadata.is_empty());
}

#[test]
fn an_unknown_group_is_dead_and_since_version_6_an_error() {
    let mut rt = Runtime::undelayed();
    for (version, expected) in [(5, ErrorCode::None), (6, ErrorCode::GroupIdNotFound)] {
        let mut request = DescribeGroupsRequest::default();
        request.groups = vec!["unknown".into()];
        let ticket = rt.send(version, GroupRequest::DescribeGroups(request));
        let GroupResponse::DescribeGroups(response) = rt.answer(ticket) else {
            panic!("a DescribeGroups is answered by one");
        };
        let group = &response.groups[0];
        assert_eq!(
            (group.group_state.as_str(), group.error_code),
            ("Dead", expected.code())
        );
        let message = group.error_message.as_deref();
        assert_eq!(
            message,
            (version == 6).then_some("Group unknown not found.")
        );
    }
}

#[test]
fn only_groups_without_members_are_deleted_and_their_offsets_with_them() {
    let mut rt = Runtime::undelayed();
    rt.stable_group("stable", 1);
    rt.commit(&Commit::new("simple", 1));
    rt.commit(&Commit {
        partition: 1,
        ..Commit::new("simple", 1)
    });
    let mut request = DeleteGroupsRequest::default();
    request.groups_names = ["stable", "simple", "unknown", "simple"]
        .map(StrBytes::from)
        .to_vec();
    let ticket = rt.send(2, GroupRequest::DeleteGroups(request));
    let GroupResponse::DeleteGroups(response) = rt.answer(ticket) else {
        panic!("a DeleteGroups is answered by one");
    };
    let results: Vec<_> = response
        .results
        .iter()
        .map(|result| (result.group_id.as_str(), result.error_code))
        .collect();
    assert_eq!(
        results,
        [
            ("stable", ErrorCode::NonEmptyGroup.code()),
            ("simple", 0),
            ("unknown", ErrorCode::GroupIdNotFound.code()),
        ]
    );
    for _ in 0..2 {
        assert_eq!(rt.state("simple"), "Dead");
        assert!(rt.fetch_all("simple").is_empty());
        assert_eq!(rt.state("stable"), "Stable");
        rt.reload();
    }
}

#[test]
fn a_group_can_come_again_after_it_was_deleted() {
    let mut rt = Runtime::undelayed();
    rt.stable_group("g", 1);
    rt.advance(20_000);
    let mut request = DeleteGroupsRequest::default();
    request.groups_names = vec!["g".into()];
    let ticket = rt.send(2, GroupRequest::DeleteGroups(request));
    assert_eq!(rt.error(ticket), ErrorCode::None);
    let (_, generation) = rt.stable_group("g", 1);
    assert_eq!(generation, 1);
    rt.reload();
    assert_eq!(rt.state("g"), "Stable");
}
