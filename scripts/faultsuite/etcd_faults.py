"""Faults of etcd: killed, stalled, compacted, out of space."""

from cluster import Failed, until
from faultsuite.fault import NETWORK, NotNow, a_broker, fault, seconds

QUOTA_BYTES = 32 << 20
FILLER = "/filler/"
FILLER_BYTES = 1 << 20


def kill_etcd(scene):
    etcd = scene.take_etcd()
    etcd.kill()
    yield "killed etcd with -9"
    etcd.start()


fault("etcd-restart", seconds(0, 2), "kill -9 of etcd, which is back before a session ends.")(kill_etcd)
fault("etcd-outage", seconds(8, 12), "kill -9 of etcd, which is back only after every session's time is over.")(kill_etcd)


def stall_etcd(scene):
    etcd = scene.take_etcd()
    etcd.freeze()
    yield "froze etcd"
    etcd.thaw()


fault("etcd-stall", seconds(1, 4), "SIGSTOP of etcd for less than a session.")(stall_etcd)
fault("etcd-stall-long", seconds(8, 12), "SIGSTOP of etcd for longer than a session.")(stall_etcd)


@fault("etcd-compaction", seconds(4, 9), needs=[NETWORK], broker=a_broker)
def compact_etcd(scene, broker):
    """A broker is cut off from etcd; meanwhile etcd's history is compacted and defragmented, so that the
    broker's watch cannot go on where it was."""
    etcd, node = scene.take_etcd(), scene.broker(broker)
    scene.cut([(node.name, etcd.name), (etcd.name, node.name)])
    yield f"cut {node.name} off etcd, to compact etcd before it is back"
    for number in range(3):
        etcd.ctl("put", f"{FILLER}{number}", "history to be compacted away")
    compact(etcd)
    scene.mend([(node.name, etcd.name), (etcd.name, node.name)])


@fault("etcd-quota", seconds(2, 6))
def fill_etcd(scene):
    """etcd's space is used up under another prefix until it raises its alarm and refuses every write; healed
    by deleting, compacting, defragmenting and disarming."""
    etcd = scene.take_etcd()
    value = b"x" * FILLER_BYTES
    try:
        for number in range(2 * QUOTA_BYTES // FILLER_BYTES):
            etcd.ctl("put", f"{FILLER}{number}", given=value)
        raise NotNow("etcd took more than its quota without an alarm")
    except Failed as refusal:
        if "space exceeded" not in str(refusal):
            raise NotNow(str(refusal)) from None
    yield "filled etcd up to its quota"
    etcd.ctl("del", "--prefix", FILLER)
    compact(etcd)
    etcd.ctl("alarm", "disarm")
    until(lambda: not etcd.ctl("alarm", "list").strip(), "etcd's alarm is off")


def compact(etcd):
    """Throws away etcd's history and gives the space back."""
    revision = etcd.revision()
    etcd.ctl("compact", "--physical=true", str(revision))
    etcd.ctl("defrag")
