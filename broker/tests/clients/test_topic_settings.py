"""A topic's settings, changed while it is used: what each does from then on."""

import os
import time

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

import wire
from daemon import wait_until
from wire import Connection, batch, record

INVALID_TIMESTAMP = 32

# Where a batch's codec and the type of its timestamps stand: attributes, two bytes at 21.
CODEC, APPEND_TIME = 7, 8
CODECS = {"uncompressed": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


@pytest.fixture(scope="module")
def target(new_module_broker, against):
    # What is checked from time to time is checked at once, and deleted files go at once.
    settings = {"log.retention.check.interval.ms": "200", "log.segment.delete.delay.ms": "100"}
    if against.name == "kafka":
        settings["log.initial.task.delay.ms"] = "100"
    return new_module_broker(settings)


@pytest.fixture
def admin(target):
    return AdminClient({"bootstrap.servers": target.bootstrap})


class Topic:
    """One partition, written and read by hand."""

    def __init__(self, target, admin, name, **settings):
        self.target, self.admin, self.name = target, admin, name
        admin.create_topics([NewTopic(name, 1, 1, config=settings)])[name].result(30)
        self.connection = Connection(target)
        self.becomes(lambda: self.write()[0] == wire.NONE, "a topic that can be written to")

    def set(self, setting, value):
        operation = AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
        entry = ConfigEntry(setting, value, incremental_operation=operation)
        change = ConfigResource(ResourceType.TOPIC, self.name, incremental_configs=[entry])
        self.admin.incremental_alter_configs([change])[change].result(30)

    def write(self, size=10, shift_ms=0):
        """(error code, base offset) of one record, so much later than now."""
        at = int(time.time() * 1000) + shift_ms
        return wire.produce(self.connection, self.name, batch([record(0, b"x" * size)], timestamps=(at, at)))

    def becomes(self, condition, what):
        """Kafka's brokers learn of a change a moment after its answer."""
        wait_until(condition, what)

    def attributes(self, **options):
        """Those of a batch that is written now."""
        code, offset = self.write(**options)
        assert code == wire.NONE
        return int.from_bytes(wire.fetch(self.connection, self.name, offset)[2][21:23], "big")

    def files(self, suffix):
        directory = next(path for path in self.target.directory.rglob(f"{self.name}-0") if path.is_dir())
        return sorted(path for path in directory.iterdir() if path.name.endswith(suffix))

    def start(self):
        """The first offset that is still there (ListOffsets v1 of -2)."""
        body = wire.struct.pack(">i", -1) + wire.array([wire.string(self.name) + wire.array([wire.struct.pack(">iq", 0, -2)])])
        answer = self.connection.request(wire.LIST_OFFSETS, 1, body)
        return wire.struct.unpack_from(">q", answer, len(answer) - 8)[0]


@pytest.fixture
def topic(target, admin, name):
    return Topic(target, admin, name)


def test_the_codec(topic):
    for codec, number in CODECS.items():
        topic.set("compression.type", codec)
        topic.becomes(lambda: topic.attributes(size=500) & CODEC == number, codec)
    topic.set("compression.type", None)
    topic.becomes(lambda: topic.attributes(size=500) & CODEC == 0, "the producer's own codec")


def test_the_type_of_timestamps(topic):
    topic.set("message.timestamp.type", "LogAppendTime")
    topic.becomes(lambda: topic.attributes() & APPEND_TIME, "append times")
    topic.set("message.timestamp.type", "CreateTime")
    topic.becomes(lambda: not topic.attributes() & APPEND_TIME, "create times")


@pytest.mark.parametrize("side, shift_ms", [("before", -100_000), ("after", 100_000)])
def test_how_far_timestamps_may_be_off(topic, side, shift_ms):
    setting = f"message.timestamp.{side}.max.ms"
    assert topic.write(shift_ms=shift_ms)[0] == wire.NONE
    topic.set(setting, "60000")
    topic.becomes(lambda: topic.write(shift_ms=shift_ms)[0] == INVALID_TIMESTAMP, "refused")
    assert topic.write(shift_ms=-shift_ms)[0] == wire.NONE
    topic.set(setting, "200000")
    topic.becomes(lambda: topic.write(shift_ms=shift_ms)[0] == wire.NONE, "accepted")


def test_the_largest_batch(topic):
    topic.set("max.message.bytes", "1000")
    topic.becomes(lambda: topic.write(size=2000)[0] == wire.MESSAGE_TOO_LARGE, "refused")
    assert topic.write(size=800)[0] == wire.NONE
    topic.set("max.message.bytes", "5000000")
    topic.becomes(lambda: topic.write(size=2_000_000)[0] == wire.NONE, "accepted")


def test_the_size_of_segments_and_of_the_log(topic):
    for _ in range(4):
        topic.write(size=600_000)
    assert len(topic.files(".log")) == 1
    topic.set("segment.bytes", "1048576")
    topic.becomes(lambda: topic.write(size=600_000)[0] == 0 and len(topic.files(".log")) >= 3, "segments of 1 MiB")
    assert topic.start() == 0
    topic.set("retention.bytes", "1000000")
    topic.becomes(lambda: topic.start() > 0, "old segments to be deleted")
    topic.becomes(lambda: not topic.files(".deleted"), "their files to be gone")
    assert sum(path.stat().st_size for path in topic.files(".log")) < 3_000_000


def test_the_age_of_segments_and_of_records(topic):
    topic.set("segment.ms", "100")
    topic.becomes(lambda: topic.write()[0] == 0 and len(topic.files(".log")) >= 3, "segments of 100 ms")
    assert topic.start() == 0
    topic.set("retention.ms", "200")
    topic.becomes(lambda: topic.start() > 0, "old records to be deleted")


# Kafka heeds another size from the next segment on.
@pytest.mark.yuxi_only
def test_how_large_and_how_dense_indexes_are(topic):
    topic.set("segment.index.bytes", "800")
    topic.set("index.interval.bytes", "0")
    # An index of 100 entries is full after as many batches, if each gets one.
    def filled():
        for _ in range(130):
            topic.write()
        return len(topic.files(".log")) > 1

    topic.becomes(filled, "a segment that ends with its index")


def test_how_long_deleted_files_stay(topic):
    topic.set("segment.bytes", "1048576")
    topic.set("file.delete.delay.ms", "3000")
    for _ in range(6):
        topic.write(size=600_000)
    topic.set("retention.bytes", "1000000")
    topic.becomes(lambda: topic.files(".deleted"), "files that wait for their end")
    topic.becomes(lambda: not topic.files(".deleted"), "that end")


@pytest.mark.yuxi_only
def test_space_that_is_taken_beforehand(topic):
    def taken():
        return os.stat(topic.files(".log")[-1]).st_blocks * 512

    topic.set("segment.bytes", "4194304")
    topic.set("preallocate", "true")
    topic.set("segment.ms", "100")
    topic.becomes(lambda: topic.write()[0] == 0 and taken() >= 4_000_000, "a segment of full size")
