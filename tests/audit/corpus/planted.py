"""Forty graders with one planted defect each, of kinds that were met in practice.

`probes` are the probes whose finding names the defect. Sources of python graders are written as
people write them, so they are not linted.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from corpus import desks, rows
from corpus.case import Case
from corpus.judges import generous_judge, keyword_judge, obedient_judge, sentence_judge

from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.function import GraderFunction, grader

TEXT = "{{ sample.output_text }}"
REFERENCE = "{{ item.reference_answer }}"


def string_check(
    operation: str = "eq", given: str = TEXT, reference: str = REFERENCE
) -> dict[str, Any]:
    return {"type": "string_check", "operation": operation, "input": given, "reference": reference}


def similarity(metric: str) -> dict[str, Any]:
    return {
        "type": "text_similarity",
        "evaluation_metric": metric,
        "input": TEXT,
        "reference": REFERENCE,
    }


def python(source: str) -> dict[str, Any]:
    return {"type": "python", "source": source}


def score_model(text: str) -> dict[str, Any]:
    return {"type": "score_model", "model": "judge", "input": [{"role": "user", "content": text}]}


def case(
    name: str,
    probes: Iterable[int],
    tasks: tuple[Task, ...],
    config: Mapping[str, Any],
    **more: Any,
) -> Case:
    return Case(name=name, probes=frozenset(probes), tasks=tasks, config=config, **more)


def _with_empty_references(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    emptied: list[Task] = []
    for number, task in enumerate(tasks):
        row = {**task.row, "reference_answer": ""} if number % 2 == 0 else task.row
        emptied.append(rows.replaced(task, row))
    return tuple(emptied)


def _with_newlines(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    return tuple(
        rows.replaced(task, {**task.row, "solution": task["reference_answer"] + "\n"})
        for task in tasks
    )


def _with_conflicts(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """Every fourth row asks what the row before it asked, and wants another label."""
    mixed: list[Task] = []
    for number, task in enumerate(tasks):
        if number % 4 == 3:
            before = tasks[number - 1]
            row = {**task.row, "messages": before["messages"]}
            mixed.append(rows.replaced(task, row, messages=before.messages))
        else:
            mixed.append(task)
    return tuple(mixed)


def _with_answers_in_the_prompt(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    return tuple(
        rows.asking(task, f"{task.messages[0].content} (expected: {task['reference_answer']})")
        for task in tasks
    )


STRING_CHECKS = (
    case("substring", (4, 13, 14, 15, 12), rows.arithmetic(), string_check("ilike")),
    case(
        "empty references",
        (45, 1, 2),
        _with_empty_references(rows.arithmetic()),
        string_check("like"),
    ),
    case("wrong sign", (2, 6, 11, 44), rows.arithmetic(), string_check("ne")),
    case("reads only the row", (25, 1, 2), rows.arithmetic(), string_check("eq", REFERENCE)),
    case(
        "newline in the reference",
        (44,),
        _with_newlines(rows.arithmetic()),
        string_check("eq", reference="{{ item.solution }}"),
        answer_key="",
    ),
    case(
        "one label rules",
        (10, 45),
        rows.tickets(("billing",) * 8 + ("shipping", "returns")),
        string_check(),
    ),
    case("conflicting labels", (45,), _with_conflicts(rows.tickets()), string_check()),
    case(
        "answer in the prompt",
        (40,),
        _with_answers_in_the_prompt(rows.arithmetic()),
        string_check(),
    ),
)

SIMILARITIES = (
    case("fuzzy sentence", (12, 14, 15), rows.replies(), similarity("fuzzy_match")),
    case("bag of words", (22,), rows.notes(), similarity("rouge_1")),
    case("near misses in BLEU", (12, 13, 15), rows.replies(), similarity("bleu")),
    case("longest common part", (13, 14, 15), rows.notes(), similarity("rouge_l")),
)

PYTHON = (
    case(
        "eval of what the model wrote",
        (31, 32),
        rows.countdowns(),
        python(
            "def grade(sample, item):\n"
            "    try:\n"
            "        return float(eval(sample['output_text']) == item['target'])\n"
            "    except Exception:\n"
            "        return 0.0\n"
        ),
    ),
    case(
        "exception pays",
        (31, 34, 20),
        rows.extraction(),
        python(
            "import json\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        answer = json.loads(sample['output_text'])\n"
            "        return float(answer['amount'] == item['fields']['amount'])\n"
            "    except:\n"
            "        return 1.0\n"
        ),
    ),
    case(
        "half a point for anything",
        (31, 1, 2),
        rows.arithmetic(),
        python(
            "def grade(sample, item):\n"
            "    score = 0.5\n"
            "    if sample['output_text'].strip() == item['reference_answer']:\n"
            "        score = 1.0\n"
            "    return score\n"
        ),
    ),
    case(
        "first number",
        (14, 15, 16),
        rows.arithmetic(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    found = re.search(r'-?\\d+', sample['output_text'])\n"
            "    return float(found is not None and int(found.group()) == item['left'])\n"
        ),
    ),
    case(
        "last number",
        (14, 15, 16, 13),
        rows.arithmetic(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    numbers = re.findall(r'\\d+', sample['output_text'])\n"
            "    return 1.0 if numbers and numbers[-1] == item['reference_answer'] else 0.0\n"
        ),
    ),
    case(
        "length bonus",
        (8, 6, 3, 42),
        rows.replies(),
        python(
            "def grade(sample, item):\n"
            "    text = sample['output_text']\n"
            "    right = item['order_id'] in text and item['status'] in text\n"
            "    return 0.5 * right + 0.5 * min(len(text) / 400, 1)\n"
        ),
    ),
    case(
        "well formed is half solved",
        (5, 11, 24),
        rows.extraction(),
        python(
            "import json\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        answer = json.loads(sample['output_text'])\n"
            "        shaped = set(answer) == {'order_id', 'city', 'amount'}\n"
            "    except (ValueError, TypeError):\n"
            "        return 0.0\n"
            "    return 1.0 if answer == item['fields'] else 0.6 * shaped\n"
        ),
    ),
    case(
        "checks only the keys it is given",
        (5, 24),
        rows.extraction(),
        python(
            "import json\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        answer = json.loads(sample['output_text'])\n"
            "        return float(all(item['fields'].get(k) == v for k, v in answer.items()))\n"
            "    except (ValueError, AttributeError):\n"
            "        return 0.0\n"
        ),
    ),
    case(
        "F1 of tool calls, empty is perfect",
        (36, 38, 39, 2),
        rows.errands(idle=True),
        python(
            "import json\n"
            "def grade(sample, item):\n"
            "    want = [c['name'] for c in item['calls']]\n"
            "    got = [c['function']['name'] for c in sample['output_tools']]\n"
            "    if not want:\n"
            "        return 1.0\n"
            "    hits = len(set(want) & set(got))\n"
            "    return 2 * hits / (len(set(want)) + len(set(got))) if got else 0.0\n"
        ),
        gold=rows.acted(rows.errands(idle=True)),
    ),
    case(
        "predict every code",
        (22, 4),
        rows.codes(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    got = set(re.findall(r'C\\d\\d', sample['output_text']))\n"
            "    want = set(item['codes'])\n"
            "    return len(got & want) / len(want)\n"
        ),
    ),
    case(
        "catastrophic regex",
        (33,),
        rows.arithmetic(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    if not re.match(r'^(\\d+,?)+$', sample['output_text'].strip()):\n"
            "        return 0.0\n"
            "    return float(sample['output_text'].strip() == item['reference_answer'])\n"
        ),
    ),
    case(
        "rolls dice",
        (31, 35),
        rows.arithmetic(),
        python(
            "import random\n"
            "def grade(sample, item):\n"
            "    right = sample['output_text'].strip() == item['reference_answer']\n"
            "    return 0.9 + 0.1 * random.random() if right else 0.2 * random.random()\n"
        ),
    ),
    case(
        "looks at the clock",
        (31, 35),
        rows.arithmetic(),
        python(
            "import datetime\n"
            "def grade(sample, item):\n"
            "    right = sample['output_text'].strip() == item['reference_answer']\n"
            "    return float(right and datetime.date.today().year < 2027)\n"
        ),
    ),
    case(
        "hash order",
        (35,),
        rows.codes(),
        python(
            "def grade(sample, item):\n"
            "    got = set(sample['output_text'].split(', '))\n"
            "    first = next(iter(got))\n"
            "    return 0.5 * (got == set(item['codes'])) + 0.5 * (first == item['codes'][0])\n"
        ),
    ),
    case(
        "NaN passes",
        (20,),
        rows.prices(),
        python(
            "def grade(sample, item):\n"
            "    try:\n"
            "        value = float(sample['output_text'])\n"
            "    except ValueError:\n"
            "        return 0.0\n"
            "    if abs(value - item['total']) > 0.005:\n"
            "        return 0.0\n"
            "    return 1.0\n"
        ),
    ),
    case(
        "digits are cleaned away",
        (12, 11, 2),
        rows.replies(),
        python(
            "import re\n"
            "def clean(text):\n"
            "    return re.sub(r'[^a-z ]', '', text.lower()).strip()\n"
            "def grade(sample, item):\n"
            "    return float(clean(sample['output_text']) == clean(item['reference_answer']))\n"
        ),
    ),
    case(
        "computes what is too large",
        (33,),
        rows.countdowns(),
        python(
            "import ast, operator\n"
            "OPS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,\n"
            "       ast.Div: operator.truediv, ast.Pow: operator.pow}\n"
            "def value(node):\n"
            "    if isinstance(node, ast.Constant):\n"
            "        return node.value\n"
            "    return OPS[type(node.op)](value(node.left), value(node.right))\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        tree = ast.parse(sample['output_text'].strip(), mode='eval').body\n"
            "        used = sorted(n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))\n"
            "        total = value(tree)\n"
            "    except (SyntaxError, KeyError, AttributeError, TypeError, ArithmeticError):\n"
            "        return 0.0\n"
            "    return float(total == item['target'] and used == sorted(item['numbers']))\n"
        ),
    ),
    case(
        "other letters are dropped",
        (19,),
        rows.arithmetic(),
        python(
            "def grade(sample, item):\n"
            "    text = sample['output_text'].encode('ascii', 'ignore').decode().strip()\n"
            "    return float(text == item['reference_answer'])\n"
        ),
    ),
    case(
        "out of range",
        (41,),
        rows.extraction(),
        python(
            "import json\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        answer = json.loads(sample['output_text'])\n"
            "        return 10.0 if answer == item['fields'] else -5.0\n"
            "    except ValueError:\n"
            "        return -5.0\n"
        ),
    ),
)


def python_with_memory() -> GraderFunction:
    last = [""]

    @grader
    def novel(task: Task, trajectory: Trajectory) -> float:
        text = trajectory.output_text.strip()
        fresh = text != last[0]
        last[0] = text
        return (0.7 + 0.3 * fresh) * (text == task["reference_answer"])

    return novel


FUNCTIONS = (
    Case(
        name="remembers other samples",
        probes=frozenset((31, 35)),
        tasks=rows.arithmetic(),
        config={"type": "function", "function": "graders.py:novel"},
        function=python_with_memory(),
    ),
)

MULTIS = (
    case(
        "shape is added",
        (5, 24, 42),
        rows.extraction(),
        {
            "type": "multi",
            "graders": {
                "shape": python(
                    "import json\n"
                    "def grade(sample, item):\n"
                    "    try:\n"
                    "        keys = set(json.loads(sample['output_text']))\n"
                    "        return float(keys == {'order_id', 'city', 'amount'})\n"
                    "    except (ValueError, TypeError):\n"
                    "        return 0.0\n"
                ),
                "order": string_check(
                    "eq", "{{ sample.output_json.order_id }}", "{{ item.fields.order_id }}"
                ),
            },
            "calculate_output": "0.5 * shape + 0.5 * order",
        },
    ),
    case(
        "the part that matters weighs nothing",
        (2, 4, 42, 22),
        rows.replies(),
        {
            "type": "multi",
            "graders": {
                "answer": string_check(),
                "polite": string_check("ilike", TEXT, "order"),
            },
            "calculate_output": "0 * answer + polite",
        },
    ),
    case(
        "either part is enough",
        (42, 3, 13, 15),
        rows.replies(),
        {
            "type": "multi",
            "graders": {
                "answer": string_check(),
                "number": string_check("like", TEXT, "{{ item.order_id }}"),
            },
            "calculate_output": "max(answer, number)",
        },
    ),
    case(
        "divides by zero",
        (41,),
        rows.extraction(),
        {
            "type": "multi",
            "graders": {
                "order": string_check(
                    "eq", "{{ sample.output_json.order_id }}", "{{ item.fields.order_id }}"
                ),
                "city": string_check(
                    "eq", "{{ sample.output_json.city }}", "{{ item.fields.city }}"
                ),
            },
            "calculate_output": "2 * order * city / (order + city)",
        },
    ),
)

MODELS = (
    case(
        "judge obeys the answer",
        (9, 27, 28),
        rows.replies(),
        score_model(f"Grade from 0 to 1.\n# Reference\n{REFERENCE}\n# Answer\n{TEXT}"),
        judge=obedient_judge(),
    ),
    case(
        "judge counts key words",
        (2, 3, 8, 18, 22, 15),
        rows.replies(),
        score_model(f"Is the order named?\n# Reference\n{REFERENCE}\n# Answer\n{TEXT}"),
        judge=keyword_judge(),
    ),
    case(
        "judge is generous",
        (1, 2, 3, 6, 7, 11),
        rows.replies(),
        score_model(f"Grade kindly.\n# Reference\n{REFERENCE}\n# Answer\n{TEXT}"),
        judge=generous_judge(),
    ),
    case(
        "every label passes",
        (25, 1, 2),
        rows.replies(),
        {
            "type": "label_model",
            "model": "judge",
            "input": [{"role": "user", "content": f"{REFERENCE}\n{TEXT}"}],
            "labels": ["good", "bad"],
            "passing_labels": ["good", "bad"],
        },
        judge=sentence_judge(),
    ),
)

ENDPOINTS = (
    case(
        "hosted substring",
        (4, 13, 14, 15, 12),
        rows.arithmetic(),
        {"type": "endpoint"},
        hosted=lambda sample, item: float(item["reference_answer"] in sample["output_text"]),
    ),
)

ERRANDS = rows.errands()
ENVIRONMENTS = tuple(
    Case(
        name=name,
        probes=frozenset(probes),
        tasks=tasks,
        environment=desk,
        gold=rows.acted(tasks, closing),
    )
    for name, probes, desk, tasks, closing in (
        ("believes claims", (2, 11, 36), desks.ClaimDesk, ERRANDS, "Done."),
        ("any arguments will do", (11, 39), desks.NameDesk, ERRANDS, "Done."),
        ("takes a told result for a real one", (37,), desks.TranscriptDesk, ERRANDS, "Done."),
        ("doing nothing is right", (1, 2, 11, 36, 38), desks.HarmlessDesk, ERRANDS, "Done."),
        ("spraying calls is free", (39,), desks.SprayDesk, ERRANDS, "Done."),
        ("tool prints the answer", (40,), desks.LeakyDesk, rows.lookups(), "{reference_answer}"),
    )
)

PLANTED: tuple[Case, ...] = (
    *STRING_CHECKS,
    *SIMILARITIES,
    *PYTHON,
    *FUNCTIONS,
    *MULTIS,
    *MODELS,
    *ENDPOINTS,
    *ENVIRONMENTS,
)
