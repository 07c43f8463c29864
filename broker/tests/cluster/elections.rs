//! Who leads when nobody in sync is left, and partitions that move while they are written.

use crate::support::{Cluster, load, produce, soon, wait_for};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use yuxi_client::{
    Admin,
    admin::{ConfigOp, ConfigResource},
};
use yuxi_controller::{
    daemon::Daemon,
    keys::{Key, LeaderRecovery, PartitionState},
    settings::ServerSettings,
    store::{Commit, MetadataStore as _, Operation, Transaction},
};
use yuxi_protocol::{
    ids::{BrokerId, TopicPartition},
    seal::SealHolder,
};

fn ids(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().copied().map(BrokerId::new).collect()
}

fn leads(id: i32) -> impl Fn(&PartitionState) -> bool {
    move |state| state.leader.value() == id
}

async fn texts(cluster: &Cluster) -> Vec<String> {
    let values = cluster.values("t", 0).await.into_iter();
    values.map(|(_, value)| value).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_not_in_sync_leads_only_once_the_topic_allows_it_and_then_recovers() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster
        .create_topic("t", &[1, 2], &[("min.insync.replicas", "1")])
        .await;
    let producer = cluster.producer().await;
    produce(&producer, "t", "both").await.expect("acknowledged");
    cluster.kill(2).await;
    let alone = |state: &PartitionState| state.isr == ids(&[1]);
    cluster.until("t", 0, "an ISR of one", alone).await;
    produce(&producer, "t", "alone")
        .await
        .expect("acknowledged");
    cluster.kill(1).await;
    cluster.until("t", 0, "no leader", leads(-1)).await;
    cluster.start_broker(2).await;
    let state = cluster.state("t", 0).await.expect("a partition");
    assert_eq!(state.leader, BrokerId::NONE, "it lacks a record");
    assert_eq!(state.elr, ids(&[1]));

    let admin = Admin::new(cluster.connect().await);
    let allowed = ConfigOp::Set("unclean.leader.election.enable".into(), "true".into());
    let (topic, changes) = (ConfigResource::Topic("t".into()), [allowed]);
    let altered = admin.alter_configs(&topic, &changes, false);
    soon("a setting", altered).await.expect("altered");
    cluster
        .until("t", 0, "a leader that has recovered", |state| {
            leads(2)(state) && state.leader_recovery == LeaderRecovery::Recovered
        })
        .await;
    // The first producer goes on behind a record that this leader does not have.
    let producer = cluster.producer().await;
    produce(&producer, "t", "new").await.expect("acknowledged");
    cluster.start_broker(1).await;
    cluster
        .until("t", 0, "both in sync", |state| state.isr.len() == 2)
        .await;
    assert_eq!(texts(&cluster).await, ["both", "new"]);
    assert_eq!(cluster.log_bytes(1, "t", 0), cluster.log_bytes(2, "t", 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eligible_replica_outside_the_isr_leads_and_nothing_is_lost() {
    let mut cluster = Cluster::start(4, &[]).await;
    cluster.create_topic("t", &[1, 2, 3], &[]).await;
    let producer = cluster.producer().await;
    produce(&producer, "t", "all").await.expect("acknowledged");
    cluster.kill(3).await;
    let two = |state: &PartitionState| state.isr == ids(&[1, 2]);
    cluster.until("t", 0, "an ISR of two", two).await;
    produce(&producer, "t", "two").await.expect("acknowledged");
    cluster.kill(2).await;
    let state = cluster
        .until("t", 0, "an ISR of one", |state| state.isr == ids(&[1]))
        .await;
    assert_eq!(state.elr, ids(&[2]), "I9");
    cluster.kill(1).await;
    cluster.until("t", 0, "no leader", leads(-1)).await;
    cluster.start_broker(3).await;
    let state = cluster.state("t", 0).await.expect("a partition");
    assert_eq!(
        state.leader,
        BrokerId::NONE,
        "3 lacks what the others acknowledged"
    );
    cluster.start_broker(2).await;
    let state = cluster.until("t", 0, "the eligible leader", leads(2)).await;
    assert_eq!(state.leader_recovery, LeaderRecovery::Recovered);
    assert_eq!(texts(&cluster).await, ["all", "two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_moves_while_it_is_written_though_the_controller_changes() {
    let mut cluster = Cluster::start(4, &[]).await;
    let controller = async |cluster: &Cluster| {
        let image = cluster.image().await;
        image.controller().map(|controller| controller.node_id)
    };
    let first = wait_for("a controller", async || controller(&cluster).await).await;
    let others: Vec<i32> = (1..=4).filter(|&id| id != first.value()).collect();
    let [leaving, staying, coming] = others[..] else {
        panic!("three others: {others:?}");
    };
    cluster
        .create_topic("t", &[leaving, staying], &[("min.insync.replicas", "1")])
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(Arc::new(cluster.producer().await), Arc::clone(&stop));
    cluster.kill(coming).await;
    let admin = Admin::new(cluster.connect().await);
    let wanted = BTreeMap::from([(TopicPartition::new("t", 0), Some(ids(&[staying, coming])))]);
    let altered = soon("an answer", admin.alter_reassignments(&wanted, false)).await;
    altered.expect("begun");
    let both = cluster
        .until("t", 0, "a reassignment", PartitionState::is_reassigning)
        .await;
    assert_eq!(both.adding_replicas, ids(&[coming]));
    assert_eq!(both.removing_replicas, ids(&[leaving]));
    cluster.kill(first.value()).await;
    wait_for("another controller", async || {
        controller(&cluster).await.filter(|&id| id != first)
    })
    .await;
    cluster.start_broker(coming).await;
    cluster
        .until("t", 0, "the end of the reassignment", |state| {
            !state.is_reassigning() && state.replicas == ids(&[staying, coming])
        })
        .await;
    stop.store(true, Ordering::SeqCst);
    let acknowledged = soon("the end of the load", load).await.expect("no error");
    assert!(acknowledged > 0);
    let expected: Vec<String> = (0..acknowledged).map(|value| value.to_string()).collect();
    assert_eq!(texts(&cluster).await, expected, "each once and in order");
    wait_for("identical logs", async || {
        let same = cluster.log_bytes(staying, "t", 0) == cluster.log_bytes(coming, "t", 0);
        same.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_who_holds_the_seal_and_since_when() {
    let mut cluster = Cluster::start(2, &[]).await;
    let held = async |cluster: &Cluster, changed_from: Option<SealHolder>| {
        wait_for("a controller", async || {
            let told = Admin::new(cluster.connect().await).describe_cluster().await;
            let told = told.expect("an answer");
            if told.seal.is_some() && told.seal != changed_from {
                return Some(told);
            }
            None
        })
        .await
    };
    let first = held(&cluster, None).await;
    let seal = first.seal.expect("a controller");
    let image = cluster.image().await;
    let truth = image.controller().expect("a controller");
    assert_eq!((seal.node, seal.epoch), (truth.node_id, truth.epoch));
    assert_eq!(first.controller, Some(seal.node));

    cluster.kill(seal.node.value()).await;
    let next = held(&cluster, Some(seal)).await;
    let next = next.seal.expect("a controller");
    assert_ne!(next.node, seal.node);
    assert!(next.epoch > seal.epoch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_no_broker_is_told_as_what_it_is() {
    let mut cluster = Cluster::start(0, &[("controller.candidate", "false")]).await;
    let settings =
        ServerSettings::from_properties("node.id=7\nlisteners=PLAINTEXT://127.0.0.1:0\n", &[]);
    let daemon = Daemon::start_with_store(settings.expect("valid settings"), cluster.store.clone());
    let _daemon = soon("a daemon", daemon).await.expect("a daemon");
    cluster.start_broker(1).await;
    let told = Admin::new(cluster.connect().await).describe_cluster().await;
    let told = told.expect("an answer");
    assert_eq!(told.seal.map(|seal| seal.node), Some(BrokerId::new(7)));
    assert_eq!(
        told.controller,
        Some(BrokerId::new(1)),
        "Kafka's field names a broker"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_as_soon_as_it_is_let_in_again_is_still_eligible() {
    let mut cluster = Cluster::start(3, &[]).await;
    cluster.create_topic("t", &[1, 2], &[]).await;
    let producer = cluster.producer().await;
    produce(&producer, "t", "both").await.expect("acknowledged");
    let registered = cluster.image().await;
    let registered = registered.registration(BrokerId::new(2)).expect("it runs");
    let fenced = cluster.store.commit(Transaction {
        guards: Vec::new(),
        operations: vec![Operation::Delete {
            key: Key::Broker(registered.id).to_string(),
        }],
    });
    assert!(matches!(
        soon("a fencing", fenced).await,
        Ok(Commit::Applied(_))
    ));
    wait_for("another registration", async || {
        let image = cluster.image().await;
        let broker = image.registration(registered.id)?;
        (broker.epoch != registered.epoch && image.is_admitted(broker)).then_some(())
    })
    .await;
    cluster.kill(2).await;
    let alone = |state: &PartitionState| state.isr == ids(&[1]) && state.elr == ids(&[2]);
    cluster.until("t", 0, "an eligible replica", alone).await;
    cluster.kill(1).await;
    cluster.until("t", 0, "no leader", leads(-1)).await;
    cluster.start_broker(2).await;
    cluster.until("t", 0, "the eligible leader", leads(2)).await;
    cluster.start_broker(1).await;
    let full = |state: &PartitionState| state.isr.len() == 2;
    cluster.until("t", 0, "a full ISR", full).await;
    assert_eq!(texts(&cluster).await, ["both"]);
}
