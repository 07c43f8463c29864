//! [`Controller`]: the handle by which everything else in the process sees the cluster
//! and asks for changes to it. It is cheap to clone and owns nothing but a way
//! to the service's loop.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout_at,
};
use yuxi_protocol::ids::{BrokerEpoch, BrokerId, ProducerId, TopicId};

use crate::{
    ControllerError,
    admin::Page,
    command::{Asked, Call, Command, Validated},
    decide::{
        configs::ConfigAlteration,
        elections::{ElectionAnswers, Elections},
        features::FeatureUpdate,
        isr::{IsrAnswers, IsrProposals},
        producer_ids::ProducerIdBlock,
        reassignment::Reassignments,
        topics::{Answers, CreatedTopic, DeletedTopic, NewPartitions, NewTopic, TopicSelector},
    },
    image::ClusterImage,
    keys::{Address, BrokerValue, DaemonValue},
    metrics::ControllerMetrics,
    registration::Registrant,
    service::{self, Request},
    settings::ServerSettings,
    store::{MetadataStore, Revision},
};

/// The most requests that wait for the service's loop; callers beyond wait to enter.
const REQUEST_QUEUE: usize = 1024;

/// The most calls of this process that are not yet answered; callers beyond wait to enter.
const CALLS: usize = 1024;

/// How long a call waits for a controller's decision, if its caller does not say, and at
/// most: calls are limited in number, and with a store that stays away those that wait for
/// days would keep all others out.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a call waits at least. The time-out of a Kafka client ends the wait for the
/// controller's turn, and not the commit after it as it does here: so one that is shorter
/// than a commit takes does no harm there and must do none here. One of 0 or less is from
/// clients that mean not to wait until a topic is there, which Kafka 4 refuses without a
/// look; they, too, are told what became of it.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(1);

/// What a controller is started with.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// This process's `node.id`.
    pub node_id: BrokerId,
    /// The settings that decisions fall back on.
    pub settings: Arc<ServerSettings>,
    /// How long this process may be silent before it is taken for dead:
    /// `broker.session.timeout.ms`.
    pub session_ttl: Duration,
    /// Where other processes reach this one, which they need once it is the controller.
    pub endpoint: Option<Address>,
    /// Whether it competes for the seal.
    pub campaign: Campaign,
    /// Whether no other process ever uses the store.
    pub is_alone: bool,
    /// The id that a cluster gets which is founded now; random if `None`.
    pub cluster_id: Option<String>,
    /// Makes ids and placement repeatable; random if `None`.
    pub seed: Option<u64>,
}

/// When a process competes for the seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Campaign {
    /// Once it has registered, so that the reconciling of a new controller finds a broker
    /// alive, and nobody takes the seal under another's `node.id`.
    OnceRegistered,
    /// Not at all: `controller.candidate=false`.
    Never,
}

/// The handle; see the module.
#[derive(Clone)]
pub struct Controller {
    node_id: BrokerId,
    requests: mpsc::Sender<Request>,
    calls: Arc<Semaphore>,
    metrics: Arc<ControllerMetrics>,
    image: watch::Receiver<Arc<ClusterImage>>,
    /// How long its calls wait.
    timeout: Duration,
}

impl Controller {
    /// Reads the cluster from `store`, founds it if there is none, and starts the service's
    /// loop on the current tokio runtime.
    pub async fn start(
        store: impl MetadataStore,
        options: ControllerOptions,
    ) -> Result<Self, ControllerError> {
        let node_id = options.node_id;
        let (sender, requests) = mpsc::channel(REQUEST_QUEUE);
        let way_back = sender.downgrade();
        let metrics = Arc::new(ControllerMetrics::new());
        let measured = Arc::clone(&metrics);
        let (mut image, refused) =
            service::start(store, options, requests, way_back, measured).await?;
        tokio::select! {
            found = image.wait_for(|image| image.cluster_id().is_some()) => {
                found.map_err(|_| ControllerError::Stopped)?;
            }
            Ok(error) = refused => return Err(error),
        }
        Ok(Self {
            node_id,
            requests: sender,
            calls: Arc::new(Semaphore::new(CALLS)),
            metrics,
            image,
            timeout: CALL_TIMEOUT,
        })
    }

    /// The same controller for a client that wants its answer within `timeout_ms`: calls
    /// wait for no longer, within bounds, and are then
    /// [`TimedOut`](ControllerError::TimedOut), done or not.
    #[must_use]
    pub fn within(&self, timeout_ms: i32) -> Self {
        let wanted = Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0));
        Self {
            timeout: wanted.clamp(SHORTEST_TIMEOUT, CALL_TIMEOUT),
            ..self.clone()
        }
    }

    /// The cluster as it is now.
    pub fn image(&self) -> Arc<ClusterImage> {
        Arc::clone(&self.image.borrow())
    }

    /// Writes the metrics of the control plane, as seen from this process.
    pub fn render_metrics(&self, page: &mut Page) {
        let now = std::time::Instant::now();
        self.metrics.render(page, &self.image(), self.node_id, now);
    }

    /// The revision of [`Controller::image`].
    pub fn revision(&self) -> Revision {
        self.image.borrow().revision()
    }

    /// The cluster as it is and comes to be.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ClusterImage>> {
        self.image.clone()
    }

    /// Registers this process as a broker and returns its broker epoch once a controller
    /// has let it in. Should its session end, it is registered again by itself, under
    /// another epoch, which the image shows.
    pub async fn register_broker(
        &self,
        registration: BrokerValue,
    ) -> Result<BrokerEpoch, ControllerError> {
        self.register(Registrant::Broker(registration)).await
    }

    /// Registers this process as a controller that is no broker, once nobody else has its
    /// `node.id`.
    pub(crate) async fn register_daemon(
        &self,
        registration: DaemonValue,
    ) -> Result<(), ControllerError> {
        self.register(Registrant::Daemon(registration)).await?;
        Ok(())
    }

    async fn register(&self, registrant: Registrant) -> Result<BrokerEpoch, ControllerError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Register(registrant, reply)).await?;
        answer.await.map_err(|_| ControllerError::Stopped)?
    }

    /// Creates topics; with `validate_only` it says only what would happen.
    pub async fn create_topics(
        &self,
        topics: Vec<NewTopic>,
        validate_only: bool,
    ) -> Answers<CreatedTopic> {
        let count = topics.len();
        let input = Validated {
            input: topics,
            validate_only,
        };
        each(count, self.call(Command::CreateTopics, input).await)
    }

    /// Deletes topics.
    pub async fn delete_topics(&self, topics: Vec<TopicSelector>) -> Answers<DeletedTopic> {
        let count = topics.len();
        each(count, self.call(Command::DeleteTopics, topics).await)
    }

    /// Says that this process's broker holds nothing of these topics, which were deleted.
    pub async fn confirm_deletions(&self, topics: Vec<TopicId>) -> Result<(), ControllerError> {
        let input = (self.node_id, topics);
        self.call(Command::ConfirmDeletions, input).await?
    }

    /// Gives topics more partitions.
    pub async fn create_partitions(
        &self,
        topics: Vec<NewPartitions>,
        validate_only: bool,
    ) -> Answers<()> {
        let count = topics.len();
        let input = Validated {
            input: topics,
            validate_only,
        };
        each(count, self.call(Command::CreatePartitions, input).await)
    }

    /// Changes configuration overrides.
    pub async fn alter_configs(
        &self,
        alterations: Vec<ConfigAlteration>,
        validate_only: bool,
    ) -> Answers<()> {
        let count = alterations.len();
        let input = Validated {
            input: alterations,
            validate_only,
        };
        each(count, self.call(Command::AlterConfigs, input).await)
    }

    /// Proposes new in-sync replica sets for partitions that a broker leads (AlterPartition).
    pub async fn alter_partitions(&self, proposals: IsrProposals) -> IsrAnswers {
        let count = proposals.partitions.len();
        each(count, self.call(Command::AlterPartitions, proposals).await)
    }

    /// Takes the next block of producer ids.
    pub async fn allocate_producer_ids(&self) -> Result<ProducerIdBlock, ControllerError> {
        self.call(Command::AllocateProducerIds, ()).await?
    }

    /// Has no block begin at `last` or below, from now on.
    pub async fn pass_over_producer_ids(&self, last: ProducerId) -> Result<(), ControllerError> {
        self.call(Command::PassOverProducerIds, last).await?
    }

    /// Asks for a controlled shutdown of this process's broker: others take over what
    /// they can. Returns how many partitions it still leads, since nobody can.
    pub async fn shut_down_broker(&self, epoch: BrokerEpoch) -> Result<usize, ControllerError> {
        let input = (self.node_id, epoch);
        self.call(Command::ShutDownBroker, input).await?
    }

    /// Starts, replaces and cancels reassignments of partitions.
    pub async fn alter_reassignments(&self, reassignments: Reassignments) -> Answers<()> {
        let count = reassignments.partitions.len();
        each(
            count,
            self.call(Command::AlterReassignments, reassignments).await,
        )
    }

    /// Elects leaders: the preferred ones, or any.
    pub async fn elect_leaders(
        &self,
        elections: Elections,
    ) -> Result<ElectionAnswers, ControllerError> {
        self.call(Command::ElectLeaders, elections).await
    }

    /// Forgets a broker that is gone for good.
    pub async fn unregister_broker(&self, broker: BrokerId) -> Result<(), ControllerError> {
        self.call(Command::UnregisterBroker, broker).await?
    }

    /// Sets the levels of features, all or none; with `validate_only` it says only whether
    /// that is possible.
    pub async fn update_features(
        &self,
        updates: Vec<FeatureUpdate>,
        validate_only: bool,
    ) -> Result<(), ControllerError> {
        let input = Validated {
            input: updates,
            validate_only,
        };
        self.call(Command::UpdateFeatures, input).await?
    }

    /// Gives up the seal, for good, so that another takes over while this process still
    /// has things to close. From here on its broker, once fenced, is not registered again.
    pub async fn retire(&self) {
        // An error means that the loop has ended already.
        let _ = self.send(Request::Retire).await;
    }

    /// Ends the session, and with it the registration and the seal, stops the loop and
    /// lets go of the store.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.send(Request::Stop(reply)).await.is_ok() {
            // An error means that the loop has ended already.
            let _ = stopped.await;
        }
    }

    async fn call<I, O: Send + 'static>(
        &self,
        command: impl FnOnce(Call<I, O>) -> Command,
        input: I,
    ) -> Result<O, ControllerError> {
        let (call, answer) = Call::new(input);
        let asked = Asked::within(self.timeout, command(call), None);
        let give_up_at = asked.give_up_at;
        let answered = async {
            // It is never closed.
            let _permit = self.calls.acquire().await;
            self.send_command(asked).await?;
            let (_, answer) = answer.await.map_err(|_| ControllerError::Stopped)??;
            Ok(answer)
        };
        timeout_at(give_up_at, answered)
            .await
            .unwrap_or(Err(ControllerError::TimedOut))
    }

    pub(crate) async fn send_command(&self, asked: Asked) -> Result<(), ControllerError> {
        self.send(Request::Command(asked)).await
    }

    async fn send(&self, request: Request) -> Result<(), ControllerError> {
        self.requests
            .send(request)
            .await
            .map_err(|_| ControllerError::Stopped)
    }
}

/// What befell the whole call befell each of its items.
fn each<T>(count: usize, answers: Result<Answers<T>, ControllerError>) -> Answers<T> {
    answers.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
