"""The faults that need no Yuxi, on processes of other kinds, and the watching of what ends."""

import itertools
import subprocess
import sys
import time

import pytest

from cluster import Etcd, Failed, Process, until
from faultsuite import etcd_faults, process_faults
from faultsuite.fault import FAULTS, NotNow
from faultsuite.scene import Scene

SERVING = "print('listening on 127.0.0.1:1', flush=True); import time; time.sleep(600)"


class Dummy(Process):
    """Stands for a broker."""

    def __init__(self, directory, number, program=SERVING):
        super().__init__(f"broker {number}", [sys.executable, "-c", program], directory / f"{number}.log")

    def start(self, wait=True):
        super().start()
        if wait:
            self.wait_for(r"^listening on ")


class DummyCluster:
    """Three brokers of which the first is the controller; partition P is led by broker P + 1."""

    def __init__(self, directory):
        self.brokers = {number: Dummy(directory, number) for number in (1, 2, 3)}
        self.etcd = None

    def nodes(self):
        return self.brokers

    def controller(self):
        return 1, 7

    def partitions(self, topic):
        return {p: {"leader": p + 1, "isr": [1, 2, 3], "replicas": [1, 2, 3]} for p in range(3)}


class DummyLoad:
    name = "load"
    process = None


@pytest.fixture
def scene(tmp_path):
    cluster = DummyCluster(tmp_path)
    scene = Scene(cluster, None, 3, None)
    scene.loads = []
    scene.look = lambda: {"controller": 1, "leaders": cluster.partitions("load")}
    for node in cluster.brokers.values():
        node.start()
    yield scene
    for node in cluster.brokers.values():
        node.end()


@pytest.fixture
def etcd(tmp_path):
    etcd = Etcd(tmp_path, ["--quota-backend-bytes", str(etcd_faults.QUOTA_BYTES)])
    etcd.start()
    yield etcd
    etcd.end()


def running(scene):
    return [number for number, node in scene.cluster.brokers.items() if node.is_running()]


def state_of(process):
    """As in ps: T is stopped."""
    return subprocess.run(["ps", "-o", "stat=", "-p", str(process.pid)], capture_output=True, text=True).stdout[0]


@pytest.mark.parametrize("name, parameters, left", [
    ("kill-leader", {"partition": 1}, [1, 3]),
    ("kill-follower", {"partition": 0}, [1, 3]),
    ("kill-controller", {}, [2, 3]),
    ("kill-leader-and-controller", {"partition": 2}, [2]),
    ("kill-leader-and-controller", {"partition": 0}, [2, 3]),
    ("kill-all", {}, []),
])  # fmt: skip
def test_who_is_killed_is_started_again_when_healed(scene, name, parameters, left):
    strike = FAULTS[name].inflict(scene, **parameters)
    assert "killed broker" in next(strike)
    assert running(scene) == left
    scene.watch()
    assert running(scene) == left, "what a fault has killed stays down"
    next(strike, None)
    assert running(scene) == [1, 2, 3]
    assert not scene.findings


@pytest.mark.parametrize("name, parameters, frozen", [
    ("freeze-leader", {"partition": 2}, [3]), ("freeze-follower", {"partition": 0}, [2]), ("freeze-controller", {}, [1]),
    ("freeze-leader-and-controller", {"partition": 2}, [1, 3]), ("freeze-leader-and-controller", {"partition": 0}, [1]),
    ("freeze-all", {}, [1, 2, 3]),
])  # fmt: skip
def test_who_is_frozen_is_thawed_when_healed(scene, name, parameters, frozen):
    strike = FAULTS[name].inflict(scene, **parameters)
    next(strike)
    stopped = lambda: [number for number, node in scene.cluster.brokers.items() if state_of(node) == "T"]
    until(lambda: stopped() == frozen, "they are stopped", 5)
    next(strike, None)
    until(lambda: not stopped(), "they go on", 5)


def test_a_fast_restart_is_another_process(scene):
    before = scene.broker(2).pid
    next(FAULTS["fast-restart"].inflict(scene, broker=2))
    assert scene.broker(2).pid != before and scene.broker(2).is_running()


def test_two_faults_do_not_take_the_same_process(scene):
    next(FAULTS["kill-leader"].inflict(scene, partition=1))
    with pytest.raises(NotNow, match="broker 2 is struck already"):
        next(FAULTS["freeze-leader"].inflict(scene, partition=1))


def test_a_broker_that_ends_by_itself_is_found_and_started_again(scene):
    scene.broker(1).process.kill()
    scene.broker(1).process.wait()
    until(lambda: scene.watch() or running(scene) == [1, 2, 3], "it is started again", 5)
    assert "broker 1 ended by itself" in scene.findings[0][1]


def test_a_broker_that_gives_up_before_it_serves_is_only_started_again(scene, tmp_path):
    node = scene.cluster.brokers[2]
    node.kill()
    node.command[-1] = "import sys; sys.exit('etcd does not answer')"
    node.start(wait=False)
    node.process.wait()
    node.command[-1] = SERVING
    until(lambda: scene.watch() or running(scene) == [1, 2, 3], "it is started again", 5)
    assert scene.restarts == 1
    assert not scene.findings


def test_a_finding_is_put_down_to_the_step_it_was_in(scene):
    scene.enter("step 1")
    time.sleep(0.01)
    between = time.time()
    scene.enter("step 2")
    assert [scene.active_at(at) for at in (0, between, time.time())] == ["before the first step", "step 1", "step 2"]


def test_etcd_is_killed_and_comes_back_with_its_data(scene, etcd):
    scene.cluster.etcd = etcd
    etcd.ctl("put", "key", "value")
    strike = FAULTS["etcd-restart"].inflict(scene)
    next(strike)
    with pytest.raises(Failed):
        etcd.ctl("--command-timeout=200ms", "get", "key")
    next(strike, None)
    assert etcd.ctl("get", "key") == "key\nvalue\n"


def test_a_stalled_etcd_answers_when_it_goes_on(scene, etcd):
    scene.cluster.etcd = etcd
    strike = FAULTS["etcd-stall"].inflict(scene)
    next(strike)
    with pytest.raises(Failed):
        etcd.ctl("--command-timeout=200ms", "get", "key")
    next(strike, None)
    until(etcd.is_serving, "etcd serves", 10)


def test_etcd_out_of_space_refuses_writes_until_it_is_healed(scene, etcd):
    scene.cluster.etcd = etcd
    strike = FAULTS["etcd-quota"].inflict(scene)
    next(strike)
    with pytest.raises(Failed, match="space exceeded"):
        etcd.ctl("put", "key", "value")
    next(strike, None)
    etcd.ctl("put", "key", "value")
    assert etcd_faults.FILLER not in etcd.ctl("get", "--prefix", "/")


def test_compaction_takes_the_history_away(etcd):
    for number in itertools.repeat(0, 3):
        etcd.ctl("put", "key", str(number))
    before = etcd.revision() - 1
    etcd_faults.compact(etcd)
    with pytest.raises(Failed, match="compacted"):
        etcd.ctl("get", "key", "--rev", str(before))


def test_a_small_disk_is_filled_and_freed(tmp_path):
    """In namespaces of its own, as the mount must not outlive the test."""
    program = f"""
import pathlib, types
from faultsuite import isolation
isolation.enter()
from faultsuite import disk_faults
data = pathlib.Path({str(tmp_path)!r}) / "disk"
disk_faults.mount_small_disk(data, 4 << 20)
scene = types.SimpleNamespace(small_disk=types.SimpleNamespace(name="broker 3", data=data))
strike = disk_faults.fill_disk(scene)
next(strike)
try:
    (data / "file").write_bytes(b"x")
    raise SystemExit("there was room left")
except OSError:
    pass
next(strike, None)
(data / "file").write_bytes(b"x")
"""
    from faultsuite import isolation

    if reason := isolation.why_not():
        pytest.skip(f"no namespaces: {reason}")
    scripts = process_faults.__file__.rsplit("/", 2)[0]
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=scripts, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "disk").iterdir()) == []
