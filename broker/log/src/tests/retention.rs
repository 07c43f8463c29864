use std::fs;

use super::support::*;
use crate::{CleanupPolicy, Log, LogConfig, ReadError};

/// Segments of ten records each, a second between records.
fn ten_a_segment(fixture: &Fixture, segments: i64, config: LogConfig) -> Log {
    let mut log = fixture.open(config);
    for number in 0..segments * 10 {
        if number > 0 && number % 10 == 0 {
            log.roll(NOW).unwrap();
        }
        append(&mut log, &batch(&[NOW + number * 1000], 100));
    }
    log
}

fn bases(log: &Log) -> Vec<i64> {
    log.segments()
        .map(|segment| segment.base_offset.value())
        .collect()
}

#[test]
fn segments_go_when_their_last_record_is_older_than_the_retention_time() {
    let fixture = Fixture::new();
    let config = LogConfig {
        retention_ms: 60_000,
        ..small()
    };
    let mut log = ten_a_segment(&fixture, 4, config);
    let end = log.log_end_offset();
    for (now, expected) in [
        (NOW + 69_000, &[0, 10, 20, 30][..]),
        (NOW + 69_001, &[10, 20, 30]),
        (NOW + 89_000, &[20, 30]),
        (NOW + 99_001, &[40]),
        (NOW + 999_001, &[40]),
    ] {
        log.delete_old_segments(now, end).unwrap();
        assert_eq!(bases(&log), expected, "{}", now - NOW);
        assert_eq!(log.log_start_offset().value(), expected[0]);
        assert_eq!(offsets(&log).len() as i64, 40 - expected[0]);
    }
    assert_eq!(append(&mut log, &batch(&[NOW], 10)).base_offset, offset(40));
}

#[test]
fn segments_go_when_the_others_are_large_enough() {
    let fixture = Fixture::new();
    let mut log = ten_a_segment(&fixture, 4, small());
    let one = log.segments().next().unwrap().size_bytes as i64;
    let end = log.log_end_offset();
    for (retention_bytes, expected) in [
        (-1, &[0, 10, 20, 30][..]),
        (4 * one, &[0, 10, 20, 30]),
        (4 * one - 1, &[0, 10, 20, 30]),
        (3 * one, &[10, 20, 30]),
        (one, &[30]),
        (0, &[40]),
    ] {
        log.set_config(LogConfig {
            retention_bytes,
            retention_ms: -1,
            ..small()
        });
        log.delete_old_segments(NOW, end).unwrap();
        assert_eq!(bases(&log), expected, "{retention_bytes}");
    }
}

#[test]
fn nothing_above_the_high_watermark_and_nothing_compacted_is_deleted() {
    let fixture = Fixture::new();
    let config = LogConfig {
        retention_ms: 1,
        ..small()
    };
    let mut log = ten_a_segment(&fixture, 3, config.clone());
    assert_eq!(log.delete_old_segments(i64::MAX, offset(19)).unwrap(), 1);
    assert_eq!(bases(&log), [10, 20]);
    log.set_config(LogConfig {
        cleanup_policy: CleanupPolicy::Compact,
        ..config
    });
    assert_eq!(log.delete_old_segments(i64::MAX, offset(30)).unwrap(), 0);
}

#[test]
fn deleted_files_stay_readable_under_another_name_for_a_while() {
    let fixture = Fixture::new();
    let mut log = ten_a_segment(&fixture, 3, small());
    let slice = log
        .read(offset(0), 100_000, true, offset(30))
        .unwrap()
        .slice
        .unwrap();
    log.delete_records_before(offset(10), NOW).unwrap();
    assert_eq!(bases(&log), [10, 20]);
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&fixture.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("00000000000000000000."))
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        names(),
        ["index", "log", "timeindex"].map(|s| format!("00000000000000000000.{s}.deleted"))
    );
    log.remove_deleted(NOW + 59_999);
    assert_eq!(names().len(), 3);
    log.remove_deleted(NOW + 60_000);
    assert_eq!(names().len(), 0);
    assert!(!slice.as_bytes().is_empty());
}

#[test]
fn deleting_records_moves_the_start_and_only_whole_segments_go() {
    let fixture = Fixture::new();
    let mut log = ten_a_segment(&fixture, 3, small());
    for (start, expected) in [
        (5, &[0, 10, 20][..]),
        (3, &[0, 10, 20]),
        (10, &[10, 20]),
        (29, &[20]),
        (30, &[20]),
    ] {
        let before = log.log_start_offset().value();
        log.delete_records_before(offset(start), NOW).unwrap();
        assert_eq!(log.log_start_offset().value(), start.max(before));
        assert_eq!(bases(&log), expected);
    }
    assert!(matches!(
        log.delete_records_before(offset(31), NOW),
        Err(ReadError::OffsetOutOfRange(_))
    ));
    assert!(log.read(offset(29), 100, true, offset(30)).is_err());
    let log = fixture.reopen_clean(log);
    assert_eq!(log.log_start_offset(), offset(30));
    assert_eq!(log.log_end_offset(), offset(30));
}

#[test]
fn truncation_ends_the_log_at_a_batch_boundary() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    for number in 0..60 {
        if number % 20 == 19 {
            log.roll(NOW).unwrap();
        }
        append(&mut log, &batch(&[NOW; 3], 50));
    }
    for (to, end) in [
        (180, 180),
        (179, 177),
        (177, 177),
        (100, 99),
        (57, 57),
        (56, 54),
    ] {
        let had = log.log_end_offset();
        let truncated = log.truncate_to(offset(to), NOW).unwrap();
        assert_eq!(truncated, had > offset(to));
        assert_eq!(log.log_end_offset(), offset(end), "to {to}");
        assert_eq!(offsets(&log).len() as i64, end / 3);
        log = fixture.reopen_clean(log);
        assert_eq!(log.log_end_offset(), offset(end), "to {to}, reopened");
        log = fixture.reopen_crashed(log).unwrap();
        assert_eq!(log.log_end_offset(), offset(end), "to {to}, recovered");
    }
    log.delete_records_before(offset(10), NOW).unwrap();
    log.truncate_to(offset(11), NOW).unwrap();
    // The batch of offset 11 begins before the log's start, which does not move back.
    assert_eq!(
        (log.log_start_offset(), log.log_end_offset()),
        (offset(10), offset(10))
    );
    assert_eq!(append(&mut log, &batch(&[NOW], 5)).base_offset, offset(10));
}

#[test]
fn a_log_can_be_sent_to_other_threads() {
    fn check<T: Send + Sync>() {}
    check::<Log>();
    check::<crate::FileSlice>();
    check::<crate::Flush>();
}
