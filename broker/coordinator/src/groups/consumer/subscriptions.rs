//! Which topics a group reads: names, and regular expressions that are matched here, in
//! time that [`TopicRegex`] bounds whatever a client sends.

use std::collections::BTreeSet;

use yuxi_protocol::topic_regex::TopicRegex;
use yuxi_protocol::{codec::StrBytes, error_code::ErrorCode, ids::TopicId};

use super::{ConsumerGroup, ResolvedRegex, Subscription};
use crate::groups::{ClusterView, api::Refused};

/// Whether `regex` is one, and not too large to be matched with the topics there are.
pub(super) fn check(regex: &StrBytes, cluster: &dyn ClusterView) -> Result<(), Refused> {
    compile(regex, cluster).map(|_| ())
}

/// The topics whose whole name matches `regex`, in order.
pub(super) fn resolve(
    regex: &StrBytes,
    cluster: &dyn ClusterView,
    now_ms: i64,
) -> Result<ResolvedRegex, Refused> {
    let regex = compile(regex, cluster)?;
    let mut topics = Vec::new();
    cluster.visit_topic_names(&mut |name| {
        if regex.matches(name) {
            topics.push(StrBytes::from(name));
        }
    });
    topics.sort_unstable();
    Ok(ResolvedRegex {
        topics,
        version: cluster.version(),
        timestamp_ms: now_ms,
    })
}

fn compile(text: &StrBytes, cluster: &dyn ClusterView) -> Result<TopicRegex, Refused> {
    let mut name_bytes = 0;
    cluster.visit_topic_names(&mut |name| name_bytes += name.len() + 1);
    TopicRegex::compile(text, name_bytes).map_err(|invalid| {
        Refused::new(
            ErrorCode::InvalidRegularExpression,
            format!("SubscribedTopicRegex {invalid}."),
        )
    })
}

impl ConsumerGroup {
    /// The regexes that members subscribe with.
    pub(super) fn regexes_in_use(&self) -> BTreeSet<StrBytes> {
        self.members
            .values()
            .filter_map(|member| member.subscription.topic_regex.clone())
            .collect()
    }

    /// Every topic name that a member is subscribed to, be there such a topic or not.
    pub(super) fn subscribed_names<'a>(
        &'a self,
        subscription: &'a Subscription,
    ) -> impl Iterator<Item = &'a StrBytes> {
        let resolved = subscription
            .topic_regex
            .as_ref()
            .and_then(|regex| self.regexes.get(regex));
        subscription
            .topic_names
            .iter()
            .chain(resolved.into_iter().flat_map(|resolved| &resolved.topics))
    }

    /// The ids of the topics that exist and that a member is subscribed to.
    pub(super) fn topics_of(
        &self,
        subscription: &Subscription,
        cluster: &dyn ClusterView,
    ) -> BTreeSet<TopicId> {
        self.subscribed_names(subscription)
            .filter_map(|name| Some(cluster.topic(name)?.id))
            .collect()
    }

    /// Differs when a subscribed topic comes, goes, is another of the same name, or grows.
    /// 0 if there is none. (Kafka hashes racks too; a broker that is down has none here,
    /// and its death is no reason for a rebalance.)
    pub(super) fn metadata_hash(&self, cluster: &dyn ClusterView) -> i64 {
        let names: BTreeSet<&StrBytes> = self
            .members
            .values()
            .flat_map(|member| self.subscribed_names(&member.subscription))
            .collect();
        let mut hash = Fnv::default();
        let mut is_empty = true;
        for name in names {
            if let Some(topic) = cluster.topic(name) {
                is_empty = false;
                hash.add(&topic.id.to_bytes());
                hash.add(&topic.partitions.to_be_bytes());
                hash.add(name.as_bytes());
                hash.add(&[0]);
            }
        }
        if is_empty { 0 } else { hash.0 as i64 }
    }
}

/// FNV-1a, which stays the same from one version to the next.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
