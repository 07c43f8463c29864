//! `yuxi produce TOPIC`: lines from stdin, each a record.
//!
//! A thread reads stdin in blocks of whole lines; the lines are copied from the
//! block straight into batches. A line is the bytes up to a newline, whatever
//! they are; the last one may lack it. With a `transactional.id`, readers of committed
//! records see the whole input at once, or so many lines at a time.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use yuxi_client::producer::Queued;
use yuxi_client::{
    ClientConfig, Error, Producer, RecordRef, Transaction, TransactionError, TransactionalProducer,
};

use crate::failure::{Failure, Outcome};
use crate::format::unescape_one;
use crate::interrupted;
use crate::output::Progress;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The topic to send to.
    topic: String,
    /// Split each line into key and value at the first of these, as in -K:
    #[arg(short = 'K', long = "key-delimiter", value_name = "DELIMITER")]
    key_delimiter: Option<String>,
    /// A header for every record; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// Compress batches: none, gzip, snappy, lz4 or zstd.
    #[arg(short = 'z', long = "compression", value_name = "CODEC")]
    compression: Option<String>,
    /// Acknowledged by: 0 nobody, 1 the leader, all in-sync replicas.
    #[arg(long, value_name = "0|1|all")]
    acks: Option<String>,
    /// Send to this partition.
    #[arg(short, long, value_name = "N")]
    partition: Option<i32>,
    /// Send the lines in a transaction, under this name: whoever reads only what is
    /// committed sees all of them or none.
    #[arg(long, value_name = "ID")]
    transactional_id: Option<String>,
    /// Commit after so many lines, instead of once at the end of the input.
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(u64).range(1..))]
    commit_every: Option<u64>,
    /// Send empty values as null, which deletes the key in a compacted topic.
    #[arg(short = 'Z', long = "null")]
    empty_is_null: bool,
}

pub(crate) async fn run(mut config: ClientConfig, args: Args) -> Outcome {
    if let Some(codec) = &args.compression {
        config.set("compression.type", codec)?;
    }
    if let Some(acks) = &args.acks {
        config.set("acks", acks)?;
    }
    if let Some(id) = &args.transactional_id {
        config.set("transactional.id", id)?;
    }
    if config.transactional_id.is_some() {
        return run_transactions(config, &args).await;
    }
    if args.commit_every.is_some() {
        return Err(Failure::Usage(
            "--commit-every is for transactions; name one with --transactional-id".to_owned(),
        ));
    }
    let line_limit = config.message_max_bytes;
    let close_limit = config.delivery_timeout;
    let lines = Lines::new(&args)?;
    let producer = Producer::connect(config).await?;
    // A wrong topic is told before anything is read.
    producer.ready(&lines.topic, 0).await?;
    let mut blocks = read_blocks(line_limit);
    let mut input = Input::default();
    let fed = tokio::select! {
        fed = feed(&lines, &producer, &mut blocks, &mut input) => fed,
        () = interrupted() => Err(Failure::Interrupted),
    };
    let totals = producer.clone();
    producer.close(close_limit).await;
    let totals = totals.totals();
    let failed = totals.failed + input.refused;
    if failed > 0 {
        let why = input
            .first_refusal
            .or(totals.first_failure)
            .map_or_else(String::new, |error| format!(": {error}"));
        let all = totals.delivered + failed;
        return Err(Failure::Unsuccessful(format!(
            "{failed} of {all} records were not delivered{why}"
        )));
    }
    fed
}

/// What has been read, and what could not even be queued.
#[derive(Default)]
struct Input {
    records: u64,
    bytes: u64,
    refused: u64,
    first_refusal: Option<Error>,
}

/// What to make of a line.
struct Lines {
    topic: Arc<str>,
    partition: Option<i32>,
    delimiter: Option<Vec<u8>>,
    headers: Vec<(String, Option<String>)>,
    empty_is_null: bool,
}

impl Lines {
    fn new(args: &Args) -> Outcome<Self> {
        let headers = args
            .headers
            .iter()
            .map(|header| match header.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (header.clone(), None),
            })
            .collect();
        let delimiter = args.key_delimiter.as_deref().map(unescape).transpose()?;
        if delimiter.as_ref().is_some_and(Vec::is_empty) {
            return Err(Failure::Usage("-K needs a delimiter, as in -K:".to_owned()));
        }
        Ok(Self {
            topic: args.topic.as_str().into(),
            partition: args.partition,
            delimiter,
            headers,
            empty_is_null: args.empty_is_null,
        })
    }

    fn record<'a>(
        &self,
        line: &'a [u8],
        headers: &'a [(&'a str, Option<&'a [u8]>)],
    ) -> RecordRef<'a> {
        let (key, value) = self.split(line);
        RecordRef {
            partition: self.partition,
            key,
            value: (!(value.is_empty() && self.empty_is_null)).then_some(value),
            headers,
            timestamp_ms: None,
        }
    }

    fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        let headers = self.headers.iter();
        headers
            .map(|(name, value)| (name.as_str(), value.as_ref().map(String::as_bytes)))
            .collect()
    }

    fn split<'a>(&self, line: &'a [u8]) -> (Option<&'a [u8]>, &'a [u8]) {
        let Some(delimiter) = &self.delimiter else {
            return (None, line);
        };
        match memchr::memmem::find(line, delimiter) {
            Some(at) => (Some(&line[..at]), &line[at + delimiter.len()..]),
            None => (None, line),
        }
    }
}

async fn feed(
    template: &Lines,
    producer: &Producer,
    blocks: &mut mpsc::Receiver<Outcome<Bytes>>,
    input: &mut Input,
) -> Outcome {
    let headers = template.headers();
    let mut progress = Progress::new(true);
    while let Some(block) = blocks.recv().await {
        let block = block?;
        for line in lines(&block) {
            let record = template.record(line, &headers);
            match send(producer, &template.topic, &record, line.len()).await {
                Ok(()) => {}
                Err(error @ Error::RecordTooLarge { .. }) => {
                    input.refused += 1;
                    input.first_refusal.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            }
            input.records += 1;
        }
        input.bytes += block.len() as u64;
        progress.show(input.records, input.bytes);
    }
    Ok(())
}

/// Queues one record, waiting for room if need be.
async fn send(
    producer: &Producer,
    topic: &Arc<str>,
    record: &RecordRef<'_>,
    size: usize,
) -> Result<(), Error> {
    loop {
        match producer.try_enqueue(topic, record)? {
            Queued::Yes(_) => return Ok(()),
            Queued::NotYet => producer.ready(topic, size).await?,
        }
    }
}

/// As [`run`], in transactions. What is not committed when it fails or is interrupted is
/// aborted.
async fn run_transactions(config: ClientConfig, args: &Args) -> Outcome {
    let line_limit = config.message_max_bytes;
    let close_limit = config.max_block;
    let lines = Lines::new(args)?;
    let mut producer = TransactionalProducer::connect(config).await?;
    let mut blocks = read_blocks(line_limit);
    let most = args.commit_every.unwrap_or(u64::MAX);
    let fed = tokio::select! {
        fed = feed_transactions(&lines, &mut producer, &mut blocks, most) => fed,
        () = interrupted() => Err(Failure::Interrupted),
    };
    producer.close(close_limit).await;
    fed
}

async fn feed_transactions(
    template: &Lines,
    producer: &mut TransactionalProducer,
    blocks: &mut mpsc::Receiver<Outcome<Bytes>>,
    most: u64,
) -> Outcome {
    let headers = template.headers();
    let mut source = LineSource::new(blocks);
    let mut committed = 0;
    let failed = |committed: u64, error: TransactionError| {
        Failure::Unsuccessful(format!("{committed} lines were committed, then: {error}"))
    };
    let mut first = source.next().await?;
    while let Some(line) = first {
        let began = producer.begin().await;
        let transaction = began.map_err(|error| failed(committed, error))?;
        let mut count = 0;
        let mut line = Some(line);
        while let Some(current) = line {
            let record = template.record(&current, &headers);
            let sent = take_part(&transaction, &template.topic, &record, current.len()).await;
            sent.map_err(|error| failed(committed, error))?;
            count += 1;
            if count == most {
                break;
            }
            line = source.next().await?;
        }
        let ended = transaction.commit().await;
        ended.map_err(|error| failed(committed, error))?;
        committed += count;
        first = source.next().await?;
    }
    Ok(())
}

async fn take_part(
    transaction: &Transaction<'_>,
    topic: &Arc<str>,
    record: &RecordRef<'_>,
    size: usize,
) -> Result<(), TransactionError> {
    loop {
        match transaction.try_enqueue(topic, record)? {
            Queued::Yes(_) => return Ok(()),
            Queued::NotYet => transaction.ready(topic, size).await?,
        }
    }
}

/// Lines one at a time, out of the blocks in which they come.
struct LineSource<'a> {
    blocks: &'a mut mpsc::Receiver<Outcome<Bytes>>,
    rest: Bytes,
    progress: Progress,
    records: u64,
    bytes: u64,
}

impl<'a> LineSource<'a> {
    fn new(blocks: &'a mut mpsc::Receiver<Outcome<Bytes>>) -> Self {
        Self {
            blocks,
            rest: Bytes::new(),
            progress: Progress::new(true),
            records: 0,
            bytes: 0,
        }
    }

    async fn next(&mut self) -> Outcome<Option<Bytes>> {
        if self.rest.is_empty() {
            match self.blocks.recv().await {
                Some(block) => self.rest = block?,
                None => return Ok(None),
            }
            self.bytes += self.rest.len() as u64;
            self.progress.show(self.records, self.bytes);
        }
        self.records += 1;
        let Some(at) = memchr::memchr(b'\n', &self.rest) else {
            return Ok(Some(std::mem::take(&mut self.rest)));
        };
        let mut line = self.rest.split_to(at + 1);
        line.truncate(at);
        Ok(Some(line))
    }
}

/// The lines of a block, without their newlines; the last may have none.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = block;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = match memchr::memchr(b'\n', rest) {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, &[][..]),
        };
        rest = after;
        Some(line)
    })
}

/// Blocks that may wait between reader and sender.
const BLOCKS_AHEAD: usize = 4;
const BLOCK_BYTES: usize = 256 << 10;

/// Reads stdin on a thread of its own: a terminal's read cannot be cancelled.
fn read_blocks(line_limit: usize) -> mpsc::Receiver<Outcome<Bytes>> {
    let (blocks, receiver) = mpsc::channel(BLOCKS_AHEAD);
    std::thread::spawn(move || {
        let outcome = split_into_blocks(std::io::stdin().lock(), line_limit, |block| {
            blocks.blocking_send(Ok(block)).is_ok()
        });
        if let Err(failure) = outcome {
            let _ = blocks.blocking_send(Err(failure));
        }
    });
    receiver
}

/// Gives `take` blocks of whole lines, as soon as they are there, until the input
/// ends or `take` wants no more.
fn split_into_blocks(
    mut input: impl Read,
    line_limit: usize,
    mut take: impl FnMut(Bytes) -> bool,
) -> Outcome {
    let mut pending = Vec::new();
    loop {
        let start = pending.len();
        pending.resize(start + BLOCK_BYTES, 0);
        let read = match input.read(&mut pending[start..]) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                pending.truncate(start);
                continue;
            }
            Err(source) => {
                return Err(Failure::Io {
                    what: "reading stdin".to_owned(),
                    source,
                });
            }
        };
        pending.truncate(start + read);
        if read == 0 {
            if !pending.is_empty() {
                take(Bytes::from(pending));
            }
            return Ok(());
        }
        match memchr::memrchr(b'\n', &pending[start..]) {
            Some(at) => {
                let rest = pending.split_off(start + at + 1);
                if !take(Bytes::from(std::mem::replace(&mut pending, rest))) {
                    return Ok(());
                }
            }
            // Far beyond any record that could be sent: do not collect it all first.
            None if pending.len() > line_limit.saturating_mul(2) => {
                return Err(Failure::Unsuccessful(format!(
                    "a line is longer than {} bytes; message.max.bytes is {line_limit}",
                    pending.len()
                )));
            }
            None => {}
        }
    }
}

/// `\t`, `\n`, `\xHH` and the like in a delimiter.
fn unescape(text: &str) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = match first {
            b'\\' => unescape_one(after)
                .ok_or_else(|| Failure::Usage(format!("'{text}' has an incomplete escape")))?,
            plain => (plain, after),
        };
        bytes.push(byte);
        rest = after;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(input: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        split_into_blocks(input, 1000, |block| {
            found.extend(lines(&block).map(<[u8]>::to_vec));
            true
        })
        .expect("readable");
        found
    }

    #[test]
    fn empty_lines_binary_bytes_and_a_last_line_without_newline_are_records() {
        assert_eq!(split(b""), Vec::<Vec<u8>>::new());
        assert_eq!(split(b"\n"), [b"".to_vec()]);
        assert_eq!(
            split(b"a\n\nb"),
            [b"a".to_vec(), b"".to_vec(), b"b".to_vec()]
        );
        assert_eq!(
            split(b"\xff\0\r\nz\n"),
            [b"\xff\0\r".to_vec(), b"z".to_vec()]
        );
    }

    #[test]
    fn a_line_that_spans_reads_stays_whole() {
        struct ByteWise<'a>(&'a [u8]);
        impl Read for ByteWise<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let Some((first, rest)) = self.0.split_first() else {
                    return Ok(0);
                };
                buffer[0] = *first;
                self.0 = rest;
                Ok(1)
            }
        }
        let mut found = Vec::new();
        split_into_blocks(ByteWise(b"one\ntwo\nthree"), 1000, |block| {
            found.extend(lines(&block).map(<[u8]>::to_vec));
            true
        })
        .expect("readable");
        assert_eq!(found, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
    }

    #[test]
    fn a_line_beyond_any_record_is_refused_before_it_is_all_read() {
        let outcome = split_into_blocks(std::io::repeat(b'x'), 1000, |_| true);
        assert!(
            outcome
                .expect_err("too long")
                .to_string()
                .contains("message.max.bytes is 1000")
        );
    }

    #[test]
    fn escapes_in_a_delimiter_are_understood() {
        assert_eq!(unescape(r"\t\x01|").expect("valid"), b"\t\x01|");
        assert!(unescape(r"\x1").is_err());
    }
}
