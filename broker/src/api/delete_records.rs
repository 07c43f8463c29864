//! DeleteRecords (key 21): moves the start of partitions' logs.

use super::Context;
use crate::node::Lookup;
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

pub(super) fn handle(context: &Context, request: &DeleteRecordsRequest) -> DeleteRecordsResponse {
    let topics = request
        .topics
        .iter()
        .map(|topic| {
            message!(DeleteRecordsTopicResult {
                partitions: topic
                    .partitions
                    .iter()
                    .map(|asked| {
                        let deleted =
                            delete(context, &topic.name, asked.partition_index, asked.offset);
                        message!(DeleteRecordsPartitionResult {
                            partition_index: asked.partition_index,
                            low_watermark: deleted.map_or(-1, Offset::value),
                            error_code: deleted.err().unwrap_or(ErrorCode::None).code(),
                        })
                    })
                    .collect(),
                name: topic.name.clone(),
            })
        })
        .collect();
    message!(DeleteRecordsResponse { topics })
}

/// The log's new start.
fn delete(
    context: &Context,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<Offset, ErrorCode> {
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
    partition
        .delete_records(to, crate::time::now_ms())
        .map_err(|error| {
            tracing::info!(partition = %partition.id(), %error, "records were not deleted");
            error.code()
        })
}
