"""librdkafka 2.16 through confluent-kafka: producers, groups, positions."""

import collections
import time

import pytest
from confluent_kafka import (
    OFFSET_BEGINNING, OFFSET_END, Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException,
    Producer, TopicPartition,
)  # fmt: skip
from confluent_kafka.admin import AdminClient, NewTopic

from daemon import wait_until


@pytest.fixture
def producer(broker):
    return lambda **settings: Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 5, **dotted(settings)})


@pytest.fixture
def consumer(broker, name):
    """Consumers of one group named after the test, closed at its end."""
    opened = []

    def make(**settings):
        c = Consumer({
            "bootstrap.servers": broker.bootstrap,
            "group.id": name,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "heartbeat.interval.ms": 200,
            **dotted(settings),
        })  # fmt: skip
        opened.append(c)
        return c

    yield make
    for c in opened:
        c.close()


@pytest.fixture
def topic(broker, name):
    def create(partitions=1, **config):
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        admin.create_topics([NewTopic(name, partitions, 1, config=dotted(config))])[name].result(30)
        return name

    return create


def dotted(settings):
    return {key.replace("_", "."): value for key, value in settings.items()}


def send(producer, topic, values, **options):
    """Produces, waits, and returns the offsets in the order of the acks."""
    acks = []

    def delivered(error, message):
        assert error is None, error
        acks.append((message.partition(), message.offset()))

    for value in values:
        while True:
            try:
                producer.produce(topic, value, on_delivery=delivered, **options)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(30) == 0
    return acks


def read(consumer, count, deadline_s=30):
    messages, end = [], time.monotonic() + deadline_s
    while len(messages) < count:
        assert time.monotonic() < end, f"only {len(messages)} of {count} messages"
        for message in consumer.consume(min(500, count - len(messages)), 0.2):
            assert message.error() is None, message.error()
            messages.append(message)
    return messages


def drive(*consumers):
    """Lets consumers take part in a rebalance; nothing may arrive meanwhile."""
    for c in consumers:
        message = c.poll(0.05)
        assert message is None or message.error() is None or message.error().retriable(), message.error()


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("idempotent", [True, False])
def test_what_is_produced_is_read_in_order(topic, producer, consumer, codec, idempotent):
    t = topic()
    values = [b"%06d" % i * (1 + i % 50) for i in range(3000)]
    acks = send(producer(enable_idempotence=idempotent, compression_type=codec), t, values)
    assert acks == [(0, i) for i in range(3000)]
    c = consumer(check_crcs=True)
    c.assign([TopicPartition(t, 0, 0)])
    assert [m.value() for m in read(c, 3000)] == values


def test_keys_headers_and_timestamps_survive(topic, producer, consumer):
    t = topic()
    headers = [("a", b"1"), ("a", b"2"), ("empty", b""), ("null", None)]
    send(producer(), t, [None, b""], key=b"k", headers=headers, timestamp=1_234_567_890_123)
    c = consumer()
    c.assign([TopicPartition(t, 0, 0)])
    first, second = read(c, 2)
    assert (first.key(), first.value(), second.value()) == (b"k", None, b"")
    assert first.headers() == headers
    assert first.timestamp() == (1, 1_234_567_890_123)


def test_the_brokers_clock_stamps_records_when_the_topic_says_so(topic, producer, consumer):
    t = topic(message_timestamp_type="LogAppendTime")
    before = int(time.time() * 1000)
    send(producer(), t, [b"x"] * 10, timestamp=1)
    c = consumer(check_crcs=True)
    c.assign([TopicPartition(t, 0, 0)])
    for message in read(c, 10):
        kind, stamp = message.timestamp()
        assert kind == 2 and before <= stamp <= int(time.time() * 1000)


def test_the_topics_codec_wins_over_the_producers(topic, producer, consumer):
    t = topic(compression_type="gzip")
    values = [b"value-%d" % i for i in range(500)]
    send(producer(compression_type="lz4"), t, values)
    c = consumer(check_crcs=True)
    c.assign([TopicPartition(t, 0, 0)])
    assert [m.value() for m in read(c, 500)] == values


def test_a_batch_over_the_topics_limit_is_refused_and_the_next_is_not(topic, producer):
    t = topic(max_message_bytes=2000)
    errors = []
    p = producer()
    p.produce(t, b"x" * 5000, on_delivery=lambda error, _: errors.append(error))
    p.flush(30)
    assert errors[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
    assert send(producer(), t, [b"small"]) == [(0, 0)]


def test_large_messages_pass_in_both_directions(topic, producer, consumer):
    t = topic(max_message_bytes=20_000_000)
    value = bytes(range(256)) * 40_000  # 10 MB
    send(producer(message_max_bytes=20_000_000), t, [value] * 3)
    c = consumer(fetch_max_bytes=1_000_000, message_max_bytes=900_000, max_partition_fetch_bytes=500_000)
    c.assign([TopicPartition(t, 0, 0)])
    assert [m.value() == value for m in read(c, 3)] == [True] * 3


def test_seeks_and_positions(topic, producer, consumer):
    t = topic()
    send(producer(), t, [b"%d" % i for i in range(100)])
    c = consumer()
    assert c.get_watermark_offsets(TopicPartition(t, 0), timeout=10) == (0, 100)
    c.assign([TopicPartition(t, 0, 90)])
    assert read(c, 1)[0].value() == b"90"
    c.seek(TopicPartition(t, 0, 10))
    assert read(c, 1)[0].value() == b"10"
    c.seek(TopicPartition(t, 0, OFFSET_BEGINNING))
    assert read(c, 1)[0].value() == b"0"
    at_end = consumer(enable_partition_eof=True)
    at_end.assign([TopicPartition(t, 0, OFFSET_END)])
    end = wait_until(lambda: at_end.poll(0.1), "the end is reached")
    assert (end.error().code(), end.offset()) == (KafkaError._PARTITION_EOF, 100)
    send(producer(), t, [b"new"])
    assert read(at_end, 1)[0].value() == b"new"


def test_times_find_offsets(topic, producer, consumer):
    t = topic(2)
    p = producer(linger_ms=0)
    for i in range(40):
        send(p, t, [b"%d" % i], partition=i % 2, timestamp=1_000_000 + i * 100)
    c = consumer()
    at = lambda partition, ms: c.offsets_for_times([TopicPartition(t, partition, ms)], timeout=10)[0].offset  # noqa: E731
    assert [at(0, 1_000_000), at(0, 1_000_001), at(1, 1_002_000), at(0, 1_003_800)] == [0, 1, 10, 19]
    assert at(0, 9_000_000) == OFFSET_END


def test_a_group_commits_and_resumes(topic, producer, consumer):
    t = topic(3)
    p = producer()
    for partition in range(3):
        send(p, t, [b"%d-%d" % (partition, i) for i in range(50)], partition=partition)
    c = consumer()
    c.subscribe([t])
    first = read(c, 60)
    c.commit(asynchronous=False)
    c.close()
    second = consumer()
    second.subscribe([t])
    rest = read(second, 90)
    assert sorted(m.value() for m in first + rest) == sorted(b"%d-%d" % (q, i) for q in range(3) for i in range(50))
    second.commit(asynchronous=False)
    committed = second.committed([TopicPartition(t, q) for q in range(3)], timeout=10)
    assert [c.offset for c in committed] == [50, 50, 50]


@pytest.mark.parametrize("strategy", ["range", "roundrobin", "cooperative-sticky"])
def test_two_members_rebalance(topic, producer, consumer, strategy):
    t = topic(4)
    first = consumer(partition_assignment_strategy=strategy)
    second = consumer(partition_assignment_strategy=strategy)
    owned = lambda c: {p.partition for p in c.assignment()}  # noqa: E731

    def settled(expected, *members):
        def check():
            drive(*members)
            return [len(owned(m)) for m in members] == expected

        wait_until(check, f"members own {expected} partitions", 30, 0)

    first.subscribe([t])
    settled([4], first)
    second.subscribe([t])
    settled([2, 2], first, second)
    assert owned(first) | owned(second) == {0, 1, 2, 3}
    second.close()
    settled([4], first)
    send(producer(), t, [b"x"] * 100)
    assert len(read(first, 100)) == 100


def test_a_static_member_returns_without_a_rebalance(topic, producer, consumer):
    t = topic(2)
    rebalances = collections.Counter()

    def member(instance):
        c = consumer(group_instance_id=instance, session_timeout_ms=10_000)
        c.subscribe(
            [t],
            on_assign=lambda *_: rebalances.update([instance + "+"]),
            on_revoke=lambda *_: rebalances.update([instance + "-"]),
        )
        return c

    a, b = member("a"), member("b")

    def settled():
        drive(a, b)
        return len(a.assignment()) == len(b.assignment()) == 1

    wait_until(settled, "each has one", 30, 0)
    mine = b.assignment()
    before = rebalances["a-"]
    b.close()  # a static member does not leave the group
    b = member("b")
    wait_until(lambda: drive(a, b) or len(b.assignment()) == 1, "b is back", 30, 0)
    assert b.assignment() == mine
    assert rebalances["a-"] == before
    # A second process with the same instance id fences the first.
    twin = member("b")
    fenced = []

    def sees_fencing():
        drive(a)
        twin.poll(0.05)
        try:
            message = b.poll(0.05)
        except KafkaException as error:
            fenced.append(error.args[0].code())
        else:
            if message is not None and message.error():
                fenced.append(message.error().code())
        return KafkaError.FENCED_INSTANCE_ID in fenced or KafkaError._FATAL in fenced

    wait_until(sees_fencing, "the first of two with one instance id is fenced", 30, 0)


def test_a_member_that_goes_silent_loses_its_partitions(topic, consumer, kcat, name):
    t = topic(2)
    alive = consumer(session_timeout_ms=6000)
    alive.subscribe([t])
    silent = kcat.start("-G", name, "-q", "-X", "session.timeout.ms=6000", "-X", "heartbeat.interval.ms=200",
                        "-X", "partition.assignment.strategy=range", t)  # fmt: skip
    try:
        wait_until(lambda: drive(alive) or len(alive.assignment()) == 1, "shared", 30, 0)
        silent.kill()
        wait_until(lambda: drive(alive) or len(alive.assignment()) == 2, "taken over", 30, 0)
    finally:
        silent.kill()
        silent.wait()


def test_auto_creation_follows_the_setting(producer, consumer, name):
    assert send(producer(), name, [b"made by producing"]) == [(0, 0)]
    absent = name + "-absent"
    strict = consumer(allow_auto_create_topics=False)
    listed = strict.list_topics(absent, timeout=10).topics[absent]
    assert listed.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
    lenient = producer(allow_auto_create_topics=True)
    wait_until(lambda: lenient.list_topics(absent, timeout=10).topics[absent].partitions, "made by asking")


def test_many_producers_and_partitions_at_once(topic, producer, consumer):
    t = topic(8)
    producers = [producer(acks="all") for _ in range(6)]
    acks = []
    for i in range(400):
        for n, p in enumerate(producers):
            p.produce(t, b"%d-%d" % (n, i), key=b"%d" % n, on_delivery=lambda e, m: acks.append(e))
    for p in producers:
        assert p.flush(30) == 0
    assert acks == [None] * 2400
    c = consumer()
    c.subscribe([t])
    by_producer = collections.defaultdict(list)
    for message in read(c, 2400):
        n, i = message.value().split(b"-")
        by_producer[n].append(int(i))
    assert all(by_producer[b"%d" % n] == list(range(400)) for n in range(6))


def test_offsets_of_a_group_can_be_altered_by_an_administrator(topic, producer, consumer, broker, name):
    t = topic()
    send(producer(), t, [b"%d" % i for i in range(20)])
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    wanted = ConsumerGroupTopicPartitions(name, [TopicPartition(t, 0, 15)])
    admin.alter_consumer_group_offsets([wanted])[name].result(10)
    listed = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)])[name].result(10)
    assert [(p.topic, p.partition, p.offset) for p in listed.topic_partitions] == [(t, 0, 15)]
    c = consumer()
    c.subscribe([t])
    assert read(c, 1)[0].offset() == 15
