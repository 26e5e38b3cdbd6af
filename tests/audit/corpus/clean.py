"""Forty graders that are strict but fair, of the same types and over the same rows."""

import json
from collections.abc import Mapping
from typing import Any

from corpus import desks, rows
from corpus.case import Case
from corpus.judges import careful_judge, sentence_judge
from corpus.planted import REFERENCE, TEXT, python, score_model, similarity, string_check

from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.function import grader


def case(name: str, tasks: tuple[Task, ...], config: Mapping[str, Any], **more: Any) -> Case:
    return Case(name=name, tasks=tasks, config=config, **more)


def multi(formula: str, **graders: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "multi", "graders": graders, "calculate_output": formula}


def field(key: str) -> dict[str, Any]:
    """Compare one field of a JSON answer."""
    return string_check("eq", f"{{{{ sample.output_json.{key} }}}}", f"{{{{ item.fields.{key} }}}}")


STRING_CHECKS = (
    case("equal numbers", rows.arithmetic(), string_check()),
    case("equal labels", rows.tickets(), string_check()),
    case("equal dates", rows.dates(), string_check()),
    case("equal letters", rows.choices(), string_check()),
    case("equal queries", rows.queries(), string_check()),
    case("one field of the JSON", rows.extraction(), field("order_id"), answer_key=""),
    case("whole line", rows.arithmetic("ANSWER: {n}"), string_check()),
)

GATED_SIMILARITY = multi(
    "min(number, status, day, floor(close + 0.02))",
    number=string_check("like", TEXT, "{{ item.order_id }} is"),
    status=string_check("like", TEXT, " is {{ item.status }} and"),
    day=string_check("like", TEXT, " on {{ item.day }}."),
    close=similarity("fuzzy_match"),
)

MULTIS = (
    case(
        "all three fields",
        rows.extraction(),
        multi(
            "min(order, city, amount)",
            order=field("order_id"),
            city=field("city"),
            amount=field("amount"),
        ),
    ),
    case(
        "product of fields",
        rows.extraction(),
        multi(
            "order * city * amount",
            order=field("order_id"),
            city=field("city"),
            amount=field("amount"),
        ),
    ),
    case(
        "a little for the shape",
        rows.extraction(),
        multi(
            "0.1 * order + 0.9 * min(order, city, amount)",
            order=field("order_id"),
            city=field("city"),
            amount=field("amount"),
        ),
    ),
    case("similarity behind gates", rows.replies(), GATED_SIMILARITY),
    case("only the same words", rows.notes(), multi("floor(close)", close=similarity("rouge_l"))),
    case(
        "equal and similar",
        rows.replies(),
        multi("min(same, close)", same=string_check(), close=similarity("bleu")),
    ),
    case(
        "name and arguments of the call",
        rows.errands(),
        multi(
            "min(name, arguments, two)",
            two=python(
                "def grade(sample, item):\n    return float(len(sample['output_tools']) == 2)\n"
            ),
            name=string_check(
                "eq", "{{ sample.output_tools[1].function.name }}", "{{ item.calls[1].name }}"
            ),
            arguments=string_check(
                "eq",
                "{{ sample.output_tools[1].function.arguments }}",
                "{{ item.calls[1].arguments }}",
            ),
        ),
        gold=rows.acted(rows.errands()),
    ),
)

PYTHON = (
    case(
        "parsed integer",
        rows.arithmetic(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    found = re.fullmatch(r'\\s*(-?[0-9]{1,12})\\s*', sample['output_text'])\n"
            "    return float(found is not None and int(found[1]) == item['left'])\n"
        ),
    ),
    case(
        "tagged number at the end",
        rows.arithmetic("ANSWER: {n}"),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    found = re.fullmatch(r'ANSWER: (-?[0-9]{1,12})', sample['output_text'].strip())\n"
            "    return float(found is not None and int(found[1]) == item['left'])\n"
        ),
    ),
    case(
        "tolerance of a cent",
        rows.prices(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    text = sample['output_text'].strip()\n"
            "    if not re.fullmatch(r'[0-9]{1,9}([.][0-9]{1,2})?', text):\n"
            "        return 0.0\n"
            "    return float(abs(float(text) - item['total']) < 0.005)\n"
        ),
    ),
    case(
        "currency is optional",
        rows.prices("{n:.2f} EUR"),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    text = sample['output_text'].strip().upper()\n"
            "    found = re.fullmatch(r'([0-9]{1,9}[.][0-9]{2})( ?EUR)?', text)\n"
            "    return float(found is not None and abs(float(found[1]) - item['total']) < 0.005)\n"
        ),
    ),
    case(
        "JSON equality",
        rows.extraction(),
        python(
            "import json\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        answer = json.loads(sample['output_text'])\n"
            "    except ValueError:\n"
            "        return 0.0\n"
            "    return float(answer == item['fields'])\n"
        ),
    ),
    case(
        "schema, then fields",
        rows.extraction(),
        python(
            "import json\n"
            "TYPES = {'order_id': str, 'city': str, 'amount': int}\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        answer = json.loads(sample['output_text'])\n"
            "    except ValueError:\n"
            "        return 0.0\n"
            "    if not isinstance(answer, dict) or set(answer) != set(TYPES):\n"
            "        return 0.0\n"
            "    if any(type(answer[key]) is not kind for key, kind in TYPES.items()):\n"
            "        return 0.0\n"
            "    hits = sum(answer[key] == item['fields'][key] for key in TYPES)\n"
            "    return 1.0 if hits == 3 else 0.1 * hits\n"
        ),
    ),
    case(
        "normalised label",
        rows.tickets(),
        python(
            "def grade(sample, item):\n"
            "    said = sample['output_text'].strip().rstrip('.').lower()\n"
            "    return float(said == item['reference_answer'])\n"
        ),
    ),
    case(
        "normalised query",
        rows.queries(),
        python(
            "def words(text):\n"
            "    return text.strip().rstrip(';').split()\n"
            "def grade(sample, item):\n"
            "    return float(words(sample['output_text']) == words(item['reference_answer']))\n"
        ),
    ),
    case(
        "exact set of codes",
        rows.codes(),
        python(
            "def grade(sample, item):\n"
            "    said = [code.strip() for code in sample['output_text'].split(',')]\n"
            "    return float(sorted(said) == sorted(item['codes']))\n"
        ),
    ),
    case(
        "checked arithmetic",
        rows.countdowns(),
        python(
            "import re\n"
            "from fractions import Fraction\n"
            "TOKEN = re.compile(r'[0-9]{1,4}|[-+*/()]')\n"
            "def tokens(text):\n"
            "    text = text.replace(' ', '')\n"
            "    found = TOKEN.findall(text)\n"
            "    return found if len(text) <= 60 and ''.join(found) == text else []\n"
            "def atom(queue):\n"
            "    head = queue.pop(0)\n"
            "    if head == '(':\n"
            "        value = total(queue)\n"
            "        queue.pop(0)\n"
            "        return value\n"
            "    return Fraction(head)\n"
            "def product(queue):\n"
            "    value = atom(queue)\n"
            "    while queue and queue[0] in '*/':\n"
            "        sign, right = queue.pop(0), atom(queue)\n"
            "        value = value * right if sign == '*' else value / right\n"
            "    return value\n"
            "def total(queue):\n"
            "    value = product(queue)\n"
            "    while queue and queue[0] in '+-':\n"
            "        sign, right = queue.pop(0), product(queue)\n"
            "        value = value + right if sign == '+' else value - right\n"
            "    return value\n"
            "def grade(sample, item):\n"
            "    queue = tokens(sample['output_text'])\n"
            "    used = sorted(int(token) for token in queue if token.isdigit())\n"
            "    if used != sorted(item['numbers']):\n"
            "        return 0.0\n"
            "    try:\n"
            "        value = total(queue)\n"
            "    except (IndexError, ValueError, ZeroDivisionError):\n"
            "        return 0.0\n"
            "    return float(not queue and value == item['target'])\n"
        ),
    ),
    case(
        "calls as objects",
        rows.errands(),
        python(
            "import json\n"
            "def grade(sample, item):\n"
            "    made = []\n"
            "    for call in sample['output_tools']:\n"
            "        try:\n"
            "            arguments = json.loads(call['function']['arguments'])\n"
            "        except ValueError:\n"
            "            return 0.0\n"
            "        made.append({'name': call['function']['name'], 'arguments': arguments})\n"
            "    return float(made == item['calls'])\n"
        ),
        gold=rows.acted(rows.errands()),
    ),
    case(
        "real date",
        rows.dates(),
        python(
            "import datetime\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        said = datetime.date.fromisoformat(sample['output_text'].strip())\n"
            "    except ValueError:\n"
            "        return 0.0\n"
            "    return float(said == datetime.date.fromisoformat(item['reference_answer']))\n"
        ),
    ),
    case(
        "F1 of codes, cut off below perfect",
        rows.codes(),
        python(
            "def grade(sample, item):\n"
            "    said = [code.strip() for code in sample['output_text'].split(',')]\n"
            "    want = item['codes']\n"
            "    if len(said) != len(set(said)):\n"
            "        return 0.0\n"
            "    hits = len(set(said) & set(want))\n"
            "    f1 = 2 * hits / (len(said) + len(want))\n"
            "    return f1 if f1 == 1 else 0.2 * f1\n"
        ),
    ),
)


@grader
def right_number(task: Task, trajectory: Trajectory) -> float:
    return float(trajectory.output_text.strip() == task["reference_answer"])


@grader
def right_calls(task: Task, trajectory: Trajectory) -> dict[str, float]:
    names = [call.name for call in trajectory.tool_calls]
    wanted = [call["name"] for call in task["calls"]]
    given = [json.loads(call.arguments) for call in trajectory.tool_calls]
    same = given == [call["arguments"] for call in task["calls"]]
    return {"score": float(names == wanted and same), "names": float(names == wanted)}


@grader
def right_state(task: Task, trajectory: Trajectory, desk: desks.Desk) -> float:
    return float(desk.done == desk.wanted)


FUNCTIONS = (
    Case(
        name="equal in Python",
        tasks=rows.arithmetic(),
        config={"type": "function", "function": "graders.py:right_number"},
        function=right_number,
    ),
    Case(
        name="calls in Python",
        tasks=rows.errands(),
        config={"type": "function", "function": "graders.py:right_calls"},
        function=right_calls,
        gold=rows.acted(rows.errands()),
    ),
    Case(
        name="state in Python",
        tasks=rows.errands(),
        config={"type": "function", "function": "graders.py:right_state"},
        function=right_state,
        environment=desks.Desk,
        gold=rows.acted(rows.errands()),
    ),
)

LABEL = {
    "type": "label_model",
    "model": "judge",
    "input": [{"role": "user", "content": f"# Reference\n{REFERENCE}\n# Answer\n{TEXT}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}

MODELS = (
    case(
        "careful judge of replies",
        rows.replies(),
        score_model(f"Same content?\n# Reference\n{REFERENCE}\n# Answer\n{TEXT}"),
        judge=careful_judge(),
    ),
    case(
        "careful judge of notes",
        rows.notes(),
        score_model(f"Same content?\n# Reference\n{REFERENCE}\n# Answer\n{TEXT}"),
        judge=careful_judge(),
    ),
    case("label of replies", rows.replies(), LABEL, judge=sentence_judge()),
    case("label of notes", rows.notes(), LABEL, judge=sentence_judge()),
    case(
        "judge behind a check",
        rows.replies(),
        multi(
            "min(number, judged)",
            number=string_check("like", TEXT, "{{ item.order_id }}"),
            judged=score_model(f"Same content?\n# Reference\n{REFERENCE}\n# Answer\n{TEXT}"),
        ),
        judge=careful_judge(),
    ),
)

ENDPOINTS = (
    case(
        "hosted equality",
        rows.arithmetic(),
        {"type": "endpoint"},
        hosted=lambda sample, item: float(
            sample["output_text"].strip() == item["reference_answer"]
        ),
    ),
)

ERRANDS = rows.errands()
ENVIRONMENTS = tuple(
    Case(name=name, tasks=ERRANDS, environment=desk, gold=rows.acted(ERRANDS, closing))
    for name, desk, closing in (
        ("end state", desks.StateDesk, "Done."),
        ("end state and report", desks.ReportingDesk, "Done: {order_id}."),
        ("steps to the end state", desks.StepsDesk, "Done."),
        ("end state in few calls", desks.ThriftyDesk, "Done."),
    )
)

CLEAN: tuple[Case, ...] = (
    *STRING_CHECKS,
    *MULTIS,
    *PYTHON,
    *FUNCTIONS,
    *MODELS,
    *ENDPOINTS,
    *ENVIRONMENTS,
)
