//! The features of the cluster: protocols that all brokers speak at a level which the
//! operator can lower and raise (KIP-584). The one table of them.
//!
//! A level that nobody has set is the feature's default, so that a cluster without the
//! key is one of today's. Unlike in Kafka there is no `metadata.version`: the layout of
//! the metadata store is a number of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ChangeSet;
use crate::{
    ControllerError,
    image::ClusterImage,
    keys::{Key, print_value},
};

/// One feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name in Kafka.
    pub name: &'static str,
    /// The highest level that is spoken. The lowest is 0: without it.
    pub highest: i16,
    /// The level of a cluster that was told none.
    pub default: i16,
}

/// How transactions are coordinated (KIP-890).
pub const TRANSACTION_VERSION: &str = "transaction.version";
/// Which group protocols there are: from 1 on that of KIP-848.
pub const GROUP_VERSION: &str = "group.version";

/// All that there are, by name.
pub const FEATURES: &[Feature] = &[
    Feature {
        name: GROUP_VERSION,
        highest: 1,
        default: 1,
    },
    Feature {
        name: TRANSACTION_VERSION,
        highest: 2,
        default: 2,
    },
];

/// The feature of that name.
pub fn feature(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.name == name)
}

/// Which way a level may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// Only up.
    Upgrade,
    /// Down, too.
    Downgrade,
}

/// A feature's new level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureUpdate {
    /// The feature.
    pub name: String,
    /// The level; 0 turns it off.
    pub level: i16,
    /// Whether the level may be lower than it is.
    pub direction: Direction,
}

/// Sets all of the levels, or none of them.
pub fn update(
    image: &ClusterImage,
    updates: &[FeatureUpdate],
) -> Result<Vec<ChangeSet>, ControllerError> {
    let stored = image.features();
    let mut levels = stored.map_or_else(BTreeMap::new, |features| features.levels.clone());
    let mut seen = Vec::new();
    for update in updates {
        if seen.contains(&&update.name) {
            return Err(ControllerError::InvalidRequest(format!(
                "The feature '{}' is named twice.",
                update.name
            )));
        }
        seen.push(&update.name);
        check(image, update)?;
        levels.insert(update.name.clone(), update.level);
    }
    if stored.is_some_and(|stored| stored.levels == levels) || updates.is_empty() {
        return Ok(Vec::new());
    }
    let mut changes = ChangeSet::default();
    changes.require_as_seen(&Key::Features, stored.map(|stored| stored.mod_revision));
    changes.put(&Key::Features, print_value(&levels));
    Ok(vec![changes])
}

fn check(image: &ClusterImage, update: &FeatureUpdate) -> Result<(), ControllerError> {
    let FeatureUpdate {
        name,
        level,
        direction,
    } = update;
    let refused = |why: String| {
        Err(ControllerError::InvalidFeatureUpdate(format!(
            "Invalid update version {level} for feature {name}. {why}"
        )))
    };
    let Some(feature) = feature(name) else {
        return refused("There is no such feature.".to_owned());
    };
    if !(0..=feature.highest).contains(level) {
        return refused(format!(
            "Only the levels 0 to {} are supported.",
            feature.highest
        ));
    }
    let current = image.feature(name);
    match direction {
        Direction::Upgrade if *level < current => refused(
            "Can't downgrade the version of this feature without setting the upgrade type to \
             either safe or unsafe downgrade."
                .to_owned(),
        ),
        Direction::Downgrade if *level > current => {
            refused("Can't downgrade to a newer version.".to_owned())
        }
        Direction::Upgrade | Direction::Downgrade => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::Cluster;

    fn to(name: &str, level: i16, direction: Direction) -> FeatureUpdate {
        FeatureUpdate {
            name: name.to_owned(),
            level,
            direction,
        }
    }

    #[test]
    fn a_cluster_that_was_told_nothing_has_the_defaults() {
        let cluster = Cluster::new();
        assert_eq!(cluster.image.feature(TRANSACTION_VERSION), 2);
        assert_eq!(cluster.image.feature(GROUP_VERSION), 1);
        assert_eq!(cluster.image.feature("metadata.version"), 0);
    }

    #[test]
    fn a_level_goes_down_only_if_that_is_meant() {
        let mut cluster = Cluster::new();
        let careless = to(TRANSACTION_VERSION, 0, Direction::Upgrade);
        assert!(update(&cluster.image, &[careless]).is_err());
        let meant = to(TRANSACTION_VERSION, 0, Direction::Downgrade);
        let changes = update(&cluster.image, std::slice::from_ref(&meant)).unwrap();
        cluster.apply(&changes);
        assert_eq!(cluster.image.feature(TRANSACTION_VERSION), 0);
        assert_eq!(cluster.image.feature(GROUP_VERSION), 1, "the other stays");
        assert_eq!(update(&cluster.image, &[meant]), Ok(Vec::new()));
        let up = to(TRANSACTION_VERSION, 1, Direction::Downgrade);
        assert!(update(&cluster.image, &[up]).is_err());
        let up = to(TRANSACTION_VERSION, 1, Direction::Upgrade);
        cluster.apply(&update(&cluster.image, &[up]).unwrap());
        assert_eq!(cluster.image.feature(TRANSACTION_VERSION), 1);
    }

    #[test]
    fn one_wrong_update_undoes_the_others() {
        let cluster = Cluster::new();
        let good = to(GROUP_VERSION, 0, Direction::Downgrade);
        for bad in [
            to("metadata.version", 1, Direction::Upgrade),
            to(TRANSACTION_VERSION, 3, Direction::Upgrade),
            to(TRANSACTION_VERSION, -1, Direction::Downgrade),
            good.clone(),
        ] {
            assert!(update(&cluster.image, &[good.clone(), bad]).is_err());
        }
    }
}
