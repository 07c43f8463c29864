"""Copies a topic into another in transactions that commit how far they have read: two programs in one group, each
of which is now and then killed with -9, or stopped for longer than its session and its transaction last, with or
without another in its place (copy_programs.py). At the end, on SIGTERM, all is read again and judged (copy_ledger.py).

The programs are of librdkafka, which speaks the transaction protocol of KIP-98 whatever the cluster offers; or of
Yuxi's own client (client/examples/copies.rs), which speaks that of KIP-890. Their group is of either protocol.

It prints a report and writes a journal like the other loads; a line more tells of each aborted transaction:

  abort MICROSECONDS PARTITION TRANSACTION
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from copy_ledger import Copy, Partition, checksum, judge, transaction_name
from copy_programs import ENDING_S, Programs
from journal import Tail
from librdkafka_calls import ask, ends_of, insist, or_exit
from pacing import Pacing

WORKERS = 2
# The most records of a transaction, and how long it waits for them.
RECORDS = 1000
LINGER_S = 0.25
# Of a hundred transactions so many are aborted on purpose.
ABORT_PERCENT = 10
TRANSACTION_TIMEOUT_MS = 5000
# By the consumer protocol (KIP-848) the coordinator has the times.
MEMBERSHIP = {"classic": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000}, "consumer": {}}
CALL_S = 10
# By then the broker has aborted it. Longer than a program is stopped.
TRANSACTION_S = 20
RESTART_PAUSE_S = 0.5
STALLED_S = 90.0


def transactional_id(given, number):
    return f"{given.topic}-{number}"


def settings(given):
    return {"bootstrap.servers": given.bootstrap, "topic.metadata.refresh.interval.ms": 2000, "reconnect.backoff.max.ms": 200}


def producer(given, number):
    return Producer({
        **settings(given), "transactional.id": transactional_id(given, number),
        "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS, "retry.backoff.ms": 20, "retry.backoff.max.ms": 200,
    })  # fmt: skip


class Journal:
    """Whole lines, appended: several processes write to it."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, lines):
        os.write(self.file, "".join(line + "\n" for line in lines).encode())


def now_us():
    return time.time_ns() // 1000


# One program that copies.


def work(given):
    """Copies until SIGTERM. Whatever cannot be gone on with ends the program, and it is started again."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    journal = Journal(given.journal)
    consumer = Consumer({
        **settings(given), "group.id": given.group, "enable.auto.commit": False, "auto.offset.reset": "earliest",
        "isolation.level": "read_committed", "group.protocol": given.group_protocol, **MEMBERSHIP[given.group_protocol],
    })  # fmt: skip
    writer = producer(given, given.worker)
    with or_exit(TRANSACTION_S):
        insist(writer.init_transactions, CALL_S)
    messages = []

    def revoked(_, partitions):
        # Whoever reads these next begins where the last commit stands. By the consumer protocol the others are read on.
        gone = {partition.partition for partition in partitions}
        messages[:] = [message for message in messages if message.partition() not in gone]

    consumer.subscribe([given.source], on_revoke=revoked)
    number, parent = 0, os.getppid()
    while not ending.is_set() and os.getppid() == parent:
        messages.clear()
        deadline = time.monotonic() + LINGER_S
        while len(messages) < RECORDS and (left := deadline - time.monotonic()) > 0:
            message = consumer.poll(left)
            if message is not None and message.error() is None:
                messages.append(message)
        if messages:
            number += 1
            with or_exit(TRANSACTION_S):
                copy(given, journal, consumer, writer, messages, transaction_name(given.worker, given.life, number))
    with or_exit(ENDING_S):
        consumer.close()


def copy(given, journal, consumer, writer, messages, transaction):
    """One transaction."""
    written = []
    writer.begin_transaction()
    try:
        for message in messages:
            one = Copy(message.offset(), transaction, len(messages), checksum(message.value()))

            def delivered(error, message, source=one.source):
                if error is None:
                    written.append((message.partition(), source, message.offset()))

            value = one.value(given.topic, message.partition())
            writer.produce(given.topic, value, partition=message.partition(), on_delivery=delivered)
        ends = {message.partition(): message.offset() + 1 for message in messages}
        positions = [TopicPartition(given.source, partition, end) for partition, end in ends.items()]
        insist(writer.send_offsets_to_transaction, positions, consumer.consumer_group_metadata(), CALL_S)
        if random.randrange(100) < ABORT_PERCENT:
            abort(journal, consumer, writer, transaction)
            return
        insist(writer.commit_transaction, CALL_S)
    except KafkaException as error:
        print(f"{transaction}: {error}", flush=True)
        if not error.args[0].txn_requires_abort():
            raise
        abort(journal, consumer, writer, transaction)
        return
    at = now_us()
    journal.note(f"ack {at} {partition} {source} {offset}" for partition, source, offset in written)


def abort(journal, consumer, writer, transaction):
    """What was read is read again from where the last commit stands."""
    insist(writer.abort_transaction, CALL_S)
    journal.note([f"abort {now_us()} 0 {transaction}"])
    for partition in consumer.committed(consumer.assignment(), timeout=CALL_S):
        partition.offset = max(partition.offset, 0)
        consumer.seek(partition)


# Who looks after them.


def keep_up(given, ending):
    """Strikes the programs, and starts again whoever has ended. How many of them were replaced."""
    programs = Programs(WORKERS, lambda number, life: start(given, number, life))
    copied = Tail(pathlib.Path(given.journal))
    pacing = Pacing(given.seed, WORKERS, time.time())
    while not ending.wait(RESTART_PAUSE_S):
        now = time.time()
        strike = pacing.due(now, lambda moment: copied.look().silent_since(moment, given.partitions))
        if strike:
            programs.strike(strike, now)
        programs.look_after(now)
    programs.end()
    return len(programs.replaced)


def start(given, number, life):
    command = [sys.executable, *sys.argv, "--worker", str(number), "--life", str(life)]
    if given.program:
        command = [given.program, given.bootstrap, given.source, given.topic, given.group, given.group_protocol, str(number), str(life)]
        command.append(given.journal)
    return subprocess.Popen(command)


# The end.


def report(given):
    """(what was counted, what is wrong)"""
    # Whatever a program left open is aborted, so that the output ends where it is stable.
    for number in range(WORKERS):
        ask(lambda number=number: producer(given, number).init_transactions(CALL_S), STALLED_S)
    partitions = [Partition() for _ in range(given.partitions)]
    group = Consumer({**settings(given), "group.id": given.group, "isolation.level": "read_committed", "enable.auto.commit": False})
    asked = [TopicPartition(given.source, number) for number in range(given.partitions)]
    for told in ask(lambda: group.committed(asked, timeout=CALL_S), STALLED_S):
        partitions[told.partition].committed = max(told.offset, 0)
    group.close()
    source = read(given, given.source, [partition.committed for partition in partitions])
    output = read(given, given.topic, None)
    for partition, read_source, read_output in zip(partitions, source, output):
        partition.source = dict(read_source)
        partition.output = [Copy.parse(value) for _, value in read_output]
    aborted = set()
    with open(given.journal) as journal:
        for line in journal:
            kind, _, partition, what, *_ = line.split()
            if kind == "ack":
                partitions[int(partition)].acknowledged.add(int(what))
            elif kind == "abort":
                aborted.add(what)
    counted = {
        "acknowledged": sum(len(partition.acknowledged) for partition in partitions),
        "read": sum(len(partition.output) for partition in partitions),
        "committed": len({copy.transaction for partition in partitions for copy in partition.output}),
        "aborted": len(aborted),
    }
    return counted, judge(partitions, aborted)


def read(given, topic, ends):
    """[(offset, value)] of each partition below its end, or below where it ends now."""
    consumer = Consumer({
        **settings(given), "group.id": "reads-at-the-end", "enable.auto.commit": False,
        "isolation.level": "read_committed", "enable.partition.eof": True,
    })  # fmt: skip
    ends = ends or list(ends_of(consumer, topic, range(given.partitions), STALLED_S).values())
    found = [[] for _ in ends]
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(given.partitions)])
    missing, last = {p for p, end in enumerate(ends) if end > 0}, time.monotonic()
    while missing:
        if time.monotonic() - last > STALLED_S:
            sys.exit(f"cannot read partitions {sorted(missing)} of {topic} up to {ends}")
        for message in consumer.consume(1000, 0.5):
            number, offset = message.partition(), message.offset()
            if message.error() is None:
                last = time.monotonic()
                if offset < ends[number]:
                    found[number].append((offset, message.value()))
                if offset >= ends[number] - 1:
                    missing.discard(number)
            # The last offset may be a marker's, which is not told of.
            elif message.error().code() == KafkaError._PARTITION_EOF and offset >= ends[number]:
                missing.discard(number)
    consumer.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-b", "--bootstrap", required=True)
    parser.add_argument("source")
    parser.add_argument("topic")
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--group-protocol", choices=list(MEMBERSHIP), required=True)
    parser.add_argument("--seed", type=int, required=True, help="draws when which program is struck")
    parser.add_argument("--journal", required=True)
    parser.add_argument("--program", help="copies instead of librdkafka: client/examples/copies.rs")
    parser.add_argument("--worker", type=int, help="be one of the programs that copy")
    parser.add_argument("--life", type=int, help="which of those that were started")
    given = parser.parse_args()
    if given.worker is not None:
        try:
            return work(given)
        except KafkaException as error:
            sys.exit(str(error))
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    Journal(given.journal)
    replaced = keep_up(given, ending)
    counted, wrong = report(given)
    # What a program said last may have no end.
    print("\n" + json.dumps({**counted, "replaced_programs": replaced, **wrong}, indent=2))
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
