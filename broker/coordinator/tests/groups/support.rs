//! A runtime for tests: it appends records to a vector, delivers answers to a map, and
//! can be told to fail writes, to let time pass and to start again from the log.
//!
//! It checks on the way that each ticket is answered once, that every answer can be
//! encoded in the version of its request, and that nothing is answered before its
//! records are written.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::collections::{BTreeMap, BTreeSet};

use yuxi_coordinator::{
    CoordinatorRecord,
    groups::{
        Effects, GroupConfig, GroupRequest, GroupResponse, GroupShard, RequestContext, Ticket,
    },
    time::{Monotonic, Now},
};
use yuxi_protocol::{
    codec::{
        ApiVersion, Bytes, BytesMut, DecodeLimits, Decoder, Encoder, KafkaDecode, KafkaEncode,
        StrBytes,
    },
    error_code::ErrorCode,
    messages::{
        ConsumerGroupDescribeRequest, ConsumerGroupHeartbeatResponse, ConsumerProtocolSubscription,
        HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
        LeaveGroupResponse, OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest,
        SyncGroupResponse, TxnOffsetCommitRequest,
        consumer_group_describe_response::DescribedGroup as DescribedConsumerGroup,
        encode_consumer_protocol_subscription,
        join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::OffsetFetchRequestGroup,
        sync_group_request::SyncGroupRequestAssignment,
        txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic},
    },
};

use crate::consumer_support::{Beat, Cluster};

pub(crate) const START_MS: i64 = 1_700_000_000_000;
pub(crate) const SESSION_MS: i32 = 10_000;
pub(crate) const REBALANCE_MS: i32 = 60_000;

/// By both clocks. No test passes in which one of them is taken for the other.
pub(crate) fn at(now_ms: i64) -> Now {
    Now {
        monotonic: Monotonic::new(now_ms - START_MS),
        wall_ms: now_ms,
    }
}

pub(crate) struct Runtime {
    pub(crate) shard: GroupShard,
    pub(crate) config: GroupConfig,
    pub(crate) cluster: Cluster,
    pub(crate) log: Vec<CoordinatorRecord>,
    /// The records of `log` that are part of a transaction, and whose.
    transactional: BTreeMap<usize, i64>,
    /// Markers: how many records came before, the producer, whether it committed.
    markers: Vec<(usize, i64, bool)>,
    pub(crate) answers: BTreeMap<u64, GroupResponse>,
    /// Stays when a test takes answers out.
    answered: BTreeSet<u64>,
    pub(crate) versions: BTreeMap<u64, i16>,
    pub(crate) now_ms: i64,
    /// How far the time of day was set from there.
    pub(crate) clock_step_ms: i64,
    /// The next write fails with this.
    pub(crate) fail_next: Option<ErrorCode>,
    reloads: usize,
}

impl Runtime {
    pub(crate) fn new(config: GroupConfig) -> Self {
        let mut shard = GroupShard::new(config.clone(), counting_uuids(0));
        shard.loaded(&Cluster::default(), at(START_MS));
        Self {
            shard,
            config,
            cluster: Cluster::default(),
            log: Vec::new(),
            transactional: BTreeMap::new(),
            markers: Vec::new(),
            answers: BTreeMap::new(),
            answered: BTreeSet::new(),
            versions: BTreeMap::new(),
            now_ms: START_MS,
            clock_step_ms: 0,
            fail_next: None,
            reloads: 0,
        }
    }

    /// With the first rebalance of a group not delayed, as most tests want it.
    pub(crate) fn undelayed() -> Self {
        Self::new(GroupConfig {
            initial_rebalance_delay_ms: 0,
            ..GroupConfig::default()
        })
    }

    pub(crate) fn send(&mut self, version: i16, request: GroupRequest) -> u64 {
        self.send_as("client", version, request)
    }

    pub(crate) fn send_as(&mut self, client_id: &str, version: i16, request: GroupRequest) -> u64 {
        let ticket = self.versions.len() as u64;
        self.versions.insert(ticket, version);
        let context = RequestContext {
            api_version: version,
            client_id: client_id.into(),
            client_host: "/127.0.0.1".into(),
        };
        let effects =
            self.shard
                .handle(&context, request, Ticket(ticket), &self.cluster, self.now());
        self.settle(effects);
        self.tick();
        ticket
    }

    pub(crate) fn settle(&mut self, mut effects: Effects) {
        while !effects.records.is_empty() {
            if let Some(error) = self.fail_next.take() {
                effects = self.shard.write_failed(effects, error, self.now());
                continue;
            }
            for record in &effects.records {
                if let Some(producer) = effects.transaction {
                    self.transactional
                        .insert(self.log.len(), producer.producer_id);
                }
                self.log.push(record.clone());
            }
            let replies = self.shard.written(effects, self.now());
            return self.deliver(replies);
        }
        self.deliver(effects.replies);
    }

    pub(crate) fn deliver(&mut self, replies: Vec<(Ticket, GroupResponse)>) {
        for (Ticket(ticket), response) in replies {
            let version = self.versions[&ticket];
            assert_encodes(&response, version);
            self.answers.insert(ticket, response);
            assert!(
                self.answered.insert(ticket),
                "ticket {ticket} is answered twice"
            );
        }
    }

    pub(crate) fn now(&self) -> Now {
        let now = at(self.now_ms);
        Now {
            wall_ms: now.wall_ms + self.clock_step_ms,
            ..now
        }
    }

    pub(crate) fn next_deadline_ms(&self) -> Option<i64> {
        let deadline = self.shard.next_deadline()?;
        Some(START_MS + deadline.value())
    }

    /// Does what is due now.
    pub(crate) fn tick(&mut self) {
        let mut rounds = 0;
        while self
            .next_deadline_ms()
            .is_some_and(|deadline_ms| deadline_ms <= self.now_ms)
        {
            let effects = self.shard.tick(&self.cluster, self.now());
            self.settle(effects);
            rounds += 1;
            assert!(rounds < 10_000, "the shard spins");
        }
    }

    /// Lets time pass, doing what is due when it is due.
    pub(crate) fn advance(&mut self, ms: i64) {
        let until = self.now_ms + ms;
        while let Some(deadline_ms) = self
            .next_deadline_ms()
            .filter(|deadline_ms| *deadline_ms <= until)
        {
            self.now_ms = self.now_ms.max(deadline_ms);
            self.tick();
        }
        self.now_ms = until;
    }

    /// Starts again from the log, as after a crash or a move to another broker.
    pub(crate) fn reload(&mut self) {
        // No two shards may name members alike, though nothing was written between them.
        self.reloads += 1;
        let fresh = self.fresh_shard();
        let old = std::mem::replace(&mut self.shard, fresh);
        let replies = old.unload();
        self.deliver(replies);
    }

    /// A shard that has replayed the log with its transactions.
    pub(crate) fn fresh_shard(&self) -> GroupShard {
        let mut shard = GroupShard::new(
            self.config.clone(),
            counting_uuids((self.log.len() + self.reloads) as u64 + 1),
        );
        let mut markers = self.markers.iter().peekable();
        for at in 0..=self.log.len() {
            while let Some((_, producer, commit)) = markers.next_if(|(before, ..)| *before == at) {
                shard.transaction_ended(*producer, *commit);
            }
            let Some(record) = self.log.get(at) else {
                break;
            };
            match self.transactional.get(&at) {
                None => shard.replay(&record.key, record.value.as_ref()),
                Some(&producer) => {
                    shard.replay_transactional(producer, &record.key, record.value.as_ref())
                }
            }
            .expect("our own records are in order");
        }
        shard.loaded(&self.cluster, self.now());
        shard
    }

    /// The marker of the producer's transaction is written.
    pub(crate) fn end_transaction(&mut self, producer: i64, commit: bool) {
        self.markers.push((self.log.len(), producer, commit));
        self.shard.transaction_ended(producer, commit);
    }

    pub(crate) fn is_waiting(&self, ticket: u64) -> bool {
        !self.answered.contains(&ticket)
    }

    #[track_caller]
    pub(crate) fn answer(&self, ticket: u64) -> &GroupResponse {
        self.answers
            .get(&ticket)
            .unwrap_or_else(|| panic!("ticket {ticket} is not answered"))
    }

    #[track_caller]
    pub(crate) fn joined(&self, ticket: u64) -> &JoinGroupResponse {
        match self.answer(ticket) {
            GroupResponse::Join(response) => response,
            other => panic!("{other:?} answers no JoinGroup"),
        }
    }

    #[track_caller]
    pub(crate) fn synced(&self, ticket: u64) -> &SyncGroupResponse {
        match self.answer(ticket) {
            GroupResponse::Sync(response) => response,
            other => panic!("{other:?} answers no SyncGroup"),
        }
    }

    #[track_caller]
    pub(crate) fn error(&self, ticket: u64) -> ErrorCode {
        let code = match self.answer(ticket) {
            GroupResponse::Join(response) => response.error_code,
            GroupResponse::Sync(response) => response.error_code,
            GroupResponse::Heartbeat(response) => response.error_code,
            GroupResponse::Leave(response) => leave_error(response),
            GroupResponse::OffsetCommit(response) => response.topics[0].partitions[0].error_code,
            GroupResponse::TxnOffsetCommit(response) => response.topics[0].partitions[0].error_code,
            GroupResponse::OffsetDelete(response) if response.error_code != 0 => {
                response.error_code
            }
            GroupResponse::OffsetDelete(response) => response.topics[0].partitions[0].error_code,
            GroupResponse::DeleteGroups(response) => response.results[0].error_code,
            GroupResponse::ConsumerHeartbeat(response) => response.error_code,
            other => panic!("{other:?} has no one error"),
        };
        ErrorCode::from_code(code).expect("a known code")
    }

    // Requests.

    pub(crate) fn join(&mut self, join: &Join<'_>) -> u64 {
        self.send_as(
            join.client_id,
            join.version,
            GroupRequest::Join(join.request()),
        )
    }

    /// A dynamic member that joins as new clients do, in two steps; its ticket and id.
    pub(crate) fn join_new(&mut self, join: &Join<'_>) -> (u64, String) {
        let first = self.join(join);
        assert_eq!(self.error(first), ErrorCode::MemberIdRequired);
        let member_id = self.joined(first).member_id.to_string();
        let ticket = self.join(&Join {
            member_id: &member_id,
            ..join.clone()
        });
        (ticket, member_id)
    }

    pub(crate) fn sync(
        &mut self,
        group: &str,
        member: &str,
        generation: i32,
        assignments: &[(&str, &str)],
    ) -> u64 {
        self.send(
            5,
            GroupRequest::Sync(sync_request(group, member, generation, assignments)),
        )
    }

    pub(crate) fn heartbeat(&mut self, group: &str, member: &str, generation: i32) -> u64 {
        self.send(
            4,
            GroupRequest::Heartbeat(heartbeat_request(group, member, generation)),
        )
    }

    pub(crate) fn leave(&mut self, group: &str, members: &[(&str, Option<&str>)]) -> u64 {
        self.send(5, GroupRequest::Leave(leave_request(group, members)))
    }

    pub(crate) fn beat(&mut self, beat: &Beat<'_>) -> ConsumerGroupHeartbeatResponse {
        let ticket = self.send(
            beat.version,
            GroupRequest::ConsumerHeartbeat(beat.request()),
        );
        match self.answer(ticket) {
            GroupResponse::ConsumerHeartbeat(response) => response.clone(),
            other => panic!("{other:?} answers no ConsumerGroupHeartbeat"),
        }
    }

    pub(crate) fn describe_consumers(&mut self, group: &str) -> DescribedConsumerGroup {
        let mut request = ConsumerGroupDescribeRequest::default();
        request.group_ids = vec![group.into()];
        let ticket = self.send(1, GroupRequest::ConsumerDescribe(request));
        match self.answer(ticket) {
            GroupResponse::ConsumerDescribe(response) => response.groups[0].clone(),
            other => panic!("{other:?} answers no ConsumerGroupDescribe"),
        }
    }

    pub(crate) fn commit(&mut self, commit: &Commit<'_>) -> u64 {
        self.send(commit.version, GroupRequest::OffsetCommit(commit.request()))
    }

    pub(crate) fn txn_commit(&mut self, commit: &TxnCommit<'_>) -> u64 {
        self.send(
            commit.version,
            GroupRequest::TxnOffsetCommit(commit.request()),
        )
    }

    /// The offset that a client reads, -1 if there is none.
    pub(crate) fn fetch(&mut self, group: &str, topic: &str, partition: i32) -> i64 {
        let offsets = self.fetch_all(group);
        offsets
            .get(&(topic.to_owned(), partition))
            .copied()
            .unwrap_or(-1)
    }

    pub(crate) fn fetch_all(&mut self, group: &str) -> BTreeMap<(String, i32), i64> {
        let read = self.fetch_with(group, false);
        read.into_iter()
            .map(|(partition, (_, offset))| (partition, offset))
            .collect()
    }

    /// Everything that a client reads of a group, with the error at each partition.
    pub(crate) fn fetch_with(
        &mut self,
        group: &str,
        require_stable: bool,
    ) -> BTreeMap<(String, i32), (ErrorCode, i64)> {
        let mut wanted = OffsetFetchRequestGroup::default();
        wanted.group_id = group.into();
        wanted.topics = None;
        let mut request = OffsetFetchRequest::default();
        request.groups = vec![wanted];
        request.require_stable = require_stable;
        let ticket = self.send(9, GroupRequest::OffsetFetch(request));
        let GroupResponse::OffsetFetch(response) = self.answer(ticket) else {
            panic!("an OffsetFetch is answered by one");
        };
        let topics = response.groups[0].topics.iter();
        topics
            .flat_map(|topic| {
                topic.partitions.iter().map(|partition| {
                    let key = (topic.name.to_string(), partition.partition_index);
                    let error = ErrorCode::from_code(partition.error_code).expect("a known code");
                    (key, (error, partition.committed_offset))
                })
            })
            .collect()
    }

    /// The state that DescribeGroups shows.
    pub(crate) fn state(&mut self, group: &str) -> String {
        let described = self.describe(group);
        described.group_state.to_string()
    }

    pub(crate) fn describe(
        &mut self,
        group: &str,
    ) -> yuxi_protocol::messages::describe_groups_response::DescribedGroup {
        let mut request = yuxi_protocol::messages::DescribeGroupsRequest::default();
        request.groups = vec![group.into()];
        let ticket = self.send(5, GroupRequest::DescribeGroups(request));
        match self.answer(ticket) {
            GroupResponse::DescribeGroups(response) => response.groups[0].clone(),
            other => panic!("{other:?} answers no DescribeGroups"),
        }
    }

    /// Brings a group of `count` dynamic members to Stable; the members' ids, the
    /// leader's first, and the generation.
    pub(crate) fn stable_group(&mut self, group: &'static str, count: usize) -> (Vec<String>, i32) {
        let join = Join::new(group);
        let mut members: Vec<(u64, String)> = Vec::new();
        for _ in 0..count {
            let (ticket, member) = self.join_new(&join);
            // Those who are already in must come again when another one joins.
            for (ticket, member) in &mut members {
                if !self.is_waiting(*ticket) {
                    *ticket = self.join(&Join {
                        member_id: member,
                        ..join.clone()
                    });
                }
            }
            members.push((ticket, member));
        }
        self.advance(2 * i64::from(self.config.initial_rebalance_delay_ms));
        let generation = self.joined(members[0].0).generation_id;
        let leader = self.joined(members[0].0).leader.to_string();
        members.sort_by_key(|(_, member)| *member != leader);
        let assignments: Vec<(&str, &str)> = members
            .iter()
            .map(|(_, member)| (member.as_str(), member.as_str()))
            .collect();
        for (ticket, member) in &members {
            assert_eq!(self.joined(*ticket).generation_id, generation);
            let ticket = self.sync(group, member, generation, &assignments);
            assert_eq!(self.error(ticket), ErrorCode::None);
        }
        (
            members.into_iter().map(|(_, member)| member).collect(),
            generation,
        )
    }
}

#[derive(Clone)]
pub(crate) struct Join<'a> {
    pub(crate) group: &'a str,
    pub(crate) version: i16,
    pub(crate) client_id: &'a str,
    pub(crate) member_id: &'a str,
    pub(crate) instance_id: Option<&'a str>,
    pub(crate) session_ms: i32,
    pub(crate) rebalance_ms: i32,
    pub(crate) protocol_type: &'a str,
    pub(crate) protocols: &'a [(&'a str, &'a [u8])],
}

impl<'a> Join<'a> {
    pub(crate) fn new(group: &'a str) -> Self {
        Self {
            group,
            version: 9,
            client_id: "client",
            member_id: "",
            instance_id: None,
            session_ms: SESSION_MS,
            rebalance_ms: REBALANCE_MS,
            protocol_type: "consumer",
            protocols: &[("range", b"\0\0\0\0\0\x01\0\x01t\xff\xff\xff\xff")],
        }
    }

    pub(crate) fn request(&self) -> JoinGroupRequest {
        let mut request = JoinGroupRequest::default();
        request.group_id = self.group.into();
        request.session_timeout_ms = self.session_ms;
        request.rebalance_timeout_ms = self.rebalance_ms;
        request.member_id = self.member_id.into();
        request.group_instance_id = self.instance_id.map(StrBytes::from);
        request.protocol_type = self.protocol_type.into();
        for (name, metadata) in self.protocols {
            let mut protocol = JoinGroupRequestProtocol::default();
            protocol.name = (*name).into();
            protocol.metadata = Bytes::copy_from_slice(metadata);
            request.protocols.push(protocol);
        }
        request
    }
}

#[derive(Clone)]
pub(crate) struct Commit<'a> {
    pub(crate) group: &'a str,
    pub(crate) version: i16,
    pub(crate) member_id: &'a str,
    pub(crate) instance_id: Option<&'a str>,
    pub(crate) generation: i32,
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) metadata: Option<&'a str>,
    pub(crate) retention_ms: i64,
}

impl<'a> Commit<'a> {
    /// As an administrator commits, or a consumer that is no member.
    pub(crate) fn new(group: &'a str, offset: i64) -> Self {
        Self {
            group,
            version: 9,
            member_id: "",
            instance_id: None,
            generation: -1,
            topic: "t",
            partition: 0,
            offset,
            metadata: None,
            retention_ms: -1,
        }
    }

    pub(crate) fn request(&self) -> OffsetCommitRequest {
        let mut partition = OffsetCommitRequestPartition::default();
        partition.partition_index = self.partition;
        partition.committed_offset = self.offset;
        partition.committed_leader_epoch = 3;
        partition.committed_metadata = self.metadata.map(StrBytes::from);
        let mut topic = OffsetCommitRequestTopic::default();
        topic.name = self.topic.into();
        topic.partitions = vec![partition];
        let mut request = OffsetCommitRequest::default();
        request.group_id = self.group.into();
        request.generation_id_or_member_epoch = self.generation;
        request.member_id = self.member_id.into();
        request.group_instance_id = self.instance_id.map(StrBytes::from);
        request.retention_time_ms = self.retention_ms;
        request.topics = vec![topic];
        request
    }
}

/// An offset committed by a transactional producer.
#[derive(Clone)]
pub(crate) struct TxnCommit<'a> {
    pub(crate) group: &'a str,
    pub(crate) version: i16,
    pub(crate) producer: i64,
    pub(crate) member_id: &'a str,
    pub(crate) instance_id: Option<&'a str>,
    pub(crate) generation: i32,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) metadata: Option<&'a str>,
}

impl<'a> TxnCommit<'a> {
    /// As older producers commit: without the group's member.
    pub(crate) fn new(group: &'a str, producer: i64, offset: i64) -> Self {
        Self {
            group,
            version: 5,
            producer,
            member_id: "",
            instance_id: None,
            generation: -1,
            partition: 0,
            offset,
            metadata: None,
        }
    }

    pub(crate) fn request(&self) -> TxnOffsetCommitRequest {
        let mut partition = TxnOffsetCommitRequestPartition::default();
        partition.partition_index = self.partition;
        partition.committed_offset = self.offset;
        partition.committed_metadata = self.metadata.map(StrBytes::from);
        let mut topic = TxnOffsetCommitRequestTopic::default();
        topic.name = "t".into();
        topic.partitions = vec![partition];
        let mut request = TxnOffsetCommitRequest::default();
        request.transactional_id = "tx".into();
        request.producer_id = self.producer;
        request.producer_epoch = 3;
        request.group_id = self.group.into();
        request.generation_id_or_member_epoch = self.generation;
        request.member_id = self.member_id.into();
        request.group_instance_id = self.instance_id.map(StrBytes::from);
        request.topics = vec![topic];
        request
    }
}

pub(crate) fn sync_request(
    group: &str,
    member: &str,
    generation: i32,
    assignments: &[(&str, &str)],
) -> SyncGroupRequest {
    let mut request = SyncGroupRequest::default();
    request.group_id = group.into();
    request.generation_id = generation;
    request.member_id = member.into();
    request.protocol_type = Some("consumer".into());
    request.protocol_name = Some("range".into());
    for (member, bytes) in assignments {
        let mut assignment = SyncGroupRequestAssignment::default();
        assignment.member_id = (*member).into();
        assignment.assignment = Bytes::copy_from_slice(bytes.as_bytes());
        request.assignments.push(assignment);
    }
    request
}

pub(crate) fn heartbeat_request(group: &str, member: &str, generation: i32) -> HeartbeatRequest {
    let mut request = HeartbeatRequest::default();
    request.group_id = group.into();
    request.generation_id = generation;
    request.member_id = member.into();
    request
}

pub(crate) fn leave_request(group: &str, members: &[(&str, Option<&str>)]) -> LeaveGroupRequest {
    let mut request = LeaveGroupRequest::default();
    request.group_id = group.into();
    for (member, instance) in members {
        let mut identity = MemberIdentity::default();
        identity.member_id = (*member).into();
        identity.group_instance_id = instance.map(StrBytes::from);
        request.members.push(identity);
    }
    request
}

/// Metadata of a consumer that reads `topics`.
pub(crate) fn subscription(topics: &[&str]) -> Bytes {
    let mut subscription = ConsumerProtocolSubscription::default();
    subscription.topics = topics.iter().map(|topic| StrBytes::from(*topic)).collect();
    let mut buffer = BytesMut::new();
    encode_consumer_protocol_subscription(&mut buffer, &subscription, ApiVersion::new(3))
        .expect("a subscription can be encoded");
    buffer.freeze()
}

/// A shard that has replayed `log`.
pub(crate) fn replayed(config: &GroupConfig, log: &[CoordinatorRecord], now_ms: i64) -> GroupShard {
    let mut shard = GroupShard::new(config.clone(), counting_uuids(log.len() as u64 + 1));
    for record in log {
        shard
            .replay(&record.key, record.value.as_ref())
            .expect("our own records are in order");
    }
    shard.loaded(&Cluster::default(), at(now_ms));
    shard
}

/// Different for each shard of one test, and the same each time it runs.
pub(crate) fn counting_uuids(shard: u64) -> Box<dyn FnMut() -> [u8; 16] + Send> {
    let mut count = 0_u64;
    Box::new(move || {
        count += 1;
        ((u128::from(shard) << 64) | u128::from(count)).to_be_bytes()
    })
}

pub(crate) fn assert_encodes(response: &GroupResponse, version: i16) {
    fn check<R: KafkaEncode + KafkaDecode>(response: &R, version: i16) {
        let version = ApiVersion::new(version);
        let mut buffer = BytesMut::new();
        response
            .encode(&mut Encoder::new(&mut buffer), version)
            .unwrap_or_else(|error| panic!("version {}: {error}", version.value()));
        let mut decoder = Decoder::new(buffer.freeze(), DecodeLimits::default()).expect("small");
        R::decode(&mut decoder, version).expect("what we encode can be decoded");
        decoder.finish().expect("to its end");
    }
    match response {
        GroupResponse::Join(response) => check(response, version),
        GroupResponse::Sync(response) => check(response, version),
        GroupResponse::Heartbeat(response) => check(response, version),
        GroupResponse::Leave(response) => check(response, version),
        GroupResponse::OffsetCommit(response) => check(response, version),
        GroupResponse::TxnOffsetCommit(response) => check(response, version),
        GroupResponse::OffsetFetch(response) => check(response, version),
        GroupResponse::OffsetDelete(response) => check(response, version),
        GroupResponse::DescribeGroups(response) => check(response, version),
        GroupResponse::ListGroups(response) => check(response, version),
        GroupResponse::DeleteGroups(response) => check(response, version),
        GroupResponse::ConsumerHeartbeat(response) => check(response, version),
        GroupResponse::ConsumerDescribe(response) => check(response, version),
    }
}

fn leave_error(response: &LeaveGroupResponse) -> i16 {
    match response
        .members
        .iter()
        .find(|member| member.error_code != 0)
    {
        Some(member) if response.error_code == 0 => member.error_code,
        _ => response.error_code,
    }
}
