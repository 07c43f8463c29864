"""What the loads of librdkafka ask a cluster that may not answer just now."""

import time

from confluent_kafka import KafkaException, TopicPartition


def ask(question, within_s):
    """Asks until there is an answer; after so long the last refusal is raised."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return question()
        except KafkaException:
            if time.monotonic() > deadline:
                raise


def ends_of(consumer, topic, partitions, within_s):
    """The offset after the last record of each of these partitions."""
    return {p: ask(lambda p=p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=5)[1], within_s) for p in partitions}
