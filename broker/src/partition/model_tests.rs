//! Replicas of one partition, without a network: random appends, transactions, fetches,
//! elections, crashes and proposals, and after every step that nothing acknowledged is lost
//! and that no reader of committed records sees into an open transaction.

use super::{tests::replica, *};
use crate::time::Monotonic;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use std::{collections::BTreeMap, sync::Arc};
use yuxi_controller::{decide::leaders::first_state, keys::PartitionState};
use yuxi_protocol::{
    ids::{BrokerEpoch, ProducerEpoch, ProducerId},
    record::{BatchHeader, BatchView, RecordBatchBuilder, batch::NO_SEQUENCE, batches},
};

const REPLICAS: [i32; 3] = [1, 2, 3];
const MIN_ISR: usize = 2;
const STEPS: usize = 400;

/// The cluster's truth, as the controller would hold it, and its replicas.
struct Model {
    random: StdRng,
    directory: tempfile::TempDir,
    state: PartitionState,
    replicas: BTreeMap<i32, Option<Replica>>,
    /// Every record that was acknowledged: its offset and value.
    acknowledged: BTreeMap<i64, u64>,
    waiting: Vec<(i64, u64, AckReceiver)>,
    next_value: u64,
    now_ms: i64,
    /// The largest high watermark that was told in an epoch, by replica.
    high_watermarks: BTreeMap<(i32, i32), Offset>,
    /// How often a transaction was seen to hold readers of committed records back.
    held_back: usize,
}

struct Replica {
    partition: Arc<Partition>,
    broker_epoch: i64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let ids: Vec<BrokerId> = REPLICAS.map(BrokerId::new).to_vec();
        let mut model = Self {
            random: StdRng::seed_from_u64(seed),
            directory: tempfile::tempdir().expect("a directory"),
            state: first_state(ids, &|_| true).expect("all may lead"),
            replicas: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            waiting: Vec::new(),
            next_value: 0,
            now_ms: 1,
            high_watermarks: BTreeMap::new(),
            held_back: 0,
        };
        for id in REPLICAS {
            model.start(id, 1);
        }
        model
    }

    fn path(&self, id: i32) -> std::path::PathBuf {
        self.directory.path().join(format!("{id}"))
    }

    fn start(&mut self, id: i32, broker_epoch: i64) {
        let partition = replica(
            &self.path(id),
            BrokerId::new(id),
            &[("min.insync.replicas", "2"), ("segment.bytes", "2000")],
        );
        let replica = Replica {
            partition: Arc::new(partition),
            broker_epoch,
        };
        self.replicas.insert(id, Some(replica));
        self.learn(id);
    }

    fn replica(&self, id: i32) -> Option<&Replica> {
        self.replicas.get(&id)?.as_ref()
    }

    /// The replica hears of the state as it is now.
    fn learn(&self, id: i32) {
        if let Some(replica) = self.replica(id) {
            let incarnation = |other: BrokerId| {
                let replica = self.replica(other.value())?;
                Some(BrokerEpoch::new(replica.broker_epoch))
            };
            replica
                .partition
                .forget_gone_followers(incarnation, |other| incarnation(other).is_some());
            if self.state.leader.value() == id {
                replica
                    .partition
                    .become_leader(&self.state, Monotonic::new(self.now_ms));
            } else {
                replica.partition.become_follower(&self.state);
            }
        }
    }

    fn step(&mut self) {
        self.now_ms += 1;
        let id = *REPLICAS.choose(&mut self.random).expect("a replica");
        match self.random.random_range(0..100) {
            0..35 => self.append(id),
            35..80 => self.fetch(id),
            80..88 => self.learn(id),
            88..92 => self.propose(id),
            92..95 => self.crash(id),
            _ => {
                if self.replica(id).is_none() {
                    let now = self.now_ms;
                    self.start(id, now);
                }
            }
        }
        self.settle();
        self.check();
    }

    /// Whoever believes that it leads takes it.
    fn append(&mut self, id: i32) {
        let value = self.next_value;
        let producer_id = ProducerId::new(self.random.random_range(1..=3));
        let transactional = self.random.random_bool(0.5);
        let commit = self.random.random_bool(0.5);
        let ends = self.random.random_bool(0.15);
        let Some(replica) = self.replica(id) else {
            return;
        };
        if ends {
            let marker = TxnMarker {
                producer_id,
                producer_epoch: ProducerEpoch::new(0),
                coordinator_epoch: 0,
                commit,
                transaction_version: 0,
            };
            // Whoever believes that it leads takes it, and nobody waits for it here.
            let _ = replica.partition.append_marker(&marker, self.now_ms);
            return;
        }
        let mut builder = RecordBatchBuilder::new();
        if transactional {
            let epoch = ProducerEpoch::new(0);
            builder = builder
                .producer(producer_id, epoch, NO_SEQUENCE)
                .transactional();
        }
        builder
            .append(self.now_ms, None, Some(&value.to_be_bytes()), &[])
            .expect("a record");
        let mut batch = Admitted::own(builder.build().expect("a batch"), 1);
        if transactional
            && let Some(guard) = replica.partition.needs_verification(
                producer_id,
                ProducerEpoch::new(0),
                NO_SEQUENCE,
            )
        {
            batch = batch.verified(guard);
        }
        let Ok(appended) = replica
            .partition
            .append(&batch, RequiredAcks::All, self.now_ms)
        else {
            return;
        };
        self.next_value += 1;
        match appended.ack {
            Ack::Now => {
                self.acknowledged
                    .insert(appended.base_offset.value(), value);
            }
            Ack::Later(ack) => self
                .waiting
                .push((appended.base_offset.value(), value, ack)),
        }
    }

    /// One fetch of a follower from whom it believes in, answered at once or lost.
    fn fetch(&mut self, id: i32) {
        let is_lost = self.random.random_bool(0.1);
        // A zombie is asked by whoever has not heard of the new leader.
        let leader = if self.random.random_bool(0.9) {
            self.state.leader.value()
        } else {
            *REPLICAS.choose(&mut self.random).expect("a replica")
        };
        let (Some(follower), Some(leader)) = (
            self.replica(id),
            self.replica(leader).filter(|_| leader != id),
        ) else {
            return;
        };
        let epoch = follower.partition.state().leader_epoch;
        let Some(position) = follower.partition.position(epoch) else {
            return;
        };
        let read = Read {
            from: position.offset,
            max_bytes: 300,
            at_least_one_batch: true,
            isolation: Isolation::Uncommitted,
            leader_epoch: position.leader_epoch,
            last_fetched_epoch: position.last_epoch,
            leader_only: false,
        };
        let asking = Follower {
            id: BrokerId::new(id),
            broker_epoch: BrokerEpoch::new(follower.broker_epoch),
            is_active: true,
            log_start: position.log_start,
            news: &Arc::default(),
        };
        let max = MaxLag {
            now: Monotonic::new(self.now_ms),
            lag_ms: 40,
        };
        let Ok(answer) = leader.partition.read_as_leader_of(asking, read, max) else {
            return;
        };
        if is_lost {
            return;
        }
        if let Some(divergence) = answer.divergence {
            if let Some(cut) = follower.partition.cut_for(&position, divergence) {
                follower
                    .partition
                    .cut(&position, cut, self.now_ms)
                    .expect("cut");
            }
        } else {
            let records = answer
                .records
                .as_ref()
                .map_or(&[][..], |slice| slice.as_bytes());
            let taken = follower.partition.take(
                FromLeader {
                    position,
                    high_watermark: answer.high_watermark,
                    log_start: answer.log_start_offset,
                    records,
                },
                self.now_ms,
            );
            assert!(
                taken
                    .expect("taken")
                    .is_none_or(|taken| taken.error.is_none())
            );
        }
    }

    /// A leader proposes what is due; the controller decides at once or never hears of it.
    fn propose(&mut self, id: i32) {
        let max = MaxLag {
            now: Monotonic::new(self.now_ms),
            lag_ms: 40,
        };
        let Some(replica) = self.replica(id) else {
            return;
        };
        let Some(proposal) = replica.partition.propose_isr(max) else {
            return;
        };
        let partition = Arc::clone(&replica.partition);
        let current = proposal.leader_epoch == self.state.leader_epoch
            && proposal.partition_epoch == self.state.partition_epoch
            && self.state.leader.value() == id;
        let alive = proposal.isr.iter().all(|(member, epoch)| {
            member.value() == id
                || self.replica(member.value()).is_some_and(|replica| {
                    epoch.is_none_or(|epoch| epoch.value() == replica.broker_epoch)
                })
        });
        if !alive {
            partition.proposal_decided(&proposal, &ProposalOutcome::Refused);
        } else if current {
            self.change(proposal.isr.iter().map(|(member, _)| *member).collect());
            // The answer may be lost: the image tells it later.
            if self.random.random_bool(0.5) {
                let outcome = ProposalOutcome::Committed(self.state.clone());
                partition.proposal_decided(&proposal, &outcome);
            }
        }
    }

    /// The controller's rules: who leaves below min ISR stays eligible (I9).
    fn change(&mut self, isr: Vec<BrokerId>) {
        let mut elr: Vec<BrokerId> = self.state.elr.clone();
        elr.extend(self.state.isr.iter().copied());
        elr.retain(|id| !isr.contains(id));
        elr.dedup();
        if isr.len() >= MIN_ISR {
            elr.clear();
        }
        self.state.isr = isr;
        self.state.elr = elr;
        self.state.partition_epoch += 1;
        let leader = self.state.leader;
        let may_lead = |id: &BrokerId| self.replica(id.value()).is_some();
        if !self.state.isr.contains(&leader) || !may_lead(&leader) {
            let next = self.state.isr.iter().copied().find(may_lead);
            let eligible = self.state.elr.iter().copied().find(may_lead);
            let elected = match (next, eligible) {
                (Some(next), _) => next,
                (None, Some(eligible)) => {
                    self.state.isr = vec![eligible];
                    self.state.elr.retain(|&id| id != eligible);
                    eligible
                }
                (None, None) => BrokerId::NONE,
            };
            if elected != leader {
                self.state.leader = elected;
                self.state.leader_epoch = LeaderEpoch::new(self.state.leader_epoch.value() + 1);
            }
        }
    }

    /// As `kill -9`: what was written stays, the process's knowledge is gone.
    fn crash(&mut self, id: i32) {
        if self.replica(id).is_none() {
            return;
        }
        self.replicas.insert(id, None);
        // A new process learns the high watermark anew.
        self.high_watermarks
            .retain(|&(replica, _), _| replica != id);
        let mut isr = self.state.isr.clone();
        isr.retain(|member| member.value() != id);
        self.change(isr);
    }

    /// After a restart of the last one there may be somebody to lead.
    fn settle(&mut self) {
        if self.state.leader == BrokerId::NONE {
            self.change(self.state.isr.clone());
        }
        let mut acknowledged = Vec::new();
        self.waiting
            .retain_mut(|(offset, value, ack)| match ack.try_recv() {
                Ok(Ok(())) => {
                    acknowledged.push((*offset, *value));
                    false
                }
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => false,
                Err(oneshot::error::TryRecvError::Empty) => true,
            });
        self.acknowledged.extend(acknowledged);
    }

    fn check(&mut self) {
        let ids: Vec<i32> = REPLICAS.to_vec();
        for id in ids {
            let Some(replica) = self.replica(id) else {
                continue;
            };
            let partition = Arc::clone(&replica.partition);
            let (offsets, epoch) = {
                let state = partition.state();
                (state.offsets(), state.leader_epoch.value())
            };
            let before = self
                .high_watermarks
                .insert((id, epoch), offsets.high_watermark);
            assert!(
                before.is_none_or(|before| before <= offsets.high_watermark),
                "I14: the high watermark of {id} went back in epoch {epoch}"
            );
            let first_open = first_open_transaction(&partition, offsets.log_end);
            assert!(
                offsets.last_stable <= offsets.high_watermark
                    && first_open.is_none_or(|first| offsets.last_stable <= first),
                "I14: {id} shows a transaction that is open since {first_open:?}: {offsets:?}"
            );
            if first_open.is_some_and(|first| first < offsets.high_watermark) {
                self.held_back += 1;
            }
            let records = records_of(&partition, offsets.log_end);
            for (offset, value) in &self.acknowledged {
                // Whoever may lead next has everything.
                let may_lead = self
                    .state
                    .isr
                    .iter()
                    .chain(&self.state.elr)
                    .any(|member| member.value() == id);
                let found = records.get(offset);
                if may_lead {
                    assert_eq!(
                        found,
                        Some(value),
                        "replica {id} lost acknowledged {offset}"
                    );
                } else if *offset < offsets.high_watermark.value() {
                    assert_eq!(found, Some(value), "replica {id} shows another {offset}");
                }
            }
        }
    }
}

/// The first offset of the oldest transaction without a marker, as the batches say.
fn first_open_transaction(partition: &Partition, end: Offset) -> Option<Offset> {
    let mut open = BTreeMap::new();
    each_batch(partition, end, |batch| {
        let header: &BatchHeader = batch.header();
        let producer = header.producer_id.value();
        if header.is_control() {
            open.remove(&producer);
        } else if header.is_transactional() {
            open.entry(producer).or_insert(header.base_offset);
        }
    });
    open.into_values().min()
}

fn records_of(partition: &Partition, end: Offset) -> BTreeMap<i64, u64> {
    let mut records = BTreeMap::new();
    each_batch(partition, end, |batch| {
        if batch.header().is_control() {
            return;
        }
        for record in batch.records(1 << 20) {
            let record = record.expect("a record");
            let value = record.value.as_deref().expect("a value");
            let value = u64::from_be_bytes(value.try_into().expect("8 bytes"));
            records.insert(record.offset.value(), value);
        }
    });
    records
}

fn each_batch(partition: &Partition, end: Offset, mut visit: impl FnMut(&BatchView<'_>)) {
    partition.with_log(|log, _| {
        let mut at = log.log_start_offset();
        while at < end {
            let read = log.read(at, 1 << 20, true, end).expect("read");
            let Some(slice) = read.slice else { break };
            for batch in batches(slice.as_bytes()) {
                let batch = batch.expect("a batch");
                at = batch.header().next_offset();
                visit(&batch);
            }
        }
    });
}

#[test]
fn whatever_happens_who_may_lead_has_every_acknowledged_record() {
    let seeds: Vec<u64> = match std::env::var("YUXI_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..20).collect(),
    };
    let (mut acknowledged, mut held_back) = (0, 0);
    for seed in seeds {
        eprintln!("YUXI_SEED={seed}");
        let mut model = Model::new(seed);
        for _ in 0..STEPS {
            model.step();
        }
        acknowledged += model.acknowledged.len();
        held_back += model.held_back;
    }
    assert!(
        held_back > 100,
        "transactions held readers back {held_back} times only"
    );
    assert!(acknowledged > 100, "only {acknowledged} were acknowledged");
}
