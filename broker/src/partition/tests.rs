//! A partition over a real log, without a network.

use super::*;
use crate::metrics::Metrics;
use std::{collections::BTreeMap, path::Path};
use yuxi_controller::{
    keys::{LeaderRecovery, PartitionState},
    settings::ServerSettings,
};
use yuxi_log::Opening;
use yuxi_protocol::record::RecordBatchBuilder;

const ME: BrokerId = BrokerId::new(1);

/// A replica on `broker`, which has no role yet.
pub(super) fn replica(directory: &Path, broker: BrokerId, overrides: &[(&str, &str)]) -> Partition {
    let overrides: BTreeMap<String, String> = overrides
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let text = format!("node.id=1\nlog.dirs={}\n", directory.display());
    let server = ServerSettings::from_properties(&text, &[]).expect("valid settings");
    let settings = Arc::new(TopicSettings::resolve(&server, &overrides));
    let opening = Opening {
        recovery_point: Offset::ZERO,
        clean_shutdown: false,
        log_start_offset: Offset::ZERO,
        topic_id: None,
        now_ms: 0,
    };
    let log = Log::open(directory, log_config::of(&settings, 1000), opening).expect("a log");
    let id = TopicPartition {
        topic: "t".into(),
        partition: yuxi_protocol::ids::PartitionId::new(0),
    };
    Partition::new(id, TopicId::ZERO, broker, log, settings, Offset::ZERO)
}

fn led(directory: &Path, overrides: &[(&str, &str)]) -> Partition {
    let partition = replica(directory, ME, overrides);
    partition.become_leader(&state(0, ME), 0);
    partition
}

pub(super) fn state(epoch: i32, leader: BrokerId) -> PartitionState {
    PartitionState {
        replicas: vec![ME],
        isr: vec![ME],
        elr: Vec::new(),
        leader,
        leader_epoch: LeaderEpoch::new(epoch),
        partition_epoch: 0,
        leader_recovery: LeaderRecovery::Recovered,
        last_known_leader: None,
        adding_replicas: Vec::new(),
        removing_replicas: Vec::new(),
        lost_data: Vec::new(),
    }
}

fn append(partition: &Partition, acks: RequiredAcks) -> Appended {
    let mut builder = RecordBatchBuilder::new();
    builder.append(1, None, Some(b"x"), &[]).expect("a record");
    let batch = Admitted::own(builder.build().expect("a batch"), 1);
    partition.append(&batch, acks, 1).expect("appended")
}

fn metrics() -> Arc<Metrics> {
    Metrics::new([])
}

#[test]
fn the_flush_of_a_deleted_partition_leaves_its_successors_directory_alone() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("t-0");
    let partition = led(&directory, &[("flush.messages", "1")]);
    assert!(append(&partition, RequiredAcks::All).start_flush);
    // Cold files are closed, and opened by name when they are needed again.
    for _ in 0..3 {
        partition.with_log(|log, _| log.release_unused_files());
    }
    partition.delete();
    std::fs::rename(&directory, parent.path().join("t-0.x-delete")).expect("renamed");
    std::fs::create_dir(&directory).expect("a new directory of the name");
    partition
        .flush_wanted(&metrics())
        .expect("nothing is flushed, and nothing failed");
    let files = std::fs::read_dir(&directory).expect("a directory").count();
    assert_eq!(files, 0, "files of the deleted partition");
}

#[test]
fn an_append_that_wants_a_flush_is_acknowledged_after_it_and_not_before() {
    for acks in [RequiredAcks::Leader, RequiredAcks::All] {
        let parent = tempfile::tempdir().expect("a directory");
        let partition = led(&parent.path().join("t-0"), &[("flush.messages", "1")]);
        let Ack::Later(mut ack) = append(&partition, acks).ack else {
            panic!("acknowledged before the flush");
        };
        assert!(ack.try_recv().is_err());
        assert_eq!(partition.offsets().high_watermark, Offset::ZERO);
        partition.flush_wanted(&metrics()).expect("flushed");
        assert_eq!(ack.try_recv(), Ok(Ok(())));
        assert_eq!(partition.offsets().high_watermark, Offset::new(1));
    }
}

#[test]
fn an_append_does_not_wait_for_a_flush_that_no_append_asked_for() {
    let parent = tempfile::tempdir().expect("a directory");
    let partition = led(&parent.path().join("t-0"), &[]);
    partition.state().flushing = Flushing::Running;
    for acks in [RequiredAcks::Leader, RequiredAcks::All] {
        let appended = append(&partition, acks);
        assert!(matches!(appended.ack, Ack::Now), "{acks:?}");
        assert!(!appended.start_flush);
    }
}

#[test]
fn who_waits_for_an_acknowledgement_learns_that_the_leader_or_the_topic_is_gone() {
    let parent = tempfile::tempdir().expect("a directory");
    let partition = led(&parent.path().join("t-0"), &[("flush.messages", "1")]);
    let waiting = |appended: Appended| match appended.ack {
        Ack::Later(ack) => ack,
        Ack::Now => panic!("acknowledged before the flush"),
    };
    let mut first = waiting(append(&partition, RequiredAcks::All));
    partition.become_follower(&state(1, BrokerId::new(2)));
    assert_eq!(
        first.try_recv(),
        Ok(Err(ErrorCode::NotLeaderOrFollower)),
        "I10: never acknowledged under another leader"
    );
    partition.become_leader(&state(2, ME), 0);
    let mut second = waiting(append(&partition, RequiredAcks::All));
    partition.delete();
    assert_eq!(
        second.try_recv(),
        Ok(Err(ErrorCode::UnknownTopicOrPartition))
    );
}

#[test]
fn an_older_or_newer_leader_epoch_than_this_one_is_refused() {
    let parent = tempfile::tempdir().expect("a directory");
    let partition = led(&parent.path().join("t-0"), &[]);
    partition.become_leader(&state(5, ME), 0);
    for (believed, expected) in [
        (4, Some(ErrorCode::FencedLeaderEpoch)),
        (5, None),
        (6, Some(ErrorCode::UnknownLeaderEpoch)),
        (-1, None),
    ] {
        let refused = partition
            .with_led_log(LeaderEpoch::new(believed), |_, _| ())
            .err()
            .map(|error| error.code());
        assert_eq!(refused, expected, "{believed}");
    }
}
