"""kafka-python 3: a client that shares no code with librdkafka or Java."""

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions, NewTopic
from kafka.errors import ProducerFencedError, TopicAlreadyExistsError, UnknownTopicOrPartitionError

from daemon import wait_until


@pytest.fixture
def admin(broker):
    client = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    yield client
    client.close()


def drain(consumer, count, deadline_s=30):
    records = []

    def enough():
        for batch in consumer.poll(timeout_ms=200).values():
            records.extend(batch)
        return len(records) >= count

    wait_until(enough, f"{count} records", deadline_s, 0)
    assert len(records) == count
    return records


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_every_codec_goes_round(broker, name, codec):
    values = [b"%d " % i * (i % 60 + 1) for i in range(1000)]
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, compression_type=codec, acks="all", linger_ms=5)
    acks = [
        producer.send(name, value, key=b"key", headers=[("h", b"%d" % i)], timestamp_ms=1_500_000_000_000 + i)
        for i, value in enumerate(values)
    ]
    assert [ack.get(30).offset for ack in acks] == list(range(1000))
    producer.close()
    consumer = KafkaConsumer(name, bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest", group_id=None)
    for i, record in enumerate(drain(consumer, 1000)):
        assert (record.value, record.key, record.headers) == (values[i], b"key", [("h", b"%d" % i)])
        assert (record.offset, record.timestamp) == (i, 1_500_000_000_000 + i)
    consumer.close()


def test_a_group_commits_and_resumes(broker, name):
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    for i in range(20):
        producer.send(name, b"%d" % i)
    producer.close()
    settings = {
        "bootstrap_servers": broker.bootstrap, "group_id": name, "auto_offset_reset": "earliest",
        "enable_auto_commit": False,
    }  # fmt: skip
    consumer = KafkaConsumer(name, **settings)
    drain(consumer, 20)
    partition = TopicPartition(name, 0)
    consumer.commit({partition: OffsetAndMetadata(13, "half way", -1)})
    assert consumer.committed(partition) == 13
    consumer.close()
    consumer = KafkaConsumer(name, **settings)
    assert [r.offset for r in drain(consumer, 7)] == list(range(13, 20))
    consumer.close()


def committed_values(broker, topic):
    """What a reader of committed records gets, up to the end that it is told."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest")
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    end, values = consumer.end_offsets([partition])[partition], []

    def at_end():
        for batch in consumer.poll(timeout_ms=200).values():
            values.extend(record.value for record in batch)
        return consumer.position(partition) >= end

    wait_until(at_end, f"the end of {topic}", 30, 0)
    consumer.close()
    return values


def test_a_transaction_counts_its_input_once_and_one_that_is_aborted_does_not(broker, name):
    source, target = f"{name}-in", f"{name}-out"
    writer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    for i in range(10):
        writer.send(source, b"%d" % i)
    writer.close()
    consumer = KafkaConsumer(source, bootstrap_servers=broker.bootstrap, group_id=name, auto_offset_reset="earliest", enable_auto_commit=False)
    records = drain(consumer, 10)
    partition = TopicPartition(source, 0)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=name)
    producer.init_transactions()
    for end in (producer.abort_transaction, producer.commit_transaction):
        assert consumer.committed(partition) is None
        producer.begin_transaction()
        for record in records:
            producer.send(target, b"from %s" % record.value)
        producer.send_offsets_to_transaction({partition: OffsetAndMetadata(10, "", -1)}, consumer.group_metadata())
        end()
    producer.close()
    assert committed_values(broker, target) == [b"from %d" % i for i in range(10)]
    assert consumer.committed(partition) == 10
    consumer.close()


def test_a_transactional_producer_is_fenced_by_the_next_of_its_id(broker, name):
    old, new = (KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=name) for _ in range(2))
    old.init_transactions()
    old.begin_transaction()
    old.send(name, b"left open").get(30)
    new.init_transactions()
    with pytest.raises(ProducerFencedError):
        old.commit_transaction()
    new.begin_transaction()
    new.send(name, b"new")
    new.commit_transaction()
    assert committed_values(broker, name) == [b"new"]
    old.close(timeout=5)
    new.close()


def test_positions_and_times(broker, name):
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    for i in range(10):
        producer.send(name, b"x", timestamp_ms=1000 + i * 10).get(30)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    partition = TopicPartition(name, 0)
    consumer.assign([partition])
    assert consumer.beginning_offsets([partition]) == {partition: 0}
    assert consumer.end_offsets([partition]) == {partition: 10}
    assert consumer.offsets_for_times({partition: 1045})[partition].offset == 5
    consumer.seek(partition, 8)
    assert [r.offset for r in drain(consumer, 2)] == [8, 9]
    consumer.close()


def test_topics_and_configs(admin, name):
    admin.create_topics([NewTopic(name=name, num_partitions=2, replication_factor=1)])
    with pytest.raises(TopicAlreadyExistsError):
        admin.create_topics([NewTopic(name=name, num_partitions=2, replication_factor=1)])
    assert name in admin.list_topics()
    assert len(admin.describe_topics([name])[0]["partitions"]) == 2
    admin.create_partitions({name: NewPartitions(3)})
    assert len(admin.describe_topics([name])[0]["partitions"]) == 3
    admin.delete_topics([name])
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.delete_topics([name])
    assert name not in admin.list_topics()
