"""Requests about transactions that come late, and a coordinator that dies."""

import json
import struct

from cluster import Failed
from faultsuite.fault import NotNow, fault, one_of, seconds
from faultsuite.kafka_calls import Broker, wire

LOAD, COPY = "transactional", "copy"
ADD_PARTITIONS_TO_TXN, END_TXN = 24, 26


def coordinators(scene):
    """{transactional id: the broker that coordinates it} of the loads in transactions."""
    try:
        listed = json.loads(scene.cluster.yuxi("--output", "json", "tx", "list"))
    except (Failed, ValueError) as failure:
        raise NotNow(f"nobody lists transactions: {failure}") from None
    found = {entry["transactional_id"]: entry["coordinator"] for entry in listed if of_a_load(entry["transactional_id"])}
    if not found:
        raise NotNow("there is no transaction yet")
    return found


def of_a_load(transactional_id):
    return LOAD in transactional_id or transactional_id.startswith(COPY)


@fault("kill-transaction-coordinator", seconds(0.5, 8))
def kill_coordinator(scene):
    """`kill -9` of a broker that coordinates a transaction."""
    node = scene.take_broker(min(coordinators(scene).values()))
    node.kill()
    yield f"killed {node.name} with -9, which coordinates a transaction"
    node.start()


@fault("late-transaction-requests", seconds(1, 6), asked=one_of("EndTxn", "AddPartitionsToTxn"))
def late_requests(scene, asked):
    """Requests that a producer made in an earlier transaction reach the coordinator when that is long over,
    and are to have no effect: an EndTxn that commits, or an AddPartitionsToTxn."""
    producers = {}
    for transactional_id in coordinators(scene):
        told = json.loads(scene.cluster.yuxi("--output", "json", "tx", "describe", transactional_id))
        epoch = told["producer_epoch"] - (0 if has_an_epoch_each(scene, transactional_id) else 1)
        if epoch >= 0:
            producers[transactional_id] = told["producer_id"], epoch
    if not producers:
        raise NotNow("no producer of the old protocol was replaced yet")
    yield f"holds back {asked} of {len(producers)} transactions"
    for transactional_id, (producer_id, epoch) in producers.items():
        head = wire.string(transactional_id) + struct.pack(">qh", producer_id, epoch)
        try:
            broker = Broker(scene.broker(coordinators(scene)[transactional_id]).address, timeout_s=5)
        except (OSError, NotNow, KeyError):
            continue
        try:
            error = _ask(broker, asked, head)
        except OSError:
            continue
        finally:
            broker.close()
        if error == wire.NONE:
            scene.report(f"a late {asked} of {transactional_id}, epoch {epoch}, was heeded")


def has_an_epoch_each(scene, transactional_id):
    """Whether each transaction of a producer has an epoch of its own. By the old protocol, which librdkafka speaks in
    any case, a late request cannot be told from a timely one as long as the producer lives: only those of an
    earlier life are sure to be refused."""
    return scene.transaction_version >= 2 and not transactional_id.startswith(COPY)


def _ask(broker, asked, head):
    """The error code of the answer."""
    if asked == "EndTxn":
        answer = broker.ask(END_TXN, 1, head + b"\1")
        answer.int32()
        return answer.int16()
    topics = wire.array([wire.string(LOAD) + wire.array([struct.pack(">i", 0)])])
    answer = broker.ask(ADD_PARTITIONS_TO_TXN, 1, head + topics)
    answer.int32(), answer.int32(), answer.string(), answer.int32(), answer.int32()
    return answer.int16()
