"""When a value has gone back."""

import pytest

from faultsuite.kafka_calls import group_partition
from faultsuite.monitor import Growing

KEY = ("orders", 0)


def seen(*samples, across_epochs=True):
    """What is wrong with the last of some (epoch, value); nothing was with those before."""
    growing = Growing("the high watermark", across_epochs)
    *before, last = [growing.see(KEY, epoch, value) for epoch, value in samples]
    assert before == [None] * len(before)
    return last


@pytest.mark.parametrize("samples", [
    [(0, 5), (0, 5), (0, 6)],
    [(0, 5), (1, 5), (1, 9)],
    # A leader that was replaced may be late to know, but not wrong about what was committed.
    [(0, 5), (1, 7), (0, 6)],
])  # fmt: skip
def test_growing_values_are_well(samples):
    assert seen(*samples) is None


@pytest.mark.parametrize("samples, told", [
    ([(0, 5), (0, 4)], "went back from 5 to 4 in leader epoch 0"),
    ([(0, 5), (1, 4)], "was 4 in leader epoch 1 and 5 in 0"),
    ([(0, 5), (1, 7), (0, 8)], "was 8 in leader epoch 0 and 7 in 1"),
])  # fmt: skip
def test_values_that_go_back_are_told(samples, told):
    assert told in seen(*samples) and "orders-0" in seen(*samples)


def test_another_epoch_may_be_lower_where_that_is_allowed():
    assert seen((0, 5), (1, 4), across_epochs=False) is None


def test_the_partition_of_a_group_is_that_of_kafka():
    # "test".hashCode() is 3556498, "my-group".hashCode() is -1906497762.
    assert group_partition("test", 50) == 3556498 % 50
    assert group_partition("my-group", 50) == 1906497762 % 50
