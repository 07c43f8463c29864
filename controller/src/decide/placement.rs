//! Where the replicas of new partitions go: leaders in turn over all brokers, the
//! replicas of one partition in different racks as far as there are racks, and the
//! followers of one leader on different brokers from round to round.
//!
//! Brokers stand in a ring in which neighbours are of different racks. Partition
//! `p` begins at place `start + p`; its other replicas are taken walking on from there,
//! one place later in every round. Brokers that are away are taken only where those that
//! are there do not suffice, after all of them.

use std::collections::{BTreeMap, VecDeque};

use yuxi_protocol::ids::BrokerId;

use crate::image::ClusterImage;

/// The brokers that new replicas may be placed on.
pub(super) struct Ring {
    places: Vec<Place>,
    away: Vec<BrokerId>,
}

struct Place {
    broker: BrokerId,
    rack: usize,
}

impl Ring {
    /// The brokers of the cluster.
    pub(super) fn of(image: &ClusterImage) -> Self {
        let active = image.brokers().filter(|broker| image.is_active(broker.id));
        Self::new(
            active.map(|broker| (broker.id, broker.registration.rack.as_deref())),
            image.known_brokers().filter(|&id| !image.is_active(id)),
        )
    }

    fn new<'a>(
        brokers: impl Iterator<Item = (BrokerId, Option<&'a str>)>,
        away: impl Iterator<Item = BrokerId>,
    ) -> Self {
        let mut by_rack: BTreeMap<Option<&str>, VecDeque<BrokerId>> = BTreeMap::new();
        for (broker, rack) in brokers {
            by_rack.entry(rack).or_default().push_back(broker);
        }
        let mut racks: Vec<VecDeque<BrokerId>> = by_rack.into_values().collect();
        if let [only] = racks.as_mut_slice() {
            // One rack, or none at all, is no reason to prefer anybody.
            racks = std::mem::take(only)
                .into_iter()
                .map(|id| [id].into())
                .collect();
        }
        let mut places = Vec::new();
        while racks.iter().any(|rack| !rack.is_empty()) {
            for (rack, brokers) in racks.iter_mut().enumerate() {
                if let Some(broker) = brokers.pop_front() {
                    places.push(Place { broker, rack });
                }
            }
        }
        Self {
            places,
            away: away.collect(),
        }
    }

    /// How many brokers are active.
    pub(super) fn active(&self) -> usize {
        self.places.len()
    }

    /// How many brokers there are, be they away.
    pub(super) fn len(&self) -> usize {
        self.places.len() + self.away.len()
    }

    /// The place of a broker, if it is in the ring.
    pub(super) fn place_of(&self, broker: BrokerId) -> Option<usize> {
        self.places.iter().position(|place| place.broker == broker)
    }

    /// The replicas of partition `partition` of a topic whose partition 0 begins at `start`.
    /// There must be at least as many brokers as replicas, and one that is active.
    pub(super) fn replicas(&self, start: usize, partition: usize, count: usize) -> Vec<BrokerId> {
        let brokers = self.places.len();
        assert!(
            count <= self.len(),
            "{count} replicas on {} brokers",
            self.len()
        );
        if count > brokers {
            let mut replicas = self.replicas(start, partition, brokers);
            let away = self.away.iter().cycle().skip(partition % self.away.len());
            replicas.extend(away.take(count - brokers));
            return replicas;
        }
        let first = (start + partition) % brokers;
        let mut replicas = vec![self.places[first].broker];
        let mut racks = vec![self.places[first].rack];
        let followers = brokers - 1;
        let round = partition / brokers;
        let walk = (0..followers).map(|step| {
            let distance = 1 + (round + step) % followers;
            &self.places[(first + distance) % brokers]
        });
        while replicas.len() < count {
            for place in walk.clone() {
                if replicas.len() < count
                    && !racks.contains(&place.rack)
                    && !replicas.contains(&place.broker)
                {
                    replicas.push(place.broker);
                    racks.push(place.rack);
                }
            }
            // Every rack that had room has one: another turn.
            racks.clear();
        }
        replicas
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn ring(racks: &[Option<&str>]) -> Ring {
        let away = std::iter::empty();
        Ring::new((0..).map(BrokerId::new).zip(racks.iter().copied()), away)
    }

    fn counts(placed: &[Vec<BrokerId>], of: impl Fn(&[BrokerId]) -> &[BrokerId]) -> Vec<usize> {
        let mut counts: BTreeMap<BrokerId, usize> = BTreeMap::new();
        for replicas in placed {
            for &broker in of(replicas) {
                *counts.entry(broker).or_default() += 1;
            }
        }
        counts.into_values().collect()
    }

    #[test]
    fn leaders_and_replicas_are_spread_evenly() {
        for brokers in 1..8 {
            for count in 1..=brokers {
                let ring = ring(&vec![None; brokers]);
                let partitions = brokers * 6;
                let placed: Vec<_> = (0..partitions)
                    .map(|p| ring.replicas(3, p, count))
                    .collect();
                for replicas in &placed {
                    let distinct: BTreeSet<_> = replicas.iter().collect();
                    assert_eq!(distinct.len(), count);
                }
                assert_eq!(counts(&placed, |r| &r[..1]), vec![6; brokers]);
                assert_eq!(counts(&placed, |r| r), vec![6 * count; brokers]);
            }
        }
    }

    #[test]
    fn replicas_stand_in_different_racks_as_long_as_there_are_racks() {
        let racks = ["a", "a", "b", "b", "c", "c"].map(Some);
        let ring = ring(&racks);
        for partition in 0..60 {
            let replicas = ring.replicas(1, partition, 3);
            let seen: BTreeSet<_> = replicas
                .iter()
                .map(|id| racks[id.value() as usize])
                .collect();
            assert_eq!(seen.len(), 3, "{replicas:?}");
            let replicas = ring.replicas(1, partition, 5);
            let seen: BTreeSet<_> = replicas[..3]
                .iter()
                .map(|id| racks[id.value() as usize])
                .collect();
            assert_eq!((seen.len(), replicas.len()), (3, 5), "{replicas:?}");
        }
    }

    #[test]
    fn the_followers_of_one_leader_change_from_round_to_round() {
        let ring = ring(&[None; 4]);
        let followers: BTreeSet<_> = (0..3)
            .map(|round| ring.replicas(0, round * 4, 2)[1])
            .collect();
        assert_eq!(followers.len(), 3);
    }

    #[test]
    fn brokers_that_are_away_are_taken_last_and_in_turn() {
        let ids = |range: std::ops::Range<i32>| range.map(BrokerId::new);
        let ring = Ring::new(ids(0..2).map(|id| (id, None)), ids(2..4));
        assert_eq!((ring.active(), ring.len()), (2, 4));
        let placed: Vec<_> = (0..4).map(|p| ring.replicas(0, p, 3)).collect();
        assert!(
            placed
                .iter()
                .all(|r| r[..2].iter().all(|id| id.value() < 2))
        );
        assert_eq!(counts(&placed, |r| &r[..1]), [2, 2]);
        assert_eq!(counts(&placed, |r| &r[2..]), [2, 2]);
    }

    #[test]
    fn unequal_racks_leave_nobody_out() {
        let ring = ring(&[Some("a"), Some("b"), Some("b"), Some("b"), None]);
        let placed: Vec<_> = (0..50).map(|p| ring.replicas(0, p, 2)).collect();
        assert_eq!(counts(&placed, |r| &r[..1]), vec![10; 5]);
    }
}
