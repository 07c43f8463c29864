"""Comparing replicas' logs, on logs that are made here."""

import struct

import pytest

from faultsuite import disk_logs
from faultsuite.kafka_calls import wire


def batch(base, count, epoch=0, text=b"v", producer=(-1, -1)):
    data = bytearray(wire.batch([wire.record(n, text + b"%d" % n) for n in range(count)], base_offset=base))
    struct.pack_into(">i", data, 12, epoch)
    struct.pack_into(">qh", data, 43, *producer)
    return bytes(data)


@pytest.fixture
def replica(tmp_path):
    """Writes a replica's segments: {base offset: [batches]}."""

    def write(name, segments):
        directory = tmp_path / name
        directory.mkdir()
        for base, batches in segments.items():
            (directory / f"{base:020}.log").write_bytes(b"".join(batches))
        return directory

    return write


def difference(end, has_gaps=False, **directories):
    return disk_logs.difference(directories, end, has_gaps)[0]


def test_replicas_may_have_rolled_segments_elsewhere(replica):
    a = replica("a", {0: [batch(0, 2), batch(2, 1, epoch=1)], 3: [batch(3, 4, epoch=1)]})
    b = replica("b", {0: [batch(0, 2)], 2: [batch(2, 1, epoch=1), batch(3, 4, epoch=1)]})
    found, size = disk_logs.difference({"a": a, "b": b}, 7)
    assert found is None and size == sum(len(batch(0, n)) for n in (2, 1, 4))


def test_what_is_above_the_high_watermark_may_differ(replica):
    a = replica("a", {0: [batch(0, 2), batch(2, 2, text=b"a")]})
    b = replica("b", {0: [batch(0, 2)]})
    assert difference(2, a=a, b=b) is None
    assert "ends at offset 2, below the high watermark 4" in difference(4, a=a, b=b)


@pytest.mark.parametrize("other", [batch(2, 2, text=b"b"), batch(2, 2, epoch=1), batch(2, 3)])
def test_another_record_epoch_or_batch_is_a_difference(replica, other):
    a = replica("a", {0: [batch(0, 2), batch(2, 2)]})
    b = replica("b", {0: [batch(0, 2), other]})
    assert "replicas differ" in difference(4, a=a, b=b)


@pytest.mark.parametrize("batches, told", [
    ([batch(0, 2), batch(3, 1)], "goes on with offset 3 where 2 should be"),
    ([batch(0, 2), batch(1, 3)], "goes on with offset 1 where 2 should be"),
    ([batch(0, 2, epoch=2), batch(2, 2, epoch=1)], "leader epoch 1 after 2"),
    ([batch(0, 4), batch(4, 1)[:65]], "no whole batch"),
    ([batch(0, 4), b"\0" * 10], "within a batch's header"),
])  # fmt: skip
def test_a_log_in_disorder_is_told(replica, batches, told):
    assert told in difference(5, a=replica("a", {0: batches}))


def test_a_compacted_log_may_have_gaps(replica):
    a = replica("a", {0: [batch(0, 2), batch(5, 1)]})
    assert difference(6, has_gaps=True, a=a) is None


def test_records_are_read_with_their_offsets(replica):
    directory = replica("a", {0: [batch(0, 1), batch(1, 2)]})
    assert [r for b in disk_logs.batches(directory) for r in b.records()] == [(0, b"v0"), (1, b"v0"), (2, b"v1")]


@pytest.mark.parametrize("epochs, zombies", [
    ([(7, 0), (7, 0), (8, 3), (7, 1), (8, 3)], []),
    ([(7, 0), (7, 1), (7, 0), (7, 1)], [2]),
    ([(7, 5), (8, 0), (7, 3), (7, 4)], [2, 3]),
    ([(-1, -1), (7, 1), (-1, -1)], []),
])  # fmt: skip
def test_who_writes_in_an_old_epoch_after_a_newer_one_is_a_zombie(replica, epochs, zombies):
    directory = replica("a", {0: [batch(base, 1, producer=one) for base, one in enumerate(epochs)]})
    found = list(disk_logs.zombie_writes(directory))
    assert [offset for offset, _ in found] == zombies
    assert all("wrote in epoch" in text for _, text in found)
