"""A consume-transform-produce loop of librdkafka: each line of the input is written in capitals
to the same partition of the output, in one transaction with the offsets that were read.

Usage: transform.py BOOTSTRAP APPLICATION-ID INPUT OUTPUT
"""

import os
import signal
import sys

from confluent_kafka import Consumer, KafkaException, Producer

BATCH = 200
TRIES = 3
PATIENCE_S = 10


def begin_anew(consumer):
    """After an abort, what was read is read again from where the last commit stands."""
    assignment = consumer.assignment()
    for partition in consumer.committed(assignment, timeout=30):
        partition.offset = max(partition.offset, 0)
        consumer.seek(partition)


def insist(call, *arguments):
    """Repeats what librdkafka says may be repeated, such as a commit whose answer was lost. Not for ever: of a
    request whose broker has left the metadata, librdkafka 2.16 may keep saying that it is under way and
    never send it again. Then the program ends, and is started again."""
    for _ in range(TRIES):
        try:
            return call(*arguments)
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            print(f"{error.args[0].str()}: again", flush=True)
    print(f"{call.__name__} did not come to an end in {TRIES} tries", flush=True)
    # In an orderly way it would wait for that request.
    os._exit(1)


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
    insist(producer.init_transactions, PATIENCE_S)
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
            insist(producer.send_offsets_to_transaction, positions, consumer.consumer_group_metadata(), PATIENCE_S)
            insist(producer.commit_transaction, PATIENCE_S)
        except KafkaException as error:
            failure = error.args[0]
            print(f"{failure.name()}: {failure.str()}", flush=True)
            if not failure.txn_requires_abort():
                # Somebody else is this producer now, or nobody: the next start sorts it out.
                return 1
            insist(producer.abort_transaction, PATIENCE_S)
            begin_anew(consumer)
    consumer.close()
    return 0


sys.exit(main())
