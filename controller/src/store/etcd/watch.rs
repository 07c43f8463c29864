//! Watches: a stream of batches that outlives the connection it comes over.
//!
//! A [`Watcher`] holds one etcd watch at a time and the revision it has delivered last; whenever
//! the stream breaks, falls silent or its member is given up, it opens the next one right
//! after that revision. etcd sends the events of a revision together and in order, so the
//! batches are whole. What it can't continue from (compacted, or an etcd that was put back
//! from a backup) is [`WatchEvent::Compacted`].

use std::{collections::VecDeque, sync::Arc, time::Duration};

use etcd_client::{EventType, ResponseHeader, WatchOptions, WatchResponse, WatchStream};
use futures_util::stream;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    connection::{Connection, Repeat},
    errors::{Failure, classify},
    transactions::{end_of, entry, relative},
};
use crate::store::{Batch, Change, Revision, StoreError, Watch, WatchEvent};

/// The largest message that is read. etcd sends up to 1000 revisions at once to a watch that
/// has to catch up; one that is further behind is better off reading anew.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// How long to wait before a watch is opened again that could not be, or did not last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Watches everything that begins with `key`, which begins with the store's `prefix`.
pub(super) async fn open(
    connection: &Arc<Connection>,
    prefix: &Arc<str>,
    key: &str,
    after: Revision,
) -> Result<Watch, StoreError> {
    let mut watcher = Watcher {
        connection: Arc::clone(connection),
        turns: connection.turns(),
        prefix: Arc::clone(prefix),
        key: key.into(),
        after,
        source: None,
        batches: VecDeque::new(),
        denied_once: false,
        reconnects: 0,
    };
    watcher.source = Some(watcher.connect().await.map_err(Failure::of_query)?);
    Ok(Box::pin(stream::unfold(watcher, |mut watcher| async {
        Some((watcher.next().await, watcher))
    })))
}

struct Watcher {
    connection: Arc<Connection>,
    turns: watch::Receiver<u64>,
    prefix: Arc<str>,
    key: Box<str>,
    /// The last revision that was delivered.
    after: Revision,
    source: Option<Source>,
    /// Received and not yet delivered.
    batches: VecDeque<Arc<Batch>>,
    /// Whether etcd has denied this watch, which it does as well when a token has expired.
    denied_once: bool,
    /// How often a source was opened since the last one that worked.
    reconnects: u32,
}

/// One watch of etcd's.
struct Source {
    stream: WatchStream,
    turn: u64,
    heard_at: Instant,
    /// Whether it was silent for so long that it was asked for a sign of life.
    asked: bool,
}

/// How long to wait before a source is opened, after this many that did not work.
fn pause(reconnects: u32) -> Duration {
    match reconnects {
        0 => Duration::ZERO,
        more => (FIRST_PAUSE * 2u32.saturating_pow(more - 1)).min(LONGEST_PAUSE),
    }
}

/// What came of waiting.
enum Heard {
    Message(Result<Option<WatchResponse>, etcd_client::Error>),
    Silence,
    OtherTurn,
}

impl Watcher {
    async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        loop {
            if let Some(batch) = self.batches.pop_front() {
                self.after = batch.revision;
                return Ok(WatchEvent::Batch(batch));
            }
            if self.source.is_none() {
                self.source = Some(self.reconnect().await?);
            }
            let Some(event) = self.wait().await? else {
                continue;
            };
            return Ok(event);
        }
    }

    /// Waits for something to happen; the event, if it is one that ends the watch.
    async fn wait(&mut self) -> Result<Option<WatchEvent>, StoreError> {
        let Some(source) = &mut self.source else {
            return Ok(None);
        };
        let turn = source.turn;
        let silence = self.connection.request_timeout();
        let heard = tokio::select! {
            message = source.stream.message() => Heard::Message(message),
            () = sleep_until(source.heard_at + silence) => Heard::Silence,
            // The sender lives in `connection`.
            _ = self.turns.wait_for(|now| *now != turn) => Heard::OtherTurn,
        };
        match heard {
            Heard::Message(Ok(Some(response))) => {
                source.heard_at = Instant::now();
                source.asked = false;
                return self.receive(&response);
            }
            Heard::Silence if !source.asked => {
                source.asked = true;
                source.heard_at = Instant::now();
                if source.stream.request_progress().await.is_ok() {
                    return Ok(None);
                }
            }
            Heard::Silence => {
                tracing::warn!(
                    endpoint = self.connection.place(turn).url,
                    "a watch of etcd has fallen silent"
                );
                self.connection.leave(turn);
            }
            Heard::OtherTurn | Heard::Message(Ok(None)) => {}
            Heard::Message(Err(error)) => match classify(&error, &self.connection.place(turn)) {
                Failure::Compacted | Failure::ReplyTooLarge => {
                    self.source = None;
                    return Ok(Some(WatchEvent::Compacted));
                }
                Failure::Settled(error) => {
                    self.source = None;
                    return Err(error);
                }
                Failure::NotDone(why) | Failure::Misfit(why) | Failure::Unsure(why) => {
                    tracing::info!(why, "a watch of etcd broke off");
                    self.connection.leave(turn);
                }
            },
        }
        self.source = None;
        Ok(None)
    }

    fn receive(&mut self, response: &WatchResponse) -> Result<Option<WatchEvent>, StoreError> {
        if response.canceled() {
            return self.canceled(response);
        }
        self.reconnects = 0;
        if response.created() {
            self.denied_once = false;
            let revision = response.header().map_or(0, ResponseHeader::revision);
            if revision < self.after.value() {
                // This etcd knows less than it once said.
                self.source = None;
                return Ok(Some(WatchEvent::Compacted));
            }
        }
        self.take(response);
        Ok(None)
    }

    fn canceled(&mut self, response: &WatchResponse) -> Result<Option<WatchEvent>, StoreError> {
        let turn = self.source.take().map(|source| source.turn);
        if response.compact_revision() != 0 {
            return Ok(Some(WatchEvent::Compacted));
        }
        let reason = response.cancel_reason();
        tracing::info!(reason, "etcd canceled a watch");
        let Some(turn) = turn else {
            return Ok(None);
        };
        if reason.contains("permission denied") || reason.contains("auth token") {
            if self.denied_once {
                return Err(self.connection.place(turn).permission_denied());
            }
            self.denied_once = true;
        }
        self.connection.leave(turn);
        Ok(None)
    }

    /// Queues the events of a response by their revisions.
    fn take(&mut self, response: &WatchResponse) {
        let mut batch: Option<Batch> = None;
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = Revision(kv.mod_revision());
            if revision <= self.after {
                continue;
            }
            let change = match event.event_type() {
                EventType::Put => entry(kv.clone(), &self.prefix).map(Change::Put),
                EventType::Delete => relative(kv.key(), &self.prefix).map(Change::Delete),
            };
            let Some(change) = change else { continue };
            match &mut batch {
                Some(batch) if batch.revision == revision => batch.changes.push(change),
                _ => {
                    let changes = vec![change];
                    let done = batch.replace(Batch { revision, changes });
                    self.batches.extend(done.map(Arc::new));
                }
            }
        }
        self.batches.extend(batch.map(Arc::new));
    }

    /// Opens the next source, for as long as it takes: at once if the last one worked, and
    /// then less and less often.
    async fn reconnect(&mut self) -> Result<Source, StoreError> {
        loop {
            sleep(pause(self.reconnects)).await;
            self.reconnects += 1;
            match self.connect().await {
                Ok(source) => return Ok(source),
                Err(Failure::NotDone(why) | Failure::Misfit(why) | Failure::Unsure(why)) => {
                    if self.reconnects == 1 {
                        tracing::warn!(why, "etcd can't be watched");
                    }
                }
                Err(failure) => return Err(failure.of_query()),
            }
        }
    }

    async fn connect(&self) -> Result<Source, Failure> {
        let options = WatchOptions::new()
            .with_range(end_of(&self.key))
            .with_start_revision(self.after.next().value());
        let (stream, turn) = self
            .connection
            .call(Repeat::Freely, |member| {
                let options = options.clone();
                async move {
                    let watches = member.client.watch_client();
                    let mut watches = watches.max_decoding_message_size(MAX_MESSAGE_BYTES);
                    let stream = watches.watch(&*self.key, Some(options)).await?;
                    Ok((stream, member.turn))
                }
            })
            .await?;
        Ok(Source {
            stream,
            turn,
            heard_at: Instant::now(),
            asked: false,
        })
    }
}
