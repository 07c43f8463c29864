"""What librdkafka's programs ask a cluster that may not answer just now, and how they get out of librdkafka."""

import contextlib
import faulthandler
import time

from confluent_kafka import KafkaException, TopicPartition


REPEAT_S = 0.1


@contextlib.contextmanager
def or_exit(within_s):
    """Ends the program, and shows where each of its threads stands, unless what is inside is done in time. For of
    a request whose broker has left the metadata librdkafka (2.10 to 2.16.1, its issue 5511) may wait for ever,
    whatever time it was given. An exception leaves the deadline in force: the orderly end that follows may wait
    for the same request."""
    faulthandler.dump_traceback_later(within_s, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def insist(call, *arguments):
    """Repeats what librdkafka says may be repeated, such as a commit whose answer was lost. Inside `or_exit`: it may
    say so for ever."""
    while True:
        try:
            return call(*arguments)
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            print(f"{error.args[0].str()}: again", flush=True)
            time.sleep(REPEAT_S)


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
