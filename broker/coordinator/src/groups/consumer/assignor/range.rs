//! Each topic by itself, in ranges.

use std::collections::BTreeMap;

use yuxi_protocol::codec::StrBytes;

use super::{Partitions, Subscribers};

pub(super) fn assign(group: &Subscribers<'_>) -> BTreeMap<StrBytes, Partitions> {
    let mut all: BTreeMap<StrBytes, Partitions> = BTreeMap::new();
    let mut in_order: Vec<_> = group.members.iter().collect();
    // By instance id where there is one, so that a static member has its range again when
    // it comes back under another id.
    in_order.sort_by_key(|member| (member.instance_id.is_none(), member.instance_id, member.id));
    for member in &in_order {
        all.insert(member.id.clone(), Partitions::default());
    }
    for (&topic, &count) in &group.topics {
        let readers: Vec<_> = in_order
            .iter()
            .filter(|member| member.reads(topic))
            .collect();
        let Ok(reader_count) = i32::try_from(readers.len()) else {
            continue;
        };
        if reader_count == 0 {
            continue;
        }
        let (quota, extra) = (count / reader_count, count % reader_count);
        let mut next = 0;
        for (number, reader) in (0..).zip(readers) {
            let end = next + quota + i32::from(number < extra);
            let partitions = all.entry(reader.id.clone()).or_default();
            for partition in next..end {
                partitions.insert(topic, partition);
            }
            next = end;
        }
    }
    all
}
