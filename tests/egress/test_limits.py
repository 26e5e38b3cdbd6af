from contextlib import suppress

import pytest

from agentrft.egress.errors import EndpointError, NotSentError
from agentrft.egress.limits import Breaker, Pace


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def call(breaker: Breaker, *, fails: bool) -> None:
    with suppress(ConnectionError), breaker.watch("tool 'x'"):
        if fails:
            raise ConnectionError


def is_open(breaker: Breaker) -> bool:
    try:
        call(breaker, fails=False)
    except NotSentError:
        return True
    return False


def test_calls_are_spread_evenly_and_idle_time_is_not_saved_up() -> None:
    clock = Clock()
    pace = Pace(50.0, clock)
    assert [round(pace.reserve(), 3) for _ in range(4)] == [0.0, 0.02, 0.04, 0.06]
    clock.now_s = 100.0
    assert [round(pace.reserve(), 3) for _ in range(2)] == [0.0, 0.02]


def test_half_of_twenty_calls_in_the_window_open_the_circuit() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(10):
        call(breaker, fails=False)
    for _ in range(9):
        call(breaker, fails=True)
    assert not is_open(breaker)  # 9 of 20
    call(breaker, fails=True)
    call(breaker, fails=True)
    clock.now_s = 12.0
    with pytest.raises(NotSentError, match="tool 'x' is left alone for 18 s"):
        call(breaker, fails=False)


def test_failures_that_are_long_ago_do_not_count() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(19):
        call(breaker, fails=True)
    clock.now_s = 31.0
    call(breaker, fails=True)
    assert not is_open(breaker)


def an_open_breaker(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(20):
        call(breaker, fails=True)
    return breaker


def test_three_good_probes_close_it() -> None:
    clock = Clock()
    breaker = an_open_breaker(clock)
    clock.now_s = 30.0
    for _ in range(3):
        call(breaker, fails=False)
    for _ in range(19):
        call(breaker, fails=True)  # a closed one that counts from the start
    assert not is_open(breaker)


def test_only_three_probes_go_at_a_time() -> None:
    clock = Clock()
    breaker = an_open_breaker(clock)
    clock.now_s = 30.0
    with breaker.watch("x"), breaker.watch("x"), breaker.watch("x"):
        assert is_open(breaker)
    assert not is_open(breaker)


def test_each_bad_probe_doubles_the_pause_up_to_five_minutes() -> None:
    clock = Clock()
    breaker = an_open_breaker(clock)
    for pause_s in (30.0, 60.0, 120.0, 240.0, 300.0, 300.0):
        clock.now_s += pause_s - 0.1
        assert is_open(breaker)
        clock.now_s += 0.1
        call(breaker, fails=True)
        assert is_open(breaker)


def test_who_was_admitted_before_it_opened_has_no_say_in_the_probing() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    with suppress(ConnectionError), breaker.watch("x"):
        for _ in range(20):
            call(breaker, fails=True)
        clock.now_s = 30.0
        call(breaker, fails=False)
        raise ConnectionError
    for _ in range(2):
        call(breaker, fails=False)
    assert not is_open(breaker)


def test_an_answer_that_nobody_can_use_is_an_answer() -> None:
    breaker = Breaker(Clock())
    for _ in range(30):
        with pytest.raises(EndpointError, match="no output"), breaker.watch("x"):
            raise EndpointError("no output")
    assert not is_open(breaker)
