"""What was acknowledged is there after a stop, and after kill -9."""

import collections
import os
import threading
import time

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from daemon import wait_until


def create(broker, topic, partitions=1, **config):
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    config = {key.replace("_", "."): value for key, value in config.items()}
    admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic].result(30)
    return admin


def read_all(broker, topic, partition=0):
    """Every (offset, value) from the beginning to the end that the broker names."""
    consumer = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": "reader", "enable.partition.eof": True, "check.crcs": True,
    })  # fmt: skip
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])
        messages = []
        last = time.monotonic()
        while True:
            batch = consumer.consume(1000, 0.1)
            last = time.monotonic() if batch else last
            assert time.monotonic() - last < 20, f"nothing after {len(messages)} messages"
            for message in batch:
                if message.error():
                    assert message.error().code() == -191, message.error()  # the partition's end
                    return messages
                messages.append((message.offset(), message.value()))
    finally:
        consumer.close()


def send(broker, topic, values, **settings):
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 2, **settings})
    failures = []
    for value in values:
        producer.produce(topic, value, partition=0, on_delivery=lambda error, _: error and failures.append(error))
    assert producer.flush(30) == 0 and not failures


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_topics_configs_records_and_offsets_survive(new_broker, how):
    broker = new_broker()
    admin = create(broker, "t", 3, retention_ms="12345678")
    id_before = admin.describe_cluster().result(20).cluster_id
    values = [b"%d" % i for i in range(5000)]
    send(broker, "t", values, **{"compression.type": "lz4"})
    consumer = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": "g", "auto.offset.reset": "earliest", "enable.auto.commit": False,
    })  # fmt: skip
    consumer.subscribe(["t"])
    assert len(consumer.consume(1000, 30)) == 1000
    consumer.commit(offsets=[TopicPartition("t", 0, 1000)], asynchronous=False)
    consumer.close()

    if how == "stopped":
        broker.stop()
    else:
        broker.kill()
    broker.start()

    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    wait_until(lambda: "t" in admin.list_topics(timeout=10).topics, "the topic is there")
    assert len(admin.list_topics(timeout=10).topics["t"].partitions) == 3
    assert admin.describe_cluster().result(20).cluster_id == id_before
    configs = admin.describe_configs([resource := ConfigResource(ResourceType.TOPIC, "t")])[resource].result(20)
    assert configs["retention.ms"].value == "12345678"
    assert read_all(broker, "t") == list(enumerate(values))
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "g", "auto.offset.reset": "earliest"})
    consumer.subscribe(["t"])
    first = wait_until(lambda: consumer.poll(0.2), "the group goes on", 30)
    assert first.offset() == 1000
    consumer.close()


def test_clients_go_on_over_a_restart(new_broker):
    broker = new_broker()
    create(broker, "t", 2)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "linger.ms": 2})
    consumer = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": "g", "auto.offset.reset": "earliest",
        "partition.assignment.strategy": "cooperative-sticky", "heartbeat.interval.ms": 200,
    })  # fmt: skip
    consumer.subscribe(["t"])
    got = []

    def round_trip(values):
        for value in values:
            producer.produce("t", value)
        assert producer.flush(60) == 0

        def all_read():
            message = consumer.poll(0.1)
            if message is not None and not message.error():
                got.append(message.value())
            return set(values) <= set(got)

        wait_until(all_read, "read back", 60, 0)

    round_trip([b"a%d" % i for i in range(200)])
    broker.restart()
    round_trip([b"b%d" % i for i in range(200)])
    broker.kill()
    broker.start()
    round_trip([b"c%d" % i for i in range(200)])
    assert len(set(got)) == 600
    consumer.close()


# Enough to fill a segment or two.
FILLER = b"." * 100


class Load(threading.Thread):
    """Produces numbered values without end and keeps what was acknowledged."""

    def __init__(self, broker, topic, **settings):
        super().__init__(daemon=True)
        self.topic = topic
        self.acked = []
        self.errors = []
        self.sent = 0
        self.stopping = threading.Event()
        self.producer = Producer({
            "bootstrap.servers": broker.bootstrap, "acks": "all", "linger.ms": 1, "batch.num.messages": 50,
            "reconnect.backoff.max.ms": 200, "retry.backoff.max.ms": 200, "message.timeout.ms": 110_000, **settings,
        })  # fmt: skip

    def run(self):
        while not self.stopping.is_set():
            try:
                number = self.sent
                self.producer.produce(
                    self.topic, b"%d " % number + FILLER, partition=0, on_delivery=lambda e, m, n=number: self._delivered(e, m, n)
                )
                self.sent += 1
            except BufferError:
                self.producer.poll(0.01)
            self.producer.poll(0)
        self.producer.flush(90)

    def _delivered(self, error, message, number):
        if error:
            self.errors.append(error)
        else:
            self.acked.append((number, message.offset()))

    def acks(self, count):
        wait_until(lambda: len(self.acked) >= count or self.errors, f"{count} acks", 60)
        assert not self.errors, self.errors[0]


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_crash_under_load_loses_and_repeats_nothing(new_broker, codec):
    broker = new_broker()
    create(broker, "t", segment_bytes="1048576")
    load = Load(broker, "t", **{"enable.idempotence": True, "compression.type": codec, "queue.buffering.max.messages": 20_000})
    load.start()
    try:
        for _ in range(4):
            load.acks(len(load.acked) + 5000)
            broker.kill()
            broker.start()
        load.acks(len(load.acked) + 5000)
    finally:
        load.stopping.set()
        load.join(100)
    assert not load.is_alive() and not load.errors
    stored = [int(value.split()[0]) for _, value in read_all(broker, "t")]
    # Every number once and in order: retries over four crashes included.
    assert stored == list(range(load.sent))
    assert [n for n, _ in load.acked] == stored
    assert all(number == offset for number, offset in load.acked if offset >= 0)


def test_what_is_acknowledged_without_idempotence_is_stored_too(new_broker):
    broker = new_broker()
    create(broker, "t")
    load = Load(broker, "t", **{"enable.idempotence": False, "acks": "1", "max.in.flight": 1})
    load.start()
    try:
        load.acks(5000)
        broker.kill()
        acked = {number for number, _ in load.acked}
        broker.start()
        load.acks(len(load.acked) + 1000)
    finally:
        load.stopping.set()
        load.join(100)
    stored = collections.Counter(int(value.split()[0]) for _, value in read_all(broker, "t"))
    assert acked <= set(stored) and {n for n, _ in load.acked} <= set(stored)


@pytest.mark.parametrize("tail", ["garbage", "zeros", "half a batch"])
def test_a_torn_tail_is_cut_and_nothing_before_it(new_broker, tail):
    broker = new_broker()
    create(broker, "t")
    values = [b"%d" % i * 20 for i in range(2000)]
    send(broker, "t", values)
    broker.kill()
    log = broker.data_dir / "t-0" / "00000000000000000000.log"
    whole = log.read_bytes()
    # Kafka's files may be preallocated or not: the log itself never is.
    torn = {"garbage": os.urandom(777), "zeros": b"\0" * 4096, "half a batch": whole[:200]}[tail]
    with open(log, "ab") as file:
        file.write(torn)
    broker.start()
    assert read_all(broker, "t") == list(enumerate(values))
    send(broker, "t", [b"after"])
    assert read_all(broker, "t")[-1] == (2000, b"after")


def test_lost_indexes_are_made_again(new_broker):
    broker = new_broker()
    create(broker, "t", segment_bytes="1048576", index_interval_bytes="4096")
    values = [b"%06d" % i * 250 for i in range(3000)]
    send(broker, "t", values, **{"batch.num.messages": 50})
    broker.kill()
    indexes = [*broker.data_dir.glob("t-0/*.index"), *broker.data_dir.glob("t-0/*.timeindex")]
    assert len(indexes) > 6
    for n, index in enumerate(sorted(indexes)):
        if n % 2:
            index.unlink()
        else:
            index.write_bytes(os.urandom(80))
    broker.start()
    assert read_all(broker, "t") == list(enumerate(values))


def test_an_unclean_stop_keeps_the_producers_sequences(new_broker):
    import wire
    from test_hostile_requests import sequenced

    broker = new_broker()
    create(broker, "t")
    with wire.Connection(broker) as c:
        wait_until(lambda: wire.fetch(c, "t")[0] == wire.NONE, "the partition is led")
        for n in range(7):
            assert wire.produce(c, "t", sequenced(n)) == (wire.NONE, n)
    broker.kill()
    broker.start()
    with wire.Connection(broker) as c:
        wait_until(lambda: wire.fetch(c, "t")[0] == wire.NONE, "the partition is led again")
        assert wire.produce(c, "t", sequenced(6)) == (wire.NONE, 6)  # a retry of what was stored
        assert wire.produce(c, "t", sequenced(9))[0] == wire.OUT_OF_ORDER_SEQUENCE
        assert wire.produce(c, "t", sequenced(7)) == (wire.NONE, 7)
