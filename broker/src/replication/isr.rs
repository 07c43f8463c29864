//! Asks the controller for the in-sync replicas that leaders here see.
//!
//! One task, one call at a time, with everything that is due by then. A proposal that got
//! no answer is sent again until the controller has decided or the partition's state has
//! moved on; meanwhile the partition counts who is in both the old and the new set (I3).

use super::{Key, key_of};
use crate::{
    node::Node,
    partition::{MaxLag, Partition, ProposalOutcome},
    sync::lock,
    time,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};
use yuxi_controller::{
    ControllerError,
    decide::isr::{IsrProposal, IsrProposals},
};

/// The rest after a call that failed, doubled up to the second.
const FIRST_REST: Duration = Duration::from_millis(20);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// The most proposals in one call.
const MOST_AT_ONCE: usize = 4096;

/// What awaits the task; at most one entry a partition.
#[derive(Default)]
pub(super) struct IsrProposer {
    due: Mutex<HashMap<Key, Arc<Partition>>>,
    wake: Notify,
}

type Outstanding = Vec<(Arc<Partition>, IsrProposal)>;

impl IsrProposer {
    pub(super) fn change_due(&self, partition: &Arc<Partition>) {
        if lock(&self.due)
            .insert(key_of(partition), Arc::clone(partition))
            .is_none()
        {
            self.wake.notify_one();
        }
    }

    pub(super) async fn run(&self, node: &Arc<Node>) {
        let lag_ms = node.settings.replica_lag_time_max_ms;
        let period = Duration::from_millis(u64::try_from(lag_ms / 2).unwrap_or(1).max(1));
        let mut next_look = Instant::now() + period;
        let mut outstanding = Outstanding::new();
        let mut rest = FIRST_REST;
        loop {
            if outstanding.is_empty() && lock(&self.due).is_empty() {
                let _ = timeout_at(next_look, self.wake.notified()).await;
            }
            let looks_at_all = Instant::now() >= next_look;
            let mut due: Vec<_> = lock(&self.due).drain().map(|(_, due)| due).collect();
            if looks_at_all {
                // Who lags says nothing, so all are looked at.
                next_look = Instant::now() + period;
                due = node.replicas.all();
            }
            let max = MaxLag {
                now: time::monotonic(),
                lag_ms,
            };
            for partition in due {
                if let Some(proposal) = partition.propose_isr(max) {
                    outstanding.push((partition, proposal));
                }
            }
            outstanding.retain(|(partition, proposal)| partition.is_proposed(proposal));
            if outstanding.is_empty() {
                continue;
            }
            let (unanswered, refused) = propose(node, outstanding).await;
            outstanding = unanswered;
            if outstanding.is_empty() && !refused {
                rest = FIRST_REST;
            } else {
                sleep(rest).await;
                rest = (rest * 2).min(LONGEST_REST);
            }
        }
    }
}

/// Sends the proposals; returns those to be sent again, and whether any was refused.
async fn propose(node: &Arc<Node>, mut outstanding: Outstanding) -> (Outstanding, bool) {
    let Some(registration) = node
        .controller
        .image()
        .registration(node.broker_id)
        .map(|registration| registration.epoch)
    else {
        // The session was lost; it is about to register anew.
        return (outstanding, false);
    };
    let mut later = outstanding.split_off(outstanding.len().min(MOST_AT_ONCE));
    let answers = node
        .controller
        .alter_partitions(IsrProposals {
            broker: node.broker_id,
            broker_epoch: registration,
            partitions: outstanding
                .iter()
                .map(|(_, proposal)| proposal.clone())
                .collect(),
        })
        .await;
    let mut refused = false;
    for ((partition, proposal), answer) in outstanding.into_iter().zip(answers) {
        match answer {
            Ok(committed) => {
                let outcome = ProposalOutcome::Committed(committed);
                let change = partition.proposal_decided(&proposal, &outcome);
                tracing::debug!(partition = %partition.id(), change, "the in-sync replicas changed");
                node.metrics.isr_changed(change);
            }
            Err(ControllerError::IneligibleReplica) => {
                refused = true;
                partition.proposal_decided(&proposal, &ProposalOutcome::Refused);
            }
            Err(error) if is_decided(&error) => {
                tracing::info!(
                    partition = %partition.id(), epoch = %proposal.leader_epoch, %error,
                    "a change of the in-sync replicas was not made"
                );
                refused = true;
            }
            Err(error) => {
                tracing::debug!(partition = %partition.id(), %error, "a proposal is sent again");
                later.push((partition, proposal));
            }
        }
    }
    (later, refused)
}

/// Whether another attempt would end alike. The image will show what holds, and until then
/// the proposal counts, for an earlier attempt may have been applied.
fn is_decided(error: &ControllerError) -> bool {
    matches!(
        error,
        ControllerError::FencedLeaderEpoch
            | ControllerError::InvalidUpdateVersion
            | ControllerError::UnknownTopicId(_)
            | ControllerError::UnknownTopicOrPartition
            | ControllerError::InvalidRequest(_)
    )
}
