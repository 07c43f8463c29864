//! Reads and guarded transactions.
//!
//! A read is made of pages at one revision, so that no answer is large. A transaction's
//! guards become etcd's compares; both are limited alike.

use std::{str, sync::Arc};

use bytes::Bytes;
use etcd_client::{
    Compare, CompareOp, GetOptions, GetResponse, KeyValue, ResponseHeader, Txn, TxnOp,
};

use super::{
    connection::{Connection, Repeat},
    errors::Failure,
};
use crate::store::{
    Commit, Entry, Guard, Operation, Revision, SessionId, Snapshot, StoreError, Transaction,
};

/// How many keys are asked for at once. The chunks of partitions, which are most of
/// the bytes, have some 20 KiB each.
const PAGE_KEYS: i64 = 256;

/// The largest answer that is read at once; beyond it fewer keys are asked for.
const MAX_REPLY_BYTES: usize = 32 << 20;

/// How often a read begins anew because etcd compacted the revision it was reading.
const READ_ATTEMPTS: usize = 3;

/// Reads everything that begins with `from`; the keys lose their `prefix`.
pub(super) async fn read(
    connection: &Connection,
    prefix: &str,
    from: &str,
) -> Result<Snapshot, StoreError> {
    let mut attempt = 1;
    loop {
        match read_pages(connection, prefix, from).await {
            Ok(snapshot) => return Ok(snapshot),
            Err(Failure::Compacted) if attempt < READ_ATTEMPTS => attempt += 1,
            Err(failure) => return Err(failure.of_query()),
        }
    }
}

/// Reads one key, only to see whether that is possible.
pub(super) async fn read_first(connection: &Connection, prefix: &str) -> Result<(), StoreError> {
    let page = Page {
        from: prefix.as_bytes(),
        end: &end_of(prefix),
        keys: 1,
        at: 0,
    };
    let read = page.read(connection).await;
    read.map(|_| ()).map_err(Failure::of_query)
}

async fn read_pages(
    connection: &Connection,
    prefix: &str,
    from: &str,
) -> Result<Snapshot, Failure> {
    let end = end_of(from);
    let mut from = from.as_bytes().to_vec();
    let mut keys = PAGE_KEYS;
    let mut at = 0;
    let mut entries = Vec::new();
    loop {
        let page = Page {
            from: &from,
            end: &end,
            keys,
            at,
        };
        let mut answer = match page.read(connection).await {
            Err(Failure::ReplyTooLarge) if keys > 1 => {
                keys = (keys / 4).max(1);
                continue;
            }
            answer => answer?,
        };
        if at == 0 {
            at = answer.header().map_or(0, ResponseHeader::revision);
        }
        let more = answer.more();
        let page = answer.take_kvs();
        let last = page.last().map(|last| last.key().to_vec());
        entries.extend(page.into_iter().filter_map(|kv| entry(kv, prefix)));
        match last {
            Some(last) if more => {
                from = last;
                from.push(0);
            }
            _ => break,
        }
    }
    Ok(Snapshot {
        revision: Revision(at),
        entries,
    })
}

struct Page<'a> {
    from: &'a [u8],
    end: &'a [u8],
    keys: i64,
    /// The revision; 0 for the latest.
    at: i64,
}

impl Page<'_> {
    async fn read(&self, connection: &Connection) -> Result<GetResponse, Failure> {
        let options = GetOptions::new()
            .with_range(self.end)
            .with_limit(self.keys)
            .with_revision(self.at);
        connection
            .call(Repeat::Freely, |member| {
                let options = options.clone();
                async move {
                    let kv = member.client.kv_client();
                    let mut kv = kv.max_decoding_message_size(MAX_REPLY_BYTES);
                    kv.get(self.from, Some(options)).await
                }
            })
            .await
    }
}

/// Where the keys that begin with `prefix` end.
pub(super) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // Text has no byte 255, and a prefix at least its slash.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// An entry without the store's prefix; `None` for keys that are not text, which are not ours.
pub(super) fn entry(kv: KeyValue, prefix: &str) -> Option<Entry> {
    let key = relative(kv.key(), prefix)?;
    let create_revision = Revision(kv.create_revision());
    let mod_revision = Revision(kv.mod_revision());
    let session = (kv.lease() != 0).then_some(SessionId(kv.lease()));
    let (_, value) = kv.into_key_value();
    Some(Entry {
        key,
        value: Bytes::from(value),
        create_revision,
        mod_revision,
        session,
    })
}

/// The key without the store's prefix; `None` for one that is not text.
pub(super) fn relative(key: &[u8], prefix: &str) -> Option<Arc<str>> {
    let key = str::from_utf8(key).ok()?;
    key.strip_prefix(prefix).map(Arc::from)
}

/// Applies `transaction`, which must be within the limits.
pub(super) async fn commit(
    connection: &Connection,
    prefix: &str,
    transaction: &Transaction,
) -> Result<Commit, StoreError> {
    if transaction.guards.iter().any(never_holds) {
        return Ok(Commit::Refused);
    }
    let answer = connection
        .call(Repeat::IfNotDone, |member| {
            let txn = Txn::new()
                .when(compares(prefix, &transaction.guards))
                .and_then(operations(prefix, &transaction.operations));
            async move { member.client.kv_client().txn(txn).await }
        })
        .await
        .map_err(Failure::of_commit)?;
    if answer.succeeded() {
        let revision = answer.header().map_or(0, ResponseHeader::revision);
        Ok(Commit::Applied(Revision(revision)))
    } else {
        Ok(Commit::Refused)
    }
}

/// Nothing is put before revision 1; etcd would take 0 for a key that does not exist.
fn never_holds(guard: &Guard) -> bool {
    match guard {
        Guard::Absent(_) => false,
        Guard::Modified(_, revision) | Guard::Created(_, revision) => revision.value() <= 0,
    }
}

fn compares(prefix: &str, guards: &[Guard]) -> Vec<Compare> {
    let compare = |guard: &Guard| match guard {
        Guard::Absent(key) => {
            Compare::create_revision(format!("{prefix}{key}"), CompareOp::Equal, 0)
        }
        Guard::Modified(key, revision) => {
            Compare::mod_revision(format!("{prefix}{key}"), CompareOp::Equal, revision.value())
        }
        Guard::Created(key, revision) => {
            Compare::create_revision(format!("{prefix}{key}"), CompareOp::Equal, revision.value())
        }
    };
    guards.iter().map(compare).collect()
}

fn operations(prefix: &str, operations: &[Operation]) -> Vec<TxnOp> {
    let operation = |operation: &Operation| match operation {
        Operation::Put {
            key,
            value,
            session,
        } => {
            let options =
                session.map(|session| etcd_client::PutOptions::new().with_lease(session.value()));
            TxnOp::put(format!("{prefix}{key}"), value.to_vec(), options)
        }
        Operation::Delete { key } => TxnOp::delete(format!("{prefix}{key}"), None),
    };
    operations.iter().map(operation).collect()
}
