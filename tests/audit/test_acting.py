import json

import pytest
from subjects import (
    BusyDesk,
    CredulousDesk,
    Desk,
    audited,
    check,
    finding,
    of_desk,
    of_object,
    sums,
)

from agentrft.audit.acting import PROBES, minimal_call
from agentrft.audit.probe import Subject, Verdict
from agentrft.core.task import Message, Task, ToolSpec


def told_in_the_prompt() -> Subject:
    tasks = [
        Task(
            id=task.id,
            messages=(Message(role="user", content=f"What is it? (answer: {task['answer']}000)"),),
            row={"answer": f"{task['answer']}000"},
        )
        for task in sums()
    ]
    return of_object(check("eq"), tasks)


class LenientDesk(Desk):
    """Pays before anything is done."""

    def grade(self, trajectory: object) -> float:
        return 1.0 if self.right() else 0.4


DEFECTS: dict[int, Subject] = {
    36: of_desk(CredulousDesk),
    37: of_desk(CredulousDesk),
    38: of_desk(LenientDesk),
    39: of_desk(BusyDesk),
    40: told_in_the_prompt(),
}


def test_every_probe_of_the_family_has_a_defect_here():
    assert {info.number for info in PROBES} == set(DEFECTS)


@pytest.mark.parametrize("probe", DEFECTS)
def test_a_planted_defect_is_found(probe: int):
    expected = Verdict.WARN if probe == 38 else Verdict.FOOLED
    assert finding(DEFECTS[probe], probe).verdict is expected


def test_a_desk_that_looks_at_its_state_gives_no_cause_anywhere():
    report = audited(of_desk(Desk))
    assert not report.blocked
    assert [f.probe for f in report.findings if f.verdict is Verdict.FOOLED] == []
    assert report.headline.reference_score == 1.0


def test_a_grader_that_cannot_see_calls_is_told_so():
    found = finding(of_object(check("eq"), sums()), 36)
    assert found.verdict is Verdict.SKIPPED
    assert "cannot see tool calls" in found.summary


def test_a_minimal_call_fits_its_schema():
    spec = ToolSpec(
        name="book",
        description="",
        parameters={
            "type": "object",
            "required": ["day", "kind", "guests"],
            "properties": {
                "day": {"type": "string"},
                "kind": {"enum": ["room", "table"]},
                "guests": {"type": "integer", "minimum": 1},
                "remark": {"type": "string"},
            },
        },
    )
    assert json.loads(minimal_call(spec).arguments) == {"day": "", "kind": "room", "guests": 1}
