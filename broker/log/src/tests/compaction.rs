use std::{collections::BTreeMap, fs, ops::ControlFlow};

use yuxi_protocol::{
    ids::Offset,
    record::{BatchView, Compression, RecordBatchBuilder, batch::batches},
};

use super::support::*;
use crate::{
    Cleaning, CleanupPolicy, CompactionError, KeyMemory, Log, LogConfig, LogError,
    file_io::{crash, full_disk},
};

pub(super) const DAY: i64 = 86_400_000;
const MEMORY: KeyMemory = KeyMemory {
    max_bytes: 1 << 20,
    load_factor: 0.9,
};

pub(super) fn compacted() -> LogConfig {
    LogConfig {
        cleanup_policy: CleanupPolicy::Compact,
        ..small()
    }
}

/// A batch of records with these keys and values.
pub(super) fn keyed(records: &[(&str, Option<&str>)]) -> bytes::Bytes {
    fill_keyed(RecordBatchBuilder::new(), records)
}

fn fill_keyed(mut builder: RecordBatchBuilder, records: &[(&str, Option<&str>)]) -> bytes::Bytes {
    for (key, value) in records {
        builder
            .append(NOW, Some(key.as_bytes()), value.map(str::as_bytes), &[])
            .unwrap();
    }
    builder.build().unwrap()
}

pub(super) fn go_on() -> impl FnMut(u64) -> ControlFlow<()> {
    |_| ControlFlow::Continue(())
}

fn planned(log: &mut Log, from: Option<i64>, now_ms: i64) -> Result<Cleaning, CompactionError> {
    let end = log.log_end_offset();
    log.set_cleaned_to(offset(from.unwrap_or(0)));
    let plan = log.plan_compaction(end, now_ms)?;
    plan.expect("something to clean")
        .index_keys(MEMORY, &mut go_on())
}

pub(super) fn swap_in(
    log: &mut Log,
    cleaning: &mut Cleaning,
    now_ms: i64,
) -> Result<(), CompactionError> {
    while let Some(mut cleaned) = cleaning.clean_next(&mut go_on())? {
        if !log.begin_swap(&mut cleaned)? {
            return Err(CompactionError::Abandoned);
        }
        cleaned.sync_names()?;
        if !log.finish_swap(&mut cleaned, now_ms)? {
            return Err(CompactionError::Abandoned);
        }
    }
    Ok(())
}

/// Cleans what is dirty from `from` on, and returns where that ends.
pub(super) fn clean(log: &mut Log, from: Option<i64>, now_ms: i64) -> i64 {
    let mut cleaning = planned(log, from, now_ms).unwrap();
    swap_in(log, &mut cleaning, now_ms).unwrap();
    log.set_cleaned_to(cleaning.cleaned_to());
    cleaning.cleaned_to().value()
}

pub(super) type Seen = (i64, String, Option<String>);

/// The records of the log, as a reader sees them.
pub(super) fn records(log: &Log) -> Vec<Seen> {
    let mut seen = Vec::new();
    for (_, _, bytes) in read_all(log, log.log_start_offset(), 3000) {
        let batch = BatchView::parse(&bytes).unwrap();
        if batch.header().is_control() {
            continue;
        }
        for record in batch.records(1 << 20) {
            let record = record.unwrap();
            let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            seen.push((
                record.offset.value(),
                record.key.map(text).unwrap_or_default(),
                record.value.map(text),
            ));
        }
    }
    seen
}

fn seen(offset: i64, key: &str, value: &str) -> Seen {
    (offset, key.to_owned(), Some(value.to_owned()))
}

/// What is left of `before` when only the last of each key is, and what is at or after
/// `from` as it was.
fn last_of_each(before: &[Seen], from: i64) -> Vec<Seen> {
    let mut last = BTreeMap::new();
    for (at, key, _) in before.iter().filter(|(at, _, _)| *at < from) {
        last.insert(key.clone(), *at);
    }
    let stays = |(at, key, _): &&Seen| *at >= from || last.get(key) == Some(at);
    before.iter().filter(stays).cloned().collect()
}

/// Many segments of values that supersede each other, and an active one.
fn busy(fixture: &Fixture, config: LogConfig) -> Log {
    let mut log = fixture.open(config);
    for number in 0..300_i64 {
        let value = format!("{number:0100}");
        let (first, second) = (format!("k{}", number % 7), format!("k{}", number % 40));
        append(
            &mut log,
            &keyed(&[(&first, Some(&value)), (&second, Some(&value))]),
        );
    }
    assert!(log.segments().len() > 5);
    // So large that all of them become one.
    log.set_config(LogConfig {
        segment_bytes: 1 << 20,
        ..log.config().clone()
    });
    log
}

/// As `assert_eq`, for what is too long to read.
fn assert_same(found: &[Seen], expected: &[Seen], what: &str) {
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    let at = differs.unwrap_or(found.len().min(expected.len()));
    let around = |seen: &[Seen]| seen.iter().skip(at).take(3).cloned().collect::<Vec<_>>();
    assert!(
        found == expected,
        "{what}: at {at}, {:?} and not {:?}",
        around(found),
        around(expected)
    );
}

fn cleaned_files(fixture: &Fixture) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(&fixture.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| ["cleaned", "swap"].contains(&name.rsplit('.').next().unwrap()))
        .collect();
    names.sort();
    names
}

#[test]
fn of_every_key_the_last_record_stays_where_it_was() {
    let fixture = Fixture::new();
    let mut log = busy(&fixture, compacted());
    let before = records(&log);
    let active = log.segments().next_back().unwrap().base_offset.value();
    let segments = log.segments().len();
    assert_eq!(clean(&mut log, None, NOW), active);
    let after = records(&log);
    assert_same(&after, &last_of_each(&before, active), "");
    assert!(log.segments().len() < segments, "small segments become one");
    assert!(cleaned_files(&fixture).is_empty());

    // Every offset is found, also those that are gone.
    for at in 0..log.log_end_offset().value() {
        let read = log.read(offset(at), 1, true, log.log_end_offset()).unwrap();
        let slice = read.slice.unwrap();
        let batch = BatchView::parse(slice.as_bytes()).unwrap();
        let next = after.iter().find(|(found, _, _)| *found >= at).unwrap();
        assert!(batch.header().base_offset.value() <= next.0);
        assert!(batch.header().last_offset().value() >= at);
    }

    // Appends, restarts and another round go on from there.
    append(&mut log, &keyed(&[("k1", Some("new"))]));
    let log = fixture.reopen_clean(log);
    let mut log = fixture.reopen_crashed(log).unwrap();
    assert_same(&records(&log)[..after.len()], &after, "");
    log.roll(NOW).unwrap();
    clean(&mut log, Some(active), NOW);
    let k1: Vec<_> = records(&log).into_iter().filter(|r| r.1 == "k1").collect();
    assert_eq!(k1, [seen(600, "k1", "new")]);
}

#[test]
fn a_cleaned_segment_has_the_indexes_that_recovery_would_make() {
    let fixture = Fixture::new();
    let mut log = busy(&fixture, compacted());
    clean(&mut log, None, NOW);
    let log = fixture.reopen_clean(log);
    let files = || -> Vec<_> {
        ["index", "timeindex"]
            .map(|suffix| fs::read(fixture.file(0, suffix)).unwrap())
            .into()
    };
    let written = files();
    assert!(written.iter().all(|bytes| !bytes.is_empty()));
    drop(log);
    fixture.try_open(compacted(), opening()).unwrap();
    assert_eq!(files(), written);
}

#[test]
fn a_tombstone_stays_for_the_retention_of_deletes_after_it_was_first_seen() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    append(&mut log, &keyed(&[("a", Some("1")), ("b", Some("2"))]));
    append(&mut log, &keyed(&[("a", None), ("c", Some("3"))]));
    log.roll(NOW).unwrap();
    append(&mut log, &keyed(&[("end", Some("1"))]));
    log.roll(NOW).unwrap();
    let tombstone = (2, "a".to_owned(), None);
    let kept = [
        seen(1, "b", "2"),
        tombstone,
        seen(3, "c", "3"),
        seen(4, "end", "1"),
    ];

    clean(&mut log, None, NOW);
    assert_eq!(records(&log), kept);
    let horizon = |log: &Log| {
        let all = read_all(log, Offset::ZERO, 10_000);
        let batch = BatchView::parse(&all[1].2).unwrap();
        batch.header().delete_horizon_ms()
    };
    assert_eq!(horizon(&log), Some(NOW + DAY));
    // A later round, still within the time, sets no later one.
    clean(&mut log, Some(0), NOW + DAY - 1);
    assert_eq!(records(&log), kept);
    assert_eq!(horizon(&log), Some(NOW + DAY));
    let mut log = fixture.reopen_crashed(log).unwrap();
    clean(&mut log, Some(0), NOW + DAY);
    assert_eq!(
        records(&log),
        [seen(1, "b", "2"), seen(3, "c", "3"), seen(4, "end", "1")]
    );
}

#[test]
fn records_without_a_key_are_dropped() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    let mut builder = RecordBatchBuilder::new();
    builder.append(NOW, None, Some(b"no key"), &[]).unwrap();
    builder.append(NOW, Some(b"a"), Some(b"1"), &[]).unwrap();
    append(&mut log, &builder.build().unwrap());
    log.roll(NOW).unwrap();
    let mut cleaning = planned(&mut log, None, NOW).unwrap();
    swap_in(&mut log, &mut cleaning, NOW).unwrap();
    assert_eq!(records(&log), [seen(1, "a", "1")]);
    let stats = cleaning.stats();
    assert_eq!((stats.records_read, stats.records_written), (2, 1));
    assert_eq!(stats.records_without_key, 1);
}

#[test]
fn batches_are_compressed_again_with_their_codec() {
    for codec in Compression::ALL {
        let fixture = Fixture::new();
        let mut log = fixture.open(compacted());
        for number in 0..20 {
            let value = "v".repeat(100);
            let key = format!("k{number}");
            let records = [("same", Some(&*value)), (&*key, Some(&value))];
            let builder = RecordBatchBuilder::new().compression(codec, None);
            append(&mut log, &fill_keyed(builder, &records));
        }
        log.roll(NOW).unwrap();
        let before = records(&log);
        clean(&mut log, None, NOW);
        assert_same(
            &records(&log),
            &last_of_each(&before, 40),
            &format!("{codec}"),
        );
        for (_, _, bytes) in read_all(&log, Offset::ZERO, 1000) {
            let batch = BatchView::parse(&bytes).unwrap();
            assert_eq!(batch.header().compression(), codec);
        }
    }
}

#[test]
fn a_producer_s_last_sequence_and_the_last_batch_survive_their_records() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    for sequence in 0..3 {
        append(&mut log, &produced(7, 0, sequence, 1));
    }
    append(&mut log, &produced(8, 0, 0, 1));
    append(&mut log, &batch(&[NOW], 10));
    log.roll(NOW).unwrap();
    append(&mut log, &batch(&[NOW], 10));
    log.roll(NOW).unwrap();
    append(&mut log, &batch(&[NOW], 10));
    // All have the same key; the last that is cleaned is at 5.
    clean(&mut log, None, NOW);
    let left: Vec<_> = read_all(&log, Offset::ZERO, 10_000)
        .iter()
        .map(|(base, _, bytes)| {
            (
                *base,
                BatchView::parse(bytes).unwrap().header().record_count,
            )
        })
        .collect();
    assert_eq!(left, [(2, 0), (3, 0), (5, 1), (6, 1)]);

    // Without the snapshots, the state of the producers comes from the log.
    drop(log);
    for entry in fs::read_dir(&fixture.dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "snapshot") {
            fs::remove_file(path).unwrap();
        }
    }
    let mut log = fixture.open(compacted());
    assert!(try_append(&mut log, &produced(7, 0, 9, 1), 0).is_err());
    let again = append(&mut log, &produced(7, 0, 2, 1));
    assert_eq!(again.duplicate, Some(offset(2)));
    assert_eq!(
        append(&mut log, &produced(7, 0, 3, 1)).base_offset,
        offset(7)
    );

    // The next round's last batch is another, and this one's may go.
    log.roll(NOW).unwrap();
    append(&mut log, &batch(&[NOW], 10));
    clean(&mut log, Some(6), NOW);
    let bases: Vec<_> = offsets(&log);
    assert_eq!(bases, [3, 7, 8]);
}

/// Cleans from `from` on as far as the memory allows, and returns where that ends.
fn clean_within(log: &mut Log, memory: KeyMemory, from: i64, now_ms: i64) -> i64 {
    let end = log.log_end_offset();
    log.set_cleaned_to(offset(from));
    let plan = log.plan_compaction(end, now_ms).unwrap();
    let plan = plan.expect("something to clean");
    let mut cleaning = plan.index_keys(memory, &mut go_on()).unwrap();
    swap_in(log, &mut cleaning, now_ms).unwrap();
    cleaning.cleaned_to().value()
}

#[test]
fn a_tombstone_beyond_the_memory_for_keys_stays_though_its_time_is_over() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("k", "5")] {
        append(&mut log, &keyed(&[(key, Some(value))]));
    }
    append(&mut log, &keyed(&[("k", None)]));
    log.roll(NOW).unwrap();
    let two_keys = KeyMemory {
        max_bytes: 24 * 3,
        load_factor: 1.0,
    };
    // The first round writes the tombstone's horizon, the second is past that.
    assert_eq!(clean_within(&mut log, two_keys, 0, NOW), 2);
    assert_eq!(clean_within(&mut log, two_keys, 2, NOW + 2 * DAY), 4);
    assert_eq!(records(&log).last(), Some(&(5, "k".to_owned(), None)));
    // Had it gone before the value that it deletes, that would stay for good.
    clean_within(&mut log, two_keys, 4, NOW + 3 * DAY);
    let left = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")];
    let left = (0..)
        .zip(left)
        .map(|(at, (key, value))| seen(at, key, value));
    assert_eq!(records(&log), left.collect::<Vec<_>>());
}

#[test]
fn what_does_not_fit_into_the_memory_for_keys_is_cleaned_the_next_time() {
    let fixture = Fixture::new();
    let mut log = busy(&fixture, compacted());
    let before = records(&log);
    let active = log.segments().next_back().unwrap().base_offset.value();
    let memory = KeyMemory {
        max_bytes: 24 * 20,
        load_factor: 1.0,
    };
    let mut from = 0;
    let mut rounds = 0;
    while from < active {
        let cleaned_to = clean_within(&mut log, memory, from, NOW);
        assert!(cleaned_to > from, "it gets on");
        from = cleaned_to;
        rounds += 1;
        let after = records(&log);
        let last_of_known = last_of_each(&before, from);
        assert_same(&after, &last_of_known, &format!("known to {from}"));
    }
    assert!(rounds > 3);
    assert_same(&records(&log), &last_of_each(&before, active), "");
}

#[test]
fn what_was_handed_out_stays_readable_while_its_segment_is_replaced() {
    let fixture = Fixture::new();
    let mut log = busy(
        &fixture,
        LogConfig {
            file_delete_delay_ms: 0,
            ..compacted()
        },
    );
    let read = log
        .read(offset(0), 5000, true, log.log_end_offset())
        .unwrap();
    let slice = read.slice.unwrap();
    let bytes = slice.as_bytes().to_vec();
    clean(&mut log, None, NOW);
    log.remove_deleted(NOW + 1);
    assert!(!fixture.file(0, "log.deleted").exists());
    assert_eq!(slice.as_bytes(), bytes);
    assert!(batches(slice.as_bytes()).next().unwrap().is_ok());
}

#[test]
fn a_log_that_changed_meanwhile_is_left_as_it_is() {
    type Change = fn(&mut Log);
    let changes: [Change; 4] = [
        |log| {
            log.truncate_to(offset(500), NOW).unwrap();
        },
        |log| log.truncate_fully_and_start_at(offset(0), NOW).unwrap(),
        |log| log.delete_records_before(offset(200), NOW).unwrap(),
        |log| {
            let end = log.log_end_offset();
            log.plan_compaction(end, NOW).unwrap();
        },
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let fixture = Fixture::new();
        let mut log = busy(&fixture, compacted());
        let mut cleaning = planned(&mut log, None, NOW).unwrap();
        let mut cleaned = cleaning.clean_next(&mut go_on()).unwrap().unwrap();
        change(&mut log);
        let before = records(&log);
        assert!(!log.begin_swap(&mut cleaned).unwrap(), "change {at}");
        drop(cleaned);
        assert!(cleaned_files(&fixture).is_empty());
        assert_same(&records(&log), &before, &format!("change {at}"));
        let log = fixture.reopen_crashed(log).unwrap();
        assert_same(&records(&log), &before, &format!("change {at}"));
    }
}

#[test]
fn a_swap_that_is_decided_is_taken_back_when_the_segments_change() {
    for crashes in [false, true] {
        let fixture = Fixture::new();
        let mut log = busy(&fixture, compacted());
        let mut cleaning = planned(&mut log, None, NOW).unwrap();
        let mut cleaned = cleaning.clean_next(&mut go_on()).unwrap().unwrap();
        assert!(log.begin_swap(&mut cleaned).unwrap());
        log.truncate_to(offset(101), NOW).unwrap();
        let before = records(&log);
        assert_eq!(before.last().unwrap().0, 99);
        if crashes {
            let log = fixture.reopen_crashed(log).unwrap();
            assert_same(&records(&log), &before, "");
        } else {
            assert!(!log.finish_swap(&mut cleaned, NOW).unwrap());
            assert_same(&records(&log), &before, "");
        }
        assert!(cleaned_files(&fixture).is_empty());
    }
}

#[test]
fn a_crash_at_any_step_of_a_swap_leaves_the_log_cleaned_or_as_it_was() {
    let mut cleaned = 0;
    let mut steps = 0;
    loop {
        let fixture = Fixture::new();
        let mut log = busy(&fixture, compacted());
        let before = records(&log);
        let active = log.segments().next_back().unwrap().base_offset.value();
        let mut cleaning = planned(&mut log, None, NOW).unwrap();
        crash::after(Some(steps));
        let result = swap_in(&mut log, &mut cleaning, NOW);
        let crashed = fixture.reopen_crashed(log);
        crash::after(None);
        drop(crashed);
        let mut log = fixture.open(compacted());
        let after = records(&log);
        if after == last_of_each(&before, active) {
            cleaned += 1;
        } else {
            assert_same(&after, &before, &format!("crash after {steps} steps"));
            assert_eq!(cleaned, 0, "once the swap is decided it is done");
        }
        assert!(cleaned_files(&fixture).is_empty(), "after {steps}");
        // It is a log like any other.
        append(&mut log, &keyed(&[("after", Some("crash"))]));
        log.roll(NOW).unwrap();
        clean(&mut log, None, NOW);
        let expected: Vec<_> = last_of_each(&before, i64::MAX);
        let mut left = records(&log);
        assert_eq!(left.pop(), Some(seen(600, "after", "crash")));
        assert_same(&left, &expected, "");
        steps += 1;
        if result.is_ok() {
            break;
        }
    }
    assert!(steps > 20 && cleaned > 10, "{cleaned} of {steps}");
}

#[test]
fn what_kafka_leaves_of_a_swap_is_finished_or_undone() {
    let fixture = Fixture::new();
    let mut log = busy(&fixture, compacted());
    let before = records(&log);
    let active = log.segments().next_back().unwrap().base_offset.value();
    let mut cleaning = planned(&mut log, None, NOW).unwrap();
    let cleaned = cleaning.clean_next(&mut go_on()).unwrap().unwrap();
    let path = |suffix: &str| fixture.file(0, suffix);
    let rename = |from: &str, to: &str| fs::rename(path(from), path(to)).unwrap();
    // It renames the log first.
    rename("log.cleaned", "log.swap");
    std::mem::forget(cleaned);
    drop(log);
    let mut log = fixture.open(LogConfig {
        segment_bytes: 1 << 20,
        ..compacted()
    });
    assert_same(&records(&log), &before, "");
    assert!(cleaned_files(&fixture).is_empty());

    let mut cleaning = planned(&mut log, None, NOW).unwrap();
    let cleaned = cleaning.clean_next(&mut go_on()).unwrap().unwrap();
    std::mem::forget(cleaned);
    drop(log);
    rename("log.cleaned", "log");
    rename("index.cleaned", "index.swap");
    rename("timeindex.cleaned", "timeindex.swap");
    rename("txnindex.cleaned", "txnindex.swap");
    for entry in fs::read_dir(&fixture.dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let base: i64 = name.split('.').next().unwrap().parse().unwrap_or(0);
        if base > 0 && base < active && !name.ends_with("snapshot") {
            fs::remove_file(path).unwrap();
        }
    }
    let log = fixture.open(compacted());
    assert_same(&records(&log), &last_of_each(&before, active), "");
    assert!(cleaned_files(&fixture).is_empty());
}

#[test]
fn a_full_disk_or_a_stop_leaves_the_log_as_it_was() {
    let fixture = Fixture::new();
    let mut log = busy(&fixture, compacted());
    let before = records(&log);
    for room in [0, 100, 3000] {
        let mut cleaning = planned(&mut log, None, NOW).unwrap();
        full_disk::set(Some(room));
        let result = swap_in(&mut log, &mut cleaning, NOW);
        full_disk::set(None);
        assert!(
            matches!(&result, Err(CompactionError::Log(LogError::Storage { error, .. }))
                if error.kind() == std::io::ErrorKind::StorageFull),
            "{result:?}"
        );
        assert!(cleaned_files(&fixture).is_empty());
        assert_same(&records(&log), &before, "");
    }
    let mut cleaning = planned(&mut log, None, NOW).unwrap();
    let stopped = cleaning.clean_next(&mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(CompactionError::Abandoned)));
    assert!(cleaned_files(&fixture).is_empty());
    clean(&mut log, None, NOW);
}

#[test]
fn damage_is_found_and_not_written_anew() {
    for at in [25, 8, 100] {
        let fixture = Fixture::new();
        let mut log = busy(&fixture, compacted());
        log.close().unwrap();
        let path = fixture.file(0, "log");
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 0x11;
        fs::write(&path, &bytes).unwrap();
        let ticket = {
            let end = log.log_end_offset();
            log.plan_compaction(end, NOW).unwrap().unwrap().ticket()
        };
        assert!(log.is_current(ticket));
        let result = planned(&mut log, None, NOW);
        assert!(
            matches!(
                result,
                Err(CompactionError::Log(LogError::Corrupt { position: 0, .. }))
            ),
            "byte {at}: {result:?}"
        );
        // Also where nothing is dirty.
        let mut cleaning = planned(&mut log, Some(300), NOW).unwrap();
        let result = swap_in(&mut log, &mut cleaning, NOW);
        assert!(matches!(
            result,
            Err(CompactionError::Log(LogError::Corrupt { .. }))
        ));
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert!(cleaned_files(&fixture).is_empty());
    }
}

#[test]
fn only_closed_segments_below_the_stable_end_and_old_enough_are_cleaned() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    for number in 0..4 {
        append(&mut log, &batch(&[NOW + 1000 * number], 100));
        append(&mut log, &batch(&[NOW + 1000 * number], 100));
        log.roll(NOW).unwrap();
    }
    let size = log.segments().next().unwrap().size_bytes;
    let measure = |log: &mut Log, from: Option<i64>, stable: i64, config: LogConfig| {
        log.set_config(config);
        log.set_cleaned_to(offset(from.unwrap_or(0)));
        let found = log.dirtiness(offset(stable), NOW + 3500).unwrap();
        let segments = |bytes: u64| bytes / size;
        (
            found.dirty_from.value(),
            found.end.value(),
            segments(found.clean_bytes),
            segments(found.dirty_bytes),
        )
    };
    assert_eq!(measure(&mut log, None, 8, compacted()), (0, 8, 0, 4));
    assert_eq!(measure(&mut log, Some(4), 8, compacted()), (4, 8, 2, 2));
    assert_eq!(measure(&mut log, Some(8), 8, compacted()), (8, 8, 4, 0));
    // A stable end within a segment leaves all of it.
    assert_eq!(measure(&mut log, Some(2), 5, compacted()), (2, 4, 1, 1));
    assert_eq!(measure(&mut log, Some(2), 0, compacted()), (2, 0, 0, 0));
    let lagging = |min_compaction_lag_ms| LogConfig {
        min_compaction_lag_ms,
        ..compacted()
    };
    assert_eq!(measure(&mut log, None, 8, lagging(1501)), (0, 4, 0, 2));
    assert_eq!(measure(&mut log, None, 8, lagging(500)), (0, 8, 0, 4));
    assert_eq!(measure(&mut log, None, 8, lagging(DAY)), (0, 0, 0, 0));
    // What the checkpoint says is no part of the log.
    log.set_cleaned_to(offset(9));
    assert_eq!(log.cleaned_to(), None);
    assert_eq!(measure(&mut log, Some(9), 8, compacted()), (0, 8, 0, 4));
    log.delete_records_before(offset(4), NOW).unwrap();
    assert_eq!(measure(&mut log, Some(2), 8, compacted()), (4, 8, 0, 2));

    let due = |log: &mut Log, from: i64, ratio: f64, max_compaction_lag_ms: i64| {
        log.set_config(LogConfig {
            min_cleanable_dirty_ratio: ratio,
            max_compaction_lag_ms,
            ..compacted()
        });
        log.set_cleaned_to(offset(from));
        let found = log.dirtiness(offset(8), NOW + 3500).unwrap();
        found.is_due(log.config())
    };
    assert!(due(&mut log, 6, 0.4, i64::MAX));
    assert!(!due(&mut log, 6, 0.5, i64::MAX), "more than the ratio");
    assert!(due(&mut log, 6, 1.0, 499), "its first record is 500 ms old");
    assert!(!due(&mut log, 6, 1.0, 500));
    assert!(!due(&mut log, 8, 0.0, 1), "nothing is dirty");
    assert!(log.plan_compaction(offset(8), NOW).unwrap().is_none());
}

#[test]
fn a_cut_in_a_gap_ends_the_log_there() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    for number in 0..50 {
        append(
            &mut log,
            &keyed(&[("same", Some("x")), (&format!("k{number}"), None)]),
        );
    }
    for _ in 0..30 {
        append(&mut log, &keyed(&[("same", Some("x"))]));
    }
    log.roll(NOW).unwrap();
    append_many(&mut log, 5);
    clean(&mut log, None, NOW);
    // Records are at 1, 3, …, 99, then at 129.
    log.truncate_to(offset(120), NOW).unwrap();
    assert_eq!(log.log_end_offset(), offset(120));
    assert_eq!(records(&log).last().unwrap().0, 99);
    assert_eq!(
        log.cleaned_to(),
        Some(offset(120)),
        "the rest has to be read again"
    );
    let mut log = fixture.reopen_crashed(log).unwrap();
    assert_eq!(log.log_end_offset(), offset(120));
    assert_eq!(append(&mut log, &batch(&[NOW], 1)).base_offset, offset(120));
    log.truncate_to(offset(110), NOW).unwrap();
    assert_eq!(log.log_end_offset(), offset(110));
    let log = fixture.reopen_clean(log);
    assert_eq!(log.log_end_offset(), offset(110));
    assert_eq!(records(&log).last().unwrap().0, 99);
}

#[test]
fn a_follower_that_reads_a_compacted_log_has_the_same_one() {
    let fixture = Fixture::new();
    let mut leader = busy(&fixture, compacted());
    clean(&mut leader, None, NOW);
    leader.roll(NOW).unwrap();
    let copy = Fixture::new();
    let mut follower = copy.open(compacted());
    while follower.log_end_offset() < leader.log_end_offset() {
        let from = follower.log_end_offset();
        let read = leader
            .read(from, 2000, true, leader.log_end_offset())
            .unwrap();
        let appended = follower
            .append_as_follower(read.slice.unwrap().as_bytes(), NOW)
            .unwrap();
        assert!(appended.bytes > 0);
    }
    assert_same(&records(&follower), &records(&leader), "");
    let follower = copy.reopen_crashed(follower).unwrap();
    assert_same(&records(&follower), &records(&leader), "");
    assert_eq!(follower.log_end_offset(), leader.log_end_offset());
}

#[test]
fn retention_takes_also_segments_that_compaction_has_emptied() {
    let fixture = Fixture::new();
    let mut log = fixture.open(LogConfig {
        cleanup_policy: CleanupPolicy::CompactAndDelete,
        segment_bytes: 400,
        ..small()
    });
    for _ in 0..10 {
        append(&mut log, &batch(&[NOW], 100));
        append(&mut log, &batch(&[NOW], 100));
        log.roll(NOW).unwrap();
    }
    // One segment each, as they are too large to become one before they are cleaned.
    clean(&mut log, None, NOW);
    assert_eq!(records(&log).len(), 1);
    assert_eq!(log.segments().next().unwrap().size_bytes, 0);
    log.set_config(LogConfig {
        retention_ms: 1000,
        ..log.config().clone()
    });
    let end = log.log_end_offset();
    assert_eq!(log.delete_old_segments(NOW + 900, end).unwrap(), 0);
    let far = NOW + 1000 * DAY * 365;
    assert_eq!(log.delete_old_segments(far, end).unwrap(), 10);
    assert_eq!(log.log_start_offset(), end);
}
