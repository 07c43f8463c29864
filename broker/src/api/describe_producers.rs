//! DescribeProducers (key 61): who writes to partitions, and who is in the middle of a
//! transaction there (KIP-664).

use super::Context;
use crate::{node::Lookup, partition::ActiveProducer};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::Offset,
    message,
    messages::{
        DescribeProducersRequest, DescribeProducersResponse,
        describe_producers_response::{PartitionResponse, ProducerState, TopicResponse},
    },
};

pub(super) fn handle(
    context: &Context,
    request: &DescribeProducersRequest,
) -> DescribeProducersResponse {
    let topics = request
        .topics
        .iter()
        .map(|topic| {
            let describe = |&partition: &i32| {
                let described = active_producers(context, &topic.name, partition);
                respond(partition, described)
            };
            message!(TopicResponse {
                name: topic.name.clone(),
                partitions: topic.partition_indexes.iter().map(describe).collect(),
            })
        })
        .collect();
    message!(DescribeProducersResponse { topics })
}

/// Any replica may be asked.
fn active_producers(
    context: &Context,
    topic: &str,
    partition: i32,
) -> Result<Vec<ActiveProducer>, ErrorCode> {
    match context.node.replicas.find(topic, partition) {
        Lookup::Here(partition) => partition.active_producers().map_err(|error| error.code()),
        Lookup::Elsewhere => Err(ErrorCode::NotLeaderOrFollower),
        Lookup::Unknown => Err(ErrorCode::UnknownTopicOrPartition),
    }
}

fn respond(
    partition_index: i32,
    described: Result<Vec<ActiveProducer>, ErrorCode>,
) -> PartitionResponse {
    let (error, producers) = match described {
        Ok(producers) => (ErrorCode::None, producers),
        Err(error) => (error, Vec::new()),
    };
    message!(PartitionResponse {
        partition_index,
        error_code: error.code(),
        active_producers: producers.into_iter().map(state).collect(),
    })
}

fn state(producer: ActiveProducer) -> ProducerState {
    message!(ProducerState {
        producer_id: producer.id.value(),
        producer_epoch: i32::from(producer.epoch.value()),
        last_sequence: producer.last_sequence,
        last_timestamp: producer.last_timestamp,
        coordinator_epoch: producer.coordinator_epoch,
        current_txn_start_offset: producer.transaction_first_offset.map_or(-1, Offset::value),
    })
}
