//! The state machine against every answer that matters.

use super::*;

const FIRST: Identity = Identity {
    producer_id: 7,
    epoch: 0,
};
const SECOND: Identity = Identity {
    producer_id: 7,
    epoch: 1,
};

/// A machine with its clock and what the accumulator would say.
struct Rig {
    machine: Machine,
    now: Instant,
    idle: bool,
    has_gap: bool,
    offered: i16,
}

fn rig(transaction_version: i16) -> Rig {
    let backoff = Duration::from_millis(100);
    let mut rig = Rig {
        machine: Machine::new("id".into(), backoff, backoff),
        now: Instant::now(),
        idle: true,
        has_gap: false,
        offered: transaction_version,
    };
    let asked = rig.ask();
    assert_eq!(asked, Request::Initialize { resumed: None });
    rig.answer(&asked, Ok(Answer::Identity(FIRST)));
    rig
}

impl Rig {
    fn next(&mut self) -> Next {
        self.machine.next(self.now, self.idle, self.has_gap)
    }

    fn ask(&mut self) -> Request {
        match self.next() {
            Next::Ask(request) => request,
            other => panic!("nothing is asked: {other:?}"),
        }
    }

    fn answer(&mut self, request: &Request, answer: Result<Answer, Error>) {
        let offered = (self.offered > 0).then_some(self.offered);
        self.machine.answered(request, answer, offered, self.now);
    }

    fn refuse(&mut self, request: &Request, code: ErrorCode) {
        self.answer(request, Err(refusal(code)));
    }

    fn begin(&mut self) {
        assert!(self.machine.begin().expect("not failed"));
    }

    fn write_to(&mut self, partition: i32) -> bool {
        self.machine.admits(&"t".into(), partition)
    }

    /// As [`Rig::write_to`], with the coordinator told first if it must be.
    fn written(&mut self, partition: i32) {
        if !self.write_to(partition) {
            let added = self.ask();
            self.answer(&added, Ok(Answer::Done));
            assert!(self.write_to(partition));
        }
    }

    fn assert_ready(&mut self, last: Ending) {
        assert_eq!(self.next(), Next::Nothing);
        assert!(self.machine.is_settled());
        assert_eq!(self.machine.last(), Some(last));
        self.begin();
    }
}

fn refusal(code: ErrorCode) -> Error {
    Error::broker("asked", code, None)
}

fn partition(index: i32) -> TopicPartition {
    TopicPartition::new("t", index)
}

fn offsets() -> Offsets {
    let committed = CommittedOffset {
        offset: 5,
        leader_epoch: None,
        metadata: String::new(),
    };
    [(partition(0), committed)].into()
}

fn end(protocol: Protocol, commit: bool) -> Request {
    Request::End {
        identity: FIRST,
        protocol,
        commit,
    }
}

#[test]
fn the_older_protocol_tells_the_coordinator_of_a_partition_before_anything_goes_there() {
    let mut rig = rig(1);
    rig.begin();
    assert!(!rig.write_to(0));
    assert!(!rig.write_to(1));
    let added = rig.ask();
    let expected = Request::AddPartitions {
        identity: FIRST,
        partitions: vec![partition(0), partition(1)],
    };
    assert_eq!(added, expected);
    assert!(!rig.write_to(0), "it has not answered");
    rig.answer(&added, Ok(Answer::Done));
    assert!(rig.write_to(0) && rig.write_to(1));
    rig.machine.commit().expect("nothing failed");
    let ended = rig.ask();
    assert_eq!(ended, end(Protocol::Announced, true));
    rig.answer(&ended, Ok(Answer::Done));
    assert_eq!(rig.machine.identity(), Some(FIRST));
    rig.assert_ready(Ending::Committed);
}

#[test]
fn the_newer_protocol_tells_nothing_and_takes_the_next_epoch_from_the_end() {
    let mut rig = rig(2);
    rig.begin();
    assert!(rig.write_to(0));
    assert_eq!(rig.next(), Next::Nothing);
    rig.machine.commit().expect("nothing failed");
    let ended = rig.ask();
    assert_eq!(ended, end(Protocol::Implied, true));
    rig.answer(&ended, Ok(Answer::Identity(SECOND)));
    assert_eq!(rig.machine.identity(), Some(SECOND));
    rig.assert_ready(Ending::Committed);
}

#[test]
fn without_the_feature_the_older_protocol_is_spoken() {
    for (offered, expected) in [
        (None, Protocol::Announced),
        (Some(0), Protocol::Announced),
        (Some(1), Protocol::Announced),
        (Some(2), Protocol::Implied),
        (Some(3), Protocol::Implied),
    ] {
        assert_eq!(Protocol::of(offered), expected, "{offered:?}");
    }
}

#[test]
fn the_end_waits_until_every_batch_has_its_outcome() {
    for commit in [true, false] {
        let mut rig = rig(2);
        rig.begin();
        rig.written(0);
        rig.idle = false;
        if commit {
            rig.machine.commit().expect("nothing failed");
        } else {
            rig.machine.abort();
        }
        assert_eq!(rig.next(), Next::Nothing, "commit: {commit}");
        rig.idle = true;
        assert_eq!(rig.ask(), end(Protocol::Implied, commit));
    }
}

#[test]
fn an_empty_transaction_ends_without_a_request() {
    for version in [1, 2] {
        let mut rig = rig(version);
        rig.begin();
        rig.machine.commit().expect("nothing failed");
        rig.assert_ready(Ending::Committed);
        rig.machine.abort();
        rig.assert_ready(Ending::Aborted);
    }
}

#[test]
fn a_failed_batch_leaves_only_the_abort() {
    for version in [1, 2] {
        let mut rig = rig(version);
        rig.begin();
        rig.written(0);
        rig.idle = false;
        rig.machine.commit().expect("nothing failed yet");
        rig.machine.doom(refusal(ErrorCode::MessageTooLarge));
        rig.idle = true;
        assert!(!rig.machine.is_ending(), "whoever commits is told");
        assert_eq!(rig.next(), Next::Nothing, "a commit must not go out");
        assert!(matches!(
            rig.machine.commit(),
            Err(TransactionError::Abortable(_))
        ));
        assert!(!rig.write_to(0) && rig.machine.refuses_batches().is_some());
        rig.machine.abort();
        let ended = rig.ask();
        assert!(matches!(ended, Request::End { commit: false, .. }));
    }
}

#[test]
fn numbers_of_unknown_fate_are_not_continued() {
    let mut rig = rig(1);
    rig.begin();
    rig.written(0);
    rig.machine.doom(refusal(ErrorCode::RequestTimedOut));
    rig.machine.abort();
    rig.has_gap = true;
    let ended = rig.ask();
    rig.answer(&ended, Ok(Answer::Done));
    assert!(!rig.machine.is_settled());
    let renewed = rig.ask();
    let resumed = Some(FIRST);
    assert_eq!(renewed, Request::Initialize { resumed });
    rig.answer(&renewed, Ok(Answer::Identity(SECOND)));
    assert_eq!(rig.machine.identity(), Some(SECOND));
    rig.assert_ready(Ending::Aborted);
}

#[test]
fn a_transaction_that_the_older_coordinator_may_not_know_is_ended_by_a_new_epoch() {
    let mut rig = rig(1);
    rig.begin();
    rig.write_to(0);
    let added = rig.ask();
    rig.refuse(&added, ErrorCode::TopicAuthorizationFailed);
    rig.machine.abort();
    let resumed = Some(FIRST);
    assert_eq!(rig.ask(), Request::Initialize { resumed });
}

#[test]
fn whatever_may_pass_is_asked_again() {
    for code in [
        ErrorCode::CoordinatorLoadInProgress,
        ErrorCode::CoordinatorNotAvailable,
        ErrorCode::NotCoordinator,
        ErrorCode::ConcurrentTransactions,
        ErrorCode::RequestTimedOut,
    ] {
        let mut rig = rig(2);
        rig.begin();
        rig.written(0);
        rig.machine.commit().expect("nothing failed");
        let ended = rig.ask();
        rig.refuse(&ended, code);
        assert!(matches!(rig.next(), Next::WaitUntil(_)), "{code:?}");
        rig.now += Duration::from_secs(1);
        assert_eq!(rig.ask(), ended, "{code:?}");
    }
}

#[test]
fn a_commit_that_may_have_been_heard_is_never_turned_into_an_abort() {
    let mut rig = rig(2);
    rig.begin();
    rig.written(0);
    rig.machine.commit().expect("nothing failed");
    let ended = rig.ask();
    assert!(rig.machine.is_commit_asked());
    let lost = Error::Disconnected {
        address: "b".to_owned(),
        reason: "closed".into(),
    };
    rig.answer(&ended, Err(lost));
    rig.machine.abort();
    rig.now += Duration::from_secs(1);
    assert_eq!(rig.ask(), ended);
}

#[test]
fn a_fenced_producer_is_over() {
    for code in [ErrorCode::ProducerFenced, ErrorCode::InvalidProducerEpoch] {
        let mut rig = rig(2);
        rig.begin();
        rig.written(0);
        rig.machine.commit().expect("nothing failed");
        let ended = rig.ask();
        rig.refuse(&ended, code);
        let trouble = rig.machine.trouble().expect("it is over");
        assert!(
            matches!(trouble, TransactionError::Fenced { .. }),
            "{code:?}"
        );
        assert!(rig.machine.begin().is_err());
        assert_eq!(rig.next(), Next::Nothing);
    }
}

#[test]
fn a_batch_that_is_refused_as_fenced_is_the_end_and_one_of_an_old_epoch_only_of_the_transaction() {
    let mut rig = rig(2);
    rig.begin();
    rig.written(0);
    rig.machine.doom(refusal(ErrorCode::InvalidProducerEpoch));
    let trouble = rig.machine.trouble().expect("it is doomed");
    assert!(trouble.is_abortable());
    rig.machine.doom(refusal(ErrorCode::ProducerFenced));
    let trouble = rig.machine.trouble().expect("it is over");
    assert!(trouble.is_fatal());
}

#[test]
fn what_each_refusal_means() {
    let initialize = Request::Initialize { resumed: None };
    let add = Request::AddPartitions {
        identity: FIRST,
        partitions: vec![partition(0)],
    };
    let commit_offsets = Request::CommitOffsets {
        identity: FIRST,
        protocol: Protocol::Implied,
        group: GroupMetadata::outsider("g"),
        offsets: offsets(),
    };
    let commit = end(Protocol::Implied, true);
    let abort = end(Protocol::Implied, false);
    let fail = Judgement::Fail;
    for (request, code, expected) in [
        (
            &initialize,
            ErrorCode::InvalidTransactionTimeout,
            fail(ErrorCode::InvalidTransactionTimeout),
        ),
        (
            &initialize,
            ErrorCode::TransactionAbortable,
            fail(ErrorCode::TransactionAbortable),
        ),
        (&add, ErrorCode::TransactionAbortable, Judgement::Doom),
        (&add, ErrorCode::TopicAuthorizationFailed, Judgement::Doom),
        (
            &add,
            ErrorCode::InvalidProducerIdMapping,
            Judgement::Forgotten,
        ),
        (
            &add,
            ErrorCode::InvalidTxnState,
            fail(ErrorCode::InvalidTxnState),
        ),
        (
            &commit_offsets,
            ErrorCode::IllegalGeneration,
            Judgement::Doom,
        ),
        (&commit_offsets, ErrorCode::UnknownMemberId, Judgement::Doom),
        (
            &commit_offsets,
            ErrorCode::StaleMemberEpoch,
            Judgement::Doom,
        ),
        (
            &commit_offsets,
            ErrorCode::FencedInstanceId,
            Judgement::Doom,
        ),
        (
            &commit_offsets,
            ErrorCode::UnknownTopicOrPartition,
            Judgement::Retry { first: None },
        ),
        (&commit, ErrorCode::TransactionAbortable, Judgement::Doom),
        (
            &commit,
            ErrorCode::UnknownServerError,
            fail(ErrorCode::UnknownServerError),
        ),
        (
            &abort,
            ErrorCode::TransactionAbortable,
            fail(ErrorCode::TransactionAbortable),
        ),
        (
            &abort,
            ErrorCode::InvalidProducerIdMapping,
            Judgement::Forgotten,
        ),
    ] {
        assert_eq!(
            judge(request, &refusal(code)),
            expected,
            "{request:?} {code:?}"
        );
    }
}

#[test]
fn a_producer_that_the_coordinator_forgot_begins_anew() {
    let mut rig = rig(2);
    rig.begin();
    rig.written(0);
    rig.machine.commit().expect("nothing failed");
    let ended = rig.ask();
    rig.refuse(&ended, ErrorCode::InvalidProducerIdMapping);
    assert!(
        rig.machine
            .trouble()
            .is_some_and(|trouble| trouble.is_abortable())
    );
    rig.machine.abort();
    assert_eq!(rig.ask(), Request::Initialize { resumed: None });
}

#[test]
fn offsets_are_announced_by_the_older_protocol_and_sent_at_once_by_the_newer() {
    for version in [1, 2] {
        let mut rig = rig(version);
        rig.begin();
        let id = rig
            .machine
            .add_offsets(GroupMetadata::outsider("g"), offsets());
        let mut asked = rig.ask();
        if version == 1 {
            let group = "g".to_owned();
            let identity = FIRST;
            assert_eq!(asked, Request::AddGroup { identity, group });
            rig.answer(&asked, Ok(Answer::Done));
            asked = rig.ask();
        }
        assert!(matches!(asked, Request::CommitOffsets { .. }));
        assert!(rig.machine.has_offsets(id));
        rig.answer(&asked, Ok(Answer::Done));
        assert!(!rig.machine.has_offsets(id));
        rig.machine.commit().expect("nothing failed");
        assert!(matches!(rig.ask(), Request::End { commit: true, .. }));
    }
}

#[test]
fn a_member_of_an_old_generation_cannot_commit_its_transaction() {
    let mut rig = rig(2);
    rig.begin();
    let id = rig
        .machine
        .add_offsets(GroupMetadata::outsider("g"), offsets());
    let asked = rig.ask();
    rig.refuse(&asked, ErrorCode::IllegalGeneration);
    assert!(!rig.machine.has_offsets(id));
    assert!(rig.machine.commit().is_err());
    rig.machine.abort();
    assert_eq!(
        rig.ask(),
        end(Protocol::Implied, false),
        "the group may have been added"
    );
}

#[test]
fn a_cluster_that_learns_the_newer_protocol_gets_a_new_epoch_first() {
    let mut rig = rig(1);
    rig.begin();
    rig.written(0);
    rig.machine.commit().expect("nothing failed");
    rig.offered = 2;
    let ended = rig.ask();
    rig.answer(&ended, Ok(Answer::Done));
    assert!(!rig.machine.begin().expect("not failed"));
    let renewed = rig.ask();
    let resumed = Some(FIRST);
    assert_eq!(renewed, Request::Initialize { resumed });
    rig.answer(&renewed, Ok(Answer::Identity(SECOND)));
    rig.begin();
    assert!(rig.write_to(0), "nothing has to be announced");
}

#[test]
fn offsets_that_can_not_be_committed_any_more_are_not_waited_for() {
    let group = || GroupMetadata::outsider("g");
    // The producer is fenced, or done for in another way.
    for error in [refusal(ErrorCode::InvalidProducerEpoch), Error::Closed] {
        let mut rig = rig(2);
        rig.begin();
        let id = rig.machine.add_offsets(group(), offsets());
        let asked = rig.ask();
        assert!(rig.machine.has_offsets(id));
        rig.answer(&asked, Err(error));
        assert!(!rig.machine.has_offsets(id), "{:?}", rig.machine.trouble());
        assert!(rig.machine.trouble().is_some());
    }
    // A record has failed since the caller last looked.
    let mut rig = rig(2);
    rig.begin();
    rig.machine.doom(refusal(ErrorCode::MessageTooLarge));
    let id = rig.machine.add_offsets(group(), offsets());
    assert!(!rig.machine.has_offsets(id));
    rig.machine.abort();
    rig.assert_ready(Ending::Aborted);
    assert_eq!(
        rig.next(),
        Next::Nothing,
        "they went with their transaction"
    );
}
