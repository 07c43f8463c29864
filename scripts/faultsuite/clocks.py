"""Brokers whose clocks differ: libfaketime shifts the time of day of each, not the clock that
measures how long something takes."""

import glob

from cluster import Failed


def set_apart(nodes, minutes):
    """The first node's clock is right, the others' are ahead and behind by turns, each two
    neighbours by so many minutes more."""
    if not minutes:
        return
    libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not libraries:
        raise Failed("libfaketime is not there: apt-get install faketime")
    for place, node in enumerate(nodes):
        shift = (place + 1) // 2 * minutes * (1 if place % 2 else -1)
        node.environment.update(LD_PRELOAD=libraries[0], FAKETIME=f"{shift:+d}m", FAKETIME_DONT_FAKE_MONOTONIC="1")
