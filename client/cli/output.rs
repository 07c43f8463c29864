//! Printing: tables and JSON on stdout, progress on a terminal's stderr.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::Value;

use crate::failure::{Failure, Outcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Aligned columns.
    Table,
    /// One JSON document.
    Json,
}

/// Rows under headings. Numbers are aligned to the right.
#[derive(Debug)]
pub(crate) struct Table {
    headings: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Table {
    pub(crate) fn new(headings: &'static [&'static str]) -> Self {
        Self {
            headings,
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<Value>) {
        assert_eq!(
            cells.len(),
            self.headings.len(),
            "a row has a cell for every heading"
        );
        self.rows.push(cells);
    }

    /// Prints the rows: as an array of objects in JSON.
    pub(crate) fn print(&self, format: OutputFormat) -> Outcome {
        match format {
            OutputFormat::Table => line(self.text().trim_end_matches('\n')),
            OutputFormat::Json => print_json(&self.json()),
        }
    }

    pub(crate) fn json(&self) -> Value {
        let object = |row: &Vec<Value>| {
            let fields = self.headings.iter().zip(row);
            Value::Object(
                fields
                    .map(|(name, cell)| {
                        (name.to_lowercase().replace([' ', '-'], "_"), cell.clone())
                    })
                    .collect(),
            )
        };
        Value::Array(self.rows.iter().map(object).collect())
    }

    fn text(&self) -> String {
        // Writing to a String cannot fail.
        use std::fmt::Write as _;
        let texts: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(cell_text).collect())
            .collect();
        let width = |column: usize| {
            let cells = texts.iter().map(|row| row[column].chars().count());
            cells
                .chain([self.headings[column].chars().count()])
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let numeric: Vec<bool> = (0..self.headings.len())
            .map(|column| {
                !self.rows.is_empty()
                    && self
                        .rows
                        .iter()
                        .all(|row| row[column].is_number() || row[column].is_null())
            })
            .collect();
        let mut text = String::new();
        let headings: Vec<String> = self.headings.iter().map(|&h| h.to_owned()).collect();
        for row in std::iter::once(&headings).chain(&texts) {
            let mut out = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                if column > 0 {
                    out.push_str("  ");
                }
                if numeric[column] {
                    let _ = write!(out, "{cell:>width$}");
                } else {
                    let _ = write!(out, "{cell:<width$}");
                }
            }
            text.push_str(out.trim_end());
            text.push('\n');
        }
        text
    }
}

fn cell_text(cell: &Value) -> String {
    match cell {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell_text).collect::<Vec<_>>().join(","),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => cell.to_string(),
    }
}

/// Prints one line to stdout.
pub(crate) fn line(text: &str) -> Outcome {
    print_text(&format!("{text}\n"))
}

/// Prints text to stdout as it is.
pub(crate) fn print_text(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(Failure::stdout)
}

pub(crate) fn print_json(value: &Value) -> Outcome {
    line(&format!("{value:#}"))
}

/// A line on stderr that is written over, when stderr is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    shown: bool,
    on: bool,
    started: Instant,
    last: Instant,
}

impl Progress {
    const INTERVAL: Duration = Duration::from_millis(200);

    pub(crate) fn new(wanted: bool) -> Self {
        let now = Instant::now();
        Self {
            shown: false,
            on: wanted && io::stderr().is_terminal(),
            started: now,
            last: now,
        }
    }

    /// Shows how far things are, if it is time to.
    pub(crate) fn show(&mut self, records: u64, bytes: u64) {
        if !self.on || self.last.elapsed() < Self::INTERVAL {
            return;
        }
        self.last = Instant::now();
        self.shown = true;
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = bytes as f64 / seconds / 1e6;
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{records} records, {:.1} MB, {rate:.1} MB/s",
            bytes as f64 / 1e6
        );
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_aligns_numbers_right_and_prints_json_by_heading() {
        let mut table = Table::new(&["NAME", "IN-SYNC"]);
        table.row(vec![json!("a"), json!(5)]);
        table.row(vec![json!("long"), json!(12345)]);
        assert_eq!(
            table.text(),
            "NAME  IN-SYNC\na           5\nlong    12345\n"
        );
        assert_eq!(
            table.json(),
            json!([{"name": "a", "in_sync": 5}, {"name": "long", "in_sync": 12345}])
        );
    }
}
