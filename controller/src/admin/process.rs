//! What the operating system knows about this process, under the names that every
//! Prometheus client gives it. Where there is no /proc, nothing is said.

use std::fs;

use super::exposition::{Kind, Metric, Page};

const BUILD: Metric = Metric {
    name: "yuxi_build_info",
    kind: Kind::Gauge,
    help: "1, with the version of Yuxi.",
};
const CPU: Metric = Metric {
    name: "process_cpu_seconds_total",
    kind: Kind::Counter,
    help: "User and system CPU time that the process has spent.",
};
const RESIDENT: Metric = Metric {
    name: "process_resident_memory_bytes",
    kind: Kind::Gauge,
    help: "Resident memory, mapped segments in the page cache included.",
};
const ANONYMOUS: Metric = Metric {
    name: "yuxi_process_anonymous_memory_bytes",
    kind: Kind::Gauge,
    help: "Resident memory that is the process's own, without mapped files.",
};
const OPEN_FDS: Metric = Metric {
    name: "process_open_fds",
    kind: Kind::Gauge,
    help: "Open file descriptors.",
};
const MAX_FDS: Metric = Metric {
    name: "process_max_fds",
    kind: Kind::Gauge,
    help: "How many file descriptors may be open.",
};
const THREADS: Metric = Metric {
    name: "process_threads",
    kind: Kind::Gauge,
    help: "Threads of the process.",
};
const START_TIME: Metric = Metric {
    name: "process_start_time_seconds",
    kind: Kind::Gauge,
    help: "When the process was started, in seconds since the Unix epoch.",
};

/// Writes what is known of this process.
pub fn render(page: &mut Page) {
    page.family(&BUILD);
    page.sample(&BUILD, "", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    if let Some(stat) = fs::read_to_string("/proc/self/stat")
        .ok()
        .as_deref()
        .and_then(Stat::parse)
    {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        page.single(&CPU, stat.cpu_ticks as f64 / ticks);
        page.single(&THREADS, stat.threads);
        if let Some(booted) = fs::read_to_string("/proc/stat")
            .ok()
            .as_deref()
            .and_then(boot_time)
        {
            page.single(&START_TIME, booted as f64 + stat.start_ticks as f64 / ticks);
        }
    }
    if let Some((resident, shared)) = fs::read_to_string("/proc/self/statm")
        .ok()
        .as_deref()
        .and_then(resident_and_shared)
    {
        let page_bytes = rustix::param::page_size() as u64;
        page.single(&RESIDENT, resident * page_bytes);
        page.single(&ANONYMOUS, resident.saturating_sub(shared) * page_bytes);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The directory being read is one of them.
        page.single(&OPEN_FDS, open.count().saturating_sub(1));
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(most) = limit {
        page.single(&MAX_FDS, most);
    }
}

/// What is used of /proc/self/stat (proc(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the command in parentheses and may hold anything, so the
        // fields are counted from its end: state is the first there and the third in all.
        let (_, after) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
        })
    }
}

fn boot_time(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

fn resident_and_shared(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.split_whitespace().skip(1);
    let mut next = || fields.next()?.parse().ok();
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_process_are_found_behind_an_odd_command_name() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 30 12 0 0 20 0 5 0 9000 1 2";
        let expected = Stat {
            cpu_ticks: 42,
            threads: 5,
            start_ticks: 9000,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a"), None);
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn what_is_not_as_expected_says_nothing() {
        assert_eq!(boot_time("cpu 1 2\nbtime 17\n"), Some(17));
        assert_eq!(boot_time("cpu 1 2"), None);
        assert_eq!(resident_and_shared("10 7 3 0"), Some((7, 3)));
        assert_eq!(resident_and_shared("10"), None);
    }
}
