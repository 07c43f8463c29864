"""How long commits take: transactions of ten records on one partition, one after the other, by
librdkafka. Prints a time in milliseconds for each, from asking for the commit to its answer; the
records are delivered before.

Usage: commit_latency.py BOOTSTRAP TOPIC COUNT
"""

import sys
import time

from confluent_kafka import Producer

RECORDS = 10
WARM_UP = 50


def main():
    bootstrap, topic, count = sys.argv[1:]
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": topic, "linger.ms": 0})
    producer.init_transactions(30)
    for number in range(WARM_UP + int(count)):
        producer.begin_transaction()
        for _ in range(RECORDS):
            producer.produce(topic, b"x" * 100, partition=0)
        begun = time.perf_counter()
        producer.flush(30)
        flushed = time.perf_counter()
        producer.commit_transaction(30)
        ended = time.perf_counter()
        if number >= WARM_UP:
            print((ended - flushed) * 1000, (ended - begun) * 1000)


main()
