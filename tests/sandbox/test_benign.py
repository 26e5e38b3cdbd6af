"""The sandbox against graders that mean well: none may notice it."""

import asyncio
from pathlib import Path
from typing import Literal

import pytest
from benign.graders import BENIGN, Benign

from agentrft.core.config import SandboxConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function, FunctionResult
from agentrft.sandbox.local import LocalSandbox, open_sandbox

CALL = {"id": "c", "type": "function", "function": {"name": "get", "arguments": '{"id": "W1"}'}}


async def graded(sandbox: LocalSandbox, grader: Benign) -> list[FunctionResult]:
    sample = {"output_text": grader.text, "output_tools": [CALL]}
    function = Function(source=grader.source)
    try:
        # One after the other, then side by side: the second uses what the first has warmed up.
        alone = await sandbox.call(function, [sample, grader.item])
        beside = [sandbox.call(function, [sample, grader.item]) for _ in range(2)]
        return [alone, *await asyncio.gather(*beside)]
    finally:
        await sandbox.close()


@pytest.mark.parametrize("level", ["L2", "L1"])
@pytest.mark.parametrize("name", BENIGN)
def test_an_ordinary_grader_gets_the_right_score(
    name: str, level: Literal["L2", "L1"], tmp_path: Path
) -> None:
    if "sympy" in name:
        pytest.importorskip("sympy")
    try:
        sandbox = open_sandbox(SandboxConfig(level=level), images=tmp_path)
    except ConfigError as missing:
        pytest.skip(f"{level} is not to be had here: {missing}")
    results = asyncio.run(graded(sandbox, BENIGN[name]))
    assert [(r.fault, r.detail) for r in results] == [(None, "")] * 3
    assert [r.value for r in results] == [pytest.approx(BENIGN[name].expected)] * 3
