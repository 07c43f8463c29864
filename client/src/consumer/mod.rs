//! The consumer: records out of partitions that were assigned by hand or by a group.
//!
//! A [`Consumer`] is one owner of plain state; nothing of it is behind a lock.
//! Fetches are requests that its connections carry on with between polls: when
//! `poll` hands records out, the next fetch is already on its way. Only the
//! group membership, which must show signs of life, has a task of its own.

mod assignors;
mod classic_member;
mod cursor;
mod epoch_member;
mod fetch;
mod group;
mod group_api;
mod group_member;
mod subscription;
mod validation;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use yuxi_protocol::ids::{BrokerId, TopicPartition};
pub use yuxi_protocol::record::{RecordHeader, TimestampType};

use crate::cluster::{Cluster, topic_regex};
use crate::config::{ClientConfig, GroupProtocol, OffsetReset};
use crate::error::{Error, Result};
use crate::offsets::{self, ListedOffset, OffsetSpec};
use cursor::{Cursor, Position};
use fetch::Fetched;
use group::{GroupEvent, Membership};
pub use group_api::{CommittedOffset, GroupMetadata, committed_offsets};
pub(crate) use group_api::{commit_as_outsider, decode_assignment};
use subscription::Subscription;
use validation::Validated;

/// A record as it was read. Key, value and header values share the bytes that
/// came from the network.
#[derive(Clone, Debug)]
pub struct ConsumerRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// Whose clock that is.
    pub timestamp_type: TimestampType,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: Vec<RecordHeader>,
}

/// Where to begin reading a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this offset.
    Offset(i64),
    /// Where the leader says that this is.
    Spec(OffsetSpec),
}

/// A consumer. Its methods must not be called from two tasks at once, which
/// `&mut self` sees to. Dropping it leaves a group without a farewell, so the
/// group notices only when the session times out; [`Consumer::close`] is better.
#[derive(Debug)]
pub struct Consumer {
    cluster: Cluster,
    config: Arc<ClientConfig>,
    cursors: BTreeMap<TopicPartition, Cursor>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    /// Brokers with a fetch outstanding.
    fetching: HashSet<BrokerId>,
    refreshing: bool,
    refresh_wanted: bool,
    refreshed: Option<Instant>,
    generation: u64,
    /// Whose turn it is to be handed out first.
    turn: usize,
    membership: Option<Membership>,
    group: Option<GroupMetadata>,
    next_auto_commit: Instant,
}

/// Something that `poll` waits for.
enum Event {
    Fetched(Fetched),
    Validated(Validated),
    Listed {
        asked: Vec<(TopicPartition, u64)>,
        result: Result<BTreeMap<TopicPartition, ListedOffset>>,
    },
    Refreshed(Result<()>),
}

impl Consumer {
    /// A consumer with connections of its own.
    pub async fn connect(config: ClientConfig) -> Result<Self> {
        Ok(Self::new(Cluster::connect(config).await?))
    }

    /// A consumer over an existing cluster handle.
    pub fn new(cluster: Cluster) -> Self {
        let config = cluster.config().clone();
        Self {
            next_auto_commit: Instant::now() + config.auto_commit_interval,
            cluster,
            config,
            cursors: BTreeMap::new(),
            events: FuturesUnordered::new(),
            fetching: HashSet::new(),
            refreshing: false,
            refresh_wanted: false,
            refreshed: None,
            generation: 0,
            turn: 0,
            membership: None,
            group: None,
        }
    }

    /// The cluster handle.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Reads these partitions and no others, without a group's help.
    pub async fn assign(
        &mut self,
        partitions: impl IntoIterator<Item = (TopicPartition, Start)>,
    ) -> Result<()> {
        if self.membership.is_some() {
            return Err(Error::State(
                "a consumer that subscribed cannot also be assigned by hand",
            ));
        }
        let mut cursors = BTreeMap::new();
        for (partition, start) in partitions {
            let topic = self
                .cluster
                .topic(&partition.topic, self.config.auto_create_topics)
                .await?;
            topic.existing(partition.partition.value())?;
            let cursor = self.new_cursor(&partition, position(start));
            cursors.insert(partition, cursor);
        }
        self.cursors = cursors;
        Ok(())
    }

    /// Joins the group `group.id` and reads the partitions that it assigns.
    pub fn subscribe(&mut self, topics: impl IntoIterator<Item = Arc<str>>) -> Result<()> {
        self.join(Subscription::Topics(topics.into_iter().collect()))
    }

    /// Joins the group `group.id` and reads what it assigns of all topics whose whole name
    /// matches, also of those that come later. By `group.protocol=consumer` the coordinator
    /// matches, and [`Consumer::poll`] tells of an expression that it refuses
    /// (INVALID_REGULAR_EXPRESSION); by the classic protocol the client does, every
    /// `metadata.max.age.ms`, and leaves out Kafka's own topics.
    pub fn subscribe_regex(&mut self, regex: &str) -> Result<()> {
        if regex.is_empty() {
            return Err(Error::Config("an empty regex matches no topic".to_owned()));
        }
        if self.config.group_protocol == GroupProtocol::Classic {
            topic_regex(regex, 0)?;
        }
        self.join(Subscription::Regex(regex.into()))
    }

    fn join(&mut self, subscription: Subscription) -> Result<()> {
        if self.config.group_id.is_none() {
            return Err(Error::State("subscribing needs a group; set group.id"));
        }
        if !self.cursors.is_empty() || self.membership.is_some() {
            return Err(Error::State(
                "the consumer already has partitions or a subscription",
            ));
        }
        self.membership = Some(Membership::start(self.cluster.clone(), subscription)?);
        Ok(())
    }

    /// The partitions being read.
    pub fn assignment(&self) -> impl Iterator<Item = &TopicPartition> {
        self.cursors.keys()
    }

    /// The offset of the next record that `poll` will hand out, if it is known.
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        match self.cursors.get(partition)?.position {
            Position::At(offset) => Some(offset),
            Position::Unknown(_) => None,
        }
    }

    /// Continues reading a partition elsewhere.
    pub fn seek(&mut self, partition: &TopicPartition, start: Start) -> Result<()> {
        self.generation += 1;
        let generation = self.generation;
        let cursor = self.cursors.get_mut(partition).ok_or(NOT_ASSIGNED)?;
        cursor.seek(position(start), generation);
        Ok(())
    }

    /// Stops or resumes handing out a partition's records; it stays assigned.
    pub fn set_paused(&mut self, partition: &TopicPartition, paused: bool) -> Result<()> {
        self.cursors.get_mut(partition).ok_or(NOT_ASSIGNED)?.paused = paused;
        Ok(())
    }

    /// Whether every record up to the ends that the leaders last told has been
    /// handed out. Never so before there is an assignment.
    pub fn is_at_end(&self) -> bool {
        !self.cursors.is_empty() && self.cursors.values().all(Cursor::is_at_end)
    }

    /// Waits for records, at most for `timeout`. Records that an earlier call handed
    /// out count as processed when the next call begins: that is what automatic
    /// commits commit. Cancelling the call loses nothing.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Vec<ConsumerRecord>> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            self.follow_group().await?;
            self.commit_if_due();
            let records = self.take_ready()?;
            self.start_requests();
            // A request goes out when its future is first polled.
            while let Some(Some(event)) = now_or_never(self.events.next()) {
                self.handle(event)?;
            }
            if !records.is_empty() {
                return Ok(records);
            }
            let metadata = self.cluster.metadata();
            let mut cursors = self.cursors.iter();
            if cursors.any(|(partition, cursor)| cursor.may_hand_out(&metadata, partition)) {
                continue;
            }
            self.start_requests();
            let put_off = self.cursors.values().filter_map(Cursor::put_off);
            let wake_at = put_off.fold(deadline, |at, then| at.min(then.into()));
            let membership = &mut self.membership;
            let group = async {
                match membership {
                    Some(membership) => membership.ready().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = self.events.next() => self.handle(event)?,
                () = group => {}
                () = tokio::time::sleep_until(wake_at) => {
                    if wake_at == deadline {
                        return Ok(Vec::new());
                    }
                }
            }
        }
    }

    /// Commits the positions of everything that was handed out.
    pub async fn commit(&mut self) -> Result<()> {
        let offsets = self.positions();
        self.commit_offsets(offsets).await
    }

    /// Commits these offsets: of each partition, the next record to read.
    pub async fn commit_offsets(
        &mut self,
        offsets: BTreeMap<TopicPartition, CommittedOffset>,
    ) -> Result<()> {
        if offsets.is_empty() {
            return Ok(());
        }
        match &self.membership {
            Some(membership) => membership.commit(offsets).await,
            None => {
                let group = self
                    .config
                    .group_id
                    .as_deref()
                    .ok_or(Error::State("committing needs group.id"))?;
                group_api::commit_as_outsider(&self.cluster, group, offsets).await
            }
        }
    }

    /// Who this consumer is in its group, as of the last [`Consumer::poll`]: for
    /// [`crate::Transaction::send_offsets`]. `None` before it has joined.
    pub fn group_metadata(&self) -> Option<GroupMetadata> {
        self.group.clone()
    }

    /// Goes back to the group's committed offsets in every assigned partition, and where
    /// there is none, to the first record that `poll` handed out: after an aborted
    /// transaction its input is read again.
    pub async fn rewind(&mut self) -> Result<()> {
        let group = self.config.group_id.clone();
        let group = group.ok_or(Error::State("rewinding needs group.id"))?;
        let partitions: Vec<TopicPartition> = self.cursors.keys().cloned().collect();
        if partitions.is_empty() {
            return Ok(());
        }
        let mut offsets = committed_offsets(&self.cluster, &group, Some(&partitions)).await?;
        for partition in partitions {
            let committed = offsets.remove(&partition);
            let Some(old) = self.cursors.get(&partition) else {
                continue;
            };
            let (paused, first) = (old.paused, old.first);
            let mut cursor = match (&committed, first) {
                (None, None) => continue,
                (None, Some(first)) => self.new_cursor(&partition, Position::At(first)),
                (Some(_), _) => self.cursor_at(&partition, committed)?,
            };
            cursor.paused = paused;
            cursor.first = first;
            self.cursors.insert(partition, cursor);
        }
        Ok(())
    }

    /// Commits if commits are automatic, leaves the group, and ends.
    pub async fn close(mut self) -> Result<()> {
        let committed = if self.config.auto_commit && self.config.group_id.is_some() {
            self.commit().await
        } else {
            Ok(())
        };
        if let Some(membership) = self.membership.take() {
            membership.leave().await;
        }
        committed
    }

    fn new_cursor(&mut self, partition: &TopicPartition, position: Position) -> Cursor {
        self.generation += 1;
        Cursor::new(partition, position, self.generation, self.config.check_crcs)
    }

    /// Of each partition, the next record that `poll` will hand out: what to commit once
    /// everything that it handed out is processed.
    pub fn positions(&self) -> BTreeMap<TopicPartition, CommittedOffset> {
        self.cursors
            .iter()
            .filter_map(|(partition, cursor)| match cursor.position {
                Position::At(offset) => Some((
                    partition.clone(),
                    CommittedOffset {
                        offset,
                        leader_epoch: cursor.position_epoch(),
                        metadata: String::new(),
                    },
                )),
                Position::Unknown(_) => None,
            })
            .collect()
    }

    /// Hands out what is there, a turn for each partition.
    fn take_ready(&mut self) -> Result<Vec<ConsumerRecord>> {
        let mut records = Vec::new();
        let count = self.cursors.len();
        self.turn = self
            .turn
            .checked_add(1)
            .filter(|turn| *turn < count)
            .unwrap_or(0);
        let most = self.config.max_poll_records;
        let metadata = self.cluster.metadata();
        let (first, then): (Vec<_>, Vec<_>) = self
            .cursors
            .iter_mut()
            .enumerate()
            .filter(|(_, (partition, cursor))| cursor.may_hand_out(&metadata, partition))
            .partition(|(at, _)| *at >= self.turn);
        for (_, (_, cursor)) in first.into_iter().chain(then) {
            let taken = cursor.take(most - records.len(), &mut records);
            match taken {
                // What was taken before the bad batch is handed out first.
                Err(error) if records.is_empty() => return Err(error),
                Err(_) => break,
                Ok(()) if records.len() >= most => break,
                Ok(()) => {}
            }
        }
        Ok(records)
    }

    /// Sends whatever requests can be sent: offsets that are unknown, fetches, metadata.
    fn start_requests(&mut self) {
        self.ask_for_positions();
        self.start_fetches();
        if self.refresh_wanted && !self.refreshing {
            self.refresh_wanted = false;
            self.refreshing = true;
            let cluster = self.cluster.clone();
            let since = self.refreshed.map_or(Duration::MAX, |at| at.elapsed());
            let pause = self.config.retry_backoff.saturating_sub(since);
            let topics: BTreeSet<Arc<str>> = self
                .cursors
                .keys()
                .map(|partition| partition.topic.clone())
                .collect();
            let topics: Vec<Arc<str>> = topics.into_iter().collect();
            self.events.push(Box::pin(async move {
                tokio::time::sleep(pause).await;
                Event::Refreshed(cluster.refresh(&topics, false).await.map(drop))
            }));
        }
    }

    fn ask_for_positions(&mut self) {
        let mut wanted = BTreeMap::new();
        let mut asked = Vec::new();
        for (partition, cursor) in &mut self.cursors {
            if let (Position::Unknown(spec), false) = (cursor.position, cursor.asked) {
                cursor.asked = true;
                wanted.insert(partition.clone(), spec);
                asked.push((partition.clone(), cursor.generation));
            }
        }
        if wanted.is_empty() {
            return;
        }
        let cluster = self.cluster.clone();
        let read_committed = self.config.read_committed;
        self.events.push(Box::pin(async move {
            let result = offsets::list_offsets(&cluster, &wanted, read_committed).await;
            Event::Listed { asked, result }
        }));
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Fetched(fetched) => self.fetched(fetched),
            Event::Validated(validated) => self.validated(validated),
            Event::Refreshed(result) => {
                self.refreshing = false;
                self.refreshed = Some(Instant::now());
                // Whoever still finds no leader asks for the next refresh.
                self.refresh_wanted = result.is_err();
                self.hurry_to_new_leaders();
                Ok(())
            }
            Event::Listed { asked, result } => self.listed(asked, result),
        }
    }

    /// A partition that was put off need not wait for a leader that it has not asked yet.
    fn hurry_to_new_leaders(&mut self) {
        let metadata = self.cluster.metadata();
        for (partition, cursor) in &mut self.cursors {
            let known = metadata.partition(&partition.topic, partition.partition.value());
            let leader = known.and_then(|p| Some((p.leader?, p.leader_epoch.value())));
            if leader.is_some() && leader != cursor.asked_of {
                cursor.not_before = None;
            }
        }
    }

    fn listed(
        &mut self,
        asked: Vec<(TopicPartition, u64)>,
        result: Result<BTreeMap<TopicPartition, ListedOffset>>,
    ) -> Result<()> {
        let mut latest = Vec::new();
        for (partition, generation) in asked {
            let cursor = self
                .cursors
                .get_mut(&partition)
                .filter(|c| c.generation == generation);
            let Some(cursor) = cursor else { continue };
            cursor.asked = false;
            let Some(listed) = result.as_ref().ok().and_then(|found| found.get(&partition)) else {
                continue;
            };
            match listed.offset {
                Some(offset) => cursor.seek(Position::At(offset), generation),
                // No record is as late as the time asked for: what comes next is.
                None => latest.push(partition),
            }
        }
        for partition in latest {
            self.seek(&partition, Start::Spec(OffsetSpec::Latest))?;
        }
        match result {
            Err(error) if !error.is_retriable() => Err(error),
            Err(_) => {
                self.refresh_wanted = true;
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// What `auto.offset.reset` says, or the error if it says so.
    fn reset(&mut self, partition: &TopicPartition, error: Error) -> Result<()> {
        match self.config.offset_reset {
            OffsetReset::Earliest => self.seek(partition, Start::Spec(OffsetSpec::Earliest)),
            OffsetReset::Latest => self.seek(partition, Start::Spec(OffsetSpec::Latest)),
            OffsetReset::Error => Err(error),
        }
    }

    /// Takes what the group says: partitions to give up, and new ones.
    async fn follow_group(&mut self) -> Result<()> {
        let Some(membership) = &self.membership else {
            return Ok(());
        };
        membership.polled();
        while let Some(event) = self.membership.as_mut().and_then(Membership::next_event) {
            match event {
                GroupEvent::Joined(group) => self.group = Some(group),
                GroupEvent::Revoke { partitions, lost } => {
                    if self.config.auto_commit && !lost {
                        let mut offsets = self.positions();
                        offsets.retain(|partition, _| partitions.contains(partition));
                        if let Err(error) = self.commit_offsets(offsets).await {
                            tracing::warn!(%error, "commit before a rebalance failed");
                        }
                    }
                    self.cursors
                        .retain(|partition, _| !partitions.contains(partition));
                    if let Some(membership) = &self.membership {
                        membership.revoked();
                    }
                }
                GroupEvent::Assign { partitions } => {
                    for (partition, committed) in partitions {
                        let cursor = self.cursor_at(&partition, committed)?;
                        self.cursors.insert(partition, cursor);
                    }
                }
                GroupEvent::Failed(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A cursor at the group's offset, else where `auto.offset.reset` says.
    fn cursor_at(
        &mut self,
        partition: &TopicPartition,
        committed: Option<CommittedOffset>,
    ) -> Result<Cursor> {
        let spec = match self.config.offset_reset {
            OffsetReset::Error if committed.is_none() => {
                return Err(Error::Config(format!(
                    "the group has no offset for {partition}, and auto.offset.reset is error"
                )));
            }
            OffsetReset::Latest => OffsetSpec::Latest,
            OffsetReset::Earliest | OffsetReset::Error => OffsetSpec::Earliest,
        };
        let epoch = committed.as_ref().and_then(|c| c.leader_epoch);
        let position = committed.map_or(Position::Unknown(spec), |c| Position::At(c.offset));
        Ok(self.new_cursor(partition, position).of_epoch(epoch))
    }

    /// Commits in the background every `auto.commit.interval.ms`; later if that takes
    /// longer, and then what was handed out by then.
    fn commit_if_due(&mut self) {
        let now = Instant::now();
        if !self.config.auto_commit || now < self.next_auto_commit {
            return;
        }
        let positions = self.positions();
        let Some(membership) = &mut self.membership else {
            return;
        };
        if positions.is_empty() || membership.is_committing() {
            return;
        }
        self.next_auto_commit = now + self.config.auto_commit_interval;
        membership.commit_in_background(positions);
    }
}

const NOT_ASSIGNED: Error = Error::State("the partition is not assigned to this consumer");

fn position(start: Start) -> Position {
    match start {
        Start::Offset(offset) => Position::At(offset),
        Start::Spec(spec) => Position::Unknown(spec),
    }
}

fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
    futures_util::FutureExt::now_or_never(future)
}
