//! The record formats, byte for byte, and what they do with any bytes.

use yuxi_coordinator::groups::{
    GroupConfig, GroupShard, RecordError, Replayed, fuzz_record,
    records::{
        self, GroupMetadataValue, GroupRecord, MemberMetadata, OffsetCommitKey, OffsetCommitValue,
    },
};
use yuxi_protocol::codec::{Bytes, StrBytes};

use crate::{
    consumer_support::Cluster,
    support::{at, counting_uuids},
};

fn bytes(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).expect("hex digits");
        u8::from_str_radix(text, 16).expect("hex digits")
    };
    digits.chunks(2).map(byte).collect::<Vec<_>>().into()
}

fn key() -> OffsetCommitKey {
    OffsetCommitKey {
        group: "grp".into(),
        topic: "to".into(),
        partition: 5,
    }
}

fn value() -> OffsetCommitValue {
    OffsetCommitValue {
        offset: 42,
        leader_epoch: 3,
        metadata: "note".into(),
        commit_timestamp_ms: 0x0102_0304_0506_0708,
        expire_timestamp_ms: None,
    }
}

fn group() -> GroupMetadataValue {
    GroupMetadataValue {
        protocol_type: "consumer".into(),
        generation: 9,
        protocol: Some("range".into()),
        leader: Some("m1".into()),
        current_state_timestamp_ms: 0x11,
        members: vec![MemberMetadata {
            member_id: "m1".into(),
            group_instance_id: Some("i".into()),
            client_id: "c".into(),
            client_host: "/h".into(),
            rebalance_timeout_ms: 0x22,
            session_timeout_ms: 0x33,
            subscription: Bytes::from_static(b"sub"),
            assignment: Bytes::from_static(b"as"),
        }],
    }
}

const OFFSET_KEY: &str = "0001 0003 677270 0002 746f 00000005";
const GROUP_KEY: &str = "0002 0003 677270";

#[test]
fn offsets_are_written_as_kafka_writes_them() {
    let record = records::offset_commit(&key(), &value());
    assert_eq!(record.key, bytes(OFFSET_KEY));
    let expected = "0003 000000000000002a 00000003 0004 6e6f7465 0102030405060708";
    assert_eq!(record.value, Some(bytes(expected)));
    let expiring = OffsetCommitValue {
        expire_timestamp_ms: Some(0x99),
        ..value()
    };
    let record = records::offset_commit(&key(), &expiring);
    let expected = "0001 000000000000002a 0004 6e6f7465 0102030405060708 0000000000000099";
    assert_eq!(record.value, Some(bytes(expected)));
    let record = records::offset_tombstone(&key());
    assert_eq!((record.key, record.value), (bytes(OFFSET_KEY), None));
}

#[test]
fn groups_are_written_as_kafka_writes_them() {
    let record = records::group_metadata(&"grp".into(), &group());
    assert_eq!(record.key, bytes(GROUP_KEY));
    let expected = "0003 0008 636f6e73756d6572 00000009 0005 72616e6765 0002 6d31 \
         0000000000000011 00000001 \
         0002 6d31 0001 69 0001 63 0002 2f68 00000022 00000033 00000003 737562 00000002 6173";
    assert_eq!(record.value, Some(bytes(expected)));
    let empty = GroupMetadataValue {
        protocol_type: StrBytes::default(),
        protocol: None,
        leader: None,
        members: Vec::new(),
        ..group()
    };
    let record = records::group_metadata(&"grp".into(), &empty);
    let expected = "0003 0000 00000009 ffff ffff 0000000000000011 00000000";
    assert_eq!(record.value, Some(bytes(expected)));
    let record = records::group_tombstone(&"grp".into());
    assert_eq!((record.key, record.value), (bytes(GROUP_KEY), None));
}

#[test]
fn offsets_of_every_version_are_read() {
    let no_epoch = OffsetCommitValue {
        leader_epoch: -1,
        ..value()
    };
    let expiring = OffsetCommitValue {
        expire_timestamp_ms: Some(0x99),
        ..no_epoch.clone()
    };
    let note = "0004 6e6f7465 0102030405060708";
    for (hex, expected) in [
        (format!("0000 000000000000002a {note}"), no_epoch.clone()),
        (
            format!("0001 000000000000002a {note} 0000000000000099"),
            expiring,
        ),
        (
            format!("0001 000000000000002a {note} ffffffffffffffff"),
            no_epoch.clone(),
        ),
        (format!("0002 000000000000002a {note}"), no_epoch),
        (format!("0003 000000000000002a 00000003 {note}"), value()),
        (
            "0004 000000000000002a 00000003 05 6e6f7465 0102030405060708 00".to_owned(),
            value(),
        ),
        // With a tagged field that we do not know: a topic id of the future.
        (
            "0004 000000000000002a 00000003 05 6e6f7465 0102030405060708 01 00 02 abcd".to_owned(),
            value(),
        ),
    ] {
        for key_version in ["0000", "0001"] {
            let key_bytes = bytes(&OFFSET_KEY.replacen("0001", key_version, 1));
            let record = records::decode(&key_bytes, Some(&bytes(&hex)));
            let expected = Some(expected.clone());
            assert_eq!(
                record,
                Ok(GroupRecord::OffsetCommit {
                    key: key(),
                    value: expected
                }),
                "{hex}"
            );
        }
    }
}

#[test]
fn groups_of_every_version_are_read() {
    let head = "0008 636f6e73756d6572 00000009 0005 72616e6765 0002 6d31";
    let without = |instance: bool, rebalance: bool, since: bool| {
        let mut group = group();
        if !instance {
            group.members[0].group_instance_id = None;
        }
        if !rebalance {
            group.members[0].rebalance_timeout_ms = -1;
        }
        if !since {
            group.current_state_timestamp_ms = -1;
        }
        group
    };
    let tail = "00000033 00000003 737562 00000002 6173";
    let client = "0001 63 0002 2f68";
    for (hex, expected) in [
        (
            format!("0000 {head} 00000001 0002 6d31 {client} {tail}"),
            without(false, false, false),
        ),
        (
            format!("0001 {head} 00000001 0002 6d31 {client} 00000022 {tail}"),
            without(false, true, false),
        ),
        (
            format!("0002 {head} 0000000000000011 00000001 0002 6d31 {client} 00000022 {tail}"),
            without(false, true, true),
        ),
        (
            format!(
                "0003 {head} 0000000000000011 00000001 0002 6d31 0001 69 {client} 00000022 {tail}"
            ),
            group(),
        ),
        (
            "0004 09 636f6e73756d6572 00000009 06 72616e6765 03 6d31 0000000000000011 02 \
             03 6d31 02 69 02 63 03 2f68 00000022 00000033 04 737562 03 6173 00 00"
                .to_owned(),
            group(),
        ),
    ] {
        let record = records::decode(&bytes(GROUP_KEY), Some(&bytes(&hex)));
        let value = Some(expected);
        assert_eq!(
            record,
            Ok(GroupRecord::GroupMetadata {
                group: "grp".into(),
                value
            }),
            "{hex}"
        );
    }
}

#[test]
fn malformed_records_are_errors() {
    let offset = "0003 000000000000002a 00000003 0004 6e6f7465 0102030405060708";
    for (key, value) in [
        ("", ""),
        ("00", ""),
        ("0001", offset),
        ("0001 7fff 677270", offset),
        ("0001 ffff", offset),
        ("0001 0003 677270 0002 746f 00000005 00", offset),
        ("0002 0003 6772", ""),
        ("0002 0001 ff", ""),
        (OFFSET_KEY, ""),
        (OFFSET_KEY, "0003"),
        (
            OFFSET_KEY,
            "0005 000000000000002a 00000003 0004 6e6f7465 0102030405060708",
        ),
        (
            OFFSET_KEY,
            "ffff 000000000000002a 00000003 0004 6e6f7465 0102030405060708",
        ),
        (
            OFFSET_KEY,
            "0003 000000000000002a 00000003 0004 6e6f7465 0102030405060708 00",
        ),
        (
            OFFSET_KEY,
            "0003 000000000000002a 00000003 7fff 6e6f7465 0102030405060708",
        ),
        (
            OFFSET_KEY,
            "0004 000000000000002a 00000003 ffffffff0f 6e6f7465 0102030405060708 00",
        ),
        (
            GROUP_KEY,
            "0003 0000 00000009 ffff ffff 0000000000000011 7fffffff",
        ),
        (
            GROUP_KEY,
            "0003 0000 00000009 ffff ffff 0000000000000011 ffffffff",
        ),
        (
            GROUP_KEY,
            "0003 0000 00000009 ffff ffff 0000000000000011 00000001",
        ),
        (
            GROUP_KEY,
            "0004 01 00000009 00 00 0000000000000011 ffffffff0f",
        ),
    ] {
        let record = records::decode(&bytes(key), Some(&bytes(value)));
        assert!(record.is_err(), "{key} / {value}: {record:?}");
    }
}

#[test]
fn a_string_that_could_not_be_written_again_is_not_read() {
    // Version 4 has room for longer ones than version 3, which is written.
    let value = |length: usize| {
        let mut value = bytes("0004 000000000000002a 00000003").to_vec();
        let mut prefix = length + 1;
        while prefix >= 0x80 {
            value.push(prefix as u8 | 0x80);
            prefix >>= 7;
        }
        value.push(prefix as u8);
        value.resize(value.len() + length, b'x');
        value.extend([0; 9]);
        Bytes::from(value)
    };
    assert!(records::decode(&bytes(OFFSET_KEY), Some(&value(32_767))).is_ok());
    assert!(records::decode(&bytes(OFFSET_KEY), Some(&value(32_768))).is_err());
}

#[test]
fn records_that_contradict_themselves_change_nothing() {
    let duplicate = |change: &dyn Fn(&mut GroupMetadataValue)| {
        let mut value = group();
        change(&mut value);
        records::group_metadata(&"grp".into(), &value)
    };
    for record in [
        duplicate(&|value| value.members.push(value.members[0].clone())),
        duplicate(&|value| {
            let second = MemberMetadata {
                member_id: "m2".into(),
                ..value.members[0].clone()
            };
            value.members.push(second);
        }),
        duplicate(&|value| value.protocol = None),
    ] {
        let mut shard = GroupShard::new(GroupConfig::default(), counting_uuids(0));
        let replayed = shard.replay(&record.key, record.value.as_ref());
        assert!(
            matches!(replayed, Err(RecordError::Inconsistent { .. })),
            "{replayed:?}"
        );
        assert!(shard.counts().groups.is_empty());
    }
}

#[test]
fn kinds_of_later_times_are_counted_and_passed_over() {
    let mut shard = GroupShard::new(GroupConfig::default(), counting_uuids(0));
    // Share groups, streams groups, unknown.
    for key_version in (9..16).chain(17..30).chain([i16::MAX, -1]) {
        let key = Bytes::from([&key_version.to_be_bytes()[..], b"\x00\x03grp"].concat());
        let value = Bytes::from_static(b"whatever");
        assert_eq!(
            shard.replay(&key, Some(&value)),
            Ok(Replayed::Skipped { key_version })
        );
        assert_eq!(
            shard.replay(&key, None),
            Ok(Replayed::Skipped { key_version })
        );
    }
    assert_eq!(shard.counts().skipped_records, 44);
}

#[test]
fn a_loaded_group_without_its_leader_has_another() {
    let mut value = group();
    value.leader = Some("gone".into());
    let record = records::group_metadata(&"grp".into(), &value);
    let mut shard = GroupShard::new(GroupConfig::default(), counting_uuids(0));
    shard
        .replay(&record.key, record.value.as_ref())
        .expect("it is in order");
    shard.loaded(&Cluster::default(), at(0));
    assert_eq!(shard.counts().members, 1);
}

/// A short run of the fuzz target: `YUXI_FUZZ_SEED` and `YUXI_FUZZ_ROUNDS` change it.
#[test]
fn any_bytes_are_read_or_refused() {
    let setting = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let seed = setting("YUXI_FUZZ_SEED", 0x5eed);
    let rounds = setting("YUXI_FUZZ_ROUNDS", 20_000);
    println!("YUXI_FUZZ_SEED={seed} YUXI_FUZZ_ROUNDS={rounds}");
    let mut random = SplitMix(seed);
    let seeds: Vec<Vec<u8>> = [
        records::offset_commit(&key(), &value()),
        records::offset_commit(
            &key(),
            &OffsetCommitValue {
                expire_timestamp_ms: Some(1),
                ..value()
            },
        ),
        records::group_metadata(&"grp".into(), &group()),
    ]
    .iter()
    .map(|record| {
        let value = record.value.clone().unwrap_or_default();
        [&[record.key.len() as u8][..], &record.key, &value].concat()
    })
    .collect();
    for _ in 0..rounds {
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..random.below(8) {
            let at = random.below(input.len());
            match random.below(5) {
                0 => input[at] = random.next() as u8,
                1 => input[at] ^= 1 << random.below(8),
                2 => input.truncate(at + 1),
                3 => input.insert(at, random.next() as u8),
                _ => input[at] = [0, 0x7f, 0x80, 0xff][random.below(4)],
            }
        }
        fuzz_record(&input);
        let noise: Vec<u8> = (0..random.below(64)).map(|_| random.next() as u8).collect();
        fuzz_record(&noise);
    }
    fuzz_record(&[]);
}

struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}
