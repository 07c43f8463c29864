//! Every partition has one reader who wants it, shares are even, and what can stay stays.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use yuxi_protocol::{codec::StrBytes, ids::TopicId};

use super::{Assignor, Partitions, Subscriber, Subscribers};

fn topic(number: u8) -> TopicId {
    TopicId::from_bytes([number; 16])
}

/// Members by name, with the topics that each reads.
type Members = BTreeMap<StrBytes, BTreeSet<TopicId>>;

fn assign(
    assignor: Assignor,
    members: &Members,
    topics: &BTreeMap<TopicId, i32>,
    before: &BTreeMap<StrBytes, Partitions>,
) -> BTreeMap<StrBytes, Partitions> {
    assignor.assign(&Subscribers {
        members: members
            .iter()
            .map(|(id, topics)| Subscriber {
                id,
                instance_id: None,
                rack_id: None,
                topics: topics.clone(),
                before: before.get(id),
            })
            .collect(),
        topics: topics.clone(),
        racks: &|_, _| Vec::new(),
    })
}

fn same(count: usize, topics: &BTreeMap<TopicId, i32>) -> Members {
    let all: BTreeSet<TopicId> = topics.keys().copied().collect();
    (0..count)
        .map(|number| (StrBytes::from(format!("m{number:03}")), all.clone()))
        .collect()
}

fn moved(before: &BTreeMap<StrBytes, Partitions>, after: &BTreeMap<StrBytes, Partitions>) -> usize {
    after
        .iter()
        .map(|(member, partitions)| {
            let had = before.get(member);
            partitions
                .iter()
                .filter(|(topic, at)| had.is_none_or(|had| !had.contains(*topic, *at)))
                .count()
        })
        .sum()
}

#[test]
fn a_member_that_joins_takes_its_share_and_nothing_else_moves() {
    let topics = BTreeMap::from([(topic(1), 1_000)]);
    let before = assign(
        Assignor::Uniform,
        &same(100, &topics),
        &topics,
        &BTreeMap::new(),
    );
    let after = assign(Assignor::Uniform, &same(101, &topics), &topics, &before);
    assert_eq!(moved(&before, &after), 9);
    assert_eq!(after[&StrBytes::from("m100")].len(), 9);
    for (member, had) in &before {
        assert!(
            after[member]
                .iter()
                .all(|(topic, at)| had.contains(topic, at))
        );
    }
}

#[test]
fn what_a_member_leaves_is_all_that_moves() {
    let topics = BTreeMap::from([(topic(1), 500), (topic(2), 500)]);
    let members = same(100, &topics);
    let before = assign(Assignor::Uniform, &members, &topics, &BTreeMap::new());
    let mut left = members.clone();
    left.remove(&StrBytes::from("m042"));
    let after = assign(Assignor::Uniform, &left, &topics, &before);
    assert_eq!(moved(&before, &after), 10);
}

#[test]
fn ranges_of_several_topics_go_together() {
    let topics = BTreeMap::from([(topic(1), 3), (topic(2), 3)]);
    let shares = assign(
        Assignor::Range,
        &same(2, &topics),
        &topics,
        &BTreeMap::new(),
    );
    let of = |member: &str| shares[&StrBytes::from(member)].iter().collect::<Vec<_>>();
    assert_eq!(
        of("m000"),
        [(topic(1), 0), (topic(1), 1), (topic(2), 0), (topic(2), 1)]
    );
    assert_eq!(of("m001"), [(topic(1), 2), (topic(2), 2)]);
}

#[test]
fn a_free_partition_goes_to_a_member_near_it_where_that_is_as_even() {
    let ids: Vec<StrBytes> = ["a", "b"].map(StrBytes::from).to_vec();
    let racks: Vec<StrBytes> = ["east", "west"].map(StrBytes::from).to_vec();
    let members = ids.iter().zip(&racks).map(|(id, rack)| Subscriber {
        id,
        instance_id: None,
        rack_id: Some(rack),
        topics: BTreeSet::from([topic(1)]),
        before: None,
    });
    let shares = Assignor::Uniform.assign(&Subscribers {
        members: members.collect(),
        topics: BTreeMap::from([(topic(1), 4)]),
        // The odd ones are in the east.
        racks: &|_, partition| vec![racks[usize::from(partition % 2 == 0)].clone()],
    });
    let of = |member: &str| {
        shares[&StrBytes::from(member)]
            .iter()
            .map(|(_, at)| at)
            .collect::<Vec<_>>()
    };
    assert_eq!((of("a"), of("b")), (vec![1, 3], vec![0, 2]));
}

/// Several rounds of members and what they read, over topics that stay.
fn rounds() -> impl Strategy<Value = (Vec<i32>, Vec<Vec<Option<u8>>>, bool)> {
    (
        proptest::collection::vec(0..12_i32, 1..5),
        proptest::collection::vec(
            proptest::collection::vec(proptest::option::of(1..16_u8), 6),
            1..5,
        ),
        any::<bool>(),
    )
}

proptest! {
    #[test]
    fn every_partition_has_one_reader_who_wants_it((sizes, rounds, mixed) in rounds()) {
        let topics: BTreeMap<TopicId, i32> =
            (1..).zip(&sizes).map(|(number, size)| (topic(number), *size)).collect();
        for assignor in Assignor::ALL {
            let mut before: BTreeMap<StrBytes, Partitions> = BTreeMap::new();
            for round in &rounds {
                let members: Members = (0..)
                    .zip(round)
                    .filter_map(|(number, wants): (usize, _)| {
                        let wants = (*wants)?;
                        let reads = topics.keys().enumerate().filter(|(at, _)| {
                            !mixed || wants & (1 << at) != 0
                        });
                        Some((format!("m{number}").into(), reads.map(|(_, id)| *id).collect()))
                    })
                    .collect();
                let after = assign(assignor, &members, &topics, &before);
                check(&members, &topics, &after);
                if assignor == Assignor::Uniform {
                    check_even(&members, &after);
                    let again = assign(assignor, &members, &topics, &after);
                    prop_assert_eq!(moved(&after, &again), 0, "at rest nothing moves");
                }
                before = after;
            }
        }
    }
}

fn check(
    members: &Members,
    topics: &BTreeMap<TopicId, i32>,
    shares: &BTreeMap<StrBytes, Partitions>,
) {
    let mut readers: BTreeMap<(TopicId, i32), usize> = BTreeMap::new();
    for (member, share) in shares {
        for (topic, partition) in share.iter() {
            assert!(
                members[member].contains(&topic),
                "{member} does not read that"
            );
            *readers.entry((topic, partition)).or_default() += 1;
        }
    }
    for (&id, &count) in topics {
        let wanted = members.values().any(|reads| reads.contains(&id));
        for partition in 0..count {
            let found = readers.get(&(id, partition)).copied().unwrap_or(0);
            assert_eq!(found, usize::from(wanted), "partition {partition}");
        }
    }
}

/// Nobody has two more than another who could take one of them.
fn check_even(members: &Members, shares: &BTreeMap<StrBytes, Partitions>) {
    for share in shares.values() {
        for (other, reads) in members {
            let could_move = share.iter().any(|(topic, _)| reads.contains(&topic));
            assert!(!could_move || share.len() <= shares[other].len() + 1);
        }
    }
}
