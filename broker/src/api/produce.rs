//! Produce (key 0): appends one record batch to each named partition.
//!
//! All appends are done when `start` returns, so the next request of the connection
//! finds them; only the acknowledgement may come later. The exception is a batch that
//! begins a transaction in its partition: its coordinator is asked first
//! ([`verification`]), and the next request waits for that.

mod verification;

use super::{Context, Request, Started, Unanswerable, leader_hints::LeaderHints};
use crate::{
    node::{Lookup, TopicName},
    partition::{
        Ack, Appended, Partition, RequiredAcks, VerificationGuard,
        admission::{self, Admitted},
    },
    time,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};
use verification::Verified;
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::TopicId,
    message,
    messages::{
        ProduceRequest, ProduceResponse,
        produce_request::{PartitionProduceData, TopicProduceData},
        produce_response::{
            BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse,
            TopicProduceResponse,
        },
    },
};

/// Answers name the leader there is, from this version on (KIP-951).
const LEADER_HINTS_FROM: i16 = 10;

/// Topics are named by their ids from this version on.
const TOPIC_IDS_FROM: i16 = 13;

/// Answers name a reason, and the records that it is about, from this version on (KIP-467).
const REASON_FROM: i16 = 8;

/// An append that is not acknowledged yet: where its answer stands in the response.
struct Unacknowledged {
    topic: usize,
    partition: usize,
    ack: oneshot::Receiver<Result<(), ErrorCode>>,
}

/// A partition's error, the reason in words, and the records that it is about, if it is
/// about some only.
struct Failure {
    code: ErrorCode,
    reason: String,
    records: Vec<(i32, String)>,
}

impl Failure {
    fn new(code: ErrorCode, reason: &(impl ToString + ?Sized)) -> Self {
        Self {
            code,
            reason: reason.to_string(),
            records: Vec::new(),
        }
    }
}

pub(super) fn start(mut request: Request) -> Started {
    let produce: ProduceRequest = match request.decode() {
        Ok(produce) => produce,
        Err(error) => return Started::Ready(Err(error)),
    };
    let context = request.into_context();
    let asked = produce.topic_data.iter().flat_map(|topic| {
        let name = topic_name(&context, &topic.name, topic.topic_id.into());
        topic.partition_data.iter().map(move |p| (name, p.index))
    });
    let Some(revision) = context.node.arriving(asked) else {
        return verify_and_append(context, produce);
    };
    Started::Held(Box::pin(async move {
        let deadline = deadline(&produce);
        context.node.applied_by(revision, deadline).await;
        verify_and_append(context, produce).outcome().await
    }))
}

fn verify_and_append(context: Context, produce: ProduceRequest) -> Started {
    let questions = verification::questions(&context, &produce);
    if questions.is_empty() {
        return append_all(&context, produce, &Verified::default());
    }
    Started::Held(Box::pin(async move {
        let verified = verification::ask(&context, &produce, questions).await;
        append_all(&context, produce, &verified).outcome().await
    }))
}

/// Until when the client waits.
fn deadline(produce: &ProduceRequest) -> Instant {
    Instant::now() + Duration::from_millis(produce.timeout_ms.max(0) as u64)
}

/// A topic as this version of the request names it.
fn topic_name<'a>(context: &Context, name: &'a str, id: TopicId) -> TopicName<'a> {
    if context.version >= TOPIC_IDS_FROM {
        TopicName::Id(id)
    } else {
        TopicName::Name(name)
    }
}

/// Appends everything, and answers or waits for the acknowledgements.
fn append_all(context: &Context, produce: ProduceRequest, verified: &Verified) -> Started {
    let acks = match produce.acks {
        0 | 1 => Some(RequiredAcks::Leader),
        -1 => Some(RequiredAcks::All),
        _ => None,
    };
    let now_ms = time::wall_ms();
    let is_transactional = produce.transactional_id.is_some();
    let deadline = deadline(&produce);
    let mut unacknowledged = Vec::new();
    let mut responses = Vec::with_capacity(produce.topic_data.len());
    for (topic_at, topic) in produce.topic_data.into_iter().enumerate() {
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for (partition_at, data) in topic.partition_data.iter().enumerate() {
            let appended = match acks {
                Some(acks) => verified.guard(topic_at, partition_at).and_then(|guard| {
                    let batch = Batch {
                        topic: &topic,
                        data,
                        guard,
                        is_transactional,
                    };
                    append(context, &batch, acks, now_ms)
                }),
                None => Err(Failure::new(
                    ErrorCode::InvalidRequiredAcks,
                    &format_args!("acks={} is none of 0, 1 and -1", produce.acks),
                )),
            };
            partitions.push(match appended {
                Ok((admitted, appended)) => {
                    let answer = success(context, data.index, &admitted, &appended);
                    if let Ack::Later(ack) = appended.ack {
                        unacknowledged.push(Unacknowledged {
                            topic: topic_at,
                            partition: partition_at,
                            ack,
                        });
                    }
                    answer
                }
                Err(failure) => refusal(context, data.index, failure),
            });
        }
        responses.push(message!(TopicProduceResponse {
            name: topic.name,
            topic_id: topic.topic_id,
            partition_responses: partitions,
        }));
    }
    let mut response = message!(ProduceResponse { responses });
    if produce.acks == 0 {
        return Started::Ready(without_acks(&response));
    }
    if unacknowledged.is_empty() {
        add_leaders(context, &mut response);
        return Started::Ready(context.answer(&response));
    }
    let context = context.clone();
    Started::Pending(Box::pin(async move {
        let mut response = acknowledged(response, unacknowledged, deadline).await;
        add_leaders(&context, &mut response);
        context.answer(&response)
    }))
}

/// One partition's part of a request.
struct Batch<'a> {
    topic: &'a TopicProduceData,
    data: &'a PartitionProduceData,
    /// The coordinator of its transaction was asked with this guard.
    guard: Option<VerificationGuard>,
    /// The request names a transactional id.
    is_transactional: bool,
}

/// Checks and appends one partition's batch.
fn append(
    context: &Context,
    batch: &Batch<'_>,
    acks: RequiredAcks,
    now_ms: i64,
) -> Result<(Admitted, Appended), Failure> {
    let node = &context.node;
    let Batch { topic, data, .. } = batch;
    let partition = find(context, topic, data.index)?;
    let Some(records) = &data.records else {
        return Err(Failure::new(
            ErrorCode::InvalidRecord,
            "the partition's records are null",
        ));
    };
    let topic_name = &partition.id().topic;
    node.metrics.produce_requested(topic_name);
    if partition.is_internal() {
        return Err(Failure::new(
            ErrorCode::InvalidTopic,
            "the topic is written by brokers only",
        ));
    }
    let settings = partition.settings();
    let admitted = admission::admit(records, &settings, now_ms).map_err(|refused| {
        node.metrics.produce_rejected(topic_name);
        node.metrics.produce_failed(topic_name);
        Failure {
            records: admission::records_at_fault(&refused, records, &settings, now_ms),
            ..Failure::new(refused.code(), &refused)
        }
    })?;
    if admitted.is_transactional() && !batch.is_transactional {
        return Err(Failure::new(
            ErrorCode::TransactionalIdAuthorizationFailed,
            "the batch is part of a transaction, and the request names no transactional id",
        ));
    }
    let admitted = match batch.guard {
        Some(guard) => admitted.verified(guard),
        None => admitted,
    };
    let appended = partition.append(&admitted, acks, now_ms).map_err(|error| {
        node.metrics.produce_failed(topic_name);
        Failure::new(error.code(), &error)
    })?;
    node.metrics
        .records_in(topic_name, admitted.record_count(), admitted.bytes().len());
    if appended.start_flush {
        node.start_flush(&partition);
    }
    Ok((admitted, appended))
}

fn find(
    context: &Context,
    topic: &TopicProduceData,
    index: i32,
) -> Result<Arc<Partition>, Failure> {
    let by_id = context.version >= TOPIC_IDS_FROM;
    let found = if by_id {
        context
            .node
            .replicas
            .find_by_id(TopicId::from(topic.topic_id), index)
    } else {
        context.node.replicas.find(&topic.name, index)
    };
    match found {
        Lookup::Here(partition) => Ok(partition),
        Lookup::Elsewhere => Err(Failure::new(
            ErrorCode::NotLeaderOrFollower,
            "the partition is not on this broker",
        )),
        Lookup::Unknown if by_id => Err(Failure::new(
            ErrorCode::UnknownTopicId,
            "there is no topic with this id",
        )),
        Lookup::Unknown => Err(Failure::new(
            ErrorCode::UnknownTopicOrPartition,
            "there is no such topic or partition",
        )),
    }
}

fn success(
    context: &Context,
    index: i32,
    admitted: &Admitted,
    appended: &Appended,
) -> PartitionProduceResponse {
    message!(PartitionProduceResponse {
        index,
        base_offset: appended.base_offset.value(),
        log_append_time_ms: admitted.log_append_time_ms().unwrap_or(-1),
        log_start_offset: if context.version >= 5 {
            appended.log_start_offset.value()
        } else {
            -1
        },
    })
}

fn refusal(context: &Context, index: i32, failure: Failure) -> PartitionProduceResponse {
    tracing::debug!(
        partition = index,
        client_id = context.client_id.as_ref().map(StrBytes::as_str),
        error = ?failure.code,
        reason = failure.reason,
        "a produce was refused"
    );
    let mut answer = message!(PartitionProduceResponse {
        index,
        error_code: failure.code.code(),
        base_offset: -1,
        log_append_time_ms: -1,
    });
    if context.version >= REASON_FROM {
        answer.error_message = Some(failure.reason.into());
        answer.record_errors = failure.records.into_iter().map(at_fault).collect();
    }
    answer
}

fn at_fault((batch_index, what): (i32, String)) -> BatchIndexAndErrorMessage {
    message!(BatchIndexAndErrorMessage {
        batch_index,
        batch_index_error_message: Some(what.into()),
    })
}

/// A producer that wants no answer learns of an error by the end of its connection, as
/// with Kafka.
fn without_acks(response: &ProduceResponse) -> super::Outcome {
    let failed = response
        .responses
        .iter()
        .flat_map(|topic| topic.partition_responses.iter().map(move |p| (topic, p)))
        .find(|(_, partition)| partition.error_code != 0);
    match failed {
        None => Ok(crate::net::answer::Answer::default()),
        Some((topic, partition)) => Err(Unanswerable::FailedWithoutAcks(format!(
            "{}-{}: {:?}",
            topic.name.as_str(),
            partition.index,
            ErrorCode::from_code(partition.error_code)
        ))),
    }
}

/// Says for what is led elsewhere where that is.
fn add_leaders(context: &Context, response: &mut ProduceResponse) {
    if context.version < LEADER_HINTS_FROM {
        return;
    }
    let elsewhere = |partition: &PartitionProduceResponse| {
        partition.error_code == ErrorCode::NotLeaderOrFollower.code()
    };
    let parts = |topic: &TopicProduceResponse| topic.partition_responses.iter().any(elsewhere);
    if !response.responses.iter().any(parts) {
        return;
    }
    let mut hints = LeaderHints::new(context);
    for topic in &mut response.responses {
        let name = topic_name(context, &topic.name, topic.topic_id.into());
        for partition in topic
            .partition_responses
            .iter_mut()
            .filter(|p| elsewhere(p))
        {
            if let Some((leader, epoch)) = hints.leader(name, partition.index) {
                partition.current_leader = message!(LeaderIdAndEpoch {
                    leader_id: leader.value(),
                    leader_epoch: epoch.value(),
                });
            }
        }
    }
    response.node_endpoints = hints
        .endpoints()
        .into_iter()
        .map(|endpoint| {
            message!(NodeEndpoint {
                node_id: endpoint.id.value(),
                host: endpoint.host.into(),
                port: i32::from(endpoint.port),
                rack: endpoint.rack.map(StrBytes::from),
            })
        })
        .collect();
}

/// Waits until all is acknowledged or the request's time is over.
async fn acknowledged(
    mut response: ProduceResponse,
    unacknowledged: Vec<Unacknowledged>,
    deadline: Instant,
) -> ProduceResponse {
    for waiting in unacknowledged {
        let error = match tokio::time::timeout_at(deadline, waiting.ack).await {
            Ok(Ok(Ok(()))) => continue,
            Ok(Ok(Err(error))) => error,
            // The partition is gone from this broker.
            Ok(Err(_)) => ErrorCode::NotLeaderOrFollower,
            Err(_) => ErrorCode::RequestTimedOut,
        };
        let answer = &mut response.responses[waiting.topic].partition_responses[waiting.partition];
        answer.error_code = error.code();
        answer.base_offset = -1;
    }
    response
}
