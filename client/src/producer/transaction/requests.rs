//! The requests of a transaction: each one call, its answer's codes made errors.
//!
//! Owned by the sender task, which lends it to the one request that is on its way.

use std::collections::HashMap;
use std::sync::Arc;

use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::TopicPartition;
use yuxi_protocol::message;
use yuxi_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use yuxi_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use yuxi_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest,
    TxnOffsetCommitRequest,
};

use super::super::batch::Identity;
use super::machine::{Answer, Offsets, Protocol, Request};
use crate::cluster::{Cluster, Coordinator, wire_ms};
use crate::connection::Connection;
use crate::consumer::GroupMetadata;
use crate::error::{Result, check};
use crate::metadata::{by_topic, indexes_by_topic};

/// Newer versions are for transactions that outlive their producer (KIP-939).
const NEWEST_INIT_PRODUCER_ID: i16 = 5;
/// The oldest version by which a producer can go on under the next epoch (KIP-360).
const RESUMING_INIT_PRODUCER_ID: i16 = 3;
/// Newer versions are for brokers among themselves.
const NEWEST_ADD_PARTITIONS: i16 = 3;
/// From here on, EndTxn answers the next epoch (KIP-890).
const END_WITH_EPOCH: i16 = 5;
/// From here on, the group's coordinator adds the group to the transaction (KIP-890).
const COMMIT_OFFSETS_IMPLIED: i16 = 5;
/// The oldest version that says who of the group commits (KIP-447).
const COMMIT_OFFSETS_BY_MEMBER: i16 = 3;

/// To fall back to an older version would be to speak the other protocol.
const SINCE_VERSION_2: &str = "since transaction.version is 2";

/// The ways to the coordinators of one transactional producer.
#[derive(Debug)]
pub(crate) struct Coordinators {
    cluster: Cluster,
    transactional_id: Arc<str>,
    own: Coordinator,
    groups: HashMap<String, Coordinator>,
    /// The finalised `transaction.version` of whoever answered last.
    pub(crate) transaction_version: Option<i16>,
}

impl Coordinators {
    pub(crate) fn new(cluster: Cluster, transactional_id: Arc<str>) -> Self {
        Self {
            own: Coordinator::of_transactions(&cluster, &transactional_id),
            cluster,
            transactional_id,
            groups: HashMap::new(),
            transaction_version: None,
        }
    }

    /// Makes one attempt.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Answer> {
        let id = self.transactional_id.clone();
        let (answer, transaction_version) = match request {
            Request::Initialize { resumed } => {
                let timeout = wire_ms(self.cluster.config().transaction_timeout);
                let call = |to| initialize(to, id, timeout, *resumed);
                self.own.call(call).await?
            }
            Request::AddPartitions {
                identity,
                partitions,
            } => {
                let call = |to| add_partitions(to, id, *identity, partitions);
                self.own.call(call).await?
            }
            Request::AddGroup { identity, group } => {
                let call = |to| add_group(to, id, *identity, group);
                self.own.call(call).await?
            }
            Request::End {
                identity,
                protocol,
                commit,
            } => {
                let call = |to| end(to, id, *identity, *protocol, *commit);
                self.own.call(call).await?
            }
            Request::CommitOffsets {
                identity,
                protocol,
                group,
                offsets,
            } => {
                let coordinator = self.groups.entry(group.group.clone()).or_insert_with(|| {
                    Coordinator::of_transactional_group(&self.cluster, &group.group)
                });
                let call = |to| commit_offsets(to, id, *identity, *protocol, group, offsets);
                coordinator.call(call).await?
            }
        };
        self.transaction_version = transaction_version;
        Ok(answer)
    }
}

/// An answer, and the `transaction.version` of whoever gave it.
type Answered = Result<(Answer, Option<i16>)>;

fn answered(by: &Connection, answer: Answer) -> (Answer, Option<i16>) {
    (answer, by.feature("transaction.version"))
}

async fn initialize(
    coordinator: Connection,
    id: Arc<str>,
    timeout_ms: i32,
    resumed: Option<Identity>,
) -> Answered {
    let answer = coordinator
        .call_up_to(NEWEST_INIT_PRODUCER_ID, |version| {
            let mut request = InitProducerIdRequest::default();
            request.transactional_id = Some((&*id).into());
            request.transaction_timeout_ms = timeout_ms;
            if let Some(identity) = resumed
                && version.value() >= RESUMING_INIT_PRODUCER_ID
            {
                request.producer_id = identity.producer_id;
                request.producer_epoch = identity.epoch;
            }
            request
        })
        .await?;
    check(answer.error_code, None, || {
        format!("initialising transactional.id {id} with transaction.timeout.ms={timeout_ms}")
    })?;
    let identity = Identity {
        producer_id: answer.producer_id,
        epoch: answer.producer_epoch,
    };
    Ok(answered(&coordinator, Answer::Identity(identity)))
}

async fn add_partitions(
    coordinator: Connection,
    id: Arc<str>,
    identity: Identity,
    partitions: &[TopicPartition],
) -> Answered {
    let answer = coordinator
        .call_up_to(NEWEST_ADD_PARTITIONS, |_| {
            let mut request = AddPartitionsToTxnRequest::default();
            request.v3_and_below_transactional_id = (&*id).into();
            request.v3_and_below_producer_id = identity.producer_id;
            request.v3_and_below_producer_epoch = identity.epoch;
            request.v3_and_below_topics = indexes_by_topic(partitions)
                .into_iter()
                .map(|(name, partitions)| {
                    message!(AddPartitionsToTxnTopic {
                        name: name.into(),
                        partitions
                    })
                })
                .collect();
            request
        })
        .await?;
    // All of them are added or none; what was not attempted is not the reason.
    let mut refusals = Vec::new();
    for topic in &answer.results_by_topic_v3_and_below {
        for part in &topic.results_by_partition {
            let added = check(part.partition_error_code, None, || {
                format!(
                    "adding {}-{} to the transaction of {id}",
                    topic.name, part.partition_index
                )
            });
            refusals.extend(added.err());
        }
    }
    refusals.sort_by_key(|error| {
        let not_attempted = error.code() == Some(ErrorCode::OperationNotAttempted);
        (not_attempted, error.is_retriable())
    });
    match refusals.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(answered(&coordinator, Answer::Done)),
    }
}

async fn add_group(
    coordinator: Connection,
    id: Arc<str>,
    identity: Identity,
    group: &str,
) -> Answered {
    let answer = coordinator
        .call(|_| {
            message!(AddOffsetsToTxnRequest {
                transactional_id: (&*id).into(),
                producer_id: identity.producer_id,
                producer_epoch: identity.epoch,
                group_id: group.into()
            })
        })
        .await?;
    check(answer.error_code, None, || {
        format!("adding group {group} to the transaction of {id}")
    })?;
    Ok(answered(&coordinator, Answer::Done))
}

async fn commit_offsets(
    coordinator: Connection,
    id: Arc<str>,
    identity: Identity,
    protocol: Protocol,
    group: &GroupMetadata,
    offsets: &Offsets,
) -> Answered {
    let newest = match protocol {
        Protocol::Announced => COMMIT_OFFSETS_IMPLIED - 1,
        Protocol::Implied => {
            coordinator.needs::<TxnOffsetCommitRequest>(COMMIT_OFFSETS_IMPLIED, SINCE_VERSION_2)?
        }
    };
    let answer = coordinator
        .call_up_to(newest, |version| {
            let mut request = TxnOffsetCommitRequest::default();
            request.transactional_id = (&*id).into();
            request.group_id = group.group.as_str().into();
            request.producer_id = identity.producer_id;
            request.producer_epoch = identity.epoch;
            if version.value() >= COMMIT_OFFSETS_BY_MEMBER {
                request.generation_id_or_member_epoch = group.generation;
                request.member_id = group.member.as_str().into();
                request.group_instance_id = group.instance.as_deref().map(Into::into);
            }
            let parts = offsets.iter().map(|(partition, committed)| {
                let mut part = TxnOffsetCommitRequestPartition::default();
                part.partition_index = partition.partition.value();
                part.committed_offset = committed.offset;
                if version.value() >= 2 {
                    part.committed_leader_epoch = committed.leader_epoch.unwrap_or(-1);
                }
                part.committed_metadata = Some(committed.metadata.as_str().into());
                (&*partition.topic, part)
            });
            request.topics = by_topic(parts)
                .map(|(name, partitions)| {
                    message!(TxnOffsetCommitRequestTopic {
                        name: name.into(),
                        partitions
                    })
                })
                .collect();
            request
        })
        .await?;
    for topic in &answer.topics {
        for part in &topic.partitions {
            check(part.error_code, None, || {
                format!(
                    "committing the offset of {}-{} for group {} in the transaction of {id}",
                    topic.name, part.partition_index, group.group
                )
            })?;
        }
    }
    Ok(answered(&coordinator, Answer::Done))
}

async fn end(
    coordinator: Connection,
    id: Arc<str>,
    identity: Identity,
    protocol: Protocol,
    commit: bool,
) -> Answered {
    let newest = match protocol {
        Protocol::Announced => END_WITH_EPOCH - 1,
        Protocol::Implied => coordinator.needs::<EndTxnRequest>(END_WITH_EPOCH, SINCE_VERSION_2)?,
    };
    let answer = coordinator
        .call_up_to(newest, |_| {
            message!(EndTxnRequest {
                transactional_id: (&*id).into(),
                producer_id: identity.producer_id,
                producer_epoch: identity.epoch,
                committed: commit
            })
        })
        .await?;
    check(answer.error_code, None, || {
        let what = if commit { "committing" } else { "aborting" };
        format!("{what} the transaction of {id}")
    })?;
    let next = Identity {
        producer_id: answer.producer_id,
        epoch: answer.producer_epoch,
    };
    let answer = match protocol {
        Protocol::Implied => Answer::Identity(next),
        Protocol::Announced => Answer::Done,
    };
    Ok(answered(&coordinator, answer))
}
