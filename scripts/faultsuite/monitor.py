"""Watches, while the faults happen, that nothing which may only grow goes back.

One thread for each broker asks that broker alone (a frozen or cut-off one too: what it
believes is to be as true) for the high watermark and the log start of every partition that
it says it leads, in the leader epoch in which it says so, and for the committed offsets of the
groups that it coordinates.
"""

import threading
import time

from faultsuite.kafka_calls import EARLIEST, LATEST, Broker, group_partition

OFFSETS_TOPIC = "__consumer_offsets"
INTERNAL_TOPICS = [OFFSETS_TOPIC, "__transaction_state"]
EVERY_S = 0.15
TIMEOUT_S = 3.0


class Growing:
    """Values that never go back: within an epoch as they are seen, and none of a later epoch below
    one of an earlier epoch (unless `across_epochs` is off)."""

    def __init__(self, what, across_epochs):
        self.what = what
        self.across_epochs = across_epochs
        self.last = {}
        self.bounds = {}
        self.samples = 0

    def see(self, key, epoch, value):
        """What is wrong with this value, or None."""
        self.samples += 1
        before = self.last.get((key, epoch))
        self.last[key, epoch] = value
        wrong = None
        if before is not None and value < before:
            wrong = f"{self.what} of {name(key)} went back from {before} to {value} in leader epoch {epoch}"
        bounds = self.bounds.setdefault(key, {})
        if self.across_epochs:
            for other, (low, high) in bounds.items():
                if (other < epoch and high > value) or (other > epoch and low < value):
                    shown = high if other < epoch else low
                    wrong = wrong or (
                        f"{self.what} of {name(key)} was {value} in leader epoch {epoch} and {shown} in {other}"
                    )
        low, high = bounds.get(epoch, (value, value))
        bounds[epoch] = min(low, value), max(high, value)
        return wrong


def name(key):
    return "-".join(str(part) for part in key)


class Monitor:
    """The threads, and what they have seen."""

    def __init__(self, brokers, topics, groups, report):
        self.topics = [*topics, *INTERNAL_TOPICS]
        self.groups = groups
        self.report = report
        # A consumer, too, must never see an end that later turns out to be further back (KIP-207).
        self.high_watermarks = Growing("the high watermark", across_epochs=True)
        # Each replica deletes old segments in its own time.
        self.log_starts = Growing("the log start", across_epochs=False)
        self.committed = Growing("the committed offset", across_epochs=True)
        self.lock = threading.Lock()
        self.is_ending = threading.Event()
        self.threads = [
            threading.Thread(target=self._follow, args=(number, node.address), daemon=True)
            for number, node in brokers.items()
        ]

    def start(self):
        for thread in self.threads:
            thread.start()

    def end(self):
        self.is_ending.set()
        for thread in self.threads:
            thread.join()

    def high_watermark(self, topic, partition):
        """The highest that any broker has told."""
        bounds = self.high_watermarks.bounds.get((topic, partition), {})
        return max((high for _, high in bounds.values()), default=0)

    def _follow(self, number, address):
        broker = None
        while not self.is_ending.wait(EVERY_S):
            try:
                broker = broker or Broker(address, TIMEOUT_S)
                self._look(number, broker)
            except OSError:
                if broker:
                    broker.close()
                broker = None
        if broker:
            broker.close()

    def _look(self, number, broker):
        leaders = broker.led(self.topics)
        mine = {key: epoch for key, (leader, epoch) in leaders.items() if leader == number}
        shown = {key: epoch for key, epoch in mine.items() if key[0] not in INTERNAL_TOPICS}
        for growing, which in [(self.high_watermarks, LATEST), (self.log_starts, EARLIEST)]:
            if shown:
                for key, offset in broker.offsets(shown, which).items():
                    self._see(growing, key, shown[key], offset)
        self._look_at_groups(number, broker, mine, sum(1 for topic, _ in leaders if topic == OFFSETS_TOPIC))

    def _look_at_groups(self, number, broker, mine, partitions):
        keepers = {g: (OFFSETS_TOPIC, group_partition(g, partitions)) for g in self.groups if partitions}
        told = {g: broker.committed(g) for g, keeper in keepers.items() if keeper in mine}
        if not told:
            return
        # The answer belongs to the epoch only if that has not changed meanwhile.
        leaders = broker.led([OFFSETS_TOPIC])
        for group, offsets in told.items():
            epoch = mine[keepers[group]]
            if offsets is not None and leaders.get(keepers[group]) == (number, epoch):
                for (topic, partition), offset in offsets.items():
                    self._see(self.committed, (group, topic, partition), epoch, offset)

    def _see(self, growing, key, epoch, value):
        with self.lock:
            wrong = growing.see(key, epoch, value)
        if wrong:
            self.report(wrong, time.time())
