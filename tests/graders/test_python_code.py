import asyncio
from typing import Any

import pytest
from answers import TASK, a_trajectory

from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.protocols import FunctionFault, FunctionResult
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.python_code import MAX_SOURCE_BYTES
from agentrft.sandbox.scripted import ScriptedSandbox

SOURCE = "def grade(sample, item):\n    return float(sample['output_text'] == item['reference'])\n"


def python(source: str = SOURCE, **more: Any) -> dict[str, Any]:
    return {"type": "python", "name": "code", "source": source, **more}


def grade(result: FunctionResult) -> float | None:
    backends = Backends(sandbox=ScriptedSandbox(values=(result,)))
    grader = build_grader(python(), backends=backends)
    return asyncio.run(grader.grade(TASK, a_trajectory("Paris"), None)).score


def build(source: str, **more: Any) -> object:
    return build_grader(python(source, **more), backends=Backends(sandbox=ScriptedSandbox()))


def test_code_is_called_with_the_output_and_the_row_under_its_owner_and_packages() -> None:
    sandbox = ScriptedSandbox(values=(FunctionResult(value=0.25),))
    backends = Backends(sandbox=sandbox, owner="project-1")
    grader = build_grader(python(image_tag="2025-05-08"), backends=backends)
    given = asyncio.run(grader.grade(TASK, a_trajectory("Paris"), None))
    assert (given.score, given.grader) == (0.25, "code")
    ((function, (sample, item)),) = sandbox.calls
    assert (function.source, function.name) == (SOURCE, "grade")
    assert (function.image_tag, function.owner) == ("2025-05-08", "project-1")
    assert (sample["output_text"], item) == ("Paris", TASK.row)


@pytest.mark.parametrize("value", [0, 1, 0.5, -2.5, True])
def test_any_finite_number_is_a_score(value: float) -> None:
    assert grade(FunctionResult(value=value)) == float(value)


@pytest.mark.parametrize(
    "value", [None, "0.5", [1.0], {"score": 1.0}, float("nan"), float("inf"), 10**400]
)
def test_what_is_no_finite_number_is_an_error_of_the_code(value: object) -> None:
    with pytest.raises(GraderError, match="grader 'code': grade returned") as caught:
        grade(FunctionResult(value=value))
    assert caught.value.code == "python_grader_runtime_error"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("fault", "family"),
    [
        (FunctionFault.RAISED, "python_grader_runtime_error"),
        (FunctionFault.RESOURCES, "python_grader_runtime_error"),
        (FunctionFault.RESULT, "python_grader_runtime_error"),
        (FunctionFault.TIMEOUT, "unresponsive_reward_error"),
        (FunctionFault.SANDBOX, "python_grader_server_error"),
    ],
)
def test_a_call_without_a_value_is_never_a_score(fault: FunctionFault, family: str) -> None:
    with pytest.raises(GraderError, match="grader 'code': KeyError: 'x'") as caught:
        grade(FunctionResult(value=1.0, fault=fault, detail="KeyError: 'x'"))
    assert caught.value.code == family


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("", "grader.source defines no `grade`"),
        ("def score(sample, item): return 1", "grader.source defines no `grade`"),
        ("grade", "grader.source defines no `grade`"),
        ("class A:\n    def grade(sample, item): return 1", "grader.source defines no `grade`"),
        ("def grade(sample, item):\nreturn 1", "grader.source line 2: expected an indented"),
        ("def grade(sample, item)\n    return 1", "grader.source line 1: expected ':'"),
        ("x = 1\0", "grader.source"),
        ("x = " + "-" * 100_000 + "1", "grader.source holds a NUL or is nested too deeply"),
        ("#" * MAX_SOURCE_BYTES, "grader.source has 262144 bytes; it must have fewer than 262144"),
        ("#" + "é" * (MAX_SOURCE_BYTES // 2), "grader.source has 262145 bytes"),
    ],
)
def test_source_that_can_be_no_grader_is_refused_by_line(source: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(source)
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "grade = lambda sample, item: 1.0",
        "from math import floor as grade",
        "try:\n    import numpy\nfinally:\n    def grade(s, i): return 1",
        r"def grade(s, i): return len('\d')",  # warns when read, and is read nevertheless
    ],
)
def test_a_name_bound_in_any_way_is_a_grader(source: str) -> None:
    assert build(source)


@pytest.mark.parametrize("tag", ["../evil", "a/b", "", " ", ".hidden", "x" * 65, 3])
def test_only_a_plain_word_names_an_image(tag: object) -> None:
    if tag == "":
        assert build(SOURCE, image_tag=tag)
        return
    with pytest.raises(ConfigError, match=r"grader\.image_tag is"):
        build(SOURCE, image_tag=tag)


def test_without_a_sandbox_no_code_is_taken() -> None:
    with pytest.raises(ConfigError, match="needs a sandbox.*agentrft doctor"):
        build_grader(python())
