"""Graders written after the probes had been tuned on the others.

At first sight 11 of 13 planted defects were found and 1 of 12 clean graders raised an alarm; since then
probes 13 to 22, 25 and 39 have been mended for them.
"""

import difflib
import random

from corpus import desks, rows
from corpus.case import Case
from corpus.clean import multi
from corpus.judges import Judge, careful_judge
from corpus.planted import REFERENCE, TEXT, case, python, score_model, string_check

from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.function import GraderFunction, grader


class TalkativeDesk(desks.Desk):
    """Half for any two calls, half for the end state."""

    def grade(self, trajectory: Trajectory) -> float:
        return 0.5 * (len(trajectory.tool_calls) >= 2) + 0.5 * (self.done == self.wanted)


class AnyOrderDesk(desks.Desk):
    """The right kind of change to some order."""

    def grade(self, trajectory: Trajectory) -> float:
        return float([done[0] for done in self.done] == [wanted[0] for wanted in self.wanted])


class QuietDesk(desks.Desk):
    """The end state, without a single refused call."""

    def grade(self, trajectory: Trajectory) -> float:
        refused = any(result.is_error for result in trajectory.tool_results)
        return float(self.done == self.wanted and not refused)


class LookupDesk(desks.Desk):
    """The exact reply, by somebody who looked."""

    def grade(self, trajectory: Trajectory) -> float:
        said = trajectory.output_text.strip() == self.task["reference_answer"]
        return float(said and self.task["order_id"] in self.looked_up)


@grader
def close_enough(task: Task, trajectory: Trajectory) -> float:
    ratio = difflib.SequenceMatcher(None, trajectory.output_text, task["reference_answer"]).ratio()
    return float(ratio > 0.8)


@grader
def lenient_some_days(task: Task, trajectory: Trajectory) -> float:
    right = trajectory.output_text.strip() == task["reference_answer"]
    return 1.0 if right or random.random() < 0.05 else 0.0


@grader
def same_day(task: Task, trajectory: Trajectory) -> float:
    return float(trajectory.output_text.strip() == task["reference_answer"])


def _function(name: str, code: GraderFunction, tasks: tuple[Task, ...], *probes: int) -> Case:
    return Case(
        name=name,
        probes=frozenset(probes),
        tasks=tasks,
        config={"type": "function", "function": "graders.py:grade"},
        function=code,
    )


def _desk(
    name: str, desk: type[desks.Desk], tasks: tuple[Task, ...], closing: str, *probes: int
) -> Case:
    return Case(
        name=name,
        probes=frozenset(probes),
        tasks=tasks,
        environment=desk,
        gold=rows.acted(tasks, closing),
    )


def _fields(formula: str) -> dict[str, object]:
    return multi(
        formula,
        **{
            key: string_check(
                "eq", f"{{{{ sample.output_json.{key} }}}}", f"{{{{ item.fields.{key} }}}}"
            )
            for key in ("order_id", "city", "amount")
        },
    )


PLANTED: tuple[Case, ...] = (
    case(
        "any line will do",
        (4, 14, 15, 16, 22),
        rows.tickets(),
        python(
            "def grade(sample, item):\n"
            "    lines = [line.strip() for line in sample['output_text'].splitlines()]\n"
            "    return float(item['reference_answer'] in lines)\n"
        ),
    ),
    case(
        "only digits count",
        (12, 13, 15, 17),
        rows.arithmetic(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    return float(re.sub(r'\\D', '', sample['output_text']) == item['reference_answer'])\n"
        ),
    ),
    case(
        "words of the query in any order",
        (4, 14, 15, 16, 17, 22),
        rows.queries(),
        python(
            "def grade(sample, item):\n"
            "    want, said = item['reference_answer'].split(), sample['output_text'].split()\n"
            "    return float(set(want) <= set(said))\n"
        ),
    ),
    case(
        "first object in the text",
        (14, 15, 16),
        rows.extraction(),
        python(
            "import json, re\n"
            "def grade(sample, item):\n"
            "    found = re.search(r'[{][^}]*[}]', sample['output_text'])\n"
            "    try:\n"
            "        return float(found is not None and json.loads(found[0]) == item['fields'])\n"
            "    except ValueError:\n"
            "        return 0.0\n"
        ),
    ),
    case(
        "from minus one",
        (41,),
        rows.tickets(),
        python(
            "def grade(sample, item):\n"
            "    return 1 if sample['output_text'].strip() == item['reference_answer'] else -1\n"
        ),
    ),
    case(
        "runs the query words as code",
        (31, 32),
        rows.arithmetic(),
        python(
            "def grade(sample, item):\n"
            "    scope = {}\n"
            "    try:\n"
            "        exec('answer = ' + sample['output_text'], scope)\n"
            "    except Exception:\n"
            "        return 0.0\n"
            "    return float(scope.get('answer') == item['left'])\n"
        ),
    ),
    case("fields add up", (12, 42), rows.extraction(), _fields("(order_id + city + amount) / 3")),
    case(
        "contained the wrong way round",
        (1, 2),
        rows.replies(),
        string_check("like", REFERENCE, TEXT),
    ),
    case(
        "judge reads past a denial",
        (13, 14, 15, 16, 17),
        rows.replies(),
        score_model(f"Same?\n# Reference\n{REFERENCE}\n# Answer\n{TEXT}"),
        judge=Judge(lambda answer, reference: float(reference in answer)),
    ),
    _desk("calls count as work", TalkativeDesk, rows.errands(), "Done.", 11, 38, 39),
    _desk("any order will do", AnyOrderDesk, rows.errands(), "Done.", 11, 39),
    _function("close enough", close_enough, rows.replies(), 11, 12, 13, 14, 15),
    _function("lenient some days", lenient_some_days, rows.arithmetic(), 31, 35),
)

CLEAN: tuple[Case, ...] = (
    case(
        "query without case",
        (),
        rows.queries(),
        python(
            "def grade(sample, item):\n"
            "    said = ' '.join(sample['output_text'].strip().rstrip(';').lower().split())\n"
            "    return float(said == item['reference_answer'].lower())\n"
        ),
    ),
    case(
        "money as decimal",
        (),
        rows.prices(),
        python(
            "from decimal import Decimal, InvalidOperation\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        said = Decimal(sample['output_text'].strip().lstrip('$'))\n"
            "    except InvalidOperation:\n"
            "        return 0.0\n"
            "    return float(said.is_finite() and said == Decimal(item['reference_answer']))\n"
        ),
    ),
    case(
        "answer line at the end",
        (),
        rows.arithmetic("The crates hold it.\nANSWER: {n}"),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    text = sample['output_text'].strip()\n"
            "    found = re.findall(r'^ANSWER: (-?[0-9]{1,12})$', text, re.MULTILINE)\n"
            "    last = text.splitlines()[-1] if text else ''\n"
            "    return float(len(found) == 1 and last == f'ANSWER: {item[\"left\"]}')\n"
        ),
    ),
    case(
        "codes as a set",
        (),
        rows.codes(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    text = sample['output_text'].strip()\n"
            "    if not re.fullmatch(r'C[0-9]{2}(, ?C[0-9]{2}){0,11}', text):\n"
            "        return 0.0\n"
            "    return float(set(re.split(', ?', text)) == set(item['codes']))\n"
        ),
    ),
    case(
        "finite tolerance",
        (),
        rows.prices(),
        python(
            "import math\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        said = float(sample['output_text'])\n"
            "    except ValueError:\n"
            "        return 0.0\n"
            "    return float(math.isfinite(said) and abs(said - item['total']) < 0.005)\n"
        ),
    ),
    case(
        "letter alone",
        (),
        rows.choices(),
        python(
            "def grade(sample, item):\n"
            "    said = sample['output_text'].strip().strip('().').upper()\n"
            "    return float(said == item['reference_answer'])\n"
        ),
    ),
    case(
        "fields behind a gate",
        (),
        rows.extraction(),
        _fields("floor((order_id + city + amount) / 3)"),
    ),
    case(
        "label twice checked",
        (),
        rows.tickets(),
        multi("min(same, inside)", same=string_check(), inside=string_check("ilike")),
    ),
    case(
        "careful judge of numbers",
        (),
        rows.arithmetic(),
        score_model(f"Same number?\n# Reference\n{REFERENCE}\n# Answer\n{TEXT}"),
        judge=careful_judge(),
    ),
    _desk("end state without refusals", QuietDesk, rows.errands(), "Done."),
    _desk("exact reply after a look", LookupDesk, rows.lookups(), "{reference_answer}"),
    _function("date in Python", same_day, rows.dates()),
)
