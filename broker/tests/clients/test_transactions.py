"""Transactions of other people's clients: librdkafka's by the old protocol, Java's by both."""

import re

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from daemon import Yuxi, wait_until
from test_restart import create

# A single broker has one replica of each of Kafka's own topics.
ALONE = {
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "offsets.topic.replication.factor": "1",
}


def transactional(broker, transactional_id, **settings):
    producer = Producer({
        "bootstrap.servers": broker.bootstrap, "transactional.id": transactional_id, "linger.ms": 2,
        "transaction.timeout.ms": 60000, **settings,
    })  # fmt: skip
    producer.init_transactions(30)
    return producer


def committed(broker, topic, partition=0):
    """Every value that a reader of committed records gets, up to the end that it is told."""
    consumer = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": "committed-reader", "enable.partition.eof": True,
        "isolation.level": "read_committed", "check.crcs": True,
    })  # fmt: skip
    values = []
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])

        def at_end():
            message = consumer.poll(0.2)
            if message is None:
                return False
            if message.error():
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                return True
            values.append(message.value().decode())
            return False

        wait_until(at_end, f"the end of {topic}", 30, 0)
    finally:
        consumer.close()
    return values


def test_a_reader_of_committed_records_sees_all_that_is_committed_and_nothing_else(new_broker):
    broker = new_broker(ALONE)
    create(broker, "t", 2)
    producer = transactional(broker, "app")
    expected = []
    for n in range(20):
        producer.begin_transaction()
        for i in range(10):
            producer.produce("t", f"{n}-{i}", partition=i % 2)
        if n % 3 == 1:
            producer.flush(30)
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
            expected += [f"{n}-{i}" for i in range(10)]
    producer.begin_transaction()
    producer.produce("t", "open", partition=0)
    assert producer.flush(30) == 0
    for partition in range(2):
        assert committed(broker, "t", partition) == [one for one in expected if int(one[-1]) % 2 == partition]
    producer.commit_transaction(30)
    wait_until(lambda: committed(broker, "t")[-1] == "open", "the last transaction", 30)


def test_a_zombie_is_fenced(new_broker):
    broker = new_broker(ALONE)
    create(broker, "t")
    zombie = transactional(broker, "app")
    zombie.begin_transaction()
    zombie.produce("t", "zombie", partition=0)
    assert zombie.flush(30) == 0
    alive = transactional(broker, "app")
    alive.begin_transaction()
    alive.produce("t", "alive", partition=0)
    with pytest.raises(KafkaException) as refused:
        zombie.commit_transaction(30)
    assert refused.value.args[0].code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED), refused.value
    assert refused.value.args[0].fatal()
    alive.commit_transaction(30)
    wait_until(lambda: committed(broker, "t") == ["alive"], "the transaction of the living", 30)


@pytest.mark.parametrize("group_protocol", ["classic", "consumer"])
def test_each_input_counts_once_whatever_is_aborted(new_broker, group_protocol):
    broker = new_broker(ALONE)
    create(broker, "in")
    create(broker, "out")
    source = Producer({"bootstrap.servers": broker.bootstrap})
    for n in range(200):
        source.produce("in", str(n), partition=0)
    assert source.flush(30) == 0
    consumer = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": "g", "auto.offset.reset": "earliest",
        "enable.auto.commit": False, "isolation.level": "read_committed", "group.protocol": group_protocol,
    })  # fmt: skip
    consumer.subscribe(["in"])
    producer = transactional(broker, "app")
    done, rounds = 0, 0
    while done < 200:
        messages = consumer.consume(20, 5)
        assert messages, f"nothing after {done}"
        rounds += 1
        producer.begin_transaction()
        for message in messages:
            assert not message.error(), message.error()
            producer.produce("out", b"done-" + message.value(), partition=0)
        end = messages[-1].offset() + 1
        producer.send_offsets_to_transaction(
            [TopicPartition("in", 0, end)], consumer.consumer_group_metadata(), 30
        )  # fmt: skip
        if rounds % 3 == 2:
            producer.abort_transaction(30)
            kept = consumer.committed([TopicPartition("in", 0)], 20)[0].offset
            assert kept == done, "an aborted transaction commits no offset"
            consumer.seek(TopicPartition("in", 0, done))
        else:
            producer.commit_transaction(30)
            done = end
    consumer.close()
    wait_until(lambda: len(committed(broker, "out")) >= 200, "all of the output", 30)
    assert committed(broker, "out") == [f"done-{n}" for n in range(200)]


@pytest.mark.parametrize("commit", [True, False])
def test_a_transaction_survives_a_killed_coordinator(new_broker, commit):
    broker = new_broker(ALONE)
    create(broker, "t")
    producer = transactional(broker, "app")
    expected = []
    for n in range(6):
        producer.begin_transaction()
        producer.produce("t", f"{n}-before", partition=0)
        assert producer.flush(30) == 0
        if n % 2 == 0:
            broker.kill()
            broker.start()
        producer.produce("t", f"{n}-after", partition=0)
        if commit:
            producer.commit_transaction(60)
            expected += [f"{n}-before", f"{n}-after"]
        else:
            producer.abort_transaction(60)
    if not commit:
        producer.begin_transaction()
        producer.produce("t", "last", partition=0)
        producer.commit_transaction(60)
        expected = ["last"]
    wait_until(lambda: committed(broker, "t") == expected, f"{expected}", 30)


@pytest.mark.parametrize("level", [2, 1, 0])
@pytest.mark.parametrize("scenario", ["transactions", "pipeline"])
def test_java_speaks_the_protocol_of_the_clusters_level(new_broker, jvm, level, scenario):
    broker = new_broker(ALONE)
    if level < 2:
        what = ["downgrade", "--feature", f"transaction.version={level}"] if level else ["disable", "--feature", "transaction.version"]
        jvm.out("features", "--bootstrap-server", broker.bootstrap, *what)
    described = jvm.out("features", "--bootstrap-server", broker.bootstrap, "describe")
    finalized = re.search(r"Feature: transaction\.version.*FinalizedVersionLevel: (\d+)", described)
    assert int(finalized[1]) == level, described
    jvm.out("client", scenario, broker.bootstrap, f"{scenario}-{level}")


def test_kafkas_tools_read_our_transactions(new_broker, jvm, against):
    broker = new_broker(ALONE)
    create(broker, "t")
    for transactional_id in ["done", "open"]:
        producer = transactional(broker, transactional_id)
        producer.begin_transaction()
        producer.produce("t", transactional_id, partition=0)
        assert producer.flush(30) == 0
        if transactional_id == "done":
            producer.commit_transaction(30)

    def tool(*arguments):
        return jvm.out("transactions", "--bootstrap-server", broker.bootstrap, *arguments)

    wait_until(lambda: re.search(r"^done\s.*CompleteCommit", tool("list"), re.M), "the end of a transaction", 30)
    assert re.search(r"^open\s.*Ongoing", tool("list"), re.M)
    described = tool("describe", "--transactional-id", "open")
    assert re.search(r"\bopen\b.*\bOngoing\b.*\b60000\b.*\bt-0\b", described), described
    assert "t-0" not in tool("find-hanging", "--broker-id", "1" if against is Yuxi else "0")
    broker.kill()
    files = ",".join(str(one) for one in sorted(broker.data_dir.glob("__transaction_state-*/*.log")))
    dumped = jvm.out("dump-log", "--files", files, "--transaction-log-decoder")
    assert len(re.findall(r"transactional_?[iI]d[=:\"]+done", dumped)) == 4, dumped
    assert re.search(r"open.*Ongoing|open.*\"transactionStatus\":1", dumped), dumped
