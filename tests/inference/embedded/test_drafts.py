"""Guesses come from what was seen, and cease where they are wrong."""

from agentrft.inference.embedded.drafts import Drafts, contexts


def test_a_sequence_s_own_past_counts_before_that_of_others() -> None:
    drafts = Drafts()
    for end in range(4, 8):
        drafts.learn([1, 2, 3, 4, 5, 6, 7][:end])
    own = contexts([1, 2, 3, 9])
    assert drafts.propose([([0, 1, 2, 3], {})]) == [[4, 5, 6]]
    assert drafts.propose([([0, 1, 2, 3], own)]) == [[9]]
    assert drafts.propose([([5, 5, 5], {})]) == [[]]


def test_all_sequences_get_guesses_of_one_width() -> None:
    drafts = Drafts()
    for end in range(4, 8):
        drafts.learn([1, 2, 3, 4, 5, 6, 7][:end])
    guesses = drafts.propose([([1, 2, 3], {}), ([8, 8, 8], {}), ([2, 3, 4], {})])
    assert guesses == [[4, 5], [0, 0], [5, 6]]
    # So many sequences that a step is bound by compute leave no room for guesses.
    assert drafts.propose([([1, 2, 3], {})] * 200) == [[]] * 200


def test_wrong_guesses_pause_guessing_until_it_is_tried_again() -> None:
    drafts = Drafts()
    drafts.learn([1, 2, 3, 4])
    steps = [drafts.propose([([1, 2, 3], {})]) == [[4]]]
    for _ in range(60):
        drafts.count(drafted=int(steps[-1]), accepted=0)
        steps.append(drafts.propose([([1, 2, 3], {})]) == [[4]])
    assert 0 < steps.index(False) < 30
    assert any(steps[steps.index(False) :])
    assert sum(steps) < 40
