"""What `yuxi verify` does, done by librdkafka: other people's client with a check of its own.

Sends numbered records to every partition with idempotence and reads them in a group, until
SIGTERM; then reads all again and prints the same report. The journal has the same form.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from librdkafka_calls import ends_of

TICK_S = 0.01
STALLED_S = 60.0
VALUE_BYTES = 100
COMMIT_EVERY_S = 0.5
# A request may wait for its answer for 60 s (socket.timeout.ms).
HUNG_S = 90
ENDING_S = 60
# Whoever waits for the verdict does so for twice as long (loads.py).
SHOWN_AFTER_S = 120


class Ledger:
    """What was sent, acknowledged and read, by partition."""

    def __init__(self, partitions, journal):
        self.id = f"{os.getpid():x}{time.time_ns() % 10**6:06d}"
        self.sent = [0] * partitions
        self.acknowledged = [{} for _ in range(partitions)]
        self.seen = [[] for _ in range(partitions)]
        self.at_end = [[] for _ in range(partitions)]
        self.journal = open(journal, "w", buffering=1)
        self.lock = threading.Lock()

    def value(self, partition):
        sequence = self.sent[partition]
        self.sent[partition] += 1
        return sequence, f"{self.id} {partition} {sequence} ".ljust(VALUE_BYTES, ".")

    def delivered(self, partition, sequence, error, message):
        if error is not None:
            self.note(f"fail {now_us()} {partition} {sequence} {error}")
            return
        # There is no offset where the broker only said that it has the batch already.
        offset = -1 if message.offset() is None else max(message.offset(), -1)
        self.acknowledged[partition][sequence] = offset
        self.note(f"ack {now_us()} {partition} {sequence} {offset}")

    def read(self, message, into):
        run, partition, sequence = message.value().split()[:3]
        if run.decode() == self.id:
            assert int(partition) == message.partition(), f"a record of partition {partition} in {message.partition()}"
            into[message.partition()].append((message.offset(), int(sequence)))

    def note(self, line):
        with self.lock:
            self.journal.write(line + "\n")

    def report(self):
        total = dict.fromkeys(
            ["acknowledged", "unknown", "read", "lost", "duplicated", "out_of_order", "misplaced", "vanished"], 0
        )
        for sent, acknowledged, seen, read in zip(self.sent, self.acknowledged, self.seen, self.at_end):
            by_offset, copies, newest = dict(read), {}, -1
            for _, sequence in read:
                copies[sequence] = copies.get(sequence, 0) + 1
                total["duplicated"] += copies[sequence] > 1
                total["out_of_order"] += copies[sequence] == 1 and sequence < newest
                newest = max(newest, sequence)
            total["acknowledged"] += len(acknowledged)
            total["unknown"] += sent - len(acknowledged)
            total["read"] += len(read)
            total["lost"] += sum(1 for sequence in acknowledged if sequence not in copies)
            total["misplaced"] += sum(
                1 for s, offset in acknowledged.items() if offset >= 0 and s in copies and by_offset.get(offset) != s
            )
            total["vanished"] += sum(1 for offset, sequence in seen if by_offset.get(offset) != sequence)
        return total


def send(producer, ledger, topic, rate, ending, readers):
    began, sent = time.monotonic(), 0
    while not ending.is_set():
        due = int((time.monotonic() - began) * rate)
        while sent < due:
            partition = sent % len(ledger.sent)
            sequence, value = ledger.value(partition)

            def delivered(error, message, partition=partition, sequence=sequence):
                ledger.delivered(partition, sequence, error, message)

            # A full queue is waited for: every record is sent exactly once.
            while True:
                try:
                    producer.produce(topic, value, partition=partition, on_delivery=delivered)
                    break
                except BufferError:
                    producer.poll(TICK_S)
            sent += 1
        producer.poll(TICK_S)
        readers.look()
    producer.flush()


class Reader(threading.Thread):
    """Reads along in the group. Commits itself, one commit after another: librdkafka's automatic commits, tried again
    while a coordinator is away, overtake one another, and then the committed offset does go back."""

    def __init__(self, config, ledger, topic, group):
        super().__init__(daemon=True)
        self.config = {**config, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        self.ledger, self.topic = ledger, topic
        self.ending = threading.Event()
        self.moved = time.monotonic()

    def run(self):
        consumer = Consumer(self.config)
        consumer.subscribe([self.topic])
        committed = time.monotonic()
        while not self.ending.is_set():
            message = consumer.poll(0.1)
            if time.monotonic() - committed > COMMIT_EVERY_S:
                with contextlib.suppress(KafkaException):
                    consumer.commit(asynchronous=False)
                committed = time.monotonic()
            if message is not None and message.error() is None:
                self.ledger.read(message, self.ledger.seen)
                self.ledger.note(f"read {now_us()} {message.partition()} {message.offset()}")
            self.moved = time.monotonic()
        consumer.close()


class Readers:
    """One reader at a time. When all brokers have left the metadata, librdkafka (2.16) may never ask for the group's
    coordinator again, and a commit waits for ever. Such a reader is given up, counted, and another takes over."""

    def __init__(self, start):
        self.start = start
        self.hung = 0
        self.current = start()

    def look(self):
        if not self.current.is_alive():
            sys.exit("the reader has ended")
        if time.monotonic() - self.current.moved > HUNG_S:
            self.end(within_s=0)
            self.current = self.start()

    def end(self, within_s):
        self.current.ending.set()
        self.current.join(within_s)
        if self.current.is_alive():
            self.hung += 1
            print(f"a reader hangs in librdkafka since {time.monotonic() - self.current.moved:.0f} s:", flush=True)
            faulthandler.dump_traceback()


def read_all(config, ledger, topic):
    consumer = Consumer({**config, "group.id": "reads-at-the-end", "enable.auto.commit": False})
    partitions = range(len(ledger.sent))
    ends = ends_of(consumer, topic, partitions, STALLED_S)
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
    missing, last = {p for p, end in ends.items() if end > 0}, time.monotonic()
    while missing:
        if time.monotonic() - last > STALLED_S:
            sys.exit(f"cannot read partitions {sorted(missing)} up to {ends}")
        for message in consumer.consume(1000, 0.5):
            if message.error() is None:
                last = time.monotonic()
                ledger.read(message, ledger.at_end)
                if message.offset() >= ends[message.partition()] - 1:
                    missing.discard(message.partition())
    consumer.close()


def now_us():
    return time.time_ns() // 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-b", "--bootstrap", required=True)
    parser.add_argument("topic")
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--rate", type=int, default=300)
    parser.add_argument("--group", required=True)
    parser.add_argument("--journal", required=True)
    given = parser.parse_args()
    ending = threading.Event()

    def end(*_):
        ending.set()
        # If the end does not come, the log says what each thread waits for.
        faulthandler.dump_traceback_later(SHOWN_AFTER_S)

    signal.signal(signal.SIGTERM, end)
    config = {
        "bootstrap.servers": given.bootstrap, "topic.metadata.refresh.interval.ms": 2000, "reconnect.backoff.max.ms": 200,
        # Says why a producer epoch is bumped; little else.
        "debug": "eos",
    }  # fmt: skip
    ledger = Ledger(given.partitions, given.journal)
    producer = Producer({**config, "enable.idempotence": True, "linger.ms": 5, "retry.backoff.ms": 20, "retry.backoff.max.ms": 200})

    def start_reading():
        reader = Reader(config, ledger, given.topic, given.group)
        reader.start()
        return reader

    readers = Readers(start_reading)
    send(producer, ledger, given.topic, given.rate, ending, readers)
    readers.end(ENDING_S)
    read_all(config, ledger, given.topic)
    report = {**ledger.report(), "hung_readers": readers.hung}
    print(json.dumps(report, indent=2), flush=True)
    wrong = ["lost", "duplicated", "out_of_order", "misplaced", "vanished"]
    # A reader that hangs would keep an orderly end waiting.
    os._exit(int(any(report[kind] for kind in wrong)))


main()
