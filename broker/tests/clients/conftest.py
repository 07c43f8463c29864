"""The brokers that the tests talk to, and what each test gets from them.

Against the daemon: YUXI_BROKER_BIN names the binary. Against Apache Kafka, to
know that a test is right: `--kafka`, or YUXI_TEST_BOOTSTRAP for one that runs.
"""

import itertools
import os
import re
import shutil
import signal

import pytest

from daemon import Kafka, Running, Yuxi
from jvm import Jvm
from kcat import Kcat

# A rebalance waits for nobody, so that tests with groups are quick.
SETTINGS = {"group.initial.rebalance.delay.ms": "0"}


def pytest_addoption(parser):
    parser.addoption("--kafka", action="store_true", help="run against Apache Kafka's own broker")


def pytest_configure(config):
    # What is ignored, as under nohup, stays so.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if os.environ.get("YUXI_TEST_BOOTSTRAP") or config.getoption("--kafka"):
        return
    binary = os.environ.get("YUXI_BROKER_BIN")
    if not binary or not os.access(binary, os.X_OK):
        raise pytest.UsageError("YUXI_BROKER_BIN names no yuxi-broker to test: use scripts/test, or --kafka")


_interrupted = False


def _interrupt(_number, _frame):
    """As SIGINT does: fixtures end what they have started. They are not disturbed by a second signal."""
    global _interrupted
    _interrupted = True
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda *_: None)
    raise KeyboardInterrupt


@pytest.fixture(scope="session", autouse=True)
def _interrupted_runs_leave_no_directories(tmp_path_factory):
    """Set up before all others, so it is the last to end."""
    directory = tmp_path_factory.getbasetemp()
    yield
    if _interrupted:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def against(request):
    """The class of broker under test: Yuxi, Kafka or Running."""
    if os.environ.get("YUXI_TEST_BOOTSTRAP"):
        return Running
    return Kafka if request.config.getoption("--kafka") else Yuxi


@pytest.fixture(autouse=True)
def _skip_what_kafka_does_not_promise(request):
    if request.node.get_closest_marker("yuxi_only") and request.getfixturevalue("against") is not Yuxi:
        pytest.skip("a promise of Yuxi's own")


@pytest.fixture(scope="session")
def broker(against, tmp_path_factory):
    """The broker that tests share; each uses its own topics and groups."""
    if against is Running:
        yield Running(os.environ["YUXI_TEST_BOOTSTRAP"])
        return
    process = against(tmp_path_factory.mktemp("shared"), SETTINGS)
    try:
        process.start()
        yield process
        if not _interrupted:
            process.stop()
    finally:
        process.abandon()


@pytest.fixture
def new_broker(against, tmp_path):
    """Starts brokers for one test alone: new_broker(settings) -> process."""
    yield from _broker_factory(against, lambda n: tmp_path / f"broker-{n}")


@pytest.fixture(scope="module")
def new_module_broker(against, tmp_path_factory):
    yield from _broker_factory(against, lambda n: tmp_path_factory.mktemp(f"module-{n}"))


def _broker_factory(against, directory):
    if against is Running:
        pytest.skip("needs a broker of its own, and YUXI_TEST_BOOTSTRAP names a shared one")
    processes = []

    def start(settings=None, *, started=True, directory_of=None):
        where = directory_of.directory if directory_of else directory(len(processes))
        process = against(where, {**SETTINGS, **(settings or {})})
        processes.append(process)
        return process.start() if started else process

    try:
        yield start
        for process in processes:
            if process.alive() and not _interrupted:
                process.stop()
    finally:
        for process in processes:
            process.abandon()


@pytest.fixture(scope="session")
def jvm(tmp_path_factory):
    machine = Jvm(tmp_path_factory.mktemp("jvm"))
    yield machine
    machine.close()


@pytest.fixture
def kcat(broker):
    return Kcat(broker.bootstrap)


@pytest.fixture
def tools(jvm, broker):
    """Kafka's command-line tools, pointed at the shared broker."""

    def run(tool, *arguments, **options):
        return jvm.out(tool, "--bootstrap-server", broker.bootstrap, *arguments, **options)

    return run


_names = itertools.count()


@pytest.fixture
def name(request):
    """A name no other test uses, for topics and groups."""
    test = re.sub(r"[^A-Za-z0-9-]+", "-", request.node.name)[:80].strip("-")
    return f"{test}-{os.getpid()}-{next(_names)}"
