import asyncio

import pytest

from agentrft.core.protocols import Program, ProgramResult
from agentrft.sandbox.scripted import ScriptedSandbox


def test_results_are_replayed_and_programs_recorded() -> None:
    good = ProgramResult(exit_code=0, stdout=b"1", stderr=b"")
    killed = ProgramResult(exit_code=None, stdout=b"", stderr=b"")
    sandbox = ScriptedSandbox([good, killed])
    programs = [Program(argv=("python", str(n))) for n in range(3)]
    assert [asyncio.run(sandbox.run(p)) for p in programs] == [good, killed, killed]
    assert sandbox.programs == programs


def test_a_script_without_results_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one result"):
        ScriptedSandbox([])
