use tokio::net::TcpListener;

use super::*;
use crate::{
    decide::{
        brokers,
        testing::{Cluster, id, registration, settings},
    },
    keys::{BrokerValue, Endpoint},
    processes::DEADLINE,
};

const TIMING: Timing = Timing {
    interval: Duration::from_millis(200),
    timeout: Duration::from_secs(1),
};

/// For what waits for a real connection: no machine is so slow that an answer takes too long.
const PATIENT: Timing = Timing {
    timeout: DEADLINE,
    ..TIMING
};

fn life(number: i32) -> Life {
    Life::Broker(BrokerId::new(number), 1)
}

/// What is seen of brokers 1, 2, …: how many milliseconds ago each was heard, if ever, and
/// whether it refuses connections.
fn seen(now: Instant, brokers: &[(Option<u64>, bool)]) -> BTreeMap<Life, Observation> {
    let observe = |&(ago, refused): &(Option<u64>, bool)| Observation {
        heard: ago.map(|ago| now - Duration::from_millis(ago)),
        refused,
    };
    (1..).map(life).zip(brokers.iter().map(observe)).collect()
}

fn dead(verdicts: &Verdicts) -> Vec<Life> {
    verdicts.dead.iter().copied().collect()
}

/// A monitor that has looked just before `now`.
fn monitor(now: Instant) -> Monitor {
    let mut monitor = Monitor::new(TIMING);
    monitor.look(now - Duration::from_millis(100), &BTreeMap::new());
    monitor
}

fn start() -> Instant {
    Instant::now() + Duration::from_hours(1)
}

#[test]
fn a_verdict_follows_from_what_was_heard_last() {
    const WELL: (Option<u64>, bool) = (Some(150), false);
    const SILENT: (Option<u64>, bool) = (Some(1001), false);
    const REFUSES: (Option<u64>, bool) = (Some(20), true);
    const NEVER: (Option<u64>, bool) = (None, false);
    #[track_caller]
    fn check(brokers: &[(Option<u64>, bool)], expected: &[i32]) {
        let now = start();
        let verdicts = monitor(now).look(now, &seen(now, brokers));
        let expected: Vec<Life> = expected.iter().copied().map(life).collect();
        assert_eq!(dead(&verdicts), expected);
    }
    check(&[WELL, WELL], &[]);
    check(&[WELL, REFUSES], &[2]);
    check(&[WELL, SILENT], &[2]);
    check(&[WELL, (Some(1000), false)], &[]);
    // Never reached: it may only be out of reach for this process.
    check(&[WELL, NEVER], &[]);
    // The only other broker may well be dead.
    check(&[SILENT], &[1]);
    // Nobody at all is heard: it is this process that is cut off. Refusals count still.
    check(&[SILENT, SILENT], &[]);
    check(&[REFUSES, REFUSES], &[1, 2]);
    check(&[SILENT, REFUSES], &[2]);
    // A few of many.
    check(
        &[WELL, WELL, WELL, WELL, WELL, WELL, SILENT, SILENT],
        &[7, 8],
    );
}

#[test]
fn a_refusal_counts_once_and_only_of_a_process_that_was_reached() {
    let now = start();
    let mut seen = Observation::default();
    assert!(!seen.turned_away(), "it may be out of reach from here");
    assert!(!seen.refused);
    seen.answered(now);
    assert!(seen.turned_away());
    assert!(seen.refused);
    assert!(!seen.turned_away(), "that is known");
    seen.answered(now);
    assert!(!seen.refused, "something is there again");
}

#[test]
fn the_next_look_is_due_when_a_silence_becomes_too_long() {
    let now = start();
    let mut monitor = monitor(now);
    let after = |monitor: &Monitor| monitor.due().unwrap() - now;
    monitor.look(now, &seen(now, &[(Some(100), false), (Some(700), false)]));
    assert_eq!(after(&monitor), Duration::from_millis(301));
    monitor.look(now, &seen(now, &[(Some(100), false), (None, false)]));
    assert_eq!(after(&monitor), TIMING.timeout / 2, "never later");
}

#[test]
fn many_that_are_silent_at_once_are_asked_again_before_they_are_taken_for_dead() {
    let mut now = start();
    let mut monitor = monitor(now);
    let well = (Some(100), false);
    let silent = (Some(1100), false);
    let verdicts = monitor.look(now, &seen(now, &[well, silent, silent]));
    assert_eq!(dead(&verdicts), []);
    assert_eq!(verdicts.ask_again, [life(2), life(3)].into());
    // One answers the second question.
    for _ in 0..4 {
        now += Duration::from_millis(100);
        let verdicts = monitor.look(now, &seen(now, &[well, well, silent]));
        assert_eq!(verdicts, Verdicts::default());
    }
    now += Duration::from_millis(100);
    let verdicts = monitor.look(now, &seen(now, &[well, well, silent]));
    assert_eq!(dead(&verdicts), [life(3)]);
}

#[test]
fn a_process_that_stood_still_blames_nobody_for_the_time() {
    let mut now = start();
    let mut monitor = monitor(now);
    now += Duration::from_secs(5);
    let heard_long_ago = [(Some(100), false), (Some(5100), false)];
    let verdicts = monitor.look(now, &seen(now, &heard_long_ago));
    assert_eq!(dead(&verdicts), []);
    // From here on it counts.
    for step in 1..=11 {
        now += Duration::from_millis(100);
        let ago = 5100 + step * 100;
        let verdicts = monitor.look(now, &seen(now, &[(Some(100), false), (Some(ago), false)]));
        let expected: &[Life] = if step > 10 { &[life(2)] } else { &[] };
        assert_eq!(dead(&verdicts), expected, "{step}");
    }
}

#[test]
fn who_answered_until_this_process_stood_still_answers_until_it_is_silent_from_there_on() {
    let mut now = start();
    let mut monitor = monitor(now);
    let observe = |ago, refused| seen(start(), &[(ago, refused)])[&life(1)];
    let (well, refused, never) = (
        observe(Some(100), false),
        observe(Some(100), true),
        observe(None, false),
    );
    let brokers = BTreeMap::from([(life(1), well)]);
    monitor.look(now, &brokers);
    // A short while in which nobody looked.
    now += Duration::from_millis(900);
    monitor.look(now, &brokers);
    assert!(monitor.answers(&well, now));
    now += Duration::from_millis(101);
    monitor.look(now, &brokers);
    assert!(!monitor.answers(&well, now), "it is silent");
    now += Duration::from_secs(5);
    monitor.look(now, &brokers);
    assert!(monitor.answers(&well, now), "nobody listened");
    assert!(!monitor.answers(&refused, now));
    assert!(!monitor.answers(&never, now));
    for _ in 0..11 {
        assert!(monitor.answers(&well, now));
        now += Duration::from_millis(100);
        monitor.look(now, &brokers);
    }
    assert!(!monitor.answers(&well, now), "it is silent again");
}

fn vanish(cluster: &mut Cluster, broker: i32, vanished: &mut Vanished, now: Instant) {
    let old = cluster.image.clone();
    cluster.unregister(broker);
    vanished.follow(&old, &cluster.image, now, Duration::from_secs(3));
}

#[test]
fn brokers_that_answer_are_spared_when_many_registrations_vanish_and_soon_not_when_one_does() {
    let grace = Duration::from_secs(3);
    let millis = Duration::from_millis;
    let mut cluster = Cluster::of(4);
    let mut vanished = Vanished::default();
    let now = Instant::now();
    let spared = |vanished: &Vanished, registered, at, deaf: i32| -> Vec<i32> {
        let spared = vanished.spared(registered, at, grace, |b| b.id != id(deaf));
        spared.iter().map(|broker| broker.id.value()).collect()
    };
    vanish(&mut cluster, 1, &mut vanished, now);
    assert_eq!(spared(&vanished, 3, now, 0), [1], "more may follow");
    assert_eq!(spared(&vanished, 3, now + millis(100), 0), [0; 0]);
    assert_eq!(spared(&vanished, 3, now, 1), [0; 0], "it does not answer");
    vanish(&mut cluster, 2, &mut vanished, now + millis(90));
    assert_eq!(spared(&vanished, 2, now + millis(2000), 0), [1, 2]);
    assert_eq!(spared(&vanished, 2, now + millis(2000), 2), [1]);
    assert_eq!(spared(&vanished, 2, now + millis(3000), 0), [2]);
    assert_eq!(spared(&vanished, 2, now + millis(3090), 0), [0; 0]);
    // Whoever is back is no longer missed.
    let old = cluster.image.clone();
    cluster.register(2, &registration());
    vanished.follow(&old, &cluster.image, now + millis(100), grace);
    assert_eq!(spared(&vanished, 3, now + millis(100), 0), [0; 0]);
}

#[test]
fn a_broker_that_was_leaving_or_was_never_let_in_is_not_missed() {
    let mut cluster = Cluster::of(3);
    let epoch = cluster.epoch(1);
    let asked = brokers::shut_down(&cluster.image, &settings(), id(1), epoch);
    cluster.apply(&asked.unwrap().0);
    cluster.register(4, &registration());
    let mut vanished = Vanished::default();
    let now = Instant::now();
    for broker in [1, 4, 2] {
        vanish(&mut cluster, broker, &mut vanished, now);
    }
    let grace = Duration::from_secs(3);
    let spared = vanished.spared(1, now, grace, |_| true);
    let spared: Vec<BrokerId> = spared.iter().map(|broker| broker.id).collect();
    assert_eq!(spared, [id(2)]);
    // Nor do they make one that went into many.
    assert!(
        vanished
            .spared(1, now + SETTLING, grace, |_| true)
            .is_empty()
    );
}

#[test]
fn the_lowest_two_candidates_besides_the_controller_are_in_line() {
    let mut cluster = Cluster::new();
    for broker in 1..=5 {
        let candidate = broker != 2;
        let value = BrokerValue {
            candidate,
            ..registration()
        };
        cluster.register(broker, &value);
    }
    let holder = crate::keys::ControllerValue {
        node_id: id(3),
        incarnation: "three".to_owned(),
        session: String::new(),
        endpoint: None,
    };
    cluster.put(
        &crate::keys::Key::Controller,
        crate::keys::print_value(&holder),
    );
    let in_line: Vec<i32> = (1..=6)
        .filter(|&node| {
            let incarnation = if node == 3 { "three" } else { "other" };
            is_in_line(&cluster.image, id(node), incarnation)
        })
        .collect();
    // The sixth is no broker.
    assert_eq!(in_line, [1, 3, 4, 6]);
}

async fn listening() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address {
        host: "127.0.0.1".to_owned(),
        port: listener.local_addr().unwrap().port(),
    };
    (listener, address)
}

/// Takes a request from a probe and answers it, or only takes it.
async fn hear(stream: &mut TcpStream, answers: bool) {
    let mut buffer = BytesMut::new();
    read_frame(stream, &mut buffer, 1 << 10).await.unwrap();
    if answers {
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0]).await.unwrap();
    }
}

/// The service compares brokers and partitions anew when it is told, and is told once.
#[tokio::test]
async fn a_death_that_is_found_as_the_image_changes_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut cluster = Cluster::new();
    let endpoint = Endpoint {
        listener: "PLAINTEXT".to_owned(),
        security_protocol: "PLAINTEXT".to_owned(),
        host: "127.0.0.1".to_owned(),
        port: listener.local_addr().unwrap().port(),
    };
    cluster.register(
        2,
        &BrokerValue {
            endpoints: vec![endpoint],
            ..registration()
        },
    );
    let metrics = ControllerMetrics::new();
    let mut liveness = Liveness::new(id(1), PATIENT);
    let nobody = ClusterImage::default();
    assert!(!liveness.follow(&nobody, &cluster.image, true, &metrics));
    let (mut stream, _) = listener.accept().await.unwrap();
    hear(&mut stream, true).await;
    // It asks again once it has the answer.
    hear(&mut stream, false).await;
    drop((listener, stream));
    timeout(DEADLINE, liveness.found.notified()).await.unwrap();
    let old = cluster.image.clone();
    cluster.register(3, &registration());
    assert!(liveness.follow(&old, &cluster.image, true, &metrics));
    assert_eq!(liveness.dead_brokers(&cluster.image), [id(2)]);
    assert!(!liveness.look(&metrics), "it was told");
}

#[tokio::test]
async fn a_probe_hears_an_answer_and_notices_at_once_when_the_port_is_closed() {
    let (listener, address) = listening().await;
    let found = Arc::new(Notify::new());
    let probe = Probe::start(address, PATIENT, Instant::now(), Arc::clone(&found));
    let (mut stream, _) = listener.accept().await.unwrap();
    hear(&mut stream, false).await;
    // A process that is accepting and silent has not been heard.
    assert!(probe.seen().heard.is_none());
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0]).await.unwrap();
    hear(&mut stream, false).await;
    assert!(probe.seen().heard.is_some());
    // A connection that is dropped by a process that lives is made again.
    drop(stream);
    let (stream, _) = listener.accept().await.unwrap();
    assert!(!probe.seen().refused);
    drop(listener);
    drop(stream);
    timeout(DEADLINE, found.notified()).await.unwrap();
    assert!(probe.seen().refused);
}

/// A connection that is made in that moment is neither accepted nor refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_closed_while_a_probe_connects_is_noticed() {
    let timing = Timing {
        interval: Duration::from_hours(1),
        timeout: Duration::from_hours(1),
    };
    for round in 0..1000 {
        let (listener, address) = listening().await;
        let found = Arc::new(Notify::new());
        let _probe = Probe::start(address, timing, Instant::now(), Arc::clone(&found));
        let (mut stream, _) = listener.accept().await.unwrap();
        hear(&mut stream, true).await;
        drop(stream);
        // It begins to connect about now.
        let closed = std::time::Instant::now() + Duration::from_micros(round % 100);
        while std::time::Instant::now() < closed {}
        drop(listener);
        timeout(DEADLINE, found.notified()).await.unwrap();
    }
}
