"""When the copying load strikes its own programs."""

from faultsuite.pacing import PAUSE_S, STOPPED_S, Pacing

PROGRAMS = 2
EVERY_S = 0.5


def strikes(silent_since, until_s=300, seed=1):
    """[(moment, strike)] of a load that asks every half second."""
    pacing, found = Pacing(seed, PROGRAMS, 0.0), []
    for tick in range(int(until_s / EVERY_S)):
        now = tick * EVERY_S
        strike = pacing.due(now, lambda moment, now=now: silent_since(moment, now))
        if strike:
            found.append((now, strike))
    return found


def recovers_within(seconds):
    return lambda moment, now: [] if now > moment + seconds else [3]


def test_nothing_is_struck_before_every_partition_was_written_to():
    assert strikes(lambda moment, now: [5]) == []


def test_a_group_that_does_not_recover_is_struck_once():
    assert len(strikes(lambda moment, now: [5] if moment > 0 else [])) == 1


def test_the_next_strike_waits_for_the_recovery_from_the_last():
    found = strikes(recovers_within(40))
    assert len(found) >= 4
    for (at, strike), (then, following) in zip(found, found[1:]):
        ended = at + (strike.stopped_s or 0)
        assert 40 < then - ended - following.pause_s <= 40 + 2 * EVERY_S


def test_a_seed_draws_the_same_strikes_however_slow_the_group_is():
    quick, slow = ([strike for _, strike in strikes(recovers_within(s))] for s in (1, 30))
    assert slow == quick[:len(slow)] and len(slow) < len(quick)
    assert quick != [strike for _, strike in strikes(recovers_within(1), seed=2)]


def test_every_program_is_killed_and_stopped_and_replaced():
    found = [strike for _, strike in strikes(recovers_within(1), until_s=1000)]
    assert {(strike.program, strike.stopped_s, strike.is_replaced) for strike in found} == {
        (program, *how) for program in range(PROGRAMS) for how in [(None, False), (STOPPED_S, False), (STOPPED_S, True)]
    }  # fmt: skip
    assert all(PAUSE_S[0] <= strike.pause_s <= PAUSE_S[1] for strike in found)
