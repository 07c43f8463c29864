"""What `yuxi` says of transactions and groups, and does about them, with other people's clients on the other side."""

import json
import os
import pathlib
import struct
import subprocess
import time

import pytest
from confluent_kafka import Consumer, KafkaException

import wire
from daemon import wait_until
from test_consumer_protocol import SETTINGS
from test_hostile_transactions import init
from test_restart import create
from test_transactions import ALONE, committed, transactional
from wire import Connection, array, batch, string

pytestmark = pytest.mark.yuxi_only

TRANSACTIONAL = 0x10


@pytest.fixture(scope="module")
def broker(new_module_broker):
    # Without this setting no transaction could begin behind its coordinator's back.
    return new_module_broker({**ALONE, **SETTINGS, "transaction.partition.verification.enable": "false"})


@pytest.fixture
def yuxi(broker):
    """Runs the command; what it printed, as JSON values, and its exit status."""

    def run(*arguments):
        binary = pathlib.Path(os.environ["YUXI_BROKER_BIN"]).with_name("yuxi")
        command = [binary, "-b", broker.bootstrap, "--output", "json", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        told = json.loads(done.stdout) if done.stdout[:1] in ("[", "{") else done.stdout + done.stderr
        return told, done.returncode

    return run


@pytest.fixture
def topic(broker, name):
    create(broker, name)
    return name


def begin_unknown(broker, topic):
    """A transaction that its coordinator never hears of; its producer's id."""
    with Connection(broker) as c:
        _, producer_id, epoch = init(c, topic)
        now_ms = time.time_ns() // 1_000_000
        records = batch(attributes=TRANSACTIONAL, producer=(producer_id, epoch, 0), timestamps=(now_ms, now_ms))
        part = struct.pack(">ii", 0, len(records)) + records
        body = string(topic) + struct.pack(">hi", -1, 10_000) + array([string(topic) + array([part])])
        assert wire.produced(topic, c.request(wire.PRODUCE, 7, body)) == (wire.NONE, 0)
    return producer_id


def test_a_hanging_transaction_is_found_and_aborted(broker, topic, yuxi):
    producer_id = begin_unknown(broker, topic)
    other = transactional(broker, f"{topic}-other")
    other.begin_transaction()
    other.produce(topic, "after it", partition=0)
    other.commit_transaction(30)
    assert committed(broker, topic) == [], "it holds readers back"
    [found], status = yuxi("tx", "hanging", topic, "--idle", 0)
    assert status == 0
    assert (found["topic"], found["partition"], found["start_offset"], found["producer_id"]) == (topic, 0, 0, producer_id)
    assert found["transactional_id"] == topic, "its coordinator knows the producer, though not the transaction"
    assert yuxi("tx", "hanging", topic) == ([], 0), "it is not idle for long"
    told, status = yuxi("tx", "abort", topic, "-p", 0, "--start-offset", 1)
    assert status != 0 and "no open transaction begins at offset 1" in told
    told, status = yuxi("tx", "abort", topic, "-p", 0, "--start-offset", 0)
    assert status == 0, told
    assert yuxi("tx", "hanging", topic, "--idle", 0) == ([], 0)
    wait_until(lambda: committed(broker, topic) == ["after it"], "readers go on", 30)


def test_what_a_coordinator_looks_after_is_no_hanging_transaction(broker, topic, yuxi):
    producer = transactional(broker, topic)
    producer.begin_transaction()
    producer.produce(topic, "a", partition=0)
    assert producer.flush(30) == 0
    assert yuxi("tx", "hanging", topic, "--idle", 0) == ([], 0)
    told, status = yuxi("tx", "abort", topic, "-p", 0, "--start-offset", 0)
    assert status != 0 and "is in its coordinator's care" in told
    producer.commit_transaction(30)
    assert committed(broker, topic) == ["a"]


def test_a_transaction_is_aborted_by_its_id_and_its_producer_fenced(broker, topic, yuxi):
    producer = transactional(broker, topic)
    producer.begin_transaction()
    producer.produce(topic, "a", partition=0)
    assert producer.flush(30) == 0
    told, status = yuxi("tx", "abort", "--transactional-id", topic)
    assert status == 0, told
    with pytest.raises(KafkaException, match="(?i)fenced"):
        producer.commit_transaction(30)
    assert committed(broker, topic) == []
    described, _ = yuxi("tx", "describe", topic)
    assert described["state"] == "Empty", "whoever fenced it has begun nothing"


def test_a_group_of_the_consumer_protocol_is_described(broker, topic, yuxi):
    consumer = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": topic, "group.protocol": "consumer", "client.id": "reader",
        "auto.offset.reset": "earliest", "enable.auto.commit": False,
    })  # fmt: skip
    producer = transactional(broker, topic)
    producer.begin_transaction()
    producer.produce(topic, "a", partition=0)
    producer.commit_transaction(30)
    consumer.subscribe([topic])
    try:
        message = wait_until(lambda: consumer.poll(0.2), "a record", 30, 0)
        consumer.commit(message, asynchronous=False)

        def described():
            consumer.poll(0)
            told, status = yuxi("group", "describe", topic)
            return told if status == 0 and told["state"] == "Stable" else None

        told = wait_until(described, "a stable group", 30)
        [partition] = told["partitions"]
        assert told["group"] == topic
        assert (partition["topic"], partition["partition"], partition["offset"]) == (topic, 0, 1)
        assert partition["client"] == "reader"
        assert partition["host"].endswith("127.0.0.1")
    finally:
        consumer.close()
    told, _ = yuxi("group", "describe", topic)
    assert told["state"] == "Empty"
    assert yuxi("group", "describe", f"{topic}-none")[1] != 0


def words(broker, *arguments):
    """What a person sees of the command, and its exit status."""
    binary = pathlib.Path(os.environ["YUXI_BROKER_BIN"]).with_name("yuxi")
    done = subprocess.run([binary, "-b", broker.bootstrap, *arguments], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr, done.returncode


def test_what_is_not_there_is_said_to_be_missing(broker, topic):
    told, status = words(broker, "config", "get", "topic", topic, "retention.ms")
    assert "604800000" in told and status == 0
    told, status = words(broker, "config", "get", "topic", topic, "retention.ms", "retention.m")
    assert "604800000" in told and "'retention.m'" in told and status == 1
    for command in (["get"], ["set", "log.retention.ms=1000"]):
        told, status = words(broker, "config", command[0], "broker", "987654", *command[1:])
        assert "broker 987654" in told and "no such broker is alive" in told and status == 1
    told, status = words(broker, "consume", topic, "-g", "", "-e")
    assert "--group" in told and status == 2


def test_a_transaction_that_may_not_last_so_long_is_refused_and_not_tried_for_ever(topic, yuxi):
    too_long = ["-X", "transaction.timeout.ms=9000000"]
    told, status = yuxi("verify", topic, "--transactions", 5, "--seconds", 2, *too_long)
    assert status == 1 and "INVALID_TRANSACTION_TIMEOUT" in told, told


def test_that_there_is_nothing_to_cancel_is_said(broker, topic):
    told, status = words(broker, "topic", "reassign", topic, "--cancel")
    assert "nothing to cancel" in told and status == 0
    # Whoever names a partition is told that it is not the case there.
    told, status = words(broker, "topic", "reassign", topic, "-p", "0", "--cancel")
    assert "NO_REASSIGNMENT_IN_PROGRESS" in told and status == 1


def test_an_election_that_is_not_needed_is_said_not_to_be(broker, topic):
    told, status = words(broker, "topic", "elect", topic)
    assert "nothing to elect" in told and status == 0
