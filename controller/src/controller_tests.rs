use std::time::Instant;

use yuxi_protocol::ids::PartitionId;

use super::*;
use crate::{
    decide::{
        configs::{ConfigChange, ConfigStep},
        isr::IsrProposal,
        testing::{registration, settings},
    },
    image::TopicChange,
    keys::{ConfigScope, Key, LeaderRecovery},
    store::EmbeddedStore,
};

fn options(node: i32) -> ControllerOptions {
    ControllerOptions {
        node_id: BrokerId::new(node),
        settings: Arc::new(settings()),
        session_ttl: Duration::from_secs(10),
        campaign: Campaign::OnceRegistered,
        seed: Some(7),
    }
}

async fn broker(store: &EmbeddedStore, node: i32) -> (Controller, BrokerEpoch) {
    let controller = Controller::start(store.clone(), options(node))
        .await
        .unwrap();
    let epoch = controller.register_broker(registration()).await.unwrap();
    (controller, epoch)
}

fn topic(name: &str, partitions: i32) -> NewTopic {
    NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: -1,
        assignments: Vec::new(),
        configs: Vec::new(),
    }
}

#[tokio::test]
async fn a_lone_broker_founds_a_cluster_takes_the_seal_and_leads_what_is_created() {
    let (controller, epoch) = broker(&EmbeddedStore::in_memory(), 1).await;
    let image = controller.image();
    assert_eq!(image.cluster_id().unwrap().len(), 22);
    assert_eq!(image.controller().unwrap().node_id, BrokerId::new(1));
    assert_eq!(image.broker(BrokerId::new(1)).unwrap().epoch, epoch);
    let created = controller.create_topics(vec![topic("t", 3)], false).await;
    assert_eq!(created[0].as_ref().unwrap().partitions, 3);
    // The caller finds its change without waiting.
    let state = controller
        .image()
        .partition("t", PartitionId::new(2))
        .unwrap()
        .clone();
    assert_eq!(
        (state.leader, state.isr),
        (BrokerId::new(1), vec![BrokerId::new(1)])
    );
}
