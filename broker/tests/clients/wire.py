"""Kafka frames and record batches made by hand, so that they can be made wrong."""

import random
import socket
import struct

PRODUCE, FETCH, LIST_OFFSETS, METADATA, API_VERSIONS = 0, 1, 2, 3, 18

NONE = 0
OFFSET_OUT_OF_RANGE = 1
CORRUPT_MESSAGE = 2
UNKNOWN_TOPIC_OR_PARTITION = 3
MESSAGE_TOO_LARGE = 10
INVALID_TOPIC = 17
INVALID_GROUP_ID = 24
UNKNOWN_MEMBER_ID = 25
INVALID_SESSION_TIMEOUT = 26
UNSUPPORTED_VERSION = 35
UNSUPPORTED_FOR_MESSAGE_FORMAT = 43
OUT_OF_ORDER_SEQUENCE = 45
KAFKA_STORAGE_ERROR = 56
UNSUPPORTED_COMPRESSION_TYPE = 76
MEMBER_ID_REQUIRED = 79
INVALID_RECORD = 87


class Connection:
    """One connection; a request is a frame, an answer the bytes after the correlation id."""

    def __init__(self, broker, timeout_s=10):
        host, port = broker.bootstrap.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def send_frame(self, body):
        self.send(struct.pack(">i", len(body)) + body)

    def read_frame(self):
        """The next frame's body, or None when the broker closed the connection."""
        try:
            size = self._read(4)
            return None if size is None else self._read(struct.unpack(">i", size)[0])
        except (ConnectionResetError, BrokenPipeError):
            return None

    def _read(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                return None
            data += part
        return data

    def request(self, key, version, body, correlation=7):
        """Sends a request and returns the answer's body, or None if the connection is closed for it."""
        try:
            self.send_frame(header(key, version, correlation) + body)
        except (ConnectionResetError, BrokenPipeError):
            return None
        answer = self.read_frame()
        if answer is None:
            return None
        assert struct.unpack_from(">i", answer)[0] == correlation
        return answer[4:]


def header(key, version, correlation=7, client="test"):
    """Header v1, with the empty tag section of v2 where the API's version is flexible."""
    tags = b"\0" if version >= FIRST_FLEXIBLE.get(key, 0) else b""
    return struct.pack(">hhi", key, version, correlation) + string(client) + tags


# Where each API's request header becomes flexible (its JSON schema's flexibleVersions).
FIRST_FLEXIBLE = {
    0: 9, 1: 12, 2: 6, 3: 9, 8: 8, 9: 6, 10: 3, 11: 6, 12: 4, 13: 4, 14: 4, 15: 5, 16: 3, 17: 99, 18: 3, 19: 5,
    20: 4, 21: 2, 22: 2, 23: 4, 24: 3, 25: 3, 26: 3, 27: 1, 28: 3, 29: 2, 30: 2, 31: 2, 32: 4, 33: 2, 34: 2, 35: 2,
    36: 2, 37: 2, 38: 2, 39: 2, 40: 2, 41: 2, 42: 2, 43: 2, 44: 1, 45: 0, 46: 0, 47: 99, 48: 1, 49: 1, 68: 0,
}  # fmt: skip


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack(">h", len(data)) + data


def compact(text):
    """A string of a flexible version, or null."""
    return b"\0" if text is None else unsigned_varint(len(text.encode()) + 1) + text.encode()


def compact_array(items):
    return b"\0" if items is None else unsigned_varint(len(items) + 1) + b"".join(items)


def array(items):
    return struct.pack(">i", len(items)) + b"".join(items)


def varint(number):
    """Zigzag, as lengths and deltas in records are."""
    return unsigned_varint((number << 1) ^ (number >> 63))


def unsigned_varint(number):
    number &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def _crc32c_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ 0x82F63B78 if n & 1 else n >> 1
        table.append(n)
    return table


_TABLE = _crc32c_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def record(delta, value=b"value", key=None, timestamp_delta=0, length=None):
    body = b"\0" + varint(timestamp_delta) + varint(delta)
    body += (varint(-1) if key is None else varint(len(key)) + key) + varint(len(value)) + value + varint(0)
    return varint(len(body) if length is None else length) + body


def batch(
    records=None, *, count=None, last_delta=None, magic=2, crc=None, attributes=0, length=None, base_offset=0,
    producer=(-1, -1, -1), timestamps=(1_700_000_000_000, 1_700_000_000_000),
):  # fmt: skip
    """A record batch, right unless told otherwise."""
    records = [record(0)] if records is None else records
    number = len(records) if isinstance(records, list) else 1
    payload = b"".join(records) if isinstance(records, list) else records
    after_crc = struct.pack(
        ">hiqqqhii", attributes, number - 1 if last_delta is None else last_delta, *timestamps, *producer,
        number if count is None else count,
    ) + payload  # fmt: skip
    crc = crc32c(after_crc) if crc is None else crc
    after_length = struct.pack(">ibI", -1, magic, crc) + after_crc
    return struct.pack(">qi", base_offset, len(after_length) if length is None else length) + after_length


def produce_body(topic, records, partition=0, acks=-1, timeout_ms=10_000):
    """Produce v7: the last version whose fields are easy to read in a hex dump."""
    data = struct.pack(">i", partition) + struct.pack(">i", len(records)) + records
    return struct.pack(">h", -1) + struct.pack(">hi", acks, timeout_ms) + array([string(topic) + array([data])])


def produce(connection, topic, records, **options):
    """(error code, base offset), or None when the connection was closed."""
    answer = connection.request(PRODUCE, 7, produce_body(topic, records, **options))
    return None if answer is None else produced(topic, answer)


def produced(topic, answer):
    """(error code, base offset) of the one partition in the body of a Produce v7 answer."""
    at = 4 + 2 + len(topic.encode()) + 4 + 4
    return struct.unpack_from(">hq", answer, at)


def fetch(connection, topic, offset=0, partition=0, max_bytes=1 << 20):
    """(error code, high watermark, records) by Fetch v4."""
    part = struct.pack(">iqi", partition, offset, max_bytes)
    body = struct.pack(">iiiib", -1, 0, 0, max_bytes, 0) + array([string(topic) + array([part])])
    answer = connection.request(FETCH, 4, body)
    at = 4 + 4 + 2 + len(topic.encode()) + 4 + 4
    code, high_watermark, _, aborted = struct.unpack_from(">hqqi", answer, at)
    at += 22 + max(aborted, 0) * 16
    size = struct.unpack_from(">i", answer, at)[0]
    return code, high_watermark, answer[at + 4 : at + 4 + size]


def api_versions(connection, version=0, body=b""):
    """(error code, {key: (min, max)}) from a v0 answer."""
    answer = connection.request(API_VERSIONS, version, body)
    code, count = struct.unpack_from(">hi", answer)
    return code, {k: (low, high) for k, low, high in struct.iter_unpack(">hhh", answer[6 : 6 + 6 * count])}


def hostile_bodies(seed):
    """Request bodies that no decoder may trust."""
    rng = random.Random(seed)
    largest, negative = b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff"
    yield b""
    yield largest * 16
    yield negative * 16
    yield b"\x7f\xff" * 32
    yield b"\x80\x00" * 32
    yield b"\0" * 64
    # Compact lengths: 2^31 - 1, 2^32 - 1, and one that never ends.
    yield b"\xff\xff\xff\xff\x07" * 12
    yield b"\xff\xff\xff\xff\x0f" * 12
    yield b"\xff" * 64
    yield b"\x80" * 64
    # A plausible beginning, then the trap.
    for prefix in (b"\0\0", b"\0\1a", b"\xff\xff", b"\0\0\0\1", b"\0\0\0\1\0\1a", b"\1", b"\2", b"\2\2a", b"\0" * 8):
        yield prefix + largest * 4
        yield prefix + b"\xff\xff\xff\xff\x07" * 4
    for _ in range(6):
        yield rng.randbytes(rng.randint(1, 200))
