//! DeleteRecords (key 21): moves the start of partitions' logs.

use super::Context;
use crate::{
    node::Lookup,
    partition::{AckReceiver, Partition},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::Offset,
    message,
    messages::{
        DeleteRecordsRequest, DeleteRecordsResponse,
        delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult},
    },
};

/// Stands for the high watermark.
const TO_HIGH_WATERMARK: i64 = -1;

/// A partition that has yet to hear from every live replica that it has deleted as much.
type Waiting = Option<(Arc<Partition>, AckReceiver)>;

/// A partition's new start, and what it waits for; or why it was refused.
type Begun = Result<(Offset, Waiting), ErrorCode>;

pub(super) async fn handle(
    context: Context,
    request: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let time = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let deadline = Instant::now() + time;
    // All are begun before one is waited for.
    let begun: Vec<_> = request
        .topics
        .iter()
        .map(|topic| {
            topic
                .partitions
                .iter()
                .map(|asked| begin(&context, &topic.name, asked.partition_index, asked.offset))
                .collect::<Vec<_>>()
        })
        .collect();
    let mut topics = Vec::with_capacity(begun.len());
    for (topic, begun) in request.topics.into_iter().zip(begun) {
        let mut partitions = Vec::with_capacity(begun.len());
        for (asked, begun) in topic.partitions.iter().zip(begun) {
            let low_watermark = everywhere(begun, deadline).await;
            partitions.push(message!(DeleteRecordsPartitionResult {
                partition_index: asked.partition_index,
                low_watermark: low_watermark.map_or(-1, Offset::value),
                error_code: low_watermark.err().unwrap_or(ErrorCode::None).code(),
            }));
        }
        topics.push(message!(DeleteRecordsTopicResult {
            partitions,
            name: topic.name,
        }));
    }
    message!(DeleteRecordsResponse { topics })
}

async fn everywhere(begun: Begun, deadline: Instant) -> Result<Offset, ErrorCode> {
    let (start, waiting) = begun?;
    let Some((partition, waiting)) = waiting else {
        return Ok(start);
    };
    match tokio::time::timeout_at(deadline, waiting).await {
        Ok(Ok(Ok(()))) => Ok(partition.low_watermark()),
        Ok(Ok(Err(error))) => Err(error),
        Ok(Err(_)) => Err(ErrorCode::NotLeaderOrFollower),
        Err(_) => Err(ErrorCode::RequestTimedOut),
    }
}

/// Moves the log's start here.
fn begin(context: &Context, topic: &str, partition: i32, offset: i64) -> Begun {
    if crate::internal_topics::is_internal(topic) {
        return Err(ErrorCode::InvalidTopic);
    }
    let partition = match context.node.replicas.find(topic, partition) {
        Lookup::Here(partition) => partition,
        Lookup::Elsewhere => return Err(ErrorCode::NotLeaderOrFollower),
        Lookup::Unknown => return Err(ErrorCode::UnknownTopicOrPartition),
    };
    if partition.settings().cleanup_policy == yuxi_controller::settings::CleanupPolicy::Compact {
        return Err(ErrorCode::PolicyViolation);
    }
    let to = (offset != TO_HIGH_WATERMARK).then(|| Offset::new(offset));
    match partition.delete_records(to, crate::time::wall_ms()) {
        Ok((start, waiting)) => Ok((start, waiting.map(|waiting| (partition, waiting)))),
        Err(error) => {
            tracing::info!(partition = %partition.id(), %error, "records were not deleted");
            Err(error.code())
        }
    }
}
