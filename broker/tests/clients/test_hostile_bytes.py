"""Bytes that no client sends: each gets an error or a closed connection, takes
no memory, and leaves the broker serving.
"""

import os
import struct

import pytest

import wire
from daemon import wait_until
from wire import Connection

# What a broker may grow by while it is handed hostile numbers.
MEMORY_LIMIT_BYTES = 96 << 20


@pytest.fixture(scope="module")
def target(new_module_broker):
    return new_module_broker()


@pytest.fixture(autouse=True)
def _still_serving(target, against):
    """After each test the broker answers, stores and returns a record, and has not grown."""
    before = target.resident_bytes()
    yield
    assert target.alive(), target.tail()
    with Connection(target) as c:
        assert wire.api_versions(c)[0] == wire.NONE
        topic = "still-serving"
        ready(c, topic)
        code, offset = wire.produce(c, topic, wire.batch())
        assert code == wire.NONE
        code, _, records = wire.fetch(c, topic, offset)
        assert code == wire.NONE and b"value" in records
    if against.name == "yuxi":
        assert target.resident_bytes() - before < MEMORY_LIMIT_BYTES


def ready(connection, topic):
    """Creates a topic by asking for it, and waits for its leader."""

    def has_leader():
        answer = connection.request(wire.METADATA, 4, wire.array([wire.string(topic)]) + b"\1")
        # Kafka's metadata may name a leader a moment before it leads.
        return struct.pack(">h", 0) + wire.string(topic) in answer and wire.fetch(connection, topic)[0] == wire.NONE

    wait_until(has_leader, f"{topic} has a leader")


def closed(connection):
    return connection.read_frame() is None


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0x7FFFFFFE, 1 << 30, -1, -(1 << 31), 0, 1, 7])
def test_a_frame_of_impossible_size_closes_the_connection(target, size):
    with Connection(target) as c:
        c.send(struct.pack(">i", size) + b"\0" * max(min(size, 64), 0))
        assert closed(c)


@pytest.mark.yuxi_only  # Kafka allocates a frame's declared size at once
def test_a_frame_that_never_ends_holds_nobody_up(target):
    held = [Connection(target) for _ in range(50)]
    try:
        for c in held:
            c.send(struct.pack(">i", 50_000_000) + wire.header(wire.PRODUCE, 7) + b"x" * 1000)
        with Connection(target) as c:
            assert wire.api_versions(c)[0] == wire.NONE
    finally:
        for c in held:
            c.socket.close()


def test_a_request_in_many_small_pieces_is_one_request(target):
    frame = wire.header(wire.API_VERSIONS, 0)
    with Connection(target) as c:
        for byte in struct.pack(">i", len(frame)) + frame:
            c.send(bytes([byte]))
        assert c.read_frame() is not None


def test_pipelined_requests_are_answered_in_order(target):
    frame = lambda n: struct.pack(">i", len(f := wire.header(wire.API_VERSIONS, 0, n))) + f  # noqa: E731
    with Connection(target) as c:
        c.send(b"".join(map(frame, range(200))))
        assert [struct.unpack_from(">i", c.read_frame())[0] for _ in range(200)] == list(range(200))


def test_a_frame_cut_anywhere_is_harmless(target):
    with Connection(target) as c:
        ready(c, "cut")
    frame = wire.header(wire.PRODUCE, 7) + wire.produce_body("cut", wire.batch())
    for end in range(len(frame)):
        with Connection(target) as c:  # the connection ends in the middle of the frame
            c.send(struct.pack(">i", len(frame)) + frame[:end])
        with Connection(target) as c:  # the frame ends in the middle of the request
            c.send_frame(frame[:end])
            answer = c.read_frame()
            assert answer is None or not _accepted(answer), end
    with Connection(target) as c:
        assert wire.fetch(c, "cut")[1] == 0


def _accepted(answer):
    return struct.unpack_from(">h", answer, 4 + 4 + 2 + len("cut") + 4 + 4)[0] == wire.NONE


@pytest.mark.parametrize("key", [-1, 93, 999, 32767, -32768])
def test_an_unknown_api_closes_the_connection(target, key):
    with Connection(target) as c:
        assert c.request(key, 0, b"\0" * 8) is None


@pytest.mark.parametrize("version", [-1, 99, 32767, -32768])
@pytest.mark.parametrize("key", [0, 1, 2, 3, 8, 11, 19, 32])
def test_an_unknown_version_is_refused(target, key, version):
    with Connection(target) as c:
        answer = c.request(key, version, b"\0" * 32)
        assert answer is None or struct.unpack_from(">h", answer)[0] == wire.UNSUPPORTED_VERSION


def test_api_versions_of_an_unknown_version_says_which_are_known(target):
    with Connection(target) as c:
        code, ranges = wire.api_versions(c, 99, b"\0\0\0\0")
        assert code == wire.UNSUPPORTED_VERSION and ranges[wire.API_VERSIONS][1] >= 3
        # The client asks again on the same connection.
        assert wire.api_versions(c)[0] == wire.NONE


def test_every_api_and_version_survives_hostile_bodies(target, against):
    obeyed = ()
    if against.name == "kafka":
        # UnregisterBroker and UpdateFeatures: some of these bodies are orders that Kafka obeys.
        obeyed = (57, 64)
    with Connection(target) as c:
        ranges = wire.api_versions(c)[1]
    seed = int(os.environ.get("YUXI_TEST_SEED", "20240607"))
    print(f"YUXI_TEST_SEED={seed}")
    with Connection(target) as control:
        for key, (low, high) in sorted(ranges.items()):
            if key in obeyed:
                continue
            for version in sorted({low, high, min(low + 1, high), (low + high) // 2}):
                for n, body in enumerate(wire.hostile_bodies(seed + key * 100 + version)):
                    with Connection(target) as c:
                        c.send_frame(wire.header(key, version) + body)
                        try:
                            assert wire.api_versions(control)[0] == wire.NONE
                        except (OSError, TypeError) as error:
                            raise AssertionError(f"gone after API {key} v{version}, body {n}: {body.hex()}") from error


@pytest.mark.parametrize("count", [b"\x7f\xff\xff\xff", b"\x00\x98\x96\x80", b"\x00\x00\x10\x00"])
def test_a_count_that_the_frame_can_not_hold_closes_the_connection(target, count):
    bodies = {
        (wire.METADATA, 4): count + b"\0",
        (wire.PRODUCE, 7): b"\xff\xff\xff\xff\0\0\x10\0" + count,
        (wire.FETCH, 4): b"\xff\xff\xff\xff" + b"\0" * 13 + count,
        (wire.LIST_OFFSETS, 1): b"\xff\xff\xff\xff" + count,
        (19, 0): count,
        (8, 2): wire.string("group") + b"\0\0\0\1" + wire.string("") + b"\0" * 8 + count,
        (11, 0): wire.string("group") + b"\0\0\x27\x10" + wire.string("") + wire.string("consumer") + count,
        (15, 0): count,
        (20, 0): count,
        (32, 0): count,
        (42, 0): count,
        (44, 0): count,
    }
    with Connection(target) as c:
        ranges = wire.api_versions(c)[1]
    for (key, version), body in bodies.items():
        if not ranges[key][0] <= version <= ranges[key][1]:
            continue
        with Connection(target) as c:
            assert c.request(key, version, body) is None, f"API {key}"


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\x7f", b"\xff" * 10])
def test_compact_lengths_and_tags_that_lie_close_the_connection(target, length):
    bodies = {
        (wire.METADATA, 9): length,
        (wire.METADATA, 12): b"\1\0\0" + length,
        (wire.API_VERSIONS, 3): length + length,
        (wire.PRODUCE, 9): length,
        (10, 3): length,
        (11, 6): length,
    }
    for (key, version), body in bodies.items():
        with Connection(target) as c:
            answer = c.request(key, version, body)
            # ApiVersions of a body that can't be read may be answered as invalid.
            assert answer is None or key == wire.API_VERSIONS, f"API {key}"


def test_connections_that_come_and_go_leave_nothing_behind(target):
    def descriptors():
        return len(os.listdir(f"/proc/{target.process.pid}/fd"))

    before = descriptors()
    for n in range(400):
        c = Connection(target)
        if n % 3 == 0:
            c.send(b"\0\0")
        elif n % 3 == 1:
            c.send_frame(wire.header(wire.API_VERSIONS, 0))
        c.socket.close()
    wait_until(lambda: descriptors() <= before + 5, "the descriptors are closed")
