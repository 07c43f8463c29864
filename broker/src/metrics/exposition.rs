//! Prometheus' text format, version 0.0.4: a family has its help and type once and then
//! its samples.

use std::fmt::{self, Display, Write};

/// One family of samples: declared once, with what it means.
#[derive(Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    Summary,
}

/// The text of one scrape.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// Begins a family.
    pub(super) fn family(&mut self, metric: &Metric) {
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
    pub(super) fn sample(
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
    pub(super) fn single(&mut self, metric: &Metric, value: impl Display) {
        self.family(metric);
        self.sample(metric, "", &[], value);
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn write(&mut self, arguments: fmt::Arguments<'_>) {
        self.text
            .write_fmt(arguments)
            .expect("writing to a String does not fail");
    }
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
