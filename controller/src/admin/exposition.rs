//! Prometheus' text format, version 0.0.4: a family has its help and type once and then
//! its samples.

use std::{
    fmt::{self, Display, Write},
    time::{Duration, Instant},
};

use super::histogram::{BOUNDS, Histogram, quantile};

/// The quantiles that Kafka reports of a timing.
const QUANTILES: [(f64, &str); 6] = [
    (0.5, "0.50"),
    (0.75, "0.75"),
    (0.95, "0.95"),
    (0.98, "0.98"),
    (0.99, "0.99"),
    (0.999, "0.999"),
];

/// One family of samples: declared once, with what it means.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What its samples are.
    pub kind: Kind,
    /// What it tells, for people.
    pub help: &'static str,
}

/// What the samples of a family are.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It rises and falls.
    Gauge,
    /// Counts by upper bounds.
    Histogram,
    /// Quantiles.
    Summary,
}

/// The text of one scrape.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// Begins a family.
    pub fn family(&mut self, metric: &Metric) {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
        };
        self.write(format_args!(
            "# HELP {0} {1}\n# TYPE {0} {kind}\n",
            metric.name,
            metric.help.trim_start(),
        ));
    }

    /// A sample of the family begun last; `suffix` is `_count` and the like.
    pub fn sample(
        &mut self,
        metric: &Metric,
        suffix: &str,
        labels: &[(&str, &str)],
        value: impl Display,
    ) {
        self.write(format_args!("{}{suffix}", metric.name));
        for (at, (name, value)) in labels.iter().enumerate() {
            let separator = if at == 0 { '{' } else { ',' };
            self.write(format_args!("{separator}{name}=\"{}\"", Escaped(value)));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.write(format_args!(" {value}\n"));
    }

    /// A family with one sample without labels.
    pub fn single(&mut self, metric: &Metric, value: impl Display) {
        self.family(metric);
        self.sample(metric, "", &[], value);
    }

    /// The samples of a timing in milliseconds, as Kafka reports it; its quantiles are of the
    /// last minutes.
    pub fn summary(
        &mut self,
        metric: &Metric,
        labels: &[(&str, &str)],
        timing: &Histogram,
        now: Instant,
    ) {
        let counts = timing.counts();
        let recent = timing.recent(&counts, now);
        for (share, label) in QUANTILES {
            if let Some(took) = quantile(&recent, share) {
                let labels: Vec<_> = labels
                    .iter()
                    .copied()
                    .chain([("quantile", label)])
                    .collect();
                self.sample(metric, "", &labels, millis(took));
            }
        }
        self.sample(metric, "_sum", labels, millis(timing.sum()));
        self.sample(metric, "_count", labels, counts.iter().sum::<u64>());
    }

    /// The samples of a timing in seconds, as Prometheus' own clients report it; none of
    /// what never happened.
    pub fn buckets(&mut self, metric: &Metric, label: (&str, &str), timing: &Histogram) {
        let counts = timing.counts();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return;
        }
        let mut reached = 0;
        for ((_, bound), count) in BOUNDS.iter().zip(&counts) {
            reached += count;
            self.sample(metric, "_bucket", &[label, ("le", bound)], reached);
        }
        self.sample(metric, "_bucket", &[label, ("le", "+Inf")], total);
        self.sample(metric, "_sum", &[label], timing.sum().as_secs_f64());
        self.sample(metric, "_count", &[label], total);
    }

    /// The whole page.
    pub fn into_text(self) -> String {
        self.text
    }

    fn write(&mut self, arguments: fmt::Arguments<'_>) {
        self.text
            .write_fmt(arguments)
            .expect("writing to a String does not fail");
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A label's value: backslash, quote and line feed are escaped.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_its_help_once_and_its_labels_are_escaped() {
        let metric = Metric {
            name: "a_total",
            kind: Kind::Counter,
            help: " What it counts.",
        };
        let mut page = Page::default();
        page.family(&metric);
        page.sample(&metric, "", &[], 1);
        page.sample(&metric, "_x", &[("b", "\"\\\n"), ("c", "d")], 0.5);
        assert_eq!(
            page.into_text(),
            "# HELP a_total What it counts.\n# TYPE a_total counter\na_total 1\n\
             a_total_x{b=\"\\\"\\\\\\n\",c=\"d\"} 0.5\n"
        );
    }
}
