"""What is wrong with a copy."""

import pytest

from faultsuite.copy_ledger import KINDS, Copy, Partition, checksum, judge, transaction_name

SOURCE = {offset: f"record {offset}".encode() for offset in range(6)}


def copy(source, transaction="0-0-1", size=2, **changed):
    return Copy(**{"source": source, "transaction": transaction, "size": size, "checksum": checksum(SOURCE[source]), **changed})


def judged(output, committed=4, acknowledged=(), aborted=()):
    """What is wrong with one partition."""
    wrong = judge([Partition(committed, SOURCE, output, set(acknowledged))], set(aborted))
    assert sorted(wrong) == sorted(KINDS)
    return {kind: count for kind, count in wrong.items() if count}


B = "1-0-1"
WHOLE = [copy(0), copy(1), copy(2, B), copy(3, B)]


@pytest.mark.parametrize("output, more, wrong", [
    (WHOLE, {"acknowledged": [0, 1, 2, 3]}, {}),
    ([], {"committed": 0}, {}),
    (WHOLE[:2], {}, {"offsets_without_output": 2}),
    (WHOLE, {"committed": 2}, {"output_without_offsets": 2}),
    (WHOLE[:2], {"committed": 2, "acknowledged": [0, 1, 2]}, {"lost": 1}),
    ([*WHOLE[:2], *WHOLE], {}, {"duplicated": 2}),
    ([*WHOLE[2:], *WHOLE[:2]], {}, {"out_of_order": 2}),
    (WHOLE[:3], {"committed": 3}, {"torn": 1}),
    (WHOLE, {"aborted": [B]}, {"aborted_reads": 2}),
    ([*WHOLE[:3], copy(3, B, checksum=0)], {}, {"altered": 1}),
    ([*WHOLE[:2], copy(2, "0-3-1", 1), copy(3, "0-2-7", 1)], {}, {"zombie_writes": 1}),
    ([*WHOLE[:2], copy(2, "0-2-9", 1), copy(3, "0-10-1", 1)], {}, {}),
    ([copy(0, "0-3-1", 1), copy(1, "1-2-1", 1), copy(2, "1-4-1"), copy(3, "1-4-1")], {}, {}),
])  # fmt: skip
def test_each_anomaly_has_its_name(output, more, wrong):
    assert judged(output, **more) == wrong


def test_a_transaction_is_whole_over_all_partitions():
    partitions = [Partition(1, SOURCE, [copy(0)], set()) for _ in range(2)]
    assert not any(judge(partitions, set()).values())
    assert judge(partitions[:1], set())["torn"] == 1


def test_a_zombie_is_one_only_where_its_successor_has_written():
    """Each partition has an order of its own."""
    partitions = [Partition(1, SOURCE, [copy(0, name, 1)], set()) for name in ("0-2-1", "0-1-1")]
    assert not any(judge(partitions, set()).values())


def test_a_copy_is_written_and_read_in_the_form_of_all_loads():
    one = copy(5, transaction_name(1, 77, 3), 9)
    value = one.value("copy", 4)
    assert value.split()[1:3] == ["4", "5"]
    assert Copy.parse(value.encode()) == one and one.writer == (1, 77)
