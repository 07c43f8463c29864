//! The start of a daemon whose metadata store is away: a machine that boots may have its
//! etcd up after its brokers, and a cluster that was switched off as a whole comes back in
//! any order.
//!
//! So the start waits for as long as it takes, says why at once and then at intervals, and
//! tells the admin listener. Only what may pass by itself is waited for: wrong
//! credentials, another cluster's data, a newer layout or an etcd that is too old end
//! the start.

use crate::sync::lock;
use std::{
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// How long to wait before the store is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// How often to say that it is still waited for.
const REMINDER: Duration = Duration::from_secs(10);

/// A start that waits, if it has to, and why. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    why: Arc<Mutex<Option<String>>>,
}

impl Waiting {
    /// Why the store can't be used just now, if that is waited for.
    pub fn why(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Tries `attempt` until it succeeds or fails for good, which is whatever `may_pass` does
    /// not name.
    pub async fn until_available<T, E, F>(
        &self,
        may_pass: fn(&E) -> bool,
        attempt: impl Fn() -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
        E: Display,
    {
        let started = Instant::now();
        let mut remind_at = started;
        loop {
            let error = match attempt().await {
                Err(error) if may_pass(&error) => error,
                settled => {
                    let waited = self.lock().take().is_some();
                    if waited && settled.is_ok() {
                        let waited_ms = started.elapsed().as_millis();
                        tracing::info!(waited_ms, "the metadata store is there");
                    }
                    return settled;
                }
            };
            *self.lock() = Some(error.to_string());
            let now = Instant::now();
            if now >= remind_at {
                remind_at = now + REMINDER;
                tracing::warn!(%error, "the start waits for the metadata store");
            }
            sleep(PAUSE).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        lock(&self.why)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::store::StoreError;

    fn away() -> StoreError {
        StoreError::Unavailable("etcd is away".to_owned())
    }

    #[tokio::test]
    async fn what_may_pass_is_waited_for_and_told_and_what_may_not_ends_the_wait() {
        for (last, expected) in [
            (Ok(7), Ok(7)),
            (
                Err(StoreError::Denied("no such user".to_owned())),
                Err(StoreError::Denied("no such user".to_owned())),
            ),
        ] {
            let waiting = Waiting::default();
            let attempts = AtomicUsize::new(0);
            let outcome = waiting
                .until_available(
                    |error| matches!(error, StoreError::Unavailable(_)),
                    || {
                        let attempt = attempts.fetch_add(1, SeqCst);
                        let told = waiting.why().is_some();
                        assert_eq!(told, attempt > 0, "attempt {attempt}");
                        let last = last.clone();
                        async move { if attempt < 3 { Err(away()) } else { last } }
                    },
                )
                .await;
            assert_eq!(outcome, expected);
            assert_eq!(waiting.why(), None);
        }
    }
}
