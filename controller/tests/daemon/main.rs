//! The daemon as a process, against a real etcd.

#[path = "../etcd/mod.rs"]
mod etcd;

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use self::etcd::Etcd;

/// Nothing that a test waits for takes longer on the slowest machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// A `yuxi-controller`, ended with the test.
struct Daemon {
    process: Child,
    lines: mpsc::Receiver<String>,
    said: String,
}

impl Daemon {
    fn start(overrides: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yuxi-controller"));
        command.args(["--listen", "127.0.0.1:0"]);
        for setting in overrides {
            command.args(["--override", setting]);
        }
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the daemon runs");
        let (sender, lines) = mpsc::channel();
        let stdout: ChildStdout = process.stdout.take().expect("piped");
        let stderr: ChildStderr = process.stderr.take().expect("piped");
        let more = sender.clone();
        thread::spawn(move || pass_on(BufReader::new(stdout), &sender));
        thread::spawn(move || pass_on(BufReader::new(stderr), &more));
        Self {
            process,
            lines,
            said: String::new(),
        }
    }

    /// Waits until it has said a line with `text` in it, and returns that. What goes to its two
    /// streams may come in any order.
    fn says(&mut self, text: &str) -> String {
        if let Some(line) = self.said.lines().find(|line| line.contains(text)) {
            return line.to_owned();
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("it does not say {text:?}, but:\n{}", self.said);
            };
            self.said += &line;
            self.said.push('\n');
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits until it ends, and returns how and with which words.
    fn ends(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait().expect("a child") {
                while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
                    self.said += &line;
                    self.said.push('\n');
                }
                return (status, std::mem::take(&mut self.said));
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end, and says:\n{}", self.said);
    }

    fn terminate(&self) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pass_on(lines: impl BufRead, sender: &mpsc::Sender<String>) {
    for line in lines.lines().map_while(Result::ok) {
        if sender.send(line).is_err() {
            return;
        }
    }
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the admin listener");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// The port in a line that ends with an address or has one as a field.
fn port_in(line: &str) -> u16 {
    let digits: String = line
        .rsplit_once("127.0.0.1:")
        .expect("an address")
        .1
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().expect("a port")
}

fn at(etcd: &Etcd, prefix: &str) -> [String; 2] {
    [
        format!("etcd.endpoints={}", etcd.url()),
        format!("etcd.prefix={prefix}"),
    ]
}

const ADMIN: &str = "admin.listener=127.0.0.1:0";

#[test]
fn a_daemon_whose_etcd_is_away_says_so_and_controls_the_cluster_once_it_is_there() {
    let mut etcd = Etcd::start(&[]);
    etcd.kill();
    let [endpoints, prefix] = at(&etcd, "/late/");
    let mut daemon = Daemon::start(&[&endpoints, &prefix, ADMIN, "node.id=101"]);
    let admin = port_in(&daemon.says("health and metrics are served"));
    let waits = daemon.says("the start waits for the metadata store");
    assert!(waits.contains(&etcd.url()), "{waits}");
    let ready = get(admin, "/readyz");
    assert!(
        ready.starts_with("HTTP/1.1 503")
            && ready.contains("waiting: ")
            && ready.contains(&etcd.url()),
        "{ready}"
    );
    assert!(get(admin, "/healthz").starts_with("HTTP/1.1 200"));
    etcd.restart();
    daemon.says("listening on");
    daemon.says("reconciled");
    // Should etcd be slow to serve, there may be another wait, which is told anew.
    let told = daemon.said.matches("the start waits").count();
    let over = daemon.said.matches("the metadata store is there").count();
    assert_eq!(told, over, "once for each wait: {}", daemon.said);
    assert!(get(admin, "/readyz").starts_with("HTTP/1.1 200"));
    let page = get(admin, "/metrics");
    for sample in [
        "kafka_controller_kafkacontroller_activecontrollercount 1",
        "kafka_controller_kafkacontroller_globalpartitioncount 0",
        "kafka_controller_kafkacontroller_newactivecontrollerscount 1",
    ] {
        assert!(page.lines().any(|line| line == sample), "{sample}:\n{page}");
    }
    assert!(page.contains("\nprocess_start_time_seconds "), "{page}");
    daemon.terminate();
    let (status, said) = daemon.ends();
    assert!(status.success(), "{said}");
}

#[test]
fn a_daemon_that_waits_for_etcd_ends_cleanly_when_it_is_told_to() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoints = format!(
        "etcd.endpoints=http://{}",
        nobody.local_addr().expect("an address")
    );
    // It accepts connections and never answers.
    let mut daemon = Daemon::start(&[&endpoints, "etcd.request.timeout.ms=300"]);
    daemon.says("the start waits for the metadata store");
    daemon.terminate();
    let (status, said) = daemon.ends();
    assert!(status.success(), "{said}");
}

#[test]
fn what_waiting_can_not_mend_ends_the_start() {
    let etcd = Etcd::start(&[]);
    let [endpoints, prefix] = at(&etcd, "/refused/");
    let stranger = ["etcd.user=nobody", "etcd.password=x"];
    let daemon = Daemon::start(&[&endpoints, &prefix, stranger[0], stranger[1]]);
    let (status, said) = daemon.ends();
    assert!(!status.success() && said.contains("etcd.user"), "{said}");
    assert!(!said.contains("the start waits"), "{said}");
}

#[test]
fn a_daemon_with_the_number_of_another_is_refused() {
    let etcd = Etcd::start(&[]);
    let [endpoints, prefix] = at(&etcd, "/one/");
    let settings = [
        &endpoints,
        &prefix,
        "node.id=101",
        "broker.session.timeout.ms=5000",
    ];
    let mut first = Daemon::start(&settings);
    first.says("listening on");
    let (status, said) = Daemon::start(&settings).ends();
    assert!(!status.success() && said.contains("node.id=101"), "{said}");
    first.terminate();
    let (status, said) = first.ends();
    assert!(status.success(), "{said}");
}
