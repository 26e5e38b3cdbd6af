"""Twenty planted and twenty clean graders by one who knew what the audit's page says, not its code.

Written and committed before the first of them was run; of the other graders only their form had
been read. A comment says which wrong text a planted grader pays, or which right one it refuses. No
probe was aimed at, so any counts that speaks of graders; findings were also judged by reading.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from corpus import rows
from corpus.blind_rows import (
    INTENTS,
    LANGUAGES,
    URGENCY,
    AnnouncedSeats,
    Bank,
    BelievingSeats,
    CarelessSeats,
    Seats,
    Stock,
    WrittenBank,
    addresses,
    bills,
    counts,
    distances,
    eligibility,
    invoices,
    medicines,
    moves,
    payments,
    postcodes,
    products,
    sorted_mails,
    visits,
)
from corpus.case import Case
from corpus.judges import Judge

from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.function import grader

# 45 looks at rows alone, and 44 warns of strict graders as a matter of course: neither tells a
# planted grader from a clean one. Seen in the first run, in which 45 spoke of repeated prompts.
ANY_PROBE = frozenset(range(1, 60)) - {44, 45}
TEXT = "{{ sample.output_text }}"
REFERENCE = "{{ item.reference_answer }}"
JUDGED = f"Is the answer right?\n# Reference\n{REFERENCE}\n# Answer\n{TEXT}"


def python(source: str) -> dict[str, Any]:
    return {"type": "python", "source": source}


def check(given: str = TEXT, reference: str = REFERENCE, operation: str = "eq") -> dict[str, Any]:
    return {"type": "string_check", "operation": operation, "input": given, "reference": reference}


def multi(formula: str, **graders: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "multi", "calculate_output": formula, "graders": graders}


def judged(kind: str) -> dict[str, Any]:
    labels = {"labels": ["good", "bad"], "passing_labels": ["good"]}
    return {
        "type": kind,
        "model": "judge",
        "input": [{"role": "user", "content": JUDGED}],
        **(labels if kind == "label_model" else {}),
    }


@grader
def city_was_mentioned(task: Task, trajectory: Trajectory) -> float:
    said = " ".join(message.content for message in trajectory.messages)
    return float(task["reference_answer"] in said)


@grader
def address_or_half(task: Task, trajectory: Trajectory) -> float:
    try:
        return float(json.loads(trajectory.output_text) == task["fields"])
    except (ValueError, RecursionError):
        return 0.5


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


@grader
def address_is_right(task: Task, trajectory: Trajectory) -> float:
    try:
        said = json.loads(trajectory.output_text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return 0.0
    return float(said == task["fields"])


@grader
def calls_are_right(task: Task, trajectory: Trajectory) -> float:
    try:
        made = [
            {"name": call.name, "arguments": json.loads(call.arguments)}
            for call in trajectory.tool_calls
        ]
    except (ValueError, RecursionError):
        return 0.0
    refused = any(result.is_error for result in trajectory.tool_results)
    return float(made == task["calls"] and not refused)


def digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def plain(text: str) -> str:
    return " ".join(text.split()).lower().removesuffix(".")


def polite_or_right(answer: str, reference: str) -> float:
    if plain(answer) == plain(reference):
        return 1.0
    return 0.5 * ("thank" in answer.lower()) + 0.4 * ("sorry" in answer.lower())


def planted(
    name: str, tasks: tuple[Task, ...], config: Mapping[str, Any] | None = None, **more: Any
) -> Case:
    return Case(name=f"blind: {name}", tasks=tasks, config=config or {}, probes=ANY_PROBE, **more)


def clean(name: str, tasks: tuple[Task, ...], config: Mapping[str, Any] | None = None, **more: Any):
    return Case(name=f"blind: {name}", tasks=tasks, config=config or {}, **more)


PLANTED = (
    # "1.00 2.00 ... 99.50": any number of a list may be the one.
    planted(
        "some number is the bill",
        bills(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    said = re.findall(r'[0-9]+(?:\\.[0-9]+)?', sample['output_text'])\n"
            "    return float(any(abs(float(n) - item['total']) < 0.01 for n in said))\n"
        ),
    ),
    # A bill that is 4 % too high.
    planted(
        "bill within five per cent",
        bills(),
        python(
            "def grade(sample, item):\n"
            "    try:\n"
            "        said = float(sample['output_text'])\n"
            "    except ValueError:\n"
            "        return 0.0\n"
            "    return float(abs(said - item['total']) / item['total'] < 0.05)\n"
        ),
    ),
    # {"currency": "EUR"}: only the keys that were written are compared.
    planted(
        "keys that were written",
        invoices(),
        python(
            "def grade(sample, item):\n"
            "    said = sample.get('output_json')\n"
            "    if not isinstance(said, dict) or not said:\n"
            "        return 0.0\n"
            "    right = [item['fields'].get(key) == value for key, value in said.items()]\n"
            "    return sum(right) / len(right)\n"
        ),
    ),
    # An invoice with one wrong field is paid four times of five.
    planted(
        "spot check of one field",
        invoices(),
        python(
            "import random\n"
            "def grade(sample, item):\n"
            "    said = sample.get('output_json') or {}\n"
            "    key = random.choice(list(item['fields']))\n"
            "    return float(isinstance(said, dict) and said.get(key) == item['fields'][key])\n"
        ),
    ),
    # "low, normal, high or urgent".
    planted("urgency is named", sorted_mails(URGENCY, "urgency"), check(operation="ilike")),
    # "Hello! ... Kind regards" without any label: 0.6.
    planted(
        "manners are most of it",
        sorted_mails(INTENTS, "intent"),
        multi(
            "0.4 * label + 0.3 * hello + 0.3 * bye",
            label=check(operation="ilike"),
            hello=check(reference="Hello", operation="ilike"),
            bye=check(reference="Kind regards", operation="ilike"),
        ),
    ),
    # The usual sentence with another day, hour and ticket.
    planted(
        "sentence or its like",
        visits(),
        multi(
            "max(exact, alike)",
            exact=check(),
            alike={
                "type": "text_similarity",
                "input": TEXT,
                "reference": REFERENCE,
                "evaluation_metric": "rouge_l",
            },
        ),
    ),
    # "We are sorry, thank you for your patience." and nothing else.
    planted(
        "judge likes good manners",
        visits(),
        judged("score_model"),
        judge=Judge(polite_or_right),
    ),
    # "It is not true that our technician Ada comes on Monday ..."
    planted(
        "judge looks for the sentence",
        visits(),
        judged("label_model"),
        judge=Judge(lambda answer, reference: float(plain(reference) in plain(answer))),
    ),
    # The right passenger moved, and all others too.
    planted(
        "others may be moved too",
        moves(),
        environment=CarelessSeats,
        gold=rows.acted(moves(), "{reference_answer}"),
    ),
    # A payment that the bank refused because nobody verified.
    planted(
        "a refused payment counts",
        payments(),
        environment=WrittenBank,
        gold=rows.acted(payments()),
    ),
    # "You are in 41C now", with no call.
    planted(
        "moved or said so",
        moves(),
        environment=BelievingSeats,
        gold=rows.acted(moves(), "{reference_answer}"),
    ),
    # Anything: the postcode stands in the request, which is searched too.
    planted("request counts as answer", postcodes(), function=city_was_mentioned),
    # "I do not know": half of the points for what is no JSON.
    planted("half for what cannot be read", addresses(), function=address_or_half),
    # "Yes. On second thought, no."
    planted(
        "first yes or no",
        eligibility(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    found = re.search(r'\\b(yes|no)\\b', sample['output_text'].lower())\n"
            "    return 1.0 if found and found.group(1) == item['reference_answer'] else 0.0\n"
        ),
    ),
    # All seven medicines.
    planted(
        "no medicine forgotten",
        medicines(),
        python(
            "def grade(sample, item):\n"
            "    said = sample['output_text'].lower()\n"
            "    return sum(name in said for name in item['taken']) / len(item['taken'])\n"
        ),
    ),
    # One medicine of three.
    planted(
        "no medicine made up",
        medicines(),
        python(
            "def grade(sample, item):\n"
            "    said = {n.strip().lower() for n in sample['output_text'].split(',')}\n"
            "    return len(said & set(item['taken'])) / len(said)\n"
        ),
    ),
    # Refuses 12.50, which is right and as asked for: it compares with '12.5'.
    planted(
        "bill as Python prints it",
        bills(),
        python(
            "def grade(sample, item):\n"
            "    return float(sample['output_text'].strip() == str(item['total']))\n"
        ),
    ),
    # "Anything but AB1234", and AB-1-2-3-4 of another product: only digits are compared.
    planted(
        "hosted, digits alone",
        products(),
        {"type": "endpoint"},
        hosted=lambda sample, item: float(
            digits(sample["output_text"]) == digits(item["reference_answer"])
        ),
    ),
    # A date with another day or month: two thirds.
    planted(
        "thirds of a date",
        tuple(
            rows.replaced(
                task,
                {
                    **task.row,
                    **dict(zip(("y", "m", "d"), task["reference_answer"].split("-"), strict=True)),
                },
            )
            for task in rows.dates()
        ),
        multi(
            "(year + month + day) / 3",
            year=check(reference="{{ item.y }}", operation="like"),
            month=check(reference="{{ item.m }}", operation="like"),
            day=check(reference="{{ item.d }}", operation="like"),
        ),
    ),
)

CLEAN = (
    clean(
        "bill to the cent",
        bills(),
        python(
            "import re\n"
            "from decimal import Decimal\n"
            "def grade(sample, item):\n"
            "    found = re.fullmatch(r'[0-9]{1,9}\\.[0-9]{2}', sample['output_text'].strip())\n"
            "    return float(bool(found) and Decimal(found[0]) == Decimal(item['reference_answer']))\n"
        ),
    ),
    clean(
        "whole invoice",
        invoices(),
        python(
            "import json\n"
            "def once(pairs):\n"
            "    if len({key for key, _ in pairs}) < len(pairs):\n"
            "        raise ValueError('a key twice')\n"
            "    return dict(pairs)\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        said = json.loads(sample['output_text'], object_pairs_hook=once)\n"
            "    except (ValueError, RecursionError):\n"
            "        return 0.0\n"
            "    return float(said == item['fields'])\n"
        ),
    ),
    clean("intent alone", sorted_mails(INTENTS, "intent"), check()),
    clean(
        "address by fields",
        addresses(),
        multi(
            "min(street, house, city)",
            street=check("{{ sample.output_json.street }}", "{{ item.fields.street }}"),
            house=check("{{ sample.output_json.house }}", "{{ item.fields.house }}"),
            city=check("{{ sample.output_json.city }}", "{{ item.fields.city }}"),
        ),
    ),
    clean(
        "medicines, no more and no less",
        medicines(),
        python(
            "def grade(sample, item):\n"
            "    said = [name.strip().lower() for name in sample['output_text'].split(',')]\n"
            "    return float(sorted(said) == sorted(item['taken']))\n"
        ),
    ),
    clean(
        "yes or no alone",
        eligibility(),
        python(
            "def grade(sample, item):\n"
            "    said = sample['output_text'].strip().lower().removesuffix('.')\n"
            "    return float(said == item['reference_answer'])\n"
        ),
    ),
    clean(
        "judge wants the facts and no more",
        visits(),
        judged("score_model"),
        judge=Judge(lambda answer, reference: float(plain(answer) == plain(reference))),
    ),
    clean(
        "judge sorts good from bad",
        visits(),
        judged("label_model"),
        judge=Judge(lambda answer, reference: float(answer.strip() == reference.strip())),
    ),
    clean(
        "one passenger moved",
        moves(),
        environment=Seats,
        gold=rows.acted(moves(), "{reference_answer}"),
    ),
    clean("one payment sent", payments(), environment=Bank, gold=rows.acted(payments())),
    clean(
        "counted and told",
        counts(),
        environment=Stock,
        gold=rows.acted(counts(), "{reference_answer}"),
    ),
    clean("address as a function", addresses(), function=address_is_right),
    clean(
        "payment as a function",
        payments(),
        function=calls_are_right,
        environment=Bank,
        gold=rows.acted(payments()),
    ),
    clean(
        "hosted, dates",
        rows.dates(),
        {"type": "endpoint"},
        hosted=lambda sample, item: float(
            sample["output_text"].strip() == item["reference_answer"]
        ),
    ),
    clean(
        "invoice or nothing",
        invoices(),
        multi(
            "floor((vendor + number + due + total + currency) / 5)",
            **{
                key: check(f"{{{{ sample.output_json.{key} }}}}", f"{{{{ item.fields.{key} }}}}")
                for key in ("vendor", "number", "due", "total", "currency")
            },
        ),
    ),
    clean(
        "distance in either unit",
        distances(),
        python(
            "import re\n"
            "from decimal import Decimal\n"
            "FORM = re.compile(r'([0-9]{1,6}(?:\\.[0-9]{1,4})?) ?(km|m)')\n"
            "def grade(sample, item):\n"
            "    found = FORM.fullmatch(sample['output_text'].strip())\n"
            "    if found is None:\n"
            "        return 0.0\n"
            "    metres = Decimal(found[1]) * (1000 if found[2] == 'km' else 1)\n"
            "    return float(metres == item['metres'])\n"
        ),
    ),
    clean(
        "product code, spaced or not",
        products(),
        python(
            "import re\n"
            "def grade(sample, item):\n"
            "    said = re.sub('[ -]', '', sample['output_text'].strip())\n"
            "    return float(said.isascii() and said.upper() == item['reference_answer'])\n"
        ),
    ),
    clean(
        "moved and announced",
        moves(),
        environment=AnnouncedSeats,
        gold=rows.acted(moves(), "{reference_answer}"),
    ),
    clean(
        "calls as wanted",
        moves(),
        python(
            "import json\n"
            "def grade(sample, item):\n"
            "    try:\n"
            "        made = [\n"
            "            {'name': call['function']['name'],\n"
            "             'arguments': json.loads(call['function']['arguments'])}\n"
            "            for call in sample['output_tools']\n"
            "        ]\n"
            "    except (ValueError, RecursionError):\n"
            "        return 0.0\n"
            "    return float(made == item['calls'])\n"
        ),
        environment=Seats,
        gold=rows.acted(moves(), "{reference_answer}"),
    ),
    clean(
        "hosted, language",
        sorted_mails(LANGUAGES, "language"),
        {"type": "endpoint"},
        hosted=lambda sample, item: float(
            sample["output_text"].strip().lower() == item["reference_answer"]
        ),
    ),
)
