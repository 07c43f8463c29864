//! What the members of 10,000 consumer groups cost the pure coordinator: time for each
//! heartbeat, and memory for each group.
//!
//! `cargo bench -p yuxi-coordinator`; add `-- --test` for a quick run.

use std::{fs, hint::black_box, time::Instant};

use yuxi_coordinator::{
    groups::{
        ClusterView, Effects, GroupConfig, GroupOverrides, GroupRequest, GroupShard,
        RequestContext, Ticket, TopicView,
    },
    time::{Monotonic, Now},
};
use yuxi_protocol::{
    codec::StrBytes, ids::TopicId, message, messages::ConsumerGroupHeartbeatRequest,
};

const GROUPS: usize = 10_000;
const HEARTBEAT_INTERVAL_MS: f64 = 5_000.0;

/// One topic with three partitions.
struct Cluster;

impl ClusterView for Cluster {
    fn version(&self) -> i64 {
        1
    }

    fn topic(&self, _: &str) -> Option<TopicView> {
        Some(TopicView {
            id: TopicId::from_bytes([1; 16]),
            partitions: 3,
        })
    }

    fn topic_name(&self, _: TopicId) -> Option<StrBytes> {
        Some("orders".into())
    }

    fn visit_topic_names(&self, visit: &mut dyn FnMut(&str)) {
        visit("orders");
    }

    fn racks(&self, _: TopicId, _: i32) -> Vec<StrBytes> {
        Vec::new()
    }

    fn group_overrides(&self, _: &str) -> GroupOverrides {
        GroupOverrides::default()
    }
}

fn heartbeat(group: usize, epoch: i32) -> GroupRequest {
    let joins = epoch == 0;
    GroupRequest::ConsumerHeartbeat(message!(ConsumerGroupHeartbeatRequest {
        group_id: format!("group-{group}").into(),
        member_id: format!("member-of-group-{group}").into(),
        member_epoch: epoch,
        rebalance_timeout_ms: if joins { 300_000 } else { -1 },
        subscribed_topic_names: joins.then(|| vec!["orders".into()]),
        topic_partitions: joins.then(Vec::new),
    }))
}

fn send(shard: &mut GroupShard, request: GroupRequest, at_ms: i64) {
    let context = RequestContext {
        api_version: 1,
        client_id: "bench".into(),
        client_host: "/127.0.0.1".into(),
    };
    let now = now(at_ms);
    let effects: Effects = shard.handle(&context, request, Ticket(0), &Cluster, now);
    if effects.records.is_empty() {
        black_box(effects.replies);
    } else {
        black_box(shard.written(effects, now));
    }
}

fn now(at_ms: i64) -> Now {
    Now {
        monotonic: Monotonic::new(at_ms),
        wall_ms: at_ms,
    }
}

/// Resident memory of this process, where the system tells.
fn resident_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn main() {
    let rounds = if std::env::args().any(|argument| argument == "--test") {
        1
    } else {
        20
    };
    let before = resident_kib();
    let mut shard = GroupShard::new(GroupConfig::default(), Box::new(|| [0; 16]));
    shard.loaded(&Cluster, now(0));
    for group in 0..GROUPS {
        send(&mut shard, heartbeat(group, 0), 0);
    }
    if let (Some(before), Some(after)) = (before, resident_kib()) {
        let grown = after.saturating_sub(before);
        println!(
            "{GROUPS} groups of one member: {} MiB, {} bytes each",
            grown / 1024,
            grown * 1024 / GROUPS as u64
        );
    }
    let requests: Vec<GroupRequest> = (0..GROUPS).map(|group| heartbeat(group, 1)).collect();
    let started = Instant::now();
    for round in 1..=rounds {
        for request in &requests {
            send(&mut shard, request.clone(), round * 5_000);
        }
    }
    let each_us = started.elapsed().as_secs_f64() * 1e6 / (GROUPS as f64 * rounds as f64);
    let per_second = GROUPS as f64 / (HEARTBEAT_INTERVAL_MS / 1_000.0);
    println!(
        "{each_us:.2} us a heartbeat: {:.2} % of a core when each comes every 5 s",
        each_us * per_second / 1e4
    );
}
