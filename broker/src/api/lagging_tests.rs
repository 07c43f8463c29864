//! What is asked of a broker whose partitions are behind the newest image.

use super::{APIS, Context, Request, Started, find, leader_hints::LeaderHints};
use crate::{
    metrics::Metrics,
    node::{Node, Parts, TopicName, tests::entries},
    replicas::Replicas,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use yuxi_controller::{
    Campaign, Controller, ControllerOptions, Endpoint, Registration,
    settings::ServerSettings,
    store::{Commit, EmbeddedStore, MetadataStore as _, Operation, Transaction},
};
use yuxi_log::LogDir;
use yuxi_protocol::{
    codec::{ApiVersion, BytesMut},
    error_code::ErrorCode,
    frame::{self, RequestHead},
    ids::{BrokerEpoch, BrokerId, LeaderEpoch, TopicId},
    message,
    messages::{
        self, FetchRequest, FetchResponse, OutboundFrameLimits, ProduceRequest,
        RequestResponsePair,
        fetch_request::{FetchPartition, FetchTopic, ReplicaState},
        produce_request::{PartitionProduceData, TopicProduceData},
    },
    record::RecordBatchBuilder,
    tags,
};

const DEADLINE: Duration = Duration::from_mins(1);
const PATIENCE_MS: i32 = 60_000;
const ME: BrokerId = BrokerId::new(1);
const OTHER: BrokerId = BrokerId::new(2);
const OTHER_INCARNATION: &str = "other";
const TOPIC: TopicId = TopicId::from_bytes([1; 16]);
const CORRELATION_ID: i32 = 7;
const FRAME_BYTES: usize = 1 << 20;

/// Broker 1, which takes in what the controller shows only when it is told to.
struct Lagging {
    node: Arc<Node>,
    store: EmbeddedStore,
    /// The controller, broker 2, and the epoch of that.
    other: (Controller, BrokerEpoch),
    _directory: TempDir,
}

impl Lagging {
    async fn start() -> Self {
        let store = EmbeddedStore::in_memory();
        let directory = TempDir::new().expect("a directory");
        let settings = |id: BrokerId| {
            let path = directory.path().join(id.to_string());
            let text = format!("node.id={id}\nlog.dirs={}\n", path.display());
            ServerSettings::from_properties(&text, &[]).expect("valid settings")
        };
        let start = async |id, campaign| {
            let options = ControllerOptions {
                node_id: id,
                settings: Arc::new(settings(id)),
                session_ttl: Duration::from_hours(1),
                endpoint: None,
                campaign,
                is_alone: false,
                cluster_id: None,
                seed: None,
            };
            let started = soon(Controller::start(store.clone(), options)).await;
            started.expect("a controller")
        };
        let other = start(OTHER, Campaign::OnceRegistered).await;
        let registering = other.register_broker(Registration {
            incarnation: OTHER_INCARNATION.to_owned(),
            endpoints: vec![Endpoint {
                listener: "PLAINTEXT".to_owned(),
                security_protocol: "PLAINTEXT".to_owned(),
                host: "127.0.0.1".to_owned(),
                port: 1,
            }],
            rack: None,
            boot_id: String::new(),
            directories: Vec::new(),
            former_incarnations: Vec::new(),
            clean_shutdown_epoch: None,
            candidate: true,
            damaged: false,
        });
        let epoch = soon(registering).await.expect("let in");
        let settings = settings(ME);
        let logs = LogDir::open(settings.data_dir()).expect("a log directory");
        let node = Node::new(Parts {
            settings,
            is_alone: false,
            controller: start(ME, Campaign::Never).await,
            replicas: Replicas::new(ME, logs, false).expect("an empty directory"),
            metrics: Metrics::new([]),
        });
        Self {
            node,
            store,
            other: (other, epoch),
            _directory: directory,
        }
    }

    /// In the newest image `leader` leads the partition.
    async fn led_by(&self, leader: BrokerId, epoch: i32) {
        let operations = entries(leader.value(), epoch).map(|(key, value)| Operation::Put {
            key: key.to_string(),
            value,
            session: None,
        });
        let transaction = Transaction {
            guards: Vec::new(),
            operations: operations.into(),
        };
        let Ok(Commit::Applied(revision)) = self.store.commit(transaction).await else {
            panic!("nothing guards this");
        };
        let mut images = self.node.controller.subscribe();
        let shown = images.wait_for(|image| image.revision() >= revision);
        soon(shown).await.expect("it runs");
    }

    /// The partitions follow the newest image.
    async fn catch_up(&self) {
        let following = tokio::spawn(Arc::clone(&self.node).follow_images());
        soon(self.node.caught_up()).await;
        following.abort();
        let _ = following.await;
    }

    fn context(&self) -> Context {
        Context {
            node: Arc::clone(&self.node),
            version: 0,
            correlation_id: CORRELATION_ID,
            client_id: None,
            peer: ([127, 0, 0, 1], 1).into(),
            connected: Instant::now(),
        }
    }

    fn ask<R: RequestResponsePair>(&self, request: &R) -> Started {
        let mut bytes = BytesMut::new();
        let version = ApiVersion::new(newest::<R>());
        let limits = OutboundFrameLimits::new(FRAME_BYTES);
        messages::encode_request(&mut bytes, CORRELATION_ID, None, request, version, limits)
            .expect("a frame");
        let frame = bytes.freeze().slice(frame::LENGTH_PREFIX..);
        let (head, body) = RequestHead::decode(frame, frame::request_limits(FRAME_BYTES))
            .expect("what was just encoded");
        let api = find(&head).expect("it is served");
        (api.start)(Request {
            head,
            body,
            peer: ([127, 0, 0, 1], 1).into(),
            connected: Instant::now(),
            node: Arc::clone(&self.node),
        })
    }
}

async fn soon<F: Future>(what: F) -> F::Output {
    let done = tokio::time::timeout(DEADLINE, what).await;
    done.expect("in time")
}

/// The newest version that is served.
fn newest<R: RequestResponsePair>() -> i16 {
    let api = APIS.iter().find(|api| api.key == R::API_KEY.value());
    api.expect("it is served").max
}

async fn answer<R: RequestResponsePair>(started: Started) -> R::Response {
    let answer = soon(started.outcome()).await.expect("an answer");
    let frame = answer.to_vec().split_off(frame::LENGTH_PREFIX);
    let limits = frame::response_limits(FRAME_BYTES);
    let answer = frame::decode_response(frame.into(), CORRELATION_ID, newest::<R>(), limits);
    answer.expect("what was just encoded")
}

fn produce() -> ProduceRequest {
    let mut builder = RecordBatchBuilder::new();
    builder.append(1, None, Some(b"x"), &[]).expect("a record");
    message!(ProduceRequest {
        acks: 1,
        timeout_ms: PATIENCE_MS,
        topic_data: vec![message!(TopicProduceData {
            topic_id: TOPIC.into(),
            partition_data: vec![message!(PartitionProduceData {
                records: Some(builder.build().expect("a batch")),
            })],
        })],
    })
}

fn fetch(replica_state: ReplicaState) -> FetchRequest {
    message!(FetchRequest {
        replica_state,
        max_wait_ms: PATIENCE_MS,
        max_bytes: 1 << 20,
        session_epoch: -1,
        topics: vec![message!(FetchTopic {
            topic_id: TOPIC.into(),
            partitions: vec![message!(FetchPartition {
                current_leader_epoch: 1,
                partition_max_bytes: 1 << 20,
            })],
        })],
    })
}

#[tokio::test]
async fn who_comes_to_a_new_leader_before_it_knows_waits_and_is_served() {
    let lagging = Lagging::start().await;
    lagging.led_by(OTHER, 0).await;
    lagging.catch_up().await;
    lagging.led_by(ME, 1).await;
    let produced = lagging.ask(&produce());
    assert!(matches!(produced, Started::Held(_)), "the next must wait");
    let consumed = lagging.ask(&fetch(ReplicaState::default()));
    let mut follow = fetch(message!(ReplicaState {
        replica_id: OTHER.value(),
        replica_epoch: lagging.other.1.value(),
    }));
    follow.unknown_tagged_fields = tags::one(tags::INCARNATION, OTHER_INCARNATION.into());
    let followed = lagging.ask(&follow);
    lagging.catch_up().await;
    let answer_to_produce = answer::<ProduceRequest>(produced).await;
    let part = &answer_to_produce.responses[0].partition_responses[0];
    assert_eq!((part.error_code, part.base_offset), (0, 0), "a producer");
    for (reader, started) in [("a consumer", consumed), ("a follower", followed)] {
        let answer: FetchResponse = answer::<FetchRequest>(started).await;
        let part = &answer.responses[0].partitions[0];
        let codes = (answer.error_code, part.error_code);
        assert_eq!(codes, (0, ErrorCode::None.code()), "{reader}");
    }
    // Whoever comes now waits for nothing.
    assert!(matches!(lagging.ask(&produce()), Started::Ready(_)));
}

#[tokio::test]
async fn a_broker_that_has_yet_to_step_down_names_the_leader_of_the_newest_image() {
    let lagging = Lagging::start().await;
    lagging.led_by(ME, 0).await;
    lagging.catch_up().await;
    lagging.led_by(OTHER, 1).await;
    let mut hints = LeaderHints::new(&lagging.context());
    let named = hints.leader(TopicName::Id(TOPIC), 0);
    // By what it has applied it would name itself, and the client would come again.
    assert_eq!(named, Some((OTHER, LeaderEpoch::new(1))));
    let endpoints = hints.endpoints();
    let endpoints: Vec<BrokerId> = endpoints.iter().map(|endpoint| endpoint.id).collect();
    assert_eq!(endpoints, [OTHER]);
}
