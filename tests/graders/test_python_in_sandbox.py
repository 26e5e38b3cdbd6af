"""Python graders behind the real sandbox; skipped where the machine offers none."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from answers import TASK, a_trajectory
from grader_table import this_machines_sandbox

from agentrft.core.errors import GraderError
from agentrft.core.protocols import Grader, Sandbox
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with this_machines_sandbox() as opened:
        if opened is None:
            pytest.skip("this machine offers no sandbox")
        yield opened


def python(sandbox: Sandbox, body: str) -> Grader:
    config: dict[str, Any] = {"type": "python", "name": "code"}
    config["source"] = f"import math\nseen = []\ndef grade(sample, item):\n{body}"
    return build_grader(config, backends=Backends(sandbox=sandbox))


def score(grader: Grader, output: str = "Paris") -> float | None:
    return asyncio.run(grader.grade(TASK, a_trajectory(output), None)).score


def test_five_hundred_gradings_at_once_are_all_graded_by_a_few_workers(sandbox: Sandbox) -> None:
    grader = python(sandbox, "    return len(sample['output_text'])")

    async def scenario() -> list[float | None]:
        grades = await asyncio.gather(
            *(grader.grade(TASK, a_trajectory("x" * size), None) for size in range(500))
        )
        return [grade.score for grade in grades]

    assert asyncio.run(scenario()) == [float(size) for size in range(500)]


def test_nothing_that_a_call_leaves_behind_reaches_the_next(sandbox: Sandbox) -> None:
    grader = python(sandbox, "    seen.append(1)\n    return len(seen)")
    assert [score(grader) for _ in range(5)] == [1.0] * 5


@pytest.mark.parametrize("output", ["\ud800", "\0", "猫" * 200_000, '{"a": 1e999}', "\u2028\r\n"])
def test_any_output_arrives_as_the_model_wrote_it(sandbox: Sandbox, output: str) -> None:
    grader = python(sandbox, "    return sum(map(ord, sample['output_text']))")
    assert score(grader, output) == float(sum(map(ord, output)))


def test_numbers_of_numpy_are_numbers(sandbox: Sandbox) -> None:
    grader = python(sandbox, "    import numpy\n    return numpy.mean([0.0, 0.5])")
    assert score(grader) == 0.25


@pytest.mark.parametrize(
    ("body", "family", "shown"),
    [
        ("    return item['capital']", "python_grader_runtime_error", "KeyError: 'capital'"),
        ("    return math.inf", "python_grader_runtime_error", ""),
        ("    return sample", "python_grader_runtime_error", ""),
        ("    while True: pass", "unresponsive_reward_error", ""),
        ("    open('/etc/hostname').read() and exit(0)", "python_grader_runtime_error", ""),
        ("    return 'x' * (1 << 40)", "python_grader_runtime_error", "MemoryError"),
    ],
)
def test_code_that_fails_says_how_and_the_next_call_is_graded(
    sandbox: Sandbox, body: str, family: str, shown: str
) -> None:
    with pytest.raises(GraderError, match=f"grader 'code': .*{shown}") as caught:
        score(python(sandbox, body))
    assert caught.value.code == family
    assert score(python(sandbox, "    return 1")) == 1.0
