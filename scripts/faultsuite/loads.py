"""The verifying loads of a run, and their verdicts."""

import signal
from dataclasses import dataclass

from cluster import REPO, Failed, Load, until
from faultsuite.copy_ledger import KINDS as FAULTY_COPIES
from faultsuite.journal import Tail

QUICK_RETRIES = ["retry.backoff.ms=20", "retry.backoff.max.ms=200", "reconnect.backoff.max.ms=200", "auto.commit.interval.ms=500"]
FAULTY = ["lost", "misplaced", "vanished"]
FAULTY_WITH_IDEMPOTENCE = [*FAULTY, "duplicated", "out_of_order"]
FAULTY_WITH_TRANSACTIONS = [*FAULTY_WITH_IDEMPOTENCE, "torn", "aborted_reads", "zombie_writes"]
# The load that copies reads what this one has written.
COPIED = "idempotent"
TRANSACTIONS = ["--transactions", 10, "--producers", 2, "--abort-percent", 20]
PYTHON = REPO / ".cache/venv/bin/python"


@dataclass
class Running:
    """One load: it has a topic and a consumer group of its own, both by its name."""

    name: str
    process: Load
    tail: Tail
    faulty: list
    has_ended: bool = False
    # Its programs are killed and stopped as well.
    is_struck: bool = False

    @property
    def is_in_order(self):
        """Whether each partition has its records once and in the order in which they were numbered. Those of
        several producers interleave as the brokers take them, which their own ledger heeds."""
        return self.faulty is FAULTY_WITH_IDEMPOTENCE

    def tell_to_end(self):
        if self.process.is_running():
            self.process.signal(signal.SIGTERM)

    def judge(self):
        """(report, what is wrong with it)."""
        try:
            report, status = self.process.verdict(timeout_s=240)
        except Failed as failure:
            return {}, [f"load {self.name}: {failure}"]
        wrong = [f"load {self.name}: {report[kind]} {kind.replace('_', ' ')}" for kind in self.faulty if report[kind]]
        if status != 0 and not wrong:
            wrong.append(f"load {self.name} ended with status {status}:\n{self.process.output()[-1000:]}")
        if not report["acknowledged"]:
            wrong.append(f"load {self.name}: nothing was acknowledged")
        return report, wrong


def start(cluster, partitions, rate, seed, group_protocol, copier=None):
    """Starts the loads, each with its share of the records per second. `copier` copies instead of librdkafka, and who
    copies is in a group of `group_protocol`."""
    kinds = {
        "idempotent": FAULTY_WITH_IDEMPOTENCE,
        "plain": FAULTY,
        "librdkafka": FAULTY_WITH_IDEMPOTENCE,
        "transactional": FAULTY_WITH_TRANSACTIONS,
    }
    loads = []
    for kind, faulty in kinds.items():
        options = ["--partitions", partitions, "--rate", max(1, rate // len(kinds)), "--group", kind]
        if kind == "librdkafka":
            process = _librdkafka(cluster, kind, options)
        else:
            settings = QUICK_RETRIES + (["enable.idempotence=false"] if kind == "plain" else [])
            # An abandoned transaction holds the others' readers up until it is timed out.
            settings += ["transaction.timeout.ms=5000"] if kind == "transactional" else []
            options += TRANSACTIONS if kind == "transactional" else []
            replication = ["--replicas", min(3, len(cluster.brokers)), "--min-insync-replicas", min(2, len(cluster.brokers))]
            process = cluster.verify(kind, *options, *replication, settings=settings, name=kind)
        loads.append(Running(kind, process, Tail(process.journal), faulty))
    copying = ["--partitions", partitions, "--group", "copy", "--group-protocol", group_protocol, "--seed", seed]
    copying += ["--program", copier] if copier else []
    until(lambda: COPIED in cluster.yuxi("topic", "list"), "there is something to copy", 60, every_s=0.2)
    process = _program(cluster, "copy_load.py", "copy", [COPIED], copying)
    loads.append(Running("copy", process, Tail(process.journal), FAULTY_COPIES, is_struck=True))
    return loads


def _librdkafka(cluster, name, options):
    return _program(cluster, "librdkafka_load.py", name, [], options)


def _program(cluster, program, name, before, options):
    """A load in Python. The topic is made beforehand: these take none of the settings that would make it."""
    count = len(cluster.brokers)
    partitions = options[options.index("--partitions") + 1]
    cluster.yuxi("topic", "create", "--if-not-exists", name, "-p", partitions, "-r", min(3, count), "-c", f"min.insync.replicas={min(2, count)}")
    journal = cluster.directory / f"{name}.journal"
    command = [PYTHON, REPO / "scripts/faultsuite" / program, "-b", cluster.bootstrap, *before, name, *options, "--journal", journal]
    cluster.show(command)
    load = Load(name, command, cluster.directory / f"{name}.log", journal)
    cluster.others.append(load)
    load.start()
    return load
