"""A run of these tests that is told to end leaves nothing behind."""

import os
import pathlib
import signal
import subprocess
import sys
import uuid

import pytest

from daemon import wait_until

HERE = pathlib.Path(__file__).resolve().parent
TEST = """
import os, pathlib, time

def test_that_is_interrupted(broker, new_broker):
    new_broker()
    pathlib.Path(os.environ["STARTED"]).touch()
    time.sleep(600)
"""


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


@pytest.mark.yuxi_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_a_signal_ends_takes_its_brokers_and_their_data_with_it(tmp_path, number, workers):
    (tmp_path / "test_one.py").write_text(TEST)
    (tmp_path / "temp").mkdir()
    started = tmp_path / "started"
    run = str(uuid.uuid4())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "PYTHONPATH": str(HERE), "PYTEST_DEBUG_TEMPROOT": str(tmp_path / "temp"),
        "STARTED": str(started), "YUXI_TEST_RUN": run,
    }  # fmt: skip
    pytest_run = subprocess.Popen(
        [sys.executable, "-B", "-m", "pytest", "-c", HERE / "pytest.ini", "-p", "conftest", "-n", str(workers), "test_one.py"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    try:
        wait_until(started.exists, "the test has its brokers", 40)
        os.killpg(pytest_run.pid, number)
        output, _ = pytest_run.communicate(timeout=40)
        assert pytest_run.returncode == pytest.ExitCode.INTERRUPTED, output
        wait_until(lambda: not processes_of(run), "nothing is left", 5)
        assert not list((tmp_path / "temp").rglob("meta.properties"))
    finally:
        for left in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(pytest_run.pid, left)
            except ProcessLookupError:
                break
