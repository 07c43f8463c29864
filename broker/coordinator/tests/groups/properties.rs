//! What holds whatever clients, time, failing writes and restarts do.

use std::collections::BTreeMap;

use proptest::prelude::*;
use yuxi_coordinator::groups::{
    GroupConfig, GroupRequest, GroupResponse,
    records::{self, GroupRecord},
};
use yuxi_protocol::{
    error_code::ErrorCode, messages::DeleteGroupsRequest,
    messages::describe_groups_response::DescribedGroup,
};

use crate::support::*;

const GROUPS: [&str; 2] = ["a", "b"];

/// One thing that happens. Members are meant by number, the latest first, counted over
/// those whose ids the group ever gave out, so that live, lost and fenced ones come up.
#[derive(Clone, Debug)]
enum Step {
    Join {
        group: usize,
        member: Option<usize>,
        instance: Option<usize>,
        protocols: usize,
        version: i16,
    },
    Sync {
        group: usize,
        member: usize,
        stale: bool,
    },
    Heartbeat {
        group: usize,
        member: usize,
    },
    Leave {
        group: usize,
        member: usize,
        instance: Option<usize>,
    },
    Commit {
        group: usize,
        member: Option<usize>,
        partition: i32,
        offset: i64,
    },
    Delete {
        group: usize,
    },
    Wait {
        ms: i64,
    },
    FailNext,
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let group = || 0..GROUPS.len();
    let member = || 0_usize..4;
    let instance = || proptest::option::weighted(0.3, 0_usize..2);
    let step = prop_oneof![
        8 => (group(), proptest::option::weighted(0.6, member()), instance(), 0_usize..4,
              prop_oneof![Just(9_i16), Just(5), Just(3)])
            .prop_map(|(group, member, instance, protocols, version)| Step::Join {
                group, member, instance, protocols, version
            }),
        8 => (group(), member(), proptest::bool::weighted(0.1))
            .prop_map(|(group, member, stale)| Step::Sync { group, member, stale }),
        3 => (group(), member()).prop_map(|(group, member)| Step::Heartbeat { group, member }),
        2 => (group(), member(), instance())
            .prop_map(|(group, member, instance)| Step::Leave { group, member, instance }),
        4 => (group(), proptest::option::of(member()), 0..3_i32, 0..100_i64)
            .prop_map(|(group, member, partition, offset)| Step::Commit {
                group, member, partition, offset
            }),
        1 => group().prop_map(|group| Step::Delete { group }),
        6 => prop_oneof![
            6 => 0..50_i64,
            6 => 1_000..6_000_i64,
            1 => 9_000..12_000_i64,
            1 => Just(700_000),
            1 => Just(700_000_000),
        ]
            .prop_map(|ms| Step::Wait { ms }),
        2 => Just(Step::FailNext),
        1 => Just(Step::Reload),
    ];
    proptest::collection::vec(step, 1..120)
}

struct World {
    rt: Runtime,
    /// The ids that each group gave out.
    members: [Vec<String>; GROUPS.len()],
    /// The highest generation shown for each group since the shard was loaded.
    generations: BTreeMap<usize, i32>,
    /// Requests that wait, with the group of those that join.
    waiting: BTreeMap<u64, Option<usize>>,
}

impl World {
    fn member(&self, group: usize, number: usize) -> String {
        let ids = &self.members[group];
        match ids.len() {
            0 => "nobody".to_owned(),
            count => ids[count - 1 - number % count].clone(),
        }
    }

    fn generation(&self, group: usize) -> i32 {
        self.generations.get(&group).copied().unwrap_or(0)
    }

    fn act(&mut self, step: &Step) {
        let instances = ["i0", "i1"];
        let protocols: [&[(&str, &[u8])]; 4] = [
            &[("range", b"\0\0\0\0\0\x01\0\x01t\xff\xff\xff\xff")],
            &[("range", b"r"), ("sticky", b"s")],
            &[("sticky", b"s"), ("range", b"r")],
            &[("sticky", b"other")],
        ];
        match *step {
            Step::Join {
                group,
                member,
                instance,
                protocols: choice,
                version,
            } => {
                let member_id = member
                    .map(|number| self.member(group, number))
                    .unwrap_or_default();
                let join = Join {
                    version,
                    member_id: &member_id,
                    instance_id: instance
                        .filter(|_| version >= 5)
                        .map(|number| instances[number]),
                    rebalance_ms: 5_000,
                    protocols: protocols[choice],
                    ..Join::new(GROUPS[group])
                };
                let ticket = self.rt.join(&join);
                self.waiting.insert(ticket, Some(group));
            }
            Step::Sync {
                group,
                member,
                stale,
            } => {
                let member_id = self.member(group, member);
                let generation = self.generation(group) - i32::from(stale);
                let everybody = self.members[group].clone();
                let assignments: Vec<(&str, &str)> = everybody
                    .iter()
                    .map(|id| (id.as_str(), id.as_str()))
                    .collect();
                let mut request = sync_request(GROUPS[group], &member_id, generation, &assignments);
                request.protocol_name = None;
                let ticket = self.rt.send(4, GroupRequest::Sync(request));
                self.waiting.insert(ticket, None);
            }
            Step::Heartbeat { group, member } => {
                let member_id = self.member(group, member);
                let generation = self.generation(group);
                let ticket = self.rt.heartbeat(GROUPS[group], &member_id, generation);
                self.waiting.insert(ticket, None);
            }
            Step::Leave {
                group,
                member,
                instance,
            } => {
                let member_id = match instance {
                    Some(_) => String::new(),
                    None => self.member(group, member),
                };
                let instance = instance.map(|number| instances[number]);
                let ticket = self.rt.leave(GROUPS[group], &[(&member_id, instance)]);
                self.waiting.insert(ticket, None);
            }
            Step::Commit {
                group,
                member,
                partition,
                offset,
            } => {
                let member_id = member
                    .map(|number| self.member(group, number))
                    .unwrap_or_default();
                let generation = if member.is_some() {
                    self.generation(group)
                } else {
                    -1
                };
                let commit = Commit {
                    member_id: &member_id,
                    generation,
                    partition,
                    ..Commit::new(GROUPS[group], offset)
                };
                let ticket = self.rt.commit(&commit);
                self.waiting.insert(ticket, None);
            }
            Step::Delete { group } => {
                let mut request = DeleteGroupsRequest::default();
                request.groups_names = vec![GROUPS[group].into()];
                let ticket = self.rt.send(2, GroupRequest::DeleteGroups(request));
                self.waiting.insert(ticket, None);
            }
            Step::Wait { ms } => self.rt.advance(ms),
            Step::FailNext => self.rt.fail_next = Some(ErrorCode::NotEnoughReplicas),
            Step::Reload => {
                self.rt.reload();
                self.generations.clear();
            }
        }
        self.look();
    }

    /// Learns the member ids and generations that were shown. Generations never go
    /// back while a shard lives, unless the group was deleted.
    fn look(&mut self) {
        let before = self.generations.clone();
        for (ticket, response) in std::mem::take(&mut self.rt.answers) {
            let group = self.waiting.remove(&ticket).flatten();
            let (Some(group), GroupResponse::Join(joined)) = (group, response) else {
                continue;
            };
            let member = joined.member_id.to_string();
            if !member.is_empty() && !self.members[group].contains(&member) {
                self.members[group].push(member);
            }
            if joined.error_code == 0 {
                let generation = joined.generation_id;
                assert!(
                    before
                        .get(&group)
                        .is_none_or(|before| generation >= *before)
                );
                self.generations.insert(group, generation);
            }
        }
        for (group, name) in GROUPS.iter().enumerate() {
            if self.rt.describe(name).group_state.as_str() == "Dead" {
                self.generations.remove(&group);
            }
        }
    }
}

/// What the log must preserve of a group.
pub(crate) fn essence(mut group: DescribedGroup) -> (String, String, String, Vec<[Vec<u8>; 5]>) {
    group.members.sort_by(|a, b| a.member_id.cmp(&b.member_id));
    let members = group.members.into_iter().map(|member| {
        [
            member.member_id.as_bytes().to_vec(),
            member
                .group_instance_id
                .unwrap_or_default()
                .as_bytes()
                .to_vec(),
            member.client_id.as_bytes().to_vec(),
            member.member_metadata.to_vec(),
            member.member_assignment.to_vec(),
        ]
    });
    (
        group.group_state.to_string(),
        group.protocol_type.to_string(),
        group.protocol_data.to_string(),
        members.collect(),
    )
}

proptest! {
    /// (The test runtime itself checks that no ticket is answered twice, that every
    /// answer can be encoded and that the shard does not spin.)
    #[test]
    fn every_request_is_answered_once_and_the_log_tells_the_same_story(
        steps in steps(),
        delay in prop_oneof![Just(0), Just(3_000)],
        max_size in prop_oneof![Just(2_usize), Just(1_000)],
    ) {
        let config = GroupConfig {
            initial_rebalance_delay_ms: delay,
            max_size,
            ..GroupConfig::default()
        };
        let mut world = World {
            rt: Runtime::new(config),
            members: Default::default(),
            generations: BTreeMap::new(),
            waiting: BTreeMap::new(),
        };
        for step in &steps {
            world.act(step);
            world.check_offsets();
        }
        world.rt.fail_next = None;
        // Long enough for every session and rebalance, short enough to keep offsets.
        world.rt.advance(400_000);
        world.look();
        prop_assert!(world.waiting.is_empty(), "unanswered: {:?}", world.waiting);
        world.check_generations_in_the_log();
        world.check_the_log_after_a_success();
    }
}

impl World {
    /// Nor do they go back in the log, until the group is deleted.
    fn check_generations_in_the_log(&self) {
        let mut generations: BTreeMap<String, i32> = BTreeMap::new();
        for record in &self.rt.log {
            let decoded = records::decode(&record.key, record.value.as_ref());
            let Ok(GroupRecord::GroupMetadata { group, value }) = decoded else {
                continue;
            };
            let before = match value {
                Some(ref value) => generations.insert(group.to_string(), value.generation),
                None => generations.remove(group.as_str()).and(None),
            };
            assert!(before <= value.map(|value| value.generation));
        }
    }

    /// A fresh shard has the same offsets after every step: none runs ahead of the log
    /// and none is lost.
    fn check_offsets(&mut self) {
        let mut fresh = Runtime::new(self.rt.config.clone());
        fresh.shard = replayed(&self.rt.config, &self.rt.log, self.rt.now_ms);
        for group in GROUPS {
            assert_eq!(self.rt.fetch_all(group), fresh.fetch_all(group), "{group}");
            // Membership may run ahead while a group rebalances; at rest it may not. A group
            // that static members keep over `group.max.size` rebalances when it is loaded.
            let ours = self.rt.describe(group);
            let fits = ours.members.len() <= self.rt.config.max_size;
            if ours.group_state.as_str() == "Stable" && fits {
                assert_eq!(essence(ours), essence(fresh.describe(group)), "{group}");
            }
        }
    }

    /// Once every group has had a write that succeeded, nothing differs.
    fn check_the_log_after_a_success(&mut self) {
        for group in GROUPS {
            if self.rt.describe(group).group_state.as_str() == "Dead" {
                continue;
            }
            let (members, _) = self.rt.stable_group(group, 2);
            for member in &members {
                self.rt.leave(group, &[(member, None)]);
            }
            assert_eq!(self.rt.state(group), "Empty");
        }
        let mut fresh = Runtime::new(self.rt.config.clone());
        fresh.shard = replayed(&self.rt.config, &self.rt.log, self.rt.now_ms);
        for group in GROUPS {
            assert_eq!(
                essence(self.rt.describe(group)),
                essence(fresh.describe(group)),
                "{group}",
            );
        }
        assert_eq!(self.rt.shard.counts(), fresh.shard.counts());
    }
}
