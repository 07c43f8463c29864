//! How long things took: counts in fixed buckets, and quantiles of the last minutes.
//!
//! Recording is two relaxed additions. Quantiles are taken over a window of five to
//! ten minutes, since those of a whole process life tell nothing about now; they
//! are interpolated within a bucket, as Prometheus does it.

use crate::sync::lock;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The upper ends of the buckets but the last, which has none, and their labels.
pub(super) const BOUNDS: [(Duration, &str); 17] = [
    (Duration::from_micros(100), "0.0001"),
    (Duration::from_micros(250), "0.00025"),
    (Duration::from_micros(500), "0.0005"),
    (Duration::from_millis(1), "0.001"),
    (Duration::from_micros(2_500), "0.0025"),
    (Duration::from_millis(5), "0.005"),
    (Duration::from_millis(10), "0.01"),
    (Duration::from_millis(25), "0.025"),
    (Duration::from_millis(50), "0.05"),
    (Duration::from_millis(100), "0.1"),
    (Duration::from_millis(250), "0.25"),
    (Duration::from_millis(500), "0.5"),
    (Duration::from_secs(1), "1"),
    (Duration::from_millis(2_500), "2.5"),
    (Duration::from_secs(5), "5"),
    (Duration::from_secs(10), "10"),
    (Duration::from_secs(30), "30"),
];

const BUCKETS: usize = BOUNDS.len() + 1;

/// A window is at least this long and at most twice as long.
const HALF_WINDOW: Duration = Duration::from_mins(5);

/// How often each bucket was hit.
pub(super) type Counts = [u64; BUCKETS];

/// Durations of one kind of thing.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
    window: Mutex<Window>,
}

/// The counts as they were at the last two turns, taken at scrapes.
#[derive(Debug)]
struct Window {
    turned: Instant,
    last: Counts,
    before_last: Counts,
}

impl Histogram {
    /// An empty one.
    pub fn new(now: Instant) -> Self {
        Self {
            buckets: Default::default(),
            sum_micros: AtomicU64::new(0),
            window: Mutex::new(Window {
                turned: now,
                last: [0; BUCKETS],
                before_last: [0; BUCKETS],
            }),
        }
    }

    /// One took so long.
    pub fn record(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|(bound, _)| *bound < took);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(took.as_micros() as u64, Relaxed);
    }

    pub(super) fn counts(&self) -> Counts {
        std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed))
    }

    /// The total of what was recorded.
    pub(super) fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_micros.load(Relaxed))
    }

    /// What was recorded in the last minutes before `now`, given the counts of this moment.
    pub(super) fn recent(&self, counts: &Counts, now: Instant) -> Counts {
        let mut window = lock(&self.window);
        let recent =
            std::array::from_fn(|bucket| counts[bucket].saturating_sub(window.before_last[bucket]));
        if now.saturating_duration_since(window.turned) >= HALF_WINDOW {
            window.before_last = window.last;
            window.last = *counts;
            window.turned = now;
        }
        recent
    }
}

/// The duration that a share `quantile` of those counted did not exceed; `None` if there
/// are none. What lies past the last bound counts as the last bound.
pub(super) fn quantile(counts: &Counts, quantile: f64) -> Option<Duration> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = quantile * total as f64;
    let mut below = 0;
    let mut low = Duration::ZERO;
    for ((high, _), &count) in BOUNDS.iter().zip(counts) {
        if count > 0 && (below + count) as f64 >= rank {
            let share = (rank - below as f64).max(0.0) / count as f64;
            return Some(low + high.saturating_sub(low).mul_f64(share));
        }
        below += count;
        low = *high;
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(Instant::now());
        for (micros, bucket) in [(0, 0), (100, 0), (101, 1), (1000, 3), (30_000_001, 17)] {
            let before = histogram.counts();
            histogram.record(Duration::from_micros(micros));
            let after = histogram.counts();
            for at in 0..BUCKETS {
                assert_eq!(after[at] - before[at], u64::from(at == bucket), "{micros}");
            }
        }
        assert_eq!(histogram.sum(), Duration::from_micros(30_001_202));
    }

    #[test]
    fn a_quantile_is_interpolated_within_its_bucket() {
        let mut counts = [0; BUCKETS];
        assert_eq!(quantile(&counts, 0.5), None);
        counts[3] = 100;
        assert_eq!(quantile(&counts, 0.5), Some(Duration::from_micros(750)));
        counts[17] = 100;
        assert_eq!(quantile(&counts, 0.99), Some(Duration::from_secs(30)));
        assert_eq!(quantile(&counts, 0.5), Some(Duration::from_millis(1)));
    }

    #[test]
    fn what_is_older_than_the_window_no_longer_counts() {
        let start = Instant::now();
        let histogram = Histogram::new(start);
        let recent = |after| {
            let counts = histogram.counts();
            histogram.recent(&counts, start + after).iter().sum::<u64>()
        };
        histogram.record(Duration::from_millis(1));
        assert_eq!(recent(Duration::ZERO), 1);
        assert_eq!(recent(HALF_WINDOW), 1);
        histogram.record(Duration::from_millis(1));
        assert_eq!(recent(HALF_WINDOW), 2);
        assert_eq!(recent(2 * HALF_WINDOW), 2);
        assert_eq!(recent(2 * HALF_WINDOW), 1);
        assert_eq!(recent(3 * HALF_WINDOW), 1);
        assert_eq!(recent(3 * HALF_WINDOW), 0);
    }
}
