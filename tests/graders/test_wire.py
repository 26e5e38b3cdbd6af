import re
from typing import Any

import pytest
from grader_table import CASES

from agentrft.core.job import REDACTED
from agentrft.graders.build import build_grader
from agentrft.graders.wire import normalised

CHECK = {"type": "string_check", "input": "a", "reference": "b", "operation": "eq"}
HOSTED: dict[str, Any] = {
    "type": "endpoint",
    "url": "http://127.0.0.1:1/",
    "headers": {"Authorization": "Bearer one", "X.Dotted": "two"},
}


def test_a_missing_name_is_filled_in_as_training_will_use_it() -> None:
    shown, secrets = normalised(CHECK)
    assert re.fullmatch(r"grader-[0-9a-f]{12}", shown["name"])
    assert shown == {**CHECK, "name": build_grader(CHECK).name}
    assert secrets == {}
    assert normalised({**CHECK, "name": "mine"})[0]["name"] == "mine"
    assert normalised(shown)[0] == shown


@pytest.mark.parametrize("grader", [case.grader for case in CASES if case.kind == "valid"])
def test_every_type_is_shown_as_given_with_names_filled_in(grader: dict[str, Any]) -> None:
    shown, _ = normalised(grader)
    parts = {key: {**part, "name": key} for key, part in grader.get("graders", {}).items()}
    assert shown == {**grader, **({"graders": parts} if parts else {}), "name": shown["name"]}
    assert re.fullmatch(r"grader-[0-9a-f]{12}", shown["name"])
    assert normalised(shown)[0] == shown


def test_an_empty_name_is_none() -> None:
    assert build_grader({**CHECK, "name": ""}).name == normalised({**CHECK, "name": ""})[0]["name"]


def test_secrets_are_taken_out_by_path() -> None:
    shown, secrets = normalised(HOSTED)
    assert set(shown["headers"].values()) == {REDACTED}
    assert secrets == {
        "grader.headers.Authorization": "Bearer one",
        "grader.headers.X.Dotted": "two",
    }
    assert HOSTED["headers"]["Authorization"] == "Bearer one"


def test_parts_of_a_formula_keep_their_secrets_and_names_apart() -> None:
    config = {"type": "multi", "graders": {"a": HOSTED, "b": CHECK}, "calculate_output": "a * b"}
    shown, secrets = normalised(config)
    assert {part["name"] for part in shown["graders"].values()} == {"a", "b"}
    assert secrets["grader.graders.a.headers.X.Dotted"] == "two"
    assert "one" not in str(shown)
    assert build_grader(config).name == shown["name"]
