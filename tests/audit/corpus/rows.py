"""Rows of the kinds that agents are trained on, drawn from a seed: no large files."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import StopReason, Trajectory, Turn

ROWS = 40

NAMES = ("Ada", "Bruno", "Chen", "Dora", "Elif", "Farid", "Greta", "Hugo", "Iris", "Jonas")
GOODS = ("lamp", "kettle", "chair", "radio", "vase", "shelf", "mug", "rug", "clock", "tent")
CITIES = ("Oslo", "Lima", "Turin", "Kyoto", "Quito", "Leeds", "Basel", "Porto", "Gdansk", "Bergen")
LABELS = ("billing", "shipping", "returns", "account", "technical")
STATUSES = ("pending", "packed", "shipped", "delivered", "cancelled")

_TICKETS = {
    "billing": ("I was charged twice for my {g}", "The invoice for the {g} shows a wrong amount"),
    "shipping": ("My {g} has not arrived in {c} yet", "Can you send the {g} to {c} instead?"),
    "returns": ("The {g} broke, how do I send it back?", "I want my money back for the {g}"),
    "account": ("I cannot log in to see my {g}", "Please change the name on my profile to {n}"),
    "technical": ("The app crashes when I open the {g}", "The page of the {g} stays blank"),
}


def task(number: int, kind: str, ask: str, row: Mapping[str, Any], **fields: Any) -> Task:
    """Make a row with one message of the user."""
    messages = (Message(role="user", content=ask),)
    shown = [{"role": "user", "content": ask}]
    return Task(
        id=f"{kind}-{number:03}", messages=messages, row={"messages": shown, **row}, **fields
    )


def replaced(task: Task, row: Mapping[str, Any], **fields: Any) -> Task:
    """Return the task with another row."""
    return replace(task, row=row, **fields)


def asking(task: Task, ask: str) -> Task:
    """Return the task with another message of the user."""
    row = {**task.row, "messages": [{"role": "user", "content": ask}]}
    return replace(task, row=row, messages=(Message(role="user", content=ask),))


def _drawn(kind: str, make: Callable[[random.Random, int], Task]) -> tuple[Task, ...]:
    rng = random.Random(f"corpus-{kind}")
    return tuple(make(rng, number) for number in range(ROWS))


def arithmetic(style: str = "{n}") -> tuple[Task, ...]:
    """Word problems with a whole number; `style` is how the answer must be written."""

    def make(rng: random.Random, number: int) -> Task:
        crates, each, sold = rng.randint(12, 89), rng.randint(13, 97), rng.randint(3, 150)
        left = crates * each - sold
        name, good = rng.choice(NAMES), rng.choice(GOODS)
        ask = (
            f"{name} has {crates} crates with {each} {good}s each and sells {sold} {good}s. "
            f"How many are left?"
        )
        return task(number, "sum", ask, {"reference_answer": style.format(n=left), "left": left})

    return _drawn("arithmetic", make)


def prices(style: str = "{n:.2f}") -> tuple[Task, ...]:
    """Sums of money with cents."""

    def make(rng: random.Random, number: int) -> Task:
        first, second = rng.randint(1050, 98999), rng.randint(1050, 48999)
        total = (first + second) / 100
        ask = f"A {rng.choice(GOODS)} for {first / 100:.2f} and one for {second / 100:.2f}: the total?"
        return task(
            number, "price", ask, {"reference_answer": style.format(n=total), "total": total}
        )

    return _drawn("prices", make)


def extraction() -> tuple[Task, ...]:
    """Mails with three facts to write as a JSON object."""

    def make(rng: random.Random, number: int) -> Task:
        fields = {
            "order_id": f"W{rng.randint(10000, 99999)}",
            "city": rng.choice(CITIES),
            "amount": rng.randint(11, 999),
        }
        ask = (
            f"Write order_id, city and amount as JSON: Hello, {rng.choice(NAMES)} here. About "
            f"{fields['order_id']}, sent to {fields['city']}: I paid {fields['amount']} euros for it."
        )
        return task(
            number, "extract", ask, {"reference_answer": json.dumps(fields), "fields": fields}
        )

    return _drawn("extraction", make)


def tickets(labels: Sequence[str] = LABELS) -> tuple[Task, ...]:
    """Requests to sort; `labels` are dealt in turn, so their shares are as given."""

    def make(rng: random.Random, number: int) -> Task:
        label = labels[number % len(labels)]
        text = rng.choice(_TICKETS[label]).format(
            g=rng.choice(GOODS), c=rng.choice(CITIES), n=rng.choice(NAMES)
        )
        # A number keeps requests of the same words apart, as in any real inbox.
        ask = f"Sort ticket {rng.randint(1000, 9999)}: {text}."
        return task(number, "ticket", ask, {"reference_answer": label})

    return _drawn("tickets", make)


def replies() -> tuple[Task, ...]:
    """Questions about an order, answered by a sentence."""

    def make(rng: random.Random, number: int) -> Task:
        order, status, city = (
            f"W{rng.randint(10000, 99999)}",
            rng.choice(STATUSES),
            rng.choice(CITIES),
        )
        day = f"{rng.randint(1, 28)} {rng.choice(('March', 'April', 'May', 'June'))}"
        ask = f"Where is my order {order}? {rng.choice(NAMES)}"
        answer = f"Your order {order} is {status} and reaches {city} on {day}."
        return task(
            number,
            "reply",
            ask,
            {"reference_answer": answer, "order_id": order, "status": status, "day": day},
        )

    return _drawn("replies", make)


def notes() -> tuple[Task, ...]:
    """Longer texts to condense; summaries differ in every word that matters."""

    subjects = ("The courier", "A neighbour", "The warehouse", "Our driver", "The depot manager")
    verbs = ("lost", "returned", "damaged", "delivered", "misplaced", "repaired", "weighed")
    reasons = ("a flooded road", "missing papers", "a strike", "heavy snow", "a wrong label")

    def make(rng: random.Random, number: int) -> Task:
        who, verb, why = rng.choice(subjects), rng.choice(verbs), rng.choice(reasons)
        count, good, city = rng.randint(2, 60), rng.choice(GOODS), rng.choice(CITIES)
        summary = f"{who} {verb} {count} {good}s near {city} because of {why}."
        ask = (
            f"Condense: It was a long week in {city}. Because of {why}, as {rng.choice(NAMES)} "
            f"wrote, {who.lower()} {verb} not one but {count} of the {good}s."
        )
        return task(number, "note", ask, {"reference_answer": summary})

    return _drawn("notes", make)


def queries() -> tuple[Task, ...]:
    """Questions to write as SQL."""

    def make(rng: random.Random, number: int) -> Task:
        column = rng.choice(("name", "email", "city", "total"))
        city, least = rng.choice(CITIES), rng.randint(10, 990)
        ask = f"SQL for the {column} of customers in {city} with a total above {least}."
        query = f"SELECT {column} FROM customers WHERE city = '{city}' AND total > {least}"
        return task(number, "query", ask, {"reference_answer": query})

    return _drawn("queries", make)


def choices() -> tuple[Task, ...]:
    """Multiple choice with four letters, dealt evenly."""

    def make(rng: random.Random, number: int) -> Task:
        letter = "ABCD"[number % 4]
        left, right = rng.randint(11, 99), rng.randint(11, 99)
        options = [left * right + offset for offset in rng.sample(range(2, 60), 4)]
        options["ABCD".index(letter)] = left * right
        shown = " ".join(f"{key}) {value}" for key, value in zip("ABCD", options, strict=True))
        return task(
            number, "choice", f"{left} times {right}? {shown}", {"reference_answer": letter}
        )

    return _drawn("choices", make)


def codes() -> tuple[Task, ...]:
    """Sets of codes that apply to a case, out of twelve."""

    every = [f"C{number:02}" for number in range(1, 13)]

    def make(rng: random.Random, number: int) -> Task:
        chosen = sorted(rng.sample(every, rng.randint(2, 5)))
        ask = f"Which codes of C01 to C12 hold for file {rng.randint(100, 999)}? " + " ".join(
            f"{code}: {'yes' if code in chosen else 'no'}" for code in rng.sample(every, 12)
        )
        return task(number, "codes", ask, {"reference_answer": ", ".join(chosen), "codes": chosen})

    return _drawn("codes", make)


def countdowns() -> tuple[Task, ...]:
    """Four numbers and a target to reach with each of them once."""

    def make(rng: random.Random, number: int) -> Task:
        a, b, c, d = (rng.randint(2, 40) for _ in range(4))
        target = a * b + c - d
        ask = f"Use {a}, {b}, {c}, {d} once each with + - * / to make {target}."
        row = {"reference_answer": f"{a} * {b} + {c} - {d}", "numbers": [a, b, c, d]}
        return task(number, "countdown", ask, {**row, "target": target})

    return _drawn("countdowns", make)


def dates() -> tuple[Task, ...]:
    """Dates in words to write as YYYY-MM-DD."""
    months = ("January", "March", "April", "June", "August", "October", "December")
    numbers = {"January": 1, "March": 3, "April": 4, "June": 6, "August": 8, "October": 10}

    def make(rng: random.Random, number: int) -> Task:
        day, month, year = rng.randint(1, 28), rng.choice(months), rng.randint(1990, 2030)
        ask = f"Write as YYYY-MM-DD: the {day}. of {month} in {year}."
        answer = f"{year}-{numbers.get(month, 12):02}-{day:02}"
        return task(number, "date", ask, {"reference_answer": answer})

    return _drawn("dates", make)


TOOLS = (
    ToolSpec(
        name="get_order",
        description="Look an order up.",
        parameters={
            "type": "object",
            "properties": {"order_id": {"type": "string"}},
            "required": ["order_id"],
        },
    ),
    ToolSpec(
        name="refund",
        description="Pay money back.",
        parameters={
            "type": "object",
            "properties": {"order_id": {"type": "string"}, "amount": {"type": "number"}},
            "required": ["order_id", "amount"],
        },
    ),
    ToolSpec(
        name="cancel",
        description="Cancel an order.",
        parameters={
            "type": "object",
            "properties": {"order_id": {"type": "string"}},
            "required": ["order_id"],
        },
    ),
)


def errands(*, idle: bool = False) -> tuple[Task, ...]:
    """Requests that need tools; with `idle` every third one asks for no call at all."""

    def make(rng: random.Random, number: int) -> Task:
        order, amount = f"W{rng.randint(10000, 99999)}", rng.randint(11, 480)
        verb = "refund" if rng.random() < 0.5 else "cancel"
        ask = f"Please {verb} my order {order}." + (
            f" It was {amount}." if verb == "refund" else ""
        )
        arguments = {"order_id": order, **({"amount": amount} if verb == "refund" else {})}
        calls = [
            {"name": "get_order", "arguments": {"order_id": order}},
            {"name": verb, "arguments": arguments},
        ]
        if idle and number % 3 == 0:
            ask, calls = f"Thanks for your help with {order}, that is all!", []
        row = {
            "orders": {order: amount, f"W{rng.randint(10000, 99999)}": rng.randint(11, 480)},
            "order_id": order,
            "verb": verb if calls else "",
            "amount": amount,
            "calls": calls,
        }
        return task(number, "errand", ask, row, tools=TOOLS)

    return _drawn("errands", make)


def lookups() -> tuple[Task, ...]:
    """Questions that one look-up answers."""

    def make(rng: random.Random, number: int) -> Task:
        order, paid = f"W{rng.randint(10000, 99999)}", rng.randint(11, 9999)
        row = {
            "orders": {order: paid, f"W{rng.randint(10000, 99999)}": rng.randint(11, 9999)},
            "order_id": order,
            "verb": "",
            "reference_answer": f"You paid {paid} euros for {order}.",
            "calls": [{"name": "get_order", "arguments": {"order_id": order}}],
        }
        return task(number, "lookup", f"What did I pay for {order}?", row, tools=TOOLS)

    return _drawn("lookups", make)


def acted(tasks: Sequence[Task], closing: str = "Done.") -> dict[str, Trajectory]:
    """Rollouts that make the calls a row asks for, as an expert would; `closing` may use its keys."""
    return {task.id: _rollout(task, closing.format(**task.row)) for task in tasks}


def _rollout(task: Task, closing: str) -> Trajectory:
    messages = [
        Message(
            role="assistant",
            tool_calls=(
                ToolCall(
                    id=f"call_{number}", name=call["name"], arguments=json.dumps(call["arguments"])
                ),
            ),
        )
        for number, call in enumerate(task["calls"], start=1)
    ]
    return Trajectory(
        id=f"trace_{task.id}",
        task_id=task.id,
        model="expert",
        spec_hash="",
        seed=0,
        prompt=task.messages,
        turns=tuple(
            Turn(
                observation_ids=(),
                action_ids=(),
                behavior_logprobs=(),
                first_version=0,
                last_version=0,
                message=message,
            )
            for message in (*messages, Message(role="assistant", content=closing))
        ),
        stop_reason=StopReason.FINISHED,
    )
