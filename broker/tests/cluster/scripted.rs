//! Requests that no client of ours would send: those of a broker of which only the
//! registration is real, and those of consumers in a rack.

use crate::support::{Cluster, soon};
use std::{sync::Arc, time::Duration};
use yuxi_client::{Connection, protocol::messages::fetch_response::PartitionData};
use yuxi_controller::{
    Campaign, Controller, ControllerOptions, Endpoint, Registration, settings::ServerSettings,
};
use yuxi_protocol::{
    codec::StrBytes,
    ids::{BrokerEpoch, BrokerId, TopicId},
    message,
    messages::{
        FetchRequest, FetchResponse,
        fetch_request::{FetchPartition, FetchTopic, ReplicaState},
    },
    tags,
};

/// A registered broker that does what the test makes it do, and nothing else.
pub(crate) struct Scripted {
    id: i32,
    epoch: BrokerEpoch,
    incarnation: String,
    /// It keeps the registration.
    _controller: Controller,
}

impl Scripted {
    pub(crate) async fn register(cluster: &Cluster, id: i32) -> Self {
        let text = format!("node.id={id}\nlog.dirs=/nowhere\n");
        let settings = ServerSettings::from_properties(&text, &[]).expect("valid settings");
        let options = ControllerOptions {
            node_id: BrokerId::new(id),
            settings: Arc::new(settings),
            session_ttl: Duration::from_hours(1),
            endpoint: None,
            campaign: Campaign::Never,
            is_alone: false,
            cluster_id: None,
            seed: None,
        };
        let controller = soon(
            "a controller",
            Controller::start(cluster.store.clone(), options),
        )
        .await
        .expect("a controller");
        let incarnation = format!("scripted-{id}");
        let registration = Registration {
            incarnation: incarnation.clone(),
            // Nobody is there; who was never reached is not taken for dead.
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
            candidate: false,
            damaged: false,
        };
        let epoch = soon("a registration", controller.register_broker(registration))
            .await
            .expect("let in");
        Self {
            id,
            epoch,
            incarnation,
            _controller: controller,
        }
    }

    /// One that knows all of another's numbers.
    pub(crate) fn posing_as(other: Self, incarnation: &str) -> Self {
        Self {
            incarnation: incarnation.to_owned(),
            ..other
        }
    }

    /// Asks the leader of partition 0 for what comes from `offset` on, which says that it
    /// has everything before.
    pub(crate) async fn fetch(
        &self,
        cluster: &Cluster,
        leader: &Connection,
        topic: &str,
        offset: i64,
    ) -> PartitionData {
        let state = cluster.state(topic, 0).await.expect("a partition");
        let request = message!(FetchRequest {
            replica_state: message!(ReplicaState {
                replica_id: self.id,
                replica_epoch: self.epoch.value(),
            }),
            topics: vec![message!(FetchTopic {
                topic_id: topic_id(cluster, topic).await.into(),
                partitions: vec![message!(FetchPartition {
                    current_leader_epoch: state.leader_epoch.value(),
                    fetch_offset: offset,
                    log_start_offset: 0,
                    partition_max_bytes: 1 << 20,
                })],
            })],
            session_epoch: -1,
            max_bytes: 1 << 20,
            unknown_tagged_fields: tags::one(
                tags::INCARNATION,
                self.incarnation.clone().into_bytes().into(),
            ),
        });
        only_partition(fetch(leader, request).await)
    }
}

/// As a consumer in `rack` reads partition 0.
pub(crate) async fn read_from(
    cluster: &Cluster,
    broker: &Connection,
    (topic, offset): (&str, i64),
    rack: &str,
) -> FetchResponse {
    let request = message!(FetchRequest {
        topics: vec![message!(FetchTopic {
            topic_id: topic_id(cluster, topic).await.into(),
            partitions: vec![message!(FetchPartition {
                fetch_offset: offset,
                partition_max_bytes: 1 << 20,
            })],
        })],
        session_epoch: -1,
        max_bytes: 1 << 20,
        rack_id: StrBytes::from(rack),
    });
    fetch(broker, request).await
}

async fn fetch(broker: &Connection, request: FetchRequest) -> FetchResponse {
    let answer = soon("an answer", broker.call(|_| request)).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.error_code, 0);
    answer
}

pub(crate) fn only_partition(answer: FetchResponse) -> PartitionData {
    let topic = answer.responses.into_iter().next().expect("a topic");
    topic.partitions.into_iter().next().expect("a partition")
}

pub(crate) async fn topic_id(cluster: &Cluster, topic: &str) -> TopicId {
    cluster.image().await.topic(topic).expect("a topic").id
}

/// A connection to the broker at this place of the list.
pub(crate) async fn connect_to(cluster: &Cluster, at: usize) -> Connection {
    let config = cluster.config();
    soon(
        "a connection",
        Connection::open(&config.bootstrap[at], &config),
    )
    .await
    .expect("a connection")
}
