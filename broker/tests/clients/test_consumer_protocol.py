"""The consumer protocol (KIP-848) as librdkafka, the Java client and Kafka's tools speak it."""

import re
import subprocess
import sys

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from daemon import wait_until

# Heartbeats often, so that the tests are quick.
SETTINGS = {
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "200",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "6000",
}


@pytest.fixture(scope="module")
def broker(new_module_broker):
    return new_module_broker(SETTINGS)


@pytest.fixture
def topic(broker, name):
    def create(partitions=1, called=name):
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        admin.create_topics([NewTopic(called, partitions, 1)])[called].result(30)
        return called

    return create


@pytest.fixture
def consumer(broker, name):
    """Consumers of one group named after the test, closed at its end."""
    opened = []

    def make(**settings):
        c = Consumer({
            "bootstrap.servers": broker.bootstrap,
            "group.id": name,
            "group.protocol": "consumer",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            **{key.replace("_", "."): value for key, value in settings.items()},
        })  # fmt: skip
        opened.append(c)
        return c

    yield make
    for c in opened:
        c.close()


@pytest.fixture
def send(broker):
    def produce(topic, values, **options):
        producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 5})
        for value in values:
            producer.produce(topic, value, **options)
        assert producer.flush(30) == 0

    return produce


def owned(consumer):
    return {(p.topic, p.partition) for p in consumer.assignment()}


def drive(*consumers):
    """Lets consumers take part; returns what they read meanwhile."""
    got = []
    for c in consumers:
        message = c.poll(0.05)
        if message is not None:
            error = message.error()
            assert error is None or error.retriable() or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART, error
            if error is None:
                got.append(message)
    return got


def settled(expected, *members):
    """Waits until the members own so many partitions each, and none owns one of another."""

    def check():
        drive(*members)
        sizes = [len(owned(m)) for m in members]
        return sizes == expected and len(set().union(*map(owned, members))) == sum(expected)

    wait_until(check, f"members own {expected} partitions", 40, 0)


def test_a_group_commits_and_resumes(topic, consumer, send):
    t = topic(3)
    for partition in range(3):
        send(t, [b"%d-%d" % (partition, i) for i in range(50)], partition=partition)
    first = consumer()
    first.subscribe([t])
    got = []
    wait_until(lambda: got.extend(drive(first)) or len(got) >= 60, "60 messages", 30, 0)
    first.commit(asynchronous=False)
    first.close()
    second = consumer()
    second.subscribe([t])
    wait_until(lambda: got.extend(drive(second)) or len(got) >= 150, "150 messages", 30, 0)
    assert sorted(m.value() for m in got) == sorted(b"%d-%d" % (q, i) for q in range(3) for i in range(50))
    second.commit(asynchronous=False)
    committed = second.committed([TopicPartition(t, q) for q in range(3)], timeout=10)
    assert [c.offset for c in committed] == [50, 50, 50]


@pytest.mark.parametrize("assignor", ["uniform", "range"])
def test_members_share_and_take_over(topic, consumer, assignor):
    t = topic(4)
    first, second = (consumer(group_remote_assignor=assignor) for _ in range(2))
    first.subscribe([t])
    settled([4], first)
    kept = owned(first)
    second.subscribe([t])
    settled([2, 2], first, second)
    assert owned(first) < kept, "the first reads on with what it keeps"
    second.close()
    settled([4], first)


def test_a_member_that_is_killed_is_taken_over_from(broker, topic, consumer, name):
    t = topic(2)
    first = consumer()
    first.subscribe([t])
    settled([2], first)
    script = (
        "import sys; from confluent_kafka import Consumer\n"
        "c = Consumer({'bootstrap.servers': sys.argv[1], 'group.id': sys.argv[2], 'group.protocol': 'consumer'})\n"
        "c.subscribe([sys.argv[3]])\n"
        "while True: c.poll(0.1)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, broker.bootstrap, name, t])
    try:
        settled([1], first)
    finally:
        other.kill()
        other.wait()
    settled([2], first)


def test_a_static_member_returns_to_what_it_had(topic, consumer):
    t = topic(4)
    stays, leaves = consumer(group_instance_id="a"), consumer(group_instance_id="b")
    stays.subscribe([t])
    leaves.subscribe([t])
    settled([2, 2], stays, leaves)
    had = owned(leaves)
    before = owned(stays)
    leaves.close()
    back = consumer(group_instance_id="b")
    back.subscribe([t])
    settled([2, 2], stays, back)
    assert (owned(back), owned(stays)) == (had, before)


def test_a_regex_is_evaluated_by_the_broker(topic, consumer, name):
    wanted = topic(1, called=f"{name}.in.one")
    topic(1, called=f"{name}.out")
    c = consumer()
    c.subscribe([f"^{re.escape(name)}\\.in\\..*"])
    wait_until(lambda: drive(c) or owned(c) == {(wanted, 0)}, "the topic that matches", 30, 0)
    later = topic(2, called=f"{name}.in.two")
    both = {(wanted, 0), (later, 0), (later, 1)}
    wait_until(lambda: drive(c) or owned(c) == both, "the topic that came later", 60, 0)


def test_a_group_migrates_while_it_reads(topic, consumer, send, name):
    t = topic(4)
    classic = {"group_protocol": "classic", "partition_assignment_strategy": "cooperative-sticky"}
    old = consumer(heartbeat_interval_ms=200, session_timeout_ms=6000, **classic)
    old.subscribe([t])
    settled([4], old)
    send(t, [b"%d" % i for i in range(100)])
    got = []
    wait_until(lambda: got.extend(drive(old)) or len(got) >= 100, "the first hundred", 30, 0)
    old.commit(asynchronous=False)
    new = consumer()
    new.subscribe([t])
    settled([2, 2], old, new)
    send(t, [b"%d" % i for i in range(100, 200)])
    wait_until(lambda: got.extend(drive(old, new)) or len(got) >= 200, "the second hundred", 30, 0)
    assert sorted(int(m.value()) for m in got) == list(range(200)), "each once"
    for member in (old, new):
        member.commit(asynchronous=False)
    # And back: the last member of the new protocol goes.
    new.close()
    settled([4], old)
    send(t, [b"%d" % i for i in range(200, 300)])
    wait_until(lambda: got.extend(drive(old)) or len(got) >= 300, "the third hundred", 30, 0)
    assert sorted(int(m.value()) for m in got) == list(range(300)), "each once"


def test_the_java_client_speaks_the_consumer_protocol(jvm, broker, name):
    jvm.run("client", "consumerProtocol", broker.bootstrap, name, timeout_s=120)


def test_kafkas_tools_describe_and_set_up_such_groups(jvm, broker, topic, consumer, send, name):
    def tools(tool, *arguments):
        return jvm.out(tool, "--bootstrap-server", broker.bootstrap, *arguments)

    t = topic(2)
    send(t, [b"x"] * 10, partition=0)
    c = consumer()
    c.subscribe([t])
    got = []
    wait_until(lambda: got.extend(drive(c)) or len(got) >= 10, "10 messages", 30, 0)
    c.commit(asynchronous=False)
    listed = tools("consumer-groups", "--list", "--type")
    assert re.search(rf"^{name}\s+Consumer", listed, re.M), listed
    state = tools("consumer-groups", "--describe", "--group", name, "--state", "--verbose")
    assert re.search(rf"{name}\s.*uniform\s+Stable\s+1\s+1\s+1", state), state
    members = tools("consumer-groups", "--describe", "--group", name, "--members", "--verbose")
    assert t in members
    row = next(line.split() for line in tools("consumer-groups", "--describe", "--group", name).splitlines() if t in line)
    assert row[1:6] == [t, "0", "10", "10", "0"]
    tools("configs", "--alter", "--entity-type", "groups", "--entity-name", name,
          "--add-config", "consumer.session.timeout.ms=7000")  # fmt: skip
    shown = tools("configs", "--describe", "--entity-type", "groups", "--entity-name", name)
    assert "consumer.session.timeout.ms=7000" in shown


def test_kafkas_log_dump_reads_the_records(jvm, new_broker):
    broker = new_broker({**SETTINGS, "offsets.topic.num.partitions": "1"})
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([NewTopic("t", 2, 1)])["t"].result(30)
    settings = {"bootstrap.servers": broker.bootstrap, "group.id": "g", "enable.auto.commit": False}
    old = Consumer({**settings, "partition.assignment.strategy": "cooperative-sticky", "heartbeat.interval.ms": 200})
    new = Consumer({**settings, "group.protocol": "consumer", "client.rack": "r", "group.instance.id": "i"})
    try:
        old.subscribe(["t"])
        settled([2], old)
        new.subscribe(["^t.*"])
        settled([1, 1], old, new)
        new.commit(offsets=[TopicPartition("t", 0, 7)], asynchronous=False)
    finally:
        new.close()
        old.close()
    broker.stop()
    logs = sorted((broker.data_dir / "__consumer_offsets-0").glob("*.log"))
    out = jvm.out("dump-log", "--files", ",".join(map(str, logs)), "--offsets-decoder")
    assert "Failed to decode" not in out and "UNKNOWN" not in out, out
    # ConsumerGroupMetadata, MemberMetadata, TargetAssignment…, CurrentMemberAssignment, Regex.
    kinds = {int(kind) for kind in re.findall(r'key: \{"type":"(\d+)"', out)}
    assert kinds >= {2, 3, 5, 6, 7, 8, 16}, (kinds, out[:2000])
    assert re.search(r'"subscribedTopicRegex":"[^"]*t\.\*', out), out[-4000:]
    assert '"supportedProtocols":[{"name":"cooperative-sticky"' in out
    assert '"metadataHash":' in out
