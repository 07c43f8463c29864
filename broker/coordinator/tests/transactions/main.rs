//! The transaction coordinator through its public face.

mod admin;
mod endings;
mod failed_writes;
mod producers;
mod properties;
mod records;
mod support;
mod time_outs;
