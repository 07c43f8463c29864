//! The connections to a cluster and the one current [`ClusterMetadata`].
//!
//! A [`Cluster`] is shared by everything that talks to the same cluster. The
//! snapshot sits behind a short lock that is never held across an await;
//! refreshes that are asked for at once are one. Nothing waits for one dead broker:
//! questions go to the next server beside it, and requests that only it can answer
//! end when the cluster no longer lists it.

mod connections;
mod coordinator;

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use yuxi_protocol::codec::ApiVersion;
use yuxi_protocol::error_code::ErrorCode;
use yuxi_protocol::ids::{BrokerId, LeaderEpoch};
use yuxi_protocol::message;
use yuxi_protocol::messages::metadata_request::MetadataRequestTopic;
use yuxi_protocol::messages::{
    FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse,
    RequestResponsePair,
};
use yuxi_protocol::topic_regex::TopicRegex;

use crate::backoff::Backoff;
use crate::config::ClientConfig;
use crate::connection::Connection;
use crate::error::{Error, Result, check};
use crate::metadata::{Broker, ClusterMetadata, Topic};
use crate::sync::{read, write};
use connections::{Connections, Purpose};
pub(crate) use coordinator::Coordinator;
use coordinator::Kind;

/// A broker that is silent for so long is asked after.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);
/// And again after so long: the others may be about to notice.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);
const NOT_LISTED: &str = "the cluster does not list it as alive";

/// A cluster, by its bootstrap servers. Clones share everything.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<ClientConfig>,
    metadata: RwLock<Arc<ClusterMetadata>>,
    connections: Connections,
    refreshing: tokio::sync::Mutex<()>,
}

impl Cluster {
    /// Reaches the first bootstrap server that answers and learns the brokers from it.
    pub async fn connect(config: ClientConfig) -> Result<Self> {
        let config = Arc::new(config);
        let cluster = Self {
            inner: Arc::new(Inner {
                connections: Connections::new(config.clone()),
                config,
                metadata: RwLock::default(),
                refreshing: tokio::sync::Mutex::default(),
            }),
        };
        cluster.refresh(&[], false).await?;
        Ok(cluster)
    }

    /// The settings.
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.inner.config
    }

    /// The current snapshot.
    pub fn metadata(&self) -> Arc<ClusterMetadata> {
        read(&self.inner.metadata).clone()
    }

    /// A connection to one broker, opened if there is none. One that the snapshot does not
    /// list is asked after; if the cluster does not either, it is [`Error::NoSuchBroker`].
    pub async fn broker(&self, id: BrokerId) -> Result<Connection> {
        let address = match address_of(id, &self.metadata()) {
            Ok(address) => address,
            Err(_) => address_of(id, &*self.refresh(&[], false).await?)?,
        };
        let opening = self.inner.connections.open(&address, Purpose::Data);
        self.unless_dead(&address, Duration::ZERO, opening).await
    }

    /// A connection to any broker that answers: known ones first, in random order,
    /// then the bootstrap servers.
    pub async fn any(&self) -> Result<Connection> {
        let connections = &self.inner.connections;
        let attempt =
            |address: String| async move { connections.open(&address, Purpose::Data).await };
        let opened = connections.first_of(self.servers(), attempt).await;
        opened.map_err(|last| self.no_server(last))
    }

    /// Sends a request to whichever broker can be reached; once.
    pub async fn call_any<R>(&self, build: impl FnOnce(ApiVersion) -> R) -> Result<R::Response>
    where
        R: RequestResponsePair,
    {
        self.any().await?.call(build).await
    }

    /// Asks brokers until one answers: for questions, which several may be asked at once.
    pub(crate) async fn ask_any<R>(&self, build: impl Fn(ApiVersion) -> R) -> Result<R::Response>
    where
        R: RequestResponsePair,
    {
        self.ask_any_up_to(i16::MAX, build).await
    }

    /// As [`Cluster::ask_any`], with no version above `cap`.
    pub(crate) async fn ask_any_up_to<R>(
        &self,
        cap: i16,
        build: impl Fn(ApiVersion) -> R,
    ) -> Result<R::Response>
    where
        R: RequestResponsePair,
    {
        let connections = &self.inner.connections;
        let build = &build;
        let attempt = |address: String| async move {
            let connection = connections.open(&address, Purpose::Data).await?;
            connection.call_up_to(cap, build).await
        };
        let answered = connections.first_of(self.servers(), attempt).await;
        answered.map_err(|last| self.no_server(last))
    }

    /// Every address where someone may answer.
    fn servers(&self) -> Vec<String> {
        let metadata = self.metadata();
        let mut servers: Vec<String> = metadata.brokers.values().map(Broker::address).collect();
        servers.shuffle(&mut rand::rng());
        for address in &self.inner.config.bootstrap {
            if !servers.contains(address) {
                servers.push(address.clone());
            }
        }
        servers
    }

    fn no_server(&self, last: Error) -> Error {
        Error::NoBootstrap {
            addresses: self.inner.config.bootstrap.join(", "),
            last: Arc::new(last),
        }
    }

    /// Waits for a request that was sent over `connection`. A broker that is silent for
    /// `patience` and a second more is asked after: if the others no longer list it, the
    /// connection ends, and with it every request on it. So a broker that vanished
    /// without a farewell costs as long as the cluster needs to notice, and not
    /// `request.timeout.ms`.
    pub(crate) async fn attend<T>(
        &self,
        connection: &Connection,
        patience: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let done = self.unless_dead(connection.address(), patience, work).await;
        if let Err(error @ Error::Disconnected { .. }) = &done {
            connection.end(error);
        }
        done
    }

    async fn unless_dead<T>(
        &self,
        address: &str,
        patience: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut work = std::pin::pin!(work);
        let mut wait = patience + SUSPECT_AFTER;
        loop {
            if let Ok(done) = tokio::time::timeout(wait, &mut work).await {
                return done;
            }
            // It would not answer this either.
            let _suspected = self.inner.connections.suspect(address);
            let refreshed = tokio::select! {
                biased;
                done = &mut work => return done,
                refreshed = self.refresh(&[], false) => refreshed,
            };
            if refreshed.is_ok_and(|metadata| !metadata.lists(address)) {
                return Err(Error::Disconnected {
                    address: address.to_owned(),
                    reason: NOT_LISTED.into(),
                });
            }
            wait = ASK_AGAIN_AFTER;
        }
    }

    /// Asks anew for these topics (none: for the brokers only). `create` lets the
    /// broker make missing ones, if its configuration does.
    pub async fn refresh(&self, topics: &[Arc<str>], create: bool) -> Result<Arc<ClusterMetadata>> {
        let asked = Instant::now();
        let _one_at_a_time = self.inner.refreshing.lock().await;
        let current = self.metadata();
        // Someone else asked for the same while this call waited its turn.
        let fresh = |name: &Arc<str>| current.topics.get(name).is_some_and(|t| t.as_of >= asked);
        if current.as_of.is_some_and(|at| at >= asked) && topics.iter().all(fresh) {
            return Ok(current);
        }
        let names = topics
            .iter()
            .map(|name| {
                message!(MetadataRequestTopic {
                    name: Some((&**name).into())
                })
            })
            .collect();
        self.ask(Some(names), create).await
    }

    /// Asks for every topic.
    pub async fn refresh_all(&self) -> Result<Arc<ClusterMetadata>> {
        let _one_at_a_time = self.inner.refreshing.lock().await;
        self.ask(None, false).await
    }

    /// The topics there are now whose whole name matches a regular expression. Kafka's own
    /// are not among them (its `exclude.internal.topics`).
    pub async fn topics_matching(&self, regex: &str) -> Result<BTreeSet<Arc<str>>> {
        let metadata = self.refresh_all().await?;
        let open = |topic: &&Arc<Topic>| topic.error.is_none() && !topic.internal;
        let names = || {
            metadata
                .topics
                .values()
                .filter(open)
                .map(|topic| &topic.name)
        };
        let regex = topic_regex(regex, names().map(|name| name.len() + 1).sum())?;
        Ok(names()
            .filter(|name| regex.matches(name))
            .cloned()
            .collect())
    }

    /// A topic's metadata, from the snapshot if it is there and young enough,
    /// else asked for until it exists, has partitions, or time is up.
    pub async fn topic(&self, name: &Arc<str>, create: bool) -> Result<Arc<Topic>> {
        let config = &self.inner.config;
        if let Some(topic) = self.metadata().topic(name)
            && topic.as_of.elapsed() < config.metadata_max_age
        {
            return Ok(topic.clone());
        }
        let deadline = Instant::now() + config.topic_propagation;
        let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        loop {
            let asked = self.refresh(std::slice::from_ref(name), create).await;
            let error = match asked.and_then(|metadata| existing(&metadata, name)) {
                Ok(topic) => return Ok(topic),
                Err(error) => error,
            };
            // Without leave to create it, a topic that is not there stays away.
            let hopeless = error.code() == Some(ErrorCode::UnknownTopicOrPartition) && !create;
            let pause = backoff.next();
            if !error.is_retriable() || hopeless || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes a partition's new leader from a produce or fetch answer (KIP-951), which
    /// may also say where that broker is. Returns whether that was news.
    pub(crate) fn learn_leader(
        &self,
        partition: (&str, i32),
        leader: (i32, i32),
        endpoints: &[Broker],
    ) -> bool {
        let (leader, epoch) = (BrokerId::new(leader.0), LeaderEpoch::new(leader.1));
        let endpoint = endpoints.iter().find(|endpoint| endpoint.id == leader);
        let mut current = write(&self.inner.metadata);
        match current.with_leader(partition, leader, epoch, endpoint) {
            Some(next) => {
                *current = Arc::new(next);
                true
            }
            None => false,
        }
    }

    /// A connection to the broker that coordinates a group, asked for until there is one.
    pub async fn group_coordinator(&self, group: &str) -> Result<Connection> {
        self.coordinator(Kind::Group, group, Purpose::Group).await
    }

    /// A connection to the broker that coordinates a transactional id's transactions, asked
    /// for until there is one.
    pub async fn transaction_coordinator(&self, transactional_id: &str) -> Result<Connection> {
        self.coordinator(Kind::Transaction, transactional_id, Purpose::Transaction)
            .await
    }

    async fn coordinator(&self, kind: Kind, key: &str, purpose: Purpose) -> Result<Connection> {
        let config = &self.inner.config;
        let mut backoff = Backoff::new(config.retry_backoff, config.retry_backoff_max);
        let deadline = Instant::now() + config.request_timeout;
        loop {
            match self.find_coordinator(kind, key, purpose).await {
                Err(error) if error.is_retriable() && Instant::now() < deadline => {
                    tokio::time::sleep(backoff.next()).await;
                }
                found => return found,
            }
        }
    }

    async fn find_coordinator(
        &self,
        kind: Kind,
        key: &str,
        purpose: Purpose,
    ) -> Result<Connection> {
        let answer: FindCoordinatorResponse = self
            .ask_any(|version| {
                let mut request = FindCoordinatorRequest::default();
                if version.value() >= 4 {
                    request.coordinator_keys = vec![key.into()];
                } else {
                    request.key = key.into();
                }
                request.key_type = kind.wire();
                request
            })
            .await?;
        let context = || match kind {
            Kind::Group => format!("finding the coordinator of group {key}"),
            Kind::Transaction => format!("finding the coordinator of transactional.id {key}"),
        };
        let (code, message, host, port) = match answer.coordinators.first() {
            Some(found) => (
                found.error_code,
                &found.error_message,
                &found.host,
                found.port,
            ),
            None => (
                answer.error_code,
                &answer.error_message,
                &answer.host,
                answer.port,
            ),
        };
        check(code, message.as_deref(), context)?;
        let broker = Broker {
            id: BrokerId::NONE,
            host: host.to_string(),
            port,
            rack: None,
        };
        let address = broker.address();
        let opening = self.inner.connections.open(&address, purpose);
        self.unless_dead(&address, Duration::ZERO, opening).await
    }

    async fn ask(
        &self,
        topics: Option<Vec<MetadataRequestTopic>>,
        create: bool,
    ) -> Result<Arc<ClusterMetadata>> {
        let whole = topics.is_none();
        let answer: MetadataResponse = self
            .ask_any(|version| {
                let mut request = MetadataRequest::default();
                // Before version 1 an empty list meant all topics, and there was no null.
                request.topics = if version.value() == 0 {
                    Some(topics.clone().unwrap_or_default())
                } else {
                    topics.clone()
                };
                // Versions before 4 cannot forbid creation.
                request.allow_auto_topic_creation = create || version.value() < 4;
                request
            })
            .await?;
        check(answer.error_code, None, || "asking for metadata".to_owned())?;
        let mut current = write(&self.inner.metadata);
        *current = Arc::new(current.merged(&answer, whole, Instant::now()));
        Ok(current.clone())
    }
}

fn address_of(id: BrokerId, known: &ClusterMetadata) -> Result<String> {
    let listed = known.brokers.get(&id).map(Broker::address);
    listed.ok_or_else(|| {
        let alive: Vec<String> = known.brokers.keys().map(ToString::to_string).collect();
        Error::NoSuchBroker {
            broker: id,
            alive: alive.join(", "),
        }
    })
}

/// The topic, if the snapshot has it with its partitions.
fn existing(metadata: &ClusterMetadata, name: &Arc<str>) -> Result<Arc<Topic>> {
    let code = match metadata.topics.get(name) {
        Some(topic) => match topic.error {
            None if !topic.partitions.is_empty() => return Ok(topic.clone()),
            None => ErrorCode::LeaderNotAvailable,
            Some(code) => code,
        },
        None => ErrorCode::UnknownTopicOrPartition,
    };
    let advice = (code == ErrorCode::UnknownTopicOrPartition)
        .then(|| format!("it does not exist; create it with: yuxi topic create {name}"));
    Err(Error::broker(
        format!("topic {name}"),
        code,
        advice.as_deref(),
    ))
}

/// A regular expression for topic names that are so long all together.
pub(crate) fn topic_regex(text: &str, name_bytes: usize) -> Result<TopicRegex> {
    TopicRegex::compile(text, name_bytes).map_err(|invalid| Error::Config(invalid.to_string()))
}

/// Milliseconds as the wire has them.
pub(crate) fn wire_ms(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
