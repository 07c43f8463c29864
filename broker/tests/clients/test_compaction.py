"""Topics compacted by key: what consumers see, and what Kafka's tools make of the files.

All of it holds against Apache Kafka, too: its cleaner leaves the same records.
"""

import random
import re

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from daemon import wait_until
from test_disk_format import COMPLAINTS
from test_restart import create

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]

# Compaction at once, and of everything that is closed. Kafka's cleaner wants 1 MiB and more.
EAGER = {"log.cleaner.backoff.ms": "100", "log.cleaner.dedupe.buffer.size": "4194304"}
SMALL = {
    "cleanup_policy": "compact", "segment_bytes": "1048576", "min_cleanable_dirty_ratio": "0",
    "file_delete_delay_ms": "100", "index_interval_bytes": "4096",
}  # fmt: skip


def read_keyed(broker, topic):
    """Every (offset, key, value), by a consumer of committed records."""
    consumer = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": "reader", "enable.partition.eof": True,
        "check.crcs": True, "isolation.level": "read_committed",
    })  # fmt: skip
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        found = []
        while True:
            # Not several at once: that waits for as many, even past the end.
            message = consumer.poll(20)
            assert message is not None, f"nothing after {len(found)} messages"
            if message.error():
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                return found
            found.append((message.offset(), message.key(), message.value()))
    finally:
        consumer.close()


def fill(broker, topic):
    """Five codecs, a hundred keys written again and again, tombstones; several segments."""
    sent = []
    rng = random.Random(7)
    for codec in CODECS:
        producer = Producer({
            "bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "compression.type": codec,
            "linger.ms": 2, "batch.num.messages": 30,
        })  # fmt: skip
        for i in range(600):
            # Some keys of its own for each codec, so that something of each stays.
            key = b"%s-%d" % (codec.encode(), i) if i % 30 == 7 else b"key-%d" % rng.randrange(100)
            value = None if i % 40 == 0 else rng.randbytes(1000) + b" " * (i % 90)
            producer.produce(topic, value, key=key, partition=0)
            sent.append((key, value))
        assert producer.flush(30) == 0
    # What is written last closes the segments before it and stays uncleaned itself.
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True})
    for i in range(1200):
        value = rng.randbytes(1000)
        producer.produce(topic, value, key=b"late-%d" % i, partition=0)
        sent.append((b"late-%d" % i, value))
    assert producer.flush(30) == 0
    return sent


def compacted(broker, topic, sent):
    """Waits until only the last of each key is left among the first 3000."""
    last = {key: offset for offset, (key, _) in enumerate(sent)}
    expected = [(offset, key, value) for offset, (key, value) in enumerate(sent) if last[key] == offset]

    def cleaned():
        found = read_keyed(broker, topic)
        assert found == [row for row in found if (row[1], row[2]) == sent[row[0]]], "offsets and values stay"
        return found if len(found) <= len(expected) else None

    found = wait_until(cleaned, "the log is compacted", 120, 0.5)
    assert found == expected
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_what_compaction_leaves_is_read_by_kafkas_tools(new_broker, jvm, how):
    broker = new_broker(EAGER)
    create(broker, "t", **SMALL)
    sent = fill(broker, "t")
    kept = compacted(broker, "t", sent)
    broker.stop() if how == "stopped" else broker.kill()

    partition = broker.data_dir / "t-0"
    assert not list(partition.glob("*.cleaned")) and not list(partition.glob("*.swap"))
    logs = sorted(partition.glob("*.log"))

    def dump(files, *options):
        out = jvm.out("dump-log", "--files", ",".join(map(str, files)), *options)
        # Gaps are what compaction makes.
        complaints = [line for line in out.splitlines() if COMPLAINTS.search(line) and "Non-consecutive" not in line]
        assert not complaints, "\n".join(complaints)
        return out

    out = dump(logs, "--deep-iteration", "--print-data-log")
    assert [int(n) for n in re.findall(r"^\| offset: (\d+)", out, re.M)] == [offset for offset, _, _ in kept]
    assert {c.lower() for c in re.findall(r"compresscodec: (\w+)", out)} == set(CODECS)
    assert re.search(r"deleteHorizonMs: OptionalLong\[\d+\]", out), "tombstones have their horizon"
    closed = sorted(partition.glob("*.index"))[:-1]
    assert "offset: " in dump(closed)
    dump([index.with_suffix(".timeindex") for index in closed])
    version, count, *rows = (broker.data_dir / "cleaner-offset-checkpoint").read_text().splitlines()
    assert version == "0" and int(count) == len(rows)
    row = next(row for row in rows if row.startswith("t 0 "))
    assert 3000 <= int(row.split()[2]) <= len(sent)

    broker.start()
    assert read_keyed(broker, "t") == kept
    # The producers' last sequences were kept, so that they go on where they were.
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True})
    producer.produce("t", b"new", key=b"key-1", partition=0)
    assert producer.flush(30) == 0
    assert read_keyed(broker, "t")[-1] == (len(sent), b"key-1", b"new")


def test_a_record_without_a_key_is_refused(broker, name):
    create(broker, name, cleanup_policy="compact")
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    errors = []
    producer.produce(name, b"no key", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert [error.code() for error in errors] == [KafkaError.INVALID_RECORD]
    producer.produce(name, b"value", key=b"key", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert errors[1] is None


@pytest.mark.parametrize(
    "setting, value",
    [("min.cleanable.dirty.ratio", "1.5"), ("cleanup.policy", "shrink"), ("max.compaction.lag.ms", "0")],
)
def test_settings_of_compaction_that_make_no_sense_are_refused(broker, name, setting, value):
    with pytest.raises(KafkaException) as refused:
        create(broker, name, **{setting: value})
    assert refused.value.args[0].code() == KafkaError.INVALID_CONFIG


@pytest.mark.timeout(300)
def test_a_transaction_reads_the_same_before_and_after(new_broker, jvm):
    """Committed, aborted and superseded records, then the files by Kafka's tools."""
    broker = new_broker({**EAGER, "transaction.state.log.replication.factor": "1", "transaction.state.log.min.isr": "1"})
    create(broker, "t", **SMALL)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "transactional.id": "tx"})
    producer.init_transactions(30)
    rng = random.Random(11)
    expected = {}
    for n in range(60):
        producer.begin_transaction()
        commits = n % 3 != 0
        for _ in range(40):
            key, value = b"key-%d" % rng.randrange(50), rng.randbytes(1000)
            producer.produce("t", value, key=key, partition=0)
            if commits:
                expected[key] = value
        # An abort drops what is not sent yet. And librdkafka does not survive it where the partition was refused so
        # far, as the end of the last transaction was still being written: neither Kafka nor we take the abort of a
        # transaction that has not begun.
        assert producer.flush(30) == 0
        producer.commit_transaction(30) if commits else producer.abort_transaction(30)

    def last():
        return {key: value for _, key, value in read_keyed(broker, "t")}

    assert last() == expected
    wait_until(lambda: len(read_keyed(broker, "t")) < 1200, "the log is compacted", 60, 0.5)
    assert last() == expected
    broker.stop()
    logs = sorted((broker.data_dir / "t-0").glob("*.log"))
    out = jvm.out("dump-log", "--files", ",".join(map(str, logs)), "--deep-iteration")
    complaints = [line for line in out.splitlines() if COMPLAINTS.search(line) and "Non-consecutive" not in line]
    assert not complaints, "\n".join(complaints)
    assert "isControl: true" in out and "endTxnMarker: COMMIT" in out
    broker.start()
    assert last() == expected
