//! A group with one member, and a coordinator that may move.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use yuxi_client::protocol::codec::DecodeLimits;
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::frame::{RequestHead, request_limits};
use yuxi_client::protocol::messages::join_group_response::JoinGroupResponseMember;
use yuxi_client::protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use yuxi_client::protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartition, OffsetFetchResponseTopic,
};
use yuxi_client::protocol::messages::{
    FindCoordinatorResponse, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, KafkaRequest,
    LeaveGroupResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest,
    OffsetFetchResponse, SyncGroupRequest, SyncGroupResponse,
    decode_consumer_protocol_subscription,
};

use super::{Answer, FRAME_LIMIT, Fault, State, frame};

/// OffsetCommit, OffsetFetch, FindCoordinator, JoinGroup, Heartbeat, LeaveGroup, SyncGroup.
pub(super) const APIS: [(i16, i16); 7] =
    [(8, 7), (9, 5), (10, 2), (11, 5), (12, 3), (13, 2), (14, 3)];

#[derive(Default)]
pub(crate) struct Group {
    pub(crate) coordinator: usize,
    pub(crate) joins: usize,
    /// The topics of the member that joined last.
    pub(crate) subscribed: Vec<String>,
    /// How many commits have come.
    pub(crate) commits: usize,
    /// Whether commits are never answered.
    pub(crate) commits_hang: bool,
    /// How many heartbeats each node has served.
    pub(crate) heartbeats: HashMap<usize, usize>,
    pub(crate) commit_faults: VecDeque<Fault>,
    /// Offset and leader epoch by partition.
    pub(crate) committed: HashMap<i32, (i64, i32)>,
}

fn decode<R: KafkaRequest>(head: &RequestHead, body: Bytes) -> R {
    head.decode_body(body, request_limits(FRAME_LIMIT))
        .expect("well-formed")
}

pub(super) fn answer(head: &RequestHead, body: Bytes, node: usize, state: &mut State) -> Answer {
    let refusal = if state.group.coordinator == node {
        0
    } else {
        ErrorCode::NotCoordinator.code()
    };
    match head.api_key {
        8 => commit(head, decode(head, body), refusal, state),
        9 => frame(head, &committed(decode(head, body), refusal, state)),
        10 => {
            let mut answer = FindCoordinatorResponse::default();
            answer.node_id = state.group.coordinator as i32;
            answer.host = "127.0.0.1".into();
            answer.port = i32::from(state.ports[state.group.coordinator]);
            frame(head, &answer)
        }
        11 => frame(head, &join(&decode(head, body), refusal, state)),
        12 => {
            if refusal == 0 {
                *state.group.heartbeats.entry(node).or_default() += 1;
            }
            let mut answer = HeartbeatResponse::default();
            answer.error_code = refusal;
            frame(head, &answer)
        }
        13 => frame(head, &LeaveGroupResponse::default()),
        14 => {
            let request: SyncGroupRequest = decode(head, body);
            let mut answer = SyncGroupResponse::default();
            answer.error_code = refusal;
            if let Some(own) = request.assignments.first() {
                answer.assignment = own.assignment.clone();
            }
            frame(head, &answer)
        }
        other => panic!("not of groups: {other}"),
    }
}

fn join(request: &JoinGroupRequest, refusal: i16, state: &mut State) -> JoinGroupResponse {
    let mut answer = JoinGroupResponse::default();
    answer.error_code = refusal;
    if refusal == 0 {
        state.group.joins += 1;
    }
    let protocol = &request.protocols[0];
    let metadata = protocol.metadata.clone();
    let decoded = decode_consumer_protocol_subscription(metadata, DecodeLimits::default());
    let (_, subscription) = decoded.expect("well-formed");
    let topics = subscription.topics.iter().map(ToString::to_string);
    state.group.subscribed = topics.collect();
    answer.generation_id = state.group.joins as i32;
    answer.protocol_name = Some(protocol.name.clone());
    answer.leader = "the member".into();
    answer.member_id = "the member".into();
    let mut member = JoinGroupResponseMember::default();
    member.member_id = "the member".into();
    member.metadata = protocol.metadata.clone();
    answer.members = vec![member];
    answer
}

fn commit(
    head: &RequestHead,
    request: OffsetCommitRequest,
    refusal: i16,
    state: &mut State,
) -> Answer {
    state.group.commits += 1;
    if state.group.commits_hang {
        return Answer::Hold;
    }
    let fault = state.group.commit_faults.pop_front().unwrap_or(Fault::None);
    if matches!(fault, Fault::DropBefore) {
        return Answer::Close;
    }
    let code = match &fault {
        Fault::Refuse(code) => code.code(),
        _ => refusal,
    };
    let mut answer = OffsetCommitResponse::default();
    for topic in request.topics {
        let mut topic_answer = OffsetCommitResponseTopic::default();
        topic_answer.name = topic.name;
        for partition in topic.partitions {
            let mut part = OffsetCommitResponsePartition::default();
            part.partition_index = partition.partition_index;
            part.error_code = code;
            if code == 0 {
                let committed = (partition.committed_offset, partition.committed_leader_epoch);
                let index = partition.partition_index;
                state.group.committed.insert(index, committed);
            }
            topic_answer.partitions.push(part);
        }
        answer.topics.push(topic_answer);
    }
    if matches!(fault, Fault::DropAfter) {
        return Answer::Close;
    }
    frame(head, &answer)
}

fn committed(request: OffsetFetchRequest, refusal: i16, state: &State) -> OffsetFetchResponse {
    let mut answer = OffsetFetchResponse::default();
    answer.error_code = refusal;
    for topic in request.topics.unwrap_or_default() {
        let mut topic_answer = OffsetFetchResponseTopic::default();
        topic_answer.name = topic.name;
        for index in topic.partition_indexes {
            let mut part = OffsetFetchResponsePartition::default();
            part.partition_index = index;
            let committed = state.group.committed.get(&index).copied();
            (part.committed_offset, part.committed_leader_epoch) = committed.unwrap_or((-1, -1));
            topic_answer.partitions.push(part);
        }
        answer.topics.push(topic_answer);
    }
    answer
}
