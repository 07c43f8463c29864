"""Draws a schedule of faults: one seed, one schedule, whatever the machine can do."""

import random
from dataclasses import dataclass

# These fill FAULTS.
from faultsuite import disk_faults, etcd_faults, network_faults, process_faults, transaction_faults  # noqa: F401
from faultsuite.fault import FAULTS, Fault, Shape

# How long the cluster is reckoned to take until all is well again.
RECOVERY_S = 3.0
SHARE_OF_PAIRS = 0.25

# The seed of a short run that is given none.
SHORT_SEED = 1
SHORT = ["kill-leader", "kill-controller", "freeze-leader", "etcd-restart", "isolate-leader", "fast-restart",
         "kill-transaction-coordinator", "late-transaction-requests", "rolling-restart"]


@dataclass(frozen=True)
class Strike:
    """One fault, struck `after_s` into its step and healed `hold_s` later."""

    fault: Fault
    parameters: dict
    after_s: float
    hold_s: float

    def __str__(self):
        words = [f"{name}={value}" for name, value in self.parameters.items()]
        after = [f"after {self.after_s:.1f} s"] if self.after_s else []
        hold = [f"for {self.hold_s:.1f} s"] if self.hold_s else []
        return " ".join([self.fault.name, *words, *after, *hold])


@dataclass(frozen=True)
class Step:
    """Faults that strike together; before the next step everything is well again."""

    number: int
    strikes: tuple

    @property
    def length_s(self):
        return max(strike.after_s + strike.hold_s for strike in self.strikes)

    def __str__(self):
        return f"step {self.number}: {' + '.join(map(str, self.strikes))}"


def draw(seed, shape: Shape, minutes=None, only=None):
    """A schedule that takes about so many minutes; the faults come in random order, each as often as any other."""
    rng = random.Random(seed)
    choice = [FAULTS[name] for name in only or FAULTS]
    deck, steps, reckoned_s = [], [], 0.0
    while reckoned_s < minutes * 60:
        first = _next(rng, deck, choice)
        strikes = [_strike(rng, first, shape, 0.0)]
        companions = [fault for fault in choice if not fault.is_alone and fault is not first]
        if rng.random() < SHARE_OF_PAIRS and not first.is_alone and companions:
            after_s = round(rng.uniform(0, strikes[0].hold_s), 1)
            strikes.append(_strike(rng, rng.choice(companions), shape, after_s))
        steps.append(Step(len(steps) + 1, tuple(strikes)))
        reckoned_s += steps[-1].length_s + RECOVERY_S
    return steps


def transaction_version(seed):
    """The transaction protocol of a run: as often the old one (0 and 1 differ in what is logged alone) as the new
    one. Drawn apart, so that a seed keeps its schedule."""
    return random.Random(f"transaction.version {seed}").choice([0, 1, 2, 2])


def group_protocol(seed):
    """The protocol of the group that copies. Drawn apart, likewise."""
    return random.Random(f"group.protocol {seed}").choice(["classic", "consumer"])


def short(seed, shape: Shape):
    """What scripts/test runs with two seeds: a few faults, one after another."""
    rng = random.Random(seed)
    return [Step(n, (_strike(rng, FAULTS[name], shape, 0.0),)) for n, name in enumerate(SHORT, 1)]


def _next(rng, deck, choice):
    if not deck:
        deck.extend(choice)
        rng.shuffle(deck)
    return deck.pop()


def _strike(rng, fault, shape, after_s):
    parameters = {name: draw(rng, shape) for name, draw in fault.parameters.items()}
    return Strike(fault, parameters, after_s, fault.hold_s(rng, shape))
