"""Groups of both protocols asked for wrongly: commits of fenced members, epochs that are stale or from the future,
regular expressions that are wrong or explosive, members that switch protocol. The error that Kafka gives."""

import struct
import time

import pytest

import wire
from daemon import wait_until
from test_hostile_bytes import ready
from test_hostile_transactions import INVALID_PRODUCER_EPOCH, INVALID_PRODUCER_ID_MAPPING, init
from test_transactions import ALONE
from wire import Connection, array, compact, compact_array, string

OFFSET_COMMIT, JOIN, HEARTBEAT, SYNC, ADD_OFFSETS, TXN_OFFSET_COMMIT, CONSUMER_HEARTBEAT = 8, 11, 12, 14, 25, 28, 68

ILLEGAL_GENERATION = 22
INCONSISTENT_GROUP_PROTOCOL = 23
UNKNOWN_MEMBER_ID = wire.UNKNOWN_MEMBER_ID
REBALANCE_IN_PROGRESS = 27
UNSUPPORTED_VERSION = wire.UNSUPPORTED_VERSION
INVALID_REQUEST = 42
GROUP_ID_NOT_FOUND = 69
FENCED_INSTANCE_ID = 82
FENCED_MEMBER_EPOCH = 110
UNRELEASED_INSTANCE_ID = 111
STALE_MEMBER_EPOCH = 113
INVALID_REGULAR_EXPRESSION = 128

TOPIC = "read"


@pytest.fixture(scope="module")
def target(new_module_broker):
    return new_module_broker({**ALONE, "offsets.topic.num.partitions": "1"})


@pytest.fixture
def connection(target):
    with Connection(target, 30) as c:
        ready(c, TOPIC)
        c.request(10, 0, string("any"))  # FindCoordinator makes __consumer_offsets
        wait_until(lambda: join(c, "warm-up", "nobody")[0] not in (14, 15, 16), "the coordinator", 30)
        yield c


def join(c, group, member="", instance=None, protocol_type="consumer"):
    """(error, generation, member id) of a classic member with the range assignor."""
    subscription = struct.pack(">h", 0) + array([string(TOPIC)]) + struct.pack(">i", -1)
    protocol = string("range") + struct.pack(">i", len(subscription)) + subscription
    body = string(group) + struct.pack(">ii", 10_000, 10_000) + string(member) + nullable(instance)
    answer = c.request(JOIN, 5, body + string(protocol_type) + array([protocol]))
    (error, generation), at = struct.unpack_from(">hi", answer, 4), 10
    for _ in range(3):
        (length,) = struct.unpack_from(">h", answer, at)
        text, at = answer[at + 2 : at + 2 + length].decode(), at + 2 + length
    return error, generation, text


def nullable(text):
    return struct.pack(">h", -1) if text is None else string(text)


def join_and_sync(c, group, instance=None):
    """(generation, member id) of the only classic member of a group."""
    error, generation, member = join(c, group, "", instance)
    if error == wire.MEMBER_ID_REQUIRED:
        error, generation, member = join(c, group, member, instance)
    assert error == wire.NONE
    assert sync(c, group, generation, member, instance) == wire.NONE
    return generation, member


def sync(c, group, generation, member, instance=None):
    mine = string(member) + struct.pack(">i", 0)
    answer = c.request(SYNC, 3, string(group) + struct.pack(">i", generation) + string(member) + nullable(instance) + array([mine]))
    return struct.unpack_from(">h", answer, 4)[0]


def beat_classic(c, group, generation, member, instance=None):
    answer = c.request(HEARTBEAT, 3, string(group) + struct.pack(">i", generation) + string(member) + nullable(instance))
    return struct.unpack_from(">h", answer, 4)[0]


def beat(c, group, member, epoch, regex=None, instance=None):
    """(error, epoch) of a member of the consumer protocol; with epoch 0 it joins."""
    joins = epoch == 0
    body = compact(group) + compact(member) + struct.pack(">i", epoch) + compact(instance) + compact(None)
    body += struct.pack(">i", 60_000 if joins else -1) + compact_array([compact(TOPIC)] if joins and regex is None else None)
    body += compact(regex) + compact(None) + compact_array([] if joins else None) + b"\0"
    answer = c.request(CONSUMER_HEARTBEAT, 1, body)
    (error,) = struct.unpack_from(">h", answer, 5)
    # With an error comes its message, and nothing of interest after that.
    epoch = struct.unpack_from(">i", answer, 8 + answer[8])[0] if error == wire.NONE else None
    return error, epoch


def commit(c, group, member, epoch, version=9, instance=None):
    return c.request(OFFSET_COMMIT, version, compact(group) + struct.pack(">i", epoch) + compact(member) + compact(instance) + offsets())[-5:-3]


def offsets():
    partition = struct.pack(">iqi", 0, 5, -1) + compact("") + b"\0"
    return compact_array([compact(TOPIC) + compact_array([partition]) + b"\0"]) + b"\0"


def code(number):
    """An error as it stands in the answer to a commit."""
    return struct.pack(">h", number)


def test_a_classic_member_that_is_fenced_commits_nothing(connection, name):
    error, _, member = join(connection, name)
    assert error == wire.MEMBER_ID_REQUIRED
    _, generation, _ = join(connection, name, member)
    assert commit(connection, name, member, generation) == code(REBALANCE_IN_PROGRESS)
    sync(connection, name, generation, member)
    for who, epoch, expected in [
        (member, generation, wire.NONE),
        (member, generation - 1, ILLEGAL_GENERATION),
        (member, generation + 1, ILLEGAL_GENERATION),
        (member, -1, ILLEGAL_GENERATION),
        ("nobody", generation, UNKNOWN_MEMBER_ID),
        ("", -1, UNKNOWN_MEMBER_ID),
    ]:
        assert commit(connection, name, who, epoch) == code(expected), (who, epoch)
    assert commit(connection, f"{name}-none", member, generation) == code(GROUP_ID_NOT_FOUND)
    assert commit(connection, f"{name}-none", member, generation, version=8) == code(ILLEGAL_GENERATION)
    for epoch, expected in [(generation - 1, ILLEGAL_GENERATION), (generation + 1, ILLEGAL_GENERATION), (generation, wire.NONE)]:
        assert beat_classic(connection, name, epoch, member) == expected


def test_a_static_member_that_was_replaced_is_fenced(connection, name):
    generation, member = join_and_sync(connection, name, "i")
    _, _, successor = join(connection, name, "", "i")
    assert successor != member
    assert commit(connection, name, member, generation, instance="i") == code(FENCED_INSTANCE_ID)
    assert commit(connection, name, member, generation) == code(UNKNOWN_MEMBER_ID)
    assert beat_classic(connection, name, generation, member, "i") == FENCED_INSTANCE_ID


def test_a_member_of_the_consumer_protocol_is_fenced_by_its_epoch(connection, name):
    error, epoch = beat(connection, name, "m", 0)
    assert (error, epoch) == (wire.NONE, 1)
    for version in (8, 9):
        knows = version >= 9
        for who, of, expected in [
            ("m", epoch, wire.NONE if knows else UNSUPPORTED_VERSION),
            ("m", epoch - 1, STALE_MEMBER_EPOCH if knows else UNSUPPORTED_VERSION),
            ("m", epoch + 1, STALE_MEMBER_EPOCH if knows else UNSUPPORTED_VERSION),
            ("m", -1, STALE_MEMBER_EPOCH if knows else UNSUPPORTED_VERSION),
            ("nobody", epoch, UNKNOWN_MEMBER_ID),
            ("", -1, UNKNOWN_MEMBER_ID),
        ]:
            assert commit(connection, name, who, of, version) == code(expected), (version, who, of)
    for of in (epoch + 1, 2**31 - 1):
        assert beat(connection, name, "m", of)[0] == FENCED_MEMBER_EPOCH, of
    assert beat(connection, name, "nobody", epoch)[0] == UNKNOWN_MEMBER_ID
    for of in (-2, -3):
        assert beat(connection, name, "m", of)[0] == INVALID_REQUEST, of
    assert beat(connection, f"{name}-none", "m", 3)[0] == GROUP_ID_NOT_FOUND
    assert beat(connection, name, "m", epoch)[0] == wire.NONE, "nothing of this has hurt it"
    assert beat(connection, name, "m", -1)[0] == wire.NONE
    assert commit(connection, name, "m", epoch) == code(UNKNOWN_MEMBER_ID)
    assert commit(connection, name, "", -1) == code(wire.NONE), "nobody is there to mind"


def test_a_static_member_of_the_consumer_protocol_keeps_its_name_until_it_gives_it_back(connection, name):
    _, epoch = beat(connection, name, "first", 0, instance="i")
    assert beat(connection, name, "second", 0, instance="i")[0] == UNRELEASED_INSTANCE_ID
    assert beat(connection, name, "first", -2, instance="i")[0] == wire.NONE
    assert commit(connection, name, "first", epoch) == code(STALE_MEMBER_EPOCH)
    assert beat(connection, name, "second", 0, instance="i")[0] == wire.NONE
    assert commit(connection, name, "first", epoch) == code(UNKNOWN_MEMBER_ID)
    assert beat(connection, name, "first", epoch, instance="i")[0] == FENCED_INSTANCE_ID


def test_offsets_of_fenced_members_get_into_no_transaction(connection, name):
    _, producer_id, producer_epoch = init(connection, name)
    who = (producer_id, producer_epoch)
    _, epoch = beat(connection, name, "m", 0)

    def send(who, member, epoch, version=3, group=name):
        body = compact(name) + compact(group) + struct.pack(">qhi", *who, epoch) + compact(member) + compact(None)
        return connection.request(TXN_OFFSET_COMMIT, version, body + offsets())[-5:-3]

    added = connection.request(ADD_OFFSETS, 2, string(name) + struct.pack(">qh", *who) + string(name))
    assert added[4:] == code(wire.NONE)
    for version in (3, 4):
        for member, of, expected in [
            ("m", epoch - 1, ILLEGAL_GENERATION),
            ("m", epoch + 1, ILLEGAL_GENERATION),
            ("nobody", epoch, UNKNOWN_MEMBER_ID),
            ("m", epoch, wire.NONE),
            ("", -1, wire.NONE),
        ]:
            assert send(who, member, of, version) == code(expected), (version, member, of)
        for stranger, expected in [
            ((producer_id, producer_epoch - 1), INVALID_PRODUCER_EPOCH),
            ((producer_id, producer_epoch + 1), INVALID_PRODUCER_EPOCH),
            ((producer_id + 77, producer_epoch), INVALID_PRODUCER_ID_MAPPING),
        ]:
            assert send(stranger, "m", epoch, version) == code(expected), (version, stranger)
        assert send(who, "m", epoch, version, group="") == code(wire.INVALID_GROUP_ID)


def test_a_regex_that_is_wrong_is_refused_and_an_explosive_one_takes_no_time(connection, name):
    for regex in ["[", "a)(b", "(?=x)", r"\1", "x{2,1}", r"\p{Foo}", r"\Qa\E\E"]:
        assert beat(connection, name, "m", 0, regex)[0] == INVALID_REGULAR_EXPRESSION, regex
    for regex in ["(a+)+b", "(x+x+)+y", "(x{1000}){1000}", "((a{0,100}){0,100}){0,100}", "(" * 10_000, "a" * 30_000]:
        begun = time.monotonic()
        # Which of them are too much is for each broker to say.
        assert beat(connection, name, f"m{regex[:9]}", 0, regex)[0] in (wire.NONE, INVALID_REGULAR_EXPRESSION), regex[:40]
        assert time.monotonic() - begun < 5, regex[:40]
    for regex in [r"\Qread\E", r"\Qre\E.*", "(?i)READ", ""]:
        assert beat(connection, f"{name}-right", f"m{regex}", 0, regex)[0] == wire.NONE, regex


def test_a_group_that_switches_protocol_in_the_middle(connection, name):
    generation, classic = join_and_sync(connection, name)
    assert beat(connection, name, "m", 3)[0] == GROUP_ID_NOT_FOUND, "nobody joins in the middle"
    assert beat(connection, name, "m", -1)[0] == GROUP_ID_NOT_FOUND
    error, epoch = beat(connection, name, "m", 0)
    assert error == wire.NONE
    assert beat_classic(connection, name, generation, classic) == REBALANCE_IN_PROGRESS
    # What a member of the one protocol may, one of the other may not.
    assert beat_classic(connection, name, epoch, "m") == UNKNOWN_MEMBER_ID
    assert sync(connection, name, epoch, "m") == UNKNOWN_MEMBER_ID
    assert join(connection, name, "", protocol_type="connect")[0] == INCONSISTENT_GROUP_PROTOCOL
    error, generation, _ = join(connection, name, classic)
    assert error == wire.NONE
    assert sync(connection, name, generation, classic) == wire.NONE
    for of, expected in [(generation, wire.NONE), (generation - 1, ILLEGAL_GENERATION), (generation + 1, ILLEGAL_GENERATION)]:
        assert commit(connection, name, classic, of) == code(expected), of
    assert beat(connection, name, "m", -1)[0] == wire.NONE, "the last of the new protocol goes"
    assert beat(connection, name, "m", epoch)[0] == GROUP_ID_NOT_FOUND
    error, _, again = join(connection, name, classic)
    assert (error, again) == (wire.NONE, classic)


def test_a_group_of_something_else_does_not_become_one_of_consumers(connection, name):
    _, _, member = join(connection, name, "", protocol_type="connect")
    assert join(connection, name, member, protocol_type="connect")[0] == wire.NONE
    assert beat(connection, name, "m", 0)[0] == GROUP_ID_NOT_FOUND
