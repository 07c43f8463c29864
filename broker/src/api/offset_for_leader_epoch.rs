//! OffsetForLeaderEpoch (key 23): where a leader epoch ends, so that a consumer notices
//! that the log it read was truncated (KIP-320).

use super::Context;
use crate::node::Lookup;
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{LeaderEpoch, Offset},
    message,
    messages::{
        OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
        offset_for_leader_epoch_request::OffsetForLeaderPartition,
        offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
    },
};

pub(super) fn handle(
    context: &Context,
    request: &OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topics = request
        .topics
        .iter()
        .map(|topic| {
            message!(OffsetForLeaderTopicResult {
                partitions: topic
                    .partitions
                    .iter()
                    .map(|asked| answer(asked, look_up(context, &topic.topic, asked)))
                    .collect(),
                topic: topic.topic.clone(),
            })
        })
        .collect();
    message!(OffsetForLeaderEpochResponse { topics })
}

fn answer(
    asked: &OffsetForLeaderPartition,
    found: Result<Option<(LeaderEpoch, Offset)>, ErrorCode>,
) -> EpochEndOffset {
    let (code, found) = match found {
        Ok(found) => (ErrorCode::None, found),
        Err(code) => (code, None),
    };
    let (epoch, end) = found.unwrap_or((LeaderEpoch::NONE, Offset::new(-1)));
    message!(EpochEndOffset {
        error_code: code.code(),
        partition: asked.partition,
        leader_epoch: epoch.value(),
        end_offset: end.value(),
    })
}

fn look_up(
    context: &Context,
    topic: &str,
    asked: &OffsetForLeaderPartition,
) -> Result<Option<(LeaderEpoch, Offset)>, ErrorCode> {
    let partition = match context.node.replicas.find(topic, asked.partition) {
        Lookup::Here(partition) => partition,
        Lookup::Elsewhere => return Err(ErrorCode::NotLeaderOrFollower),
        Lookup::Unknown => return Err(ErrorCode::UnknownTopicOrPartition),
    };
    partition
        .with_led_log(LeaderEpoch::new(asked.current_leader_epoch), |log, _| {
            log.end_offset_for_epoch(LeaderEpoch::new(asked.leader_epoch))
        })
        .map_err(|error| error.code())
}
