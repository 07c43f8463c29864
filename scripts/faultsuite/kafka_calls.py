"""The few Kafka requests that the monitor makes, each answer as plain tuples.

Made by hand on the wire module of the client tests: a client library would hide which broker
said what in which leader epoch, and that is what is checked.
"""

import struct
import sys
import types

from cluster import REPO

sys.path.insert(0, str(REPO / "broker/tests/clients"))
import wire  # noqa: E402

LIST_OFFSETS, METADATA, OFFSET_FETCH, UPDATE_FEATURES = 2, 3, 9, 57
UPGRADE, UNSAFE_DOWNGRADE = 1, 3
LATEST, EARLIEST = -1, -2


class Disconnected(OSError):
    """The broker closed the connection instead of answering."""


class Broker:
    """A connection to one broker."""

    def __init__(self, address, timeout_s):
        self.connection = wire.Connection(types.SimpleNamespace(bootstrap=address), timeout_s)

    def close(self):
        self.connection.socket.close()

    def led(self, topics):
        """{(topic, partition): (leader, leader epoch)}, and how many partitions each topic has."""
        body = wire.array([wire.string(topic) for topic in topics]) + b"\0"
        answer = self.ask(METADATA, 7, body)
        answer.int32()
        for _ in range(answer.int32()):
            answer.int32(), answer.string(), answer.int32(), answer.string()
        answer.string(), answer.int32()
        leaders = {}
        for _ in range(answer.int32()):
            _, topic, _ = answer.int16(), answer.string(), answer.int8()
            for _ in range(answer.int32()):
                _, number, leader, epoch = answer.int16(), answer.int32(), answer.int32(), answer.int32()
                leaders[topic, number] = leader, epoch
                for _ in range(3):
                    answer.skip(4 * answer.int32())
        return leaders

    def offsets(self, epochs, which):
        """The offsets of partitions at their latest or earliest end, each asked for in a leader epoch
        ({(topic, partition): epoch}); those that the broker refuses to tell are left out."""
        topics = {}
        for (topic, number), epoch in epochs.items():
            topics.setdefault(topic, []).append(struct.pack(">iiq", number, epoch, which))
        parts = [wire.string(topic) + wire.array(asked) for topic, asked in topics.items()]
        answer = self.ask(LIST_OFFSETS, 5, struct.pack(">ib", -1, 0) + wire.array(parts))
        answer.int32()
        found = {}
        for _ in range(answer.int32()):
            topic = answer.string()
            for _ in range(answer.int32()):
                number, error, _, offset, _ = (
                    answer.int32(), answer.int16(), answer.int64(), answer.int64(), answer.int32(),
                )  # fmt: skip
                if error == wire.NONE:
                    found[topic, number] = offset
        return found

    def committed(self, group):
        """{(topic, partition): committed offset} of a group, or None if this is not its coordinator."""
        answer = self.ask(OFFSET_FETCH, 5, wire.string(group) + struct.pack(">i", -1))
        answer.int32()
        found, refused = {}, False
        for _ in range(answer.int32()):
            topic = answer.string()
            for _ in range(answer.int32()):
                number, offset, _, _, error = (
                    answer.int32(), answer.int64(), answer.int32(), answer.string(), answer.int16(),
                )  # fmt: skip
                refused |= error != wire.NONE
                found[topic, number] = offset
        return None if refused or answer.int16() != wire.NONE else found

    def set_feature(self, name, level, how):
        """The error code of the answer."""
        compact = wire.unsigned_varint(len(name) + 1) + name.encode()
        update = wire.unsigned_varint(2) + compact + struct.pack(">hb", level, how) + b"\0"
        answer = self.ask(UPDATE_FEATURES, 1, struct.pack(">i", 10_000) + update + b"\0\0")
        # The header's tags, and the time for which the client was throttled.
        answer.int8(), answer.int32()
        return answer.int16()

    def ask(self, key, version, body):
        answer = self.connection.request(key, version, body)
        if answer is None:
            raise Disconnected("the broker closed the connection")
        return Answer(answer)


class Answer:
    """An answer's bytes, read from the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def skip(self, size):
        self.at += size

    def _number(self, form, size):
        self.at += size
        return struct.unpack_from(form, self.data, self.at - size)[0]

    def int8(self):
        return self._number(">b", 1)

    def int16(self):
        return self._number(">h", 2)

    def int32(self):
        return self._number(">i", 4)

    def int64(self):
        return self._number(">q", 8)

    def string(self):
        size = self.int16()
        if size < 0:
            return None
        self.at += size
        return self.data[self.at - size : self.at].decode()


def group_partition(group, partitions):
    """Which partition of __consumer_offsets keeps a group: Math.abs of Java's String.hashCode, as Kafka has it."""
    code = 0
    for character in group:
        code = (code * 31 + ord(character)) & 0xFFFFFFFF
    return min(code, 2**32 - code) % 2**31 % partitions
