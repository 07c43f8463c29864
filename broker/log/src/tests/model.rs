//! The log against a model that is a vector of batches, under random operations. The
//! seed is printed; `YUXI_TEST_SEED` takes it back.

use std::fs;

use yuxi_protocol::{ids::Offset, record::BatchView};

use super::support::*;
use crate::{AppendError, AppendOrigin, Log, LogConfig, file_io::full_disk};

/// SplitMix64: enough to choose operations by, and the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(super) fn between(&mut self, from: i64, to: i64) -> i64 {
        from + self.below((to - from + 1) as u64) as i64
    }
}

#[derive(Clone, Debug)]
struct ModelBatch {
    base: i64,
    timestamps: Vec<i64>,
    epoch: i32,
    /// Everything after the first 16 bytes.
    rest: Vec<u8>,
}

impl ModelBatch {
    fn next(&self) -> i64 {
        self.base + self.timestamps.len() as i64
    }
}

struct Model {
    batches: Vec<ModelBatch>,
    start: i64,
    end: i64,
}

impl Model {
    fn truncate(&mut self, to: i64) {
        while let Some(last) = self.batches.last()
            && last.next() > to
        {
            self.end = last.base;
            self.batches.pop();
        }
    }
}

struct World {
    random: Random,
    fixture: Fixture,
    log: Option<Log>,
    model: Model,
    epoch: i32,
    now: i64,
}

impl World {
    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn new_batch(&mut self) -> (bytes::Bytes, Vec<i64>) {
        let count = self.random.between(1, 5);
        let timestamps: Vec<i64> = (0..count)
            .map(|_| self.now + self.random.between(-300, 300))
            .collect();
        let bytes = batch(&timestamps, self.random.below(300) as usize);
        (bytes, timestamps)
    }

    fn append(&mut self, disk_room: Option<usize>) {
        let new: Vec<_> = (0..self.random.between(1, 3))
            .map(|_| self.new_batch())
            .collect();
        let views: Vec<_> = new
            .iter()
            .map(|(b, _)| BatchView::parse(b).unwrap())
            .collect();
        let (now, at) = (self.now, epoch(self.epoch));
        full_disk::set(disk_room);
        let result = self
            .log()
            .append_as_leader(&views, at, AppendOrigin::Client, now);
        full_disk::set(None);
        match result {
            Ok(info) => assert_eq!(info.base_offset.value(), self.model.end),
            Err(AppendError::Storage(_)) if disk_room.is_some() => return,
            Err(error) => panic!("{error}"),
        }
        for (bytes, timestamps) in new {
            let added = ModelBatch {
                base: self.model.end,
                timestamps,
                epoch: self.epoch,
                rest: bytes[16..].to_vec(),
            };
            self.model.end = added.next();
            self.model.batches.push(added);
        }
    }

    fn read(&mut self) {
        let from = self.random.between(self.model.start, self.model.end);
        let up_to = self.random.between(self.model.start, self.model.end);
        let max_bytes = self.random.below(3000) as usize;
        let at_least_one = self.random.below(2) == 0;
        let log = self.log.as_ref().unwrap();
        let read = log
            .read(offset(from), max_bytes, at_least_one, offset(up_to))
            .unwrap();
        let bytes = read
            .slice
            .as_ref()
            .map_or(&[][..], |slice| slice.as_bytes());
        let expected: Vec<_> = self
            .model
            .batches
            .iter()
            .filter(|batch| batch.next() > from && batch.next() <= up_to)
            .collect();
        let mut at = 0;
        let mut count = 0;
        for batch in &expected {
            let size = batch.rest.len() + 16;
            if at == bytes.len() {
                break;
            }
            assert_eq!(
                bytes[at + 16..at + size],
                batch.rest,
                "batch {}",
                batch.base
            );
            let header = *BatchView::parse(&bytes[at..]).unwrap().header();
            assert_eq!(header.base_offset, offset(batch.base));
            assert_eq!(header.partition_leader_epoch, epoch(batch.epoch));
            at += size;
            count += 1;
        }
        assert_eq!(at, bytes.len(), "nothing but those batches");
        assert!(count <= 1 || bytes.len() <= max_bytes);
        if let Some(first) = expected.first() {
            let size = first.rest.len() + 16;
            assert_eq!(
                count > 0,
                from < up_to && (at_least_one || size <= max_bytes)
            );
        }
    }

    fn check(&mut self) {
        let log = self.log.as_ref().unwrap();
        assert_eq!(log.log_end_offset().value(), self.model.end);
        assert_eq!(log.log_start_offset().value(), self.model.start);
        let stored = read_all(log, log.log_start_offset(), 5000);
        let expected: Vec<_> = self
            .model
            .batches
            .iter()
            .filter(|batch| batch.next() > self.model.start)
            .collect();
        assert_eq!(stored.len(), expected.len());
        for ((base, _, bytes), batch) in stored.iter().zip(&expected) {
            assert_eq!((*base, &bytes[16..]), (batch.base, &batch.rest[..]));
        }
        let records = || {
            expected.iter().flat_map(|batch| {
                let offsets = batch.base..;
                batch.timestamps.iter().copied().zip(offsets)
            })
        };
        let records = || records().filter(|(_, at)| *at >= self.model.start);
        let timestamp = self.now + self.random.between(-3000, 400);
        let found = log.offset_for_timestamp(timestamp).unwrap();
        assert_eq!(
            found.map(|found| (found.timestamp, found.offset.value())),
            records().find(|(at, _)| *at >= timestamp)
        );
        for entry in log.epoch_entries() {
            let first = expected
                .iter()
                .find(|batch| batch.epoch >= entry.epoch.value());
            let start = first.map_or(self.model.end, |batch| batch.base);
            assert_eq!(entry.start_offset.value(), start.max(self.model.start));
        }
    }

    fn crash(&mut self) {
        let log = self.log.take().unwrap();
        let point = log.recovery_point();
        let active = log.segments().next_back().unwrap();
        let path = self.fixture.file(active.base_offset.value(), "log");
        if self.random.below(2) == 0 {
            // Tear the tail, but not what was durable.
            let mut durable = 0;
            let mut ends = Vec::new();
            let mut at = 0;
            for batch in &self.model.batches {
                if batch.base >= active.base_offset.value() {
                    at += batch.rest.len() as u64 + 16;
                    ends.push((batch.next(), at));
                    if batch.next() <= point.value() {
                        durable = at;
                    }
                }
            }
            let cut = durable + self.random.below(active.size_bytes - durable + 1);
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(cut)
                .unwrap();
            let kept = ends.iter().rev().find(|(_, end)| *end <= cut);
            let end = kept.map_or(active.base_offset.value(), |(next, _)| *next);
            self.model.truncate(end);
            self.model.end = end;
            if self.model.end < self.model.start {
                self.model.end = self.model.start;
                self.model.batches.clear();
            }
        }
        self.log = Some(self.fixture.reopen_crashed(log).unwrap());
        let opened_at = self.log().recovery_point();
        assert!(opened_at <= point.max(offset(self.model.start)));
    }

    fn step(&mut self) {
        self.now += self.random.between(0, 200);
        let now = self.now;
        match self.random.below(100) {
            0..45 => self.append(None),
            45..65 => self.read(),
            65..68 => self.log().roll(now).unwrap(),
            68..71 => {
                let room = self.random.below(1500) as usize;
                self.append(Some(room));
            }
            71..74 => {
                let to = self.random.between(self.model.start, self.model.end);
                self.log().truncate_to(offset(to), now).unwrap();
                if to < self.model.end && to <= self.model.start {
                    self.model.batches.clear();
                    (self.model.start, self.model.end) = (to, to);
                }
                self.model.truncate(to);
                if self.model.end < self.model.start {
                    self.model.batches.clear();
                    self.model.end = self.model.start;
                }
            }
            74..77 => {
                let end = self.model.end;
                let to = self
                    .random
                    .between(self.model.start, (self.model.start + 40).min(end));
                self.log().delete_records_before(offset(to), now).unwrap();
                self.model.start = to;
            }
            77..80 => {
                let retention_bytes = self.random.between(5_000, 60_000);
                let config = LogConfig {
                    retention_bytes,
                    ..self.log().config().clone()
                };
                self.log().set_config(config);
                let high_watermark = offset(self.random.between(self.model.start, self.model.end));
                self.log().delete_old_segments(now, high_watermark).unwrap();
                let start = self.log().log_start_offset();
                assert!(start <= high_watermark.max(offset(self.model.start)));
                self.model.start = start.value();
            }
            80..85 => {
                let flush = self.log().flush_plan().unwrap();
                flush.run().unwrap();
                self.log().flushed(&flush);
                assert_eq!(self.log().recovery_point().value(), self.model.end);
            }
            85..88 => {
                let log = self.log.take().unwrap();
                self.log = Some(self.fixture.reopen_clean(log));
            }
            88..92 => self.crash(),
            92..95 => self.log().release_unused_files(),
            95..96 => {
                let to = self.model.end + self.random.between(0, 50);
                self.log()
                    .truncate_fully_and_start_at(offset(to), now)
                    .unwrap();
                self.model.batches.clear();
                (self.model.start, self.model.end) = (to, to);
            }
            96..98 => self.epoch += 1,
            _ => self.check(),
        }
        let log = self.log.as_ref().unwrap();
        assert_eq!(log.log_end_offset(), Offset::new(self.model.end));
        assert!(log.recovery_point() <= log.log_end_offset());
    }
}

/// Opens the log in the fixture and does with it what a broker might.
fn use_damaged(fixture: &Fixture, random: &mut Random) {
    let opening = crate::Opening {
        recovery_point: offset(random.between(0, 70)),
        clean_shutdown: random.below(2) == 0,
        log_start_offset: offset(random.between(0, 20)),
        ..opening()
    };
    let Ok(mut log) = fixture.try_open(small(), opening) else {
        return;
    };
    let end = log.log_end_offset();
    let mut from = log.log_start_offset();
    // A damaged base offset, which no checksum covers, can make the end very far.
    for _ in 0..200 {
        from = match log.read(from, 2000, true, end) {
            Ok(read) => read.start_offset.max(from).plus(1),
            Err(_) => from.plus(1),
        };
    }
    let _ = log.offset_for_timestamp(NOW + random.between(-10, 1000));
    let _ = log.max_timestamp();
    let _ = log.delete_records_before(offset(random.between(0, 30)), NOW);
    let _ = log.truncate_to(offset(random.between(20, 70)), NOW);
    let _ = try_append(
        &mut log,
        &produced(7, 0, random.between(0, 99) as i32, 1),
        9,
    );
    let _ = log.delete_old_segments(NOW + 1, log.log_end_offset());
    let _ = log.roll(NOW);
    let _ = log.close();
}

#[test]
fn no_damage_to_the_files_makes_the_log_panic() {
    let seed = match std::env::var("YUXI_TEST_SEED") {
        Ok(text) => text.parse().expect("YUXI_TEST_SEED is a number"),
        Err(_) => 20_260_102,
    };
    println!("YUXI_TEST_SEED={seed}");
    let mut random = Random(seed);
    let template = Fixture::new();
    let mut log = template.open(small());
    for sequence in 0..60 {
        let builder = yuxi_protocol::record::RecordBatchBuilder::new().producer(
            yuxi_protocol::ids::ProducerId::new(7),
            yuxi_protocol::ids::ProducerEpoch::new(0),
            sequence,
        );
        let bytes = fill(builder, &[NOW + i64::from(sequence)], 400);
        try_append(&mut log, &bytes, sequence / 25).unwrap();
    }
    log.close().unwrap();
    assert!(log.segments().len() >= 3);
    let files: Vec<_> = fs::read_dir(&template.dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        })
        .collect();
    for _ in 0..80 {
        let fixture = Fixture::new();
        fs::create_dir(&fixture.dir).unwrap();
        for (name, bytes) in &files {
            fs::write(fixture.dir.join(name), bytes).unwrap();
        }
        for _ in 0..random.between(1, 3) {
            let (name, bytes) = &files[random.below(files.len() as u64) as usize];
            let mut bytes = bytes.clone();
            for _ in 0..random.between(1, 8) {
                if bytes.is_empty() {
                    break;
                }
                let at = random.below(bytes.len() as u64) as usize;
                // Often in the header of the first batch, where the numbers are.
                let at = if random.below(2) == 0 {
                    at % 61 % bytes.len()
                } else {
                    at
                };
                match random.below(4) {
                    0 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5) as usize],
                    1 => bytes[at] ^= 1 << random.below(8),
                    2 => bytes.truncate(at),
                    _ => bytes.extend_from_slice(&random.next().to_be_bytes()),
                }
            }
            fs::write(fixture.dir.join(name), bytes).unwrap();
        }
        use_damaged(&fixture, &mut random);
    }
}

#[test]
fn the_log_is_what_a_vector_of_batches_would_be() {
    let seed = match std::env::var("YUXI_TEST_SEED") {
        Ok(text) => text.parse().expect("YUXI_TEST_SEED is a number"),
        Err(_) => 20_260_101,
    };
    for round in 0..20 {
        let seed = seed + round;
        println!("YUXI_TEST_SEED={seed}");
        let fixture = Fixture::new();
        let mut random = Random(seed);
        let config = LogConfig {
            segment_bytes: 6000 + random.below(20_000),
            index_interval_bytes: random.below(2000) as u32,
            segment_index_bytes: 100 + random.below(2000) as u32,
            preallocate: random.below(2) == 0,
            retention_ms: -1,
            ..LogConfig::default()
        };
        let mut world = World {
            log: Some(fixture.open(config)),
            random,
            fixture,
            model: Model {
                batches: Vec::new(),
                start: 0,
                end: 0,
            },
            epoch: 0,
            now: NOW,
        };
        for _ in 0..400 {
            world.step();
        }
        world.check();
    }
}
