//! WriteTxnMarkers (key 27): a transaction coordinator ends a transaction in the partitions
//! that this broker leads.
//!
//! All markers are appended when `start` returns, as with Produce; only the acknowledgement,
//! which waits for the in-sync replicas, comes later. Nothing in a request shows that it is
//! a coordinator's; the epochs of coordinator and producer fence what is too old.

use super::{Request, Started};
use crate::{
    internal_topics::CONSUMER_OFFSETS,
    node::{Lookup, Node},
    partition::{Ack, AckReceiver, TxnMarker},
    time,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{ProducerEpoch, ProducerId},
    message,
    messages::{
        WriteTxnMarkersRequest, WriteTxnMarkersResponse,
        write_txn_markers_request::WritableTxnMarker,
        write_txn_markers_response::{
            WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
        },
    },
};

/// How long the in-sync replicas have (Kafka's `request.timeout.ms`); a coordinator that
/// hears nothing asks again.
const ACK_TIME: Duration = Duration::from_secs(30);

/// A marker that is not acknowledged yet: where its result stands in the answer.
struct Unacknowledged {
    marker: usize,
    topic: usize,
    partition: usize,
    ack: AckReceiver,
}

pub(super) fn start(mut request: Request) -> Started {
    let request_body: WriteTxnMarkersRequest = match request.decode() {
        Ok(decoded) => decoded,
        Err(error) => return Started::Ready(Err(error)),
    };
    let context = request.into_context();
    let now_ms = time::wall_ms();
    let mut unacknowledged = Vec::new();
    let mut markers = Vec::with_capacity(request_body.markers.len());
    for (marker_at, asked) in request_body.markers.iter().enumerate() {
        let marker = marker(asked);
        let mut topics = Vec::with_capacity(asked.topics.len());
        for (topic_at, topic) in asked.topics.iter().enumerate() {
            let mut partitions = Vec::with_capacity(topic.partition_indexes.len());
            for (partition_at, &index) in topic.partition_indexes.iter().enumerate() {
                let appended = append(&context.node, &topic.name, index, &marker, now_ms);
                let error = match appended {
                    Ok(Ack::Now) => ErrorCode::None,
                    Ok(Ack::Later(ack)) => {
                        unacknowledged.push(Unacknowledged {
                            marker: marker_at,
                            topic: topic_at,
                            partition: partition_at,
                            ack,
                        });
                        ErrorCode::None
                    }
                    Err(error) => error,
                };
                partitions.push(message!(WritableTxnMarkerPartitionResult {
                    partition_index: index,
                    error_code: error.code(),
                }));
            }
            topics.push(message!(WritableTxnMarkerTopicResult {
                name: topic.name.clone(),
                partitions,
            }));
        }
        markers.push(message!(WritableTxnMarkerResult {
            producer_id: asked.producer_id,
            topics,
        }));
    }
    let mut response = message!(WriteTxnMarkersResponse { markers });
    if unacknowledged.is_empty() {
        return Started::Ready(context.answer(&response));
    }
    let deadline = Instant::now() + ACK_TIME;
    Started::Pending(Box::pin(async move {
        for waiting in unacknowledged {
            let error = match tokio::time::timeout_at(deadline, waiting.ack).await {
                Ok(Ok(Ok(()))) => continue,
                Ok(Ok(Err(error))) => error,
                // The partition is gone from this broker.
                Ok(Err(_)) => ErrorCode::NotLeaderOrFollower,
                Err(_) => ErrorCode::RequestTimedOut,
            };
            let topic = &mut response.markers[waiting.marker].topics[waiting.topic];
            topic.partitions[waiting.partition].error_code = error.code();
        }
        context.answer(&response)
    }))
}

fn marker(asked: &WritableTxnMarker) -> TxnMarker {
    TxnMarker {
        producer_id: ProducerId::new(asked.producer_id),
        producer_epoch: ProducerEpoch::new(asked.producer_epoch),
        coordinator_epoch: asked.coordinator_epoch,
        commit: asked.transaction_result,
        transaction_version: asked.transaction_version,
    }
}

/// Appends one marker to a partition that this broker leads.
pub(crate) fn append(
    node: &Arc<Node>,
    topic: &str,
    index: i32,
    marker: &TxnMarker,
    now_ms: i64,
) -> Result<Ack, ErrorCode> {
    if marker.producer_id <= ProducerId::NONE || marker.producer_epoch <= ProducerEpoch::NONE {
        return Err(ErrorCode::InvalidRequest);
    }
    let partition = match node.replicas.find(topic, index) {
        Lookup::Here(partition) => partition,
        // Only a replica that does not lead is told so, as in Kafka.
        Lookup::Elsewhere | Lookup::Unknown => return Err(ErrorCode::UnknownTopicOrPartition),
    };
    let appended = if topic == CONSUMER_OFFSETS {
        node.groups.end_transaction(node, index, marker)
    } else {
        partition.append_marker(marker, now_ms)
    };
    match appended {
        Ok(appended) => {
            if appended.start_flush {
                node.start_flush(&partition);
            }
            Ok(appended.ack)
        }
        Err(error) => {
            tracing::info!(partition = %partition.id(), ?marker, %error, "a marker was refused");
            Err(error.code())
        }
    }
}
