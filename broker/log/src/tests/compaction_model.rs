//! A compacted log against a model that forgets nothing, under random appends,
//! transactions, rolls, compactions, restarts and crashes in the middle of swaps.

use std::collections::BTreeMap;

use yuxi_protocol::{
    ids::{ProducerEpoch, ProducerId},
    record::{BatchView, Compression, EndMarker, RecordBatchBuilder, batch::batches},
};

use super::{
    compaction::{Seen, go_on, records, swap_in},
    model::Random,
    support::*,
};
use crate::{
    AppendOrigin, CleanupPolicy, CompactionError, KeyMemory, Log, LogConfig, file_io::crash,
};

const PRODUCERS: u64 = 3;
const KEYS: u64 = 12;
const DELETE_RETENTION_MS: i64 = 1000;

/// One record that was ever appended.
struct Appended {
    seen: Seen,
    /// Its place in `Model::transactions`.
    transaction: Option<usize>,
}

#[derive(Default)]
struct Producer {
    sequence: i32,
    transaction: Option<usize>,
}

struct World {
    random: Random,
    fixture: Fixture,
    log: Option<Log>,
    appended: Vec<Appended>,
    /// Whether each transaction was committed, once it has ended.
    transactions: Vec<Option<bool>>,
    producers: Vec<Producer>,
    /// Up to where the log was cleaned, as a checkpoint says.
    cleaned_to: i64,
    /// What lies at or above it has never been cleaned.
    untouched_from: i64,
    now: i64,
    values: u64,
    cleaned: usize,
}

/// The last value of each key; a tombstone is as good as none.
fn last_values<'a>(records: impl Iterator<Item = &'a Seen>) -> BTreeMap<String, String> {
    let mut last = BTreeMap::new();
    for (_, key, value) in records {
        match value {
            Some(value) => last.insert(key.clone(), value.clone()),
            None => last.remove(key),
        };
    }
    last
}

/// What a consumer of committed records makes of what it reads, with the aborted
/// transactions that it is told of.
fn committed(log: &Log, up_to: i64) -> Vec<Seen> {
    let aborted = log.aborted_transactions(offset(0), offset(up_to)).unwrap();
    let all = records(log);
    let mut dropped: Vec<(i64, i64)> = Vec::new();
    let mut open: BTreeMap<i64, i64> = BTreeMap::new();
    let mut ahead = aborted;
    ahead.sort_by_key(|aborted| std::cmp::Reverse(aborted.first_offset));
    for (_, _, bytes) in read_all(log, log.log_start_offset(), 3000) {
        let batch = BatchView::parse(&bytes).unwrap();
        let header = batch.header();
        while let Some(next) = ahead.pop_if(|next| next.first_offset <= header.last_offset()) {
            open.insert(next.producer_id.value(), next.first_offset.value());
        }
        let id = header.producer_id.value();
        if header.is_control() {
            let marker = EndMarker::read(&batch).unwrap();
            if marker.is_some_and(|marker| !marker.commit) {
                open.remove(&id);
            }
        } else if header.is_transactional() && open.contains_key(&id) {
            dropped.push((header.base_offset.value(), header.last_offset().value()));
        }
    }
    let is_dropped = |at: i64| dropped.iter().any(|(from, to)| (*from..=*to).contains(&at));
    let stays = |seen: &Seen| seen.0 < up_to && !is_dropped(seen.0);
    all.into_iter().filter(stays).collect()
}

impl World {
    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn config() -> LogConfig {
        LogConfig {
            cleanup_policy: CleanupPolicy::Compact,
            delete_retention_ms: DELETE_RETENTION_MS,
            producer_id_expiration_ms: i64::MAX,
            segment_bytes: 4000,
            ..small()
        }
    }

    fn append(&mut self) {
        let who = self.random.below(2 * PRODUCERS) as usize;
        let codec = Compression::ALL[self.random.below(5) as usize];
        let mut builder = RecordBatchBuilder::new().compression(codec, None);
        let count = self.random.between(1, 4);
        let mut transaction = None;
        if let Some(producer) = self.producers.get_mut(who) {
            builder = builder
                .producer(
                    ProducerId::new(100 + who as i64),
                    ProducerEpoch::new(0),
                    producer.sequence,
                )
                .transactional();
            producer.sequence += count as i32;
            transaction = Some(*producer.transaction.get_or_insert_with(|| {
                self.transactions.push(None);
                self.transactions.len() - 1
            }));
        }
        let first = self.log().log_end_offset().value();
        for at in first..first + count {
            let key = format!("key-{}", self.random.below(KEYS));
            self.values += 1;
            let value = (self.random.below(5) > 0).then(|| format!("{:050}", self.values));
            let timestamp = self.now + self.random.between(-50, 0);
            builder
                .append(
                    timestamp,
                    Some(key.as_bytes()),
                    value.as_deref().map(str::as_bytes),
                    &[],
                )
                .unwrap();
            self.appended.push(Appended {
                seen: (at, key, value),
                transaction,
            });
        }
        self.write(&builder.build().unwrap(), AppendOrigin::Client);
    }

    fn write(&mut self, batch: &[u8], origin: AppendOrigin) {
        let now = self.now;
        let view = BatchView::parse(batch).unwrap();
        let info = self
            .log()
            .append_as_leader(&[view], epoch(0), origin, now)
            .unwrap();
        assert_eq!(info.duplicate, None);
        let end = self.log().log_end_offset();
        self.log().high_watermark_moved(end);
    }

    fn end_transaction(&mut self) {
        let who = self.random.below(PRODUCERS) as usize;
        let Some(transaction) = self.producers[who].transaction.take() else {
            return;
        };
        let commit = self.random.below(2) == 0;
        self.transactions[transaction] = Some(commit);
        let marker = EndMarker {
            commit,
            coordinator_epoch: 0,
        };
        let id = ProducerId::new(100 + who as i64);
        let batch = marker.build(id, ProducerEpoch::new(0), self.now);
        self.write(&batch, AppendOrigin::Coordinator);
    }

    fn stable_end(&self) -> i64 {
        let log = self.log.as_ref().unwrap();
        log.last_stable_offset(log.log_end_offset()).value()
    }

    /// The model's records that a reader of committed ones sees, below `up_to`.
    fn committed(&self, up_to: i64) -> impl Iterator<Item = &Seen> {
        let is_committed = move |record: &&Appended| {
            let state = record.transaction.map(|at| self.transactions[at]);
            record.seen.0 < up_to && state.is_none_or(|state| state == Some(true))
        };
        self.appended
            .iter()
            .filter(is_committed)
            .map(|record| &record.seen)
    }

    fn clean(&mut self, crashes: bool) {
        let (now, stable_end) = (self.now, offset(self.stable_end()));
        let memory = KeyMemory {
            max_bytes: 24 * [3, 8, 1000][self.random.below(3) as usize],
            load_factor: 1.0,
        };
        let before = last_values(committed(self.log.as_ref().unwrap(), stable_end.value()).iter());
        let log = self.log.as_mut().unwrap();
        let Some(plan) = log.plan_compaction(stable_end, now).unwrap() else {
            return;
        };
        let end = log.dirtiness(stable_end, now).unwrap().end.value();
        self.untouched_from = self.untouched_from.max(end);
        let mut cleaning = plan.index_keys(memory, &mut go_on()).unwrap();
        if crashes {
            crash::after(Some(self.random.below(40) as usize));
        }
        let result = swap_in(log, &mut cleaning, now);
        if result.is_err() {
            assert!(crashes, "{result:?}");
            // Nothing more happens to the files.
            let crashed = self.log.take().unwrap();
            drop((cleaning, crashed));
            crash::after(None);
            self.reopen();
        } else {
            crash::after(None);
            let known_to = cleaning.cleaned_to().value();
            self.cleaned_to = known_to;
            log.set_cleaned_to(offset(known_to));
            self.cleaned += 1;
            self.check_cleaned(known_to);
        }
        let log = self.log.as_ref().unwrap();
        let after = last_values(committed(log, stable_end.value()).iter());
        assert_eq!(
            before, after,
            "readers of committed records see what they saw"
        );
        self.check();
    }

    /// Below `known_to` nothing is left that compaction has to take.
    fn check_cleaned(&self, known_to: i64) {
        let mut last = BTreeMap::new();
        for (at, key, _) in self.committed(known_to) {
            last.insert(key.clone(), *at);
        }
        for (at, key, _) in records(self.log.as_ref().unwrap()) {
            if at < known_to {
                assert_eq!(last.get(&key), Some(&at), "{key} is superseded or aborted");
            }
        }
    }

    fn check(&self) {
        let log = self.log.as_ref().unwrap();
        // What is there is what was appended, where it was.
        let found = records(log);
        let mut model = self.appended.iter();
        for seen in &found {
            assert!(model.any(|record| record.seen == *seen), "{seen:?}");
        }
        // What was never cleaned is all there.
        let dirty = |seen: &&Seen| seen.0 >= self.untouched_from;
        let expected = self.appended.iter().map(|record| &record.seen);
        assert!(
            found.iter().filter(dirty).eq(expected.filter(dirty)),
            "from {} on",
            self.untouched_from
        );
        // And a reader of committed records has the last value of every key.
        let up_to = self.stable_end();
        let committed = committed(log, up_to);
        let mut model = self.committed(up_to);
        for seen in &committed {
            assert!(
                model.any(|record| record == seen),
                "{seen:?} was not committed"
            );
        }
        assert_eq!(
            last_values(committed.iter()),
            last_values(self.committed(up_to))
        );
        for (base, last, bytes) in read_all(log, log.log_start_offset(), 2000) {
            assert!(base <= last && batches(&bytes).count() == 1);
        }
    }

    /// As after `kill -9`, with or without what the checkpoint says.
    fn reopen(&mut self) {
        let mut log = self.fixture.open(Self::config());
        if self.random.below(4) > 0 {
            log.set_cleaned_to(offset(self.cleaned_to));
        }
        let end = log.log_end_offset();
        log.high_watermark_moved(end);
        self.log = Some(log);
    }

    fn step(&mut self) {
        self.now += self.random.between(0, 200);
        match self.random.below(100) {
            0..55 => self.append(),
            55..70 => self.end_transaction(),
            70..78 => {
                let now = self.now;
                self.log().roll(now).unwrap();
            }
            78..86 => self.clean(false),
            86..92 => self.clean(true),
            92..94 => {
                self.log = None;
                self.reopen();
            }
            94..96 => {
                let mut log = self.log.take().unwrap();
                log.close().unwrap();
                drop(log);
                let clean = crate::Opening {
                    clean_shutdown: true,
                    ..opening()
                };
                let log = self.fixture.try_open(Self::config(), clean).unwrap();
                self.log = Some(log);
                let end = self.log().log_end_offset();
                self.log().high_watermark_moved(end);
            }
            96..98 => self.now += DELETE_RETENTION_MS,
            _ => self.check(),
        }
    }
}

#[test]
fn readers_find_the_last_value_of_every_key_whatever_was_compacted_and_when_it_crashed() {
    let first = match std::env::var("YUXI_TEST_SEED") {
        Ok(text) => text.parse().expect("YUXI_TEST_SEED is a number"),
        Err(_) => 20_261_122,
    };
    let mut cleaned = 0;
    for round in 0..12 {
        println!("YUXI_TEST_SEED={}", first + round);
        let mut world = World {
            random: Random::new(first + round),
            fixture: Fixture::new(),
            log: None,
            appended: Vec::new(),
            transactions: Vec::new(),
            producers: (0..PRODUCERS).map(|_| Producer::default()).collect(),
            cleaned_to: 0,
            untouched_from: 0,
            now: NOW,
            values: 0,
            cleaned: 0,
        };
        world.reopen();
        for _ in 0..300 {
            world.step();
        }
        world.clean(false);
        world.check();
        cleaned += world.cleaned;
    }
    assert!(cleaned > 60, "{cleaned}");
}

/// A marker stays as long as any batch of its transaction, and then for the retention of
/// deletes; so does what is known of an aborted one.
#[test]
fn a_marker_outlives_the_records_of_its_transaction_by_the_retention_of_deletes() {
    for commit in [true, false] {
        let fixture = Fixture::new();
        let mut log = fixture.open(World::config());
        let write = |log: &mut Log, batch: &[u8], origin| {
            let view = BatchView::parse(batch).unwrap();
            log.append_as_leader(&[view], epoch(0), origin, NOW)
                .unwrap();
        };
        let data = |id: i64, key: &str, sequence| {
            let mut builder = RecordBatchBuilder::new();
            if id > 0 {
                let (id, epoch) = (ProducerId::new(id), ProducerEpoch::new(0));
                builder = builder.producer(id, epoch, sequence).transactional();
            }
            let key = Some(key.as_bytes());
            builder.append(NOW, key, Some(b"value"), &[]).unwrap();
            builder.build().unwrap()
        };
        let marker = |id| {
            let marker = EndMarker {
                commit,
                coordinator_epoch: 0,
            };
            marker.build(ProducerId::new(id), ProducerEpoch::new(0), NOW)
        };
        // Offsets 0 and 1, a transaction; 2 and 3, another of the same producer, whose last
        // batch therefore stays; 4 supersedes all.
        write(&mut log, &data(7, "k", 0), AppendOrigin::Client);
        write(&mut log, &marker(7), AppendOrigin::Coordinator);
        write(&mut log, &data(7, "k", 1), AppendOrigin::Client);
        write(&mut log, &marker(7), AppendOrigin::Coordinator);
        write(&mut log, &data(0, "k", 0), AppendOrigin::Client);
        log.roll(NOW).unwrap();
        log.high_watermark_moved(offset(5));
        let mut clean = |now_ms| -> (Vec<i64>, Vec<i64>) {
            log.set_cleaned_to(offset(0));
            let plan = log.plan_compaction(offset(5), now_ms).unwrap().unwrap();
            let memory = KeyMemory {
                max_bytes: 1000,
                load_factor: 1.0,
            };
            let mut cleaning = plan.index_keys(memory, &mut go_on()).unwrap();
            swap_in(&mut log, &mut cleaning, now_ms).unwrap();
            let aborted = log.aborted_transactions(offset(0), offset(5)).unwrap();
            let first = aborted.iter().map(|aborted| aborted.first_offset.value());
            (offsets(&log), first.collect())
        };
        let aborted = |firsts: &[i64]| if commit { Vec::new() } else { firsts.to_vec() };
        // The records go at once, the markers are still needed by who is reading them.
        assert_eq!(clean(NOW), (vec![1, 2, 3, 4], aborted(&[0, 2])));
        // Now nothing of the first is left: its marker gets a horizon.
        assert_eq!(clean(NOW), (vec![1, 2, 3, 4], aborted(&[2])));
        assert_eq!(clean(NOW + 999), (vec![1, 2, 3, 4], aborted(&[2])));
        assert_eq!(clean(NOW + 1000), (vec![2, 3, 4], aborted(&[2])));
        assert_eq!(clean(NOW + 10_000), (vec![2, 3, 4], aborted(&[2])));
    }
}

/// Neither is a swap that a crash left half-way a reason to lose what is known of aborted
/// transactions.
#[test]
fn what_is_known_of_aborted_transactions_survives_every_crash_of_a_swap() {
    let mut steps = 0;
    loop {
        let fixture = Fixture::new();
        let mut log = fixture.open(World::config());
        for number in 0..20 {
            let who = number % 4;
            let id = (ProducerId::new(i64::from(who)), ProducerEpoch::new(0));
            let mut builder = RecordBatchBuilder::new()
                .producer(id.0, id.1, number / 4)
                .transactional();
            let key = format!("k{number}");
            let value = [b'v'; 400];
            builder
                .append(NOW, Some(key.as_bytes()), Some(&value), &[])
                .unwrap();
            let batch = builder.build().unwrap();
            let marker = EndMarker {
                commit: who > 1,
                coordinator_epoch: 0,
            };
            for (bytes, origin) in [
                (batch, AppendOrigin::Client),
                (marker.build(id.0, id.1, NOW), AppendOrigin::Coordinator),
            ] {
                let view = BatchView::parse(&bytes).unwrap();
                log.append_as_leader(&[view], epoch(0), origin, NOW)
                    .unwrap();
            }
        }
        log.roll(NOW).unwrap();
        let end = log.log_end_offset();
        log.high_watermark_moved(end);
        log.close().unwrap();
        let before = committed(&log, end.value());
        assert_eq!(before.len(), 10);
        let plan = log.plan_compaction(end, NOW).unwrap().unwrap();
        let memory = KeyMemory {
            max_bytes: 1000,
            load_factor: 1.0,
        };
        let mut cleaning = plan.index_keys(memory, &mut go_on()).unwrap();
        crash::after(Some(steps));
        let result: Result<(), CompactionError> = swap_in(&mut log, &mut cleaning, NOW);
        drop((log, cleaning));
        crash::after(None);
        let clean = crate::Opening {
            clean_shutdown: true,
            recovery_point: end,
            ..opening()
        };
        let log = fixture.try_open(World::config(), clean).unwrap();
        assert_eq!(committed(&log, end.value()), before, "after {steps} steps");
        steps += 1;
        if result.is_ok() {
            break;
        }
    }
    assert!(steps > 15, "{steps}");
}
