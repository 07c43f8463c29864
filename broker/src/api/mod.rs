//! The Kafka APIs: one file each, and the only table that says which are served, in
//! which versions, and how each is started.
//!
//! A handler translates the request, makes one call, and translates the answer. What
//! it may need stands in its [`Context`].

mod add_offsets_to_txn;
mod add_partitions_to_txn;
mod allocate_producer_ids;
mod alter_configs;
mod alter_partition;
mod alter_partition_reassignments;
mod api_versions;
mod authorized_operations;
mod config_resource;
mod consumer_group_describe;
mod consumer_group_heartbeat;
mod create_partitions;
mod create_topics;
mod delete_records;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod describe_log_dirs;
mod describe_producers;
mod describe_topic_partitions;
mod describe_transactions;
mod elect_leaders;
mod end_txn;
mod envelope;
mod errors_told;
pub(crate) mod fetch;
mod find_coordinator;
mod group;
mod init_producer_id;
mod leader_hints;
mod list_config_resources;
mod list_offsets;
mod list_partition_reassignments;
mod list_transactions;
mod metadata;
mod offset_commit;
mod offset_fetch;
mod offset_for_leader_epoch;
mod produce;
mod txn_offset_commit;
mod unregister_broker;
mod update_features;
pub(crate) mod write_txn_markers;

pub(crate) use fetch::{FetchSessions, FollowerSessions};

use crate::{net::answer::Answer, node::Node};
use bytes::Bytes;
use errors_told::ErrorsTold;
use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Instant};
use yuxi_protocol::{
    codec::{EncodeError, StrBytes},
    error_code::ErrorCode,
    frame::{self, FrameError, RequestHead},
    messages::{self, KafkaRequest, KafkaResponse, RequestResponsePair},
};

/// Why a request gets no answer but the end of its connection, as Kafka has it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswerable {
    #[error("API key {0} is not served")]
    UnknownApi(i16),
    #[error("{api} version {version} is not served, only {min} to {max}")]
    UnknownVersion {
        api: &'static str,
        version: i16,
        min: i16,
        max: i16,
    },
    #[error("a malformed {api} request: {error}")]
    Malformed {
        api: &'static str,
        error: FrameError,
    },
    #[error("the {api} answer cannot be encoded: {error}")]
    Unencodable {
        api: &'static str,
        error: EncodeError,
    },
    #[error("the answer is larger than a frame can be")]
    AnswerTooLarge,
    #[error("acks=0 cannot be answered, and the produce failed: {0}")]
    FailedWithoutAcks(String),
    #[error("what comes over a connection from before this coordinator's term may be late")]
    MayBeLate,
}

/// The answer to one request, or why there is none.
pub(crate) type Outcome = Result<Answer, Unanswerable>;

/// A request that was started.
pub(crate) enum Started {
    /// Done. An empty answer sends nothing.
    Ready(Outcome),
    /// Its effects are begun; the answer comes later.
    Pending(Pin<Box<dyn Future<Output = Outcome> + Send>>),
    /// Nothing has happened yet, and nothing that comes after it may start before it is
    /// answered, whatever the order of its API is.
    Held(Pin<Box<dyn Future<Output = Outcome> + Send>>),
}

impl Started {
    /// The answer, however long it takes.
    pub(crate) async fn outcome(self) -> Outcome {
        match self {
            Self::Ready(answer) => answer,
            Self::Pending(answer) | Self::Held(answer) => answer.await,
        }
    }
}

/// When a request of a connection may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// At once, while others before it still wait for their answers.
    Pipelined,
    /// When all before it are answered, and before any after it. For requests whose
    /// callers rely on that, as with Kafka's one request at a time.
    InTurn,
}

/// One served API.
pub(crate) struct Api {
    pub(crate) key: i16,
    pub(crate) name: &'static str,
    pub(crate) min: i16,
    pub(crate) max: i16,
    pub(crate) order: Order,
    /// Whether clients are told of it. What brokers ask of the controller is for them alone.
    pub(crate) offered: bool,
    pub(crate) start: fn(Request) -> Started,
}

/// Everything served, by API key.
pub(crate) static APIS: &[Api] = &[
    Api {
        // Advertised from version 0, although 0 to 2 are refused: old librdkafka
        // otherwise stops compressing (KAFKA-18659).
        min: 0,
        ..api::<messages::ProduceRequest>("Produce", 13, Order::Pipelined, produce::start)
    },
    api::<messages::FetchRequest>("Fetch", 18, Order::Pipelined, fetch::start),
    api::<messages::ListOffsetsRequest>("ListOffsets", 11, Order::InTurn, |request| {
        later(request, list_offsets::handle)
    }),
    api::<messages::MetadataRequest>("Metadata", 13, Order::InTurn, |request| {
        later(request, metadata::handle)
    }),
    api::<messages::OffsetCommitRequest>("OffsetCommit", 10, Order::InTurn, |request| {
        unless_unanswerable(request, offset_commit::handle)
    }),
    api::<messages::OffsetFetchRequest>("OffsetFetch", 10, Order::InTurn, |request| {
        later(request, offset_fetch::handle)
    }),
    api::<messages::FindCoordinatorRequest>("FindCoordinator", 6, Order::InTurn, |request| {
        later(request, find_coordinator::handle)
    }),
    api::<messages::JoinGroupRequest>("JoinGroup", 9, Order::InTurn, |request| {
        later(request, group::join)
    }),
    api::<messages::HeartbeatRequest>("Heartbeat", 4, Order::InTurn, |request| {
        later(request, group::heartbeat)
    }),
    api::<messages::LeaveGroupRequest>("LeaveGroup", 5, Order::InTurn, |request| {
        later(request, group::leave)
    }),
    api::<messages::SyncGroupRequest>("SyncGroup", 5, Order::InTurn, |request| {
        later(request, group::sync)
    }),
    api::<messages::DescribeGroupsRequest>("DescribeGroups", 6, Order::InTurn, |request| {
        later(request, group::describe)
    }),
    api::<messages::ListGroupsRequest>("ListGroups", 5, Order::InTurn, |request| {
        later(request, group::list)
    }),
    api::<messages::ApiVersionsRequest>("ApiVersions", 4, Order::Pipelined, api_versions::start),
    api::<messages::CreateTopicsRequest>("CreateTopics", 7, Order::InTurn, |request| {
        later(request, create_topics::handle)
    }),
    api::<messages::DeleteTopicsRequest>("DeleteTopics", 6, Order::InTurn, |request| {
        later(request, delete_topics::handle)
    }),
    api::<messages::DeleteRecordsRequest>("DeleteRecords", 2, Order::InTurn, |request| {
        later(request, delete_records::handle)
    }),
    api::<messages::InitProducerIdRequest>("InitProducerId", 5, Order::InTurn, |request| {
        later(request, init_producer_id::handle)
    }),
    api::<messages::OffsetForLeaderEpochRequest>(
        "OffsetForLeaderEpoch",
        4,
        Order::InTurn,
        |request| at_once(request, offset_for_leader_epoch::handle),
    ),
    api::<messages::AddPartitionsToTxnRequest>(
        "AddPartitionsToTxn",
        5,
        Order::Pipelined,
        add_partitions_to_txn::start,
    ),
    api::<messages::AddOffsetsToTxnRequest>("AddOffsetsToTxn", 4, Order::InTurn, |request| {
        later(request, add_offsets_to_txn::handle)
    }),
    api::<messages::EndTxnRequest>("EndTxn", 5, Order::InTurn, |request| {
        later(request, end_txn::handle)
    }),
    api::<messages::WriteTxnMarkersRequest>(
        "WriteTxnMarkers",
        2,
        Order::Pipelined,
        write_txn_markers::start,
    ),
    api::<messages::TxnOffsetCommitRequest>("TxnOffsetCommit", 5, Order::InTurn, |request| {
        later(request, txn_offset_commit::handle)
    }),
    api::<messages::DescribeConfigsRequest>("DescribeConfigs", 4, Order::InTurn, |request| {
        at_once(request, describe_configs::handle)
    }),
    api::<messages::AlterConfigsRequest>("AlterConfigs", 2, Order::InTurn, |request| {
        later(request, alter_configs::handle_full)
    }),
    api::<messages::DescribeLogDirsRequest>("DescribeLogDirs", 4, Order::InTurn, |request| {
        at_once(request, describe_log_dirs::handle)
    }),
    api::<messages::CreatePartitionsRequest>("CreatePartitions", 3, Order::InTurn, |request| {
        later(request, create_partitions::handle)
    }),
    api::<messages::DeleteGroupsRequest>("DeleteGroups", 2, Order::InTurn, |request| {
        later(request, group::delete)
    }),
    api::<messages::ElectLeadersRequest>("ElectLeaders", 2, Order::InTurn, |request| {
        later(request, elect_leaders::handle)
    }),
    api::<messages::IncrementalAlterConfigsRequest>(
        "IncrementalAlterConfigs",
        1,
        Order::InTurn,
        |request| later(request, alter_configs::handle_incremental),
    ),
    api::<messages::AlterPartitionReassignmentsRequest>(
        "AlterPartitionReassignments",
        1,
        Order::InTurn,
        |request| later(request, alter_partition_reassignments::handle),
    ),
    api::<messages::ListPartitionReassignmentsRequest>(
        "ListPartitionReassignments",
        0,
        Order::InTurn,
        |request| at_once(request, list_partition_reassignments::handle),
    ),
    api::<messages::OffsetDeleteRequest>("OffsetDelete", 0, Order::InTurn, |request| {
        later(request, group::delete_offsets)
    }),
    between_brokers(api::<messages::AlterPartitionRequest>(
        "AlterPartition",
        3,
        Order::Pipelined,
        |request| later(request, alter_partition::handle),
    )),
    api::<messages::UpdateFeaturesRequest>("UpdateFeatures", 2, Order::InTurn, |request| {
        later(request, update_features::handle)
    }),
    between_brokers(api::<messages::EnvelopeRequest>(
        "Envelope",
        0,
        Order::Pipelined,
        |request| later(request, envelope::handle),
    )),
    api::<messages::DescribeClusterRequest>("DescribeCluster", 2, Order::InTurn, |request| {
        at_once(request, describe_cluster::handle)
    }),
    api::<messages::DescribeProducersRequest>("DescribeProducers", 0, Order::InTurn, |request| {
        at_once(request, describe_producers::handle)
    }),
    api::<messages::UnregisterBrokerRequest>("UnregisterBroker", 0, Order::InTurn, |request| {
        later(request, unregister_broker::handle)
    }),
    api::<messages::DescribeTransactionsRequest>(
        "DescribeTransactions",
        0,
        Order::InTurn,
        |request| later(request, describe_transactions::handle),
    ),
    api::<messages::ListTransactionsRequest>("ListTransactions", 2, Order::InTurn, |request| {
        later(request, list_transactions::handle)
    }),
    between_brokers(api::<messages::AllocateProducerIdsRequest>(
        "AllocateProducerIds",
        0,
        Order::Pipelined,
        |request| later(request, allocate_producer_ids::handle),
    )),
    api::<messages::ConsumerGroupHeartbeatRequest>(
        "ConsumerGroupHeartbeat",
        1,
        Order::InTurn,
        |request| later(request, consumer_group_heartbeat::handle),
    ),
    api::<messages::ConsumerGroupDescribeRequest>(
        "ConsumerGroupDescribe",
        1,
        Order::InTurn,
        |request| later(request, consumer_group_describe::handle),
    ),
    api::<messages::ListConfigResourcesRequest>(
        "ListConfigResources",
        1,
        Order::InTurn,
        |request| at_once(request, list_config_resources::handle),
    ),
    api::<messages::DescribeTopicPartitionsRequest>(
        "DescribeTopicPartitions",
        0,
        Order::InTurn,
        |request| at_once(request, describe_topic_partitions::handle),
    ),
];

const fn api<R: KafkaRequest>(
    name: &'static str,
    max: i16,
    order: Order,
    start: fn(Request) -> Started,
) -> Api {
    let known = R::SUPPORTED_VERSIONS;
    assert!(
        max <= known.max().value(),
        "a version that cannot be encoded"
    );
    Api {
        key: R::API_KEY.value(),
        name,
        min: known.min().value(),
        max,
        order,
        offered: true,
        start,
    }
}

/// An API that only the brokers of the cluster use among themselves.
const fn between_brokers(mut api: Api) -> Api {
    api.offered = false;
    api
}

/// The API that a request names, if it is served in that version.
pub(crate) fn find(head: &RequestHead) -> Result<&'static Api, Unanswerable> {
    let api = APIS
        .binary_search_by_key(&head.api_key, |api| api.key)
        .map(|at| &APIS[at])
        .map_err(|_| Unanswerable::UnknownApi(head.api_key))?;
    let served = (api.min..=api.max).contains(&head.api_version);
    // An ApiVersions request of any version is answered, with error 35 if need be, so
    // that the client learns which versions there are (KIP-511).
    if served || api.key == messages::ApiVersionsRequest::API_KEY.value() {
        Ok(api)
    } else {
        Err(Unanswerable::UnknownVersion {
            api: api.name,
            version: head.api_version,
            min: api.min,
            max: api.max,
        })
    }
}

/// One request, head decoded, body not yet.
pub(crate) struct Request {
    pub(crate) head: RequestHead,
    pub(crate) body: Bytes,
    pub(crate) peer: SocketAddr,
    /// When its connection was made.
    pub(crate) connected: Instant,
    pub(crate) node: Arc<Node>,
}

impl Request {
    /// Decodes the body, which must end where the frame does.
    pub(crate) fn decode<R: KafkaRequest>(&mut self) -> Result<R, Unanswerable> {
        let limits = frame::request_limits(self.node.max_frame_bytes());
        self.head
            .decode_body(std::mem::take(&mut self.body), limits)
            .map_err(|error| Unanswerable::Malformed {
                api: R::NAME,
                error,
            })
    }

    fn into_context(self) -> Context {
        Context {
            version: self.head.api_version,
            correlation_id: self.head.correlation_id,
            client_id: self.head.client_id,
            peer: self.peer,
            connected: self.connected,
            node: self.node,
        }
    }
}

/// What a handler knows besides its typed request.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) node: Arc<Node>,
    /// The request's API version: an answer may only fill fields that this version has.
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
    pub(crate) client_id: Option<StrBytes>,
    pub(crate) peer: SocketAddr,
    /// When its connection was made.
    pub(crate) connected: Instant,
}

impl Context {
    /// Encodes the answer as a frame, and counts the errors in it.
    fn answer<R: KafkaResponse + ErrorsTold>(&self, response: &R) -> Outcome {
        self.count_errors(R::API_KEY.value(), response);
        frame::encode_response(self.correlation_id, self.version, response)
            .map(Answer::from)
            .map_err(|error| Unanswerable::Unencodable {
                api: R::NAME,
                error,
            })
    }

    fn count_errors(&self, api_key: i16, response: &impl ErrorsTold) {
        let none = ErrorCode::None.code();
        let told = response.error_codes().filter(|&code| code != none);
        for error in told.filter_map(ErrorCode::from_code) {
            self.node.metrics.request_failed(api_key, error);
        }
    }
}

/// Starts a request whose handler needs no waiting.
fn at_once<R>(mut request: Request, handle: fn(&Context, &R) -> R::Response) -> Started
where
    R: RequestResponsePair,
    R::Response: ErrorsTold,
{
    Started::Ready(request.decode::<R>().and_then(|decoded| {
        let context = request.into_context();
        let response = handle(&context, &decoded);
        context.answer(&response)
    }))
}

/// Starts a request whose handler waits: nothing of it runs before it is first in its
/// connection's queue.
fn later<R, H, F>(request: Request, handle: H) -> Started
where
    R: RequestResponsePair + Send + 'static,
    R::Response: ErrorsTold + Send,
    H: FnOnce(Context, R) -> F + Send + 'static,
    F: Future<Output = R::Response> + Send,
{
    unless_unanswerable(request, move |context, request| {
        let response = handle(context, request);
        async move { Ok(response.await) }
    })
}

/// As [`later`], for a handler that can find that there is no answer.
fn unless_unanswerable<R, H, F>(mut request: Request, handle: H) -> Started
where
    R: RequestResponsePair + Send + 'static,
    R::Response: ErrorsTold + Send,
    H: FnOnce(Context, R) -> F + Send + 'static,
    F: Future<Output = Result<R::Response, Unanswerable>> + Send,
{
    match request.decode::<R>() {
        Err(error) => Started::Ready(Err(error)),
        Ok(decoded) => Started::Pending(Box::pin(async move {
            let context = request.into_context();
            let response = handle(context.clone(), decoded).await?;
            context.answer(&response)
        })),
    }
}

/// What a fenced producer is told: clients that do not know PRODUCER_FENCED yet take the
/// older code in the same way.
fn fenced_as_known(error: ErrorCode, knows_fenced: bool) -> ErrorCode {
    if error == ErrorCode::ProducerFenced && !knows_fenced {
        ErrorCode::InvalidProducerEpoch
    } else {
        error
    }
}

/// One request's way through the broker, for the metrics.
pub(crate) struct Timing {
    node: Arc<Node>,
    api_key: i16,
    api_version: i16,
    started: Instant,
}

impl Timing {
    pub(crate) fn start(node: &Arc<Node>, head: &RequestHead) -> Self {
        Self {
            node: Arc::clone(node),
            api_key: head.api_key,
            api_version: head.api_version,
            started: Instant::now(),
        }
    }

    /// The answer is complete and goes to the socket.
    pub(crate) fn done(self, answer_bytes: usize) {
        self.node.metrics.request_answered(
            self.api_key,
            self.api_version,
            self.started.elapsed(),
            answer_bytes,
        );
    }
}

#[cfg(test)]
mod lagging_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_by_key_so_that_it_can_be_searched() {
        assert!(APIS.is_sorted_by(|a, b| a.key < b.key));
    }
}
