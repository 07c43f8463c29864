//! What consumer groups (KIP-848) are for and how they are looked after: topics that come and
//! grow, regexes, assignors, offsets, administration.

use yuxi_coordinator::groups::{
    GroupRequest, GroupResponse,
    consumer::ConsumerRecord,
    records::{self, GroupRecord},
};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::TopicId,
    messages::{
        DeleteGroupsRequest, ListGroupsRequest, OffsetFetchRequest,
        offset_fetch_request::OffsetFetchRequestGroup,
    },
};

use crate::{consumer_support::*, support::*};

#[test]
fn topics_that_come_and_grow_are_read() {
    let (mut rt, _) = world(1);
    rt.beat(&Beat::joining("g", "m", &["t", "u"]));
    rt.cluster.set_topic("u", 1);
    let more = rt.beat(&Beat::of("g", "m", 1));
    assert_eq!((more.member_epoch, given(&more)), (2, Some(vec![0, 0])));
    rt.cluster.set_topic("t", 3);
    let more = rt.beat(&Beat::of("g", "m", 2));
    assert_eq!(given(&more), Some(vec![0, 0, 1, 2]));
    rt.cluster.set_topic("other", 3);
    let same = rt.beat(&Beat::of("g", "m", 3));
    assert_eq!((same.member_epoch, given(&same)), (3, None));
    rt.cluster.remove_topic("t");
    let told = rt.beat(&Beat::of("g", "m", 3));
    assert_eq!(given(&told), Some(vec![0]));
}

#[test]
fn a_regex_is_matched_with_whole_names_and_with_topics_that_come() {
    let mut rt = Runtime::undelayed();
    let orders = rt.cluster.set_topic("orders-1", 1);
    rt.cluster.set_topic("old-orders-1", 1);
    let joined = rt.beat(&Beat {
        topics: None,
        regex: Some("orders-.|x"),
        ..Beat::joining("g", "m", &[])
    });
    let topics = joined.assignment.as_ref().expect("an assignment");
    assert_eq!(topics.topic_partitions.len(), 1);
    assert_eq!(TopicId::from(topics.topic_partitions[0].topic_id), orders);
    rt.cluster.set_topic("orders-2", 1);
    // Not at once: topics may come in great numbers.
    assert_eq!(given(&rt.beat(&Beat::of("g", "m", 1))), None);
    rt.advance(10_000);
    assert_eq!(given(&rt.beat(&Beat::of("g", "m", 1))), Some(vec![0, 0]));
    let described = rt.describe_consumers("g");
    let regex = described.members[0].subscribed_topic_regex.clone();
    assert_eq!(regex.as_deref(), Some("orders-.|x"));
    rt.reload();
    assert_eq!(rt.describe_consumers("g"), described);
    // Nobody uses it any more.
    rt.beat(&Beat {
        regex: Some(""),
        topics: Some(&["t"]),
        ..Beat::of("g", "m", 2)
    });
    let forgotten = rt.log.iter().any(|record| {
        let decoded = records::decode(&record.key, record.value.as_ref());
        matches!(
            decoded,
            Ok(GroupRecord::Consumer(ConsumerRecord::Regex {
                value: None,
                ..
            }))
        )
    });
    assert!(forgotten);
}

#[test]
fn a_regex_that_is_wrong_or_explosive_is_refused_in_no_time() {
    let mut rt = Runtime::undelayed();
    for number in 0..2_000 {
        rt.cluster
            .set_topic(&format!("{}-{number}", "a".repeat(200)), 1);
    }
    let started = std::time::Instant::now();
    let nested = format!("{}a{}", "(".repeat(300), ")".repeat(300));
    let wrong = [
        "(",
        "a)(b",
        "[z-a]",
        "*",
        r"(?P<n>a)\1",
        r"(?=a)b",
        "a{1000}{1000}{1000}",
        r"(\pL{50}){50}",
        &nested,
    ];
    for regex in wrong {
        let refused = rt.beat(&Beat {
            topics: None,
            regex: Some(regex),
            ..Beat::joining("g", "m", &[])
        });
        assert_eq!(
            error_of(&refused),
            ErrorCode::InvalidRegularExpression,
            "{regex}"
        );
    }
    assert!(rt.log.is_empty());
    // What explodes where backtracking is used is matched in linear time.
    let slow_elsewhere = ["(a+)+b", "(a|aa)+b", "(.*a){20}b", "(a?){60}a{60}"];
    for (number, regex) in slow_elsewhere.iter().enumerate() {
        let taken = rt.beat(&Beat {
            topics: None,
            regex: Some(regex),
            ..Beat::joining("g", &format!("m{number}"), &[])
        });
        assert_eq!(error_of(&taken), ErrorCode::None, "{regex}");
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn the_assignor_that_most_members_want_is_taken() {
    let mut rt = Runtime::undelayed();
    rt.cluster.set_topic("t", 2);
    rt.cluster.set_topic("u", 2);
    let range = |member| Beat {
        assignor: Some("range"),
        ..Beat::joining("g", member, &["t", "u"])
    };
    rt.beat(&range("a"));
    rt.beat(&range("b"));
    let described = rt.describe_consumers("g");
    assert_eq!(described.assignor_name.as_str(), "range");
    let target = &described.members[0].target_assignment;
    let partitions: Vec<&[i32]> = target
        .topic_partitions
        .iter()
        .map(|topic| &topic.partitions[..])
        .collect();
    assert_eq!(partitions, [&[0][..], &[0]], "the same of both topics");
}

#[test]
fn offsets_are_committed_and_read_by_members_of_this_epoch_only() {
    let (mut rt, _) = world(1);
    rt.beat(&Beat::joining("g", "m", &["t"]));
    let commit = |member_id, generation, version| Commit {
        version,
        member_id,
        generation,
        ..Commit::new("g", 7)
    };
    for (commit, expected) in [
        (commit("m", 1, 9), ErrorCode::None),
        (commit("m", 0, 9), ErrorCode::StaleMemberEpoch),
        (commit("m", 2, 9), ErrorCode::StaleMemberEpoch),
        (commit("m", 1, 8), ErrorCode::UnsupportedVersion),
        // Who commits so does not know what a stale member epoch is.
        (commit("m", 0, 8), ErrorCode::UnsupportedVersion),
        (commit("zombie", 1, 9), ErrorCode::UnknownMemberId),
        // An administrator does not commit over the members' heads.
        (commit("", -1, 9), ErrorCode::UnknownMemberId),
    ] {
        let ticket = rt.commit(&commit);
        assert_eq!(rt.error(ticket), expected);
    }
    let fetch = |rt: &mut Runtime, member: Option<&str>, epoch| {
        let mut group = OffsetFetchRequestGroup::default();
        group.group_id = "g".into();
        group.member_id = member.map(StrBytes::from);
        group.member_epoch = epoch;
        group.topics = None;
        let mut request = OffsetFetchRequest::default();
        request.groups = vec![group];
        let ticket = rt.send(9, GroupRequest::OffsetFetch(request));
        let GroupResponse::OffsetFetch(response) = rt.answer(ticket) else {
            panic!("an OffsetFetch is answered by one");
        };
        ErrorCode::from_code(response.groups[0].error_code).expect("a known code")
    };
    assert_eq!(fetch(&mut rt, Some("m"), 1), ErrorCode::None);
    assert_eq!(fetch(&mut rt, None, -1), ErrorCode::None);
    assert_eq!(fetch(&mut rt, Some("m"), 0), ErrorCode::StaleMemberEpoch);
    assert_eq!(
        fetch(&mut rt, Some("zombie"), 1),
        ErrorCode::UnknownMemberId
    );
    // As part of a transaction: the errors are those that producers know.
    for (member_id, generation, expected) in [
        ("m", 1, ErrorCode::None),
        ("", -1, ErrorCode::None),
        ("m", 0, ErrorCode::IllegalGeneration),
        ("zombie", 1, ErrorCode::UnknownMemberId),
    ] {
        let ticket = rt.txn_commit(&TxnCommit {
            member_id,
            generation,
            ..TxnCommit::new("g", 9, 1)
        });
        assert_eq!(rt.error(ticket), expected);
    }
    rt.beat(&Beat::of("g", "m", -1));
    let ticket = rt.commit(&commit("", -1, 9));
    assert_eq!(rt.error(ticket), ErrorCode::None, "nobody is there to mind");
}

#[test]
fn groups_are_listed_described_and_deleted_by_their_kind() {
    let (mut rt, _) = world(1);
    rt.beat(&Beat::joining("g", "m", &["t"]));
    rt.commit(&Commit {
        member_id: "m",
        generation: 1,
        ..Commit::new("g", 7)
    });
    rt.commit(&Commit::new("classic", 1));
    let list = |rt: &mut Runtime, kind: &str| {
        let mut request = ListGroupsRequest::default();
        request.types_filter = vec![kind.into()];
        let ticket = rt.send(5, GroupRequest::ListGroups(request));
        let GroupResponse::ListGroups(response) = rt.answer(ticket) else {
            panic!("a ListGroups is answered by one");
        };
        let groups = response.groups.iter();
        groups
            .map(|group| {
                let texts = [&group.group_id, &group.group_type, &group.group_state];
                texts.map(ToString::to_string).join(" ")
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(list(&mut rt, "Consumer"), ["g consumer Stable"]);
    assert_eq!(list(&mut rt, "classic"), ["classic classic Empty"]);
    assert_eq!(rt.state("g"), "Dead", "it is no classic group");
    let other = rt.describe_consumers("classic");
    assert_eq!(other.error_code, ErrorCode::GroupIdNotFound.code());
    let delete = |rt: &mut Runtime| {
        let mut request = DeleteGroupsRequest::default();
        request.groups_names = vec!["g".into()];
        let ticket = rt.send(2, GroupRequest::DeleteGroups(request));
        rt.error(ticket)
    };
    assert_eq!(delete(&mut rt), ErrorCode::NonEmptyGroup);
    rt.beat(&Beat::of("g", "m", -1));
    assert_eq!(delete(&mut rt), ErrorCode::None);
    assert_eq!(delete(&mut rt), ErrorCode::GroupIdNotFound);
    assert_eq!(rt.fetch("g", "t", 0), -1);
    rt.reload();
    assert!(list(&mut rt, "consumer").is_empty());
}

#[test]
fn an_empty_group_goes_when_its_offsets_are_past_their_retention() {
    let (mut rt, _) = world(1);
    rt.beat(&Beat::joining("g", "m", &["t"]));
    rt.commit(&Commit {
        member_id: "m",
        generation: 1,
        ..Commit::new("g", 7)
    });
    rt.beat(&Beat::of("g", "m", -1));
    rt.advance(6 * 24 * 3_600_000);
    assert_eq!(rt.fetch("g", "t", 0), 7);
    rt.advance(2 * 24 * 3_600_000);
    assert_eq!(rt.fetch("g", "t", 0), -1);
    let gone = rt.describe_consumers("g");
    assert_eq!(gone.error_code, ErrorCode::GroupIdNotFound.code());
    rt.reload();
    assert_eq!(rt.shard.counts().consumer_groups.len(), 0);
}
