"""The cluster under its faults: who has which role, who is already struck, what was found wrong.

Owned by the main thread; only `report` is called by others.
"""

import re
import threading
import time

from cluster import Failed, until
from faultsuite.fault import NotNow

# How long it may take until all is well again after a step.
WRITABLE_WITHIN_S = 60
IN_SYNC_WITHIN_S = 120
STOP_WITHIN_S = 30
# As systemd's RestartSec.
RESTART_PAUSE_S = 1.0
EVERY_S = 0.1


class Broken(Exception):
    """The cluster did not recover; there is no point in striking it again."""


class Scene:
    def __init__(self, cluster, network, partitions, small_disk, transaction_version=2):
        self.cluster = cluster
        self.network = network
        self.partitions = partitions
        self.small_disk = small_disk
        self.transaction_version = transaction_version
        self.loads = []
        self.began = time.time()
        self.struck = set()
        self.seen = {"controller": None, "leaders": {}}
        self.step = None
        self.steps = []
        self.findings = []
        self.restarts = 0
        self.ended = {}
        self.lock = threading.Lock()

    # What is said and found.

    def say(self, text, at=None):
        print(f"{(at or time.time()) - self.began:7.1f} s  {text}", flush=True)

    def report(self, text, at=None):
        """Something is wrong."""
        at = at or time.time()
        with self.lock:
            self.findings.append((at, text))
        self.say(f"WRONG: {text}", at)

    def enter(self, step):
        """A step begins: what is found from now on is put down to it."""
        self.steps.append((time.time(), str(step)))

    def active_at(self, moment):
        """The last step that had begun at a moment."""
        return next((step for began, step in reversed(self.steps) if began <= moment), "before the first step")

    # Who is who. Each party can be taken by one fault at a time.

    def look(self):
        """Asks etcd for the roles; if it does not answer, what it said last has to do."""
        try:
            holder = self.cluster.controller()
            self.seen = {"controller": holder and holder[0], "leaders": self.cluster.partitions(self.loads[0].name)}
        except (Failed, OSError, TimeoutError):
            pass
        return self.seen

    def controller(self):
        number = self.look()["controller"]
        if number is None:
            raise NotNow("nobody holds the seal")
        return self.cluster.nodes()[number]

    def broker(self, number):
        return self.cluster.brokers[number]

    def leader(self, partition):
        number = self.look()["leaders"][partition]["leader"]
        if number < 0:
            raise NotNow(f"partition {partition} has no leader")
        return self.broker(number)

    def take_leader(self, partition):
        return self._take(self.leader(partition))

    def take_follower(self, partition):
        state = self.look()["leaders"][partition]
        followers = [self.broker(n) for n in state["isr"] if n != state["leader"]]
        if not followers:
            raise NotNow(f"partition {partition} has no follower in sync")
        return self._take(followers[0])

    def take_controller(self):
        return self._take(self.controller())

    def take_broker(self, number):
        return self._take(self.broker(number))

    def take_all_brokers(self):
        return [self._take(node) for node in self.cluster.brokers.values()]

    def take_etcd(self):
        return self._take(self.cluster.etcd)

    def take_link(self, number):
        node = self.broker(number)
        self._claim(f"the link of {node.name}")
        return node

    def _take(self, process):
        self._claim(process.name)
        return process

    def _claim(self, name):
        if name in self.struck:
            raise NotNow(f"{name} is struck already")
        self.struck.add(name)

    def cut(self, ways, how="silent"):
        for sender, receiver in ways:
            self.network.cut(sender, receiver, how)

    def mend(self, ways):
        for sender, receiver in ways:
            self.network.mend(sender, receiver)

    # Watching and waiting.

    def stop(self, node):
        """Has a node end by SIGTERM, as it should."""
        try:
            status = node.stop(STOP_WITHIN_S)
            if status != 0:
                self.report(f"{node.name} ended with status {status} after SIGTERM: {last_line(node)}")
        except Failed as failure:
            self.report(str(failure))

    def watch(self):
        """Starts again what has ended by itself; that is wrong if it had come as far as serving."""
        for node in self.cluster.nodes().values():
            if not node.is_wanted or node.is_running():
                continue
            if node.name not in self.ended:
                self.ended[node.name] = time.time()
                output, status = node.output(), node.process.returncode
                what = f"{node.name} ended by itself with status {status}: {last_line(node)}"
                if "panicked" in output or re.search(r"^listening on ", output, re.MULTILINE) or status < 0:
                    self.report(what)
                else:
                    self.say(f"{what}; it will be started again, as systemd would")
            if time.time() - self.ended[node.name] >= RESTART_PAUSE_S:
                del self.ended[node.name]
                self.restarts += 1
                node.start(wait=False)
        for load in self.loads:
            if not load.process.is_running() and not load.has_ended:
                load.has_ended = True
                self.report(f"load {load.name} ended by itself: {last_line(load.process)}")

    def pass_time(self, until_moment):
        """Lets a fault have its time."""
        while (left := until_moment - time.time()) > 0:
            self.watch()
            time.sleep(min(EVERY_S, left))

    def settle(self):
        """Waits until every partition is written to again and every replica is in sync, and says how long that
        took."""
        healed = time.time()
        writable = self._until_written_to(healed, [load for load in self.loads if not load.is_struck])
        # The programs of these are killed too, so that how long they take says little of the cluster.
        self._until_written_to(healed, self.loads)
        in_sync = self._wait(lambda: not self._out_of_sync(), IN_SYNC_WITHIN_S)
        if in_sync is None:
            self.report(f"{IN_SYNC_WITHIN_S} s after healing, out of sync: {'; '.join(self._out_of_sync())}")
            raise Broken
        return writable - healed, in_sync - healed

    def _until_written_to(self, healed, loads):
        written = self._wait(lambda: not self._silent_since(healed, loads), WRITABLE_WITHIN_S)
        if written is None:
            silent = ", ".join(f"{name}-{p}" for name, p in self._silent_since(healed, loads))
            self.report(f"{WRITABLE_WITHIN_S} s after healing, no writes to {silent}")
            raise Broken
        return written

    def _wait(self, condition, within_s):
        """When the condition held, or None."""

        def look():
            self.watch()
            return condition() and time.time()

        try:
            return until(look, "it is so", within_s, EVERY_S)
        except Failed:
            return None

    def _silent_since(self, moment, loads):
        return [(load.name, p) for load in loads for p in load.tail.look().silent_since(moment, self.partitions)]

    def _out_of_sync(self):
        try:
            states = self.cluster.etcd.get("partitions/")
        except Failed as failure:
            return [str(failure)]
        return [
            f"{key} {number}: leader {s['leader']}, ISR {s['isr']} of {s['replicas']}"
            for key, (chunk, *_) in states.items()
            for number, s in chunk.items()
            if s["leader"] < 0 or set(s["isr"]) != set(s["replicas"])
        ]

    def longest_gap_s(self):
        return max(load.tail.look().longest_gap_s for load in self.loads if not load.is_struck)

    def reset_gaps(self):
        for load in self.loads:
            load.tail.look().reset_gap(time.time())


def last_line(process):
    return next((line for line in reversed(process.output().splitlines()) if line.strip()), "(no output)")
