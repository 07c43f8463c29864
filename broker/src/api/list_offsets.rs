//! ListOffsets (key 2): offsets by timestamp and at the ends of partitions.

use super::Context;
use crate::{
    node::Lookup,
    partition::{Isolation, Partition, PartitionError},
};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::{LeaderEpoch, Offset},
    message,
    messages::{
        ListOffsetsRequest, ListOffsetsResponse,
        list_offsets_request::ListOffsetsPartition,
        list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
    },
};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
/// The first offset that is on local disk: without tiering, the log start (KIP-405).
const EARLIEST_LOCAL: i64 = -4;
/// The last offset that is in tiered storage: without tiering there is none (KIP-1005).
const LATEST_TIERED: i64 = -5;
/// Where uploads to tiered storage stand; answered as the one before.
const EARLIEST_PENDING_UPLOAD: i64 = -6;

/// Older clients know another error to retry on.
const OFFSET_NOT_AVAILABLE_FROM: i16 = 5;

const UNKNOWN: Offset = Offset::new(-1);

/// One partition's answer.
struct Found {
    timestamp: i64,
    offset: Offset,
    epoch: LeaderEpoch,
}

impl Found {
    const NOTHING: Self = Self {
        timestamp: -1,
        offset: UNKNOWN,
        epoch: LeaderEpoch::NONE,
    };
}

pub(super) async fn handle(context: Context, request: ListOffsetsRequest) -> ListOffsetsResponse {
    // Looking up a timestamp may read cold segments.
    let version = context.version;
    let handled = tokio::task::spawn_blocking(move || answer(&context, request)).await;
    handled.unwrap_or_else(|error| {
        tracing::error!(%error, version, "a ListOffsets lookup failed");
        ListOffsetsResponse::default()
    })
}

fn answer(context: &Context, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let isolation = if request.isolation_level == 1 {
        Isolation::Committed
    } else {
        Isolation::Uncommitted
    };
    let as_replica = request.replica_id >= 0;
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            message!(ListOffsetsTopicResponse {
                partitions: topic
                    .partitions
                    .iter()
                    .map(|asked| {
                        let found = if as_replica {
                            // As in Fetch: replica ids are for brokers.
                            Err(ErrorCode::ClusterAuthorizationFailed)
                        } else {
                            look_up(context, &topic.name, asked, isolation)
                        };
                        respond(asked.partition_index, context.version, found)
                    })
                    .collect(),
                name: topic.name,
            })
        })
        .collect();
    message!(ListOffsetsResponse { topics })
}

fn respond(
    partition_index: i32,
    version: i16,
    found: Result<Found, ErrorCode>,
) -> ListOffsetsPartitionResponse {
    let (code, found) = match found {
        Ok(found) => (ErrorCode::None, found),
        Err(code) => (code, Found::NOTHING),
    };
    message!(ListOffsetsPartitionResponse {
        partition_index,
        error_code: code.code(),
        timestamp: found.timestamp,
        offset: found.offset.value(),
        leader_epoch: if version >= 4 {
            found.epoch.value()
        } else {
            LeaderEpoch::NONE.value()
        },
    })
}

fn look_up(
    context: &Context,
    topic: &str,
    asked: &ListOffsetsPartition,
    isolation: Isolation,
) -> Result<Found, ErrorCode> {
    let partition = match context.node.replicas.find(topic, asked.partition_index) {
        Lookup::Here(partition) => partition,
        Lookup::Elsewhere => return Err(ErrorCode::NotLeaderOrFollower),
        Lookup::Unknown => return Err(ErrorCode::UnknownTopicOrPartition),
    };
    // A version that does not have a special timestamp takes it for an ordinary one, as
    // Kafka refuses it.
    let too_old = match asked.timestamp {
        MAX_TIMESTAMP => context.version < 7,
        EARLIEST_LOCAL => context.version < 8,
        LATEST_TIERED => context.version < 9,
        EARLIEST_PENDING_UPLOAD => context.version < 11,
        _ => false,
    };
    if too_old || asked.timestamp < EARLIEST_PENDING_UPLOAD {
        return Err(ErrorCode::UnsupportedVersion);
    }
    find(
        &partition,
        asked.timestamp,
        LeaderEpoch::new(asked.current_leader_epoch),
        isolation,
    )
    .map_err(|error| {
        let code = match error.code() {
            ErrorCode::OffsetNotAvailable if context.version < OFFSET_NOT_AVAILABLE_FROM => {
                ErrorCode::LeaderNotAvailable
            }
            code => code,
        };
        if code == ErrorCode::KafkaStorageError {
            tracing::error!(partition = %partition.id(), %error, "an offset lookup failed");
        }
        code
    })
}

fn find(
    partition: &Partition,
    timestamp: i64,
    believed: LeaderEpoch,
    isolation: Isolation,
) -> Result<Found, PartitionError> {
    partition.with_led_log(believed, |log, offsets| {
        // Before that, an earlier leader may have told of more (I4).
        let is_told = offsets.high_watermark >= offsets.epoch_start;
        let end = match isolation {
            Isolation::Uncommitted => offsets.high_watermark,
            Isolation::Committed => offsets.last_stable,
        };
        Ok(match timestamp {
            LATEST if !is_told => return Err(PartitionError::OffsetNotAvailable),
            LATEST => Found {
                timestamp: -1,
                offset: end,
                epoch: log.latest_epoch().unwrap_or(LeaderEpoch::NONE),
            },
            EARLIEST | EARLIEST_LOCAL => Found {
                timestamp: -1,
                offset: offsets.log_start,
                epoch: log.epoch_at(offsets.log_start).unwrap_or(LeaderEpoch::NONE),
            },
            LATEST_TIERED | EARLIEST_PENDING_UPLOAD => Found::NOTHING,
            timestamp => {
                let found = if timestamp == MAX_TIMESTAMP {
                    log.max_timestamp()?
                } else {
                    log.offset_for_timestamp(timestamp)?
                };
                if !is_told && found.is_some_and(|found| found.offset >= end) {
                    return Err(PartitionError::OffsetNotAvailable);
                }
                stored(found, end)
            }
        })
    })?
}

/// What was found in the log, if a consumer may see it.
fn stored(found: Option<yuxi_log::FoundTimestamp>, end: Offset) -> Found {
    match found {
        Some(found) if found.offset < end => Found {
            timestamp: found.timestamp,
            offset: found.offset,
            epoch: found.leader_epoch,
        },
        Some(_) | None => Found::NOTHING,
    }
}
