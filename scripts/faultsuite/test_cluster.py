"""Who is to be struck, on a cluster that is made up here."""

import pytest

from cluster import Cluster


class MadeUp(Cluster):
    """One partition for each list of replicas. An election gives it to the first of them."""

    def __init__(self, *replicas):
        self.states = {number: {"replicas": ids, "leader": ids[0]} for number, ids in enumerate(replicas)}

    def partitions(self, topic):
        return self.states

    def yuxi(self, *arguments):
        match arguments:
            case ("topic", "reassign", "t", "-p", number, "--to", ids):
                self.states[number]["replicas"] = [int(broker) for broker in ids.split(",")]
            case ("topic", "elect", "t"):
                for state in self.states.values():
                    state["leader"] = state["replicas"][0]


@pytest.mark.parametrize("replicas, brokers", [
    ([[1, 2, 3]], [2, 3]),
    ([[1, 2, 3]], [3]),
    ([[4, 5, 1], [5, 1, 2], [1, 2, 4]], [2, 3]),
])  # fmt: skip
def test_with_few_partitions_too_there_is_one_led_by_who_is_to_be_struck(replicas, brokers):
    cluster = MadeUp(*replicas)
    states = cluster.until_led_by("t", brokers)
    assert any(state["leader"] in brokers for state in states.values())
    assert [sorted(state["replicas"]) for state in states.values()] == [sorted(ids) for ids in replicas]


def test_who_leads_already_is_not_given_more():
    cluster = MadeUp([1, 2, 3], [2, 3, 1])
    assert cluster.until_led_by("t", [2])[0]["replicas"] == [1, 2, 3]
