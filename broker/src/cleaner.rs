//! Compacts the logs of this broker, leaders and followers alike, the dirtiest first.
//!
//! One task decides; the work is done on blocking threads, a log on each, as many as
//! `log.cleaner.threads` says. A partition's lock is held for the plan and for the swap of
//! a segment only, so that appends and reads go on. Up to where a log is clean it knows
//! itself; the file `cleaner-offset-checkpoint` follows.
//!
//! Invariants: no log is compacted by two threads; one that is damaged is left alone until
//! the broker is started again, and all others go on.

use crate::{
    metrics::CleanerState, node::Node, partition::Partition, replicas::Checkpoints, sync::lock,
    time,
};
use std::{
    collections::{HashMap, HashSet},
    io,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use yuxi_controller::settings::ServerSettings;
use yuxi_log::{CompactionError, CompactionStats, Dirtiness, KeyMemory, LogError};
use yuxi_protocol::ids::{PartitionId, TopicId};

/// How often settings are looked at while nothing is to be done.
const MAX_REST: Duration = Duration::from_secs(1);

/// A thread that waits for its share of `log.cleaner.io.max.bytes.per.second` looks so often
/// whether it should stop.
const MAX_WAIT: Duration = Duration::from_millis(50);

/// A log that could not be compacted for want of room is tried again after so many times
/// `log.cleaner.backoff.ms`: by default a minute.
const RETRY_FULL_RESTS: i64 = 4;

/// One whose segments changed meanwhile is tried again after this: they may go on changing.
const RETRY_CHANGED_MS: i64 = 1000;

/// A partition of one life of its topic.
type Key = (TopicId, PartitionId);

/// What the compaction of one broker shares.
#[derive(Debug)]
pub(crate) struct Cleaner {
    stopped: watch::Sender<bool>,
    state: Mutex<State>,
    throttle: Throttle,
}

#[derive(Debug, Default)]
struct State {
    in_progress: HashSet<Key>,
    uncleanable: HashSet<Key>,
    /// Logs that had no room or changed meanwhile, and when they are tried again.
    retry_at: HashMap<Key, Instant>,
    last: LastRun,
}

/// What the last look at the logs and the last compaction were like.
#[derive(Clone, Copy, Debug, Default)]
struct LastRun {
    at: Option<Instant>,
    max_dirty: f64,
    delay_ms: i64,
    stats: CompactionStats,
    took: Duration,
}

impl Default for Cleaner {
    fn default() -> Self {
        Self {
            stopped: watch::Sender::new(false),
            state: Mutex::default(),
            throttle: Throttle::default(),
        }
    }
}

/// Begins to compact. The task ends some time after [`Cleaner::stop`].
pub(crate) fn start(node: &Arc<Node>) -> JoinHandle<()> {
    let node = Arc::clone(node);
    tokio::spawn(async move {
        let mut stopped = node.cleaner.stopped.subscribe();
        let mut jobs = JoinSet::new();
        let mut rests_until = Instant::now();
        while !*stopped.borrow_and_update() {
            let settings = node.live_settings();
            if Instant::now() >= rests_until {
                start_due(&node, &settings, &mut jobs).await;
                rests_until = Instant::now() + backoff(&settings);
            }
            let rest = rests_until
                .saturating_duration_since(Instant::now())
                .clamp(Duration::from_millis(1), MAX_REST);
            tokio::select! {
                _ = stopped.changed() => {}
                () = tokio::time::sleep(rest) => {}
                Some(ended) = jobs.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a compaction failed");
                    }
                    rests_until = Instant::now();
                }
            }
        }
        // They look at the same flag.
        while jobs.join_next().await.is_some() {}
    })
}

/// Starts compactions as long as threads are free and logs are due.
async fn start_due(node: &Arc<Node>, settings: &ServerSettings, jobs: &mut JoinSet<()>) {
    let threads = if settings.log_cleaner_enable {
        usize::try_from(settings.log_cleaner_threads).unwrap_or(0)
    } else {
        0
    };
    while jobs.len() < threads {
        let picking = Arc::clone(node);
        let picked = node.run_blocking(move || pick(&picking)).await;
        match picked {
            Ok(Some(job)) => {
                jobs.spawn_blocking(move || job.run());
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "no log could be chosen for compaction");
                return;
            }
        }
    }
}

fn backoff(settings: &ServerSettings) -> Duration {
    Duration::from_millis(u64::try_from(settings.log_cleaner_backoff_ms).unwrap_or(0))
}

/// The dirtiest of the logs that are due.
fn pick(node: &Arc<Node>) -> Option<Job> {
    if node.is_storage_failed() {
        return None;
    }
    let (now, now_ms) = (Instant::now(), time::wall_ms());
    let cleaner = &node.cleaner;
    let mut dirtiest: Option<(f64, Arc<Partition>)> = None;
    let (mut max_dirty, mut delay_ms) = (0.0_f64, 0);
    let all = node.replicas.all();
    cleaner.forget_gone(&all);
    for partition in all {
        if !partition.settings().cleanup_policy.compacts()
            || cleaner.state().is_left_alone(key_of(&partition), now)
        {
            continue;
        }
        let (dirtiness, is_due) = match measure(&partition, now_ms) {
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                cleaner.give_up(&partition, &error.into());
                continue;
            }
            None => continue,
        };
        max_dirty = max_dirty.max(dirtiness.ratio());
        delay_ms = delay_ms.max(dirtiness.overdue_ms);
        let is_dirtier = dirtiest
            .as_ref()
            .is_none_or(|(ratio, _)| dirtiness.ratio() > *ratio);
        if is_due && is_dirtier {
            dirtiest = Some((dirtiness.ratio(), partition));
        }
    }
    let mut state = cleaner.state();
    state.last.at = Some(now);
    state.last.max_dirty = max_dirty;
    state.last.delay_ms = delay_ms;
    let (_, partition) = dirtiest?;
    state.in_progress.insert(key_of(&partition));
    Some(Job {
        node: Arc::clone(node),
        partition,
    })
}

/// How dirty the log is and whether it is due; `None` once the partition is gone.
fn measure(partition: &Partition, now_ms: i64) -> Option<Result<(Dirtiness, bool), LogError>> {
    let stable_end = partition.offsets().last_stable;
    partition.with_log(|log, _| {
        let dirtiness = log.dirtiness(stable_end, now_ms)?;
        Ok((dirtiness, dirtiness.is_due(log.config())))
    })
}

fn key_of(partition: &Partition) -> Key {
    (partition.topic_id(), partition.id().partition)
}

impl Cleaner {
    /// Compacts no more; a thread that is at it gives up soon.
    pub(crate) fn stop(&self) {
        self.stopped.send_replace(true);
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// How compaction gets on.
    pub(crate) fn report(&self, node: &Node) -> CleanerState {
        let now_ms = time::wall_ms();
        let (last, uncleanable) = {
            let state = self.state();
            (state.last, state.uncleanable.clone())
        };
        let percent = |part: f64| (100.0 * part) as i64;
        let dirty_bytes = |partition: &Arc<Partition>| match measure(partition, now_ms) {
            Some(Ok((dirtiness, _))) => dirtiness.dirty_bytes,
            Some(Err(_)) | None => 0,
        };
        let uncleanable_bytes = if uncleanable.is_empty() {
            0
        } else {
            let all = node.replicas.all();
            let given_up = all.iter().filter(|p| uncleanable.contains(&key_of(p)));
            given_up.map(dirty_bytes).sum()
        };
        CleanerState {
            buffer_percent: percent(last.stats.key_memory_utilization),
            recopy_percent: percent(
                last.stats.bytes_written as f64 / last.stats.bytes_read.max(1) as f64,
            ),
            clean_seconds: last.took.as_secs() as i64,
            delay_seconds: last.delay_ms / 1000,
            max_dirty_percent: percent(last.max_dirty),
            ms_since_last_run: last.at.map_or(0, |at| {
                i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX)
            }),
            uncleanable: uncleanable.len(),
            uncleanable_bytes,
        }
    }

    /// What is known of partitions that are gone, or are of a new topic of the same name.
    fn forget_gone(&self, all: &[Arc<Partition>]) {
        let mut state = self.state();
        if state.uncleanable.is_empty() && state.retry_at.is_empty() {
            return;
        }
        let here: HashSet<Key> = all.iter().map(|partition| key_of(partition)).collect();
        state.uncleanable.retain(|key| here.contains(key));
        state.retry_at.retain(|key, _| here.contains(key));
    }

    fn give_up(&self, partition: &Partition, error: &CompactionError) {
        tracing::error!(
            partition = %partition.id(), %error,
            "the log can't be compacted and will grow; it is left alone until the broker is \
             started again"
        );
        self.state().uncleanable.insert(key_of(partition));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn is_left_alone(&mut self, key: Key, now: Instant) -> bool {
        let retry_at = self.retry_at.get(&key);
        if retry_at.is_some_and(|&at| at <= now) {
            self.retry_at.remove(&key);
        }
        self.in_progress.contains(&key)
            || self.uncleanable.contains(&key)
            || self.retry_at.contains_key(&key)
    }
}

/// The compaction of one log, which nobody else compacts until this is dropped.
struct Job {
    node: Arc<Node>,
    partition: Arc<Partition>,
}

impl Drop for Job {
    fn drop(&mut self) {
        let mut state = self.node.cleaner.state();
        let key = key_of(&self.partition);
        state.in_progress.remove(&key);
        if std::thread::panicking() {
            state.uncleanable.insert(key);
        }
    }
}

impl Job {
    fn run(self) {
        let started = Instant::now();
        let error = match self.clean() {
            Ok(None) => return,
            Ok(Some(stats)) => return self.done(stats, started.elapsed()),
            Err(error) => error,
        };
        let partition = &self.partition;
        let cleaner = &self.node.cleaner;
        let backoff_ms = self.node.live_settings().log_cleaner_backoff_ms;
        let retry_ms = match (retry_after_ms(&error, backoff_ms), error) {
            (Some(retry_ms), CompactionError::Abandoned) => {
                tracing::debug!(partition = %partition.id(), "a compaction was abandoned");
                retry_ms
            }
            (Some(retry_ms), CompactionError::Log(error)) => {
                tracing::warn!(
                    partition = %partition.id(), %error,
                    "there is no room to compact the log; it stays as it is and is tried again"
                );
                retry_ms
            }
            (None, error) => return cleaner.give_up(partition, &error),
        };
        let retry = Duration::from_millis(u64::try_from(retry_ms).unwrap_or(0));
        let mut state = cleaner.state();
        state
            .retry_at
            .insert(key_of(partition), Instant::now() + retry);
    }

    fn clean(&self) -> Result<Option<CompactionStats>, CompactionError> {
        let settings = self.node.live_settings();
        let threads = u64::try_from(settings.log_cleaner_threads)
            .unwrap_or(1)
            .max(1);
        let memory = KeyMemory {
            max_bytes: u64::try_from(settings.log_cleaner_dedupe_buffer_size).unwrap_or(0)
                / threads,
            load_factor: settings.log_cleaner_io_buffer_load_factor,
        };
        let stable_end = self.partition.offsets().last_stable;
        let plan = self.with_log(|log| log.plan_compaction(stable_end, time::wall_ms()))?;
        let Some(plan) = plan else { return Ok(None) };
        let ticket = plan.ticket();
        let mut pace = |bytes| self.pace(bytes);
        let cleaned = (|| {
            let mut cleaning = plan.index_keys(memory, &mut pace)?;
            while let Some(mut segment) = cleaning.clean_next(&mut pace)? {
                if !self.with_log(|log| log.begin_swap(&mut segment))? {
                    return Err(CompactionError::Abandoned);
                }
                let swapped = segment
                    .sync_names()
                    .and_then(|()| self.finish_swap(&mut segment));
                match swapped {
                    Ok(true) => {}
                    Ok(false) => return Err(CompactionError::Abandoned),
                    Err(error) => {
                        self.node.storage_failed(&format!("compaction: {error}"));
                        return Err(CompactionError::Abandoned);
                    }
                }
            }
            Ok(cleaning)
        })();
        let is_current = self.with_log(|log| Ok(log.is_current(ticket)))?;
        let cleaning = cleaned.map_err(|error| what_failed(error, is_current))?;
        self.with_log(|log| {
            if log.is_current(ticket) {
                log.set_cleaned_to(cleaning.cleaned_to());
            }
            Ok(())
        })?;
        Ok(Some(cleaning.stats()))
    }

    /// Under the partition's lock, unless the partition is gone.
    fn with_log<T>(
        &self,
        work: impl FnOnce(&mut yuxi_log::Log) -> Result<T, LogError>,
    ) -> Result<T, CompactionError> {
        match self.partition.with_log(|log, _| work(log)) {
            Some(result) => Ok(result?),
            None => Err(CompactionError::Abandoned),
        }
    }

    /// False if the swap was taken back, or the partition is gone.
    fn finish_swap(&self, segment: &mut yuxi_log::CleanedSegment) -> Result<bool, LogError> {
        let swapped = self
            .partition
            .with_log(|log, _| log.finish_swap(segment, time::wall_ms()));
        swapped.unwrap_or(Ok(false))
    }

    /// Waits until so many bytes may have been read or written.
    fn pace(&self, bytes: u64) -> ControlFlow<()> {
        let cleaner = &self.node.cleaner;
        let rate = self
            .node
            .live_settings()
            .log_cleaner_io_max_bytes_per_second;
        let until = cleaner.throttle.take(bytes, rate, Instant::now());
        loop {
            if cleaner.is_stopped() || self.node.is_storage_failed() {
                return ControlFlow::Break(());
            }
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return ControlFlow::Continue(());
            }
            std::thread::sleep(wait.min(MAX_WAIT));
        }
    }

    fn done(&self, stats: CompactionStats, took: Duration) {
        if let Err(error) = self.node.replicas.checkpoint(Checkpoints::Cleaned) {
            // The old one stays, and only makes the next compaction longer.
            tracing::warn!(%error, "the checkpoint of compaction was not written");
        }
        if stats.records_without_key > 0 {
            tracing::warn!(
                partition = %self.partition.id(), records = stats.records_without_key,
                "records without a key, from before the topic was compacted, were dropped"
            );
        }
        tracing::info!(
            partition = %self.partition.id(),
            bytes_before = stats.bytes_read,
            bytes_after = stats.bytes_written,
            records_before = stats.records_read,
            records_after = stats.records_written,
            seconds = took.as_secs_f64(),
            "a log was compacted"
        );
        let mut state = self.node.cleaner.state();
        state.last.stats = stats;
        state.last.took = took;
    }
}

/// What a failure means for the log: a segment that was truncated while it was read looks
/// like a damaged one.
fn what_failed(error: CompactionError, is_current: bool) -> CompactionError {
    if is_current {
        error
    } else {
        CompactionError::Abandoned
    }
}

/// After how long a log whose compaction failed is tried again; `None` if it is left alone.
fn retry_after_ms(error: &CompactionError, backoff_ms: i64) -> Option<i64> {
    match error {
        CompactionError::Abandoned => Some(RETRY_CHANGED_MS),
        CompactionError::Log(LogError::Storage { error, .. }) if is_full(error) => {
            Some(backoff_ms.saturating_mul(RETRY_FULL_RESTS))
        }
        CompactionError::Log(_) => None,
    }
}

/// Whether it is the disk that is full, which mends itself or is mended.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Spreads bytes over time, for all threads together.
#[derive(Debug, Default)]
struct Throttle {
    /// Until when the bytes that were taken last.
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    /// Takes `bytes` at `rate` bytes a second; the caller goes on at the time returned.
    fn take(&self, bytes: u64, rate: f64, now: Instant) -> Instant {
        let seconds = bytes as f64 / rate;
        // A day is as good as for ever, and a duration has an end.
        let lasts = Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0));
        let mut free_at = lock(&self.free_at);
        let until = free_at.map_or(now, |at| at.max(now)) + lasts;
        *free_at = Some(until);
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yuxi_protocol::ids::Offset;

    fn storage(kind: io::ErrorKind) -> CompactionError {
        let (path, error) = ("t-0".into(), kind.into());
        LogError::Storage { path, error }.into()
    }

    fn corrupt() -> CompactionError {
        let error = LogError::Corrupt {
            path: "t-0".into(),
            position: 0,
            expected_offset: Offset::ZERO,
            reason: "bits have fallen over".to_owned(),
        };
        error.into()
    }

    #[test]
    fn a_log_without_room_or_that_changed_is_tried_again_and_a_damaged_one_is_not() {
        use io::ErrorKind::{PermissionDenied, QuotaExceeded, StorageFull};
        for (error, expected) in [
            (CompactionError::Abandoned, Some(1000)),
            (storage(StorageFull), Some(60_000)),
            (storage(QuotaExceeded), Some(60_000)),
            (storage(PermissionDenied), None),
            (corrupt(), None),
            (what_failed(corrupt(), true), None),
            (what_failed(corrupt(), false), Some(1000)),
        ] {
            assert_eq!(retry_after_ms(&error, 15_000), expected, "{error}");
        }
    }

    #[test]
    fn a_log_is_left_alone_until_its_time_comes_and_while_or_since_a_thread_has_it() {
        let key = (TopicId::ZERO, PartitionId::new(3));
        let mut state = State::default();
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        state.retry_at.insert(key, after(100));
        let left_alone = [99, 100, 99].map(|ms| state.is_left_alone(key, after(ms)));
        assert_eq!(left_alone, [true, false, false]);
        state.in_progress.insert(key);
        assert!(state.is_left_alone(key, after(100)));
        state.in_progress.clear();
        state.uncleanable.insert(key);
        assert!(state.is_left_alone(key, after(100_000)));
    }

    #[test]
    fn all_threads_together_read_and_write_no_faster_than_they_may() {
        let throttle = Throttle::default();
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        assert_eq!(throttle.take(500, 1000.0, now), after(500));
        assert_eq!(throttle.take(250, 1000.0, now), after(750));
        assert_eq!(throttle.take(250, 1000.0, after(700)), after(1000));
        // What was not used is lost, not saved up.
        assert_eq!(throttle.take(100, 1000.0, after(5000)), after(5100));
        assert_eq!(throttle.take(u64::MAX, f64::MAX, after(9000)), after(9000));
    }
}
