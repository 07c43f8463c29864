//! Spreading partitions over the members of a group. Pure: the members and the
//! partitions in, the assignment out; the same for every leader that computes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use yuxi_protocol::ids::TopicPartition;

use crate::config::Assignor;

/// A member as its leader knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) instance: Option<String>,
    pub(super) topics: BTreeSet<Arc<str>>,
    /// What it says it holds, and the generation in which it got that.
    pub(super) owned: Vec<TopicPartition>,
    pub(super) generation: i32,
}

pub(super) type Assignment = BTreeMap<String, Vec<TopicPartition>>;

/// Assigns every partition that anyone subscribes to. `counts` has the number of
/// partitions of each topic that exists.
pub(super) fn assign(
    assignor: Assignor,
    members: &[Member],
    counts: &BTreeMap<Arc<str>, i32>,
) -> Assignment {
    let mut members: Vec<&Member> = members.iter().collect();
    // Static members keep their place when they come back under another member id.
    members.sort_by_key(|member| (member.instance.is_none(), &member.instance, &member.id));
    let mut assignment = match assignor {
        Assignor::Range => range(&members, counts),
        Assignor::RoundRobin => round_robin(&members, counts),
        Assignor::CooperativeSticky => cooperative_sticky(&members, counts),
    };
    for member in members {
        assignment.entry(member.id.clone()).or_default().sort();
    }
    assignment
}

/// Of each topic, consecutive partitions for each of its members in turn.
fn range(members: &[&Member], counts: &BTreeMap<Arc<str>, i32>) -> Assignment {
    let mut assignment = Assignment::new();
    for (topic, count) in counts {
        let takers: Vec<_> = members
            .iter()
            .filter(|member| member.topics.contains(topic))
            .collect();
        let Ok(takers_count) = i32::try_from(takers.len()) else {
            continue;
        };
        let mut next = 0;
        for (at, member) in (0..).zip(takers) {
            let share = count / takers_count + i32::from(at < count % takers_count);
            let partitions = (next..next + share).map(|p| TopicPartition::new(topic.clone(), p));
            assignment
                .entry(member.id.clone())
                .or_default()
                .extend(partitions);
            next += share;
        }
    }
    assignment
}

/// All partitions of all topics, dealt to the members that want them in turn.
fn round_robin(members: &[&Member], counts: &BTreeMap<Arc<str>, i32>) -> Assignment {
    let mut assignment = Assignment::new();
    let mut turn = 0;
    for (topic, count) in counts {
        if !members.iter().any(|member| member.topics.contains(topic)) {
            continue;
        }
        for partition in 0..*count {
            while !members[turn % members.len()].topics.contains(topic) {
                turn += 1;
            }
            let member = members[turn % members.len()];
            let partition = TopicPartition::new(topic.clone(), partition);
            assignment
                .entry(member.id.clone())
                .or_default()
                .push(partition);
            turn += 1;
        }
    }
    assignment
}

/// As balanced as subscriptions allow while members keep what they hold. A
/// partition that changes hands is assigned to nobody for now: its holder gives it
/// up, and the rebalance that follows assigns it (KIP-429).
fn cooperative_sticky(members: &[&Member], counts: &BTreeMap<Arc<str>, i32>) -> Assignment {
    let holders = holders(members, counts);
    let mut shares: Vec<BTreeSet<TopicPartition>> = vec![BTreeSet::new(); members.len()];
    let mut free = Vec::new();
    for (topic, count) in counts {
        for partition in (0..*count).map(|p| TopicPartition::new(topic.clone(), p)) {
            match holders.get(&partition) {
                Some(holder) => {
                    shares[*holder].insert(partition);
                }
                None => free.push(partition),
            }
        }
    }
    let wants =
        |at: usize, partition: &TopicPartition| members[at].topics.contains(&partition.topic);
    for partition in free {
        let takers = (0..members.len()).filter(|at| wants(*at, &partition));
        if let Some(least) = takers.min_by_key(|at| shares[*at].len()) {
            shares[least].insert(partition);
        }
    }
    // Each move makes the spread smaller, so this ends.
    while let Some((from, to, partition)) = next_move(&shares, wants) {
        shares[from].remove(&partition);
        shares[to].insert(partition);
    }
    let keep = |at: usize, partition: &TopicPartition| {
        holders.get(partition).is_none_or(|holder| *holder == at)
    };
    members
        .iter()
        .zip(shares)
        .enumerate()
        .map(|(at, (member, share))| {
            (
                member.id.clone(),
                share.into_iter().filter(|p| keep(at, p)).collect(),
            )
        })
        .collect()
}

/// Who holds each partition: of several that claim it, the one with the latest generation.
fn holders(
    members: &[&Member],
    counts: &BTreeMap<Arc<str>, i32>,
) -> BTreeMap<TopicPartition, usize> {
    let mut claims: BTreeMap<TopicPartition, (i32, usize)> = BTreeMap::new();
    for (at, member) in members.iter().enumerate() {
        for partition in &member.owned {
            let exists = counts
                .get(&partition.topic)
                .is_some_and(|count| (0..*count).contains(&partition.partition.value()));
            if !exists || !member.topics.contains(&partition.topic) {
                continue;
            }
            let claim = claims
                .entry(partition.clone())
                .or_insert((member.generation, at));
            if member.generation > claim.0 {
                *claim = (member.generation, at);
            }
        }
    }
    claims
        .into_iter()
        .map(|(partition, (_, holder))| (partition, holder))
        .collect()
}

/// A partition that should move from a member to one with at least two fewer.
fn next_move(
    shares: &[BTreeSet<TopicPartition>],
    wants: impl Fn(usize, &TopicPartition) -> bool,
) -> Option<(usize, usize, TopicPartition)> {
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by_key(|at| shares[*at].len());
    for &from in order.iter().rev() {
        for &to in &order {
            if shares[to].len() + 2 > shares[from].len() {
                break;
            }
            // The last ones, so that those assigned first stay.
            if let Some(partition) = shares[from].iter().rev().find(|p| wants(to, p)) {
                return Some((from, to, partition.clone()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, topics: &[&str]) -> Member {
        Member {
            id: id.to_owned(),
            topics: topics.iter().map(|&topic| topic.into()).collect(),
            generation: 1,
            ..Member::default()
        }
    }

    fn counts(counts: &[(&str, i32)]) -> BTreeMap<Arc<str>, i32> {
        counts
            .iter()
            .map(|(topic, count)| ((*topic).into(), *count))
            .collect()
    }

    fn shown(assignment: &Assignment) -> Vec<String> {
        assignment
            .iter()
            .map(|(member, share)| {
                let share: Vec<String> = share.iter().map(ToString::to_string).collect();
                format!("{member}: {}", share.join(" "))
            })
            .collect()
    }

    #[test]
    fn range_gives_the_first_members_one_more() {
        let members = [member("b", &["t", "u"]), member("a", &["t"])];
        let assignment = assign(Assignor::Range, &members, &counts(&[("t", 3), ("u", 2)]));
        assert_eq!(shown(&assignment), ["a: t-0 t-1", "b: t-2 u-0 u-1"]);
    }

    #[test]
    fn round_robin_deals_across_topics_and_skips_those_who_do_not_want() {
        let members = [member("a", &["t", "u"]), member("b", &["t"])];
        let assignment = assign(
            Assignor::RoundRobin,
            &members,
            &counts(&[("t", 3), ("u", 2)]),
        );
        assert_eq!(shown(&assignment), ["a: t-0 t-2 u-0 u-1", "b: t-1"]);
    }

    #[test]
    fn a_topic_that_nobody_wants_is_assigned_to_nobody() {
        for assignor in [
            Assignor::Range,
            Assignor::RoundRobin,
            Assignor::CooperativeSticky,
        ] {
            let assignment = assign(assignor, &[member("a", &["t"])], &counts(&[("u", 2)]));
            assert_eq!(shown(&assignment), ["a: "], "{assignor:?}");
        }
    }

    #[test]
    fn a_new_member_gets_only_what_others_have_given_up() {
        let counts = counts(&[("t", 4)]);
        let mut old = member("a", &["t"]);
        old.owned = (0..4).map(|p| TopicPartition::new("t", p)).collect();
        let mut members = [old, member("b", &["t"])];
        let first = assign(Assignor::CooperativeSticky, &members, &counts);
        assert_eq!(
            shown(&first),
            ["a: t-0 t-1", "b: "],
            "nothing is taken while it is held"
        );
        members[0].owned.clone_from(&first["a"]);
        let second = assign(Assignor::CooperativeSticky, &members, &counts);
        assert_eq!(shown(&second), ["a: t-0 t-1", "b: t-2 t-3"]);
    }

    #[test]
    fn of_two_that_claim_a_partition_the_later_generation_holds_it() {
        let mut stale = member("a", &["t"]);
        stale.owned = vec![TopicPartition::new("t", 0)];
        let mut holder = member("b", &["t"]);
        holder.owned = vec![TopicPartition::new("t", 0)];
        holder.generation = 2;
        let assignment = assign(
            Assignor::CooperativeSticky,
            &[stale, holder],
            &counts(&[("t", 2)]),
        );
        assert_eq!(shown(&assignment), ["a: t-1", "b: t-0"]);
    }
}
