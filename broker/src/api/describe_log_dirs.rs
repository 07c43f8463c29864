//! DescribeLogDirs (key 35): how much the partitions take on disk, and what room is left.

use super::Context;
use std::collections::{HashMap, HashSet};
use yuxi_protocol::{
    error_code::ErrorCode,
    message,
    messages::{
        DescribeLogDirsRequest, DescribeLogDirsResponse,
        describe_log_dirs_response::{
            DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
        },
    },
};

/// The space of the file system is told from this version on (KIP-827).
const SPACE_FROM: i16 = 4;

pub(super) fn handle(
    context: &Context,
    request: &DescribeLogDirsRequest,
) -> DescribeLogDirsResponse {
    let node = &context.node;
    // Null asks for all.
    let asked: Option<HashMap<&str, HashSet<i32>>> = request.topics.as_ref().map(|topics| {
        topics
            .iter()
            .map(|topic| {
                let partitions = topic.partitions.iter().copied().collect();
                (topic.topic.as_str(), partitions)
            })
            .collect()
    });
    let mut topics: Vec<DescribeLogDirsTopic> = Vec::new();
    for partition in node.replicas.all() {
        let id = partition.id();
        let wanted = asked.as_ref().is_none_or(|asked| {
            asked
                .get(&*id.topic)
                .is_some_and(|partitions| partitions.contains(&id.partition.value()))
        });
        let Some(size) = partition.with_log(|log, _| log.size_bytes()) else {
            continue;
        };
        if !wanted {
            continue;
        }
        let described = message!(DescribeLogDirsPartition {
            partition_index: id.partition.value(),
            partition_size: i64::try_from(size).unwrap_or(i64::MAX),
            offset_lag: 0,
            is_future_key: false,
        });
        match topics.last_mut() {
            Some(topic) if *topic.name == *id.topic => topic.partitions.push(described),
            _ => topics.push(message!(DescribeLogDirsTopic {
                name: (&*id.topic).into(),
                partitions: vec![described],
            })),
        }
    }
    let directory = node.replicas.directory();
    let (total, usable) = match rustix::fs::statvfs(directory) {
        Ok(space) if context.version >= SPACE_FROM => {
            let bytes = |blocks: u64| {
                i64::try_from(blocks.saturating_mul(space.f_frsize)).unwrap_or(i64::MAX)
            };
            (bytes(space.f_blocks), bytes(space.f_bavail))
        }
        _ => (-1, -1),
    };
    message!(DescribeLogDirsResponse {
        results: vec![message!(DescribeLogDirsResult {
            error_code: if node.is_storage_failed() {
                ErrorCode::KafkaStorageError.code()
            } else {
                ErrorCode::None.code()
            },
            log_dir: directory.display().to_string().into(),
            topics,
            total_bytes: total,
            usable_bytes: usable,
        })],
    })
}
