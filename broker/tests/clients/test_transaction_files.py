"""Aborted transactions on disk: Kafka reads our indexes of them, and we read Kafka's."""

import re
import shutil
import struct

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from daemon import Kafka, Yuxi, wait_until
from test_restart import create

ENTRY = struct.Struct(">hqqqq")
VALUE_BYTES = 30_000


def transactional(broker, name):
    producer = Producer({
        "bootstrap.servers": broker.bootstrap, "transactional.id": name, "linger.ms": 0, "transaction.timeout.ms": 60_000,
    })  # fmt: skip
    producer.init_transactions(30)
    return producer


def write(producer, name, values):
    for n in range(values):
        value = b"%s-%d " % (name.encode(), n)
        producer.produce("t", value.ljust(VALUE_BYTES, b"."), partition=0)
    assert producer.flush(30) == 0


def fill(broker):
    """Transactions over several segments, one of them as long as all the others together. Returns what is committed."""
    create(broker, "t", 1, segment_bytes="1048576", index_interval_bytes="4096")
    long, short = transactional(broker, "long"), transactional(broker, "short")
    committed = []
    long.begin_transaction()
    for n in range(30):
        write(long, f"long-{n}", 1)
        short.begin_transaction()
        write(short, f"short-{n}", 3)
        if n % 3 == 0:
            short.abort_transaction(30)
        else:
            short.commit_transaction(30)
            committed += [f"short-{n}-{i}" for i in range(3)]
    long.abort_transaction(30)
    return committed


def read(broker, isolation):
    """The first word of every value that a reader of this isolation gets."""
    consumer = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": "reader", "enable.partition.eof": True,
        "isolation.level": isolation, "fetch.message.max.bytes": 200_000,
    })  # fmt: skip
    try:
        consumer.assign([TopicPartition("t", 0, 0)])
        values = []
        while True:
            message = consumer.poll(20)
            assert message is not None, f"nothing after {len(values)} messages"
            if message.error():
                assert message.error().code() == -191, message.error()  # the partition's end
                return values
            values.append(message.value().split(b" ")[0].decode())
    finally:
        consumer.close()


def indexes(broker):
    files = sorted((broker.data_dir / "t-0").glob("*.txnindex"))
    return {file.name: file.read_bytes() for file in files if file.stat().st_size}


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_kafka_reads_our_aborted_transactions(new_broker, jvm, how):
    broker = new_broker()
    committed = fill(broker)
    assert read(broker, "read_committed") == committed
    broker.stop() if how == "stopped" else broker.kill()
    if how == "killed":
        broker.start()
        assert read(broker, "read_committed") == committed
        broker.stop()
    written = indexes(broker)
    assert len(written) >= 3
    files = sorted((broker.data_dir / "t-0").glob("*.txnindex"))
    out = jvm.out("dump-log", "--files", ",".join(map(str, files)))
    dumped = re.findall(r"producerId: (\d+) firstOffset: (\d+) lastOffset: (\d+) lastStableOffset: (\d+)", out)
    entries = [entry[1:] for bytes in written.values() for entry in ENTRY.iter_unpack(bytes)]
    assert [tuple(map(int, entry)) for entry in dumped] == entries
    assert len(entries) == 11
    # The long one began first and ended last.
    assert {stable for _, _, _, stable in entries[:-1]} == {entries[-1][1]}


@pytest.mark.yuxi_only
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_transactions_that_kafka_wrote_are_read_here(tmp_path, how):
    theirs = Kafka(tmp_path / "kafka")
    ours = Yuxi(tmp_path / "ours")
    try:
        theirs.start()
        committed = fill(theirs)
        assert read(theirs, "read_committed") == committed
        everything = read(theirs, "read_uncommitted")
        theirs.stop() if how == "stopped" else theirs.kill()
        written = indexes(theirs)
        shutil.copytree(theirs.data_dir / "t-0", ours.data_dir / "t-0")
        ours.start()
        assert read(ours, "read_uncommitted") == everything
        assert read(ours, "read_committed") == committed
        assert indexes(ours) == written
        # Once more with indexes that all have to be made anew.
        ours.kill()
        for checkpoint in ours.data_dir.glob("*-checkpoint"):
            checkpoint.unlink()
        for file in (ours.data_dir / "t-0").glob("*.txnindex"):
            file.write_bytes(b"\x5a" * 40)
        ours.start()
        assert read(ours, "read_committed") == committed
        wait_until(lambda: indexes(ours) == written, "the indexes are as they were")
    finally:
        theirs.abandon()
        ours.abandon()
