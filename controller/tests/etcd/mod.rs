//! Real etcd processes for tests: started on free loopback ports with their data in a
//! temporary directory, and gone when the test process is, however that ends.
//!
//! A module of whatever test includes it with `#[path]`; it needs `std` and `tempfile`. Each
//! etcd runs under a shell that holds the reading end of a pipe from the test process
//! and kills it by its pid when the pipe closes.

#![allow(dead_code, unreachable_pub)] // each test that includes this uses a part of it

use std::{
    fs,
    hash::{BuildHasher as _, RandomState},
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const START_DEADLINE: Duration = Duration::from_mins(1);

/// A free port may be taken by somebody else before etcd binds it.
const START_ATTEMPTS: usize = 5;

/// Waits for the pipe to close, then kills what it started.
const WATCHDOG: &str = r#"
log=$1; shift
"$@" </dev/null >>"$log" 2>&1 &
pid=$!
echo "$pid"
read -r _
kill -KILL "$pid"
wait "$pid"
"#;

/// One member of an etcd.
pub struct Etcd {
    name: String,
    directory: tempfile::TempDir,
    scheme: &'static str,
    client_port: u16,
    arguments: Vec<String>,
    process: Option<Process>,
}

struct Process {
    watchdog: Child,
    pid: u32,
}

/// The etcd that all tests of this process share, each under a prefix of its own.
pub fn shared() -> &'static Etcd {
    static SHARED: OnceLock<Etcd> = OnceLock::new();
    SHARED.get_or_init(|| Etcd::start(&[]))
}

/// A prefix that no other test of this process uses.
pub fn new_prefix() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("/test/{}/", COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Etcd {
    /// Starts an etcd of one member with more `arguments`, and waits until it serves.
    pub fn start(arguments: &[&str]) -> Self {
        let mut members = start_members(1, "http", arguments);
        members.remove(0)
    }

    /// As [`Etcd::start`], with clients over TLS.
    pub fn start_with_tls(arguments: &[&str]) -> Self {
        let mut members = start_members(1, "https", arguments);
        members.remove(0)
    }

    /// Starts the members of one etcd.
    pub fn cluster(members: usize) -> Vec<Self> {
        start_members(members, "http", &[])
    }

    /// Where clients reach this member.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.client_port)
    }

    /// Kills the process, as a crash would.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the process again, on the same port and data, and waits until it serves.
    pub fn restart(&mut self) {
        self.kill();
        let written = fs::metadata(self.log()).map_or(0, |log| log.len());
        self.spawn();
        assert!(
            self.serves(written),
            "etcd did not start again:\n{}",
            self.log_text()
        );
    }

    /// As [`Etcd::restart`], having lost all data.
    pub fn restart_empty(&mut self) {
        self.kill();
        fs::remove_dir_all(self.data()).expect("the data directory of etcd");
        self.restart();
    }

    /// Stops the process where it stands (SIGSTOP): connections stay, nothing answers.
    pub fn pause(&self) {
        self.signal("-STOP");
        // On a busy machine it takes a while until no thread runs any more.
        let deadline = Instant::now() + START_DEADLINE;
        while !self.is_stopped() {
            assert!(Instant::now() < deadline, "etcd goes on after SIGSTOP");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether every thread is in state T. The state stands behind the name in parentheses.
    fn is_stopped(&self) -> bool {
        let pid = self.process.as_ref().expect("etcd runs").pid;
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("etcd has threads");
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    }

    /// Lets a stopped process go on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// What the process has logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("etcd runs");
        let sent = Command::new("kill")
            .args([signal, &process.pid.to_string()])
            .status();
        assert!(sent.expect("kill runs").success(), "kill {signal}");
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn spawn(&mut self) {
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "sh"])
            .arg(self.log())
            .arg(program())
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Where it would say that it killed etcd.
            .stderr(Stdio::null())
            .spawn()
            .expect("sh runs");
        let mut pid = String::new();
        let stdout = watchdog.stdout.take().expect("it is piped");
        BufReader::new(stdout)
            .read_line(&mut pid)
            .expect("the shell says the pid");
        self.process = Some(Process {
            watchdog,
            pid: pid.trim().parse().expect("a pid"),
        });
    }

    /// Waits until it serves; `false` if it ended. `written` is the length of the log before.
    fn serves(&self, written: u64) -> bool {
        let process = self.process.as_ref().expect("it was started");
        let deadline = Instant::now() + START_DEADLINE;
        while Instant::now() < deadline {
            let log = fs::read(self.log()).unwrap_or_default();
            let new = log.get(written as usize..).unwrap_or_default();
            if String::from_utf8_lossy(new).contains("ready to serve client requests") {
                return true;
            }
            if !Path::new(&format!("/proc/{}", process.pid)).exists() || process.is_zombie() {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("etcd does not serve in time:\n{}", self.log_text());
    }
}

impl Process {
    fn is_zombie(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| stat.contains(") Z "))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The shell sees the pipe close, kills etcd and ends.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

fn start_members(count: usize, scheme: &'static str, more: &[&str]) -> Vec<Etcd> {
    for _ in 0..START_ATTEMPTS {
        let mut members = new_members(count, scheme, more);
        for member in &mut members {
            member.spawn();
        }
        if members.iter().all(|member| member.serves(0)) {
            return members;
        }
        let log = members[0].log_text();
        assert!(
            log.contains("address already in use"),
            "etcd did not start:\n{log}"
        );
    }
    panic!("no free ports for etcd after {START_ATTEMPTS} attempts");
}

fn new_members(count: usize, scheme: &'static str, more: &[&str]) -> Vec<Etcd> {
    let ports = free_ports(2 * count);
    let (client_ports, peer_ports) = ports.split_at(count);
    let peers: Vec<String> = peer_ports
        .iter()
        .enumerate()
        .map(|(i, port)| format!("member{i}=http://127.0.0.1:{port}"))
        .collect();
    let member = |i: usize| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let client = format!("{scheme}://127.0.0.1:{}", client_ports[i]);
        let peer = format!("http://127.0.0.1:{}", peer_ports[i]);
        let mut arguments: Vec<String> = [
            format!("--name=member{i}"),
            format!("--data-dir={}", directory.path().join("data").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", peers.join(",")),
        ]
        .into();
        if takes_unsafe_no_fsync() {
            arguments.push("--unsafe-no-fsync".to_owned());
        }
        arguments.extend(more.iter().map(ToString::to_string));
        Etcd {
            name: format!("member{i}"),
            directory,
            scheme,
            client_port: client_ports[i],
            arguments,
            process: None,
        }
    };
    (0..count).map(member).collect()
}

/// Ports that nobody listens on, below those that the system gives to outgoing
/// connections: one of these could take a port before an etcd is started on it again.
pub fn free_ports(count: usize) -> Vec<u16> {
    const FIRST: u64 = 10_000;
    const END: u64 = 32_000;
    // Every process, and every call, begins elsewhere.
    let start = RandomState::new().hash_one(count) % (END - FIRST);
    (0..END - FIRST)
        .map(|step| (FIRST + (start + step) % (END - FIRST)) as u16)
        .filter(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .take(count)
        .collect()
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join("etcd"))
            .find(|file| file.is_file())
            .expect(
                "these tests need etcd 3.4 or later on PATH: 'scripts/test rust' installs it, or \
                 install etcd-server (Debian's name)",
            )
    })
}

fn takes_unsafe_no_fsync() -> bool {
    static TAKES: OnceLock<bool> = OnceLock::new();
    *TAKES.get_or_init(|| {
        let help = Command::new(program()).arg("--help").output();
        let help = help.expect("etcd --help runs");
        [help.stdout, help.stderr]
            .iter()
            .any(|text| String::from_utf8_lossy(text).contains("--unsafe-no-fsync"))
    })
}
