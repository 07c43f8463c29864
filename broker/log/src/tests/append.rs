use std::{collections::BTreeSet, io};

use yuxi_protocol::{
    ids::LeaderEpoch,
    record::{BatchView, batch::batches},
};

use super::support::*;
use crate::{AppendError, AppendOrigin, LogConfig, ReadError, file_io::full_disk};

#[test]
fn an_append_gives_the_next_offsets_and_leaves_the_batch_as_it_was() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    let three = batch(&[NOW, NOW + 5, NOW + 1], 20);
    let one = batch(&[NOW], 7);
    let views = [
        BatchView::parse(&three).unwrap(),
        BatchView::parse(&one).unwrap(),
    ];
    let info = log
        .append_as_leader(&views, epoch(4), AppendOrigin::Client, NOW)
        .unwrap();
    assert_eq!((info.base_offset, info.last_offset), (offset(0), offset(3)));
    assert_eq!(info.max_timestamp, NOW + 5);
    assert_eq!(append(&mut log, &one).base_offset, offset(4));
    assert_eq!(log.log_end_offset(), offset(5));

    let stored = read_all(&log, offset(0), 1 << 20);
    assert_eq!(stored.len(), 3);
    for ((base, _, bytes), (sent, at)) in stored.iter().zip([(&three, 0), (&one, 3), (&one, 4)]) {
        assert_eq!(*base, at);
        assert_eq!(bytes[16..], sent[16..]);
    }
    // The file is those batches and nothing else.
    let file = std::fs::read(fixture.file(0, "log")).unwrap();
    assert_eq!(file.len() as u64, log.size_bytes());
    assert_eq!(batches(&file).count(), 3);
    let header = *BatchView::parse(&file).unwrap().header();
    assert_eq!(header.partition_leader_epoch, LeaderEpoch::new(4));
}

#[test]
fn a_read_returns_whole_batches_below_its_limits() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    for _ in 0..300 {
        append(&mut log, &batch(&[NOW, NOW], 100));
    }
    let size = log.segments().next().unwrap().size_bytes as usize;
    let one = BatchView::parse(&batch(&[NOW, NOW], 100))
        .unwrap()
        .bytes()
        .len();
    assert!(log.segments().len() > 3);
    let read = |from, max, at_least_one, up_to| {
        let read = log
            .read(offset(from), max, at_least_one, offset(up_to))
            .unwrap();
        (
            read.start_offset.value(),
            read.slice.map_or(0, |slice| slice.len()),
        )
    };
    for (name, found, expected) in [
        ("all of a segment", read(0, 1 << 20, true, 600), (0, size)),
        (
            "the second record of a batch",
            read(3, one, false, 600),
            (2, one),
        ),
        (
            "not quite two batches",
            read(2, 2 * one - 1, false, 600),
            (2, one),
        ),
        ("two batches", read(2, 2 * one, false, 600), (2, 2 * one)),
        ("less than a batch", read(2, one - 1, false, 600), (2, 0)),
        ("at least one", read(2, 1, true, 600), (2, one)),
        (
            "up to the high watermark",
            read(0, 1 << 20, true, 10),
            (0, 5 * one),
        ),
        (
            "a high watermark within a batch",
            read(0, 1 << 20, true, 11),
            (0, 5 * one),
        ),
        (
            "at the high watermark",
            read(10, 1 << 20, true, 10),
            (10, 0),
        ),
        (
            "above the high watermark",
            read(12, 1 << 20, true, 10),
            (12, 0),
        ),
        ("at the end", read(600, 1 << 20, true, 600), (600, 0)),
        ("nothing allowed", read(0, 0, false, 600), (0, 0)),
    ] {
        assert_eq!(found, expected, "{name}");
    }
    for from in [-1, 601] {
        let error = log.read(offset(from), 100, true, offset(600)).unwrap_err();
        assert!(matches!(error, ReadError::OffsetOutOfRange(_)), "{from}");
    }
    for from in 0..600 {
        let all = read_all(&log, offset(from), 700);
        assert_eq!(all.len(), 300 - from as usize / 2, "from {from}");
    }
}

#[test]
fn a_slice_stays_as_it_was_whatever_happens_to_the_log() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 20);
    let slice = log
        .read(offset(0), 1 << 20, true, offset(20))
        .unwrap()
        .slice
        .unwrap();
    let before = slice.as_bytes().to_vec();
    assert!(slice.is_resident());

    log.truncate_to(offset(5), NOW).unwrap();
    append(&mut log, &batch(&[NOW + 9], 3000));
    assert_eq!(slice.as_bytes(), before);
    let mut next = vec![0; before.len()];
    rustix::io::pread(slice.file(), &mut next, slice.position()).unwrap();
    assert_eq!(next, before, "sendfile reads the old file too");
    assert_eq!(offsets(&log), [0, 1, 2, 3, 4, 5]);

    log.truncate_fully_and_start_at(offset(100), NOW).unwrap();
    log.remove_deleted(i64::MAX);
    log.release_unused_files();
    log.release_unused_files();
    drop(log);
    assert_eq!(slice.as_bytes(), before);
    // Also what is on the disk now is the log as it is now.
    assert_eq!(fixture.open(small()).log_end_offset(), offset(100));
}

#[test]
fn a_full_disk_fails_the_append_and_nothing_else() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 3);
    let path = fixture.file(0, "log");
    let before = file_len(&path);
    let sent = batch(&[NOW], 100);
    let views = [(); 3].map(|()| BatchView::parse(&sent).unwrap());
    for room in [0, 1, 16, 100, sent.len(), sent.len() + 16, 2 * sent.len()] {
        full_disk::set(Some(room));
        let error = log
            .append_as_leader(&views, epoch(0), AppendOrigin::Client, NOW)
            .unwrap_err();
        full_disk::set(None);
        let AppendError::Storage(error) = error else {
            panic!("{error}");
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(log.log_end_offset(), offset(3));
        assert_eq!(offsets(&log), [0, 1, 2], "reads go on");
        assert_eq!(file_len(&path), before, "nothing is left in the file");
    }
    assert_eq!(append(&mut log, &sent).base_offset, offset(3));
    let log = fixture.reopen_crashed(log).unwrap();
    assert_eq!(offsets(&log), [0, 1, 2, 3]);
}

#[test]
fn segments_are_rolled_by_size_time_and_offset() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 200);
    let sizes: Vec<_> = log.segments().map(|segment| segment.size_bytes).collect();
    assert!(sizes.len() > 2 && sizes.iter().all(|&size| size <= 10_000));

    let mut config = small();
    config.segment_ms = 1000;
    let fixture = Fixture::new();
    let mut log = fixture.open(config);
    for (timestamp, segments) in [(0, 1), (1000, 1), (1001, 2), (1500, 2), (900, 2), (2002, 3)] {
        append(&mut log, &batch(&[NOW + timestamp], 10));
        assert_eq!(log.segments().len(), segments, "{timestamp}");
    }
    log.roll(NOW).unwrap();
    log.roll(NOW).unwrap();
    assert_eq!(log.segments().len(), 4, "an empty segment is not rolled");
    assert_eq!(offsets(&log), [0, 1, 2, 3, 4, 5]);

    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    let mut far = batch(&[NOW], 10).to_vec();
    log.append_as_follower(&far, NOW).unwrap();
    far[..8].copy_from_slice(&(i64::from(i32::MAX) + 1).to_be_bytes());
    log.append_as_follower(&far, NOW).unwrap();
    assert_eq!(log.segments().len(), 2, "relative offsets have 31 bits");
}

#[test]
fn with_jitter_segments_are_rolled_earlier_and_not_all_after_the_same_time() {
    let fixture = Fixture::new();
    let mut log = fixture.open(LogConfig {
        segment_ms: 1000,
        segment_jitter_ms: 500,
        ..small()
    });
    for number in 0..2000 {
        append(&mut log, &batch(&[NOW + number * 10], 1));
    }
    let began: Vec<i64> = log
        .segments()
        .map(|segment| segment.base_offset.value())
        .collect();
    let lasted_ms = began.windows(2).map(|pair| (pair[1] - pair[0]) * 10);
    let lasted_ms: BTreeSet<i64> = lasted_ms.collect();
    assert!(lasted_ms.len() > 2, "{lasted_ms:?}");
    assert!(
        lasted_ms.iter().all(|took| (510..=1010).contains(took)),
        "{lasted_ms:?}"
    );
}

#[test]
fn an_append_larger_than_a_segment_is_refused() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    let error = try_append(&mut log, &batch(&[NOW], 10_000), 0).unwrap_err();
    assert!(matches!(error, AppendError::LargerThanSegment { .. }));
    assert_eq!(log.log_end_offset(), offset(0));
}

#[test]
fn settings_take_effect_while_the_log_is_open() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 10);
    let larger = LogConfig {
        segment_bytes: 1 << 20,
        ..small()
    };
    log.set_config(larger);
    append(&mut log, &batch(&[NOW], 100_000));
    append_many(&mut log, 100);
    assert_eq!(
        log.segments().len(),
        2,
        "what is mapped for 10,000 bytes is left behind"
    );
    log.set_config(small());
    append_many(&mut log, 1);
    assert_eq!(log.segments().len(), 3);
    assert_eq!(offsets(&log).len(), 112);
}

#[test]
fn a_segment_that_is_written_again_is_mapped_for_all_it_may_hold() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 5);
    log.roll(NOW).unwrap();
    append_many(&mut log, 1);
    log.roll(NOW).unwrap();
    // The second segment is mapped while it is an old one with one batch.
    assert_eq!(offsets(&log).len(), 6);
    log.release_unused_files();
    log.release_unused_files();
    assert_eq!(offsets(&log).len(), 6);
    log.truncate_to(offset(5), NOW).unwrap();
    append_many(&mut log, 40);
    assert_eq!((offsets(&log).len(), log.segments().len()), (45, 2));

    log.roll(NOW).unwrap();
    log.read(offset(44), 1, true, offset(45)).unwrap();
    log.flush_plan().unwrap().run().unwrap();
    log.set_config(LogConfig::default());
    append(&mut log, &batch(&[NOW], 100_000));
    assert_eq!(offsets(&log).len(), 46);
}

#[test]
fn a_follower_keeps_the_leaders_offsets_and_epochs() {
    let leader_files = Fixture::new();
    let mut leader = leader_files.open(small());
    for number in 0..150 {
        try_append(&mut leader, &batch(&[NOW; 2], 100), number / 50).unwrap();
    }
    let follower_files = Fixture::new();
    let mut follower = follower_files.open(LogConfig {
        segment_bytes: 3000,
        ..small()
    });
    let mut next = offset(0);
    while next < leader.log_end_offset() {
        let read = leader
            .read(next, 4000, true, leader.log_end_offset())
            .unwrap();
        let slice = read.slice.unwrap();
        let sent = slice.as_bytes();
        // What is cut off at the end is left out, and comes with the next answer.
        let cut = &sent[..sent.len() - sent.len() / 7];
        if follower.append_as_follower(cut, NOW).unwrap().bytes == 0 {
            follower.append_as_follower(sent, NOW).unwrap();
        }
        follower.append_as_follower(&[], NOW).unwrap();
        next = follower.log_end_offset();
    }
    assert_eq!(
        read_all(&leader, offset(0), 999),
        read_all(&follower, offset(0), 9999)
    );
    assert_eq!(leader.epoch_entries(), follower.epoch_entries());
    assert_eq!(
        follower.end_offset_for_epoch(epoch(1)),
        Some((epoch(1), offset(200)))
    );

    let old = leader
        .read(offset(3), 100, true, next)
        .unwrap()
        .slice
        .unwrap();
    let error = follower
        .append_as_follower(old.as_bytes(), NOW)
        .unwrap_err();
    assert!(matches!(error, AppendError::OffsetNotIncreasing { .. }));
    let mut damaged = old.as_bytes().to_vec();
    damaged[70] ^= 1;
    let error = follower.append_as_follower(&damaged, NOW).unwrap_err();
    assert!(matches!(error, AppendError::Invalid(_)), "{error}");
}

#[test]
fn records_are_found_by_their_timestamps() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    // Within a batch and between batches, timestamps go up and down.
    for number in 0..400_i64 {
        let at = NOW + number * 100;
        append(&mut log, &batch(&[at + 50, at, at + 70, at - 150], 100));
    }
    assert!(log.segments().len() > 5);
    let slow = |timestamp| {
        (0..1600).find(|record| {
            let at = NOW + record / 4 * 100;
            [at + 50, at, at + 70, at - 150][*record as usize % 4] >= timestamp
        })
    };
    let check = |log: &crate::Log| {
        for timestamp in (-200..40_100).step_by(33).chain([39_970, 39_971]) {
            let timestamp = NOW + timestamp;
            let found = log.offset_for_timestamp(timestamp).unwrap();
            let found = found.map(|found| found.offset.value());
            assert_eq!(found, slow(timestamp), "{}", timestamp - NOW);
        }
        let max = log.max_timestamp().unwrap().unwrap();
        assert_eq!((max.timestamp, max.offset), (NOW + 39_970, offset(1598)));
    };
    check(&log);
    let mut log = fixture.reopen_clean(log);
    check(&log);
    log.delete_records_before(offset(10), NOW).unwrap();
    let found = log.offset_for_timestamp(0).unwrap().unwrap();
    assert_eq!(found.offset, offset(10));
    log.truncate_to(offset(41), NOW).unwrap();
    let max = log.max_timestamp().unwrap().unwrap();
    assert_eq!((max.timestamp, max.offset), (NOW + 970, offset(38)));
    assert_eq!(log.offset_for_timestamp(NOW + 971).unwrap(), None);
}

#[test]
fn idle_segments_hold_no_files() {
    let fixture = Fixture::new();
    let mut log = fixture.open(small());
    append_many(&mut log, 200);
    read_all(&log, offset(0), 1000);
    let open_files = || {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .filter(|path| path.starts_with(&fixture.dir))
            .count()
    };
    let mappings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let dir = fixture.dir.to_string_lossy().into_owned();
        maps.lines().filter(|line| line.contains(&dir)).count()
    };
    assert!(open_files() >= 3 && mappings() >= 3);
    log.release_unused_files();
    assert!(open_files() >= 3, "they have just been used");
    log.release_unused_files();
    assert_eq!((open_files(), mappings()), (0, 0));
    append_many(&mut log, 5);
    assert_eq!(offsets(&log).len(), 205);
}
