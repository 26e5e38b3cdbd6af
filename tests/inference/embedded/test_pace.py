"""Whatever way takes less time is found by trying, and tried seldom where it is not."""

from collections import Counter
from collections.abc import Callable

from agentrft.inference.embedded.pace import Pace, Way

TOGETHER, APART, ALONE = Way(1, 4), Way(4, 1), Way(1, 1)


def paced(
    pace: Pace, steps: int, seconds: Callable[[Way], float], tokens: int = 32
) -> Counter[Way]:
    """Return how many of the steps went which way."""
    gone: Counter[Way] = Counter()
    for _ in range(steps):
        gone[pace.way] += 1
        pace.took(seconds(pace.way), tokens)
    return gone


def quiet(way: Way) -> float:
    return {TOGETHER: 0.04, APART: 0.05, ALONE: 0.08}[way]


def many_sequences(way: Way) -> float:
    return {TOGETHER: 0.09, APART: 0.06, ALONE: 0.15}[way]


def crowded(way: Way) -> float:
    return {TOGETHER: 0.2, APART: 0.15, ALONE: 0.1}[way]


def test_the_best_way_is_taken_and_the_others_are_tried_ever_more_seldom() -> None:
    pace = Pace(4)
    early, late = paced(pace, 500, quiet), paced(pace, 500, quiet)
    assert early[TOGETHER] > 470
    assert late[TOGETHER] > 490
    assert early[APART] > 0 < early[ALONE]


def test_the_way_changes_with_the_load_and_back() -> None:
    pace = Pace(4)
    for load, best in (
        (many_sequences, APART),
        (crowded, ALONE),
        (quiet, TOGETHER),
        (crowded, ALONE),
    ):
        paced(pace, 600, load)
        assert paced(pace, 100, load)[best] > 90


def test_a_little_difference_changes_nothing() -> None:
    gone = paced(Pace(4), 1000, lambda way: 1.0 if way == TOGETHER else 0.95)
    assert gone[TOGETHER] > 960


def test_steps_of_other_sizes_are_never_compared() -> None:
    pace = Pace(4)
    for number in range(400):
        # Every other step is small, and so another way looks quick when it happens to meet those.
        tokens = 2 if number % 2 else 256
        pace.took(tokens / 1000, tokens)
    assert paced(pace, 3, quiet)[TOGETHER] >= 1
    paced(pace, 300, quiet)
    assert paced(pace, 100, quiet)[TOGETHER] > 90


def test_a_single_thread_has_no_choice() -> None:
    assert set(paced(Pace(1), 300, lambda _: 1.0)) == {ALONE}
