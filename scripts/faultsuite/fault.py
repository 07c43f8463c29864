"""What a fault is, and the list of them.

A fault is a generator function: what stands before its `yield` inflicts it, what stands after
heals it, and what it yields says what was done to whom. Its parameters are drawn when the
schedule is made, so that they depend on the seed alone; who leads or controls is looked up
when it strikes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

# What a fault may need of the machine.
NETWORK, NETEM, SMALL_DISK = "a network of namespaces", "netem", "a small disk"


class NotNow(Exception):
    """The fault cannot be inflicted as things are; the message says why."""


@dataclass(frozen=True)
class Shape:
    """What the parameters of a schedule are drawn for."""

    brokers: int
    partitions: int


# A parameter is how it is drawn: a function of a random.Random and a shape.


def seconds(low, high):
    return lambda rng, shape: round(rng.uniform(low, high), 1)


def one_of(*choices):
    return lambda rng, shape: rng.choice(choices)


def a_partition(rng, shape):
    return rng.randrange(shape.partitions)


def a_broker(rng, shape):
    return rng.randint(1, shape.brokers)


def two_brokers(rng, shape):
    return tuple(rng.sample(range(1, shape.brokers + 1), 2))


@dataclass(frozen=True)
class Fault:
    name: str
    does: str
    inflict: Callable
    hold_s: Callable
    parameters: dict = field(default_factory=dict)
    needs: frozenset = frozenset()
    # Strikes only when every replica is in sync and nothing else is wrong.
    is_alone: bool = False


FAULTS = {}


def fault(name, hold_s, does=None, needs=(), is_alone=False, **parameters):
    """Puts a generator function into the list of faults; its docstring says what it does."""

    def put(function):
        said = " ".join((does or function.__doc__).split())
        FAULTS[name] = Fault(name, said, function, hold_s, parameters, frozenset(needs), is_alone)
        return function

    return put
