//! Processes that die, fall silent and come back, and who takes over when. Sessions
//! are too long to matter here.

use std::time::{Duration, Instant};

use yuxi_protocol::ids::BrokerId;

use crate::{
    Campaign,
    processes::{Health, Process, all_ok, led, topic},
    store::{EmbeddedStore, MetadataStore as _},
};

async fn three(store: &EmbeddedStore) -> [Process; 3] {
    let processes = [
        Process::start(store, 1).await,
        Process::start(store, 2).await,
        Process::start(store, 3).await,
    ];
    let topics = vec![topic("t", 9, 3)];
    all_ok(processes[0].controller.create_topics(topics, false).await);
    for process in &processes {
        process.until(|image| led(image, 3) == 3).await;
    }
    processes
}

/// Until those that watch have heard of everybody.
async fn acquainted() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test]
async fn a_broker_whose_process_is_gone_is_fenced_at_once() {
    let store = EmbeddedStore::in_memory();
    let [one, _two, three] = three(&store).await;
    let epoch = one.epoch(3);
    acquainted().await;
    three.become_(Health::Killed);
    let image = one
        .until(|image| image.registration(BrokerId::new(3)).is_none())
        .await;
    // One transaction, so one image.
    assert_eq!((led(&image, 1), led(&image, 2), led(&image, 3)), (5, 4, 0));
    let admission = image.admission(BrokerId::new(3)).unwrap();
    assert_eq!(admission.value.broker_epoch, epoch);
}

#[tokio::test]
async fn a_silent_broker_is_fenced_and_registers_again_by_itself() {
    let store = EmbeddedStore::in_memory();
    let [one, _two, three] = three(&store).await;
    let epoch = one.epoch(3);
    acquainted().await;
    three.become_(Health::Silent);
    one.until(|image| led(image, 3) == 0).await;
    let image = one
        .until(|image| {
            image
                .broker(BrokerId::new(3))
                .is_some_and(|b| b.epoch > epoch)
        })
        .await;
    assert!(image.is_active(BrokerId::new(3)));
    three.become_(Health::Well);
    let later = three.epoch(3);
    acquainted().await;
    assert_eq!(one.epoch(3), later, "once is enough");
}

#[tokio::test]
async fn brokers_whose_sessions_are_lost_together_lead_on_for_a_while_if_they_answer() {
    let store = EmbeddedStore::in_memory();
    let [one, two, three] = three(&store).await;
    acquainted().await;
    // They will not learn of it, and so not register again.
    for process in [&two, &three] {
        process.deafen();
    }
    let image = one.controller.image();
    let lost = Instant::now();
    for broker in [2, 3] {
        let session = image.registration(BrokerId::new(broker)).unwrap().session;
        store.close_session(session.unwrap()).await.unwrap();
    }
    one.until(|image| image.registrations().count() == 1).await;
    one.until(|image| led(image, 1) == 9).await;
    // Well beyond the moment that one alone is given. That it is three time-outs is for the
    // test of `Vanished` to say: on a machine that stands still nobody answers for so long.
    let patience = Duration::from_millis(200);
    assert!(lost.elapsed() >= patience, "{:?}", lost.elapsed());
}

#[tokio::test]
async fn a_controller_whose_process_is_gone_is_followed_by_a_candidate_next_in_line() {
    let store = EmbeddedStore::in_memory();
    let [one, two, three] = three(&store).await;
    let first = one.controller.image().controller().unwrap().clone();
    assert_eq!(first.node_id, BrokerId::new(1));
    acquainted().await;
    one.become_(Health::Killed);
    for survivor in [&two, &three] {
        let image = survivor
            .until(|image| {
                let controller = image.controller();
                controller.is_some_and(|now| now.epoch > first.epoch) && led(image, 1) == 0
            })
            .await;
        assert!(image.registration(BrokerId::new(1)).is_none());
        assert_eq!(led(&image, 2) + led(&image, 3), 9);
    }
}

#[tokio::test]
async fn controller_and_leader_die_at_once_and_the_third_takes_over_both() {
    let store = EmbeddedStore::in_memory();
    let [one, two, three] = three(&store).await;
    acquainted().await;
    one.become_(Health::Killed);
    two.become_(Health::Killed);
    let image = three.until(|image| led(image, 3) == 9).await;
    assert_eq!(image.controller().unwrap().node_id, BrokerId::new(3));
}

#[tokio::test]
async fn a_controller_that_does_not_know_it_was_deposed_changes_nothing_and_stops() {
    let store = EmbeddedStore::in_memory();
    let [one, two, _three] = three(&store).await;
    let reign = one.controller.image().controller().unwrap().clone();
    one.deafen();
    store.close_session(reign.session.unwrap()).await.unwrap();
    let next = two
        .until(|image| {
            image
                .controller()
                .is_some_and(|now| now.epoch > reign.epoch)
        })
        .await;
    // It still believes that it holds the seal.
    let believes = one.controller.image();
    assert_eq!(believes.controller(), Some(&reign));
    let asking = tokio::spawn({
        let one = one.controller.clone();
        async move { one.create_topics(vec![topic("late", 1, 1)], false).await }
    });
    // Its commit is refused, so it looks again and sees who is the controller now.
    let now = next.controller().unwrap().epoch;
    let sees = one
        .until(|image| image.controller().is_some_and(|seen| seen.epoch >= now))
        .await;
    assert_ne!(sees.controller().unwrap().node_id, BrokerId::new(1));
    assert!(sees.topic("late").is_none());
    asking.abort();
}

#[tokio::test]
async fn a_process_that_retires_hands_over_the_seal_and_stays_registered() {
    let store = EmbeddedStore::in_memory();
    let [one, two, _three] = three(&store).await;
    one.controller.retire().await;
    let image = two
        .until(|image| {
            let controller = image.controller();
            controller.is_some_and(|now| now.node_id != BrokerId::new(1))
        })
        .await;
    assert!(image.broker(BrokerId::new(1)).is_some());
}

#[tokio::test]
async fn a_broker_that_is_no_candidate_waits_until_there_is_a_controller() {
    let store = EmbeddedStore::in_memory();
    let two = Process::start(&store, 2).await;
    two.controller.stop().await;
    let one = Process::start_as(&store, 1, Campaign::Never).await;
    let mut registering = Box::pin(one.register());
    let waited = tokio::time::timeout(Duration::from_millis(300), &mut registering).await;
    assert!(waited.is_err(), "{waited:?}");
    assert!(one.controller.image().controller().is_none());
    let _three = Process::start(&store, 3).await;
    registering.await.unwrap();
    let image = one.controller.image();
    assert_eq!(image.controller().unwrap().node_id, BrokerId::new(3));
}

#[tokio::test]
async fn a_process_that_is_started_again_on_its_directory_does_not_wait_for_its_last_session() {
    let store = EmbeddedStore::in_memory();
    let first = Process::start(&store, 1).await;
    let epoch = first.epoch(1);
    first.become_(Health::Killed);
    let again = Process::start(&store, 1).await;
    assert!(again.epoch(1) > epoch);
}

#[tokio::test]
async fn ten_thousand_partitions_find_new_leaders_under_the_next_controller() {
    let store = EmbeddedStore::in_memory();
    let one = Process::start(&store, 1).await;
    let two = Process::start(&store, 2).await;
    let three = Process::start(&store, 3).await;
    let topics = (0..10).map(|i| topic(&format!("t{i}"), 1000, 3)).collect();
    all_ok(one.controller.create_topics(topics, false).await);
    three.until(|image| image.topic_count() == 10).await;
    acquainted().await;
    let killed = std::time::Instant::now();
    one.become_(Health::Killed);
    three
        .until(|image| led(image, 1) == 0 && led(image, 2) + led(image, 3) == 10_000)
        .await;
    println!("10,000 partitions: {:?}", killed.elapsed());
    drop(two);
}
