"""Transaction markers that no coordinator has sent: the error that Kafka gives, and no record is lost."""

import struct

import pytest
from confluent_kafka import KafkaException

import wire
from daemon import wait_until
from test_hostile_transactions import INVALID_PRODUCER_EPOCH
from test_restart import create
from test_transactions import ALONE, committed, transactional
from wire import Connection, compact, unsigned_varint

WRITE_TXN_MARKERS = 27
TRANSACTION_COORDINATOR_FENCED = 52
NOBODY = 987_654_321


@pytest.fixture(scope="module")
def target(new_module_broker):
    return new_module_broker({**ALONE, "transaction.state.log.num.partitions": "1"})


@pytest.fixture
def connection(target):
    with Connection(target) as c:
        yield c


@pytest.fixture
def topic(target, name):
    create(target, name)
    return name


def mark(c, topic, producer_id, epoch, coordinator_epoch=0, commit=False, partition=0):
    """Sends a marker for one partition; the error."""
    topics = unsigned_varint(2) + compact(topic) + unsigned_varint(2) + struct.pack(">i", partition) + b"\0"
    marker = struct.pack(">qh?", producer_id, epoch, commit) + topics + struct.pack(">i", coordinator_epoch) + b"\0"
    answer = c.request(WRITE_TXN_MARKERS, 1, unsigned_varint(2) + marker + b"\0")
    # Tags, one marker, its producer, one topic, its name, one partition, its number.
    at = 1 + 1 + 8 + 1 + len(compact(topic)) + 1 + 4
    return struct.unpack_from(">h", answer, at)[0]


def who(broker, topic):
    """Producer id and epoch of the only producer in a partition, as its first batch on disk says."""
    log = next(broker.data_dir.glob(f"{topic}-0/*.log")).read_bytes()
    return struct.unpack_from(">qh", log, 43)


def write(producer, topic, value):
    producer.produce(topic, value, partition=0)
    assert producer.flush(30) == 0


def test_stale_markers_are_refused_and_the_transaction_goes_on(target, connection, topic):
    transactional(target, topic)
    producer = transactional(target, topic)
    producer.begin_transaction()
    write(producer, topic, "a")
    producer_id, epoch = who(target, topic)
    assert epoch > 0
    assert mark(connection, topic, producer_id, epoch - 1) == INVALID_PRODUCER_EPOCH
    assert mark(connection, topic, NOBODY, 0) == wire.NONE, "it ends nothing"
    write(producer, topic, "b")
    producer.commit_transaction(30)
    assert committed(target, topic) == ["a", "b"]
    assert mark(connection, topic, producer_id, epoch, coordinator_epoch=-1) == TRANSACTION_COORDINATOR_FENCED
    producer.begin_transaction()
    write(producer, topic, "c")
    producer.commit_transaction(30)
    assert committed(target, topic) == ["a", "b", "c"]


def test_a_marker_of_a_future_epoch_fences_the_producer_and_tears_nothing(target, connection, topic):
    producer = transactional(target, topic)
    producer.begin_transaction()
    write(producer, topic, "a")
    producer_id, epoch = who(target, topic)
    assert mark(connection, topic, producer_id, epoch + 5) == wire.NONE
    with pytest.raises(KafkaException):
        producer.produce(topic, "b", partition=0)
        producer.flush(30)
        producer.commit_transaction(30)
    assert committed(target, topic) == [], "what the marker aborted stays so"
    other = transactional(target, f"{topic}-other")
    other.begin_transaction()
    write(other, topic, "c")
    other.commit_transaction(30)
    assert committed(target, topic) == ["c"], "others are let through"


def test_what_is_not_here_is_refused(connection, topic):
    for name, partition in [("nowhere", 0), (topic, 99), (topic, -1)]:
        error = mark(connection, name, NOBODY, 0, partition=partition)
        assert error == wire.UNKNOWN_TOPIC_OR_PARTITION, (name, partition)


def test_a_coordinator_finds_its_transactions_in_spite_of_markers_in_its_own_log(new_broker):
    broker = new_broker({**ALONE, "transaction.state.log.num.partitions": "1"})
    create(broker, "t")
    producer = transactional(broker, "app")
    producer.begin_transaction()
    write(producer, "t", "a")
    producer_id, epoch = who(broker, "t")
    with Connection(broker) as c:
        for commit in [True, False]:
            assert mark(c, "__transaction_state", producer_id, epoch, commit=commit) == wire.NONE
            assert mark(c, "__transaction_state", NOBODY, 3, 77, commit=commit) == wire.NONE
    assert committed(broker, "t") == [], "it is open"
    broker.restart()
    producer.commit_transaction(30)
    wait_until(lambda: committed(broker, "t") == ["a"], "the transaction is committed", 30)
