"""One run: a cluster, its loads, the schedule, the checks, the verdict."""

import heapq
import tempfile
import time

from cluster import Cluster, Failed, example
from faultsuite import clocks, disk_faults, etcd_faults, final_checks, loads
from faultsuite.fault import NETEM, NETWORK, SMALL_DISK, NotNow
from faultsuite.kafka_calls import UNSAFE_DOWNGRADE, Broker, wire
from faultsuite.monitor import Monitor
from faultsuite.scene import Broken, Scene

HEARTBEAT_TIMEOUT_MS = 1000
SESSION_TIMEOUT_MS = 6000
LIVENESS = [f"broker.session.timeout.ms={SESSION_TIMEOUT_MS}", f"broker.heartbeat.timeout.ms={HEARTBEAT_TIMEOUT_MS}"]
BROKERS = [*LIVENESS, "replica.lag.time.max.ms=5000", "offsets.topic.num.partitions=6",
           "transaction.state.log.num.partitions=6", "group.initial.rebalance.delay.ms=0",
           # As the members of classic groups ask for.
           "group.consumer.min.session.timeout.ms=6000", "group.consumer.session.timeout.ms=6000",
           "group.consumer.min.heartbeat.interval.ms=1000", "group.consumer.heartbeat.interval.ms=1000"]
NEWEST_TRANSACTION_VERSION = 2
SMALL_DISK_BYTES = 256 << 20
# One replica of a record of the loads takes so much, with its share of batch and index.
RECORD_BYTES = 250


def run(binaries, given, schedule, network):
    """Runs a schedule; the exit status."""
    etcd_options = ["--quota-backend-bytes", str(etcd_faults.QUOTA_BYTES)]
    with Cluster(
        binaries, given.brokers, given.controllers, BROKERS, LIVENESS, etcd_options, places=network,
    ) as cluster:  # fmt: skip
        small_disk = None
        if network:
            small_disk = cluster.brokers[given.brokers]
            expected = sum(step.length_s + 30 for step in schedule) * given.rate * RECORD_BYTES
            disk_faults.mount_small_disk(small_disk.data, SMALL_DISK_BYTES + int(expected))
        clocks.set_apart(cluster.brokers.values(), given.clocks_apart)
        scene = Scene(cluster, network, given.partitions, small_disk, given.transaction_version)
        try:
            cluster.start()
            speak(cluster, given.transaction_version)
            # librdkafka does not speak the newest protocol.
            copier = example(binaries, "copies") if given.transaction_version == NEWEST_TRANSACTION_VERSION else None
            scene.loads = loads.start(cluster, given.partitions, given.rate, given.seed, given.group_protocol, copier)
            topics = [load.name for load in scene.loads]
            monitor = Monitor(cluster.brokers, topics, topics, scene.report)
            monitor.start()
            sums = _strike_and_check(scene, schedule, monitor)
        except Failed as failure:
            scene.report(str(failure))
            sums = None
        finally:
            for process in cluster.brokers.values():
                process.end()
            if small_disk:
                disk_faults.unmount_small_disk(small_disk.data, keep=bool(scene.findings))
        conclude(scene, given, schedule, sums)
        if scene.findings:
            raise Failed(f"{len(scene.findings)} things went wrong")
    return 0


def speak(cluster, version):
    """Sets the version of the transaction protocol."""
    if version != NEWEST_TRANSACTION_VERSION:
        broker = Broker(cluster.brokers[1].address, timeout_s=10)
        error = broker.set_feature("transaction.version", version, UNSAFE_DOWNGRADE)
        broker.close()
        if error != wire.NONE:
            raise Failed(f"transaction.version was not set to {version}: error {error}")


def _strike_and_check(scene, schedule, monitor):
    try:
        scene.settle()
        scene.say("every partition is written to, every replica in sync")
        for step in schedule:
            carry_out(scene, step, available(scene.network))
        scene.say("the schedule is through; the loads end and read everything again")
    except Broken:
        scene.say("the cluster did not recover; what follows checks what can be checked")
    return final_checks.run(scene, monitor)


def available(network):
    """What this machine offers to the faults."""
    return {NETWORK, SMALL_DISK, *([NETEM] if network.has_netem else [])} if network else set()


def carry_out(scene, step, offered):
    """Strikes with the faults of a step, heals each when its time is up, and waits until all is well."""
    missing = [strike for strike in step.strikes if strike.fault.needs - offered]
    for strike in missing:
        scene.say(f"{strike.fault.name} is left out: there is no {', '.join(sorted(strike.fault.needs - offered))}")
    if len(missing) == len(step.strikes):
        return
    scene.enter(step)
    scene.say(str(step))
    scene.reset_gaps()
    began = time.time()
    due = [(began + strike.after_s, order, strike, None) for order, strike in enumerate(step.strikes) if strike not in missing]
    heapq.heapify(due)
    while due:
        at, order, strike, inflicted = heapq.heappop(due)
        scene.pass_time(at)
        if inflicted is not None:
            next(inflicted, None)
            scene.say(f"  healed: {strike.fault.name}")
            continue
        inflicted = strike.fault.inflict(scene, **strike.parameters)
        try:
            scene.say(f"  {next(inflicted)}")
            heapq.heappush(due, (time.time() + strike.hold_s, order, strike, inflicted))
        except NotNow as reason:
            scene.say(f"  not now: {strike.fault.name}, as {reason}")
    scene.struck.clear()
    writable_s, in_sync_s = scene.settle()
    scene.say(
        f"  writable again {writable_s:.1f} s and in sync {in_sync_s:.1f} s after healing; "
        f"longest time without an acknowledgement in a partition {scene.longest_gap_s():.1f} s"
    )


def conclude(scene, given, schedule, sums):
    """Prints the verdict."""
    print()
    for load in scene.loads:
        report = (sums.reports if sums else {}).get(load.name) or {}
        print(f"load {load.name}: " + ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in report.items() if kind != "longest_gap_ms"))
        given_up = load.tail.look().given_up
        if given_up:
            print(f"load {load.name}: {given_up} records were given up, and may be there or not")
    if sums:
        total = sum(report.get("acknowledged", 0) for report in sums.reports.values())
        print(
            f"{total} records acknowledged under {len(scene.steps)} steps of {len(schedule)}; {sums.acknowledgements_on_disk} "
            f"acknowledgements found on disk; {sums.compared_bytes / 1e6:.1f} MB of {sums.compared_partitions} partitions compared"
        )
    if scene.findings:
        scene.findings.sort()
        at, text = scene.findings[0]
        print(f"first wrong after {at - scene.began:.1f} s, in {scene.active_at(at)}: {text.splitlines()[0]}")
    verdict = "FAILED" if scene.findings else "passed"
    print(f"verdict: {verdict}, {len(scene.findings)} findings; again with: {given.again}", flush=True)
