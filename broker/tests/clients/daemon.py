"""Broker processes that tests start, stop and kill.

`Yuxi` is the daemon under test, `Kafka` is Apache's broker with the same face:
a test that passes against both is known to ask for the right thing.
"""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import threading
import time

START_DEADLINE_S = 60
STOP_DEADLINE_S = 30


def wait_until(condition, what, deadline_s=15, pause_s=0.02):
    """Returns the first true value of condition(), or fails saying `what`."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(pause_s)


def free_port():
    """One that nobody listens on, below those that the system gives to outgoing connections and to whoever asks for
    any: it must still be free when it is used."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, 32_000)))
            return s.getsockname()[1]


class _Process:
    """What the two brokers share: a child process with a log file."""

    def __init__(self, directory, settings=None):
        self.directory = pathlib.Path(directory)
        self.data_dir = self.directory / "data"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.settings = dict(settings or {})
        self.log_path = self.directory / "broker.stderr"
        self.process = None
        self.port = 0

    @property
    def bootstrap(self):
        return f"127.0.0.1:{self.port}"

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def log_text(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def kill(self):
        """kill -9, as a crash of the process would be."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_DEADLINE_S)

    def stop(self):
        """SIGTERM: a controlled shutdown, which must end with exit code 0."""
        if self.process is None:
            return
        assert self.alive(), f"the broker died by itself, exit code {self.process.returncode}:\n{self.tail()}"
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no exit within {STOP_DEADLINE_S} s of SIGTERM:\n{self.tail()}") from None
        assert code in self.exit_codes, f"exit code {code} after SIGTERM:\n{self.tail()}"

    def abandon(self):
        """For fixtures that clean up: no broker survives its test."""
        if self.alive():
            self.kill()

    def restart(self):
        self.stop()
        self.start()

    def tail(self):
        return "\n".join(self.log_text().splitlines()[-40:])

    def resident_bytes(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")


class Yuxi(_Process):
    name = "yuxi"
    exit_codes = (0,)

    def __init__(self, directory, settings=None, arguments=()):
        super().__init__(directory, settings)
        self.arguments = list(arguments)

    def command(self):
        command = [os.environ["YUXI_BROKER_BIN"], "--listen", f"127.0.0.1:{self.port}", "--data-dir", str(self.data_dir)]
        for key, value in self.settings.items():
            command += ["--override", f"{key}={value}"]
        return command + self.arguments

    def start(self):
        """Starts the daemon and waits for the line that says it serves."""
        listening = threading.Event()
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True
            )

        def read_stdout(stream):
            for line in stream:
                if line.startswith("listening on "):
                    self.port = int(line.strip().rsplit(":", 1)[1])
                    listening.set()
            listening.set()

        threading.Thread(target=read_stdout, args=(self.process.stdout,), daemon=True).start()
        listening.wait(START_DEADLINE_S)
        if not self.port or not self.alive():
            self.abandon()
            raise AssertionError(f"the broker did not start:\n{self.tail()}")
        return self

    def refuses_to_start(self):
        """The exit code and log of a start that has to fail."""
        with open(self.log_path, "ab") as log:
            run = subprocess.run(
                self.command(), stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, timeout=START_DEADLINE_S
            )
        assert run.returncode not in (0, -signal.SIGABRT, 101), f"exit code {run.returncode}:\n{self.tail()}"
        assert b"listening on" not in run.stdout
        return self.log_text() + run.stdout.decode()


class Kafka(_Process):
    """Apache Kafka as one KRaft node."""

    name = "kafka"
    # A JVM ends with 128 + 15 after SIGTERM.
    exit_codes = (0, 143)
    CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"

    def start(self):
        self.port = self.port or free_port()
        controller_port = free_port()
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.data_dir),
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            **self.settings,
        }
        properties = self.directory / "server.properties"
        properties.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        if not (self.data_dir / "meta.properties").exists():
            subprocess.run(
                java("-Xmx128m", "kafka.tools.StorageTool", "format", "-t", self.CLUSTER_ID, "-c", str(properties)),
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                java("-Xmx512m", "kafka.Kafka", str(properties)), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        wait_until(self._serves, "Kafka serves", START_DEADLINE_S, 0.2)
        return self

    def _serves(self):
        assert self.alive(), f"Kafka did not start:\n{self.tail()}"
        listing = subprocess.run(
            ["kcat", "-b", self.bootstrap, "-L", "-m", "2"], capture_output=True, timeout=30, check=False
        )
        return listing.returncode == 0


class Running:
    """A broker that somebody else started, at YUXI_TEST_BOOTSTRAP."""

    name = "running"

    def __init__(self, bootstrap):
        self.bootstrap = bootstrap
        self.port = int(bootstrap.rsplit(":", 1)[1])
        self.process = None

    def alive(self):
        with socket.create_connection(("127.0.0.1", self.port), 5):
            return True


def kafka_jars():
    jars = os.environ.get("YUXI_KAFKA_JARS")
    assert jars, "YUXI_KAFKA_JARS names no directory of Kafka's jars (scripts/test sets it)"
    return jars


def java(heap, main_class, *arguments, classpath=()):
    return [
        "java", heap, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-cp", os.pathsep.join([*map(str, classpath), f"{kafka_jars()}/*"]),
        main_class, *map(str, arguments),
    ]  # fmt: skip
