"""A consume-transform-produce loop of librdkafka: each line of the input is written in capitals
to the same partition of the output, in one transaction with the offsets that were read.

Usage: transform.py BOOTSTRAP APPLICATION-ID INPUT OUTPUT GROUP-PROTOCOL
"""

import pathlib
import signal
import sys

from confluent_kafka import Consumer, KafkaException, Producer

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "faultsuite"))
from librdkafka_calls import insist, or_exit  # noqa: E402

BATCH = 200
CALL_S = 10
TRANSACTION_S = 30
# By the classic protocol a program that was killed comes back as the same member. By the other (KIP-848) the
# coordinator keeps its name for it until its session ends, and has the times.
MEMBERSHIP = {
    "classic": {"group.instance.id": "one", "session.timeout.ms": 6000, "heartbeat.interval.ms": 1000},
    "consumer": {},
}


def begin_anew(consumer):
    """After an abort, what was read is read again from where the last commit stands."""
    assignment = consumer.assignment()
    for partition in consumer.committed(assignment, timeout=30):
        partition.offset = max(partition.offset, 0)
        consumer.seek(partition)


def main():
    bootstrap, application, source, target, protocol = sys.argv[1:]
    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": application, "group.protocol": protocol,
        "enable.auto.commit": False, "auto.offset.reset": "earliest", "isolation.level": "read_committed",
        **MEMBERSHIP[protocol],
    })  # fmt: skip
    producer = Producer({
        "bootstrap.servers": bootstrap, "transactional.id": application, "transaction.timeout.ms": 10_000,
    })
    consumer.subscribe([source])
    with or_exit(TRANSACTION_S):
        insist(producer.init_transactions, CALL_S)
    print("started", flush=True)
    running = True

    def stop(*_):
        nonlocal running
        running = False

    signal.signal(signal.SIGTERM, stop)
    while running:
        messages = [message for message in consumer.consume(BATCH, timeout=0.2) if message.error() is None]
        if messages:
            with or_exit(TRANSACTION_S):
                transform(messages, consumer, producer, target)
    with or_exit(TRANSACTION_S):
        consumer.close()


def transform(messages, consumer, producer, target):
    """One transaction."""
    producer.begin_transaction()
    try:
        for message in messages:
            producer.produce(target, message.value().upper(), message.key(), message.partition())
            producer.poll(0)
        positions = consumer.position(consumer.assignment())
        insist(producer.send_offsets_to_transaction, positions, consumer.consumer_group_metadata(), CALL_S)
        insist(producer.commit_transaction, CALL_S)
    except KafkaException as error:
        failure = error.args[0]
        print(f"{failure.name()}: {failure.str()}", flush=True)
        if not failure.txn_requires_abort():
            # Somebody else is this producer now, or nobody: the next start sorts it out.
            sys.exit(1)
        insist(producer.abort_transaction, CALL_S)
        begin_anew(consumer)


main()
