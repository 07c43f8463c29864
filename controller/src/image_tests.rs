use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    decide::testing::{id, ids},
    keys::{LeaderRecovery, TopicValue, print_partitions, print_value},
    store::Entry,
};
use yuxi_protocol::ids::LeaderEpoch;

fn entry(key: &Key, value: Bytes, revision: i64) -> Entry {
    Entry {
        key: key.to_string().into(),
        value,
        create_revision: Revision::new(revision),
        mod_revision: Revision::new(revision),
        session: None,
    }
}

fn put(key: &Key, value: Bytes, revision: i64) -> Batch {
    Batch {
        revision: Revision::new(revision),
        changes: vec![Change::Put(entry(key, value, revision))],
    }
}

fn topic_id(number: u8) -> TopicId {
    TopicId::from_bytes([number; 16])
}

fn topic(number: u8, partitions: u32) -> Bytes {
    print_value(&TopicValue {
        topic_id: topic_id(number),
        partitions,
    })
}

fn states(chunk: u32, count: usize, leader: i32) -> Bytes {
    let state = PartitionState {
        replicas: ids(&[leader]),
        isr: ids(&[leader]),
        elr: Vec::new(),
        leader: id(leader),
        leader_epoch: LeaderEpoch::new(0),
        partition_epoch: 0,
        leader_recovery: LeaderRecovery::Recovered,
        last_known_leader: None,
        adding_replicas: Vec::new(),
        removing_replicas: Vec::new(),
        lost_data: Vec::new(),
    };
    print_partitions(chunk, &vec![state; count])
}

#[test]
fn a_newer_layout_is_refused_before_anything_else_is_read() {
    let snapshot = |cluster: &'static str| Snapshot {
        revision: Revision::new(2),
        entries: vec![
            entry(&Key::Admission(id(1)), "of another kind".into(), 1),
            entry(&Key::Cluster, cluster.into(), 2),
        ],
    };
    let error = ClusterImage::from_snapshot(&snapshot(r#"{"cluster_id":"c","layout":2}"#));
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("layout 2") && error.contains("newer"),
        "{error}"
    );
    let known = snapshot(r#"{"cluster_id":"c","layout":1}"#);
    let error = ClusterImage::from_snapshot(&known).unwrap_err().to_string();
    assert!(error.contains("admitted/1"), "{error}");
    let batch = |cluster: &'static str| put(&Key::Cluster, cluster.into(), 1);
    let image = ClusterImage::default();
    assert!(
        image
            .advanced_by(&batch(r#"{"cluster_id":"c","layout":2}"#))
            .is_err()
    );
    // Those written before layouts had numbers are of the first.
    assert!(image.advanced_by(&batch(r#"{"cluster_id":"c"}"#)).is_ok());
}

#[test]
fn a_topic_and_its_states_may_come_in_any_order() {
    let t = Key::Topic("t".into());
    let [first, second] = [0, 1].map(|chunk| Key::Partitions(topic_id(1), chunk));
    let steps = [
        (&t, topic(1, 130)),
        (&first, states(0, 128, 1)),
        (&second, states(1, 2, 1)),
    ];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
        let mut image = ClusterImage::default();
        for (revision, at) in (1..).zip(order) {
            let (key, value) = &steps[at];
            image = image
                .advanced_by(&put(key, value.clone(), revision))
                .unwrap();
        }
        let t = image.topic("t").unwrap();
        assert_eq!((t.partition_count(), t.partitions().count()), (130, 130));
        assert!(image.partition("t", PartitionId::new(129)).is_some());
        for outside in [-1, 130, i32::MAX] {
            assert!(image.partition("t", PartitionId::new(outside)).is_none());
        }
        assert_eq!(image.topic_by_id(topic_id(1)), Some(t));
    }
}

#[test]
fn a_count_without_states_behind_it_allocates_nothing_and_shows_nothing() {
    let t = Key::Topic("t".into());
    let image = ClusterImage::default()
        .advanced_by(&put(&t, topic(1, u32::MAX), 1))
        .unwrap();
    assert!(image.partition("t", PartitionId::new(0)).is_none());
}

#[test]
fn a_value_that_can_not_be_read_stops_the_image_and_names_the_key() {
    let t = Key::Topic("t".into());
    let image = ClusterImage::default()
        .advanced_by(&put(&t, topic(1, 1), 1))
        .unwrap();
    for (key, value) in [
        ("topics/t", "{}"),
        ("topics/t", r#"{"topic_id":"x","partitions":1}"#),
        ("controller", "junk"),
        ("partitions/AQEBAQEBAQEBAQEBAQEBAQ/0", r#"{"1":{}}"#),
    ] {
        let key = Key::parse(key).unwrap();
        let batch = put(&key, Bytes::from_static(value.as_bytes()), 2);
        let error = image.advanced_by(&batch).unwrap_err();
        assert!(error.to_string().contains(&key.to_string()), "{error}");
    }
}

#[test]
fn keys_of_a_later_version_are_passed_over() {
    let mut later = entry(&Key::Cluster, Bytes::from_static(b"junk"), 1);
    later.key = "acls/x".into();
    let batch = Batch {
        revision: Revision::new(1),
        changes: vec![Change::Put(later), Change::Delete("quotas/y".into())],
    };
    let image = ClusterImage::default().advanced_by(&batch).unwrap();
    assert_eq!(image.revision(), Revision::new(1));
}

#[test]
fn a_change_of_one_partition_shares_all_others_with_the_image_before() {
    let mut image = ClusterImage::default();
    let mut revision = 0;
    let mut advance = |image: &mut ClusterImage, key: &Key, value: Bytes| {
        revision += 1;
        *image = image.advanced_by(&put(key, value, revision)).unwrap();
    };
    for number in 0..20 {
        let chunk = |chunk| Key::Partitions(topic_id(number), chunk);
        advance(&mut image, &chunk(0), states(0, 128, 1));
        advance(&mut image, &chunk(1), states(1, 10, 1));
        let name = format!("t{number:02}");
        advance(
            &mut image,
            &Key::Topic(name.as_str().into()),
            topic(number, 138),
        );
    }
    let before = image.clone();
    advance(
        &mut image,
        &Key::Partitions(topic_id(7), 1),
        states(1, 10, 2),
    );
    let changes = image.changes_since(&before);
    let [TopicChange::Changed { old, new }] = changes.topics[..] else {
        panic!("{changes:?}");
    };
    assert_eq!(&*new.name, "t07");
    assert_eq!(new.changed_partitions(old).count(), 10);
    assert!(Arc::ptr_eq(new.chunk(0).unwrap(), old.chunk(0).unwrap()));
    for (new, old) in image.topics().zip(before.topics()) {
        assert!(&*new.name == "t07" || Arc::ptr_eq(new, old));
    }
}

proptest! {
    /// However it came to be, the image at a revision is the same.
    #[test]
    fn an_image_that_was_advanced_equals_one_that_was_read(
        steps in prop::collection::vec((0_u8..6, 0_u8..4, any::<bool>()), 0..80),
    ) {
        let mut entries = std::collections::BTreeMap::new();
        let mut image = ClusterImage::default();
        for (revision, (kind, number, deletes)) in (1..).zip(steps) {
            // Two names for two ids, one of which collides with a third.
            let name: &str = ["a.b", "c", "d_e", "f"][usize::from(number)];
            let (key, value) = match kind {
                0 => (Key::Topic(name.into()), topic(number, 130)),
                1 => (Key::Partitions(topic_id(number), 0), states(0, 128, i32::from(number))),
                2 => (Key::Partitions(topic_id(number), 1), states(1, 2, revision as i32)),
                3 => (Key::Topic(name.into()), topic(number, 1)),
                4 => (
                    Key::Config(ConfigScope::Topic(name.into())),
                    print_value(&ConfigValue::from([("k".to_owned(), revision.to_string())])),
                ),
                _ => (Key::Topic(name.into()), topic(10 + number, 129)),
            };
            let change = if deletes {
                entries.remove(&key.to_string());
                Change::Delete(key.to_string().into())
            } else {
                let new = entry(&key, value, revision);
                entries.insert(key.to_string(), new.clone());
                Change::Put(new)
            };
            let batch = Batch { revision: Revision::new(revision), changes: vec![change] };
            image = image.advanced_by(&batch).unwrap();
        }
        let snapshot = Snapshot {
            revision: image.revision(),
            entries: entries.into_values().collect(),
        };
        prop_assert_eq!(ClusterImage::from_snapshot(&snapshot).unwrap(), image);
    }
}
