"""The audit against graders whose defect is known, and against clean ones."""

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest
from corpus.case import Case
from corpus.outcome import CLEAN, PLANTED, audited

from agentrft.core.config import SandboxConfig
from agentrft.sandbox.local import open_sandbox

WHOLE = bool(os.environ.get("AGENTRFT_AUDIT_ACCURACY"))
"""`make audit-accuracy` sets it; without, only the first graders of the kinds that run code."""
_SLOW = ("python", "function", "environment", "endpoint")
_OF_EACH_SLOW_KIND = 1


def chosen(cases: tuple[Case, ...]) -> list[Case]:
    taken: Counter[str] = Counter()
    found: list[Case] = []
    for case in cases:
        taken[case.kind] += 1
        if WHOLE or case.kind not in _SLOW or taken[case.kind] <= _OF_EACH_SLOW_KIND:
            found.append(case)
    return found


def test_the_corpus_has_forty_of_each_with_rows_enough():
    assert len(PLANTED) >= 40
    assert len(CLEAN) >= 40
    names = Counter(case.name for case in (*PLANTED, *CLEAN))
    assert [name for name, times in names.items() if times > 1] == []
    assert all(len(case.tasks) >= 32 for case in (*PLANTED, *CLEAN))
    # Similarity alone is never clean: it pays the near misses. Behind gates of a multi it may be.
    assert {case.kind for case in PLANTED} - {case.kind for case in CLEAN} == {"text_similarity"}
    assert len({case.kind for case in PLANTED}) == 9


@pytest.mark.parametrize("case", chosen(PLANTED), ids=lambda case: case.name)
def test_a_planted_defect_is_found(case: Case, tmp_path: Path):
    outcome = run(case, tmp_path)
    assert outcome.found, outcome.report.headline
    assert outcome.report.seconds < 110.0, "probes were cut off"


@pytest.mark.parametrize("case", chosen(CLEAN), ids=lambda case: case.name)
def test_a_clean_grader_raises_no_alarm(case: Case, tmp_path: Path):
    outcome = run(case, tmp_path)
    assert not outcome.alarmed, (outcome.report.blocked, outcome.fooled)


def run(case: Case, folder: Path):
    async def go():
        sandbox = open_sandbox(SandboxConfig(), images=folder)
        try:
            return await audited(case, sandbox)
        finally:
            await sandbox.close()

    return asyncio.run(go())
