//! The two clocks, read in one place.
//!
//! Time-outs, lags and delays are counted by the monotonic clock: the time of day is set
//! by NTP and by hand, and jumps when a virtual machine goes on after a pause, and nobody
//! has been silent for longer because of that. What is written into records or compared
//! with them has the time of day, since only that means the same after a restart and on
//! other machines.

use std::{
    sync::LazyLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
pub(crate) use yuxi_coordinator::time::{Monotonic, Now};

/// The time of day: milliseconds since 1970, as record timestamps count; 0 on a clock set
/// before that.
pub(crate) fn wall_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

/// The monotonic clock. It counts from when this process first asked, not from the time of
/// day there was then: whoever takes it for that is far off from the first moment on, and
/// not only after a step.
pub(crate) fn monotonic() -> Monotonic {
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    Monotonic::new(i64::try_from(ORIGIN.elapsed().as_millis()).unwrap_or(i64::MAX))
}

/// This moment, by both.
pub(crate) fn now() -> Now {
    Now {
        monotonic: monotonic(),
        wall_ms: wall_ms(),
    }
}
