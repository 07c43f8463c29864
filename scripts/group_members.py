"""Members of many groups of the new protocol (KIP-848) over a few connections: what a
broker hears of 10,000 consumers, without 10,000 processes. For scripts/bench."""

import collections
import socket
import struct
import time

HEARTBEAT, FIND_COORDINATOR = 68, 10
# What passes while the group's partition gets a leader, and is loaded.
PASSING = {14, 15, 16}
IN_FLIGHT = 100


def compact(text):
    data = text.encode()
    assert len(data) < 127
    return bytes([len(data) + 1]) + data


class Member:
    """The only member of its group."""

    def __init__(self, number, topic):
        self.group, self.id, self.topic = f"group-{number}", f"member-{number}", topic
        self.epoch, self.owned = 0, None

    def beat(self):
        """The body of its next heartbeat, version 1: all that there is to say when it joins,
        what it owns once when it was given something, and else nothing."""
        joins = self.epoch == 0
        body = compact(self.group) + compact(self.id) + struct.pack(">i", self.epoch)
        body += b"\0\0"  # neither an instance id nor a rack
        body += struct.pack(">i", 300_000 if joins else -1)
        body += b"\x02" + compact(self.topic) if joins else b"\0"
        body += b"\0\0"  # neither a regex nor an assignor
        body += b"\x01" if joins else self.owned or b"\0"
        self.owned = None
        return body + b"\0"

    def told(self, answer):
        """Takes the body of an answer; its error code."""
        code = struct.unpack_from(">h", answer, 4)[0]
        if code != 0:
            return code
        at = 6
        for _ in range(2):  # the message, and the member's id
            at += max(answer[at], 1)
        self.epoch = struct.unpack_from(">i", answer, at)[0]
        if answer[at + 8] == 1:
            # What is assigned has the form of what is owned; two empty tag sections end it.
            self.owned = answer[at + 9 : -2]
        return 0


class Connection:
    """One connection with the members that talk over it."""

    def __init__(self, address, members):
        host, port = address.rsplit(":", 1)
        self.stream = socket.create_connection((host, int(port)), timeout=60)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.stream.makefile("rb")
        self.members = members

    def find_coordinator(self):
        """Makes the broker create the topic of the groups, if there is none."""
        body = struct.pack(">h", len(self.members[0].group)) + self.members[0].group.encode()
        self.stream.sendall(struct.pack(">ihhih", len(body) + 10, FIND_COORDINATOR, 0, 0, -1) + body)
        self.answer()

    def answer(self):
        return self.file.read(struct.unpack(">i", self.file.read(4))[0])

    def beat(self, members):
        """A heartbeat of each, many in flight. Those that were refused for a passing reason."""
        waiting, again = collections.deque(), []
        for at in range(0, len(members), IN_FLIGHT):
            frames = []
            for member in members[at : at + IN_FLIGHT]:
                frame = struct.pack(">hhih", HEARTBEAT, 1, 0, -1) + b"\0" + member.beat()
                frames.append(struct.pack(">i", len(frame)) + frame)
                waiting.append(member)
            self.stream.sendall(b"".join(frames))
            while waiting:
                member = waiting.popleft()
                code = member.told(self.answer()[5:])
                if code in PASSING:
                    again.append(member)
                elif code != 0:
                    raise SystemExit(f"a heartbeat of {member.id} was answered with error {code}")
        return again


def joined(address, count, topic, connections=8):
    """Connections with `count` members in groups of their own, each with its assignment."""
    members = [Member(number, topic) for number in range(count)]
    made = [Connection(address, members[at::connections]) for at in range(connections)]
    made[0].find_coordinator()
    deadline = time.monotonic() + 120
    for connection in made:
        left = connection.members
        while left:
            assert time.monotonic() < deadline, f"{len(left)} members could not join"
            left = connection.beat(left)
            left += [member for member in connection.members if member.owned is not None]
    assert all(member.epoch > 0 for member in members)
    return made


def keep_alive(connections, interval_s, seconds):
    """Everybody's heartbeat every `interval_s`, spread over that time; how many were sent."""
    slots, sent = 50, 0
    begun = time.monotonic()
    for slot in range(int(seconds / interval_s * slots)):
        time.sleep(max(begun + slot * interval_s / slots - time.monotonic(), 0))
        for connection in connections:
            due = connection.members[slot % slots :: slots]
            connection.beat(due)
            sent += len(due)
    return sent
