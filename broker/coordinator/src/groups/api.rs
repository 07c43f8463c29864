//! What goes into a shard and what comes out: requests, replies and effects.
//!
//! Values only. A response is shaped for the version of its request: fields that the
//! version lacks stay at their defaults, so that it can be encoded.

use bytes::Bytes;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    message,
    messages::{
        ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, ConsumerGroupHeartbeatRequest,
        ConsumerGroupHeartbeatResponse, DeleteGroupsRequest, DeleteGroupsResponse,
        DescribeGroupsRequest, DescribeGroupsResponse, HeartbeatRequest, HeartbeatResponse,
        JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
        ListGroupsRequest, ListGroupsResponse, OffsetCommitRequest, OffsetCommitResponse,
        OffsetDeleteRequest, OffsetDeleteResponse, OffsetFetchRequest, OffsetFetchResponse,
        SyncGroupRequest, SyncGroupResponse, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
        consumer_group_describe_response::DescribedGroup as DescribedConsumerGroup,
        delete_groups_response::DeletableGroupResult,
        describe_groups_response::DescribedGroup,
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
        offset_fetch_response::{
            OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponseTopic,
        },
        txn_offset_commit_response::{
            TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
        },
    },
};

use super::classic::Group;
use crate::CoordinatorRecord;

/// The runtime's number for one request, handed back with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// An answer and whose it is.
pub type Reply = (Ticket, GroupResponse);

/// Who asks, and how.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    /// The version of the request; the answer is shaped for it.
    pub api_version: i16,
    /// The client's name for itself, from the request's header.
    pub client_id: StrBytes,
    /// The client's address as Kafka spells it in group metadata: `/127.0.0.1`.
    pub client_host: StrBytes,
}

/// A request that a group coordinator answers.
///
/// The caller has resolved topic ids to names (OffsetCommit and OffsetFetch 10) and
/// answered for topics and partitions that do not exist: a shard knows no topics.
#[derive(Clone, Debug)]
pub enum GroupRequest {
    /// JoinGroup 0–9.
    Join(JoinGroupRequest),
    /// SyncGroup 0–5.
    Sync(SyncGroupRequest),
    /// Heartbeat 0–4.
    Heartbeat(HeartbeatRequest),
    /// LeaveGroup 0–5.
    Leave(LeaveGroupRequest),
    /// OffsetCommit 2–10.
    OffsetCommit(OffsetCommitRequest),
    /// TxnOffsetCommit 0–5. The caller has verified that the transaction is open.
    TxnOffsetCommit(TxnOffsetCommitRequest),
    /// OffsetFetch 1–10.
    OffsetFetch(OffsetFetchRequest),
    /// OffsetDelete 0.
    OffsetDelete(OffsetDeleteRequest),
    /// DescribeGroups 0–6.
    DescribeGroups(DescribeGroupsRequest),
    /// ListGroups 0–5.
    ListGroups(ListGroupsRequest),
    /// DeleteGroups 0–3.
    DeleteGroups(DeleteGroupsRequest),
    /// ConsumerGroupHeartbeat 0–1.
    ConsumerHeartbeat(ConsumerGroupHeartbeatRequest),
    /// ConsumerGroupDescribe 0–1.
    ConsumerDescribe(ConsumerGroupDescribeRequest),
}

/// The answer to the [`GroupRequest`] of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the answer to the request of its name")]
pub enum GroupResponse {
    Join(JoinGroupResponse),
    Sync(SyncGroupResponse),
    Heartbeat(HeartbeatResponse),
    Leave(LeaveGroupResponse),
    OffsetCommit(OffsetCommitResponse),
    TxnOffsetCommit(TxnOffsetCommitResponse),
    OffsetFetch(OffsetFetchResponse),
    OffsetDelete(OffsetDeleteResponse),
    DescribeGroups(DescribeGroupsResponse),
    ListGroups(ListGroupsResponse),
    DeleteGroups(DeleteGroupsResponse),
    ConsumerHeartbeat(ConsumerGroupHeartbeatResponse),
    ConsumerDescribe(ConsumerGroupDescribeResponse),
}

/// Why a request is refused, in the words that its client is told.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) error: ErrorCode,
    pub(super) message: String,
}

impl Refused {
    pub(super) fn new(error: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            error,
            message: message.into(),
        }
    }
}

/// What a call to the shard wants done, and what it answers once that is done.
#[derive(Debug, Default)]
#[must_use = "records must be written and answers sent"]
pub struct Effects {
    /// To append to the shard's partition as one batch. When there are any, the shard
    /// must next be told how that went, by `written` or `write_failed`.
    pub records: Vec<CoordinatorRecord>,
    /// The producer whose transaction the records are part of, if they are.
    pub transaction: Option<TransactionalProducer>,
    /// To send, but only once the records and all earlier ones of the shard are below
    /// the high watermark.
    pub replies: Vec<Reply>,
    /// What the shard does when the records are written, or not.
    pub(super) completions: Vec<Completion>,
}

/// Who writes as part of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionalProducer {
    /// The producer's id.
    pub producer_id: i64,
    /// The producer's epoch, which the log checks.
    pub producer_epoch: i16,
}

/// A change of state that depends on how a write goes.
#[derive(Debug)]
pub(super) enum Completion {
    /// The leader's assignment takes effect once written; if it is not, the members are
    /// told so and rejoin.
    Assign {
        group: StrBytes,
        assignment: Vec<(StrBytes, Bytes)>,
    },
    /// The group was made by this request and is forgotten if that is not written.
    ForgetOnFailure { group: StrBytes },
    /// A static member was replaced; if that is not written the group is again as it was.
    RestoreOnFailure {
        group: StrBytes,
        before: Box<Group>,
        replaced: StrBytes,
        by: StrBytes,
    },
    /// A member's time was up; if that is not written it is there still, and has its session
    /// once more.
    RearmOnFailure { group: StrBytes, member: StrBytes },
    /// Once written, the consumer group's epoch is right for this version of the topics.
    TopicsChecked {
        group: StrBytes,
        version: Option<i64>,
    },
    /// Once written, the consumer group is this classic one, and rebalances if so wanted.
    BecameClassic {
        group: StrBytes,
        classic: Box<Group>,
        rebalance: bool,
    },
}

impl Effects {
    pub(super) fn reply(&mut self, ticket: Ticket, response: GroupResponse) {
        self.replies.push((ticket, response));
    }
}

impl GroupRequest {
    /// The answer that refuses the whole request with `error`: the shard is not here,
    /// is still loading, or the request is not allowed.
    pub fn refused(&self, api_version: i16, error: ErrorCode) -> GroupResponse {
        let error_code = error.code();
        match self {
            Self::Join(request) => {
                GroupResponse::Join(join_refused(api_version, request.member_id.clone(), error))
            }
            Self::Sync(_) => GroupResponse::Sync(sync_refused(error)),
            Self::Heartbeat(_) => GroupResponse::Heartbeat(message!(HeartbeatResponse {
                // A member of a group that is still loading is not worried by it.
                error_code: if error == ErrorCode::CoordinatorLoadInProgress {
                    ErrorCode::None.code()
                } else {
                    error_code
                }
            })),
            Self::Leave(_) => GroupResponse::Leave(message!(LeaveGroupResponse { error_code })),
            Self::OffsetCommit(request) => {
                GroupResponse::OffsetCommit(offset_commit_refused(request, error))
            }
            Self::TxnOffsetCommit(request) => GroupResponse::TxnOffsetCommit(
                txn_offset_commit_refused(request, for_producer(api_version, error)),
            ),
            Self::OffsetFetch(request) => {
                GroupResponse::OffsetFetch(offset_fetch_refused(request, api_version, error))
            }
            Self::OffsetDelete(_) => {
                GroupResponse::OffsetDelete(message!(OffsetDeleteResponse { error_code }))
            }
            Self::DescribeGroups(request) => {
                GroupResponse::DescribeGroups(message!(DescribeGroupsResponse {
                    groups: request
                        .groups
                        .iter()
                        .map(|group_id| message!(DescribedGroup {
                            error_code,
                            group_id: group_id.clone()
                        }))
                        .collect()
                }))
            }
            Self::ListGroups(_) => {
                GroupResponse::ListGroups(message!(ListGroupsResponse { error_code }))
            }
            Self::ConsumerHeartbeat(_) => {
                GroupResponse::ConsumerHeartbeat(message!(ConsumerGroupHeartbeatResponse {
                    error_code
                }))
            }
            Self::ConsumerDescribe(request) => {
                GroupResponse::ConsumerDescribe(message!(ConsumerGroupDescribeResponse {
                    groups: request
                        .group_ids
                        .iter()
                        .map(|group_id| message!(DescribedConsumerGroup {
                            error_code,
                            group_id: group_id.clone()
                        }))
                        .collect()
                }))
            }
            Self::DeleteGroups(request) => {
                GroupResponse::DeleteGroups(message!(DeleteGroupsResponse {
                    results: request
                        .groups_names
                        .iter()
                        .map(|group_id| message!(DeletableGroupResult {
                            group_id: group_id.clone(),
                            error_code
                        }))
                        .collect()
                }))
            }
        }
    }
}

impl GroupResponse {
    /// The answer that takes this one's place when the records it rests on could not
    /// be written, so that nothing is reported as done.
    #[must_use]
    pub fn failed(self, error: ErrorCode) -> Self {
        let error_code = error.code();
        let unless_refused = |code: &mut i16| {
            if *code == ErrorCode::None.code() {
                *code = error_code;
            }
        };
        match self {
            Self::Join(response) => Self::Join(message!(JoinGroupResponse {
                error_code,
                protocol_name: response.protocol_name.map(|_| StrBytes::default())
            })),
            Self::Sync(_) => Self::Sync(sync_refused(error)),
            Self::Heartbeat(_) => Self::Heartbeat(message!(HeartbeatResponse { error_code })),
            Self::Leave(_) => Self::Leave(message!(LeaveGroupResponse { error_code })),
            Self::OffsetCommit(mut response) => {
                for topic in &mut response.topics {
                    for partition in &mut topic.partitions {
                        unless_refused(&mut partition.error_code);
                    }
                }
                Self::OffsetCommit(response)
            }
            Self::TxnOffsetCommit(mut response) => {
                for topic in &mut response.topics {
                    for partition in &mut topic.partitions {
                        unless_refused(&mut partition.error_code);
                    }
                }
                Self::TxnOffsetCommit(response)
            }
            Self::OffsetFetch(mut response) => {
                response.error_code = error_code;
                response.topics.clear();
                for group in &mut response.groups {
                    group.error_code = error_code;
                    group.topics.clear();
                }
                Self::OffsetFetch(response)
            }
            Self::OffsetDelete(_) => {
                Self::OffsetDelete(message!(OffsetDeleteResponse { error_code }))
            }
            Self::DescribeGroups(mut response) => {
                for group in &mut response.groups {
                    unless_refused(&mut group.error_code);
                }
                Self::DescribeGroups(response)
            }
            Self::ListGroups(_) => Self::ListGroups(message!(ListGroupsResponse { error_code })),
            Self::ConsumerHeartbeat(_) => {
                Self::ConsumerHeartbeat(message!(ConsumerGroupHeartbeatResponse { error_code }))
            }
            Self::ConsumerDescribe(mut response) => {
                for group in &mut response.groups {
                    unless_refused(&mut group.error_code);
                }
                Self::ConsumerDescribe(response)
            }
            Self::DeleteGroups(mut response) => {
                for result in &mut response.results {
                    unless_refused(&mut result.error_code);
                }
                Self::DeleteGroups(response)
            }
        }
    }
}

/// A JoinGroup answer that says no.
pub(super) fn join_refused(
    api_version: i16,
    member_id: StrBytes,
    error: ErrorCode,
) -> JoinGroupResponse {
    message!(JoinGroupResponse {
        error_code: error.code(),
        member_id,
        protocol_name: protocol_name(None, api_version)
    })
}

/// A protocol's name as JoinGroup answers carry it: null is there since version 7, and
/// stands for the empty name too.
pub(super) fn protocol_name(name: Option<&StrBytes>, api_version: i16) -> Option<StrBytes> {
    match name.filter(|name| !name.is_empty()) {
        Some(name) => Some(name.clone()),
        None => (api_version < 7).then(StrBytes::default),
    }
}

/// A SyncGroup answer that says no.
pub(super) fn sync_refused(error: ErrorCode) -> SyncGroupResponse {
    message!(SyncGroupResponse {
        error_code: error.code()
    })
}

/// An OffsetCommit answer that says no for every partition.
pub(super) fn offset_commit_refused(
    request: &OffsetCommitRequest,
    error: ErrorCode,
) -> OffsetCommitResponse {
    let topics = request.topics.iter().map(|topic| {
        message!(OffsetCommitResponseTopic {
            name: topic.name.clone(),
            topic_id: topic.topic_id,
            partitions: topic
                .partitions
                .iter()
                .map(|partition| message!(OffsetCommitResponsePartition {
                    partition_index: partition.partition_index,
                    error_code: error.code()
                }))
                .collect()
        })
    });
    message!(OffsetCommitResponse {
        topics: topics.collect()
    })
}

/// Producers before version 2 do not live through an error that says that the group is
/// loading (KAFKA-7296).
fn for_producer(api_version: i16, error: ErrorCode) -> ErrorCode {
    if api_version < 2 && error == ErrorCode::CoordinatorLoadInProgress {
        ErrorCode::CoordinatorNotAvailable
    } else {
        error
    }
}

/// A TxnOffsetCommit answer that says no for every partition.
pub(super) fn txn_offset_commit_refused(
    request: &TxnOffsetCommitRequest,
    error: ErrorCode,
) -> TxnOffsetCommitResponse {
    let topics = request.topics.iter().map(|topic| {
        message!(TxnOffsetCommitResponseTopic {
            name: topic.name.clone(),
            partitions: topic
                .partitions
                .iter()
                .map(|partition| message!(TxnOffsetCommitResponsePartition {
                    partition_index: partition.partition_index,
                    error_code: error.code()
                }))
                .collect()
        })
    });
    message!(TxnOffsetCommitResponse {
        topics: topics.collect()
    })
}

fn offset_fetch_refused(
    request: &OffsetFetchRequest,
    api_version: i16,
    error: ErrorCode,
) -> OffsetFetchResponse {
    let error_code = error.code();
    if api_version >= 8 {
        let groups = request.groups.iter().map(|group| {
            message!(OffsetFetchResponseGroup {
                group_id: group.group_id.clone(),
                error_code
            })
        });
        return message!(OffsetFetchResponse {
            groups: groups.collect()
        });
    }
    if api_version >= 2 {
        return message!(OffsetFetchResponse { error_code });
    }
    // Version 1 has no error for the whole answer.
    let topics = request.topics.iter().flatten().map(|topic| {
        message!(OffsetFetchResponseTopic {
            name: topic.name.clone(),
            partitions: topic
                .partition_indexes
                .iter()
                .map(|&partition_index| message!(OffsetFetchResponsePartition {
                    partition_index,
                    committed_offset: -1,
                    error_code
                }))
                .collect()
        })
    });
    message!(OffsetFetchResponse {
        topics: topics.collect()
    })
}

/// What clients are told when the append of records failed with `error`, as Kafka
/// translates it: only codes that they retry on, or give up on, sensibly.
pub(super) fn write_error(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::UnknownTopicOrPartition
        | ErrorCode::NotEnoughReplicas
        | ErrorCode::RequestTimedOut => ErrorCode::CoordinatorNotAvailable,
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge
        | ErrorCode::RecordListTooLarge
        | ErrorCode::InvalidFetchSize => ErrorCode::UnknownServerError,
        other => other,
    }
}
