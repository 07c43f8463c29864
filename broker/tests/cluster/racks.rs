//! Groups whose members are in racks, as the brokers are.

use crate::support::{Cluster, soon, wait_for};
use std::collections::BTreeMap;
use yuxi_client::{Admin, Connection, admin::NewTopic};
use yuxi_protocol::{
    error_code::ErrorCode,
    ids::BrokerId,
    message,
    messages::{
        ConsumerGroupHeartbeatRequest, FindCoordinatorRequest,
        consumer_group_heartbeat_request::TopicPartitions,
    },
};

const GROUP: &str = "g";
const OFFSETS: &str = "__consumer_offsets";

/// A member of the consumer protocol that takes what it is given.
struct Member {
    id: &'static str,
    rack: &'static str,
    epoch: i32,
    owned: Vec<TopicPartitions>,
}

impl Member {
    fn new(id: &'static str, rack: &'static str) -> Self {
        Self {
            id,
            rack,
            epoch: 0,
            owned: Vec::new(),
        }
    }

    /// One heartbeat; whether it was heard.
    async fn beat(&mut self, coordinator: &Connection) -> bool {
        let mut request = message!(ConsumerGroupHeartbeatRequest {
            group_id: GROUP.into(),
            member_id: self.id.into(),
            member_epoch: self.epoch,
            rebalance_timeout_ms: -1,
            topic_partitions: Some(self.owned.clone()),
        });
        if self.epoch == 0 {
            request.rack_id = Some(self.rack.into());
            request.rebalance_timeout_ms = 60_000;
            request.subscribed_topic_names = Some(vec!["t".into()]);
        }
        let answer = soon("an answer", coordinator.call(|_| request)).await;
        let answer = answer.expect("an answer");
        let not_yet = [
            ErrorCode::NotCoordinator,
            ErrorCode::CoordinatorNotAvailable,
            ErrorCode::CoordinatorLoadInProgress,
        ];
        if not_yet.iter().any(|code| code.code() == answer.error_code) {
            return false;
        }
        assert_eq!(answer.error_code, 0, "{}: {answer:?}", self.id);
        self.epoch = answer.member_epoch;
        if let Some(assignment) = answer.assignment {
            self.owned = assignment
                .topic_partitions
                .into_iter()
                .map(|topic| {
                    message!(TopicPartitions {
                        topic_id: topic.topic_id,
                        partitions: topic.partitions,
                    })
                })
                .collect();
        }
        true
    }

    fn partitions(&self) -> Vec<i32> {
        let topics = self.owned.iter();
        topics.flat_map(|topic| topic.partitions.clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_read_partitions_that_are_in_their_own_rack() {
    let cluster = Cluster::start(3, &[]).await;
    let config = cluster.config();
    let connect = async |id: i32| {
        let address = &config.bootstrap[id as usize - 1];
        let connection = soon("a connection", Connection::open(address, &config)).await;
        connection.expect("a connection")
    };
    let first = connect(1).await;
    wait_for("the groups' topic", async || {
        let find = first.call(|_| {
            message!(FindCoordinatorRequest {
                coordinator_keys: vec![GROUP.into()],
            })
        });
        soon("an answer", find).await.expect("an answer");
        cluster.state(OFFSETS, 0).await
    })
    .await;
    let partition = yuxi_coordinator::groups::partition_for(GROUP, 3);
    let coordinator = connect(cluster.leader(OFFSETS, partition).await).await;
    // Without their racks the first would get the even ones.
    let mut members = [Member::new("a", "rack-2"), Member::new("b", "rack-1")];
    for member in &mut members {
        wait_for("the group", async || {
            member.beat(&coordinator).await.then_some(())
        })
        .await;
    }
    // It comes when both are there, so that no partition is anybody's yet.
    let mut topic = NewTopic::new("t");
    topic.assignment = [1, 2, 1, 2].map(|id| vec![BrokerId::new(id)]).to_vec();
    let admin = Admin::new(cluster.connect().await);
    let created = soon("a topic", admin.create_topics(&[topic], false)).await;
    created.expect("an answer").remove(0).result.expect("made");
    let shares = wait_for("the assignment", async || {
        for member in &mut members {
            member.beat(&coordinator).await;
        }
        let shares = members.iter().map(|m| (m.id, m.partitions()));
        let shares: BTreeMap<_, _> = shares.collect();
        (shares.values().map(Vec::len).sum::<usize>() == 4).then_some(shares)
    })
    .await;
    assert_eq!(shares["a"], [1, 3], "what broker 2 has");
    assert_eq!(shares["b"], [0, 2], "what broker 1 has");
}
