"""A consume-transform-produce loop of librdkafka: each line of the input is written in capitals
to the same partition of the output, in one transaction with the offsets that were read.

Usage: transform.py BOOTSTRAP APPLICATION-ID INPUT OUTPUT
"""

import signal
import sys

from confluent_kafka import Consumer, KafkaException, Producer

BATCH = 200


def begin_anew(consumer):
    """After an abort, what was read is read again from where the last commit stands."""
    assignment = consumer.assignment()
    for partition in consumer.committed(assignment, timeout=30):
        partition.offset = max(partition.offset, 0)
        consumer.seek(partition)


def insist(call, *arguments):
    """Repeats what librdkafka says may be repeated, such as a commit whose answer was lost."""
    while True:
        try:
            return call(*arguments)
        except KafkaException as error:
            if not error.args[0].retriable():
                raise


def main():
    bootstrap, application, source, target = sys.argv[1:]
    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": application, "group.instance.id": "one",
        "enable.auto.commit": False, "auto.offset.reset": "earliest", "isolation.level": "read_committed",
        "session.timeout.ms": 6000, "heartbeat.interval.ms": 1000,
    })  # fmt: skip
    producer = Producer({
        "bootstrap.servers": bootstrap, "transactional.id": application, "transaction.timeout.ms": 10_000,
    })
    consumer.subscribe([source])
    insist(producer.init_transactions, 60)
    print("started", flush=True)
    running = True

    def stop(*_):
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    while running:
        messages = [message for message in consumer.consume(BATCH, timeout=0.2) if message.error() is None]
        if not messages:
            continue
        producer.begin_transaction()
        try:
            for message in messages:
                producer.produce(target, message.value().upper(), message.key(), message.partition())
                producer.poll(0)
            positions = consumer.position(consumer.assignment())
            insist(producer.send_offsets_to_transaction, positions, consumer.consumer_group_metadata(), 30)
            insist(producer.commit_transaction, 30)
        except KafkaException as error:
            failure = error.args[0]
            print(f"{failure.name()}: {failure.str()}", flush=True)
            if not failure.txn_requires_abort():
                # Somebody else is this producer now, or nobody: the next start sorts it out.
                return 1
            insist(producer.abort_transaction, 60)
            begin_anew(consumer)
    consumer.close()
    return 0


sys.exit(main())
