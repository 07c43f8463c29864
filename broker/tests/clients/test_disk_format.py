"""Kafka reads our directory, and we read Kafka's."""

import random
import re
import shutil

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from daemon import Kafka, Yuxi, wait_until
from test_restart import create, read_all

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]

# What DumpLogSegments says when something is wrong with a file.
COMPLAINTS = re.compile(r"mismatch|non-consecutive|invalid|corrupt|not found|exception|Found timestamp|isvalid: false", re.I)


def fill(broker):
    """A topic of several segments, all codecs, keys, headers, tombstones; a group's offsets."""
    create(broker, "t", 2, segment_bytes="1048576", index_interval_bytes="4096")
    sent = []
    rng = random.Random(5)
    for n, codec in enumerate(CODECS):
        producer = Producer({
            "bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "compression.type": codec,
            "linger.ms": 2, "batch.num.messages": 30,
        })  # fmt: skip
        for i in range(600):
            # Mostly what no codec can shrink, so that each fills a segment.
            value = None if i % 50 == 0 else rng.randbytes(1000 + i) + b" " * (i % 90)
            producer.produce(
                "t", value, key=b"key-%d" % i, partition=0, headers=[("codec", codec.encode())],
                timestamp=1_700_000_000_000 + n * 600_000 + i * 1000,
            )  # fmt: skip
            sent.append(value)
        assert producer.flush(30) == 0
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for n in range(3):
        group = f"group-{n}"
        wanted = ConsumerGroupTopicPartitions(group, [TopicPartition("t", 0, 100 + n)])

        def committed(group=group, wanted=wanted):
            # Kafka's coordinator is not there at once; the error stands with the partition.
            altered = admin.alter_consumer_group_offsets([wanted])[group].result(20)
            return altered.topic_partitions[0].error is None

        wait_until(committed, "the group's offset is committed", 30, 0.1)
    member = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": "group-live", "client.id": "the-member",
        "auto.offset.reset": "earliest", "enable.auto.commit": False,
    })  # fmt: skip
    member.subscribe(["t"])
    wait_until(lambda: member.poll(0.2), "a member reads", 30)
    member.commit(asynchronous=False)
    member.close()
    return sent


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_dump_log_segments_reads_every_file_without_complaint(new_broker, jvm, how):
    broker = new_broker()
    sent = fill(broker)
    partition = broker.data_dir / "t-0"
    if how == "stopped":
        broker.stop()
    else:
        # Closed segments are flushed within about a second, and the epoch is written with the first.
        wait_until((partition / "leader-epoch-checkpoint").exists, "a closed segment is flushed", 30)
        broker.kill()

    def dump(files, *options):
        assert files
        out = jvm.out("dump-log", "--files", ",".join(map(str, sorted(files))), *options)
        assert not COMPLAINTS.search(out), "\n".join(line for line in out.splitlines() if COMPLAINTS.search(line))
        return out

    logs = list(partition.glob("*.log"))
    assert len(logs) >= 3
    out = dump(logs, "--deep-iteration", "--print-data-log")
    assert [int(n) for n in re.findall(r"^\| offset: (\d+)", out, re.M)] == list(range(len(sent)))
    assert [int(n) for n in re.findall(r"^\| .*?keySize: (-?\d+)", out, re.M)].count(-1) == 0
    assert {c.lower() for c in re.findall(r"compresscodec: (\w+)", out)} == set(CODECS)
    assert re.search(r"baseSequence: 0 lastSequence: \d+ producerId: \d+ producerEpoch: 0", out)

    # With the log beside it, each index is checked against it; of a killed
    # broker, the active segment's may still be as long as preallocated.
    closed = sorted(partition.glob("*.index"))[:-1] if how == "killed" else list(partition.glob("*.index"))
    assert "offset: " in dump(closed)
    times = [index.with_suffix(".timeindex") for index in closed]
    assert "timestamp: " in dump(times)
    snapshots = list(partition.glob("*.snapshot"))
    assert len(snapshots) >= 2
    assert re.search(r"producerId: \d+ producerEpoch: 0", dump(snapshots))
    assert "topic_id: " in (partition / "partition.metadata").read_text()
    assert (partition / "leader-epoch-checkpoint").read_text().startswith("0\n")

    offsets = [log for log in broker.data_dir.glob("__consumer_offsets-*/*.log") if log.stat().st_size]
    out = dump(offsets, "--offsets-decoder")
    for n in range(3):
        assert re.search(rf'"group":"group-{n}","topic":"t","partition":0', out)
        assert re.search(rf'"offset":{100 + n},', out)
    assert '"protocolType":"consumer"' in out and "the-member" in out


def test_kafkas_checkpoints_and_properties(new_broker):
    broker = new_broker()
    fill(broker)
    broker.stop()
    for name in ("recovery-point-offset-checkpoint", "replication-offset-checkpoint", "log-start-offset-checkpoint"):
        version, count, *rows = (broker.data_dir / name).read_text().splitlines()
        assert version == "0" and int(count) == len(rows), name
        assert all(re.fullmatch(r"\S+ \d+ \d+", row) for row in rows), name
    rows = (broker.data_dir / "replication-offset-checkpoint").read_text().splitlines()
    assert "t 0 3000" in rows
    assert (broker.data_dir / ".kafka_cleanshutdown").exists()
    meta = dict(line.split("=", 1) for line in (broker.data_dir / "meta.properties").read_text().splitlines() if "=" in line)
    assert meta["version"] == "1" and meta["node.id"].isdigit() and len(meta["cluster.id"]) == 22


@pytest.mark.yuxi_only
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_directory_written_by_kafka_opens_here(tmp_path, how):
    """The partitions of a Kafka data directory, put into an empty one of ours, are adopted."""
    theirs = Kafka(tmp_path / "kafka")
    ours = Yuxi(tmp_path / "ours")
    try:
        theirs.start()
        sent = fill(theirs)
        expected = read_all(theirs, "t")
        assert [value for _, value in expected] == sent
        if how == "stopped":
            theirs.stop()
        else:
            theirs.kill()
        for partition in theirs.data_dir.glob("*-*"):
            if partition.is_dir() and not partition.name.startswith("__cluster_metadata"):
                shutil.copytree(partition, ours.data_dir / partition.name)
        ours.start()
        assert read_all(ours, "t") == expected
        admin = AdminClient({"bootstrap.servers": ours.bootstrap})
        assert len(admin.list_topics(timeout=10).topics["t"].partitions) == 2
        listed = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("group-1")])["group-1"].result(30)
        assert [p.offset for p in listed.topic_partitions] == [101]
        producer = Producer({"bootstrap.servers": ours.bootstrap, "enable.idempotence": True})
        producer.produce("t", b"new", partition=0)
        assert producer.flush(30) == 0
        assert read_all(ours, "t")[-1] == (len(sent), b"new")
        ours.restart()
        assert len(read_all(ours, "t")) == len(sent) + 1
    finally:
        theirs.abandon()
        ours.abandon()
