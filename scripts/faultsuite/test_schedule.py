"""What every schedule keeps to."""

import re

import pytest

from cluster import REPO
from faultsuite import schedule
from faultsuite.fault import FAULTS, Shape

SHAPE = Shape(brokers=3, partitions=6)


def drawn(seed, **options):
    return schedule.draw(seed, SHAPE, **{"minutes": 30, **options})


def test_one_seed_is_one_schedule():
    assert list(map(str, drawn(7))) == list(map(str, drawn(7))) != list(map(str, drawn(8)))


def test_a_longer_schedule_of_a_seed_begins_like_a_shorter_one():
    shorter = list(map(str, drawn(7, minutes=5)))
    assert list(map(str, drawn(7)))[: len(shorter)] == shorter


def test_every_fault_has_its_turn():
    assert {strike.fault.name for step in drawn(1) for strike in step.strikes} == set(FAULTS)


def test_faults_that_endanger_data_strike_alone():
    for seed in range(50):
        for step in drawn(seed):
            assert len(step.strikes) == 1 or not any(strike.fault.is_alone for strike in step.strikes)


def test_sometimes_two_faults_overlap():
    pairs = [step for step in drawn(3) if len(step.strikes) == 2]
    assert pairs
    for step in pairs:
        first, second = step.strikes
        assert first.after_s == 0 <= second.after_s <= first.hold_s


def test_only_the_faults_that_are_asked_for_are_drawn():
    only = ["kill-leader", "wipe"]
    assert {strike.fault.name for step in drawn(5, only=only) for strike in step.strikes} == set(only)


@pytest.mark.parametrize("minutes", [1, 10, 60])
def test_a_schedule_takes_about_the_minutes_asked_for(minutes):
    steps = drawn(2, minutes=minutes)
    reckoned_s = sum(step.length_s + schedule.RECOVERY_S for step in steps)
    assert minutes * 60 <= reckoned_s < minutes * 60 + 30


def test_the_short_schedule_has_one_fault_of_each_main_kind():
    names = [strike.fault.name for step in schedule.short(1, SHAPE) for strike in step.strikes]
    assert names == schedule.SHORT


def test_between_them_the_runs_of_scripts_test_have_the_old_and_the_new():
    """Both protocols of transactions and of groups, either request about a transaction that comes late, and brokers
    that differ about the time."""
    commands = re.findall(r"^ *passes scripts/faults --short(.*)$", (REPO / "scripts/test").read_text(), re.MULTILINE)
    runs = [dict(re.findall(r"--(\S+) (\S+)", command)) for command in commands]
    seeds = [int(run.get("seed", schedule.SHORT_SEED)) for run in runs]
    assert {int(run.get("transaction-version", schedule.transaction_version(seed))) == 2 for run, seed in zip(runs, seeds)} == {True, False}
    assert {run.get("group-protocol") for run in runs} == {"classic", "consumer"}
    assert {"clocks-apart" in run for run in runs} == {True, False}
    strikes = [strike for seed in seeds for step in schedule.short(seed, SHAPE) for strike in step.strikes]
    assert {strike.parameters["asked"] for strike in strikes if "asked" in strike.parameters} == {"EndTxn", "AddPartitionsToTxn"}


def test_seeds_draw_both_transaction_protocols():
    drawn = [schedule.transaction_version(seed) for seed in range(40)]
    assert set(drawn) == {0, 1, 2} and drawn == [schedule.transaction_version(seed) for seed in range(40)]


def test_seeds_draw_both_group_protocols():
    drawn = [schedule.group_protocol(seed) for seed in range(40)]
    assert set(drawn) == {"classic", "consumer"} and drawn == [schedule.group_protocol(seed) for seed in range(40)]
