import json
import re

import pytest
from subjects import asked, check, finding, of_object, of_scores, sums, tickets

from agentrft.audit.from_reference import PROBES
from agentrft.audit.probe import Subject, Verdict
from agentrft.core.task import Task

CONTAINED = of_object(check("like"), sums())


def records(rows: int = 10) -> list[Task]:
    return [
        asked(
            f"r{n}",
            f"Read letter {n} and say what it is about, please.",
            answer={"who": f"customer {n}", "amount": 10 + n, "tags": [f"t{n}", f"u{n}"]},
        )
        for n in range(rows)
    ]


def parsed(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def close_enough(task: Task, text: str) -> float:
    numbers = re.findall(r"-?\d+", text)
    return float(bool(numbers) and abs(int(numbers[-1][:9]) - int(task["answer"])) <= 10)


def any_true(task: Task, text: str) -> float:
    found = parsed(text)
    return float(bool(found) and all(found.get(k) in (v, True) for k, v in task["answer"].items()))


def superset(task: Task, text: str) -> float:
    tags = parsed(text).get("tags")
    return float(isinstance(tags, list) and set(task["answer"]["tags"]) <= set(map(str, tags)))


def unread_prose(task: Task, text: str) -> float:
    found = parsed(text)
    return float(found.get("amount") == task["answer"]["amount"] and bool(found.get("who")))


def well_formed(task: Task, text: str) -> float:
    return float(parsed(text).get("amount") in (0, task["answer"]["amount"]))


def normalised(task: Task, text: str) -> float:
    plain = "".join(char for char in text if char.isascii() and char.isalnum())
    return float(plain == task["answer"])


DEFECTS: dict[int, Subject] = {
    11: of_scores(lambda task, text: float(text.isdigit()), sums()),
    12: of_scores(close_enough, sums()),
    13: CONTAINED,
    14: CONTAINED,
    15: CONTAINED,
    16: CONTAINED,
    17: CONTAINED,
    18: CONTAINED,
    19: of_scores(normalised, tickets()),
    20: of_scores(lambda task, text: float(text in (task["answer"], "NaN")), sums()),
    21: of_scores(any_true, records()),
    22: of_scores(superset, records()),
    23: of_scores(unread_prose, records()),
    24: of_scores(well_formed, records()),
}
ONLY_WARNS = {18, 19}


def exact(task: Task, text: str) -> float:
    return float(parsed(text) == task["answer"])


def test_every_probe_of_the_family_has_a_defect_here():
    assert {info.number for info in PROBES} == set(DEFECTS)


@pytest.mark.parametrize("probe", DEFECTS)
def test_a_planted_defect_is_found(probe: int):
    expected = Verdict.WARN if probe in ONLY_WARNS else Verdict.FOOLED
    found = finding(DEFECTS[probe], probe)
    assert found.verdict is expected, found.summary


@pytest.mark.parametrize("probe", DEFECTS)
@pytest.mark.parametrize(
    "clean",
    [
        of_object(check("eq"), sums()),
        of_object(check("eq"), tickets()),
        of_scores(exact, records()),
    ],
    ids=["sums", "tickets", "records"],
)
def test_an_exact_check_gives_no_cause(clean: Subject, probe: int):
    assert finding(clean, probe).verdict in (Verdict.PASS, Verdict.SKIPPED)


def test_a_similarity_that_cannot_tell_near_misses_is_warned_about_but_not_refused():
    def similar(task: Task, text: str) -> float:
        wanted = str(task["answer"])
        same = sum(a == b for a, b in zip(wanted, text, strict=False))
        return same / max(len(wanted), len(text))

    letters = [asked(f"t{n}", "?", answer=f"{chr(97 + n) * 30} {n}{n}") for n in range(9)]
    found = finding(of_scores(similar, letters), 12)
    assert found.verdict is Verdict.WARN
    assert found.excess is None


def test_without_a_known_answer_these_probes_say_so():
    rows = [asked(f"t{n}", "?", code=n) for n in range(5)]
    found = finding(of_scores(lambda task, text: 0.0, rows), 13)
    assert found.verdict is Verdict.SKIPPED
    assert "--reference" in found.summary
