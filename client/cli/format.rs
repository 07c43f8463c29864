//! The `-f` format of `yuxi consume`, as kcat has it.

use std::io::Write;

use yuxi_client::ConsumerRecord;

use crate::failure::{Failure, Outcome};

/// What the escapes of a format mean, for the help text.
pub(crate) const HELP: &str = "\
%t topic  %p partition  %o offset  %T timestamp in ms
%k key  %K its length   %v or %s value  %V or %S its length (-1: null)
%h headers as name=value,…   %% a percent sign   \\n \\r \\t \\xHH";

/// A parsed format: what to print for each record.
#[derive(Debug)]
pub(crate) struct Format(Vec<Part>);

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Timestamp,
    Key,
    KeyLength,
    Value,
    ValueLength,
    Headers,
}

impl Format {
    pub(crate) fn parse(text: &str) -> Outcome<Self> {
        let mut parts = Vec::new();
        let mut plain = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            rest = after;
            match first {
                b'%' => {
                    let (&letter, after) =
                        rest.split_first().ok_or_else(|| wrong(text, "ends in %"))?;
                    rest = after;
                    let part = match letter {
                        b'%' => {
                            plain.push(b'%');
                            continue;
                        }
                        b't' => Part::Topic,
                        b'p' => Part::Partition,
                        b'o' => Part::Offset,
                        b'T' => Part::Timestamp,
                        b'k' => Part::Key,
                        b'K' => Part::KeyLength,
                        b'v' | b's' => Part::Value,
                        b'V' | b'S' => Part::ValueLength,
                        b'h' => Part::Headers,
                        other => {
                            let letter = char::from(other);
                            return Err(wrong(
                                text,
                                &format!("has %{letter}, which means nothing"),
                            ));
                        }
                    };
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(part);
                }
                b'\\' => {
                    let (byte, after) =
                        unescape_one(rest).ok_or_else(|| wrong(text, "has a broken escape"))?;
                    plain.push(byte);
                    rest = after;
                }
                byte => plain.push(byte),
            }
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// Value and newline.
    pub(crate) fn lines() -> Self {
        Self(vec![Part::Value, Part::Text(b"\n".to_vec())])
    }

    pub(crate) fn write(&self, record: &ConsumerRecord, out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Topic => out.extend_from_slice(record.topic.as_bytes()),
                Part::Partition => number(out, i64::from(record.partition)),
                Part::Offset => number(out, record.offset),
                Part::Timestamp => number(out, record.timestamp_ms),
                Part::Key => out.extend_from_slice(record.key.as_deref().unwrap_or_default()),
                Part::KeyLength => number(out, length(record.key.as_deref())),
                Part::Value => out.extend_from_slice(record.value.as_deref().unwrap_or_default()),
                Part::ValueLength => number(out, length(record.value.as_deref())),
                Part::Headers => headers(record, out),
            }
        }
    }
}

/// The byte that stands behind a backslash, and what follows it.
pub(crate) fn unescape_one(rest: &[u8]) -> Option<(u8, &[u8])> {
    let (&letter, after) = rest.split_first()?;
    Some(match letter {
        b'n' => (b'\n', after),
        b'r' => (b'\r', after),
        b't' => (b'\t', after),
        b'0' => (0, after),
        b'x' => {
            let (digits, after) = after.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            (u8::from_str_radix(digits, 16).ok()?, after)
        }
        other => (other, after),
    })
}

fn wrong(text: &str, why: &str) -> Failure {
    Failure::Usage(format!("the format '{text}' {why}; it may have:\n{HELP}"))
}

fn number(out: &mut Vec<u8>, number: i64) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{number}");
}

fn length(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| bytes.len() as i64)
}

fn headers(record: &ConsumerRecord, out: &mut Vec<u8>) {
    for (at, header) in record.headers.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(header.key.as_bytes());
        out.push(b'=');
        out.extend_from_slice(header.value.as_deref().unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yuxi_client::consumer::{RecordHeader, TimestampType};

    #[test]
    fn every_escape_prints_its_part_of_the_record() {
        let record = ConsumerRecord {
            topic: "t".into(),
            partition: 3,
            offset: 42,
            timestamp_ms: 17,
            timestamp_type: TimestampType::CreateTime,
            key: Some("key".into()),
            value: None,
            headers: vec![
                RecordHeader {
                    key: "a".into(),
                    value: Some("1".into()),
                },
                RecordHeader {
                    key: "b".into(),
                    value: None,
                },
            ],
        };
        let format = Format::parse(r"%t %p %o %T %k/%K [%v]%S %h 100%%\x21\n").expect("valid");
        let mut out = Vec::new();
        format.write(&record, &mut out);
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "t 3 42 17 key/3 []-1 a=1,b= 100%!\n"
        );
    }

    #[test]
    fn an_unknown_escape_is_refused_with_the_list() {
        for bad in ["%q", "%", r"\x1"] {
            let failure = Format::parse(bad).expect_err("not a format");
            assert!(failure.to_string().contains("%t topic"), "{failure}");
        }
    }
}
