"""Forms of an output, cuts that say so, and short names for long identifiers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.spec import Rendering
from agentrft.rollout.rendering import IdShortener, cut, formed

ROWS = '[{"id": 1, "name": "mug|red", "price": 2.5}, {"id": 2, "name": "a\\nb"}]'
LONG = "ord_8f3a9c2b1d4e"
UUID = "123e4567-e89b-12d3-a456-426614174000"


@pytest.mark.parametrize(
    ("rendering", "shown"),
    [
        (Rendering(), ROWS),
        (
            Rendering(form="fields", fields=("name", "id")),
            '[{"name": "mug|red", "id": 1}, {"name": "a\\nb", "id": 2}]',
        ),
        (
            Rendering(form="key_value", fields=("id", "name")),
            'id: 1\nname: mug|red\n\nid: 2\nname: "a\\nb"',
        ),
        (
            Rendering(form="table"),
            'id | name | price\n1 | mug\\|red | 2.5\n2 | "a\\nb" | ',
        ),
        (Rendering(form="table", fields=("nothing",)), ROWS),
    ],
)
def test_a_list_of_objects_takes_every_form(rendering: Rendering, shown: str) -> None:
    assert formed(ROWS, rendering) == shown


@pytest.mark.parametrize("text", ["status=open", "[1, 2]", "3", "[]", "{}", "{", "[" * 10_000])
@pytest.mark.parametrize("form", ["fields", "key_value", "table"])
def test_what_no_form_can_hold_stays_as_it_is(text: str, form: str) -> None:
    assert formed(text, Rendering(form=form, fields=("a",))) == text  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("keep", "shown"),
    [
        ("head", "abcde\n[5 of 10 characters left out]"),
        ("tail", "[5 of 10 characters left out]\nfghij"),
        ("both", "abc\n[5 of 10 characters left out]\nij"),
    ],
)
def test_a_cut_says_how_much_is_missing(keep: str, shown: str) -> None:
    rendering = Rendering(max_characters=5, keep=keep)  # pyright: ignore[reportArgumentType]
    assert cut("abcdefghij", rendering) == shown
    assert cut("abcde", rendering) == "abcde"
    assert cut("abcdefghij", Rendering()) == "abcdefghij"


def test_long_identifiers_are_numbered_as_they_come_and_keep_their_number() -> None:
    ids = IdShortener()
    assert (
        ids.shorten(f'{{"order": "{LONG}", "user": "{UUID}"}}') == '{"order": "#1", "user": "#2"}'
    )
    assert ids.shorten(f"again {UUID}.") == "again #2."
    assert ids.restore('{"id": "#2", "why": "#1, #3, x#1, #12"}') == (
        f'{{"id": "{UUID}", "why": "{LONG}, #3, x#1, #12"}}'
    )
    assert ids.known(f"{LONG} and {LONG}9") == f"#1 and {LONG}9"


@pytest.mark.parametrize(
    "text",
    [
        "W1234567",
        "shipping_address_2",
        "2026-01-01T00-00-00",
        "1234567890123",
        f"https://shop.example/{LONG}",
        f"{LONG}@mail.example",
        "internationalisation",
    ],
)
def test_words_dates_numbers_and_addresses_are_no_identifiers(text: str) -> None:
    assert IdShortener().shorten(text) == text


def test_a_label_that_stands_in_the_text_is_not_given_away() -> None:
    ids = IdShortener()
    ids.seen("my first order, #1")
    assert ids.shorten(f"{LONG} is #2") == "#3 is #2"
    assert ids.restore("#1 #2 #3") == f"#1 #2 {LONG}"


@given(st.lists(st.sampled_from([LONG, UUID, "#1", "#2", "W1", "INV-2026-000123"]), max_size=6))
def test_what_was_shortened_is_restored(parts: list[str]) -> None:
    text = json.dumps(parts)
    ids = IdShortener()
    assert ids.restore(ids.shorten(text)) == text
