"""A script that a signal ends leaves nothing behind."""

import os
import pathlib
import signal
import subprocess
import sys
import uuid

import pytest

from cluster import until

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent
ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
# An etcd, somebody who watches it, and a load with a program of its own.
CLUSTER = """
import time
from cluster import Cluster, Process, Watcher, run

def main():
    with Cluster("/nowhere", brokers=0) as cluster:
        cluster.start()
        Watcher(cluster.etcd)
        load = Process("load", ["sh", "-c", "sleep 600 & wait"], cluster.directory / "load.log")
        cluster.others.append(load)
        load.start()
        print("started", cluster.directory, flush=True)
        time.sleep(600)

run(main)
"""
HELD_BACK = """
import os, signal
import interruption

interruption.heed()
known = None
try:
    with interruption.held_back():
        os.kill(os.getpid(), signal.SIGTERM)
        known = "a process"
except interruption.Interrupted:
    os.kill(os.getpid(), signal.SIGTERM)
    print("ended", known)
"""


def script(text, **options):
    return subprocess.Popen(
        [sys.executable, "-c", text], cwd=SCRIPTS, stdout=subprocess.PIPE, text=True, preexec_fn=heed_all, **options
    )


def heed_all():
    """A shell without job control lets what it starts in the background ignore SIGINT, and nohup SIGHUP: so may
    whoever runs these tests."""
    for number in ALL:
        signal.signal(number, signal.SIG_DFL)


def processes_of(run):
    """Those that have inherited a variable of the environment."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if run.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            pass  # it has ended, or is somebody else's
    return found


@pytest.mark.parametrize("number", ALL)
def test_what_a_script_has_started_ends_with_it(number):
    run = f"YUXI_TEST_RUN={uuid.uuid4()}"
    started = script(CLUSTER, env={**os.environ, **dict([run.split("=")])}, start_new_session=True)
    try:
        directory = next(line for line in started.stdout if line.startswith("started")).split()[1]
        until(lambda: len(processes_of(run)) == 5, "the load has started its program", 20)
        # As `timeout` does: to the script, and once more to its process group.
        started.send_signal(number)
        os.killpg(started.pid, number)
        assert started.wait(20) == 128 + number
    finally:
        started.terminate()
        started.wait()
    until(lambda: not processes_of(run), "nothing is left", 5)
    assert not pathlib.Path(directory).exists()


def test_a_signal_waits_until_what_was_started_is_known_and_a_second_changes_nothing():
    done = script(HELD_BACK)
    assert done.communicate(timeout=20)[0] == "ended a process\n"
    assert done.returncode == 0


def test_what_is_ignored_stays_ignored():
    done = script(
        "import os, signal\nimport interruption\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\ninterruption.heed()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\nprint('goes on')"
    )
    assert done.communicate(timeout=20)[0] == "goes on\n"


def test_what_a_shell_script_attends_to_ends_with_it(tmp_path):
    run = f"YUXI_TEST_RUN={uuid.uuid4()}"
    text = f"source {SCRIPTS}/setup.sh\ntrap 'echo cleaned up' EXIT\nattended sh -c 'echo started; sleep 600 & wait'"
    started = subprocess.Popen(
        ["bash", "-c", text], env={**os.environ, **dict([run.split("=")])}, stdout=subprocess.PIPE, text=True,
        preexec_fn=heed_all,
    )  # fmt: skip
    try:
        assert started.stdout.readline() == "started\n"
        started.send_signal(signal.SIGTERM)
        assert started.communicate(timeout=20)[0] == "cleaned up\n"
        assert started.returncode == 128 + signal.SIGTERM
    finally:
        started.kill()
        started.wait()
    until(lambda: not processes_of(run), "nothing is left", 5)
