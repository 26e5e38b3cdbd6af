from collections import Counter
from pathlib import Path

from grader_table import CASES, rows, this_machines_sandbox

from agentrft.graders.build import SUPPORTED

PAGE = Path(__file__).parents[2] / "docs" / "graders.md"


def test_the_table_of_the_page_is_what_grading_gives() -> None:
    with this_machines_sandbox() as sandbox:
        made = rows(sandbox)
    lines = PAGE.read_text().splitlines()
    shown = lines[lines.index(made[0]) :]
    if sandbox is None:
        shown = [line for line in shown if not line.startswith("| `python` |")]
    assert made == shown


def test_every_type_meets_every_kind_of_input() -> None:
    met = Counter((case.grader["type"], case.kind) for case in CASES)
    kinds = ("valid", "wrong", "malformed", "hostile")
    assert [(t, kind) for t in SUPPORTED for kind in kinds if not met[t, kind]] == []
