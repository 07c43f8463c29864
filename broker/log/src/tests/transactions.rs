//! The last stable offset and the aborted transactions, against what a scan of all batches
//! says. The seed is printed; `YUXI_TEST_SEED` takes it back.

use std::{collections::BTreeMap, fs};

use bytes::Bytes;
use yuxi_protocol::{
    ids::{Offset, ProducerEpoch, ProducerId},
    record::{BatchView, EndMarker, RecordBatchBuilder},
};

use super::{model::Random, support::*};
use crate::{
    AbortedTransaction, AppendError, AppendInfo, AppendOrigin, Log, LogConfig,
    producers::ProducerEntry,
};

pub(super) fn transactional(producer: i64, producer_epoch: i16, count: usize) -> Bytes {
    let builder = RecordBatchBuilder::new()
        .producer(
            ProducerId::new(producer),
            ProducerEpoch::new(producer_epoch),
            -1,
        )
        .transactional();
    fill(builder, &vec![NOW; count], 20)
}

pub(super) fn marker(producer: i64, producer_epoch: i16, commit: bool) -> Bytes {
    let marker = EndMarker {
        commit,
        coordinator_epoch: 1,
    };
    marker.build(
        ProducerId::new(producer),
        ProducerEpoch::new(producer_epoch),
        NOW,
    )
}

pub(super) fn write(log: &mut Log, bytes: &[u8]) -> Result<AppendInfo, AppendError> {
    let view = BatchView::parse(bytes).unwrap();
    log.append_as_leader(&[view], epoch(0), AppendOrigin::Coordinator, NOW)
}

fn begin(log: &mut Log, producer: i64) -> i64 {
    let info = write(log, &transactional(producer, 0, 1)).unwrap();
    info.base_offset.value()
}

fn end(log: &mut Log, producer: i64, commit: bool) -> i64 {
    let info = write(log, &marker(producer, 0, commit)).unwrap();
    info.base_offset.value()
}

fn aborted(log: &Log) -> Vec<(i64, i64, i64, i64)> {
    let found = log
        .aborted_transactions(log.log_start_offset(), log.log_end_offset())
        .unwrap();
    found.iter().map(numbers).collect()
}

fn numbers(entry: &AbortedTransaction) -> (i64, i64, i64, i64) {
    (
        entry.producer_id.value(),
        entry.first_offset.value(),
        entry.last_offset.value(),
        entry.last_stable_offset.value(),
    )
}

#[test]
fn readers_wait_for_open_transactions_and_for_markers_that_may_go_again() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    let stable = |log: &Log, high_watermark| log.last_stable_offset(offset(high_watermark)).value();
    append_many(&mut log, 3);
    assert_eq!(begin(&mut log, 1), 3);
    assert_eq!(begin(&mut log, 2), 4);
    log.high_watermark_moved(offset(5));
    assert_eq!(stable(&log, 2), 2);
    assert_eq!(stable(&log, 5), 3);
    assert_eq!(end(&mut log, 1, true), 5);
    assert_eq!(log.first_undecided_offset(), Some(offset(4)));
    assert_eq!(stable(&log, 5), 3, "its marker may still be cut");
    log.high_watermark_moved(offset(6));
    assert_eq!(stable(&log, 6), 4);
    assert_eq!(end(&mut log, 2, false), 6);
    log.high_watermark_moved(offset(7));
    assert_eq!(stable(&log, 7), 7);
    assert_eq!(aborted(&log), [(2, 4, 6, 7)]);
    assert_eq!(log.oldest_transaction_ms(), None);
    begin(&mut log, 3);
    assert_eq!(log.oldest_transaction_ms(), Some(NOW));
}

#[test]
fn a_cut_takes_back_markers_and_what_they_said() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    begin(&mut log, 1);
    begin(&mut log, 2);
    end(&mut log, 1, false);
    log.roll(NOW).unwrap();
    end(&mut log, 2, false);
    log.high_watermark_moved(offset(1));
    assert_eq!(aborted(&log), [(1, 0, 2, 1), (2, 1, 3, 4)]);
    log.truncate_to(offset(3), NOW).unwrap();
    assert_eq!(aborted(&log), [(1, 0, 2, 1)]);
    assert_eq!(
        log.last_stable_offset(offset(2)),
        offset(0),
        "offset 2 is not replicated"
    );
    log.high_watermark_moved(offset(3));
    assert_eq!(log.last_stable_offset(offset(3)), offset(1));
    log.truncate_to(offset(2), NOW).unwrap();
    assert_eq!(aborted(&log), []);
    assert_eq!(log.first_undecided_offset(), Some(offset(0)));
    // It ends otherwise this time.
    end(&mut log, 1, true);
    end(&mut log, 2, false);
    assert_eq!(aborted(&log), [(2, 1, 3, 4)]);
    let log = fixture.reopen_crashed(log).unwrap();
    assert_eq!(aborted(&log), [(2, 1, 3, 4)]);
}

#[test]
fn a_crash_between_the_marker_and_the_index_loses_no_aborted_transaction() {
    for lost in ["nothing", "entry", "file", "garbage"] {
        let fixture = Fixture::new();
        let mut log = fixture.open(small());
        begin(&mut log, 9);
        for producer in 1..4 {
            begin(&mut log, producer);
            end(&mut log, producer, false);
        }
        log.roll(NOW).unwrap();
        end(&mut log, 9, false);
        for producer in 1..4 {
            begin(&mut log, producer);
            end(&mut log, producer, false);
        }
        let expected = aborted(&log);
        assert_eq!(expected.len(), 7);
        if lost != "nothing" {
            // To be sure that there is something to lose.
            log.close().unwrap();
        }
        let path = fixture.file(7, "txnindex");
        match lost {
            "entry" => {
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() - 40]).unwrap();
            }
            "file" => fs::remove_file(&path).unwrap(),
            "garbage" => fs::write(&path, [0x5a; 34 * 3 + 5]).unwrap(),
            _ => assert!(!path.exists(), "entries are still in memory"),
        }
        drop(log);
        let log = fixture.open(small());
        assert_eq!(aborted(&log), expected, "{lost}");
        let log = fixture.reopen_clean(log);
        assert_eq!(aborted(&log), expected, "{lost}");
        assert_eq!(file_len(&path), 34 * 4);
    }
}

#[test]
fn an_index_that_cannot_be_its_segments_is_made_anew_even_after_a_clean_stop() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    for _ in 0..3 {
        begin(&mut log, 1);
        begin(&mut log, 2);
        end(&mut log, 1, false);
        end(&mut log, 2, true);
        log.roll(NOW).unwrap();
    }
    let expected = aborted(&log);
    assert_eq!(expected, [(1, 0, 2, 1), (1, 4, 6, 5), (1, 8, 10, 9)]);
    let log = fixture.reopen_clean(log);
    drop(log);
    fs::copy(fixture.file(0, "txnindex"), fixture.file(4, "txnindex")).unwrap();
    let clean = crate::Opening {
        recovery_point: offset(12),
        clean_shutdown: true,
        ..opening()
    };
    let log = fixture.try_open(small(), clean).unwrap();
    assert_eq!(aborted(&log), expected);
}

#[test]
fn age_and_size_take_nothing_of_an_open_transaction() {
    let fixture = Fixture::new();
    let config = LogConfig {
        retention_ms: 1,
        retention_bytes: 0,
        ..small()
    };
    let mut log = fixture.open(config);
    append_many(&mut log, 2);
    log.roll(NOW).unwrap();
    assert_eq!(begin(&mut log, 1), 2);
    log.roll(NOW).unwrap();
    append_many(&mut log, 2);
    log.roll(NOW).unwrap();
    let all = log.log_end_offset();
    assert_eq!(log.delete_old_segments(NOW + 1000, all).unwrap(), 1);
    assert_eq!(log.log_start_offset(), offset(2));
    assert_eq!(log.delete_old_segments(NOW + 1000, all).unwrap(), 0);
    end(&mut log, 1, true);
    let all = log.log_end_offset();
    assert!(log.delete_old_segments(NOW + 1000, all).unwrap() >= 2);
    // Whoever deletes by hand means it, and readers go on after it.
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    begin(&mut log, 1);
    append_many(&mut log, 4);
    log.delete_records_before(offset(3), NOW).unwrap();
    assert_eq!(log.last_stable_offset(offset(5)), offset(3));
}

#[test]
fn a_transaction_that_began_before_the_logs_start_is_left_out_of_what_is_left_of_it() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    begin(&mut log, 1);
    log.roll(NOW).unwrap();
    begin(&mut log, 1);
    end(&mut log, 1, false);
    log.delete_records_before(offset(1), NOW).unwrap();
    assert_eq!(log.log_start_offset(), offset(1));
    assert_eq!(aborted(&log), [(1, 0, 2, 3)]);
    let log = fixture.reopen_crashed(log).unwrap();
    assert_eq!(aborted(&log), [(1, 0, 2, 3)]);
    drop(log);
    // Without the snapshot that knew where it began.
    fs::remove_file(fixture.file(1, "snapshot")).unwrap();
    let opening = crate::Opening {
        log_start_offset: offset(1),
        ..opening()
    };
    let log = fixture.try_open(small(), opening).unwrap();
    assert_eq!(aborted(&log), [(1, 1, 2, 3)]);
}

#[test]
fn a_full_disk_takes_no_aborted_transaction_away() {
    let fixture = Fixture::new();
    let mut log = fixture.open(LogConfig {
        segment_bytes: 1 << 20,
        ..small()
    });
    let mut expected = 0;
    for round in 0..300 {
        begin(&mut log, round);
        let marker = marker(round, 0, false);
        // Room for the marker, not for the entries that are written now and then.
        crate::file_io::full_disk::set(Some(marker.len()));
        write(&mut log, &marker).unwrap();
        crate::file_io::full_disk::set(None);
        expected += 1;
        assert_eq!(aborted(&log).len(), expected);
    }
    log.release_unused_files();
    log.release_unused_files();
    assert_eq!(aborted(&log).len(), expected);
    let log = fixture.reopen_clean(log);
    assert_eq!(aborted(&log).len(), expected);
}

#[test]
fn a_follower_knows_what_its_leader_knows() {
    let (leaders, followers) = (Fixture::new(), Fixture::new());
    let mut leader = leaders.open(small());
    let mut follower = followers.open(small());
    begin(&mut leader, 1);
    begin(&mut leader, 2);
    end(&mut leader, 1, false);
    append_many(&mut leader, 80);
    begin(&mut leader, 3);
    end(&mut leader, 2, false);
    let end_offset = leader.log_end_offset();
    while follower.log_end_offset() < end_offset {
        let from = follower.log_end_offset();
        // Many batches at once, which begin and end transactions.
        let read = leader.read(from, 1 << 20, true, end_offset).unwrap();
        let slice = read.slice.unwrap();
        follower.append_as_follower(slice.as_bytes(), NOW).unwrap();
    }
    assert_eq!(aborted(&follower), aborted(&leader));
    for high_watermark in 0..=end_offset.value() {
        let high_watermark = offset(high_watermark);
        leader.high_watermark_moved(high_watermark);
        follower.high_watermark_moved(high_watermark);
        assert_eq!(
            follower.last_stable_offset(high_watermark),
            leader.last_stable_offset(high_watermark)
        );
    }
}

#[test]
fn a_hundred_thousand_producers_take_less_than_100_mib() {
    let fixture = Fixture::new();
    let mut log = fixture.open(LogConfig {
        segment_bytes: 1 << 30,
        ..small()
    });
    for id in 0..100_000 {
        write(&mut log, &produced(id, 0, 0, 1)).unwrap();
    }
    assert_eq!(log.active_producers().len(), 100_000);
    let bytes = log.producers.memory_bytes();
    println!("{bytes} bytes, {} each", bytes / 100_000);
    assert!(bytes < 50 << 20, "{bytes}");
}

#[derive(Clone, Debug)]
enum Kind {
    Plain,
    Data(i64),
    Marker { producer: i64, commit: bool },
}

#[derive(Clone, Debug)]
struct Stored {
    base: i64,
    next: i64,
    size: u64,
    kind: Kind,
}

/// A transaction as a scan of the log finds it.
struct Scanned {
    producer: i64,
    first: i64,
    marker: Option<(i64, bool)>,
    /// Where the oldest other one began that was open at its end.
    oldest_other: Option<i64>,
}

fn scan(batches: &[Stored]) -> Vec<Scanned> {
    let mut open: BTreeMap<i64, i64> = BTreeMap::new();
    let mut found = Vec::new();
    for batch in batches {
        match batch.kind {
            Kind::Plain => {}
            Kind::Data(producer) => {
                open.entry(producer).or_insert(batch.base);
            }
            Kind::Marker { producer, commit } => {
                if let Some(first) = open.remove(&producer) {
                    found.push(Scanned {
                        producer,
                        first,
                        marker: Some((batch.base, commit)),
                        oldest_other: open.values().min().copied(),
                    });
                }
            }
        }
    }
    found.extend(open.into_iter().map(|(producer, first)| Scanned {
        producer,
        first,
        marker: None,
        oldest_other: None,
    }));
    found
}

struct World {
    random: Random,
    fixture: Fixture,
    log: Option<Log>,
    batches: Vec<Stored>,
    epochs: BTreeMap<i64, i16>,
    high_watermark: i64,
}

impl World {
    fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    fn end(&self) -> i64 {
        self.batches.last().map_or(0, |batch| batch.next)
    }

    fn append(&mut self) {
        let producer = self.random.between(1, 5);
        let producer_epoch = *self.epochs.entry(producer).or_insert(0);
        let count = self.random.between(1, 4);
        let (bytes, kind, count) = match self.random.below(10) {
            0 => (batch(&vec![NOW; count as usize], 30), Kind::Plain, count),
            1..3 => {
                let base = self.end();
                let builder = RecordBatchBuilder::new().producer(
                    ProducerId::new(10 + producer),
                    ProducerEpoch::new(0),
                    base as i32,
                );
                let timestamps = vec![NOW + base; count as usize];
                (fill(builder, &timestamps, 30), Kind::Plain, count)
            }
            3..7 => {
                let bytes = transactional(producer, producer_epoch, count as usize);
                (bytes, Kind::Data(producer), count)
            }
            _ => {
                let commit = self.random.below(2) == 0;
                // By the second protocol the marker has the next epoch.
                let next = producer_epoch + self.random.below(2) as i16;
                self.epochs.insert(producer, next);
                let kind = Kind::Marker { producer, commit };
                (marker(producer, next, commit), kind, 1)
            }
        };
        let info = write(self.log(), &bytes).unwrap();
        let base = info.base_offset.value();
        assert_eq!(base, self.end());
        self.batches.push(Stored {
            base,
            next: base + count,
            size: bytes.len() as u64,
            kind,
        });
    }

    fn cut_to(&mut self, end: i64) {
        while self.batches.last().is_some_and(|batch| batch.next > end) {
            self.batches.pop();
        }
        self.high_watermark = self.high_watermark.min(self.end());
        // A cut takes back epochs, too; a newer one is always taken.
        for epoch in self.epochs.values_mut() {
            *epoch += 1;
        }
    }

    /// What is in memory is lost, the end of the log may be torn, and no index of what is
    /// read again is to be relied on.
    fn crash(&mut self) {
        let log = self.log.take().unwrap();
        let durable = log.recovery_point().value();
        let bases: Vec<i64> = log.segments().map(|one| one.base_offset.value()).collect();
        let active = *bases.last().unwrap();
        for &base in &bases {
            let read_again = bases.iter().all(|&next| next <= base || next > durable);
            let path = self.fixture.file(base, "txnindex");
            if read_again && path.exists() {
                match self.random.below(3) {
                    0 => fs::remove_file(path).unwrap(),
                    1 => fs::write(path, [0; 100]).unwrap(),
                    _ => {}
                }
            }
        }
        let in_active: Vec<_> = self
            .batches
            .iter()
            .filter(|one| one.base >= active)
            .collect();
        let mut at = 0;
        let mut ends = vec![(active, 0)];
        for one in in_active {
            at += one.size;
            ends.push((one.next, at));
        }
        let least = ends.iter().rfind(|(end, _)| *end <= durable);
        let least = least.map_or(0, |(_, at)| *at);
        let cut = least + self.random.below(at - least + 1);
        let file = fs::File::options()
            .write(true)
            .open(self.fixture.file(active, "log"))
            .unwrap();
        file.set_len(cut).unwrap();
        let kept = ends.iter().rfind(|(_, at)| *at <= cut).unwrap().0;
        self.cut_to(kept);
        self.log = Some(self.fixture.reopen_crashed(log).unwrap());
        self.replicate(self.end());
    }

    fn replicate(&mut self, to: i64) {
        self.high_watermark = to;
        self.log().high_watermark_moved(offset(to));
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..70 => self.append(),
            70..80 => {
                let to = self.random.between(self.high_watermark, self.end());
                self.replicate(to);
            }
            80..84 => self.log().roll(NOW).unwrap(),
            84..89 => {
                let to = self.random.between(self.high_watermark, self.end());
                self.log().truncate_to(offset(to), NOW).unwrap();
                self.cut_to(to);
                assert_producers_as_read(self.log());
            }
            89..92 => {
                let flush = self.log().flush_plan().unwrap();
                flush.run().unwrap();
                self.log().flushed(&flush);
            }
            92..94 => self.log().release_unused_files(),
            94..97 => {
                let log = self.log.take().unwrap();
                self.log = Some(self.fixture.reopen_clean(log));
                self.replicate(self.end());
            }
            _ => self.crash(),
        }
        self.check();
    }

    fn check(&mut self) {
        let log = self.log.as_ref().unwrap();
        let high_watermark = self.high_watermark;
        assert_eq!(log.log_end_offset().value(), self.end());
        let transactions = scan(&self.batches);
        let undecided = transactions.iter().filter(|one| one.marker.is_none());
        let undecided = undecided.map(|one| one.first).min();
        assert_eq!(log.first_undecided_offset().map(Offset::value), undecided);
        let unstable = transactions
            .iter()
            .filter(|one| one.marker.is_none_or(|(at, _)| at >= high_watermark))
            .map(|one| one.first);
        let stable = unstable
            .min()
            .map_or(high_watermark, |first| first.min(high_watermark));
        let found = log.last_stable_offset(offset(high_watermark)).value();
        assert_eq!(found, stable);

        let from = self.random.between(0, self.end());
        let up_to = self.random.between(from, self.end());
        let in_range = |from: i64, up_to: i64| {
            let aborted = transactions.iter().filter_map(|one| match one.marker {
                Some((at, false)) if at >= from && one.first < up_to => {
                    let last_stable = one.oldest_other.unwrap_or(at + 1);
                    Some((one.producer, one.first, at, last_stable))
                }
                _ => None,
            });
            aborted.collect::<Vec<_>>()
        };
        let found = log
            .aborted_transactions(offset(from), offset(up_to))
            .unwrap();
        let found: Vec<_> = found.iter().map(numbers).collect();
        assert_eq!(found, in_range(from, up_to), "{from} to {up_to}");

        let from = self.random.between(0, stable);
        let max_bytes = self.random.below(2000) as usize;
        let read = log
            .read(offset(from), max_bytes, true, offset(stable))
            .unwrap();
        let found = log.aborted_in(&read, offset(stable)).unwrap();
        let found: Vec<_> = found.iter().map(numbers).collect();
        let Some(slice) = read.slice else {
            assert_eq!(found, []);
            return;
        };
        let read: Vec<_> = yuxi_protocol::record::batches(slice.as_bytes())
            .map(|batch| *batch.unwrap().header())
            .collect();
        let (first, last) = (read[0].base_offset.value(), read[read.len() - 1]);
        let needed = in_range(first, last.next_offset().value());
        let sound = in_range(first, stable);
        assert!(
            needed.iter().all(|one| found.contains(one)),
            "{needed:?} {found:?}"
        );
        assert!(
            found.iter().all(|one| sound.contains(one)),
            "{found:?} {sound:?}"
        );
    }
}

#[test]
fn stable_offsets_and_aborted_transactions_are_what_a_scan_of_the_log_says() {
    let seed = match std::env::var("YUXI_TEST_SEED") {
        Ok(text) => text.parse().expect("YUXI_TEST_SEED is a number"),
        Err(_) => 20_260_201,
    };
    for round in 0..20 {
        let seed = seed + round;
        println!("YUXI_TEST_SEED={seed}");
        let fixture = Fixture::new();
        let mut random = Random::new(seed);
        let config = LogConfig {
            segment_bytes: 2000 + random.below(10_000),
            index_interval_bytes: random.below(1000) as u32,
            retention_ms: -1,
            ..LogConfig::default()
        };
        let mut world = World {
            log: Some(fixture.open(config)),
            random,
            fixture,
            batches: Vec::new(),
            epochs: BTreeMap::new(),
            high_watermark: 0,
        };
        for _ in 0..400 {
            world.step();
        }
    }
}

#[test]
fn a_marker_before_what_is_cut_off_counts_on() {
    let fixture = Fixture::new();
    let mut log = fixture.open(LogConfig::default());
    let id = ProducerId::new(1);
    let written = |sequence, timestamp| {
        let builder = RecordBatchBuilder::new().producer(id, ProducerEpoch::new(0), sequence);
        fill(builder, &[timestamp], 10)
    };
    begin(&mut log, 1);
    let marker = EndMarker {
        commit: true,
        coordinator_epoch: 1,
    };
    write(&mut log, &marker.build(id, ProducerEpoch::new(0), NOW + 1)).unwrap();
    for (sequence, timestamp) in [(1, NOW - 2), (2, NOW - 1)] {
        write(&mut log, &written(sequence, timestamp)).unwrap();
    }
    for to in [3, 2] {
        log.truncate_to(offset(to), NOW).unwrap();
        assert_producers_as_read(&mut log);
    }
}

#[test]
fn any_number_of_a_producers_batches_can_be_cut_off() {
    let fixture = Fixture::new();
    let mut log = fixture.open(LogConfig::default());
    for sequence in 0..300 {
        append(&mut log, &produced(7, 0, sequence, 1));
    }
    for to in [299, 294, 10, 0] {
        log.truncate_to(offset(to), NOW).unwrap();
        assert_producers_as_read(&mut log);
    }
}

/// But that fewer of a producer's last batches may be known.
fn assert_producers_as_read(log: &mut Log) {
    let read = log.read_producers(NOW).unwrap();
    let known = log.producers.entries();
    assert_eq!(known.len(), read.entries().len());
    for (id, read) in read.entries() {
        let known = &known[id];
        let all_but_batches = |entry: &ProducerEntry| {
            let first = entry.transaction_first_offset;
            (
                entry.epoch,
                entry.coordinator_epoch,
                entry.last_timestamp,
                first,
            )
        };
        assert_eq!(all_but_batches(known), all_but_batches(read), "{id}");
        assert!(read.batches().ends_with(known.batches()), "{id}");
        assert_eq!(
            known.batches().is_empty(),
            read.batches().is_empty(),
            "{id}"
        );
    }
}
