//! The loop over a store that fails in chosen ways. All of it is in memory, so that the
//! clock stands still but for what is waited for: no machine is too slow for these tests.

use std::{
    cell::RefCell,
    sync::{
        Mutex, Once,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::StreamExt as _;

use super::*;
use crate::{
    Controller,
    command::{Call, Command},
    decide::{
        testing::{registration, settings},
        topics::NewTopic,
    },
    store::{EmbeddedStore, SessionId},
};

/// What happens to a commit that touches a key.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It is applied, and the answer is lost.
    AnswerLost,
    /// It never arrives.
    RequestLost,
    /// The store says that it can't.
    Unavailable,
    /// The store says that this process may not.
    Denied,
    /// Another process has deleted the controller key just before.
    Deposed,
    /// It is applied, and the watch loses its place.
    Compacted,
    /// Another process has put this under the key just before.
    Outrun(&'static str),
}

const DEADLINE: Duration = Duration::from_mins(1);

#[derive(Clone)]
struct FaultyStore {
    store: EmbeddedStore,
    /// The faults to come, for commits that touch a key with this prefix.
    faults: Arc<Mutex<VecDeque<(&'static str, Fault)>>>,
    compacted: watch::Sender<u32>,
    /// By how much every batch of a watch is late.
    watch_delay: Duration,
    /// How many commits a guard has stopped.
    refused: Arc<Mutex<u32>>,
    /// Sessions live on, and whoever keeps one is not told so.
    keeps_in_silence: Arc<AtomicBool>,
    /// Nothing reaches it, and it shows nothing: no session ends either.
    is_away: Arc<AtomicBool>,
}

impl FaultyStore {
    fn new(faults: &[(&'static str, Fault)]) -> Self {
        Self {
            store: EmbeddedStore::in_memory(),
            faults: Arc::new(Mutex::new(faults.iter().copied().collect())),
            compacted: watch::Sender::new(0),
            watch_delay: Duration::ZERO,
            refused: Arc::default(),
            keeps_in_silence: Arc::default(),
            is_away: Arc::default(),
        }
    }

    fn reached(&self) -> Result<(), StoreError> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("away".to_owned()));
        }
        Ok(())
    }

    fn next_fault(&self, transaction: &Transaction) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let (prefix, fault) = *faults.front()?;
        let touched = transaction
            .operations
            .iter()
            .any(|op| op.key().starts_with(prefix));
        touched.then(|| {
            faults.pop_front();
            fault
        })
    }
}

impl MetadataStore for FaultyStore {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.reached()?;
        self.store.read(prefix).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let delay = self.watch_delay;
        let watch = self
            .store
            .watch(prefix, after)
            .await?
            .then(move |event| async move {
                tokio::time::sleep(delay).await;
                event
            });
        let mut compacted = self.compacted.subscribe();
        let lost = async move {
            let _ = compacted.changed().await;
            Ok(WatchEvent::Compacted)
        };
        Ok(Box::pin(futures_util::stream::select(
            Box::pin(watch),
            Box::pin(futures_util::stream::once(lost)),
        )))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit, StoreError> {
        self.reached()?;
        let unknown = || Err(StoreError::Unknown("a fault".to_owned()));
        // As with any store elsewhere, others go on meanwhile.
        tokio::task::yield_now().await;
        match self.next_fault(&transaction) {
            None => {
                let outcome = self.store.commit(transaction).await;
                *self.refused.lock().unwrap() += u32::from(outcome == Ok(Commit::Refused));
                outcome
            }
            Some(Fault::AnswerLost) => {
                self.store.commit(transaction).await?;
                unknown()
            }
            Some(Fault::RequestLost) => unknown(),
            Some(Fault::Unavailable) => Err(StoreError::Unavailable("a fault".to_owned())),
            Some(Fault::Denied) => Err(StoreError::Denied("a fault".to_owned())),
            Some(Fault::Deposed) => {
                let deposed = Transaction {
                    guards: Vec::new(),
                    operations: vec![Operation::Delete {
                        key: "controller".to_owned(),
                    }],
                };
                self.store.commit(deposed).await?;
                self.store.commit(transaction).await
            }
            Some(Fault::Outrun(value)) => {
                let key = transaction.operations[0].key().to_owned();
                let faster = Transaction {
                    guards: Vec::new(),
                    operations: vec![Operation::Put {
                        key,
                        value: value.into(),
                        session: None,
                    }],
                };
                self.store.commit(faster).await?;
                let outcome = self.store.commit(transaction).await;
                assert_eq!(outcome, Ok(Commit::Refused));
                *self.refused.lock().unwrap() += 1;
                outcome
            }
            Some(Fault::Compacted) => {
                let outcome = self.store.commit(transaction).await;
                self.compacted.send_modify(|count| *count += 1);
                outcome
            }
        }
    }

    async fn open_session(&self, ttl: Duration) -> Result<SessionId, StoreError> {
        self.reached()?;
        self.store.open_session(ttl).await
    }

    async fn keep_session(&self, session: SessionId) -> Result<(), StoreError> {
        self.store.keep_session(session).await?;
        self.reached()?;
        if self.keeps_in_silence.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("a fault".to_owned()));
        }
        Ok(())
    }

    async fn close_session(&self, session: SessionId) -> Result<(), StoreError> {
        self.reached()?;
        self.store.close_session(session).await
    }
}

/// A broker that registers and creates a topic while these things go wrong.
async fn create_under(
    faults: &[(&'static str, Fault)],
) -> (Controller, Result<(), ControllerError>) {
    let store = FaultyStore::new(faults);
    let controller = broker(&store).await;
    let answer = create(&controller).await;
    assert!(
        store.faults.lock().unwrap().is_empty(),
        "every fault has happened"
    );
    (controller, answer)
}

async fn broker(store: &FaultyStore) -> Controller {
    broker_for(store, Duration::from_secs(10)).await
}

async fn broker_for(store: &FaultyStore, session_ttl: Duration) -> Controller {
    let controller = started(store, session_ttl).await;
    let registering = timeout(DEADLINE, controller.register_broker(registration()));
    registering
        .await
        .expect("a new broker in the image has the controller compare anew")
        .unwrap();
    controller
}

/// A broker that has lost its session since the store went away, and that its own image
/// still names as the controller.
async fn cut_off_broker(store: &FaultyStore) -> Controller {
    let ttl = Duration::from_secs(2);
    let controller = broker_for(store, ttl).await;
    store.is_away.store(true, Ordering::SeqCst);
    tokio::time::sleep(ttl + ttl / 2).await;
    controller
}

async fn started(store: &FaultyStore, session_ttl: Duration) -> Controller {
    starting(store, session_ttl).await.unwrap()
}

async fn starting(
    store: &FaultyStore,
    session_ttl: Duration,
) -> Result<Controller, ControllerError> {
    let options = ControllerOptions {
        node_id: 1.into(),
        settings: Arc::new(settings()),
        session_ttl,
        endpoint: None,
        campaign: Campaign::OnceRegistered,
        is_alone: false,
        cluster_id: None,
        seed: Some(1),
    };
    Controller::start(store.clone(), options).await
}

async fn create(controller: &Controller) -> Result<(), ControllerError> {
    let mut answers = controller.create_topics(vec![topic()], false).await;
    answers.remove(0).map(|_| ())
}

fn topic() -> NewTopic {
    NewTopic {
        adopted: None,
        name: "t".to_owned(),
        partitions: 200,
        replication_factor: 1,
        assignments: Vec::new(),
        configs: Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_answer_is_lost_is_found_by_reading_back_and_not_made_twice() {
    let (controller, answer) = create_under(&[("topics/", Fault::AnswerLost)]).await;
    assert_eq!(answer, Ok(()));
    assert_eq!(
        controller.image().topic("t").unwrap().partitions().count(),
        200
    );
}

#[tokio::test(start_paused = true)]
async fn a_change_that_never_arrived_is_made_again() {
    let faults = [
        ("topics/", Fault::RequestLost),
        ("topics/", Fault::RequestLost),
    ];
    let (controller, answer) = create_under(&faults).await;
    assert_eq!(answer, Ok(()));
    assert_eq!(controller.image().topic_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_is_not_left_waiting_for_a_store_that_stays_away() {
    let faults = [("topics/", Fault::RequestLost); MAX_ATTEMPTS as usize];
    let (controller, answer) = create_under(&faults).await;
    assert!(matches!(
        answer,
        Err(ControllerError::Store(StoreError::Unknown(_)))
    ));
    // When it is back, so is the controller.
    let mut answer = controller
        .create_topics(vec![topic()], false)
        .await
        .remove(0);
    while matches!(answer, Err(ControllerError::Store(_))) {
        tokio::time::sleep(RETRY_DELAY / 4).await;
        answer = controller
            .create_topics(vec![topic()], false)
            .await
            .remove(0);
    }
    answer.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_the_store_refuses_is_reported_and_changes_nothing() {
    let (controller, answer) = create_under(&[("topics/", Fault::Unavailable)]).await;
    assert!(matches!(
        answer,
        Err(ControllerError::Store(StoreError::Unavailable(_)))
    ));
    assert_eq!(controller.image().topic_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_was_deposed_changes_nothing_until_it_has_the_seal_again() {
    let store = FaultyStore::new(&[]);
    let controller = broker(&store).await;
    let before = controller.image();
    store
        .faults
        .lock()
        .unwrap()
        .push_back(("topics/", Fault::Deposed));
    assert_eq!(create(&controller).await, Ok(()));
    assert!(store.faults.lock().unwrap().is_empty());
    let image = controller.image();
    assert!(image.controller().unwrap().epoch > before.controller().unwrap().epoch);
    let created = image.topic("t").unwrap().mod_revision.value();
    assert!(created > image.controller().unwrap().epoch.value());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_lost_its_place_is_replaced_by_reading_everything() {
    let (controller, answer) = create_under(&[("topics/", Fault::Compacted)]).await;
    assert_eq!(answer, Ok(()));
    assert_eq!(controller.image().topic_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_and_further_decisions_wait_for_the_change_to_be_in_the_image() {
    let store = FaultyStore {
        watch_delay: Duration::from_millis(30),
        ..FaultyStore::new(&[])
    };
    let controller = broker(&store).await;
    let other = controller.clone();
    let (first, second) = tokio::join!(
        async {
            let answer = create(&controller).await;
            (answer, controller.image().topic("t").is_some())
        },
        create(&other),
    );
    assert_eq!(first, (Ok(()), true));
    assert_eq!(
        second,
        Err(ControllerError::TopicAlreadyExists("t".to_owned())),
        "it was decided on an image with the first in it"
    );
    assert_eq!(
        *store.refused.lock().unwrap(),
        0,
        "not found out by a guard"
    );
}

#[tokio::test(start_paused = true)]
async fn the_start_survives_lost_answers_and_a_store_that_fails_once() {
    for key in ["brokers/", "controller", "admitted/", "cluster"] {
        for fault in [Fault::AnswerLost, Fault::RequestLost, Fault::Unavailable] {
            let faults = [(key, fault)];
            let started = timeout(Duration::from_secs(20), create_under(&faults));
            let (_, answer) = started.await.expect("a start in time");
            assert_eq!(answer, Ok(()), "{key} {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_ends_where_the_store_can_be_read_and_a_cluster_may_not_be_founded() {
    let store = FaultyStore::new(&[("cluster", Fault::Denied)]);
    let started = timeout(DEADLINE, starting(&store, DEADLINE)).await;
    let error = started.expect("an end in time").err();
    let denied = StoreError::Denied("a fault".to_owned());
    assert_eq!(error, Some(ControllerError::Store(denied)));
}

#[tokio::test(start_paused = true)]
async fn that_a_session_is_not_kept_is_said_when_it_begins_and_when_it_is_over() {
    listen();
    let store = FaultyStore::new(&[]);
    let ttl = Duration::from_millis(1600);
    let _session = Session::open(&store, ttl).await.unwrap();
    store.is_away.store(true, Ordering::SeqCst);
    // It is tried again at every sixteenth of its life.
    tokio::time::sleep(ttl).await;
    assert_eq!(times_said("was not kept"), 1);
    assert_eq!(times_said("is kept again"), 0);
    store.is_away.store(false, Ordering::SeqCst);
    tokio::time::sleep(ttl).await;
    assert_eq!(times_said("was not kept"), 1);
    assert_eq!(times_said("is kept again"), 1);
}

thread_local! {
    /// What the test of this thread has logged.
    static SAID: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Begins to note what is logged, in all threads: a subscriber of one thread alone misses
/// what another thread is first to log, since `tracing` remembers of each place in the code
/// whether anybody listens there.
fn listen() {
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        tracing_subscriber::fmt().with_writer(|| Said).init();
        // Some were first come to while the subscriber was being set.
        tracing::callsite::rebuild_interest_cache();
    });
}

fn times_said(what: &str) -> usize {
    SAID.with_borrow(|said| String::from_utf8_lossy(said).matches(what).count())
}

/// Where log lines of a test go.
struct Said;

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        SAID.with_borrow_mut(|said| said.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_lost_the_cluster_is_not_followed() {
    let store = FaultyStore::new(&[]);
    let controller = broker(&store).await;
    create(&controller).await.unwrap();
    let deletes = ["cluster", "topics/t"].map(|key| Operation::Delete {
        key: key.to_owned(),
    });
    let emptied = Transaction {
        guards: Vec::new(),
        operations: deletes.into(),
    };
    store.store.commit(emptied).await.unwrap();
    let refusing = async {
        while !matches!(
            create(&controller).await,
            Err(ControllerError::Store(StoreError::Damaged(_)))
        ) {}
    };
    let refused = tokio::time::timeout(Duration::from_secs(10), refusing).await;
    refused.expect("refused in time");
    assert_eq!(controller.image().topic_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_controller_whose_session_may_have_ended_by_its_own_clock_decides_nothing() {
    let ttl = Duration::from_secs(2);
    let store = FaultyStore::new(&[]);
    let controller = broker_for(&store, ttl).await;
    store.keeps_in_silence.store(true, Ordering::SeqCst);
    // It is the clock that matters: in the store the session and the seal are still there.
    tokio::time::sleep(ttl + ttl / 2).await;
    let late = timeout(ttl / 4, create(&controller)).await;
    assert!(!matches!(late, Ok(Ok(()))), "{late:?}");
    assert_eq!(store.read("topics/").await.unwrap().entries, []);
    assert_eq!(store.read("controller").await.unwrap().entries.len(), 1);
    store.keeps_in_silence.store(false, Ordering::SeqCst);
    let mut images = controller.subscribe();
    let _ = timeout(ttl * 4, create(&controller)).await;
    let decides = images.wait_for(|image| image.topic_count() == 1);
    timeout(ttl * 4, decides).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_to_a_controller_whose_store_stays_away_ends_in_time_and_is_not_made_later() {
    let store = FaultyStore::new(&[]);
    let controller = cut_off_broker(&store).await;
    let (call, answer) = Call::new(());
    let asked = Asked::within(RETRY_DELAY * 2, Command::AllocateProducerIds(call), None);
    controller.send_command(asked).await.unwrap();
    let answer = timeout(RETRY_DELAY * 10, answer).await.expect("in time");
    assert!(matches!(answer, Ok(Err(ControllerError::TimedOut))));
    store.is_away.store(false, Ordering::SeqCst);
    let next = timeout(DEADLINE, controller.allocate_producer_ids()).await;
    let next = next.expect("in time").unwrap();
    assert_eq!(next.first.value(), 0, "nobody was given the first ones");
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_as_long_as_its_client_wants_within_bounds() {
    let store = FaultyStore::new(&[]);
    let controller = cut_off_broker(&store).await;
    // Whoever is not heeded waits for the longest time.
    let longest_ms = crate::controller::CALL_TIMEOUT.as_millis();
    for (timeout_ms, at_least_ms) in [(0, 1000), (i32::MIN, 1000), (2500, 2500)] {
        let asked = Instant::now();
        let answers = controller
            .within(timeout_ms)
            .create_topics(vec![crate::processes::topic("t", 1, 1)], false)
            .await;
        assert_eq!(answers, [Err(ControllerError::TimedOut)]);
        let waited = asked.elapsed().as_millis();
        assert!(
            (at_least_ms..longest_ms).contains(&waited),
            "{timeout_ms} ms: {waited} ms"
        );
    }
    store.is_away.store(false, Ordering::SeqCst);
    let next = timeout(DEADLINE, async {
        while controller.image().topic("u").is_none() {
            let _ = controller
                .within(0)
                .create_topics(vec![crate::processes::topic("u", 1, 1)], false)
                .await;
        }
    });
    next.await.expect("a time-out of 0 is enough");
    assert!(controller.image().topic("t").is_none(), "it was given up");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_is_not_done() {
    let delay = RETRY_DELAY * 2;
    let store = FaultyStore {
        watch_delay: delay,
        ..FaultyStore::new(&[])
    };
    let controller = broker(&store).await;
    let (first, first_answer) = Call::new(());
    let (late, late_answer) = Call::new(());
    let calls = [(DEADLINE, first), (delay / 2, late)];
    for (timeout, call) in calls {
        let asked = Asked::within(timeout, Command::AllocateProducerIds(call), None);
        controller.send_command(asked).await.unwrap();
    }
    // The image does not show the first for a while, and before that none is decided.
    assert!(first_answer.await.unwrap().is_ok());
    let late = late_answer.await.unwrap();
    assert!(matches!(late, Err(ControllerError::TimedOut)));
}

/// A broker that loses the race for `key` to somebody who puts `value` there.
async fn outrun(store: FaultyStore, key: &'static str, value: &'static str) {
    store
        .faults
        .lock()
        .unwrap()
        .push_back((key, Fault::Outrun(value)));
    let controller = started(&store, Duration::from_mins(1)).await;
    let mut images = controller.subscribe();
    let registering = controller.register_broker(registration());
    let outcome = images.wait_for(|image| {
        let seal = image.controller().map(|holder| &*holder.incarnation);
        let number = image.registration(1.into());
        let number = number.map(|broker| &*broker.registration.incarnation);
        seal == Some("faster") || number == Some("faster")
    });
    tokio::select! {
        told = timeout(DEADLINE, outcome) => {
            told.expect("the image says in time who was faster").unwrap();
        }
        registered = registering => panic!("{key}: it was not outrun but {registered:?}"),
    }
    assert_eq!(*store.refused.lock().unwrap(), 1, "it ran for {key} again");
}

const FASTER_CONTROLLER: &str = r#"{"node_id":9,"incarnation":"faster","session":"9"}"#;
const FASTER_BROKER: &str =
    r#"{"incarnation":"faster","endpoints":[],"boot_id":"","directories":[]}"#;

#[tokio::test(start_paused = true)]
async fn a_race_that_was_lost_is_not_run_again_before_the_image_says_who_won() {
    for (key, value) in [
        ("controller", FASTER_CONTROLLER),
        ("brokers/", FASTER_BROKER),
    ] {
        let store = FaultyStore {
            watch_delay: RETRY_DELAY / 4,
            ..FaultyStore::new(&[])
        };
        outrun(store, key, value).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_won_a_race_is_read_if_the_watch_does_not_say_it() {
    let store = FaultyStore::new(&[]);
    let founded = broker(&store).await;
    founded.stop().await;
    let deaf = FaultyStore {
        watch_delay: Duration::from_hours(1),
        ..store
    };
    outrun(deaf, "brokers/", FASTER_BROKER).await;
}
