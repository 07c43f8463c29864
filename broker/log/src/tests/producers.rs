use yuxi_protocol::{
    ids::{ProducerEpoch, ProducerId},
    record::{BatchView, EndMarker, builder::RecordBatchBuilder},
};

use super::support::*;
use crate::{AppendError, AppendOrigin, Log, LogConfig, Opening};

fn send(log: &mut Log, epoch: i16, sequence: i32, count: usize) -> Result<i64, String> {
    match try_append(log, &produced(7, epoch, sequence, count), 0) {
        Ok(info) => Ok(match info.duplicate {
            // Negative, to tell them apart at a glance.
            Some(duplicate) => {
                assert_eq!(duplicate, info.base_offset);
                -info.base_offset.value()
            }
            None => info.base_offset.value(),
        }),
        Err(AppendError::OutOfOrderSequence { last_sequence, .. }) => {
            Err(format!("after {last_sequence}"))
        }
        Err(AppendError::InvalidProducerEpoch { current_epoch, .. }) => {
            Err(format!("fenced by {current_epoch}"))
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn sequences_are_checked_and_repetitions_answered_with_their_offset() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 10);
    // One record a step, so that sequence and offset differ by 10.
    for sequence in 0..8 {
        assert_eq!(send(&mut log, 0, sequence, 1), Ok(i64::from(sequence) + 10));
    }
    for (epoch, sequence, count, expected) in [
        (0, 7, 1, Ok(-17)),
        (0, 3, 1, Ok(-13)),
        (0, 2, 1, Err("after 7".to_owned())),
        (0, 9, 1, Err("after 7".to_owned())),
        (0, 7, 2, Err("after 7".to_owned())),
        (0, 8, 2, Ok(18)),
        (0, 8, 2, Ok(-18)),
        (1, 10, 1, Err("after 9".to_owned())),
        (1, 0, 1, Ok(20)),
        (1, 0, 1, Ok(-20)),
        (0, 10, 1, Err("fenced by 1".to_owned())),
        (0, 8, 2, Err("fenced by 1".to_owned())),
        (1, 1, 1, Ok(21)),
    ] {
        let found = send(&mut log, epoch, sequence, count);
        assert_eq!(found, expected, "epoch {epoch}, sequence {sequence}");
    }
    assert_eq!(log.log_end_offset(), offset(22));
}

#[test]
fn sequences_wrap_to_zero() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    assert_eq!(send(&mut log, 0, i32::MAX - 2, 2), Ok(0));
    assert_eq!(send(&mut log, 0, i32::MAX, 3), Ok(2));
    assert_eq!(send(&mut log, 0, i32::MAX, 3), Ok(-2));
    assert_eq!(send(&mut log, 0, 2, 1), Ok(5));
    assert_eq!(
        send(&mut log, 0, i32::MAX - 2, 2),
        Ok(0),
        "a repetition of offset 0"
    );
    assert_eq!(log.log_end_offset(), offset(6));
}

#[test]
fn an_unknown_producer_may_begin_with_any_sequence() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    assert_eq!(send(&mut log, 3, 55, 1), Ok(0));
    assert_eq!(send(&mut log, 3, 57, 1), Err("after 55".to_owned()));
}

#[test]
fn a_refused_batch_leaves_no_trace() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    send(&mut log, 0, 0, 1).unwrap();
    let good = produced(7, 0, 1, 1);
    let bad = produced(7, 0, 5, 1);
    let views = [
        BatchView::parse(&good).unwrap(),
        BatchView::parse(&bad).unwrap(),
    ];
    let refused = log.append_as_leader(&views, epoch(0), AppendOrigin::Client, NOW);
    assert!(matches!(
        refused,
        Err(AppendError::OutOfOrderSequence { .. })
    ));
    crate::file_io::full_disk::set(Some(10));
    let failed = log.append_as_leader(&views[..1], epoch(0), AppendOrigin::Client, NOW);
    crate::file_io::full_disk::set(None);
    assert!(matches!(failed, Err(AppendError::Storage(_))));
    assert_eq!(log.log_end_offset(), offset(1));
    assert_eq!(send(&mut log, 0, 1, 1), Ok(1));
}

#[test]
fn a_coordinator_is_fenced_by_epoch_but_needs_no_sequence() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    let mut write = |epoch_of_producer, sequence, origin| {
        let bytes = produced(7, epoch_of_producer, sequence, 1);
        let view = BatchView::parse(&bytes).unwrap();
        log.append_as_leader(&[view], epoch(0), origin, NOW).is_ok()
    };
    assert!(write(5, 9, AppendOrigin::Coordinator));
    assert!(write(5, 100, AppendOrigin::Coordinator));
    assert!(!write(4, 0, AppendOrigin::Coordinator));
    assert!(!write(4, 0, AppendOrigin::Client));
    assert!(write(4, 0, AppendOrigin::Replication));
}

#[test]
fn all_five_batches_are_known_again_after_a_crash_and_after_a_clean_stop() {
    for (name, crash, roll) in [
        ("crash", true, false),
        ("crash after a roll", true, true),
        ("clean stop", false, false),
        ("clean stop after a roll", false, true),
    ] {
        let fixture = Fixture::new();
        let mut log = fixture.open(small());
        for sequence in 0..20 {
            send(&mut log, 2, sequence * 2, 2).unwrap();
        }
        if roll {
            log.roll(NOW).unwrap();
        }
        let before: Vec<_> = log
            .active_producers()
            .map(|(id, e)| (id, e.clone()))
            .collect();
        let mut log = if crash {
            fixture.reopen_crashed(log).unwrap()
        } else {
            fixture.reopen_clean(log)
        };
        let after: Vec<_> = log
            .active_producers()
            .map(|(id, e)| (id, e.clone()))
            .collect();
        assert_eq!(before, after, "{name}");
        for sequence in 15..20 {
            let found = send(&mut log, 2, sequence * 2, 2);
            assert_eq!(found, Ok(-i64::from(sequence) * 2), "{name}");
        }
        assert_eq!(
            send(&mut log, 2, 28, 2),
            Err("after 39".to_owned()),
            "{name}"
        );
        assert_eq!(
            send(&mut log, 1, 40, 1),
            Err("fenced by 2".to_owned()),
            "{name}"
        );
        assert_eq!(send(&mut log, 2, 40, 1), Ok(40), "{name}");
    }
}

#[test]
fn a_damaged_snapshot_is_not_believed() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    for sequence in 0..9 {
        send(&mut log, 0, sequence, 1).unwrap();
        if sequence % 3 == 2 {
            log.roll(NOW).unwrap();
        }
    }
    send(&mut log, 0, 9, 1).unwrap();
    drop(log);
    for base in [9, 6, 3] {
        let path = fixture.file(base, "snapshot");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        // Up to there nothing is read again, so that a snapshot is what remains.
        let flushed = Opening {
            recovery_point: offset(10),
            ..opening()
        };
        let mut log = fixture.try_open(small(), flushed).unwrap();
        assert!(!path.exists(), "the damaged one is removed");
        assert_eq!(send(&mut log, 0, 9, 1), Ok(-9));
        assert_eq!(send(&mut log, 0, 11, 1), Err("after 9".to_owned()));
    }
}

#[test]
fn truncation_takes_back_what_the_removed_batches_had_taught() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    for sequence in 0..30 {
        send(&mut log, 0, sequence, 1).unwrap();
        if sequence == 12 {
            log.roll(NOW).unwrap();
        }
    }
    send(&mut log, 1, 0, 1).unwrap();
    for end in [25, 13, 5] {
        log.truncate_to(offset(end), NOW).unwrap();
        assert_eq!(
            send(&mut log, 0, end as i32 + 1, 1),
            Err(format!("after {}", end - 1))
        );
        assert_eq!(send(&mut log, 0, end as i32 - 1, 1), Ok(-(end - 1)));
        assert_eq!(send(&mut log, 0, end as i32, 1), Ok(end));
    }
    log.truncate_to(offset(0), NOW).unwrap();
    assert_eq!(log.active_producers().len(), 0);
}

#[test]
fn a_snapshot_of_records_that_were_truncated_is_not_used_for_those_that_came_instead() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    for sequence in 0..5 {
        send(&mut log, 0, sequence, 1).unwrap();
    }
    log.roll(NOW).unwrap();
    send(&mut log, 0, 5, 1).unwrap();
    log.truncate_to(offset(2), NOW).unwrap();
    for sequence in 2..5 {
        send(&mut log, 0, sequence, 1).unwrap();
    }
    append_many(&mut log, 3);
    send(&mut log, 1, 0, 1).unwrap();
    log.truncate_to(offset(4), NOW).unwrap();
    append_many(&mut log, 5);
    let mut log = fixture.reopen_crashed(log).unwrap();
    assert_eq!(send(&mut log, 0, 5, 1), Err("after 3".to_owned()));
    assert_eq!(send(&mut log, 0, 4, 1), Ok(9));
}

#[test]
fn silent_producers_are_forgotten() {
    let fixture = Fixture::new();
    let config = LogConfig {
        producer_id_expiration_ms: 1000,
        ..small()
    };
    let mut log = fixture.open(config.clone());
    send(&mut log, 0, 0, 1).unwrap();
    log.remove_expired_producers(NOW + 999);
    assert_eq!(log.active_producers().len(), 1);
    log.close().unwrap();
    let later = Opening {
        now_ms: NOW + 1000,
        clean_shutdown: true,
        recovery_point: log.recovery_point(),
        ..opening()
    };
    log.remove_expired_producers(NOW + 1000);
    assert_eq!(log.active_producers().len(), 0);
    drop(log);
    let log = fixture.try_open(config, later).unwrap();
    assert_eq!(log.active_producers().len(), 0);
}

#[test]
fn a_snapshot_is_kafkas_version_1() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    send(&mut log, 3, 4, 2).unwrap();
    send(&mut log, 3, 6, 1).unwrap();
    log.close().unwrap();
    let bytes = std::fs::read(fixture.file(3, "snapshot")).unwrap();
    assert_eq!(bytes.len(), 10 + 2 * 46);
    assert_eq!(bytes[..2], [0, 1]);
    let crc = yuxi_protocol::record::crc32c(&bytes[6..]);
    assert_eq!(bytes[2..6], crc.to_be_bytes());
    assert_eq!(bytes[6..10], [0, 0, 0, 2]);
    let mut last = Vec::new();
    last.extend_from_slice(&7_i64.to_be_bytes()); // producer id
    last.extend_from_slice(&3_i16.to_be_bytes()); // epoch
    last.extend_from_slice(&6_i32.to_be_bytes()); // last sequence
    last.extend_from_slice(&2_i64.to_be_bytes()); // last offset
    last.extend_from_slice(&0_i32.to_be_bytes()); // offset delta
    last.extend_from_slice(&NOW.to_be_bytes()); // timestamp
    last.extend_from_slice(&(-1_i32).to_be_bytes()); // coordinator epoch
    last.extend_from_slice(&(-1_i64).to_be_bytes()); // transaction's first offset
    assert_eq!(
        bytes[10 + 46..],
        last,
        "Kafka takes the last entry of a producer"
    );
}

#[test]
fn a_transaction_is_open_from_its_first_batch_to_its_marker() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 4);
    let of_producer = |sequence| {
        RecordBatchBuilder::new().producer(ProducerId::new(7), ProducerEpoch::new(0), sequence)
    };
    let data = fill(of_producer(0).transactional(), &[NOW], 10);
    append(&mut log, &data);
    append_many(&mut log, 2);
    assert_eq!(log.first_undecided_offset(), Some(offset(4)));
    let refused = try_append(&mut log, &produced(7, 0, 1, 1), 0);
    assert!(matches!(refused, Err(AppendError::NotTransactional { .. })));
    let mut log = fixture.reopen_clean(log);
    assert_eq!(log.first_undecided_offset(), Some(offset(4)));

    let marker = |coordinator_epoch| {
        let marker = EndMarker {
            commit: true,
            coordinator_epoch,
        };
        marker.build(ProducerId::new(7), ProducerEpoch::new(0), NOW)
    };
    let write = |log: &mut Log, bytes: &[u8]| {
        let view = BatchView::parse(bytes).unwrap();
        log.append_as_leader(&[view], epoch(0), AppendOrigin::Coordinator, NOW)
    };
    write(&mut log, &marker(9)).unwrap();
    assert_eq!(log.first_undecided_offset(), None);
    let fenced = write(&mut log, &marker(8));
    assert!(matches!(fenced, Err(AppendError::CoordinatorFenced { .. })));
    let mut log = fixture.reopen_crashed(log).unwrap();
    let entry = log.active_producers().next().unwrap().1.clone();
    assert_eq!(
        (entry.coordinator_epoch, entry.transaction_first_offset),
        (9, None)
    );
    assert_eq!(send(&mut log, 0, 1, 1), Ok(8), "a marker has no sequence");
}
