//! Where each answer says that something failed, so that every error that a client is
//! told is also counted. One row for each answer.

use yuxi_controller::ControllerError;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    messages::{
        AddOffsetsToTxnResponse, AddPartitionsToTxnResponse, AllocateProducerIdsResponse,
        AlterConfigsResponse, AlterPartitionReassignmentsResponse, AlterPartitionResponse,
        ApiVersionsResponse, ConsumerGroupDescribeResponse, ConsumerGroupHeartbeatResponse,
        CreatePartitionsResponse, CreateTopicsResponse, DeleteGroupsResponse,
        DeleteRecordsResponse, DeleteTopicsResponse, DescribeClusterResponse,
        DescribeConfigsResponse, DescribeGroupsResponse, DescribeLogDirsResponse,
        DescribeProducersResponse, DescribeTopicPartitionsResponse, DescribeTransactionsResponse,
        ElectLeadersResponse, EndTxnResponse, EnvelopeResponse, FetchResponse,
        FindCoordinatorResponse, HeartbeatResponse, IncrementalAlterConfigsResponse,
        InitProducerIdResponse, JoinGroupResponse, LeaveGroupResponse, ListConfigResourcesResponse,
        ListGroupsResponse, ListOffsetsResponse, ListPartitionReassignmentsResponse,
        ListTransactionsResponse, MetadataResponse, OffsetCommitResponse, OffsetDeleteResponse,
        OffsetFetchResponse, OffsetForLeaderEpochResponse, ProduceResponse, SyncGroupResponse,
        TxnOffsetCommitResponse, UnregisterBrokerResponse, UpdateFeaturesResponse,
        WriteTxnMarkersResponse,
    },
};

/// What a client is told of what the controller decided: the code, and the reason if it
/// refused.
pub(super) fn of_decision(refused: Option<&ControllerError>) -> (i16, Option<StrBytes>) {
    match refused {
        None => (ErrorCode::None.code(), None),
        Some(error) => (error.error_code().code(), Some(error.to_string().into())),
    }
}

/// An answer that names the errors it tells.
pub(super) trait ErrorsTold {
    /// Every error code in the answer; 0 is none.
    fn error_codes(&self) -> impl Iterator<Item = i16>;
}

macro_rules! errors_told {
    ($( $response:ty: |$answer:ident| $codes:expr; )+) => {
        $( impl ErrorsTold for $response {
            fn error_codes(&self) -> impl Iterator<Item = i16> {
                let $answer = self;
                $codes.into_iter()
            }
        } )+
    };
}

/// The codes of `$list`'s elements.
macro_rules! each {
    ($list:expr) => {
        $list.iter().map(|one| one.error_code)
    };
    ($list:expr, $inner:ident) => {
        $list
            .iter()
            .flat_map(|one| one.$inner.iter().map(|inner| inner.error_code))
    };
}

errors_told! {
    ProduceResponse: |answer| each!(answer.responses, partition_responses);
    FetchResponse: |answer| each!(answer.responses, partitions).chain([answer.error_code]);
    ListOffsetsResponse: |answer| each!(answer.topics, partitions);
    MetadataResponse: |answer| each!(answer.topics).chain(each!(answer.topics, partitions));
    OffsetCommitResponse: |answer| each!(answer.topics, partitions);
    TxnOffsetCommitResponse: |answer| each!(answer.topics, partitions);
    OffsetFetchResponse: |answer| each!(answer.topics, partitions)
        .chain([answer.error_code])
        .chain(each!(answer.groups))
        .chain(answer.groups.iter().flat_map(|group| each!(group.topics, partitions)));
    FindCoordinatorResponse: |answer| each!(answer.coordinators).chain([answer.error_code]);
    JoinGroupResponse: |answer| [answer.error_code];
    HeartbeatResponse: |answer| [answer.error_code];
    LeaveGroupResponse: |answer| each!(answer.members).chain([answer.error_code]);
    SyncGroupResponse: |answer| [answer.error_code];
    DescribeGroupsResponse: |answer| each!(answer.groups);
    ListGroupsResponse: |answer| [answer.error_code];
    ApiVersionsResponse: |answer| [answer.error_code];
    CreateTopicsResponse: |answer| each!(answer.topics);
    DeleteTopicsResponse: |answer| each!(answer.responses);
    DeleteRecordsResponse: |answer| each!(answer.topics, partitions);
    InitProducerIdResponse: |answer| [answer.error_code];
    OffsetForLeaderEpochResponse: |answer| each!(answer.topics, partitions);
    DescribeConfigsResponse: |answer| each!(answer.results);
    AlterConfigsResponse: |answer| each!(answer.responses);
    DescribeLogDirsResponse: |answer| each!(answer.results).chain([answer.error_code]);
    CreatePartitionsResponse: |answer| each!(answer.results);
    DeleteGroupsResponse: |answer| each!(answer.results);
    IncrementalAlterConfigsResponse: |answer| each!(answer.responses);
    OffsetDeleteResponse: |answer| each!(answer.topics, partitions).chain([answer.error_code]);
    AlterPartitionResponse: |answer| each!(answer.topics, partitions).chain([answer.error_code]);
    EnvelopeResponse: |answer| [answer.error_code];
    AllocateProducerIdsResponse: |answer| [answer.error_code];
    DescribeClusterResponse: |answer| [answer.error_code];
    ConsumerGroupHeartbeatResponse: |answer| [answer.error_code];
    ConsumerGroupDescribeResponse: |answer| each!(answer.groups);
    ListConfigResourcesResponse: |answer| [answer.error_code];
    ElectLeadersResponse: |answer| each!(answer.replica_election_results, partition_result)
        .chain([answer.error_code]);
    AlterPartitionReassignmentsResponse: |answer| each!(answer.responses, partitions)
        .chain([answer.error_code]);
    ListPartitionReassignmentsResponse: |answer| [answer.error_code];
    UnregisterBrokerResponse: |answer| [answer.error_code];
    DescribeTopicPartitionsResponse: |answer| each!(answer.topics);
    DescribeProducersResponse: |answer| each!(answer.topics, partitions);
    WriteTxnMarkersResponse: |answer| answer
        .markers
        .iter()
        .flat_map(|marker| each!(marker.topics, partitions));
    AddPartitionsToTxnResponse: |answer| answer
        .results_by_transaction
        .iter()
        .flat_map(|result| result.topic_results.iter())
        .chain(&answer.results_by_topic_v3_and_below)
        .flat_map(|topic| topic.results_by_partition.iter())
        .map(|result| result.partition_error_code)
        .chain([answer.error_code]);
    AddOffsetsToTxnResponse: |answer| [answer.error_code];
    EndTxnResponse: |answer| [answer.error_code];
    UpdateFeaturesResponse: |answer| each!(answer.results).chain([answer.error_code]);
    DescribeTransactionsResponse: |answer| each!(answer.transaction_states);
    ListTransactionsResponse: |answer| [answer.error_code];
}
