"""What is checked once everything is healed: the loads' verdicts, and the logs on disk."""

import re
import threading
from dataclasses import dataclass, field

from cluster import Failed
from faultsuite import disk_logs, journal
from faultsuite.kafka_calls import LATEST, Broker
from faultsuite.monitor import INTERNAL_TOPICS

EXAMPLES = 5


@dataclass
class Sums:
    """The numbers of the verdict."""

    reports: dict = field(default_factory=dict)
    compared_bytes: int = 0
    compared_partitions: int = 0
    acknowledgements_on_disk: int = 0


def run(scene, monitor):
    sums = Sums()
    end_loads(scene, sums)
    ends = high_watermarks(scene, monitor)
    monitor.end()
    states = all_partitions(scene.cluster)
    stop_brokers(scene)
    compare_logs(scene, states, ends, sums)
    find_zombie_writes(scene, states)
    for load in scene.loads:
        compare_with_journal(scene, load, states, sums)
    find_panics(scene)
    return sums


def end_loads(scene, sums):
    for load in scene.loads:
        load.tell_to_end()
    # Each reads its whole topic again; they do that side by side.
    verdicts = {}
    threads = [
        threading.Thread(target=lambda load=load: verdicts.update({load.name: load.judge()})) for load in scene.loads
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for load in scene.loads:
        sums.reports[load.name], wrong = verdicts[load.name]
        load.has_ended = True
        for text in wrong:
            # The ledger knows no times; compare_with_journal finds them.
            scene.report(text)


def high_watermarks(scene, monitor):
    """Where every partition ends, as its leader says; the highest that was ever told must not be above."""
    ends = {}
    for number, node in scene.cluster.brokers.items():
        broker = Broker(node.address, timeout_s=10)
        leaders = broker.led(monitor.topics)
        mine = {key: epoch for key, (leader, epoch) in leaders.items() if leader == number}
        if mine:
            ends.update(broker.offsets(mine, LATEST))
        broker.close()
    for key, end in ends.items():
        highest = monitor.high_watermark(*key)
        if highest > end:
            scene.report(f"the high watermark of {key[0]}-{key[1]} was {highest} and is {end}")
    return ends


def all_partitions(cluster):
    """{(topic, partition): state} of every topic."""
    topics = {value["topic_id"]: key.removeprefix("topics/") for key, (value, *_) in cluster.etcd.get("topics/").items()}
    found = {}
    for key, (chunk, *_) in cluster.etcd.get("partitions/").items():
        topic = topics.get(key.split("/")[1])
        found.update({(topic, int(number)): state for number, state in chunk.items() if topic})
    return found


def stop_brokers(scene):
    for node in scene.cluster.nodes().values():
        if node.is_running():
            scene.stop(node)


def compare_logs(scene, states, ends, sums):
    """Every replica holds the same bytes below the high watermark."""
    for (topic, partition), state in sorted(states.items()):
        if (topic, partition) not in ends:
            scene.report(f"nobody said where {topic}-{partition} ends")
            continue
        directories = {f"broker {n}": scene.broker(n).data / f"{topic}-{partition}" for n in state["replicas"]}
        wrong, size = disk_logs.difference(directories, ends[topic, partition], has_gaps=topic in INTERNAL_TOPICS)
        if wrong:
            scene.report(f"{topic}-{partition}: {wrong}")
        sums.compared_bytes += size * len(directories)
        sums.compared_partitions += 1


def find_zombie_writes(scene, states):
    """Nobody has written after it was fenced."""
    for (topic, partition), state in sorted(states.items()):
        try:
            wrong = list(disk_logs.zombie_writes(scene.broker(state["replicas"][0]).data / f"{topic}-{partition}"))
        except disk_logs.Unreadable:
            continue  # compare_logs has said so
        for offset, text in wrong[:EXAMPLES]:
            scene.report(f"a zombie's write in {topic}-{partition} at offset {offset}: {text}; {len(wrong)} there")


def compare_with_journal(scene, load, states, sums):
    """Every acknowledged record stands on disk at the offset that was acknowledged, and, with idempotence,
    once and in order. Unlike the load itself, this knows when a record was acknowledged, and so
    what was the matter then."""
    on_disk = {}
    wrong = []
    for (topic, partition), state in states.items():
        if topic == load.name:
            on_disk[partition] = sequences(scene.broker(state["replicas"][0]).data / f"{topic}-{partition}")
    acknowledged = {}
    for at, partition, (sequence, offset) in journal.lines(load.process.journal, "ack"):
        acknowledged[partition, int(sequence)] = at
        found = on_disk[partition].get(int(offset))
        if int(offset) >= 0 and found != int(sequence):
            what = "nothing" if found is None else f"record {found}"
            wrong.append((at, f"record {sequence} of {load.name}-{partition} was acknowledged at offset {offset}, where {what} stands"))
        sums.acknowledgements_on_disk += 1
    if load.is_in_order:
        for partition, records in on_disk.items():
            newest = -1
            for offset, sequence in records.items():
                if sequence <= newest:
                    at = acknowledged.get((partition, sequence))
                    wrong.append((at, f"record {sequence} of {load.name}-{partition} stands at offset {offset} behind {newest}"))
                newest = max(newest, sequence)
    for at, text in wrong[:EXAMPLES]:
        scene.report(text, at)
    if len(wrong) > EXAMPLES:
        scene.report(f"{len(wrong) - EXAMPLES} more of this kind for load {load.name}", wrong[EXAMPLES][0])


def sequences(directory):
    """{offset: sequence number} of a load's partition, in the order of the log."""
    found = {}
    try:
        for batch in disk_logs.batches(directory):
            if batch.is_control:
                continue
            for offset, value in batch.records():
                found[offset] = int(value.split(None, 3)[2])
    except disk_logs.Unreadable:
        pass  # compare_logs has said so
    return found


def find_panics(scene):
    for node in scene.cluster.nodes().values():
        for line in re.findall(r"^.*panicked at.*$", node.log.read_text(errors="replace"), re.MULTILINE)[:EXAMPLES]:
            scene.report(f"{node.name}: {line}")
