"""All threads or one: whatever takes less time, found by trying."""

from collections.abc import Callable

from agentrft.inference.embedded.pace import Pace


def paced(pace: Pace, steps: int, seconds: Callable[[int], float], tokens: int = 32) -> list[int]:
    """Return how many threads each of the steps took."""
    used: list[int] = []
    for _ in range(steps):
        used.append(pace.threads)
        pace.took(seconds(used[-1]), tokens)
    return used


def quiet(threads: int) -> float:
    return 0.06 if threads == 1 else 0.04


def crowded(threads: int) -> float:
    return 0.08 if threads == 1 else 0.2


def test_a_quiet_machine_is_used_whole_and_tried_ever_more_seldom() -> None:
    used = paced(Pace(2), 1000, quiet)
    assert used.count(1) < 25
    assert 1 in used[:12]
    assert used[600:].count(1) < used[:400].count(1)


def test_a_crowded_machine_is_left_to_one_thread_until_it_is_quiet_again() -> None:
    pace = Pace(4)
    assert set(paced(pace, 600, crowded)[20:]) == {1, 4}
    assert paced(pace, 600, crowded).count(4) < 20
    assert paced(pace, 600, quiet)[-100:].count(4) > 90


def test_a_little_difference_changes_nothing() -> None:
    assert paced(Pace(2), 1000, lambda threads: 0.95 if threads == 1 else 1.0).count(1) < 25


def test_steps_of_other_sizes_are_never_compared() -> None:
    pace = Pace(2)
    for number in range(400):
        # A single thread looks quick on the small steps it happens to be tried on.
        tokens = 2 if number % 2 else 256
        pace.took(tokens / 1000, tokens)
    assert pace.threads == 2 or paced(pace, 1, quiet) == [1]
    assert paced(pace, 400, quiet)[-100:].count(2) > 90


def test_a_single_thread_stays_one() -> None:
    assert set(paced(Pace(1), 300, crowded)) == {1}
