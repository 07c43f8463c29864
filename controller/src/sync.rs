//! Locks around state that is whole after every statement.
//!
//! Whoever panics while holding one leaves such state as good as before, so the next
//! takes it as it is.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
