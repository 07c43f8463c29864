//! Growing pauses between attempts, with jitter so that clients that failed
//! together do not come back together.

use std::time::Duration;

use rand::Rng;

/// Doubles from `first` to `longest`, each pause within ±20 % of that.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest: longest.max(first),
            attempts: 0,
        }
    }

    /// The pause before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = Self::pause(self.first, self.longest, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        pause
    }

    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The pause after `attempts` earlier failures.
    pub(crate) fn pause(first: Duration, longest: Duration, attempts: u32) -> Duration {
        let grown = first
            .saturating_mul(1 << attempts.min(20))
            .min(longest.max(first));
        grown.mul_f64(rand::rng().random_range(0.8..1.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for expected_ms in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.next().as_millis();
            assert!(
                (expected_ms * 8 / 10..=expected_ms * 12 / 10).contains(&pause),
                "{pause}"
            );
        }
    }
}
