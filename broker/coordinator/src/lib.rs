//! Group coordination as a pure state machine: handle, replay, tick.
