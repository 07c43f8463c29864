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
use yuxi_controller::keys::{LeaderRecovery, PartitionState};
use yuxi_protocol::ids::{BrokerId, TopicPartition};

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
