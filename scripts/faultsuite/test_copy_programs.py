"""Striking the programs that copy, on programs that do nothing."""

import subprocess

import pytest

from cluster import until
from faultsuite.copy_programs import Programs
from faultsuite.pacing import Strike

KILLED, STOPPED, REPLACED = Strike(0, None, False, 0), Strike(0, 8.0, False, 0), Strike(0, 8.0, True, 0)


@pytest.fixture
def started():
    """[(number, life, process)] of all that were ever started."""
    return []


@pytest.fixture
def programs(started):
    def start(number, life):
        process = subprocess.Popen(["sleep", "600"])
        started.append((number, life, process))
        return process

    programs = Programs(2, start)
    yield programs
    programs.end()
    assert all(process.poll() is not None for _, _, process in started)


def state_of(process):
    """As in ps: T is stopped."""
    return subprocess.run(["ps", "-o", "stat=", "-p", str(process.pid)], capture_output=True, text=True).stdout[0]


def wait_for_state(process, state):
    until(lambda: state_of(process) == state, f"it is in state {state}", 5)


def test_who_is_killed_is_started_again_in_another_life(programs, started):
    programs.strike(KILLED, 0.0)
    started[0][2].wait()
    programs.look_after(0.5)
    assert [(number, life) for number, life, _ in started] == [(0, 0), (1, 1), (0, 2)]


def test_who_is_stopped_goes_on_in_time(programs, started):
    programs.strike(STOPPED, 0.0)
    programs.look_after(7.5)
    wait_for_state(started[0][2], "T")
    programs.look_after(8.0)
    wait_for_state(started[0][2], "S")
    assert len(started) == 2


def test_who_is_replaced_has_a_successor_at_once_and_goes_on_as_a_zombie(programs, started):
    programs.strike(REPLACED, 0.0)
    zombie = started[0][2]
    assert [(number, life) for number, life, _ in started] == [(0, 0), (1, 1), (0, 2)]
    wait_for_state(zombie, "T")
    programs.look_after(8.0)
    wait_for_state(zombie, "S")
    # Fenced it ends, and there is nobody to be started.
    zombie.kill()
    zombie.wait()
    programs.look_after(8.5)
    assert len(started) == 3 and len(programs.replaced) == 1
