//! The three requests by which the processes of a cluster reach its controller, from
//! bytes to command to answer and back: AlterPartition and AllocateProducerIds as Kafka
//! has them, everything else as JSON in an Envelope.
//!
//! They are answered by every process that can hold the seal and offered to no
//! client. Two tagged fields of ours ride on Kafka's forms: the sender's incarnation,
//! which proves that it can read the metadata store, and the revision from which an
//! answer is visible there.

use bytes::Bytes;
use tokio::sync::oneshot;
use yuxi_protocol::{
    codec::TaggedFields,
    error_code::ErrorCode,
    ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionId, ProducerId, TopicId},
    message,
    messages::{
        AllocateProducerIdsRequest, AllocateProducerIdsResponse, AlterPartitionRequest,
        AlterPartitionResponse, EnvelopeRequest, EnvelopeResponse, alter_partition_request,
        alter_partition_response,
    },
    tags,
};

use crate::{
    Controller, ControllerError,
    command::{Asked, Call, Command, Sender},
    controller::CALL_TIMEOUT,
    decide::{
        isr::{IsrAnswers, IsrProposal, IsrProposals},
        producer_ids::ProducerIdBlock,
    },
    image::ClusterImage,
    keys::{LeaderRecovery, PartitionState},
    store::Revision,
};

/// The version in which this process sends AlterPartition: members with their epochs.
pub(crate) const ALTER_PARTITION_VERSION: i16 = 3;

/// Stands for an epoch that the leader does not know (KIP-903).
const UNKNOWN_EPOCH: i64 = -1;

impl Controller {
    /// Answers AlterPartition (56) from a broker of another process.
    pub async fn answer_alter_partition(
        &self,
        version: i16,
        request: &AlterPartitionRequest,
    ) -> AlterPartitionResponse {
        let failed = |error: &ControllerError| {
            message!(AlterPartitionResponse {
                error_code: error.error_code().code(),
            })
        };
        let Some(sender) = sender(
            request.broker_id,
            request.broker_epoch,
            &request.unknown_tagged_fields,
        ) else {
            return failed(&ControllerError::ClusterAuthorizationFailed);
        };
        let proposals = match proposals(version, request) {
            Ok(proposals) => proposals,
            Err(error) => return failed(&error),
        };
        let answer = self
            .ask_for(sender, Command::AlterPartitions, proposals)
            .await;
        match answer {
            Ok((revision, answers)) => isr_response(request, &answers, revision),
            Err(error) => failed(&error),
        }
    }

    /// Answers AllocateProducerIds (67) from a broker of another process.
    pub async fn answer_allocate_producer_ids(
        &self,
        request: &AllocateProducerIdsRequest,
    ) -> AllocateProducerIdsResponse {
        let sender = sender(
            request.broker_id,
            request.broker_epoch,
            &request.unknown_tagged_fields,
        );
        let answer = match sender {
            Some(sender) => self.ask_for(sender, Command::AllocateProducerIds, ()).await,
            None => Err(ControllerError::ClusterAuthorizationFailed),
        };
        match answer.and_then(|(revision, block)| Ok((revision, block?))) {
            Ok((revision, block)) => message!(AllocateProducerIdsResponse {
                producer_id_start: block.first.value(),
                producer_id_len: block.count,
                unknown_tagged_fields: revision_tag(revision),
            }),
            Err(error) => message!(AllocateProducerIdsResponse {
                error_code: error.error_code().code(),
            }),
        }
    }

    /// Answers Envelope (58) from a broker of another process.
    pub async fn answer_envelope(&self, request: &EnvelopeRequest) -> EnvelopeResponse {
        let Ok((asked, answer)) = Command::from_json(&request.request_data) else {
            // Kafka's envelopes hold other bytes; whoever sends one is no broker of ours.
            return message!(EnvelopeResponse {
                error_code: ErrorCode::ClusterAuthorizationFailed.code(),
            });
        };
        let response_data = match self.send_command(asked).await {
            Ok(()) => answer.await.ok().map(Bytes::from),
            Err(_) => None,
        };
        let error = match &response_data {
            Some(_) => ErrorCode::None,
            None => ErrorCode::NotController,
        };
        message!(EnvelopeResponse {
            response_data,
            error_code: error.code(),
        })
    }

    async fn ask_for<I, O: Send + 'static>(
        &self,
        sender: Sender,
        command: impl FnOnce(Call<I, O>) -> Command,
        input: I,
    ) -> Result<(Revision, O), ControllerError> {
        let (call, answer): (_, oneshot::Receiver<_>) = Call::new(input);
        self.send_command(Asked::within(CALL_TIMEOUT, command(call), Some(sender)))
            .await?;
        answer.await.map_err(|_| ControllerError::Stopped)?
    }
}

/// The AlterPartition that carries `proposals`.
pub(crate) fn alter_partition(sender: &Sender, proposals: &IsrProposals) -> AlterPartitionRequest {
    let mut topics: Vec<alter_partition_request::TopicData> = Vec::new();
    for proposal in &proposals.partitions {
        let topic_id = proposal.topic.into();
        let partition = message!(alter_partition_request::PartitionData {
            partition_index: proposal.partition.value(),
            leader_epoch: proposal.leader_epoch.value(),
            new_isr_with_epochs: proposal
                .isr
                .iter()
                .map(
                    |&(id, epoch)| message!(alter_partition_request::BrokerState {
                        broker_id: id.value(),
                        broker_epoch: epoch.map_or(UNKNOWN_EPOCH, BrokerEpoch::value),
                    })
                )
                .collect(),
            leader_recovery_state: proposal.leader_recovery.code(),
            partition_epoch: proposal.partition_epoch,
        });
        // Only neighbours share an entry, so that the order is that of the proposals.
        match topics.last_mut() {
            Some(last) if last.topic_id == topic_id => last.partitions.push(partition),
            _ => topics.push(message!(alter_partition_request::TopicData {
                topic_id,
                partitions: vec![partition],
            })),
        }
    }
    message!(AlterPartitionRequest {
        broker_id: proposals.broker.value(),
        broker_epoch: proposals.broker_epoch.value(),
        topics,
        unknown_tagged_fields: incarnation_tag(sender),
    })
}

/// The AllocateProducerIds of a broker.
pub(crate) fn allocate_producer_ids(sender: &Sender) -> AllocateProducerIdsRequest {
    message!(AllocateProducerIdsRequest {
        broker_id: sender.broker.value(),
        broker_epoch: sender.broker_epoch.value(),
        unknown_tagged_fields: incarnation_tag(sender),
    })
}

/// What an answer to AllocateProducerIds says.
pub(crate) fn producer_id_block(
    response: &AllocateProducerIdsResponse,
) -> Result<ProducerIdBlock, ControllerError> {
    no_error(response.error_code)?;
    Ok(ProducerIdBlock {
        first: ProducerId::new(response.producer_id_start),
        count: response.producer_id_len,
    })
}

/// What an answer to AlterPartition says, once `image` has what it tells of.
pub(crate) fn isr_answers(
    proposals: &IsrProposals,
    response: &AlterPartitionResponse,
    image: &ClusterImage,
) -> IsrAnswers {
    let mut answers = response.topics.iter().flat_map(|topic| {
        topic
            .partitions
            .iter()
            .map(|partition| (topic.topic_id, partition))
    });
    proposals
        .partitions
        .iter()
        .map(|proposal| {
            let (topic, answer) = answers.next().ok_or_else(strange)?;
            if TopicId::from(topic) != proposal.topic
                || answer.partition_index != proposal.partition.value()
            {
                return Err(strange());
            }
            isr_answer(proposal, answer, image)
        })
        .collect()
}

fn isr_answer(
    proposal: &IsrProposal,
    answer: &alter_partition_response::PartitionData,
    image: &ClusterImage,
) -> Result<PartitionState, ControllerError> {
    if ErrorCode::from_code(answer.error_code) == Some(ErrorCode::UnknownTopicId) {
        return Err(ControllerError::UnknownTopicId(proposal.topic));
    }
    no_error(answer.error_code)?;
    // The rest of the state has not changed with it, or has by a later change.
    let state = image
        .topic_by_id(proposal.topic)
        .and_then(|topic| topic.partition(proposal.partition))
        .ok_or(ControllerError::UnknownTopicOrPartition)?;
    Ok(PartitionState {
        leader: BrokerId::new(answer.leader_id),
        leader_epoch: LeaderEpoch::new(answer.leader_epoch),
        isr: answer.isr.iter().copied().map(BrokerId::new).collect(),
        leader_recovery: LeaderRecovery::from_code(answer.leader_recovery_state)
            .ok_or_else(strange)?,
        partition_epoch: answer.partition_epoch,
        ..state.clone()
    })
}

/// The error that stands for the whole of an answer, if there is one.
pub(crate) fn no_error(code: i16) -> Result<(), ControllerError> {
    Err(match ErrorCode::from_code(code) {
        Some(ErrorCode::None) => return Ok(()),
        Some(ErrorCode::NotController) => ControllerError::NotController,
        Some(ErrorCode::StaleBrokerEpoch) => ControllerError::StaleBrokerEpoch,
        Some(ErrorCode::ClusterAuthorizationFailed) => ControllerError::ClusterAuthorizationFailed,
        Some(ErrorCode::FencedLeaderEpoch) => ControllerError::FencedLeaderEpoch,
        Some(ErrorCode::InvalidUpdateVersion) => ControllerError::InvalidUpdateVersion,
        Some(ErrorCode::IneligibleReplica) => ControllerError::IneligibleReplica,
        Some(ErrorCode::NewLeaderElected) => ControllerError::NewLeaderElected,
        Some(ErrorCode::UnknownTopicOrPartition) => ControllerError::UnknownTopicOrPartition,
        Some(ErrorCode::RequestTimedOut) => ControllerError::TimedOut,
        _ => ControllerError::InvalidRequest(format!("The controller answered with error {code}.")),
    })
}

/// The revision from which an answer is visible; [`Revision::ZERO`] if it does not say.
pub(crate) fn visible_from(fields: &TaggedFields) -> Revision {
    let number =
        tags::find(fields, tags::REVISION).and_then(|data| <[u8; 8]>::try_from(&data[..]).ok());
    Revision::new(number.map_or(0, i64::from_be_bytes))
}

fn proposals(
    version: i16,
    request: &AlterPartitionRequest,
) -> Result<IsrProposals, ControllerError> {
    let proposal = |topic: TopicId, partition: &alter_partition_request::PartitionData| {
        let isr = if version < ALTER_PARTITION_VERSION {
            let ids = partition.new_isr.iter();
            ids.map(|&id| (BrokerId::new(id), None)).collect()
        } else {
            let known = |epoch| (epoch != UNKNOWN_EPOCH).then(|| BrokerEpoch::new(epoch));
            let members = partition.new_isr_with_epochs.iter();
            members
                .map(|member| (BrokerId::new(member.broker_id), known(member.broker_epoch)))
                .collect()
        };
        Ok(IsrProposal {
            topic,
            partition: PartitionId::new(partition.partition_index),
            leader_epoch: LeaderEpoch::new(partition.leader_epoch),
            partition_epoch: partition.partition_epoch,
            isr,
            leader_recovery: LeaderRecovery::from_code(partition.leader_recovery_state)
                .ok_or_else(|| {
                    ControllerError::InvalidRequest("An unknown leader recovery state.".to_owned())
                })?,
        })
    };
    Ok(IsrProposals {
        broker: BrokerId::new(request.broker_id),
        broker_epoch: BrokerEpoch::new(request.broker_epoch),
        partitions: request
            .topics
            .iter()
            .flat_map(|topic| {
                let id = topic.topic_id.into();
                topic.partitions.iter().map(move |one| proposal(id, one))
            })
            .collect::<Result<_, ControllerError>>()?,
    })
}

fn isr_response(
    request: &AlterPartitionRequest,
    answers: &IsrAnswers,
    revision: Revision,
) -> AlterPartitionResponse {
    let mut answers = answers.iter();
    let mut partition = |index: i32| match answers.next() {
        Some(Ok(state)) => message!(alter_partition_response::PartitionData {
            partition_index: index,
            leader_id: state.leader.value(),
            leader_epoch: state.leader_epoch.value(),
            isr: state.isr.iter().map(|id| id.value()).collect(),
            leader_recovery_state: state.leader_recovery.code(),
            partition_epoch: state.partition_epoch,
        }),
        refused => message!(alter_partition_response::PartitionData {
            partition_index: index,
            error_code: match refused {
                Some(Err(error)) => error.error_code(),
                _ => ErrorCode::UnknownServerError,
            }
            .code(),
        }),
    };
    message!(AlterPartitionResponse {
        topics: request
            .topics
            .iter()
            .map(|topic| message!(alter_partition_response::TopicData {
                topic_id: topic.topic_id,
                partitions: topic
                    .partitions
                    .iter()
                    .map(|one| partition(one.partition_index))
                    .collect(),
            }))
            .collect(),
        unknown_tagged_fields: revision_tag(revision),
    })
}

fn sender(broker: i32, broker_epoch: i64, fields: &TaggedFields) -> Option<Sender> {
    Some(Sender {
        broker: BrokerId::new(broker),
        broker_epoch: BrokerEpoch::new(broker_epoch),
        incarnation: std::str::from_utf8(tags::find(fields, tags::INCARNATION)?)
            .ok()?
            .to_owned(),
    })
}

fn incarnation_tag(sender: &Sender) -> TaggedFields {
    tags::one(tags::INCARNATION, Bytes::from(sender.incarnation.clone()))
}

fn revision_tag(revision: Revision) -> TaggedFields {
    let bytes = revision.value().to_be_bytes();
    tags::one(tags::REVISION, Bytes::copy_from_slice(&bytes))
}

fn strange() -> ControllerError {
    ControllerError::InvalidRequest("The controller's answer is not to what was asked.".to_owned())
}
