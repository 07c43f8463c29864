//! Which shard answers for which group, and requests that concern several shards.
//!
//! Pure helpers for the runtime: split a request by partition of `__consumer_offsets`,
//! let each shard answer its part, merge the answers.

use std::collections::BTreeMap;

use yuxi_protocol::{
    codec::StrBytes,
    message,
    messages::{
        ConsumerGroupDescribeRequest, DeleteGroupsRequest, DescribeGroupsRequest,
        OffsetFetchRequest,
    },
};

use super::api::{GroupRequest, GroupResponse};

/// The partition of `__consumer_offsets` that holds `group_id`, of `partitions` (at
/// least 1): Java's `String.hashCode` made non-negative, modulo the count, as every
/// Kafka broker computes it.
pub fn partition_for(group_id: &str, partitions: i32) -> i32 {
    let hash = group_id.encode_utf16().fold(0_i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    hash.checked_abs().unwrap_or(0) % partitions.max(1)
}

impl GroupRequest {
    /// Splits the request into one part for each partition of `__consumer_offsets`
    /// that it concerns. There is always at least one part, and a request about one
    /// group is its own only part.
    pub fn split(self, partitions: i32) -> Vec<(i32, Self)> {
        match self {
            Self::Join(ref request) => alone(partition_for(&request.group_id, partitions), self),
            Self::Sync(ref request) => alone(partition_for(&request.group_id, partitions), self),
            Self::Heartbeat(ref request) => {
                alone(partition_for(&request.group_id, partitions), self)
            }
            Self::Leave(ref request) => alone(partition_for(&request.group_id, partitions), self),
            Self::OffsetCommit(ref request) => {
                alone(partition_for(&request.group_id, partitions), self)
            }
            Self::TxnOffsetCommit(ref request) => {
                alone(partition_for(&request.group_id, partitions), self)
            }
            Self::OffsetDelete(ref request) => {
                alone(partition_for(&request.group_id, partitions), self)
            }
            Self::OffsetFetch(ref request) if request.groups.is_empty() => {
                alone(partition_for(&request.group_id, partitions), self)
            }
            Self::OffsetFetch(request) => by_partition(
                request.groups,
                partitions,
                |group| &group.group_id,
                |groups| {
                    Self::OffsetFetch(message!(OffsetFetchRequest {
                        groups,
                        require_stable: request.require_stable
                    }))
                },
            ),
            Self::DescribeGroups(request) => by_partition(
                request.groups,
                partitions,
                |group| group,
                |groups| {
                    Self::DescribeGroups(message!(DescribeGroupsRequest {
                        groups,
                        include_authorized_operations: request.include_authorized_operations
                    }))
                },
            ),
            Self::ConsumerHeartbeat(ref request) => {
                alone(partition_for(&request.group_id, partitions), self)
            }
            Self::ConsumerDescribe(request) => by_partition(
                request.group_ids,
                partitions,
                |group| group,
                |group_ids| {
                    Self::ConsumerDescribe(message!(ConsumerGroupDescribeRequest {
                        group_ids,
                        include_authorized_operations: request.include_authorized_operations
                    }))
                },
            ),
            Self::DeleteGroups(request) => by_partition(
                request.groups_names,
                partitions,
                |group| group,
                |groups_names| Self::DeleteGroups(message!(DeleteGroupsRequest { groups_names })),
            ),
            Self::ListGroups(request) => (0..partitions.max(1))
                .map(|partition| (partition, Self::ListGroups(request.clone())))
                .collect(),
        }
    }
}

impl GroupResponse {
    /// Adds another part's answer to this one. Parts of different kinds do not belong
    /// together; then this one stays as it is.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        match (&mut self, other) {
            (Self::OffsetFetch(all), Self::OffsetFetch(part)) => all.groups.extend(part.groups),
            (Self::DescribeGroups(all), Self::DescribeGroups(part)) => {
                all.groups.extend(part.groups);
            }
            (Self::ConsumerDescribe(all), Self::ConsumerDescribe(part)) => {
                all.groups.extend(part.groups);
            }
            (Self::DeleteGroups(all), Self::DeleteGroups(part)) => {
                all.results.extend(part.results);
            }
            (Self::ListGroups(all), Self::ListGroups(part)) => {
                if all.error_code == 0 {
                    all.error_code = part.error_code;
                }
                all.groups.extend(part.groups);
            }
            (one, other) => {
                debug_assert!(false, "{one:?} and {other:?} are not parts of one answer");
            }
        }
        self
    }
}

fn alone(partition: i32, request: GroupRequest) -> Vec<(i32, GroupRequest)> {
    vec![(partition, request)]
}

fn by_partition<T>(
    items: Vec<T>,
    partitions: i32,
    group_id: impl Fn(&T) -> &StrBytes,
    request: impl Fn(Vec<T>) -> GroupRequest,
) -> Vec<(i32, GroupRequest)> {
    let mut parts: BTreeMap<i32, Vec<T>> = BTreeMap::new();
    for item in items {
        parts
            .entry(partition_for(group_id(&item), partitions))
            .or_default()
            .push(item);
    }
    if parts.is_empty() {
        parts.insert(0, Vec::new());
    }
    parts
        .into_iter()
        .map(|(partition, items)| (partition, request(items)))
        .collect()
}
