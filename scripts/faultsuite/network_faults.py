"""Faults of the network: cuts between named parties, in both directions or one, and slow links."""

from faultsuite.fault import NETEM, NETWORK, NotNow, a_broker, a_partition, fault, one_of, seconds, two_brokers
from faultsuite.network import CLIENTS, REFUSED, SILENT

HOLD = seconds(1, 9)
HOW = one_of(SILENT, REFUSED)
ETCD = "etcd"


def both_ways(one, others):
    return [way for other in others for way in [(one, other), (other, one)]]


def cut_and_mend(scene, ways, how, what):
    scene.cut(ways, how)
    yield f"{what} ({how})"
    scene.mend(ways)


@fault("cut-brokers", HOLD, needs=[NETWORK], pair=two_brokers, how=HOW)
def cut_brokers(scene, pair, how):
    """Two brokers cannot reach each other."""
    one, other = (scene.broker(number).name for number in pair)
    yield from cut_and_mend(scene, both_ways(one, [other]), how, f"cut {one} and {other} off each other")


@fault("cut-brokers-one-way", HOLD, needs=[NETWORK], pair=two_brokers, how=HOW)
def cut_brokers_one_way(scene, pair, how):
    """Nothing from one broker arrives at another, while the other direction works."""
    one, other = (scene.broker(number).name for number in pair)
    yield from cut_and_mend(scene, [(one, other)], how, f"cut the way from {one} to {other}")


@fault("cut-controller", HOLD, needs=[NETWORK], broker=a_broker, how=HOW)
def cut_controller(scene, broker, how):
    """The controller and a broker cannot reach each other."""
    controller, node = scene.controller(), scene.broker(broker)
    if controller is node:
        raise NotNow(f"{node.name} is the controller itself")
    what = f"cut {node.name} off the controller, {controller.name}"
    yield from cut_and_mend(scene, both_ways(node.name, [controller.name]), how, what)


@fault("cut-etcd-leader", HOLD, needs=[NETWORK], partition=a_partition, how=HOW)
def cut_etcd_leader(scene, partition, how):
    """The leader of a partition and etcd cannot reach each other."""
    node = scene.leader(partition)
    yield from cut_and_mend(scene, both_ways(node.name, [ETCD]), how, f"cut {node.name} off etcd")


@fault("cut-etcd-controller", HOLD, needs=[NETWORK], how=HOW)
def cut_etcd_controller(scene, how):
    """The controller and etcd cannot reach each other."""
    node = scene.controller()
    yield from cut_and_mend(scene, both_ways(node.name, [ETCD]), how, f"cut the controller, {node.name}, off etcd")


@fault("cut-etcd-answers", HOLD, needs=[NETWORK])
def cut_etcd_answers(scene):
    """What the controller asks of etcd arrives, and etcd's answers do not: nobody knows what was committed."""
    node = scene.controller()
    yield from cut_and_mend(scene, [(ETCD, node.name)], SILENT, f"cut the way from etcd to the controller, {node.name}")


@fault("isolate-leader", HOLD, needs=[NETWORK], partition=a_partition, how=HOW)
def isolate_leader(scene, partition, how):
    """The leader of a partition can reach nobody, and nobody it."""
    yield from isolate(scene, scene.leader(partition), how)


@fault("isolate-controller", HOLD, needs=[NETWORK], how=HOW)
def isolate_controller(scene, how):
    """Whoever holds the seal can reach nobody, and nobody it."""
    yield from isolate(scene, scene.controller(), how)


def isolate(scene, node, how):
    others = [party for party in scene.network.hosts if party != node.name]
    yield from cut_and_mend(scene, both_ways(node.name, others), how, f"cut {node.name} off everybody")


@fault("cut-clients", HOLD, needs=[NETWORK], partition=a_partition, how=HOW)
def cut_clients(scene, partition, how):
    """The leader of a partition and the clients cannot reach each other, while the cluster is whole."""
    node = scene.leader(partition)
    yield from cut_and_mend(scene, both_ways(node.name, [CLIENTS]), how, f"cut {node.name} off the clients")


def slow(scene, node, discipline):
    scene.network.slow_down(node.name, discipline)
    yield f"slowed {node.name} down ({discipline})"
    scene.network.speed_up(node.name)


@fault("slow-link", HOLD, needs=[NETWORK], broker=a_broker, rate=one_of("500kbit", "2mbit"))
def slow_link(scene, broker, rate):
    """A broker's link sends little, holds back what is more, and drops the rest (tc tbf)."""
    yield from slow(scene, scene.take_link(broker), f"tbf rate {rate} burst 32kb latency 100ms")


@fault("delay", HOLD, needs=[NETWORK, NETEM], broker=a_broker, delay=one_of("20ms", "100ms 80ms", "400ms 300ms"))
def delay_link(scene, broker, delay):
    """A broker's packets arrive late, and not in the order in which they were sent (tc netem)."""
    yield from slow(scene, scene.take_link(broker), f"netem delay {delay}")


@fault("loss", HOLD, needs=[NETWORK, NETEM], broker=a_broker, share=one_of("1%", "10%", "30%"))
def lossy_link(scene, broker, share):
    """Some of a broker's packets are lost (tc netem)."""
    yield from slow(scene, scene.take_link(broker), f"netem loss {share}")
