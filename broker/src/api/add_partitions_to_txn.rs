//! AddPartitionsToTxn (key 24): partitions that transactions write to. Up to version 3 a
//! client's own transaction; from 4 on what brokers ask on behalf of those who produce
//! (KIP-890), several transactions at once, and perhaps only whether they are there.
//!
//! Everything is begun when `start` returns, so that the questions of one broker do not
//! wait for each other; only the answers come later.

use super::{Context, Request, Started};
use crate::{internal_topics, transactions::Begun};
use yuxi_controller::image::ClusterImage;
use yuxi_coordinator::transactions::{
    Partitions, Producer, TransactionRequest, TransactionResponse,
};
use yuxi_protocol::{
    codec::StrBytes,
    error_code::ErrorCode,
    ids::{PartitionId, ProducerEpoch, ProducerId},
    message,
    messages::{
        AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
        add_partitions_to_txn_request::{AddPartitionsToTxnTopic, AddPartitionsToTxnTransaction},
        add_partitions_to_txn_response::{
            AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult,
            AddPartitionsToTxnTopicResult,
        },
    },
};

/// Several transactions may be asked for from this version on.
const BATCHES_FROM: i16 = 4;

/// Clients know PRODUCER_FENCED from this version on.
const FENCED_FROM: i16 = 2;

/// One transaction of a request, and what is known of its answer.
struct Part {
    transactional_id: StrBytes,
    topics: Vec<AddPartitionsToTxnTopic>,
    answer: Answer,
}

enum Answer {
    /// Nothing was asked of the coordinator: each partition has its error, in order.
    Refused(Vec<ErrorCode>),
    Begun(Begun),
}

pub(super) fn start(mut request: Request) -> Started {
    let asked: AddPartitionsToTxnRequest = match request.decode() {
        Ok(asked) => asked,
        Err(error) => return Started::Ready(Err(error)),
    };
    let context = request.into_context();
    let parts: Vec<Part> = transactions(&context, asked)
        .into_iter()
        .map(|transaction| begin(&context, transaction))
        .collect();
    Started::Pending(Box::pin(async move {
        let mut results = Vec::with_capacity(parts.len());
        for part in parts {
            results.push(finish(&context, part).await);
        }
        let response = if context.version >= BATCHES_FROM {
            message!(AddPartitionsToTxnResponse {
                results_by_transaction: results,
            })
        } else {
            let only = results.pop();
            message!(AddPartitionsToTxnResponse {
                results_by_topic_v3_and_below: only
                    .map(|result| result.topic_results)
                    .unwrap_or_default(),
            })
        };
        context.answer(&response)
    }))
}

fn transactions(
    context: &Context,
    asked: AddPartitionsToTxnRequest,
) -> Vec<AddPartitionsToTxnTransaction> {
    if context.version >= BATCHES_FROM {
        return asked.transactions;
    }
    vec![message!(AddPartitionsToTxnTransaction {
        transactional_id: asked.v3_and_below_transactional_id,
        producer_id: asked.v3_and_below_producer_id,
        producer_epoch: asked.v3_and_below_producer_epoch,
        topics: asked.v3_and_below_topics,
    })]
}

fn begin(context: &Context, asked: AddPartitionsToTxnTransaction) -> Part {
    let image = context.node.image();
    let errors: Vec<ErrorCode> = named(&asked.topics)
        .map(|(topic, partition)| check(context, &image, topic, partition))
        .collect();
    let answer = if errors.iter().all(|&error| error == ErrorCode::None) {
        let producer = Producer {
            id: ProducerId::new(asked.producer_id),
            epoch: ProducerEpoch::new(asked.producer_epoch),
        };
        let transactional_id = asked.transactional_id.clone();
        let partitions: Partitions = named(&asked.topics).collect();
        let request = if asked.verify_only {
            TransactionRequest::Verify {
                transactional_id,
                producer,
                partitions,
            }
        } else {
            TransactionRequest::Add {
                transactional_id,
                producer,
                partitions,
            }
        };
        let node = &context.node;
        Answer::Begun(node.transactions.begin(node, request, None))
    } else {
        // All are added or none.
        let not_attempted = |error| match error {
            ErrorCode::None => ErrorCode::OperationNotAttempted,
            error => error,
        };
        Answer::Refused(errors.into_iter().map(not_attempted).collect())
    };
    Part {
        transactional_id: asked.transactional_id,
        topics: asked.topics,
        answer,
    }
}

fn named(topics: &[AddPartitionsToTxnTopic]) -> impl Iterator<Item = (&StrBytes, i32)> {
    topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(|&part| (&topic.name, part)))
}

fn check(context: &Context, image: &ClusterImage, topic: &str, partition: i32) -> ErrorCode {
    if context.version < BATCHES_FROM && internal_topics::is_internal(topic) {
        // A client's offsets are added by AddOffsetsToTxn.
        ErrorCode::TopicAuthorizationFailed
    } else if image
        .partition(topic, PartitionId::new(partition))
        .is_none()
    {
        ErrorCode::UnknownTopicOrPartition
    } else {
        ErrorCode::None
    }
}

async fn finish(context: &Context, part: Part) -> AddPartitionsToTxnResult {
    let count = named(&part.topics).count();
    let errors = match part.answer {
        Answer::Refused(errors) => errors,
        Answer::Begun(begun) => match begun.answer().await {
            Ok(TransactionResponse::Add(answer)) => {
                let error = answer.err().unwrap_or(ErrorCode::None);
                vec![super::fenced_as_known(error, context.version >= FENCED_FROM); count]
            }
            Ok(TransactionResponse::Verify(Ok(missing))) => named(&part.topics)
                .map(|(topic, partition)| {
                    if missing.contains(topic, partition) {
                        ErrorCode::TransactionAbortable
                    } else {
                        ErrorCode::None
                    }
                })
                .collect(),
            Ok(TransactionResponse::Verify(Err(error))) => vec![error; count],
            other => unreachable!("the coordinator answered with {other:?}"),
        },
    };
    let mut errors = errors.into_iter();
    let topic_results = part
        .topics
        .into_iter()
        .map(|topic| {
            message!(AddPartitionsToTxnTopicResult {
                name: topic.name,
                results_by_partition: topic
                    .partitions
                    .into_iter()
                    .zip(&mut errors)
                    .map(
                        |(partition_index, error)| message!(AddPartitionsToTxnPartitionResult {
                            partition_index,
                            partition_error_code: error.code(),
                        })
                    )
                    .collect(),
            })
        })
        .collect();
    message!(AddPartitionsToTxnResult {
        transactional_id: part.transactional_id,
        topic_results,
    })
}
