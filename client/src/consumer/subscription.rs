//! What a consumer subscribes to: topics by name, or those that match a regular expression.
//!
//! By the consumer protocol a regex goes to the coordinator, which matches it. A classic
//! member matches it here, when it joins and every `metadata.max.age.ms`.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::error::Result;

#[derive(Clone, Debug)]
pub(super) enum Subscription {
    Topics(BTreeSet<Arc<str>>),
    /// Every topic whose whole name it matches.
    Regex(Arc<str>),
}

impl Subscription {
    /// The topics by name: those that are named, or those that match now.
    pub(super) async fn topics(&self, cluster: &Cluster) -> Result<BTreeSet<Arc<str>>> {
        match self {
            Self::Topics(topics) => Ok(topics.clone()),
            Self::Regex(regex) => cluster.topics_matching(regex).await,
        }
    }

    /// Learns the ids of the topics that a coordinator may assign.
    pub(super) async fn refresh(&self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Topics(topics) => {
                let topics: Vec<Arc<str>> = topics.iter().cloned().collect();
                cluster.refresh(&topics, false).await?;
            }
            Self::Regex(_) => {
                cluster.refresh_all().await?;
            }
        }
        Ok(())
    }
}
