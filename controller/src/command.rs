//! What the controller can be asked to decide, each with its way back to the caller.

use rand::RngCore;
use tokio::sync::oneshot;
use yuxi_protocol::ids::{BrokerEpoch, BrokerId};

use crate::{
    ControllerError,
    decide::{
        ChangeSet, brokers,
        configs::{self, ConfigAlteration},
        isr::{self, IsrAnswers, IsrProposals},
        producer_ids::{self, ProducerIdBlock},
        topics::{
            self, Answers, CreatedTopic, DeletedTopic, NewPartitions, NewTopic, TopicSelector,
        },
    },
    image::ClusterImage,
    settings::ServerSettings,
};

/// A request to the controller. The closed list of them.
pub(crate) enum Command {
    CreateTopics(Call<Validated<Vec<NewTopic>>, Answers<CreatedTopic>>),
    DeleteTopics(Call<Vec<TopicSelector>, Answers<DeletedTopic>>),
    CreatePartitions(Call<Validated<Vec<NewPartitions>>, Answers<()>>),
    AlterConfigs(Call<Validated<Vec<ConfigAlteration>>, Answers<()>>),
    AlterPartitions(Call<IsrProposals, IsrAnswers>),
    AllocateProducerIds(Call<(), Result<ProducerIdBlock, ControllerError>>),
    ShutDownBroker(Call<(BrokerId, BrokerEpoch), Result<usize, ControllerError>>),
}

/// What is asked, what was decided, and who waits for it.
pub(crate) struct Call<I, O> {
    input: I,
    answer: Option<O>,
    reply: oneshot::Sender<Result<O, ControllerError>>,
}

/// An input that may be for validation only.
pub(crate) struct Validated<T> {
    pub(crate) input: T,
    pub(crate) validate_only: bool,
}

impl<I, O> Call<I, O> {
    pub(crate) fn new(input: I) -> (Self, oneshot::Receiver<Result<O, ControllerError>>) {
        let (reply, answer) = oneshot::channel();
        let call = Self {
            input,
            answer: None,
            reply,
        };
        (call, answer)
    }

    fn decided(&mut self, (changes, answer): (Vec<ChangeSet>, O)) -> Vec<ChangeSet> {
        self.answer = Some(answer);
        changes
    }

    fn finish(self, outcome: Result<(), ControllerError>) {
        let answer = match (outcome, self.answer) {
            (Ok(()), Some(answer)) => Ok(answer),
            (Ok(()), None) => Err(ControllerError::NotController),
            (Err(error), _) => Err(error),
        };
        // A caller that no longer waits is no concern of ours.
        let _ = self.reply.send(answer);
    }
}

impl<T, O> Call<Validated<T>, O> {
    fn decided_unless_validating(&mut self, decision: (Vec<ChangeSet>, O)) -> Vec<ChangeSet> {
        let changes = self.decided(decision);
        if self.input.validate_only {
            Vec::new()
        } else {
            changes
        }
    }
}

impl Command {
    /// Decides, keeps the answer, and returns what has to be committed first.
    pub(crate) fn decide(
        &mut self,
        image: &ClusterImage,
        settings: &ServerSettings,
        random: &mut dyn RngCore,
    ) -> Vec<ChangeSet> {
        match self {
            Self::CreateTopics(call) => {
                let decision = topics::create(image, settings, &call.input.input, random);
                call.decided_unless_validating(decision)
            }
            Self::DeleteTopics(call) => call.decided(topics::delete(image, &call.input)),
            Self::CreatePartitions(call) => {
                let decision = topics::grow(image, &call.input.input, random);
                call.decided_unless_validating(decision)
            }
            Self::AlterConfigs(call) => {
                call.decided_unless_validating(configs::alter(image, &call.input.input))
            }
            Self::AlterPartitions(call) => {
                call.decided(isr::alter_partitions(image, settings, &call.input))
            }
            Self::AllocateProducerIds(call) => call.decided(match producer_ids::allocate(image) {
                Ok((changes, block)) => (vec![changes], Ok(block)),
                Err(error) => (Vec::new(), Err(error)),
            }),
            Self::ShutDownBroker(call) => {
                let (broker, epoch) = call.input;
                call.decided(match brokers::shut_down(image, settings, broker, epoch) {
                    Ok((changes, still_led)) => (changes, Ok(still_led)),
                    Err(error) => (Vec::new(), Err(error)),
                })
            }
        }
    }

    /// Answers the caller: with the decision once it is committed and visible, or with the
    /// error that kept it from being so.
    pub(crate) fn finish(self, outcome: Result<(), ControllerError>) {
        match self {
            Self::CreateTopics(call) => call.finish(outcome),
            Self::DeleteTopics(call) => call.finish(outcome),
            Self::CreatePartitions(call) => call.finish(outcome),
            Self::AlterConfigs(call) => call.finish(outcome),
            Self::AlterPartitions(call) => call.finish(outcome),
            Self::AllocateProducerIds(call) => call.finish(outcome),
            Self::ShutDownBroker(call) => call.finish(outcome),
        }
    }
}
