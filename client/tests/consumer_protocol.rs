//! Consumers of the consumer protocol (KIP-848), against a coordinator that a test tells
//! what to assign.

mod support;

use std::time::{Duration, Instant};

use support::clients::{config, fill, poll_until};
use support::{FakeCluster, TOPIC};
use yuxi_client::protocol::error_code::ErrorCode;
use yuxi_client::{Consumer, Error};

const LIMIT: Duration = Duration::from_secs(30);

async fn member(cluster: &FakeCluster, settings: &[(&str, &str)]) -> Consumer {
    let mut consumer = unsubscribed(cluster, settings).await;
    consumer.subscribe([TOPIC.into()]).expect("a group");
    consumer
}

async fn unsubscribed(cluster: &FakeCluster, settings: &[(&str, &str)]) -> Consumer {
    let mut all = vec![
        ("group.id", "g"),
        ("group.protocol", "consumer"),
        ("auto.offset.reset", "earliest"),
    ];
    all.extend(settings);
    Consumer::connect(config(cluster, &all))
        .await
        .expect("the fake broker answers")
}

/// Polls until the membership has failed.
async fn failure(consumer: &mut Consumer) -> Error {
    let deadline = Instant::now() + LIMIT;
    loop {
        assert!(Instant::now() < deadline, "nothing was told");
        if let Err(error) = consumer.poll(Duration::from_millis(10)).await {
            return error;
        }
    }
}

async fn cluster() -> FakeCluster {
    let cluster = FakeCluster::start(1, 2).await;
    cluster.state().topic_ids = true;
    cluster
}

fn assignment(consumer: &Consumer) -> Vec<i32> {
    consumer.assignment().map(|p| p.partition.value()).collect()
}

async fn poll_until_assigned(consumer: &mut Consumer, expected: &[i32]) {
    let deadline = Instant::now() + LIMIT;
    while assignment(consumer) != expected {
        assert!(
            Instant::now() < deadline,
            "still {:?}",
            assignment(consumer)
        );
        let polled = consumer.poll(Duration::from_millis(10)).await;
        polled.expect("nothing fatal");
    }
}

/// Waits until the member has said what it holds. The consumer is not polled meanwhile.
async fn until_owned(cluster: &FakeCluster, expected: &[i32]) {
    let deadline = Instant::now() + LIMIT;
    while cluster.state().members.owned.last().map(Vec::as_slice) != Some(expected) {
        let owned = cluster.state().members.owned.clone();
        assert!(Instant::now() < deadline, "it said {owned:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_the_coordinator_assigns_is_read_and_acknowledged() {
    let cluster = FakeCluster::start(1, 1).await;
    cluster.state().topic_ids = true;
    fill(&cluster, 3).await;
    cluster.state().members.assign = Some(vec![0]);
    let mut consumer = member(&cluster, &[("group.remote.assignor", "range")]).await;
    let values = poll_until(&mut consumer, 3).await.expect("nothing fatal");
    assert_eq!(values, ["0", "1", "2"]);
    until_owned(&cluster, &[0]).await;
    assert_eq!(cluster.state().members.assignor.as_deref(), Some("range"));
    let group = consumer.group_metadata().expect("it has joined");
    assert_eq!((group.group.as_str(), group.generation), ("g", 1));
}

#[tokio::test]
async fn what_is_asked_back_is_acknowledged_only_once_it_is_given_up() {
    let cluster = cluster().await;
    cluster.state().members.assign = Some(vec![0, 1]);
    let mut consumer = member(&cluster, &[]).await;
    poll_until_assigned(&mut consumer, &[0, 1]).await;
    until_owned(&cluster, &[0, 1]).await;
    let beats = cluster.state().members.epochs_seen.len();
    cluster.state().members.assign = Some(vec![1]);
    let deadline = Instant::now() + LIMIT;
    // While the consumer is busy with its records the member shows signs of life.
    while cluster.state().members.epochs_seen.len() < beats + 5 {
        assert!(Instant::now() < deadline, "the heartbeats ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let said = cluster.state().members.owned.clone();
    assert!(
        said.iter().all(|owned| *owned == [0, 1]),
        "it reads both still: {said:?}"
    );
    poll_until_assigned(&mut consumer, &[1]).await;
    until_owned(&cluster, &[1]).await;
}

#[tokio::test]
async fn a_member_that_is_fenced_gives_everything_up_and_joins_again() {
    for code in [ErrorCode::FencedMemberEpoch, ErrorCode::UnknownMemberId] {
        let cluster = cluster().await;
        cluster.state().members.assign = Some(vec![0]);
        let mut consumer = member(&cluster, &[]).await;
        poll_until_assigned(&mut consumer, &[0]).await;
        cluster.state().members.refusals.push_back(code);
        poll_until_assigned(&mut consumer, &[]).await;
        cluster.state().members.assign = Some(vec![1]);
        poll_until_assigned(&mut consumer, &[1]).await;
        until_owned(&cluster, &[1]).await;
        let joins = cluster.state().members.epochs_seen.clone();
        let joins = joins.iter().filter(|epoch| **epoch == 0).count();
        assert!(joins >= 2, "{code:?}: {joins} joins");
    }
}

#[tokio::test]
async fn a_member_that_closes_says_so_and_a_static_one_that_it_will_be_back() {
    for (settings, farewell) in [(&[][..], -1), (&[("group.instance.id", "i")][..], -2)] {
        let cluster = cluster().await;
        cluster.state().members.assign = Some(vec![0]);
        let mut consumer = member(&cluster, settings).await;
        poll_until_assigned(&mut consumer, &[0]).await;
        consumer.close().await.expect("the coordinator answers");
        let last = cluster.state().members.epochs_seen.last().copied();
        assert_eq!(last, Some(farewell));
    }
}

#[tokio::test]
async fn an_assignor_that_the_coordinator_lacks_is_told() {
    let cluster = cluster().await;
    let refused = ErrorCode::UnsupportedAssignor;
    cluster.state().members.refusals.push_back(refused);
    let mut consumer = member(&cluster, &[("group.remote.assignor", "sticky")]).await;
    assert_eq!(failure(&mut consumer).await.code(), Some(refused));
}

#[tokio::test]
async fn settings_that_the_groups_protocol_has_no_use_for_are_refused_with_those_it_has() {
    let cluster = cluster().await;
    for (protocol, name, value, instead) in [
        (
            "consumer",
            "session.timeout.ms",
            "45000",
            "group.consumer.session.timeout.ms",
        ),
        (
            "consumer",
            "heartbeat.interval.ms",
            "3000",
            "consumer.heartbeat.interval.ms of the group",
        ),
        (
            "consumer",
            "partition.assignment.strategy",
            "range",
            "group.remote.assignor",
        ),
        (
            "classic",
            "group.remote.assignor",
            "range",
            "partition.assignment.strategy",
        ),
    ] {
        let settings = [("group.protocol", protocol), (name, value)];
        let mut consumer = unsubscribed(&cluster, &settings).await;
        let refused = consumer.subscribe([TOPIC.into()]).expect_err(name);
        let text = refused.to_string();
        assert!(matches!(refused, Error::Config(_)), "{text}");
        assert!(text.contains(name) && text.contains(instead), "{text}");
        // The other protocol takes it.
        let other = if protocol == "classic" {
            "consumer"
        } else {
            "classic"
        };
        let settings = [("group.protocol", other), (name, value)];
        let mut consumer = unsubscribed(&cluster, &settings).await;
        consumer.subscribe([TOPIC.into()]).expect(name);
    }
}

#[tokio::test]
async fn a_regex_is_the_coordinators_to_match_and_the_topics_it_finds_are_read() {
    let cluster = FakeCluster::start(1, 1).await;
    cluster.state().topic_ids = true;
    fill(&cluster, 3).await;
    cluster.state().members.assign = Some(vec![0]);
    let mut consumer = unsubscribed(&cluster, &[]).await;
    consumer.subscribe_regex("t+").expect("a group");
    let values = poll_until(&mut consumer, 3).await.expect("nothing fatal");
    assert_eq!(values, ["0", "1", "2"]);
    assert_eq!(cluster.state().members.regex.as_deref(), Some("t+"));
}

#[tokio::test]
async fn a_regex_that_the_coordinator_refuses_is_told() {
    let cluster = cluster().await;
    let refused = ErrorCode::InvalidRegularExpression;
    cluster.state().members.refusals.push_back(refused);
    let mut consumer = unsubscribed(&cluster, &[]).await;
    consumer.subscribe_regex("(").expect("not ours to check");
    assert_eq!(failure(&mut consumer).await.code(), Some(refused));
}

#[tokio::test]
async fn a_coordinator_that_knows_no_regexes_is_told_as_such() {
    let cluster = cluster().await;
    cluster.state().members.old = true;
    let mut consumer = unsubscribed(&cluster, &[]).await;
    consumer.subscribe_regex("t").expect("a group");
    let error = failure(&mut consumer).await;
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[tokio::test]
async fn a_classic_member_matches_a_regex_itself_and_joins_again_with_topics_that_come() {
    let cluster = FakeCluster::start(1, 1).await;
    let others = ["tt", "x", "__t"].map(str::to_owned);
    cluster.state().other_topics = others.to_vec();
    let settings = [
        ("group.protocol", "classic"),
        ("metadata.max.age.ms", "50"),
        ("heartbeat.interval.ms", "10"),
    ];
    let mut consumer = unsubscribed(&cluster, &settings).await;
    consumer.subscribe_regex("(__)?t+").expect("a group");
    poll_until_subscribed(&cluster, &mut consumer, &["t", "tt"]).await;
    let joins = cluster.state().group.joins;
    cluster.state().other_topics.push("ttt".to_owned());
    poll_until_subscribed(&cluster, &mut consumer, &["t", "tt", "ttt"]).await;
    assert!(cluster.state().group.joins > joins);
}

async fn poll_until_subscribed(cluster: &FakeCluster, consumer: &mut Consumer, expected: &[&str]) {
    let deadline = Instant::now() + LIMIT;
    while cluster.state().group.subscribed != expected {
        let subscribed = cluster.state().group.subscribed.clone();
        assert!(Instant::now() < deadline, "still {subscribed:?}");
        let polled = consumer.poll(Duration::from_millis(10)).await;
        polled.expect("nothing fatal");
    }
}

#[tokio::test]
async fn a_classic_members_regex_that_is_wrong_or_explosive_is_refused_at_once() {
    let cluster = FakeCluster::start(1, 1).await;
    let mut consumer = unsubscribed(&cluster, &[("group.protocol", "classic")]).await;
    for wrong in ["", "(", "a{1000}{1000}{1000}"] {
        let refused = consumer.subscribe_regex(wrong).expect_err(wrong);
        assert!(matches!(refused, Error::Config(_)), "{refused}");
    }
    consumer.subscribe_regex("t").expect("nothing was begun");
}

#[tokio::test]
async fn automatic_commits_do_not_pile_up_while_the_coordinator_is_away() {
    let request_timeout = Duration::from_secs(2);
    for protocol in ["classic", "consumer"] {
        let cluster = FakeCluster::start(1, 1).await;
        cluster.state().topic_ids = true;
        fill(&cluster, 3).await;
        cluster.state().members.assign = Some(vec![0]);
        let settings = [
            ("group.protocol", protocol),
            ("auto.commit.interval.ms", "50"),
            (
                "request.timeout.ms",
                &request_timeout.as_millis().to_string(),
            ),
        ];
        cluster.state().group.commits_hang = true;
        let mut consumer = member(&cluster, &settings).await;
        poll_until(&mut consumer, 3).await.expect("nothing fatal");
        let began = Instant::now();
        while began.elapsed() < request_timeout {
            let polled = consumer.poll(Duration::from_millis(5)).await;
            polled.expect("a commit can wait");
        }
        cluster.state().group.commits_hang = false;
        // One was under way; the next is of what was handed out by then.
        let commits = cluster.state().group.commits;
        let due = 2 + began.elapsed().as_millis() / request_timeout.as_millis();
        assert!(
            commits as u128 <= due,
            "{protocol}: {commits}, where {due} were due"
        );
        let back = Instant::now();
        let deadline = Instant::now() + LIMIT;
        while cluster.state().group.committed.get(&0).map(|c| c.0) != Some(3) {
            assert!(Instant::now() < deadline, "{protocol}: never committed");
            let polled = consumer.poll(Duration::from_millis(5)).await;
            polled.expect("the coordinator is back");
        }
        let since = cluster.state().group.commits - commits;
        let due = 2 + back.elapsed().as_millis() / 50;
        assert!(
            since as u128 <= due,
            "{protocol}: {since}, where {due} were due"
        );
    }
}
