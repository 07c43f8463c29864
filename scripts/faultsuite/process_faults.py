"""Faults of brokers and controllers: killed, restarted, frozen."""

from faultsuite.fault import a_broker, a_partition, fault, seconds

DOWN = seconds(0.5, 8)
INSTANT = seconds(0, 0)


def kill_and_restart(*nodes):
    for node in nodes:
        node.kill()
    yield f"killed {' and '.join(node.name for node in nodes)} with -9"
    for node in nodes:
        node.start(wait=False)


@fault("kill-leader", DOWN, partition=a_partition)
def kill_leader(scene, partition):
    """kill -9 of the leader of a partition; started again after a while."""
    yield from kill_and_restart(scene.take_leader(partition))


@fault("kill-follower", DOWN, partition=a_partition)
def kill_follower(scene, partition):
    """kill -9 of a follower of a partition; started again after a while."""
    yield from kill_and_restart(scene.take_follower(partition))


@fault("kill-controller", DOWN)
def kill_controller(scene):
    """kill -9 of whoever holds the seal; started again after a while."""
    yield from kill_and_restart(scene.take_controller())


@fault("kill-leader-and-controller", DOWN, partition=a_partition)
def kill_leader_and_controller(scene, partition):
    """kill -9 of the controller and of the leader of a partition at once (one process, if it is both)."""
    yield from kill_and_restart(*take_leader_and_controller(scene, partition))


def take_leader_and_controller(scene, partition):
    controller = scene.take_controller()
    is_both = scene.leader(partition) is controller
    return [controller] if is_both else [controller, scene.take_leader(partition)]


@fault("kill-all", seconds(0.5, 4))
def kill_all(scene):
    """kill -9 of every broker at once; all are started again."""
    yield from kill_and_restart(*scene.take_all_brokers())


@fault("fast-restart", INSTANT, broker=a_broker)
def fast_restart(scene, broker):
    """kill -9 of a broker that is started again at once, while its old lease still runs."""
    node = scene.take_broker(broker)
    node.kill()
    node.start(wait=False)
    yield f"killed {node.name} with -9 and started it at once"


@fault("rolling-restart", INSTANT, is_alone=True)
def rolling_restart(scene):
    """SIGTERM to one broker after another: each must end with status 0, and the next one goes when every
    replica is in sync again."""
    for node in scene.take_all_brokers():
        scene.stop(node)
        node.start(wait=False)
        scene.settle()
    yield "stopped and started every broker, one after another"


def freeze_and_thaw(*nodes):
    for node in nodes:
        node.freeze()
    yield f"froze {' and '.join(node.name for node in nodes)}"
    for node in nodes:
        node.thaw()


@fault("freeze-leader-and-controller", seconds(1.5, 11), partition=a_partition)
def freeze_leader_and_controller(scene, partition):
    """SIGSTOP of the controller and of the leader of a partition at once, perhaps for longer than their sessions."""
    yield from freeze_and_thaw(*take_leader_and_controller(scene, partition))


@fault("freeze-all", seconds(1.5, 11))
def freeze_all(scene):
    """SIGSTOP of every broker at once, perhaps for longer than their sessions."""
    yield from freeze_and_thaw(*scene.take_all_brokers())


def freeze_leader(scene, partition):
    yield from freeze_and_thaw(scene.take_leader(partition))


def freeze_follower(scene, partition):
    yield from freeze_and_thaw(scene.take_follower(partition))


def freeze_controller(scene):
    yield from freeze_and_thaw(scene.take_controller())


for suffix, hold_s, how_long in [
    ("-briefly", seconds(0.2, 0.6), "for less than the heartbeat timeout"),
    ("", seconds(1.5, 3.5), "for longer than the heartbeat timeout"),
    ("-long", seconds(8, 11), "for longer than its session"),
]:
    of = {"partition": a_partition}
    fault(f"freeze-leader{suffix}", hold_s, f"SIGSTOP of the leader of a partition {how_long}.", **of)(freeze_leader)
    fault(f"freeze-follower{suffix}", hold_s, f"SIGSTOP of a follower of a partition {how_long}.", **of)(freeze_follower)
    fault(f"freeze-controller{suffix}", hold_s, f"SIGSTOP of whoever holds the seal {how_long}.")(freeze_controller)
