"""Requests that are well formed and wrong: each gets its own error, and changes
nothing else.
"""

import struct
import time
import zlib

import pytest
import zstandard
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

import wire
from daemon import wait_until
from test_hostile_bytes import MEMORY_LIMIT_BYTES, ready
from wire import Connection, batch, record


@pytest.fixture(scope="module")
def target(new_module_broker):
    return new_module_broker()


@pytest.fixture
def topic(target, name):
    with Connection(target) as c:
        ready(c, name)
    return name


BAD_BATCHES = {
    "wrong crc": (batch(crc=12345), {wire.CORRUPT_MESSAGE}),
    "magic 0": (batch(magic=0), {wire.INVALID_RECORD}),
    "magic 1": (batch(magic=1), {wire.INVALID_RECORD}),
    "magic 3": (batch(magic=3), {wire.CORRUPT_MESSAGE}),
    "magic -1": (batch(magic=-1), {wire.CORRUPT_MESSAGE}),
    "a base offset": (batch(base_offset=7), {wire.INVALID_RECORD}),
    "count too large": (batch(count=2, last_delta=1), {wire.INVALID_RECORD}),
    "count too small": (batch([record(0), record(1)], count=1, last_delta=0), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "count zero": (batch([], count=0, last_delta=0), {wire.INVALID_RECORD}),
    "count negative": (batch(count=-1), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "count huge": (batch(count=0x7FFFFFFF, last_delta=0x7FFFFFFE), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "last delta not count - 1": (batch([record(0), record(1)], last_delta=5), {wire.INVALID_RECORD}),
    "last delta negative": (batch(last_delta=-1), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "deltas not in a row": (batch([record(0), record(5)]), {wire.INVALID_RECORD}),
    "record length over the end": (batch([record(0, length=10_000)]), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "record length huge": (batch([record(0, length=0x7FFFFFFF)]), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "record length negative": (batch([record(0, length=-5)]), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "batch length zero": (batch(length=0), {wire.CORRUPT_MESSAGE, wire.INVALID_RECORD}),
    "batch length negative": (batch(length=-100), {wire.CORRUPT_MESSAGE, wire.INVALID_RECORD}),
    "batch length over the end": (batch(length=100_000), {wire.CORRUPT_MESSAGE, wire.INVALID_RECORD}),
    "only half a batch": (batch()[:40], {wire.INVALID_RECORD}),
    "bytes after the batch": (batch() + b"garbage", {wire.CORRUPT_MESSAGE, wire.INVALID_RECORD}),
    "two batches in one": (batch() + batch(), {wire.INVALID_RECORD}),
    "nothing": (b"", {wire.INVALID_RECORD}),
    "an unknown codec": (batch(attributes=7), {wire.INVALID_RECORD, wire.UNSUPPORTED_COMPRESSION_TYPE}),
    "gzip that is none": (batch(b"not gzip at all", attributes=1), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "snappy that is none": (batch(b"\xff" * 40, attributes=2), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "lz4 that is none": (batch(b"\xff" * 40, attributes=3), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "zstd that is none": (batch(b"\xff" * 40, attributes=4), {wire.INVALID_RECORD, wire.CORRUPT_MESSAGE}),
    "a control batch": (batch(attributes=0x20), {wire.INVALID_RECORD}),
    "over the topic's limit": (batch([record(0, b"x" * 1_100_000)]), {wire.MESSAGE_TOO_LARGE}),
}

# Kafka is more lenient with these, and less exact with what does not unpack.
KAFKA_STORES = ("deltas not in a row", "bytes after the batch")
KAFKAS_UNKNOWN_SERVER_ERROR = -1


@pytest.mark.parametrize("what", BAD_BATCHES)
def test_a_bad_batch_is_refused_and_nothing_of_it_is_stored(target, against, topic, what):
    data, expected = BAD_BATCHES[what]
    if against.name == "kafka":
        if what in KAFKA_STORES:
            pytest.skip("Kafka stores this")
        expected = expected | {KAFKAS_UNKNOWN_SERVER_ERROR}
    with Connection(target) as c:
        assert wire.produce(c, topic, batch()) == (wire.NONE, 0)
        answer = wire.produce(c, topic, data)
        assert answer is None or answer[0] in expected, answer
    with Connection(target) as c:
        assert wire.fetch(c, topic)[1] == 1
        assert wire.produce(c, topic, batch()) == (wire.NONE, 1)


def bomb(codec):
    """A batch of some hundred KB that unpacks to 512 MB of zeros in one record."""
    size = 512 << 20
    inner = b"\0" + wire.varint(0) + wire.varint(0) + wire.varint(-1) + wire.varint(size)
    head = wire.varint(len(inner) + size + 1) + inner
    zeros = b"\0" * (1 << 20)
    parts = [head, *[zeros] * (size >> 20), wire.varint(0)]
    if codec == "gzip":
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        payload = b"".join(map(packer.compress, parts)) + packer.flush()
        return batch(payload, attributes=1)
    packer = zstandard.ZstdCompressor().compressobj()
    payload = b"".join(map(packer.compress, parts)) + packer.flush()
    return batch(payload, attributes=4)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_decompression_bomb_takes_no_memory(target, topic, against, codec):
    data = bomb(codec)
    assert len(data) < 1_000_000
    before = target.resident_bytes()
    with Connection(target, timeout_s=60) as c:
        wire.produce(c, topic, data)
    if against.name == "yuxi":
        with open(f"/proc/{target.process.pid}/status") as status:
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
        assert peak - before < 2 * MEMORY_LIMIT_BYTES
    with Connection(target) as c:
        assert wire.produce(c, topic, batch())[0] == wire.NONE


@pytest.mark.parametrize("where", [("absent-topic", 0), ("", 0), ("../etc", 0), ("x" * 300, 0), (None, 1), (None, -1), (None, 0x7FFFFFFF)])
def test_producing_to_what_is_not_there_is_refused(target, topic, where):
    name, partition = where[0] if where[0] is not None else topic, where[1]
    with Connection(target) as c:
        answer = wire.produce(c, name, batch(), partition=partition)
        assert answer is None or answer[0] in (wire.UNKNOWN_TOPIC_OR_PARTITION, wire.INVALID_TOPIC)
    with Connection(target) as c:
        assert wire.fetch(c, topic)[1] == 0


@pytest.mark.parametrize("acks", [2, -2, 100])
def test_acks_that_do_not_exist_are_refused(target, topic, acks):
    with Connection(target) as c:
        assert wire.produce(c, topic, batch(), acks=acks)[0] == 21
        assert wire.fetch(c, topic)[1] == 0


@pytest.mark.parametrize(("offset", "code"), [(1, wire.NONE), (2, wire.OFFSET_OUT_OF_RANGE), (-1, wire.OFFSET_OUT_OF_RANGE),
                                              (1 << 62, wire.OFFSET_OUT_OF_RANGE)])  # fmt: skip
def test_a_fetch_outside_the_log_is_out_of_range(target, topic, offset, code):
    with Connection(target) as c:
        wire.produce(c, topic, batch())
        assert wire.fetch(c, topic, offset)[0] == code


def test_a_fetch_of_what_is_not_there_is_refused(target, topic):
    with Connection(target) as c:
        assert wire.fetch(c, "absent-topic")[0] == wire.UNKNOWN_TOPIC_OR_PARTITION
        assert wire.fetch(c, topic, partition=9)[0] == wire.UNKNOWN_TOPIC_OR_PARTITION


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../etc/passwd", "x" * 250, "a b", "ä", "a\0b"])
def test_asking_for_an_illegal_topic_creates_nothing(target, name):
    with Connection(target) as c:
        answer = c.request(wire.METADATA, 4, wire.array([wire.string(name)]) + b"\1")
        assert answer is None or struct.pack(">h", wire.INVALID_TOPIC) + wire.string(name) in answer


def join(connection, group, member="", session_timeout_ms=10_000, protocol_type="consumer", protocols=1, rebalance_ms=10_000):
    listed = [wire.string("range") + struct.pack(">i", 0)] * protocols
    body = wire.string(group) + struct.pack(">ii", session_timeout_ms, rebalance_ms) + wire.string(member)
    answer = connection.request(11, 5, body + struct.pack(">h", -1) + wire.string(protocol_type) + wire.array(listed))
    return None if answer is None else struct.unpack_from(">h", answer, 4)[0]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"group": ""}, wire.INVALID_GROUP_ID),
        ({"group": "g", "member": "nobody"}, wire.UNKNOWN_MEMBER_ID),
        ({"group": "g", "member": "x" * 32_000}, wire.UNKNOWN_MEMBER_ID),
        ({"group": "x" * 32_000}, wire.MEMBER_ID_REQUIRED),
        ({"group": "g", "session_timeout_ms": 1}, wire.INVALID_SESSION_TIMEOUT),
        ({"group": "g", "session_timeout_ms": -1}, wire.INVALID_SESSION_TIMEOUT),
        ({"group": "g", "session_timeout_ms": 0x7FFFFFFF}, wire.INVALID_SESSION_TIMEOUT),
        ({"group": "g", "protocol_type": ""}, 23),
        ({"group": "g", "protocols": 0}, 23),
    ],
    ids=str,
)
def test_joining_a_group_wrongly_is_refused(target, options, code):
    if options["group"] == "g":
        options = {**options, "group": f"g-{sorted(options)[-1]}-{code}"}
    with Connection(target) as c:
        c.request(10, 0, wire.string("any"))  # FindCoordinator makes __consumer_offsets
        loading = (14, 15, 16)
        wait_until(lambda: join(c, options["group"], "warm-up") not in loading, "the coordinator is there", 30)
        answer = join(c, **options)
        assert answer is None or answer == code


@pytest.mark.parametrize("group", ["", "unknown-group", "x" * 32_000])
@pytest.mark.parametrize("member", ["", "nobody", "y" * 32_000])
def test_members_nobody_knows_are_refused(target, group, member):
    wrong = (wire.UNKNOWN_MEMBER_ID, wire.INVALID_GROUP_ID, 22, 23)
    with Connection(target) as c:
        for key, body in (
            (12, wire.string(group) + struct.pack(">i", 3) + wire.string(member)),  # Heartbeat
            (14, wire.string(group) + struct.pack(">i", 3) + wire.string(member) + wire.array([])),  # SyncGroup
            (13, wire.string(group) + wire.string(member)),  # LeaveGroup
        ):
            answer = c.request(key, 0, body)
            assert answer is None or struct.unpack_from(">h", answer)[0] in wrong, f"API {key}"
        commit = wire.string("t") + wire.array([struct.pack(">iq", 0, 5) + wire.string("")])
        body = wire.string(group) + struct.pack(">i", 3) + wire.string(member) + struct.pack(">q", -1) + wire.array([commit])
        answer = c.request(8, 2, body)
        assert answer is None or struct.unpack_from(">h", answer, len(answer) - 2)[0] != wire.NONE


def sequenced(sequence, count=1, epoch=0, producer_id=4711):
    """A producer's batch of now: the state of one that was silent for a day is dropped."""
    now = int(time.time() * 1000)
    return batch([record(i) for i in range(count)], producer=(producer_id, epoch, sequence), timestamps=(now, now))


def test_an_idempotent_producers_sequence_is_checked(target, topic):
    duplicate_sequence, invalid_epoch = 46, 47
    with Connection(target) as c:
        send = lambda data: wire.produce(c, topic, data)  # noqa: E731
        assert send(sequenced(0, 3)) == (wire.NONE, 0)
        assert send(sequenced(3)) == (wire.NONE, 3)
        # Sent again: the answer is where it already is.
        assert send(sequenced(0, 3)) == (wire.NONE, 0)
        assert send(sequenced(3)) == (wire.NONE, 3)
        assert send(sequenced(9))[0] == wire.OUT_OF_ORDER_SEQUENCE
        for n in range(4, 10):
            assert send(sequenced(n)) == (wire.NONE, n)
        # Only the last five batches are remembered.
        assert send(sequenced(0, 3))[0] in (duplicate_sequence, wire.OUT_OF_ORDER_SEQUENCE)
        # A new epoch begins at 0, and the old one is fenced.
        assert send(sequenced(5, epoch=1))[0] == wire.OUT_OF_ORDER_SEQUENCE
        assert send(sequenced(0, epoch=1)) == (wire.NONE, 10)
        assert send(sequenced(10, epoch=0))[0] == invalid_epoch
        assert wire.fetch(c, topic)[1] == 11


def configure(target, topic, key, value):
    admin = AdminClient({"bootstrap.servers": target.bootstrap})
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([change])[change].result(20)


def test_timestamps_of_the_future_are_refused_when_the_topic_says_so(target, topic):
    configure(target, topic, "message.timestamp.after.max.ms", "60000")
    now = int(time.time() * 1000)
    with Connection(target) as c:
        future = lambda: wire.produce(c, topic, batch(timestamps=(now + 3_600_000,) * 2))  # noqa: E731
        wait_until(lambda: future()[0] == 32, "INVALID_TIMESTAMP")
        assert wire.produce(c, topic, batch(timestamps=(now, now)))[0] == wire.NONE
