//! What a compacted log still knows of its producers, when that is all there is to learn it
//! from: snapshots may be lost, and what a crash or another leader takes away goes too.

use std::{collections::BTreeSet, fs};

use yuxi_protocol::{
    ids::{ProducerEpoch, ProducerId},
    record::BatchView,
};

use super::{
    compaction::{DAY, clean, compacted, keyed},
    support::*,
    transactions::{marker, transactional, write},
};
use crate::Log;

/// The offsets of the snapshots that are there.
fn snapshots(fixture: &Fixture) -> BTreeSet<i64> {
    let names = fs::read_dir(&fixture.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| name.strip_suffix(".snapshot")?.parse().ok())
        .collect()
}

/// Base offset and number of records of each batch.
fn left(log: &Log) -> Vec<(i64, i32)> {
    let batches = read_all(log, log.log_start_offset(), 10_000);
    let count = |bytes: &[u8]| BatchView::parse(bytes).unwrap().header().record_count;
    batches
        .iter()
        .map(|(base, _, bytes)| (*base, count(bytes)))
        .collect()
}

/// A segment of its own for each of `batches`, and an active one.
fn segments(log: &mut Log, batches: &[bytes::Bytes]) {
    for batch in batches {
        append(log, batch);
        log.roll(NOW).unwrap();
    }
}

#[test]
fn the_newest_snapshot_survives_the_segment_that_it_was_taken_with() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    let other = batch(&[NOW], 10);
    segments(&mut log, &[produced(7, 0, 0, 1), other.clone(), other]);
    // A power failure has taken the last.
    fs::remove_file(fixture.file(3, "snapshot")).unwrap();
    let mut log = fixture.reopen_crashed(log).unwrap();
    append(&mut log, &produced(7, 0, 1, 1));
    clean(&mut log, None, NOW);
    assert_eq!(
        left(&log),
        [(2, 1), (3, 1)],
        "the first of the producer is gone"
    );
    assert_eq!(snapshots(&fixture), BTreeSet::from([2]));

    // Another leader does not have the second. That the first was written only the snapshot says.
    log.truncate_to(offset(3), NOW).unwrap();
    let again = append(&mut log, &produced(7, 0, 0, 1));
    assert_eq!(again.duplicate, Some(offset(0)));
}

#[test]
fn of_replaced_segments_only_the_first_keeps_its_snapshot() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    let other = batch(&[NOW], 10);
    segments(&mut log, &[produced(7, 0, 0, 1), other.clone(), other]);
    log.delete_records_before(offset(1), NOW).unwrap();
    assert_eq!(snapshots(&fixture), BTreeSet::from([1, 2, 3]));
    clean(&mut log, Some(1), NOW);
    assert_eq!(snapshots(&fixture), BTreeSet::from([1, 3]));
}

/// With transaction.version 2 each transaction ends with a marker in the next epoch, and
/// that is all that keeps a zombie out until the producer writes again.
#[test]
fn the_epoch_of_a_producer_s_last_marker_survives_the_marker_s_record() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    for epoch in 0..2 {
        write(&mut log, &transactional(7, epoch, 1)).unwrap();
        write(&mut log, &marker(7, epoch + 1, true)).unwrap();
    }
    append(&mut log, &batch(&[NOW], 10));
    log.roll(NOW).unwrap();
    log.high_watermark_moved(offset(5));
    clean(&mut log, Some(0), NOW);
    assert_eq!(left(&log), [(1, 1), (3, 1), (4, 1)]);
    // Their transactions are gone, and so are soon they.
    clean(&mut log, Some(0), NOW);
    clean(&mut log, Some(0), NOW + DAY);
    assert_eq!(left(&log), [(3, 0), (4, 1)]);

    for taken_at in snapshots(&fixture) {
        fs::remove_file(fixture.file(taken_at, "snapshot")).unwrap();
    }
    let mut log = fixture.reopen_crashed(log).unwrap();
    let (id, epoch) = (ProducerId::new(7), ProducerEpoch::new(2));
    assert_eq!(log.producers.entries()[&id].epoch, epoch);
    assert!(
        write(&mut log, &transactional(7, 1, 1)).is_err(),
        "a zombie"
    );
    write(&mut log, &transactional(7, 2, 1)).unwrap();
}

/// Or a reader at its offset would wait for a batch that never comes.
#[test]
fn the_last_batch_survives_though_all_its_records_are_gone() {
    let fixture = Fixture::new();
    let mut log = fixture.open(compacted());
    segments(
        &mut log,
        &[keyed(&[("a", Some("1"))]), keyed(&[("a", None)])],
    );
    clean(&mut log, Some(0), NOW);
    clean(&mut log, Some(0), NOW + DAY);
    assert_eq!(left(&log), [(1, 0)]);
}
