//! As evenly as can be, moving no more than that takes.

use std::collections::{BTreeMap, BTreeSet};

use yuxi_protocol::{codec::StrBytes, ids::TopicId};

use super::{Partitions, Subscriber, Subscribers};

pub(super) fn assign(group: &Subscribers<'_>) -> BTreeMap<StrBytes, Partitions> {
    let mut division = Division::new(group);
    let all_read_the_same = group
        .members
        .windows(2)
        .all(|pair| pair[0].topics == pair[1].topics);
    if all_read_the_same {
        division.cut_to_quotas();
    }
    division.hand_out();
    if !all_read_the_same {
        division.level();
    }
    group
        .members
        .iter()
        .map(|member| member.id.clone())
        .zip(division.shares)
        .collect()
}

struct Division<'a> {
    group: &'a Subscribers<'a>,
    /// By the member's place in the group.
    shares: Vec<Partitions>,
    sizes: Vec<usize>,
    free: BTreeSet<(TopicId, i32)>,
}

impl<'a> Division<'a> {
    /// Everybody keeps what it had and still reads.
    fn new(group: &'a Subscribers<'a>) -> Self {
        let mut free: BTreeSet<(TopicId, i32)> = BTreeSet::new();
        for (&topic, &count) in &group.topics {
            if group.members.iter().any(|member| member.reads(topic)) {
                free.extend((0..count).map(|partition| (topic, partition)));
            }
        }
        let shares: Vec<Partitions> = group
            .members
            .iter()
            .map(|member| {
                let before = member.before.into_iter().flat_map(Partitions::iter);
                before
                    .filter(|&(topic, _)| member.reads(topic))
                    .filter(|partition| free.remove(partition))
                    .collect()
            })
            .collect();
        Self {
            group,
            sizes: shares.iter().map(Partitions::len).collect(),
            shares,
            free,
        }
    }

    /// Takes from each what is more than an even share. Where shares can't all be the same,
    /// those who have one more keep it, as far as that many may.
    fn cut_to_quotas(&mut self) {
        let members = self.group.members.len();
        if members == 0 {
            return;
        }
        let all = self.free.len() + self.sizes.iter().sum::<usize>();
        let (quota, mut extra) = (all / members, all % members);
        for at in 0..members {
            let mut may_keep = quota;
            if self.sizes[at] > quota && extra > 0 {
                extra -= 1;
                may_keep += 1;
            }
            let excess: Vec<_> = self.shares[at].iter().skip(may_keep).collect();
            for (topic, partition) in excess {
                self.take(at, topic, partition);
            }
        }
    }

    /// Gives each free partition to the member that has least, of those who read its topic
    /// and one near the partition if there is one.
    fn hand_out(&mut self) {
        let by_topic = self.readers();
        let racks_matter = self
            .group
            .members
            .iter()
            .any(|member| member.rack_id.is_some());
        // Those with few readers first: they have the least choice.
        let mut free: Vec<(TopicId, i32)> = std::mem::take(&mut self.free).into_iter().collect();
        free.sort_by_key(|&(topic, partition)| (by_topic[&topic].len(), topic, partition));
        let all_read_the_same = by_topic
            .values()
            .all(|readers| readers.len() == self.group.members.len());
        let mut common: BTreeSet<(usize, usize)> = if all_read_the_same {
            (0..self.sizes.len())
                .map(|at| (self.sizes[at], at))
                .collect()
        } else {
            BTreeSet::new()
        };
        for (topic, partition) in free {
            let mut of_topic: BTreeSet<(usize, usize)>;
            let line = if all_read_the_same {
                &mut common
            } else {
                let readers = by_topic[&topic].iter();
                of_topic = readers.map(|&at| (self.sizes[at], at)).collect();
                &mut of_topic
            };
            let Some(&first) = line.first() else {
                continue;
            };
            let chosen = if racks_matter {
                self.near(line, first, topic, partition)
            } else {
                first
            };
            line.remove(&chosen);
            line.insert((chosen.0 + 1, chosen.1));
            self.give(chosen.1, topic, partition);
        }
    }

    /// Of those who have as little as `first`, one in a rack that has the partition.
    fn near(
        &self,
        line: &BTreeSet<(usize, usize)>,
        first: (usize, usize),
        topic: TopicId,
        partition: i32,
    ) -> (usize, usize) {
        let racks = (self.group.racks)(topic, partition);
        line.iter()
            .take_while(|(size, _)| *size == first.0)
            .find(|(_, at)| {
                let rack = self.group.members[*at].rack_id;
                rack.is_some_and(|rack| racks.contains(rack))
            })
            .copied()
            .unwrap_or(first)
    }

    /// Where not all read the same, somebody may have far less than another who reads the
    /// same topic: partitions move until no move makes it more even.
    fn level(&mut self) {
        let by_topic = self.readers();
        loop {
            let mut moved = false;
            for (&topic, readers) in &by_topic {
                while let Some((from, to)) = self.uneven(topic, readers) {
                    let partition = self.shares[from]
                        .topics()
                        .find(|(of, _)| *of == topic)
                        .and_then(|(_, partitions)| partitions.last().copied());
                    let Some(partition) = partition else { break };
                    self.take(from, topic, partition);
                    self.free.remove(&(topic, partition));
                    self.give(to, topic, partition);
                    moved = true;
                }
            }
            // Each move makes the sum of the squares of the sizes smaller, so this ends.
            if !moved {
                return;
            }
        }
    }

    /// The reader of the topic that has most in all and a partition of it, and the one that
    /// has least, if a move would make them more even.
    fn uneven(&self, topic: TopicId, readers: &[usize]) -> Option<(usize, usize)> {
        let has_one = |at: &usize| self.shares[*at].topics().any(|(of, _)| of == topic);
        let most = readers
            .iter()
            .copied()
            .filter(has_one)
            .max_by_key(|&at| self.sizes[at])?;
        let least = readers.iter().copied().min_by_key(|&at| self.sizes[at])?;
        (self.sizes[most] >= self.sizes[least] + 2).then_some((most, least))
    }

    fn readers(&self) -> BTreeMap<TopicId, Vec<usize>> {
        let reads = |at: usize, topic: TopicId| {
            self.group
                .members
                .get(at)
                .is_some_and(|m: &Subscriber<'_>| m.reads(topic))
        };
        self.group
            .topics
            .keys()
            .map(|&topic| {
                let members = 0..self.group.members.len();
                (topic, members.filter(|&at| reads(at, topic)).collect())
            })
            .collect()
    }

    fn take(&mut self, at: usize, topic: TopicId, partition: i32) {
        if self.shares[at].remove(topic, partition) {
            self.sizes[at] -= 1;
            self.free.insert((topic, partition));
        }
    }

    fn give(&mut self, at: usize, topic: TopicId, partition: i32) {
        self.shares[at].insert(topic, partition);
        self.sizes[at] += 1;
    }
}
