use std::{fs, io::Write, os::unix::fs::FileExt};

use super::support::*;
use crate::{Log, LogConfig, LogError, Opening};

fn flush(log: &mut Log) {
    let flush = log.flush_plan().unwrap();
    flush.run().unwrap();
    log.flushed(&flush);
}

fn recovered_from(point: i64) -> Opening {
    Opening {
        recovery_point: offset(point),
        ..opening()
    }
}

fn corrupt(result: Result<Log, LogError>) -> (u64, i64, String) {
    match result {
        Err(LogError::Corrupt {
            position,
            expected_offset,
            reason,
            ..
        }) => (position, expected_offset.value(), reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_log_is_as_it_was_after_a_clean_stop_and_after_a_crash() {
    for crash in [false, true] {
        let fixture = Fixture::new();
        let mut log = fixture.open(small());
        for number in 0..200_i64 {
            let timestamps = [NOW + number % 17, NOW + number % 5];
            try_append(&mut log, &batch(&timestamps, 100), number as i32 / 80).unwrap();
        }
        log.delete_records_before(offset(30), NOW).unwrap();
        let before = (
            read_all(&log, offset(30), 3000),
            log.segments().collect::<Vec<_>>(),
            log.epoch_entries().to_vec(),
            log.log_start_offset(),
            log.max_timestamp().unwrap(),
        );
        let log = if crash {
            fixture.reopen_crashed(log).unwrap()
        } else {
            fixture.reopen_clean(log)
        };
        let after = (
            read_all(&log, offset(30), 3000),
            log.segments().collect::<Vec<_>>(),
            log.epoch_entries().to_vec(),
            log.log_start_offset(),
            log.max_timestamp().unwrap(),
        );
        assert_eq!(before, after, "crash: {crash}");
    }
}

#[test]
fn recovery_makes_the_indexes_that_appending_made() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    for number in 0..300_i64 {
        append(&mut log, &batch(&[NOW + number % 40], 100));
    }
    let log = fixture.reopen_clean(log);
    let read = || {
        let mut files = Vec::new();
        for segment in log.segments() {
            for suffix in ["index", "timeindex"] {
                let path = fixture.file(segment.base_offset.value(), suffix);
                files.push((path.clone(), fs::read(path).unwrap()));
            }
        }
        files
    };
    let made_by_appending = read();
    assert!(made_by_appending.iter().all(|(_, bytes)| !bytes.is_empty()));
    for (path, _) in &made_by_appending {
        fs::write(path, [0xff; 40]).unwrap();
    }
    fixture.try_open(small(), opening()).unwrap();
    assert_eq!(read(), made_by_appending);
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 5);
    let whole = file_len(&fixture.file(0, "log"));
    append(&mut log, &batch(&[NOW; 3], 100));
    drop(log);
    let path = fixture.file(0, "log");
    let bytes = fs::read(&path).unwrap();
    for cut in whole..=bytes.len() as u64 {
        fs::write(&path, &bytes[..cut as usize]).unwrap();
        let mut log = fixture.open(small());
        let all_there = cut == bytes.len() as u64;
        let end = if all_there { 8 } else { 5 };
        assert_eq!(log.log_end_offset(), offset(end), "cut at {cut}");
        assert_eq!(file_len(&path), if all_there { cut } else { whole });
        assert_eq!(append(&mut log, &batch(&[NOW], 1)).base_offset, offset(end));
    }
    // As a power cut can leave it: the length is there, the bytes are not.
    for garbage in [&[0_u8; 5000][..], &[0xff; 300], b"x"] {
        let mut torn = bytes[..whole as usize].to_vec();
        torn.extend_from_slice(garbage);
        fs::write(&path, torn).unwrap();
        assert_eq!(fixture.open(small()).log_end_offset(), offset(5));
        assert_eq!(file_len(&path), whole);
    }
}

#[test]
fn damage_before_valid_batches_is_reported_and_nothing_is_cut() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 20);
    let one = file_len(&fixture.file(0, "log")) / 20;
    drop(log);
    let path = fixture.file(0, "log");
    let bytes = fs::read(&path).unwrap();
    // Any byte but those of the base offset and the leader epoch, which a checksum does
    // not cover; a smaller base offset is noticed as well.
    for at in (8..12).chain(16..one as usize).chain([0]) {
        let mut damaged = bytes.clone();
        let at_byte = 7 * one as usize + at;
        damaged[at_byte] ^= 0x80;
        fs::write(&path, &damaged).unwrap();
        let (position, expected, reason) = corrupt(fixture.try_open(small(), opening()));
        assert_eq!((position, expected), (7 * one, 7), "byte {at}: {reason}");
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }
    // The same in the last batch is a torn tail, unless it was durable.
    let mut damaged = bytes.clone();
    damaged[19 * one as usize + 16] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let (_, expected, _) = corrupt(fixture.try_open(small(), recovered_from(20)));
    assert_eq!(expected, 19);
    assert_eq!(fs::read(&path).unwrap(), damaged);
    let log = fixture.try_open(small(), recovered_from(19)).unwrap();
    assert_eq!(log.log_end_offset(), offset(19));
}

#[test]
fn a_log_that_ends_before_its_recovery_point_is_corrupt() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 20);
    let one = file_len(&fixture.file(0, "log")) / 20;
    drop(log);
    let path = fixture.file(0, "log");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..10 * one as usize]).unwrap();
    for clean_shutdown in [false, true] {
        let opening = Opening {
            clean_shutdown,
            ..recovered_from(11)
        };
        let (position, expected, _) = corrupt(fixture.try_open(small(), opening));
        assert_eq!((position, expected), (10 * one, 10));
    }
    // Records that were deleted need not be there.
    let opening = Opening {
        log_start_offset: offset(11),
        ..recovered_from(11)
    };
    let log = fixture.try_open(small(), opening).unwrap();
    assert_eq!(
        (log.log_start_offset(), log.log_end_offset()),
        (offset(11), offset(11))
    );
}

#[test]
fn a_tear_before_empty_segments_is_cut_with_them_and_before_records_is_not() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 10);
    log.roll(NOW).unwrap();
    drop(log);
    let first = fixture.file(0, "log");
    let bytes = fs::read(&first).unwrap();
    fs::write(&first, &bytes[..bytes.len() - 3]).unwrap();
    let log = fixture.open(small());
    assert_eq!((log.log_end_offset(), log.segments().len()), (offset(9), 1));
    drop(log);

    fs::write(&first, &bytes).unwrap();
    let mut log = fixture.open(small());
    log.roll(NOW).unwrap();
    append_many(&mut log, 1);
    drop(log);
    fs::write(&first, &bytes[..bytes.len() - 3]).unwrap();
    let (_, expected, _) = corrupt(fixture.try_open(small(), opening()));
    assert_eq!(expected, 9);
}

#[test]
fn only_what_follows_the_recovery_point_is_checked() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 40);
    flush(&mut log);
    assert_eq!(log.recovery_point(), offset(40));
    append_many(&mut log, 2);
    let log = fixture.reopen_crashed(log).unwrap();
    assert_eq!(log.log_end_offset(), offset(42));
    assert_eq!(log.recovery_point(), offset(40));
    drop(log);
    // A record's byte in the durable part: that is for compaction and scrubbing to find.
    let file = fs::File::options()
        .write(true)
        .open(fixture.file(0, "log"))
        .unwrap();
    file.write_at(&[0xee], 100).unwrap();
    fixture.try_open(small(), recovered_from(40)).unwrap();
    corrupt(fixture.try_open(small(), opening()));
}

#[test]
fn a_search_for_batches_in_a_torn_tail_is_bounded() {
    // A tail in which every byte looks like the beginning of a long batch.
    let fixture = Fixture::new();
    let log = fixture.open(LogConfig::default());
    drop(log);
    let mut file = fs::File::options()
        .append(true)
        .open(fixture.file(0, "log"))
        .unwrap();
    file.write_all(&vec![2; 200_000]).unwrap();
    let mut header = [0; 61];
    header[7] = 9;
    header[9] = 1;
    header[16] = 2;
    for _ in 0..20_000 {
        file.write_all(&header).unwrap();
    }
    let started = std::time::Instant::now();
    let result = fixture.try_open(LogConfig::default(), opening());
    let (_, _, reason) = corrupt(result);
    assert!(reason.contains("looks too much like"), "{reason}");
    assert!(started.elapsed().as_secs() < 30);
}

#[test]
fn a_truncation_makes_an_earlier_flush_plan_worthless() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 20);
    let flush = log.flush_plan().unwrap();
    log.truncate_to(offset(5), NOW).unwrap();
    append_many(&mut log, 30);
    flush.run().unwrap();
    log.flushed(&flush);
    assert_eq!(log.recovery_point(), offset(0));
    let flush = log.flush_plan().unwrap();
    append_many(&mut log, 1);
    flush.run().unwrap();
    log.flushed(&flush);
    assert_eq!(log.recovery_point(), offset(35));
    assert!(!log.flush_plan().unwrap().is_empty());
}

#[test]
fn many_logs_can_be_closed_with_one_sync() {
    let temporary = tempfile::tempdir().unwrap();
    let log_dir = crate::LogDir::open(temporary.path()).unwrap();
    let mut logs = Vec::new();
    for number in 0..5 {
        let partition = yuxi_protocol::ids::TopicPartition::new("t", number);
        let dir = log_dir.partition_dir(&partition);
        let mut log = Log::open(&dir, small(), opening()).unwrap();
        append_many(&mut log, 30);
        logs.push(log);
    }
    let plans: Vec<_> = logs
        .iter_mut()
        .map(|log| log.prepare_close().unwrap())
        .collect();
    log_dir.sync().unwrap();
    for (mut log, plan) in logs.into_iter().zip(plans) {
        log.flushed(&plan);
        assert!(
            log.prepare_close().unwrap().is_empty(),
            "nothing is left to do"
        );
        let clean = Opening {
            clean_shutdown: true,
            ..recovered_from(30)
        };
        let log = Log::open(log.dir(), small(), clean).unwrap();
        assert_eq!(log.recovery_point(), offset(30));
    }
}

#[test]
fn a_flush_is_due_after_so_many_records_or_so_much_time() {
    let fixture = Fixture::new();
    let mut log = fixture.open(LogConfig {
        flush_messages: 10,
        flush_ms: 1000,
        ..small()
    });
    assert!(!log.is_flush_due(i64::MAX));
    append_many(&mut log, 9);
    assert!(!log.is_flush_due(NOW + 999));
    assert!(log.is_flush_due(NOW + 1000));
    let an_hour_ms = 3_600_000;
    assert!(log.is_flush_due(NOW - an_hour_ms), "the clock was set back");
    append_many(&mut log, 1);
    assert!(log.is_flush_due(NOW));
    flush(&mut log);
    assert!(!log.is_flush_due(i64::MAX));
    assert!(log.flush_plan().unwrap().is_empty());
}

#[test]
fn a_damaged_or_lost_epoch_file_is_made_again_from_the_batches() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    for number in 0..100 {
        try_append(&mut log, &batch(&[NOW], 200), number / 30).unwrap();
    }
    let expected = log.epoch_entries().to_vec();
    assert_eq!(expected.len(), 4);
    let path = fixture.dir.join("leader-epoch-checkpoint");
    flush(&mut log);
    drop(log);
    for damage in ["lost", "", "0\n7\n", "garbage"] {
        match damage {
            "lost" => fs::remove_file(&path).unwrap(),
            text => fs::write(&path, text).unwrap(),
        }
        for clean_shutdown in [true, false] {
            let opening = Opening {
                clean_shutdown,
                ..opening()
            };
            let log = fixture.try_open(small(), opening).unwrap();
            assert_eq!(log.epoch_entries(), expected, "{damage:?}");
        }
    }
}

#[test]
fn what_another_process_left_half_done_is_removed() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 3);
    drop(log);
    let leftovers = [
        "00000000000000000000.log.deleted",
        "00000000000000000000.log.tmp",
        "00000000000000000000.log.cleaned",
        "00000000000000000077.index",
        "leader-epoch-checkpoint.tmp",
    ];
    for name in leftovers {
        fs::write(fixture.dir.join(name), "x").unwrap();
    }
    let log = fixture.open(small());
    assert_eq!(log.log_end_offset(), offset(3));
    for name in leftovers {
        assert!(!fixture.dir.join(name).exists(), "{name}");
    }
}

#[test]
fn a_damaged_index_is_made_anew_when_it_is_first_used() {
    let files = |log: &Log, fixture: &Fixture| {
        let mut files = Vec::new();
        for segment in log.segments() {
            for suffix in ["index", "timeindex"] {
                files.push(fixture.file(segment.base_offset.value(), suffix));
            }
        }
        files
    };
    for (name, damage) in [
        ("lost", &[][..]),
        ("past the end", &[0, 0, 0, 50, 0x7f, 0xff, 0xff, 0xff]),
        ("negative", &[0xff; 48]),
        ("of another segment", &[0, 0, 0, 10, 0, 0, 0x10, 0x10]),
    ] {
        let fixture = Fixture::new();
        let mut log = fixture.open(small());
        for number in 0..200_i64 {
            append(&mut log, &batch(&[NOW + number], 100));
        }
        log.close().unwrap();
        for path in files(&log, &fixture) {
            fs::write(path, damage).unwrap();
        }
        let clean = Opening {
            clean_shutdown: true,
            ..recovered_from(200)
        };
        drop(log);
        let log = fixture.try_open(small(), clean).unwrap();
        assert_eq!(log.log_end_offset(), offset(200), "{name}");
        for at in 0..200 {
            let read = log.read(offset(at), 1, true, offset(200)).unwrap();
            assert_eq!(read.start_offset, offset(at), "{name}");
            let found = log.offset_for_timestamp(NOW + at).unwrap().unwrap();
            assert_eq!(found.offset, offset(at), "{name}");
        }
    }
}

#[test]
fn indexes_as_kafka_leaves_them_after_a_crash_are_taken() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 60);
    log.close().unwrap();
    let point = log.recovery_point();
    drop(log);
    for suffix in ["index", "timeindex"] {
        let path = fixture.file(0, suffix);
        let mut bytes = fs::read(&path).unwrap();
        bytes.resize(10 << 20, 0);
        fs::write(path, bytes).unwrap();
    }
    let opening = Opening {
        recovery_point: point,
        clean_shutdown: true,
        ..opening()
    };
    let log = fixture.try_open(small(), opening).unwrap();
    assert_eq!(log.log_end_offset(), offset(60));
    assert_eq!(offsets(&log).len(), 60);
}

#[test]
fn the_topic_id_is_written_once_and_then_checked() {
    let fixture = Fixture::new();
    let id = |byte| Some(yuxi_protocol::ids::TopicId::from_bytes([byte; 16]));
    let with = |topic_id| Opening {
        topic_id,
        ..opening()
    };
    fixture.try_open(small(), with(id(1))).unwrap();
    fixture.try_open(small(), with(id(1))).unwrap();
    fixture.try_open(small(), with(None)).unwrap();
    assert!(matches!(
        fixture.try_open(small(), with(id(2))),
        Err(LogError::OtherTopic { .. })
    ));
}

#[test]
fn a_clean_start_reads_no_old_segment_and_keeps_no_file_open() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 200);
    log.close().unwrap();
    let clean = Opening {
        recovery_point: log.recovery_point(),
        clean_shutdown: true,
        ..opening()
    };
    drop(log);
    // Nobody looks at it.
    fs::write(fixture.file(0, "log"), "garbage").unwrap();
    let log = fixture.try_open(small(), clean).unwrap();
    assert_eq!(log.log_end_offset(), offset(200));
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let open = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    assert_eq!(
        open.filter(|path| path.starts_with(&fixture.dir)).count(),
        0
    );
}

#[test]
fn epochs_that_no_flush_wrote_are_read_from_the_batches_after_a_crash() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    for number in 0..40 {
        if number == 20 {
            flush(&mut log);
        }
        let epoch = number / 10;
        log.assign_epoch(yuxi_protocol::ids::LeaderEpoch::new(epoch));
        try_append(&mut log, &batch(&[NOW], 200), epoch).unwrap();
    }
    // A leader that appended nothing in its epoch.
    let expected = log.epoch_entries().to_vec();
    assert_eq!(expected.len(), 4);
    log.assign_epoch(yuxi_protocol::ids::LeaderEpoch::new(9));
    drop(log);
    let log = fixture.try_open(small(), recovered_from(20)).unwrap();
    assert_eq!(log.epoch_entries(), expected);
}
