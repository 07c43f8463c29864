"""Runs real clusters for the demos and the fault suite: an etcd, brokers and controllers as
processes of their own, with their data in one temporary directory. Whatever is started here
is ended here. They are on free ports of the loopback, unless the caller has other places
for them (faultsuite/network.py: a network namespace for each).

Every command is shown as it could be typed, so that a demo can be read as an account of how
to run a cluster by hand.
"""

import argparse
import base64
import contextlib
import datetime
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import interruption

REPO = pathlib.Path(__file__).resolve().parent.parent
PREFIX = "/yuxi/default/"

# A partition gets its next record within so many seconds in every demo.
LONGEST_PAUSE_S = 5


class Failed(Exception):
    """Something is not as it should be; the message says what."""


def prepare(*more):
    """Builds the binaries unless YUXI_BIN_DIR names them, and sees to it that etcd is there, and
    whatever else more functions of setup.sh see to."""
    is_built = "YUXI_BIN_DIR" in os.environ
    steps = ["setup_cluster", *more] if is_built else ["setup_build", "setup_cluster", *more]
    done = subprocess.run(["bash", "-euc", f"source {REPO}/scripts/setup.sh; {'; '.join(steps)}"])
    if done.returncode != 0:
        raise Failed("this machine lacks what a cluster takes, see above")
    if is_built:
        return pathlib.Path(os.environ["YUXI_BIN_DIR"])
    print("==> building yuxi-broker, yuxi-controller and yuxi (release)", flush=True)
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--workspace", "--bins"], cwd=REPO, check=True)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release"


def example(binaries, name):
    """A program of client/examples, built unless YUXI_BIN_DIR names where it is."""
    if "YUXI_BIN_DIR" not in os.environ:
        build = ["cargo", "build", "--release", "--locked", "--quiet", "-p", "yuxi-client", "--example", name]
        subprocess.run(build, cwd=REPO, check=True)
    return binaries / "examples" / name


def free_ports(count):
    """Ports that nobody listens on, below those that the system gives to outgoing connections:
    one of these could take a port between now and when it is used, or used again."""
    ports = []
    for port in random.sample(range(10_000, 32_000), 1000):
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise Failed("there are no free ports")


class Loopback:
    """Where the parties of a cluster run: all on this machine's loopback, on free ports."""

    def place(self, party, usual_port):
        """The host and port that a party listens on, and what its command is wrapped in."""
        return "127.0.0.1", free_ports(1)[0], ()


def until(condition, what, timeout_s=30.0, every_s=0.01):
    """Waits for a condition and returns what it returned."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"waited {timeout_s:.0f} s in vain until {what}")
        time.sleep(every_s)


class Process:
    """A child process with its output in a file."""

    def __init__(self, name, command, log, environment=None, wrapper=()):
        self.name = name
        self.command = [str(part) for part in command]
        self.log = pathlib.Path(log)
        self.wrapper = list(wrapper)
        self.environment = {**os.environ, **(environment or {})}
        self.process = None
        self.is_frozen = False
        # Whether it should be running: false from the moment at which it is told to end.
        self.is_wanted = False

    def start(self):
        out = self.log.open("ab")
        out.write(f"\n==== {datetime.datetime.now(datetime.timezone.utc).isoformat()} {shlex.join(self.command)}\n".encode())
        out.flush()
        self.read_from = out.tell()
        with interruption.held_back():
            self.process = subprocess.Popen(
                self.wrapper + self.command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=self.environment,
                start_new_session=True,
            )
        self.is_frozen = False
        self.is_wanted = True
        out.close()

    @property
    def pid(self):
        return self.process.pid

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def output(self):
        """What this start of the process has printed so far."""
        with self.log.open("rb") as log:
            log.seek(self.read_from)
            return log.read().decode(errors="replace")

    def wait_for(self, pattern, timeout_s=30.0):
        """Waits for a line that fits and returns the match."""

        def look():
            found = re.search(pattern, self.output(), re.MULTILINE)
            if not found and not self.is_running():
                raise Failed(f"{self.name} ended early:\n{self.output()[-2000:]}")
            return found

        return until(look, f"{self.name} prints {pattern}", timeout_s)

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        """kill -9; the time at which it was done."""
        at = time.time()
        self.is_wanted = False
        self.signal(signal.SIGKILL)
        self.process.wait()
        return at

    def freeze(self):
        at = time.time()
        self.signal(signal.SIGSTOP)
        # On a busy machine it takes a while until no thread runs any more.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self.is_frozen = True
        return at

    def thaw(self):
        at = time.time()
        self.signal(signal.SIGCONT)
        self.is_frozen = False
        return at

    def stop(self, timeout_s=30.0):
        """SIGTERM, and the exit status."""
        if self.is_frozen:
            self.thaw()
        self.is_wanted = False
        self.signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.name} did not stop within {timeout_s:.0f} s of SIGTERM") from None

    def end(self):
        """However it stands, it is gone afterwards, and whatever it has started itself."""
        if self.is_running():
            self.is_wanted = False
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


class Etcd(Process):
    """A single etcd with its data in a directory, so that it can be killed and started again."""

    def __init__(self, directory, options=(), places=None):
        places = places or Loopback()
        host, port, wrapper = places.place("etcd", 2379)
        _, peer_port, _ = places.place("etcd", 2380)
        self.url, peer_url = f"http://{host}:{port}", f"http://{host}:{peer_port}"
        self.directory = directory / "etcd"
        self.watchers = []
        command = [
            "etcd", "--name", "seal", "--data-dir", self.directory,
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
            "--initial-cluster", f"seal={peer_url}", *options,
        ]  # fmt: skip
        super().__init__("etcd", command, directory / "etcd.log", wrapper=wrapper)

    def start(self):
        super().start()
        until(self.is_serving, "etcd serves")

    def end(self):
        for watcher in self.watchers:
            watcher.end()
        super().end()

    def is_serving(self):
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                return json.load(answer).get("health") == "true"
        except OSError:
            return False

    def ctl(self, *arguments, check=True, given=None):
        """Runs etcdctl, with the given bytes on its standard input; what it printed."""
        done = subprocess.run(
            ["etcdctl", f"--endpoints={self.url}", *arguments], capture_output=True, input=given,
            # Five seconds, its own limit, are little where the machine stands still.
            env={**os.environ, "ETCDCTL_API": "3", "ETCDCTL_COMMAND_TIMEOUT": "25s"}, timeout=30,
        )
        if done.returncode != 0 and check:
            raise Failed(f"etcdctl {' '.join(arguments)}: {done.stderr.decode().strip()}")
        return (done.stdout + done.stderr).decode() if done.returncode == 0 else None

    def fsyncs(self):
        """How many fsyncs of its log took at most so many seconds, by those seconds."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            lines = re.findall(r'^etcd_disk_wal_fsync_duration_seconds_bucket{le="(.+)"} (\d+)$', answer.read().decode(), re.M)
        return {float(at_most): int(count) for at_most, count in lines}

    def revision(self):
        return json.loads(self.ctl("get", PREFIX, "-w", "json"))["header"]["revision"]

    def get(self, prefix=""):
        """The cluster's keys below a prefix, with their JSON values and revisions."""
        answer = json.loads(self.ctl("get", "--prefix", PREFIX + prefix, "-w", "json"))
        decoded = {}
        for entry in answer.get("kvs", []):
            key = base64.b64decode(entry["key"]).decode()[len(PREFIX):]
            decoded[key] = json.loads(base64.b64decode(entry["value"])), entry["create_revision"], entry["mod_revision"]
        return decoded


class Watcher:
    """Follows the cluster's keys in etcd and notes when each change was seen. Ends with the etcd at the latest."""

    def __init__(self, etcd):
        self.events = []
        # From the last change on: once that one is seen, none that follows is missed.
        last = etcd.revision()
        with interruption.held_back():
            self.process = subprocess.Popen(
                ["etcdctl", f"--endpoints={etcd.url}", "watch", "--prefix", PREFIX, "--rev", str(last), "-w", "json"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "ETCDCTL_API": "3"},
            )
            etcd.watchers.append(self)
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()
        # An etcd of which nothing was asked yet is at revision 1, and has no change to show.
        until(lambda: self.events or last == 1, "the changes in etcd are followed")

    def _follow(self):
        for line in self.process.stdout:
            if not line.endswith("\n"):
                return  # the watcher was ended in the middle of it
            at = time.time()
            for event in json.loads(line).get("Events", []):
                entry = event["kv"]
                key = base64.b64decode(entry["key"]).decode()[len(PREFIX):]
                value = json.loads(base64.b64decode(entry["value"])) if entry.get("value") else None
                self.events.append((at, key, value))

    def first(self, after, fits):
        """When the first change after a moment was seen for which `fits(key, value)` holds."""
        return next((at for at, key, value in list(self.events) if at >= after and fits(key, value)), None)

    def end(self):
        self.process.kill()
        self.process.wait()


class Node(Process):
    """A broker, or a controller that is no broker."""

    def __init__(self, cluster, number, program, overrides=()):
        name = f"{program.removeprefix('yuxi-')} {number}"
        host, port, wrapper = cluster.places.place(name, 9092)
        self.number = number
        self.address = f"{host}:{port}"
        self.data = cluster.directory / f"{program}-{number}"
        command = [cluster.binaries / program, "--node-id", number, "--listen", self.address]
        if program == "yuxi-broker":
            command += ["--data-dir", self.data]
        command += ["--etcd", cluster.etcd.url]
        for override in overrides:
            command += ["--override", override]
        super().__init__(name, command, cluster.directory / f"{program}-{number}.log", wrapper=wrapper)

    def start(self, wait=True):
        super().start()
        if wait:
            self.wait_for(r"^listening on ")

    def noted(self, pattern, after):
        """When this node first logged a line that fits after a moment (seconds since the epoch)."""
        for line in self.output().splitlines():
            stamp = re.match(r"\S*?(\d{4}-\d\d-\d\dT[\d:.]+)Z", line)
            if stamp and re.search(pattern, line):
                at = datetime.datetime.fromisoformat(stamp.group(1) + "+00:00").timestamp()
                if at >= after - 0.001:
                    return at
        return None


class Cluster:
    """Everything of one run."""

    def __init__(
        self, binaries, brokers=3, controllers=0, overrides=(), controller_overrides=(), etcd_options=(), places=None,
        quiet=False,
    ):  # fmt: skip
        self.binaries = pathlib.Path(binaries)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="yuxi-cluster-"))
        self.quiet = quiet
        self.places = places or Loopback()
        self.etcd = Etcd(self.directory, etcd_options, self.places)
        settings = [f"min.insync.replicas={min(2, brokers)}", f"default.replication.factor={min(3, brokers)}",
                    f"offsets.topic.replication.factor={min(3, brokers)}", *overrides]
        self.brokers = {n: Node(self, n, "yuxi-broker", settings) for n in range(1, brokers + 1)}
        self.controllers = {
            n: Node(self, n, "yuxi-controller", controller_overrides) for n in range(101, 101 + controllers)
        }
        self.others = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for process in [*self.others, *self.nodes().values(), self.etcd]:
            process.end()
        if kind is None or kind is interruption.Interrupted:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            print(f"the logs are kept in {self.directory}", file=sys.stderr)

    def nodes(self):
        return {**self.controllers, **self.brokers}

    def start(self):
        for process in [self.etcd, *self.nodes().values()]:
            self.show(process.command)
            process.start()
        until(lambda: len(self.etcd.get("admitted/")) == len(self.brokers), "every broker is let in")

    def show(self, command):
        if not self.quiet:
            print(f"$ {shlex.join(str(part) for part in command)}", flush=True)

    @property
    def bootstrap(self):
        return ",".join(broker.address for broker in self.brokers.values())

    def yuxi(self, *arguments, check=True):
        """Runs the command line; what it printed."""
        done = subprocess.run(
            [self.binaries / "yuxi", "-b", self.bootstrap, *map(str, arguments)], capture_output=True, text=True, timeout=120,
        )
        if done.returncode != 0 and check:
            raise Failed(f"yuxi {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def verify(self, topic, *arguments, settings=(), name="verify"):
        """Starts `yuxi verify` with a journal."""
        journal = self.directory / f"{name}.journal"
        command = [self.binaries / "yuxi", "-b", self.bootstrap]
        for setting in settings:
            command += ["-X", setting]
        command += ["--output", "json", "verify", topic, *map(str, arguments), "--journal", journal]
        self.show(command)
        load = Load(name, command, self.directory / f"{name}.log", journal)
        self.others.append(load)
        load.start()
        return load

    def controller(self):
        """Who holds the seal: node id and controller epoch, or None."""
        found = self.etcd.get("controller").get("controller")
        return (found[0]["node_id"], found[1]) if found else None

    def topic_id(self, topic):
        return self.etcd.get(f"topics/{topic}")[f"topics/{topic}"][0]["topic_id"]

    def partitions(self, topic):
        """The states of a topic's partitions, by number."""
        states = {}
        for value, *_ in self.etcd.get(f"partitions/{self.topic_id(topic)}/").values():
            states.update({int(number): state for number, state in value.items()})
        return states

    def until_led_by(self, topic, brokers):
        """Waits until one of these brokers leads a partition of a topic; the states of all its partitions then. On
        a busy machine all of them may have been replaced, and would be leaders again only minutes later. Where none
        of them is preferred, as may be with few partitions, one of them becomes so."""

        def look():
            states = self.partitions(topic)
            if any(state["leader"] in brokers for state in states.values()):
                return states
            if not any(state["replicas"][0] in brokers for state in states.values()):
                self._prefer_one_of(brokers, topic, states)
            self.yuxi("topic", "elect", topic)
            return None

        return until(look, "one of these brokers leads", 60, every_s=0.1)

    def _prefer_one_of(self, brokers, topic, states):
        for number, state in states.items():
            for broker in state["replicas"]:
                if broker in brokers:
                    order = [broker, *(other for other in state["replicas"] if other != broker)]
                    self.yuxi("topic", "reassign", topic, "-p", number, "--to", ",".join(map(str, order)))
                    return

    def until_in_sync(self, topic, timeout_s=60.0):
        """Waits until every replica of a topic is in sync."""

        def look():
            states = self.partitions(topic).values()
            return states and all(set(s["isr"]) == set(s["replicas"]) and s["leader"] >= 0 for s in states)

        until(look, f"every replica of {topic} is in sync", timeout_s, every_s=0.05)


class Load(Process):
    """A running `yuxi verify`, and its journal."""

    def __init__(self, name, command, log, journal):
        super().__init__(name, command, log)
        self.journal = journal

    def lines(self, kind="ack"):
        """(time in seconds, partition, the rest) of each line of a kind, oldest first."""
        if not self.journal.exists():
            return
        for line in self.journal.read_text(errors="replace").splitlines():
            words = line.split(" ", 4)
            if words[0] == kind and len(words) > 3:
                yield int(words[1]) / 1e6, int(words[2]), words[3:]

    def first_ack(self, after, partitions):
        """When the first record was acknowledged after a moment in each of the partitions."""
        first = {}
        for at, partition, _ in self.lines():
            if at > after and partition in partitions and partition not in first:
                first[partition] = at
        return first

    def until_acknowledged(self, count=1, after=0.0):
        until(lambda: sum(1 for at, *_ in self.lines() if at > after) >= count, "records are acknowledged")

    def verdict(self, timeout_s=120.0):
        """Ends the load and returns its report and exit status."""
        if self.is_running():
            self.signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} did not come to an end:\n{self.output()[-2000:]}") from None
        found = re.search(r"^\{.*?^\}", self.output(), re.MULTILINE | re.DOTALL)
        if not found:
            raise Failed(f"{self.name} gave no verdict:\n{self.output()[-2000:]}")
        return json.loads(found.group()), status


class Timeline:
    """Prints what happened when, counted from one moment."""

    def __init__(self, zero):
        self.zero = zero

    def note(self, at, text):
        shown = "      ?   " if at is None else f"{(at - self.zero) * 1000:8.1f} ms"
        print(f"{shown}  {text}", flush=True)

    def note_in_order(self, *notes):
        """Several at once, each (at, text): who has seen what first is not known beforehand."""
        for at, text in sorted(notes, key=lambda note: note[0] or self.zero):
            self.note(at, text)


def conclude(report, status):
    """Prints the verdict as every demo ends, and returns the exit status."""
    print(
        f"verdict: acknowledged {report['acknowledged']}, lost {report['lost']}, "
        f"duplicated {report['duplicated']}, out of order {report['out_of_order']}"
    )
    good = status == 0 and report["acknowledged"] > 0
    return 0 if good else 1


def arguments(text, **defaults):
    """The options that every demo takes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings = {"brokers": 3, "partitions": 12, "rate": 2000, **defaults}
    parser.add_argument("--brokers", type=int, default=settings["brokers"], help="how many brokers (default %(default)s)")
    parser.add_argument("--partitions", type=int, default=settings["partitions"], help="how many partitions (default %(default)s)")
    parser.add_argument("--rate", type=int, default=settings["rate"], help="records a second (default %(default)s)")
    given = parser.parse_args()
    if given.brokers < 3 or given.partitions < 1 or given.rate < 1:
        parser.error("a demo needs at least 3 brokers, 1 partition and 1 record a second")
    if given.rate * LONGEST_PAUSE_S < given.partitions:
        parser.error(f"a demo waits for records in each partition: --rate must be at least --partitions / {LONGEST_PAUSE_S}")
    return given


def run(main):
    """Runs a script; one line says why it could not be carried out."""
    interruption.heed()
    try:
        sys.exit(main())
    except Failed as failure:
        print(f"failed: {failure}", file=sys.stderr)
        sys.exit(1)
    except interruption.Interrupted as told:
        interruption.ignore()
        sys.exit(128 + told.number)
