"""A disk with no room left: producing fails, reading and deleting go on, and
producing resumes by itself when room returns.
"""

import os
import resource
import subprocess
import time

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

import wire
from daemon import wait_until
from test_hostile_bytes import ready
from test_restart import create
from wire import Connection, batch, record

pytestmark = pytest.mark.yuxi_only  # Kafka halts when its only directory fails

DISK_BYTES = 24 << 20
VALUE = os.urandom(200_000)


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of DISK_BYTES, which takes root (or a container that may mount)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"can't mount a small disk here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def target(small_disk, new_broker):
    broker = new_broker({"log.segment.bytes": str(2 << 20), "log.segment.delete.delay.ms": "0"}, started=False)
    broker.data_dir = small_disk / "data"
    broker.start()
    yield broker
    if broker.alive():
        broker.stop()


def fill(connection, topic, acked=()):
    """Produces until the disk is full; returns what was acknowledged."""
    acked = list(acked)
    for n in range(DISK_BYTES // len(VALUE) + 50):
        code, offset = wire.produce(connection, topic, batch([record(0, b"%06d" % n + VALUE)]))
        if code != wire.NONE:
            assert code == wire.KAFKA_STORAGE_ERROR
            return acked
        acked.append((n, offset))
    raise AssertionError("the disk never filled")


def check(connection, topic, acked):
    """Everything acknowledged can be read, and nothing else is in the log."""
    assert wire.fetch(connection, topic, acked[0][1])[1] == acked[-1][1] + 1
    for n, offset in acked:
        code, _, records = wire.fetch(connection, topic, offset, max_bytes=len(VALUE) + 500)
        assert code == wire.NONE and b"%06d" % n + VALUE in records


def test_a_log_that_can_not_be_compacted_for_want_of_room_is_once_there_is_some(small_disk, new_broker):
    settings = {"log.segment.bytes": str(4 << 20), "log.cleaner.backoff.ms": "100"}
    broker = new_broker(settings, started=False)
    broker.data_dir = small_disk / "data"
    broker.start()
    admin = create(
        broker, "keyed", cleanup_policy="compact", min_cleanable_dirty_ratio="0", min_compaction_lag_ms="86400000",
        file_delete_delay_ms="0",
    )
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (8 << 20))
    now = int(time.time() * 1000)
    with Connection(broker) as c:
        ready(c, "keyed")
        keyed = []
        for n in range(60):
            # Of a first segment that is to be written anew, only the first record may go.
            one = record(0, b"%06d" % n + VALUE, b"key-%d" % (0 if n == 20 else n))
            code, offset = wire.produce(c, "keyed", batch([one], timestamps=(now, now)))
            assert code == wire.NONE
            keyed.append((n, offset))
        ready(c, "t")
        acked = fill(c, "t")
        topic = ConfigResource(ConfigResource.Type.TOPIC, "keyed")
        at_once = ConfigEntry("min.compaction.lag.ms", "0", incremental_operation=AlterConfigOpType.SET)
        topic.add_incremental_config(at_once)
        admin.incremental_alter_configs([topic])[topic].result(30)
        complaint = "there is no room to compact the log"
        wait_until(lambda: broker.log_text().count(complaint) > 1, "the cleaner says so, and tries again", 60)
        assert "keyed-0" in next(line for line in broker.log_text().splitlines() if complaint in line)
        assert wire.produce(c, "t", batch([record(0, VALUE)]))[0] == wire.KAFKA_STORAGE_ERROR
        check(c, "t", acked)
        check(c, "keyed", keyed)
        ballast.unlink()

        compacted = "a log was compacted partition=keyed-0"
        wait_until(lambda: compacted in broker.log_text(), "the log is compacted", 60)
        assert not list(broker.data_dir.glob("keyed-0/*.cleaned"))
        code, offset = wire.produce(c, "t", batch([record(0, b"%06d" % 999_999 + VALUE)]))
        assert code == wire.NONE
        check(c, "t", [*acked, (999_999, offset)])
        assert b"%06d" % 1 + VALUE in wire.fetch(c, "keyed", 0)[2][: len(VALUE) + 500]
        check(c, "keyed", keyed[1:])


@pytest.mark.parametrize("room_by", ["deleting the records", "deleting another topic", "the operator"])
def test_a_full_disk_stops_producing_only_and_only_while_it_is_full(target, small_disk, jvm, tmp_path, room_by):
    ballast = small_disk / "ballast"
    with Connection(target) as c:
        ready(c, "other")
        ready(c, "t")
        if room_by == "deleting another topic":
            for _ in range(30):
                assert wire.produce(c, "other", batch([record(0, VALUE)]))[0] == wire.NONE
        if room_by == "the operator":
            ballast.write_bytes(b"\0" * (4 << 20))
        acked = fill(c, "t")
        for _ in range(20):  # it stays an error, not a hang or a crash
            assert wire.produce(c, "t", batch([record(0, VALUE)]))[0] == wire.KAFKA_STORAGE_ERROR
        check(c, "t", acked)

        if room_by == "deleting the records":
            plan = tmp_path / "plan.json"
            half = acked[len(acked) // 2][1]
            plan.write_text(f'{{"partitions":[{{"topic":"t","partition":0,"offset":{half}}}],"version":1}}')
            out = jvm.out("delete-records", "--bootstrap-server", target.bootstrap, "--offset-json-file", plan)
            assert f"low_watermark: {half}" in out
            acked = acked[len(acked) // 2 :]
        elif room_by == "deleting another topic":
            jvm.out("topics", "--bootstrap-server", target.bootstrap, "--delete", "--topic", "other")
        else:
            ballast.unlink()

        def resumed():
            code, offset = wire.produce(c, "t", batch([record(0, b"%06d" % 999_999 + VALUE)]))
            if code == wire.NONE:
                acked.append((999_999, offset))
            return code == wire.NONE

        wait_until(resumed, "producing resumes", 30, 0.1)
        check(c, "t", acked)
    target.restart()
    with Connection(target) as c:
        wait_until(lambda: wire.fetch(c, "t", acked[0][1])[0] == wire.NONE, "the partition is led")
        check(c, "t", acked)


def test_a_limit_of_file_sizes_is_as_a_full_disk(new_broker):
    target = new_broker()
    with Connection(target) as c:
        ready(c, "t")
        assert wire.produce(c, "t", batch([record(0, b"%06d" % 0 + VALUE)]))[0] == wire.NONE
        first = wire.fetch(c, "t")[1] - 1
        resource.prlimit(target.process.pid, resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))
        acked = fill(c, "t", [(0, first)])
        check(c, "t", acked)
        resource.prlimit(target.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        code, offset = wire.produce(c, "t", batch([record(0, b"%06d" % 999_999 + VALUE)]))
        assert code == wire.NONE
        check(c, "t", [*acked, (999_999, offset)])
