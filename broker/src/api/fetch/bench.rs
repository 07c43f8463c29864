//! What a bench needs to build Fetch answers: partitions that have been read, and one
//! call that encodes their answer. `broker/benches/fetch_response.rs` uses it through
//! the feature `bench`; nothing else does.

use super::{
    Isolation,
    response::{FetchedPartition, Response},
    session::Wanted,
};
use crate::partition::ReadAnswer;
use std::sync::Arc;
use yuxi_log::FileSlice;
use yuxi_protocol::ids::{LeaderEpoch, Offset, TopicId};

/// A fetch of the partitions of one topic, each answered with the same records.
pub struct FetchAnswer {
    wanted: Vec<Wanted>,
    records: FileSlice,
}

impl FetchAnswer {
    /// Of the partitions 0 to `partitions`.
    pub fn new(partitions: i32, records: FileSlice) -> Self {
        let topic: Arc<str> = "bench".into();
        let wanted = (0..partitions).map(|partition| Wanted {
            topic: topic.clone(),
            topic_id: TopicId::from_bytes([1; 16]),
            partition,
            fetch_offset: Offset::ZERO,
            log_start_offset: Offset::new(-1),
            max_bytes: records.len(),
            current_leader_epoch: LeaderEpoch::NONE,
            last_fetched_epoch: LeaderEpoch::NONE,
        });
        Self {
            wanted: wanted.collect(),
            records,
        }
    }

    /// Encodes the answer in one version; how many bytes it would send.
    pub fn encode(&self, version: i16) -> Option<usize> {
        let read = |wanted: &Wanted| {
            let answer = ReadAnswer {
                high_watermark: Offset::new(100),
                last_stable_offset: Offset::new(100),
                log_start_offset: Offset::ZERO,
                records: Some(self.records.clone()),
                aborted: Vec::new(),
                divergence: None,
                cannot_grow: false,
                must_tell_log_start: false,
                isr_change_due: false,
                is_settled: false,
            };
            FetchedPartition::read(wanted.partition, answer, Isolation::Uncommitted)
        };
        let response = Response {
            session_id: 0,
            endpoints: Vec::new(),
            parts: self
                .wanted
                .iter()
                .map(|wanted| (wanted, read(wanted)))
                .collect(),
        };
        response.encode(version, 1).ok().map(|answer| answer.len())
    }
}
