//! A partition over a real log, without a network.

use super::*;
use crate::{metrics::Metrics, time::Monotonic};
use std::{
    collections::BTreeMap,
    path::Path,
    pin::pin,
    task::{Context, Wake, Waker},
};
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
    partition.become_leader(&state(0, ME), Monotonic::new(0));
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

/// Looks at the partition the moment it is woken.
struct Hasty {
    partition: Partition,
    found: Mutex<Option<bool>>,
}

impl Wake for Hasty {
    fn wake(self: Arc<Self>) {
        let is_free = self.partition.state.try_lock().is_ok();
        *self.found.lock().expect("not poisoned") = Some(is_free);
    }
}

#[test]
fn whoever_is_woken_finds_the_lock_released() {
    let parent = tempfile::tempdir().expect("a directory");
    let partition = led(&parent.path().join("t-0"), &[("flush.messages", "1")]);
    let Ack::Later(ack) = append(&partition, RequiredAcks::All).ack else {
        panic!("acknowledged before the flush");
    };
    let found = Mutex::default();
    let hasty = Arc::new(Hasty { partition, found });
    let waker = Waker::from(Arc::clone(&hasty));
    let mut ack = pin!(ack);
    assert!(
        ack.as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    hasty.partition.flush_wanted(&metrics()).expect("flushed");
    assert_eq!(*hasty.found.lock().expect("not poisoned"), Some(true));
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
    partition.become_leader(&state(2, ME), Monotonic::new(0));
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
    partition.become_leader(&state(5, ME), Monotonic::new(0));
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

/// A leader with a follower in sync that has everything, and the list of its session.
struct Followed {
    partition: Partition,
    news: Arc<FollowerNews>,
}

impl Followed {
    fn new(directory: &Path) -> Self {
        let partition = replica(directory, ME, &[("segment.bytes", "100")]);
        partition.become_leader(&Self::state(0, &[1, 2], 0), Monotonic::new(0));
        append(&partition, RequiredAcks::All);
        let followed = Self {
            partition,
            news: Arc::default(),
        };
        assert!(followed.fetch(0).records.is_some());
        assert!(followed.fetch(1).is_settled);
        // The high watermark moved with that.
        followed.forget_news();
        followed
    }

    fn forget_news(&self) {
        self.news.take();
        self.is_woken();
    }

    /// Whether a fetch that waits would end.
    fn is_woken(&self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(self.news.woken()).poll(&mut context).is_ready()
    }

    fn state(epoch: i32, isr: &[i32], partition_epoch: i32) -> PartitionState {
        PartitionState {
            replicas: vec![ME, BrokerId::new(2)],
            isr: isr.iter().copied().map(BrokerId::new).collect(),
            partition_epoch,
            ..state(epoch, ME)
        }
    }

    fn fetch(&self, from: i64) -> ReadAnswer {
        let follower = Follower {
            id: BrokerId::new(2),
            broker_epoch: yuxi_protocol::ids::BrokerEpoch::new(1),
            is_active: true,
            log_start: self.partition.offsets().log_start,
            news: &self.news,
        };
        let read = Read {
            from: Offset::new(from),
            max_bytes: 1 << 20,
            at_least_one_batch: true,
            isolation: Isolation::Uncommitted,
            leader_epoch: LeaderEpoch::new(0),
            last_fetched_epoch: LeaderEpoch::NONE,
            leader_only: false,
        };
        let max = MaxLag {
            now: Monotonic::new(1),
            lag_ms: 1000,
        };
        let answer = self.partition.read_as_leader_of(follower, read, max);
        answer.expect("an answer")
    }
}

#[test]
fn whatever_a_follower_must_hear_of_puts_the_partition_on_its_list() {
    type Change = fn(&Followed);
    const AT_ONCE: bool = true;
    const WITH_ITS_NEXT_ANSWER: bool = false;
    let changes: [(&str, bool, Change); 9] = [
        ("an append", AT_ONCE, |followed| {
            append(&followed.partition, RequiredAcks::All);
        }),
        ("the high watermark", WITH_ITS_NEXT_ANSWER, |followed| {
            append(&followed.partition, RequiredAcks::All);
            followed.forget_news();
            followed.fetch(2);
        }),
        ("deleted records", AT_ONCE, |followed| {
            let deleted = followed.partition.delete_records(Some(Offset::new(1)), 1);
            deleted.expect("deleted");
        }),
        ("retention", WITH_ITS_NEXT_ANSWER, |followed| {
            let deleted = followed
                .partition
                .with_log(|log, _| log.delete_records_before(Offset::new(1), 1));
            deleted.expect("here").expect("deleted");
        }),
        ("another ISR", WITH_ITS_NEXT_ANSWER, |followed| {
            let state = Followed::state(0, &[1], 1);
            followed.partition.become_leader(&state, Monotonic::new(1));
        }),
        ("another epoch", AT_ONCE, |followed| {
            let state = Followed::state(1, &[1, 2], 1);
            followed.partition.become_leader(&state, Monotonic::new(1));
        }),
        ("another leader", AT_ONCE, |followed| {
            let state = state(1, BrokerId::new(2));
            followed.partition.become_follower(&state);
        }),
        ("its deletion", AT_ONCE, |followed| {
            followed.partition.delete();
        }),
        ("a failed disk", AT_ONCE, |followed| {
            followed.partition.go_offline();
        }),
    ];
    for (what, at_once, change) in changes {
        let directory = tempfile::tempdir().expect("a directory");
        let followed = Followed::new(directory.path());
        assert!(!followed.is_woken(), "nothing has changed yet");
        assert!(followed.news.take().is_empty(), "nothing has changed yet");
        change(&followed);
        assert_eq!(followed.is_woken(), at_once, "{what}");
        assert_eq!(followed.news.take(), [(TopicId::ZERO, 0)], "{what}");
    }
}

#[test]
fn a_follower_that_stays_behind_for_too_long_is_proposed_out_of_the_isr() {
    let directory = tempfile::tempdir().expect("a directory");
    let followed = Followed::new(directory.path());
    let proposed = |now_ms| {
        let (now, lag_ms) = (Monotonic::new(now_ms), 1000);
        let proposal = followed.partition.propose_isr(MaxLag { now, lag_ms });
        let members = proposal.map(|proposal| proposal.isr);
        members.map(|isr| isr.iter().map(|&(id, _)| id.value()).collect::<Vec<_>>())
    };
    assert_eq!(proposed(10_000), None, "it has everything");
    // Its session was heard of at this time.
    followed.news.asked(Monotonic::new(20_000));
    append(&followed.partition, RequiredAcks::All);
    assert_eq!(proposed(21_000), None, "not for long");
    assert_eq!(proposed(21_001), Some(vec![1]));
    assert_eq!(proposed(30_000), None, "one proposal at a time");
}

#[test]
fn a_follower_is_settled_only_in_sync_and_with_all_there_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let followed = Followed::new(directory.path());
    append(&followed.partition, RequiredAcks::All);
    assert!(!followed.fetch(1).is_settled, "it lacks a record");
    assert!(followed.fetch(2).is_settled);
    let alone = Followed::state(0, &[1], 1);
    followed.partition.become_leader(&alone, Monotonic::new(1));
    assert!(!followed.fetch(2).is_settled, "it is not in sync");
}

#[test]
fn a_consumer_is_sent_only_to_who_is_in_sync_and_has_the_record_or_ends_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let followed = Followed::new(directory.path());
    let partition = &followed.partition;
    append(partition, RequiredAcks::All);
    let with = |offset| partition.followers_with(Offset::new(offset));
    let two = [BrokerId::new(2)];
    assert_eq!((with(0), with(1)), (two.into(), two.into()));
    assert_eq!(with(2), [], "it lacks a record before that");
    followed.fetch(2);
    assert_eq!(with(2), two);
    let deleted = partition.delete_records(Some(Offset::new(1)), 1);
    deleted.expect("deleted");
    assert_eq!(with(0), two, "it has not heard of that");
    followed.fetch(2);
    assert_eq!(with(0), [], "it has deleted that");
    partition.become_leader(&Followed::state(0, &[1], 1), Monotonic::new(1));
    assert_eq!(with(2), [], "it is not in sync");
}

#[test]
fn nobody_waits_for_a_follower_that_was_about_to_join_and_shuts_down() {
    let directory = tempfile::tempdir().expect("a directory");
    let followed = Followed::new(directory.path());
    let partition = &followed.partition;
    partition.become_leader(&Followed::state(0, &[1], 1), Monotonic::new(1));
    followed.fetch(1);
    let appended = append(partition, RequiredAcks::All);
    let Ack::Later(mut ack) = appended.ack else {
        panic!("the follower has everything, so that it may join, and is waited for");
    };
    assert!(ack.try_recv().is_err());
    let epoch = yuxi_protocol::ids::BrokerEpoch::new(1);
    partition.forget_gone_followers(|_| Some(epoch), |_| true);
    assert!(ack.try_recv().is_err(), "it is still there");
    partition.forget_gone_followers(|_| Some(epoch), |_| false);
    assert_eq!(ack.try_recv(), Ok(Ok(())));
}
