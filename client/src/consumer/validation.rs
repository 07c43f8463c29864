//! Whether what was read is still in the log after a change of leader (KIP-320).
//!
//! An unclean election can leave a leader whose log parted from the one that was read.
//! So before anything is fetched under a new leader epoch, the new leader is asked where
//! the epoch of the last record read ends: if that is before the position, records that
//! were read are gone, and others may come in their place. That is reported, or
//! `auto.offset.reset` says to go on where the logs part.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use yuxi_protocol::ids::{BrokerId, TopicPartition};
use yuxi_protocol::message;
use yuxi_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use yuxi_protocol::messages::offset_for_leader_epoch_response::EpochEndOffset;
use yuxi_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use super::cursor::Position;
use super::fetch::Asked;
use super::{Consumer, Event};
use crate::cluster::Cluster;
use crate::config::OffsetReset;
use crate::error::{Error, Result, error_code};

/// Before this version the answer does not say whether the leader is the one asked for.
const OLDEST_FENCED: i16 = 2;

/// A question about epochs that has been answered, or has failed.
pub(super) struct Validated {
    broker: BrokerId,
    asked: Vec<Asked>,
    /// `None` if the broker cannot be asked.
    result: Result<Option<HashMap<TopicPartition, EpochEndOffset>>>,
}

impl Consumer {
    /// Asks the leaders about the positions in `asked`, one request a leader.
    pub(super) fn start_validations(&mut self, wanted: BTreeMap<BrokerId, Vec<Asked>>) {
        for (broker, asked) in wanted {
            for one in &asked {
                if let Some(cursor) = self.cursors.get_mut(&one.partition) {
                    cursor.asked = true;
                }
            }
            let cluster = self.cluster.clone();
            self.events.push(Box::pin(async move {
                let result = epoch_ends(&cluster, broker, &asked).await;
                Event::Validated(Validated {
                    broker,
                    asked,
                    result,
                })
            }));
        }
    }

    pub(super) fn validated(&mut self, validated: Validated) -> Result<()> {
        let mut ends = match validated.result {
            Ok(Some(ends)) => ends,
            Ok(None) => {
                for asked in &validated.asked {
                    if let Some(cursor) = self.cursor_asked(asked) {
                        cursor.asked = false;
                        cursor.valid_under = asked.leader_epoch;
                    }
                }
                return Ok(());
            }
            Err(error) => return self.not_answered(validated.broker, &validated.asked, error),
        };
        let mut outcome = Ok(());
        for asked in validated.asked {
            let end = ends.remove(&asked.partition);
            let Some(cursor) = self.cursor_asked(&asked) else {
                continue;
            };
            cursor.asked = false;
            let taken = match end {
                Some(end) => self.take_end(&asked, &end),
                None => Ok(()),
            };
            outcome = outcome.and(taken);
        }
        outcome
    }

    fn take_end(&mut self, asked: &Asked, end: &EpochEndOffset) -> Result<()> {
        if let Some(code) = error_code(end.error_code) {
            let context = format!("checking the position in {}", asked.partition);
            let error = Error::broker(context, code, None);
            if !error.is_retriable() {
                return Err(error);
            }
            self.put_off(asked);
            return Ok(());
        }
        let Some(cursor) = self.cursor_asked(asked) else {
            return Ok(());
        };
        let Position::At(position) = cursor.position else {
            return Ok(());
        };
        // The leader has nothing as old as the epoch: no common record is known.
        let common = (end.end_offset >= 0 && end.leader_epoch >= 0).then_some(end.end_offset);
        if common.is_some_and(|end| asked.offset <= end) {
            cursor.valid_under = asked.leader_epoch;
            return Ok(());
        }
        if common.is_some_and(|end| position <= end) {
            // Only what was fetched ahead is gone, and nobody has seen it.
            cursor.drop_ahead(asked.leader_epoch);
            return Ok(());
        }
        let error = Error::LogTruncated {
            partition: asked.partition.to_string(),
            position,
            common,
        };
        match (self.config.offset_reset, common) {
            (OffsetReset::Error, _) => Err(error),
            (OffsetReset::Earliest | OffsetReset::Latest, None) => {
                tracing::warn!(%error, "reading goes on where auto.offset.reset says");
                self.reset(&asked.partition, error)
            }
            (OffsetReset::Earliest | OffsetReset::Latest, Some(end)) => {
                tracing::warn!(%error, "reading goes on where the logs part");
                self.seek(&asked.partition, super::Start::Offset(end))
            }
        }
    }
}

async fn epoch_ends(
    cluster: &Cluster,
    broker: BrokerId,
    asked: &[Asked],
) -> Result<Option<HashMap<TopicPartition, EpochEndOffset>>> {
    let connection = cluster.broker(broker).await?;
    let Ok(version) = connection.version::<OffsetForLeaderEpochRequest>(i16::MAX) else {
        return Ok(None);
    };
    if version.value() < OLDEST_FENCED {
        return Ok(None);
    }
    let call = connection.call(|version| {
        let mut request = OffsetForLeaderEpochRequest::default();
        if version.value() >= 3 {
            request.replica_id = -1;
        }
        let parts = asked.iter().map(|one| {
            let mut part = OffsetForLeaderPartition::default();
            part.partition = one.partition.partition.value();
            part.current_leader_epoch = one.leader_epoch;
            part.leader_epoch = one.read_epoch;
            (&*one.partition.topic, part)
        });
        request.topics = crate::metadata::by_topic(parts)
            .map(|(name, partitions)| {
                message!(OffsetForLeaderTopic {
                    topic: name.into(),
                    partitions
                })
            })
            .collect();
        request
    });
    let answer: OffsetForLeaderEpochResponse =
        cluster.attend(&connection, Duration::ZERO, call).await?;
    let mut ends = HashMap::new();
    for topic in answer.topics {
        for part in topic.partitions {
            let partition = TopicPartition::new(topic.topic.as_str(), part.partition);
            ends.insert(partition, part);
        }
    }
    Ok(Some(ends))
}
