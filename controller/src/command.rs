//! What the controller can be asked to decide, each with its way back to the caller, and
//! the JSON in which a command travels to the process that can decide it.

use std::{fmt, time::Duration};

use rand::RngCore;
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, time::Instant};
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, ProducerId, TopicId};

use crate::{
    ControllerError,
    controller::CALL_TIMEOUT,
    decide::{
        ChangeSet, brokers,
        configs::{self, ConfigAlteration},
        deletions,
        elections::{self, ElectionAnswers, Elections},
        features::{self, FeatureUpdate},
        isr::{self, IsrAnswers, IsrProposals},
        producer_ids::{self, ProducerIdBlock},
        reassignment::{self, Reassignments},
        topics::{
            self, Answers, CreatedTopic, DeletedTopic, NewPartitions, NewTopic, TopicSelector,
        },
    },
    image::ClusterImage,
    settings::ServerSettings,
    store::Revision,
};

/// Declares the commands: name, input, answer.
macro_rules! commands {
    ($( $name:ident($input:ty) -> $answer:ty; )+) => {
        /// A request to the controller. The closed list of them.
        pub(crate) enum Command {
            $( $name(Call<$input, $answer>), )+
        }

        #[derive(Serialize)]
        enum InputForm<'a> {
            $( $name(&'a $input), )+
        }

        #[derive(Deserialize)]
        enum OwnedInputForm {
            $( $name($input), )+
        }

        impl Command {
            /// The name of what is asked, for log lines.
            pub(crate) fn name(&self) -> &'static str {
                match self {
                    $( Self::$name(_) => stringify!($name), )+
                }
            }

            /// Answers the caller: with the decision, which is committed and visible at
            /// the revision, or with the error that kept it from being so.
            pub(crate) fn finish(self, outcome: Result<Revision, ControllerError>) {
                match self {
                    $( Self::$name(call) => call.finish(outcome), )+
                }
            }

            /// The command as another process reads it, which is to answer within `timeout`.
            pub(crate) fn to_json(
                &self,
                sender: &Sender,
                timeout: Duration,
            ) -> serde_json::Result<Vec<u8>> {
                let command = match self {
                    $( Self::$name(call) => InputForm::$name(&call.input), )+
                };
                let timeout_ms = u64::try_from(timeout.as_millis()).ok();
                serde_json::to_vec(&EnvelopeForm { sender, timeout_ms, command })
            }

            /// The command of another process, and the answer as that one reads it.
            pub(crate) fn from_json(
                json: &[u8],
            ) -> serde_json::Result<(Asked, oneshot::Receiver<Vec<u8>>)> {
                let EnvelopeForm { sender, timeout_ms, command } = serde_json::from_slice(json)?;
                let (command, answer) = match command {
                    $( OwnedInputForm::$name(input) => {
                        let (call, answer) = Call::answered_in_json(input);
                        (Self::$name(call), answer)
                    } )+
                };
                let timeout = timeout_ms.map_or(CALL_TIMEOUT, Duration::from_millis);
                Ok((Asked::within(timeout.min(CALL_TIMEOUT), command, Some(sender)), answer))
            }

            /// Keeps the answer that another process gave, and returns the revision from
            /// which it is visible.
            pub(crate) fn answered(
                &mut self,
                json: &[u8],
            ) -> serde_json::Result<Result<Revision, ControllerError>> {
                match self {
                    $( Self::$name(call) => call.answered(json), )+
                }
            }
        }
    };
}

commands! {
    CreateTopics(Validated<Vec<NewTopic>>) -> Answers<CreatedTopic>;
    DeleteTopics(Vec<TopicSelector>) -> Answers<DeletedTopic>;
    ConfirmDeletions((BrokerId, Vec<TopicId>)) -> Result<(), ControllerError>;
    CreatePartitions(Validated<Vec<NewPartitions>>) -> Answers<()>;
    AlterConfigs(Validated<Vec<ConfigAlteration>>) -> Answers<()>;
    AlterPartitions(IsrProposals) -> IsrAnswers;
    AllocateProducerIds(()) -> Result<ProducerIdBlock, ControllerError>;
    PassOverProducerIds(ProducerId) -> Result<(), ControllerError>;
    ShutDownBroker((BrokerId, BrokerEpoch)) -> Result<usize, ControllerError>;
    AlterReassignments(Reassignments) -> Answers<()>;
    ElectLeaders(Elections) -> ElectionAnswers;
    UnregisterBroker(BrokerId) -> Result<(), ControllerError>;
    UpdateFeatures(Validated<Vec<FeatureUpdate>>) -> Result<(), ControllerError>;
}

/// The request data of an Envelope.
#[derive(Serialize, Deserialize)]
struct EnvelopeForm<S, C> {
    sender: S,
    /// Earlier versions do not say.
    #[serde(default)]
    timeout_ms: Option<u64>,
    command: C,
}

/// A command, who asked, and how long that one waits.
pub(crate) struct Asked {
    pub(crate) command: Command,
    /// The broker of another process; `None` for callers in this one.
    pub(crate) sender: Option<Sender>,
    pub(crate) give_up_at: Instant,
    since: Instant,
}

/// The broker on whose behalf a command comes from another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sender {
    pub(crate) broker: BrokerId,
    pub(crate) broker_epoch: BrokerEpoch,
    /// As in its registration, which none but the members of the cluster can read: an
    /// ordinary client that calls itself a broker does not know it (CVE-2018-1288).
    pub(crate) incarnation: String,
}

/// What is asked, what was decided, and who waits for it.
pub(crate) struct Call<I, O> {
    pub(crate) input: I,
    answer: Option<O>,
    reply: Reply<O>,
}

/// An answer and the revision from which it is visible.
type Decided<O> = Result<(Revision, O), ControllerError>;

type Reply<O> = Box<dyn FnOnce(Decided<O>) + Send>;

/// An input that may be for validation only.
#[derive(Serialize, Deserialize)]
pub(crate) struct Validated<T> {
    pub(crate) input: T,
    pub(crate) validate_only: bool,
}

impl<I, O: Send + 'static> Call<I, O> {
    pub(crate) fn new(input: I) -> (Self, oneshot::Receiver<Decided<O>>) {
        let (reply, answer) = oneshot::channel();
        // A caller that no longer waits is no concern of ours.
        let reply: Reply<O> = Box::new(|outcome| drop(reply.send(outcome)));
        let call = Self {
            input,
            answer: None,
            reply,
        };
        (call, answer)
    }

    fn answered_in_json(input: I) -> (Self, oneshot::Receiver<Vec<u8>>)
    where
        O: Serialize,
    {
        let (reply, answer) = oneshot::channel();
        let reply: Reply<O> = Box::new(|outcome| {
            let outcome = outcome.map(|(revision, answer)| (revision.value(), answer));
            match serde_json::to_vec(&outcome) {
                Ok(json) => drop(reply.send(json)),
                Err(error) => tracing::error!(%error, "an answer has no JSON form"),
            }
        });
        let call = Self {
            input,
            answer: None,
            reply,
        };
        (call, answer)
    }

    fn answered(&mut self, json: &[u8]) -> serde_json::Result<Result<Revision, ControllerError>>
    where
        O: for<'de> Deserialize<'de>,
    {
        let outcome: Result<(i64, O), ControllerError> = serde_json::from_slice(json)?;
        Ok(outcome.map(|(revision, answer)| {
            self.answer = Some(answer);
            Revision::new(revision)
        }))
    }

    /// Keeps what was decided elsewhere.
    pub(crate) fn set_answer(&mut self, answer: O) {
        self.answer = Some(answer);
    }

    fn decided(&mut self, (changes, answer): (Vec<ChangeSet>, O)) -> Vec<ChangeSet> {
        self.answer = Some(answer);
        changes
    }

    fn finish(self, outcome: Result<Revision, ControllerError>) {
        let answer = match (outcome, self.answer) {
            (Ok(revision), Some(answer)) => Ok((revision, answer)),
            (Ok(_), None) => Err(ControllerError::NotController),
            (Err(error), _) => Err(error),
        };
        (self.reply)(answer);
    }
}

impl<T, O: Send + 'static> Call<Validated<T>, O> {
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
            Self::ConfirmDeletions(call) => {
                let (broker, topics) = &call.input;
                let changes = deletions::confirm(image, *broker, topics);
                call.decided((changes, Ok(())))
            }
            Self::CreatePartitions(call) => {
                let decision = topics::grow(image, &call.input.input, random);
                call.decided_unless_validating(decision)
            }
            Self::AlterConfigs(call) => {
                call.decided_unless_validating(configs::alter(image, settings, &call.input.input))
            }
            Self::AlterPartitions(call) => {
                call.decided(isr::alter_partitions(image, settings, &call.input))
            }
            Self::AllocateProducerIds(call) => call.decided(match producer_ids::allocate(image) {
                Ok((changes, block)) => (vec![changes], Ok(block)),
                Err(error) => (Vec::new(), Err(error)),
            }),
            Self::PassOverProducerIds(call) => {
                call.decided(match producer_ids::pass_over(image, call.input) {
                    Ok(changes) => (changes.into_iter().collect(), Ok(())),
                    Err(error) => (Vec::new(), Err(error)),
                })
            }
            Self::ShutDownBroker(call) => {
                let (broker, epoch) = call.input;
                call.decided(match brokers::shut_down(image, settings, broker, epoch) {
                    Ok((changes, still_led)) => (changes, Ok(still_led)),
                    Err(error) => (Vec::new(), Err(error)),
                })
            }
            Self::AlterReassignments(call) => {
                call.decided(reassignment::reassign(image, settings, &call.input))
            }
            Self::ElectLeaders(call) => {
                call.decided(elections::elect(image, settings, &call.input))
            }
            Self::UnregisterBroker(call) => {
                call.decided(match brokers::unregister(image, settings, call.input) {
                    Ok(changes) => (changes, Ok(())),
                    Err(error) => (Vec::new(), Err(error)),
                })
            }
            Self::UpdateFeatures(call) => {
                let decision = match features::update(image, &call.input.input) {
                    Ok(changes) => (changes, Ok(())),
                    Err(error) => (Vec::new(), Err(error)),
                };
                call.decided_unless_validating(decision)
            }
        }
    }

    /// Whether it takes partitions from leaders that work, and may take as many as there are.
    pub(crate) fn moves_leaders(&self) -> bool {
        matches!(self, Self::ShutDownBroker(_) | Self::ElectLeaders(_))
    }

    /// Whether asking again is right when it is not known what became of the first time.
    pub(crate) fn is_repeatable(&self) -> bool {
        match self {
            Self::CreateTopics(call) => call.input.validate_only,
            Self::CreatePartitions(call) => call.input.validate_only,
            Self::AlterConfigs(call) => call.input.validate_only,
            // The second time it would name what it has itself done as an error.
            Self::DeleteTopics(_)
            | Self::AlterReassignments(_)
            | Self::ElectLeaders(_)
            | Self::UnregisterBroker(_) => false,
            // The epochs in it stop a second one; a block that nobody uses is no loss; ids
            // that were passed over already, a level that is set already and replicas that
            // are gone stay so.
            Self::AlterPartitions(_)
            | Self::AllocateProducerIds(_)
            | Self::PassOverProducerIds(_)
            | Self::ShutDownBroker(_)
            | Self::ConfirmDeletions(_)
            | Self::UpdateFeatures(_) => true,
        }
    }

    /// The broker that it is about, where none but that broker may ask for it.
    fn concerns(&self) -> Option<BrokerId> {
        match self {
            Self::AlterPartitions(call) => Some(call.input.broker),
            Self::ShutDownBroker(call) => Some(call.input.0),
            Self::ConfirmDeletions(call) => Some(call.input.0),
            Self::CreateTopics(_)
            | Self::DeleteTopics(_)
            | Self::CreatePartitions(_)
            | Self::AlterConfigs(_)
            | Self::AllocateProducerIds(_)
            | Self::PassOverProducerIds(_)
            | Self::AlterReassignments(_)
            | Self::ElectLeaders(_)
            | Self::UnregisterBroker(_)
            | Self::UpdateFeatures(_) => None,
        }
    }
}

impl Asked {
    /// Begins to wait.
    pub(crate) fn within(timeout: Duration, command: Command, sender: Option<Sender>) -> Self {
        let since = Instant::now();
        Self {
            command,
            sender,
            give_up_at: since + timeout,
            since,
        }
    }

    /// Whether the sender, if there is one, is a live broker that was let in.
    pub(crate) fn check_sender(&self, image: &ClusterImage) -> Result<(), ControllerError> {
        let Some(sender) = &self.sender else {
            return Ok(());
        };
        let known = image
            .registration(sender.broker)
            .filter(|broker| broker.registration.incarnation == sender.incarnation)
            .ok_or(ControllerError::ClusterAuthorizationFailed)?;
        if !image.is_admitted(known) || known.epoch != sender.broker_epoch {
            return Err(ControllerError::StaleBrokerEpoch);
        }
        match self.command.concerns() {
            Some(broker) if broker != sender.broker => {
                Err(ControllerError::ClusterAuthorizationFailed)
            }
            _ => Ok(()),
        }
    }

    /// For how long it has been asked for.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_late(&self) -> bool {
        self.give_up_at <= Instant::now()
    }

    pub(crate) fn finish(self, outcome: Result<Revision, ControllerError>) {
        self.command.finish(outcome);
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_is_given_up_on_when_the_one_it_asks_for_gives_up_but_not_for_ever() {
        let sender = Sender {
            broker: BrokerId::new(1),
            broker_epoch: BrokerEpoch::new(1),
            incarnation: "life".to_owned(),
        };
        let (call, _) = Call::new(());
        let command = Command::AllocateProducerIds(call);
        for (timeout, expected) in [
            (Duration::from_secs(3), Duration::from_secs(3)),
            (Duration::from_hours(1), CALL_TIMEOUT),
        ] {
            let json = command.to_json(&sender, timeout).unwrap();
            let before = Instant::now();
            let (asked, _) = Command::from_json(&json).unwrap();
            let decoded = before..=Instant::now();
            assert!(decoded.contains(&(asked.give_up_at - expected)));
        }
        let earlier = r#"{"sender":{"broker":1,"broker_epoch":1,"incarnation":"life"},"command":{"AllocateProducerIds":null}}"#;
        let (asked, _) = Command::from_json(earlier.as_bytes()).unwrap();
        assert!(!asked.is_late(), "an earlier version does not say");
    }
}
