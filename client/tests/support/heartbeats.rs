//! A group of the consumer protocol: the coordinator assigns what the test says.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::protocol::frame::{RequestHead, request_limits};
use yuxi_client::protocol::ids::TopicId;
use yuxi_client::protocol::messages::consumer_group_heartbeat_response::{
    Assignment, TopicPartitions,
};
use yuxi_client::protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse,
};

use super::{Answer, FRAME_LIMIT, State, frame};

pub(super) fn api(members: &Members) -> (i16, i16) {
    (68, i16::from(!members.old))
}

pub(crate) const TOPIC_ID: TopicId = TopicId::from_bytes([7; 16]);

/// One member as the coordinator sees it.
#[derive(Default)]
pub(crate) struct Members {
    epochs: BTreeMap<String, i32>,
    /// What the member shall have; sent with the next answer.
    pub(crate) assign: Option<Vec<i32>>,
    /// What the member said that it has, each time that it did.
    pub(crate) owned: Vec<Vec<i32>>,
    /// The epochs that heartbeats carried.
    pub(crate) epochs_seen: Vec<i32>,
    pub(crate) assignor: Option<String>,
    /// What the member that joined last subscribed with.
    pub(crate) regex: Option<String>,
    /// Whether version 1 of the heartbeat is not offered.
    pub(crate) old: bool,
    pub(crate) refusals: VecDeque<ErrorCode>,
}

pub(super) fn answer(head: &RequestHead, body: Bytes, state: &mut State) -> Answer {
    let request: ConsumerGroupHeartbeatRequest = head
        .decode_body(body, request_limits(FRAME_LIMIT))
        .expect("well-formed");
    let members = &mut state.members;
    members.epochs_seen.push(request.member_epoch);
    let mut answer = ConsumerGroupHeartbeatResponse::default();
    answer.heartbeat_interval_ms = 50;
    if let Some(code) = members.refusals.pop_front() {
        answer.error_code = code.code();
        members.epochs.clear();
        return frame(head, &answer);
    }
    let id = request.member_id.to_string();
    assert!(!id.is_empty(), "the member names itself");
    if request.member_epoch < 0 {
        members.epochs.remove(&id);
        answer.member_epoch = request.member_epoch;
        return frame(head, &answer);
    }
    let known = members.epochs.get(&id).copied();
    if request.member_epoch > 0 && known != Some(request.member_epoch) {
        let unknown = ErrorCode::UnknownMemberId;
        let code = known.map_or(unknown, |_| ErrorCode::FencedMemberEpoch);
        answer.error_code = code.code();
        return frame(head, &answer);
    }
    if request.member_epoch == 0 {
        let names = request.subscribed_topic_names.as_ref();
        let regex = request.subscribed_topic_regex.as_ref();
        members.regex = regex.map(ToString::to_string);
        assert!(
            names.is_some_and(|names| !names.is_empty()) != regex.is_some(),
            "it joins with its topics or with its regex"
        );
        let nothing = request.topic_partitions.as_ref();
        assert!(nothing.is_some_and(Vec::is_empty), "it joins with nothing");
        members.assignor = request.server_assignor.as_ref().map(ToString::to_string);
    } else if let Some(owned) = &request.topic_partitions {
        let mut indexes: Vec<i32> = owned.iter().flat_map(|t| t.partitions.clone()).collect();
        indexes.sort_unstable();
        members.owned.push(indexes);
    }
    let mut epoch = known.unwrap_or(0).max(request.member_epoch);
    if let Some(partitions) = members.assign.take() {
        epoch += 1;
        let mut topic = TopicPartitions::default();
        topic.topic_id = TOPIC_ID.into();
        topic.partitions = partitions;
        let mut assignment = Assignment::default();
        assignment.topic_partitions = vec![topic];
        answer.assignment = Some(assignment);
    }
    epoch = epoch.max(1);
    members.epochs.insert(id, epoch);
    answer.member_epoch = epoch;
    frame(head, &answer)
}
