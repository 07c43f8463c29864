//! `yuxi consume TOPIC`, or several topics by a regular expression: records to stdout.

use clap::builder::NonEmptyStringValueParser;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use yuxi_client::metadata::Topic;
use yuxi_client::offsets::{ListedOffset, list_offsets};
use yuxi_client::protocol::ids::TopicPartition;
use yuxi_client::{ClientConfig, Cluster, Consumer, ConsumerRecord, OffsetSpec, Start};

use crate::failure::{Failure, Outcome};
use crate::format::{self, Format};
use crate::interrupted;
use crate::output::Progress;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The topic to read.
    #[arg(required_unless_present = "include")]
    topic: Option<String>,
    /// Instead of one topic, read all whose whole name matches this regular expression. A
    /// group reads those that come later too; without one, those that there are now are read.
    #[arg(long, value_name = "REGEX", conflicts_with_all = ["topic", "partition"])]
    include: Option<String>,
    /// Where to begin: start, end, an offset, -N before the end, or @TIMESTAMP in ms.
    /// A group begins where it left off unless this is given as start or end.
    #[arg(short, long, value_name = "WHERE", allow_hyphen_values = true)]
    offset: Option<String>,
    /// Read as a member of this group, and commit.
    #[arg(short, long, value_name = "GROUP", value_parser = NonEmptyStringValueParser::new())]
    group: Option<String>,
    /// How to be a member of it: classic, or consumer (KIP-848).
    #[arg(long, value_name = "PROTOCOL", requires = "group")]
    group_protocol: Option<String>,
    /// What to see of transactions: read_committed, or read_uncommitted for open and
    /// aborted ones too. As isolation.level has it, read_committed unless that is set.
    #[arg(long, value_name = "LEVEL")]
    isolation: Option<String>,
    /// Stop after so many records.
    #[arg(short = 'n', long = "count", value_name = "N")]
    count: Option<u64>,
    /// Stop when everything that is there has been read.
    #[arg(short, long)]
    exit_at_end: bool,
    /// What to print for each record; the value and a newline unless given.
    #[arg(short, long, long_help = format::HELP)]
    format: Option<String>,
    /// Read only this partition; may be repeated.
    #[arg(short, long, value_name = "N", conflicts_with = "group")]
    partition: Vec<i32>,
}

/// How long one wait for records lasts before conditions are looked at again.
const POLL: Duration = Duration::from_millis(200);

pub(crate) async fn run(mut config: ClientConfig, args: Args) -> Outcome {
    let format = args
        .format
        .as_deref()
        .map(Format::parse)
        .transpose()?
        .unwrap_or_else(Format::lines);
    if args.count == Some(0) {
        return Ok(());
    }
    if let Some(group) = &args.group {
        config.set("group.id", group)?;
    }
    if let Some(protocol) = &args.group_protocol {
        config.set("group.protocol", protocol)?;
    }
    if let Some(level) = &args.isolation {
        config.set("isolation.level", level)?;
    }
    // A group that is given on the command line is joined; one that is merely set
    // by -X is too, unless partitions are named.
    let as_group = config.group_id.is_some() && args.partition.is_empty();
    let from = args.offset.as_deref().map(Begin::parse).transpose()?;
    if as_group {
        match from {
            None => {}
            Some(Begin::Spec(OffsetSpec::Earliest)) => {
                config.set("auto.offset.reset", "earliest")?;
            }
            Some(Begin::Spec(OffsetSpec::Latest)) => config.set("auto.offset.reset", "latest")?,
            Some(_) => {
                return Err(Failure::Usage(
                    "with a group, -o is start or end; set the group's offsets with: yuxi group seek"
                        .to_owned(),
                ));
            }
        }
    }
    let cluster = Cluster::connect(config).await?;
    let mut consumer = Consumer::new(cluster.clone());
    if as_group {
        match (&args.include, &args.topic) {
            (Some(regex), _) => consumer.subscribe_regex(regex)?,
            (None, Some(topic)) => {
                let topic = existing(&cluster, topic).await?;
                consumer.subscribe([topic.name.clone()])?;
            }
            (None, None) => {}
        }
    } else {
        let partitions = partitions(&cluster, &args).await?;
        let from = from.unwrap_or(Begin::Spec(OffsetSpec::Earliest));
        consumer
            .assign(from.starts(&cluster, partitions).await?)
            .await?;
    }
    let printed = tokio::select! {
        printed = print_records(&mut consumer, &args, &format) => printed,
        () = interrupted() => Err(Failure::Interrupted),
    };
    let closed = consumer.close().await;
    printed?;
    Ok(closed?)
}

async fn existing(cluster: &Cluster, topic: &str) -> Outcome<Arc<Topic>> {
    let create = cluster.config().auto_create_topics;
    Ok(cluster.topic(&topic.into(), create).await?)
}

/// What is read without a group.
async fn partitions(cluster: &Cluster, args: &Args) -> Outcome<Vec<TopicPartition>> {
    let mut topics = Vec::new();
    if let Some(regex) = &args.include {
        for name in cluster.topics_matching(regex).await? {
            topics.push(cluster.topic(&name, false).await?);
        }
        if topics.is_empty() {
            return Err(Failure::Unsuccessful(format!("no topic matches {regex}")));
        }
    } else if let Some(topic) = &args.topic {
        topics.push(existing(cluster, topic).await?);
    }
    let partitions = topics.iter().flat_map(|topic| {
        let indexes = match args.partition.as_slice() {
            [] => topic.partitions.iter().map(|p| p.index).collect(),
            chosen => chosen.to_vec(),
        };
        let of = |index| TopicPartition::new(topic.name.clone(), index);
        indexes.into_iter().map(of).collect::<Vec<_>>()
    });
    Ok(partitions.collect())
}

async fn print_records(consumer: &mut Consumer, args: &Args, format: &Format) -> Outcome {
    let mut progress = Progress::new(!io::stdout().is_terminal());
    let mut left = args.count.unwrap_or(u64::MAX);
    let (mut records_seen, mut bytes_seen) = (0, 0);
    let mut out = Vec::new();
    loop {
        let mut records = consumer.poll(POLL).await?;
        if (records.len() as u64) > left {
            let surplus = records.split_off(left as usize);
            rewind(consumer, &surplus)?;
        }
        left -= records.len() as u64;
        records_seen += records.len() as u64;
        out.clear();
        for record in &records {
            format.write(record, &mut out);
        }
        bytes_seen += out.len() as u64;
        print(&out)?;
        progress.show(records_seen, bytes_seen);
        if left == 0 || (args.exit_at_end && records.is_empty() && consumer.is_at_end()) {
            return Ok(());
        }
    }
}

/// Records beyond the count were handed out but not printed: they are not to be
/// committed as read.
fn rewind(consumer: &mut Consumer, surplus: &[ConsumerRecord]) -> Outcome {
    let mut first: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    for record in surplus {
        let partition = TopicPartition::new(record.topic.clone(), record.partition);
        first.entry(partition).or_insert(record.offset);
    }
    for (partition, offset) in first {
        consumer.seek(&partition, Start::Offset(offset))?;
    }
    Ok(())
}

fn print(out: &[u8]) -> Outcome {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(out)
        .and_then(|()| stdout.flush())
        .map_err(Failure::stdout)
}

/// Where `-o` says to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    Offset(i64),
    BeforeEnd(i64),
    Spec(OffsetSpec),
}

impl Begin {
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let wrong = || {
            Failure::Usage(format!(
                "-o {text}: expected start, end, an offset, -N or @TIMESTAMP_MS"
            ))
        };
        Ok(match text {
            "start" | "beginning" | "earliest" => Self::Spec(OffsetSpec::Earliest),
            "end" | "latest" => Self::Spec(OffsetSpec::Latest),
            _ => {
                if let Some(timestamp) = text.strip_prefix('@') {
                    let timestamp = timestamp
                        .parse()
                        .ok()
                        .filter(|ms| *ms >= 0)
                        .ok_or_else(wrong)?;
                    Self::Spec(OffsetSpec::At(timestamp))
                } else if let Some(count) = text.strip_prefix('-') {
                    Self::BeforeEnd(count.parse().ok().filter(|n| *n >= 0).ok_or_else(wrong)?)
                } else {
                    Self::Offset(text.parse().ok().filter(|n| *n >= 0).ok_or_else(wrong)?)
                }
            }
        })
    }

    async fn starts(
        self,
        cluster: &Cluster,
        partitions: Vec<TopicPartition>,
    ) -> Outcome<Vec<(TopicPartition, Start)>> {
        let start = match self {
            Self::Offset(offset) => Start::Offset(offset),
            Self::Spec(spec) => Start::Spec(spec),
            Self::BeforeEnd(count) => {
                let read_committed = cluster.config().read_committed;
                let ask = |spec| partitions.iter().map(|p| (p.clone(), spec)).collect();
                let first =
                    list_offsets(cluster, &ask(OffsetSpec::Earliest), read_committed).await?;
                let last = list_offsets(cluster, &ask(OffsetSpec::Latest), read_committed).await?;
                let offset = |partition: &TopicPartition| {
                    let of = |listed: &BTreeMap<TopicPartition, ListedOffset>| {
                        listed
                            .get(partition)
                            .and_then(|found| found.offset)
                            .unwrap_or(0)
                    };
                    Start::Offset((of(&last) - count).max(of(&first)))
                };
                return Ok(partitions.iter().map(|p| (p.clone(), offset(p))).collect());
            }
        };
        Ok(partitions
            .into_iter()
            .map(|partition| (partition, start))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_where_to_begin_is_understood() {
        for (text, expected) in [
            ("start", Begin::Spec(OffsetSpec::Earliest)),
            ("end", Begin::Spec(OffsetSpec::Latest)),
            ("17", Begin::Offset(17)),
            ("-5", Begin::BeforeEnd(5)),
            (
                "@1700000000000",
                Begin::Spec(OffsetSpec::At(1_700_000_000_000)),
            ),
        ] {
            assert_eq!(Begin::parse(text).expect(text), expected);
        }
        for bad in ["", "x", "--5", "@", "@x", "1.5"] {
            assert!(Begin::parse(bad).is_err(), "{bad}");
        }
    }
}
