"""The verifying loads of a run, and their verdicts."""

import signal
from dataclasses import dataclass

from cluster import REPO, Failed, Load
from faultsuite.journal import Tail

QUICK_RETRIES = ["retry.backoff.ms=20", "retry.backoff.max.ms=200", "reconnect.backoff.max.ms=200", "auto.commit.interval.ms=500"]
FAULTY = ["lost", "misplaced", "vanished"]
FAULTY_WITH_IDEMPOTENCE = [*FAULTY, "duplicated", "out_of_order"]
PYTHON = REPO / ".cache/venv/bin/python"


@dataclass
class Running:
    """One load: it has a topic and a consumer group of its own, both by its name."""

    name: str
    process: Load
    tail: Tail
    is_idempotent: bool
    has_ended: bool = False

    def tell_to_end(self):
        if self.process.is_running():
            self.process.signal(signal.SIGTERM)

    def judge(self):
        """(report, what is wrong with it)."""
        try:
            report, status = self.process.verdict(timeout_s=240)
        except Failed as failure:
            return {}, [f"load {self.name}: {failure}"]
        kinds = FAULTY_WITH_IDEMPOTENCE if self.is_idempotent else FAULTY
        wrong = [f"load {self.name}: {report[kind]} records {kind.replace('_', ' ')}" for kind in kinds if report[kind]]
        if status != 0 and not wrong:
            wrong.append(f"load {self.name} ended with status {status}:\n{self.process.output()[-1000:]}")
        if not report["acknowledged"]:
            wrong.append(f"load {self.name}: nothing was acknowledged")
        return report, wrong


def start(cluster, partitions, rate):
    """Starts the loads, each with its share of the records per second."""
    kinds = ["idempotent", "plain", "librdkafka"]
    loads = []
    for kind in kinds:
        options = ["--partitions", partitions, "--rate", max(1, rate // len(kinds)), "--group", kind]
        if kind == "librdkafka":
            process = _librdkafka(cluster, kind, options)
        else:
            settings = QUICK_RETRIES + (["enable.idempotence=false"] if kind == "plain" else [])
            replication = ["--replicas", min(3, len(cluster.brokers)), "--min-insync-replicas", min(2, len(cluster.brokers))]
            process = cluster.verify(kind, *options, *replication, settings=settings, name=kind)
        loads.append(Running(kind, process, Tail(process.journal), kind != "plain"))
    return loads


def _librdkafka(cluster, name, options):
    """The topic is made beforehand: this program takes none of the settings that would make it."""
    count = len(cluster.brokers)
    partitions = options[options.index("--partitions") + 1]
    cluster.yuxi("topic", "create", name, "-p", partitions, "-r", min(3, count), "-c", f"min.insync.replicas={min(2, count)}")
    journal = cluster.directory / f"{name}.journal"
    command = [PYTHON, REPO / "scripts/faultsuite/librdkafka_load.py", "-b", cluster.bootstrap, name, *options, "--journal", journal]
    cluster.show(command)
    load = Load(name, command, cluster.directory / f"{name}.log", journal)
    cluster.others.append(load)
    load.start()
    return load
