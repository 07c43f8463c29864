//! The two clocks that a coordinator is told of, and what keeps them apart.
//!
//! How long a member may be silent or a transaction open is counted by a clock that never
//! steps. The time of day does: it is set by hand or by NTP, and jumps when a virtual
//! machine goes on after a pause. It is for what stands in records, where the next
//! coordinator, on another machine, has nothing else to compare with.

/// A moment by the monotonic clock of this process. Its origin means nothing elsewhere, so
/// that it is never written, and is no [`i64`], so that it is not taken for the time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(i64);

impl Monotonic {
    /// Before every moment that the clock ever shows.
    pub const LONG_AGO: Self = Self(i64::MIN);

    /// After every moment that the clock ever shows.
    pub const NEVER: Self = Self(i64::MAX);

    /// So many milliseconds after the clock's origin.
    pub const fn new(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds after the clock's origin.
    pub const fn value(self) -> i64 {
        self.0
    }

    /// The moment `ms` milliseconds later, or earlier if that is negative.
    #[must_use]
    pub const fn plus(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// How many milliseconds it is after `earlier`.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// What deadlines are set and found by.
    pub monotonic: Monotonic,
    /// The time of day, in milliseconds since the Unix epoch: what is written into records,
    /// and compared with what was.
    pub wall_ms: i64,
}

impl Now {
    /// The deadline `ms` milliseconds from now; at once if that is negative.
    pub(crate) fn after(self, ms: impl Into<i64>) -> Monotonic {
        self.monotonic.plus(ms.into().max(0))
    }
}
