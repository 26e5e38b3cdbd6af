"""What is made of right answers to have wrong ones that look like them."""

import random

from agentrft.audit.perturb import near_misses


def test_a_list_loses_an_item() -> None:
    missing = near_misses("red, green, blue", random.Random(0))["one list item missing"]
    assert missing in ("red, green", "red, blue", "green, blue")


def test_a_short_sentence_with_a_comma_is_no_list() -> None:
    assert near_misses("Sorry, this cannot be done.", random.Random(0)) == {}
