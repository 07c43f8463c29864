"""Transactions asked for wrongly: the error that Kafka gives, and nothing else happens."""

import itertools
import struct

import pytest

import wire
from daemon import wait_until
from test_hostile_bytes import ready
from test_transactions import ALONE
from wire import Connection, string

FIND_COORDINATOR, INIT_PRODUCER_ID, ADD_PARTITIONS, ADD_OFFSETS, END = 10, 22, 24, 25, 26

INVALID_REQUEST = 42
INVALID_PRODUCER_EPOCH = 47
INVALID_TXN_STATE = 48
INVALID_PRODUCER_ID_MAPPING = 49
INVALID_TRANSACTION_TIMEOUT = 50
CONCURRENT_TRANSACTIONS = 51
OPERATION_NOT_ATTEMPTED = 55
PRODUCER_FENCED = 90

# Whoever asks too early is to ask again.
NOT_YET = {14, 15, 16, CONCURRENT_TRANSACTIONS}


@pytest.fixture(scope="module")
def target(new_module_broker):
    interval = "transaction.abort.timed.out.transaction.cleanup.interval.ms"
    return new_module_broker({**ALONE, interval: "100"})


@pytest.fixture
def connection(target):
    with Connection(target) as c:
        yield c


@pytest.fixture
def app(connection, name):
    """A transactional id with a producer in its first epoch: (id, producer id)."""
    ready(connection, name)
    return name, init(connection, name)[1]


def init(c, transactional_id, timeout_ms=60_000):
    """(error, producer id, epoch), once the coordinator is there."""

    def asked():
        c.request(FIND_COORDINATOR, 1, string(transactional_id) + b"\1")
        answer = c.request(INIT_PRODUCER_ID, 1, string(transactional_id) + struct.pack(">i", timeout_ms))
        result = struct.unpack(">ihqh", answer)[1:]
        return result if result[0] not in NOT_YET else None

    return wait_until(asked, "the coordinator", 30, 0.05)


def add(c, who, partitions, version=2):
    """The error of each of the partitions of topics."""
    transactional_id, producer_id, epoch = who
    body = string(transactional_id) + struct.pack(">qhi", producer_id, epoch, len(partitions))
    for topic, partition in partitions:
        body += string(topic) + struct.pack(">ii", 1, partition)
    answer = c.request(ADD_PARTITIONS, version, body)
    errors, at = {}, 8
    for _ in range(struct.unpack_from(">i", answer, 4)[0]):
        (length,) = struct.unpack_from(">h", answer, at)
        topic = answer[at + 2 : at + 2 + length].decode()
        errors[topic] = struct.unpack_from(">h", answer, at + 2 + length + 8)[0]
        at += 2 + length + 10
    return errors


def end(c, who, commit, version=2):
    transactional_id, producer_id, epoch = who
    body = string(transactional_id) + struct.pack(">qh?", producer_id, epoch, commit)
    return struct.unpack(">ih", c.request(END, version, body))[1]


def end_new(c, who, commit):
    """(error, producer id, epoch) by version 5, once what ends is ended."""
    transactional_id, producer_id, epoch = who
    text = transactional_id.encode()
    body = bytes([len(text) + 1]) + text + struct.pack(">qh?", producer_id, epoch, commit) + b"\0"
    head = struct.pack(">hhi", END, 5, 7) + string("test") + b"\0"

    def asked():
        c.send_frame(head + body)
        answer = c.read_frame()
        result = struct.unpack(">ihqh", answer[5:-1])[1:]
        return result if result[0] != CONCURRENT_TRANSACTIONS else None

    return wait_until(asked, "the end of a transaction", 30, 0.05)


def test_a_timeout_out_of_range_is_refused(connection, app):
    for timeout_ms in [-1, 0, 900_001, 2**31 - 1]:
        assert init(connection, app[0], timeout_ms)[0] == INVALID_TRANSACTION_TIMEOUT, timeout_ms
    assert init(connection, app[0])[1:] == (app[1], 1), "nothing happened in between"


def test_an_empty_id_is_refused(connection):
    answer = connection.request(INIT_PRODUCER_ID, 1, string("") + struct.pack(">i", 1000))
    assert struct.unpack(">ihqh", answer)[1] in (INVALID_REQUEST, *NOT_YET)
    assert add(connection, ("", 1, 0), [("t", 0)]) == {"t": wire.UNKNOWN_TOPIC_OR_PARTITION}


def test_epochs_that_are_stale_or_from_the_future_are_fenced(connection, app):
    transactional_id, producer_id = app
    init(connection, transactional_id)
    for epoch in [0, 2, 7, 32767, -1]:
        who = (transactional_id, producer_id, epoch)
        old, new = INVALID_PRODUCER_EPOCH, PRODUCER_FENCED
        for version, expected in [(0, old), (1, old), (2, new)]:
            assert add(connection, who, [(transactional_id, 0)], version) == {transactional_id: expected}, epoch
            assert end(connection, who, True, version) == expected, epoch
    good = (transactional_id, producer_id, 1)
    assert add(connection, good, [(transactional_id, 0)]) == {transactional_id: wire.NONE}
    assert end(connection, good, True) == wire.NONE


def test_another_producer_and_another_id_have_no_transaction(connection, app):
    transactional_id, producer_id = app
    for who in [(transactional_id, producer_id + 77, 0), (f"{transactional_id}-other", producer_id, 0)]:
        assert add(connection, who, [(transactional_id, 0)]) == {transactional_id: INVALID_PRODUCER_ID_MAPPING}
        assert end(connection, who, True) == INVALID_PRODUCER_ID_MAPPING


def test_what_does_not_exist_keeps_the_rest_out(connection, app):
    transactional_id, producer_id = app
    who = (transactional_id, producer_id, 0)
    assert add(connection, who, [(transactional_id, 0), ("nowhere", 0)]) == {
        transactional_id: OPERATION_NOT_ATTEMPTED,
        "nowhere": wire.UNKNOWN_TOPIC_OR_PARTITION,
    }
    assert add(connection, who, [(transactional_id, 99)]) == {transactional_id: wire.UNKNOWN_TOPIC_OR_PARTITION}
    assert end(connection, who, True) == INVALID_TXN_STATE, "there is no transaction"


def test_an_end_that_was_given_is_not_changed(connection, app):
    transactional_id, producer_id = app
    who = (transactional_id, producer_id, 0)
    assert add(connection, who, [(transactional_id, 0)]) == {transactional_id: wire.NONE}
    assert end(connection, who, True) == wire.NONE
    # Kafka says so only once the end is told everywhere.
    assert end(connection, who, False) in (INVALID_TXN_STATE, CONCURRENT_TRANSACTIONS)
    wait_until(lambda: end(connection, who, True) == wire.NONE, "the end", 30, 0.05)
    assert end(connection, who, False) == INVALID_TXN_STATE


def test_by_the_new_protocol_each_end_has_its_epoch(connection, app):
    transactional_id, producer_id = app
    epochs = itertools.count()
    who = (transactional_id, producer_id, next(epochs))
    assert end_new(connection, who, True)[0] == INVALID_TXN_STATE, "nothing was begun"
    for commit in [False, True, False]:
        if commit:
            assert add(connection, who, [(transactional_id, 0)]) == {transactional_id: wire.NONE}
        after = (producer_id, next(epochs))
        assert end_new(connection, who, commit) == (wire.NONE, *after)
        assert end_new(connection, who, commit) == (wire.NONE, *after), "the answer was lost"
        assert end_new(connection, who, not commit)[0] == INVALID_TXN_STATE
        stale = (transactional_id, producer_id, who[2] - 1)
        assert end_new(connection, stale, commit)[0] == PRODUCER_FENCED
        future = (transactional_id, producer_id, after[1] + 1)
        assert end_new(connection, future, commit)[0] == PRODUCER_FENCED
        who = (transactional_id, *after)


def test_a_transaction_that_timed_out_is_not_committed(connection, name):
    ready(connection, name)
    _, producer_id, epoch = init(connection, name, 500)
    who = (name, producer_id, epoch)
    assert add(connection, who, [(name, 0)]) == {name: wire.NONE}
    wait_until(lambda: add(connection, who, [(name, 0)]) != {name: wire.NONE}, "the time-out", 30, 0.1)
    assert end(connection, who, True) == PRODUCER_FENCED
    assert end_new(connection, who, True)[0] == INVALID_TXN_STATE
    assert end_new(connection, who, False) == (wire.NONE, producer_id, epoch + 1), "it goes on, in another epoch"


def test_a_zombie_is_not_told_the_epoch_that_fences_it(connection, app):
    transactional_id, producer_id = app
    zombie = (transactional_id, producer_id, 0)
    assert add(connection, zombie, [(transactional_id, 0)]) == {transactional_id: wire.NONE}
    assert init(connection, transactional_id) == (wire.NONE, producer_id, 2)
    for commit in [True, False]:
        assert end_new(connection, zombie, commit)[0] == PRODUCER_FENCED
