"""When the copying load strikes its own programs, and how.

Plain values in and out; copy_load.py does what this says. The next strike comes only after every partition was
written to again since the last: however slow the machine, the group gets to the end of each rebalance. A seed
draws the same strikes in the same order; the moments follow from how quickly the group recovers.
"""

import math
import random
from dataclasses import dataclass

PAUSE_S = (4, 10)
STOPPED_S = 8.0


@dataclass(frozen=True)
class Strike:
    """A program that is killed, or stopped for a while."""

    program: int
    stopped_s: float | None
    # Whether another takes its place while it is stopped, by the same transactional id.
    is_replaced: bool
    # How long after the last recovery.
    pause_s: float


class Pacing:
    """Asked again and again; all times are seconds of one clock."""

    def __init__(self, seed, programs, now):
        self.draw = random.Random(seed)
        self.programs = programs
        self._wait_for_recovery(now)

    def _wait_for_recovery(self, ended):
        """A strike ends at a moment: at once, or when its program may go on."""
        self.ended = ended
        self.strike_at = math.inf
        stopped_s, is_replaced = self.draw.choice([(None, False), (STOPPED_S, False), (STOPPED_S, True)])
        self.next = Strike(self.draw.randrange(self.programs), stopped_s, is_replaced, self.draw.uniform(*PAUSE_S))

    def due(self, now, silent_since):
        """The strike to carry out now, or None. `silent_since(moment)` tells which partitions have not been written
        to after a moment."""
        if self.strike_at == math.inf and not silent_since(self.ended):
            self.strike_at = now + self.next.pause_s
        if now < self.strike_at:
            return None
        strike = self.next
        self._wait_for_recovery(now + (strike.stopped_s or 0))
        return strike
