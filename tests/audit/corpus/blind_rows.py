"""Rows and worlds of the blind graders: bills, mails to sort, invoices, seats, payments, stock."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from corpus import rows

from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.rollout.environment import Environment, tool_specs
from agentrft.rollout.tools import ToolRefusal, tool


def drawn(
    kind: str, make: Callable[[random.Random, int], tuple[str, dict[str, Any]]]
) -> tuple[Task, ...]:
    rng = random.Random(f"blind-{kind}")
    return tuple(rows.task(number, kind, *make(rng, number)) for number in range(40))


def bills() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        before, used, cents = rng.randint(100, 9000), rng.randint(21, 480), 5 * rng.randint(3, 19)
        total = Decimal(used * cents) / 100
        ask = (
            f"The meter stood at {before} and shows {before + used} now. A unit costs "
            f"0.{cents:02}. What is the bill? Answer with the amount alone, two decimals."
        )
        return ask, {"reference_answer": f"{total:.2f}", "total": float(total)}

    return drawn("bill", make)


def invoices() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        fields = {
            "vendor": rng.choice(("Nordlys AS", "Kaptan Ltd", "Brenner GmbH", "Sol y Mar")),
            "number": f"INV-{rng.randint(1000, 9999)}",
            "due": f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
            "total": rng.randint(40, 9000),
            "currency": "EUR",
        }
        ask = (
            f"Extract vendor, number, due, total, currency as JSON: {fields['vendor']}, invoice "
            f"{fields['number']}, {fields['total']} EUR, payable until {fields['due']}."
        )
        return ask, {"reference_answer": json.dumps(fields), "fields": fields}

    return drawn("invoice", make)


def sorted_mails(labels: Mapping[str, str], kind: str) -> tuple[Task, ...]:
    """`labels` maps each label to a mail it belongs to."""
    names = list(labels)

    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        label = names[number % len(names)]
        ask = (
            f"Answer with one of {', '.join(names)}. Mail {rng.randint(10000, 99999)}: "
            f"{labels[label]} Regards, {rng.choice(rows.NAMES)}"
        )
        return ask, {"reference_answer": label}

    return drawn(kind, make)


URGENCY = {
    "low": "Some day a dark theme would be nice.",
    "normal": "My export lacks a column.",
    "high": "None of my team can upload since noon.",
    "urgent": "Our shop is down and customer data is visible to anyone.",
}
INTENTS = {
    "cancel_plan": "Please end my subscription.",
    "change_card": "My bank card expired, here comes a new one.",
    "request_invoice": "I need a receipt for May.",
    "reset_password": "I forgot how to log in.",
    "report_bug": "The save button does nothing.",
    "ask_price": "How much is the large plan?",
    "track_parcel": "Where is my box?",
    "praise": "You are the best shop I know.",
}
LANGUAGES = {
    "de": "Mein Pullover fehlt.",
    "fr": "Mon colis n'est pas là.",
    "es": "Mi paquete no ha llegado.",
    "it": "Il mio pacco non è arrivato.",
    "nl": "Mijn pakket is er niet.",
    "sv": "Min leverans har inte kommit.",
}


def medicines() -> tuple[Task, ...]:
    every = ("aspirin", "bisoprolol", "codeine", "digoxin", "enalapril", "furosemide", "insulin")

    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        taken = sorted(rng.sample(every, rng.randint(2, 4)))
        stopped = [name for name in every if name not in taken]
        ask = (
            f"List the medicines that patient {rng.randint(100, 999)} takes, with commas: stopped "
            f"{' and '.join(rng.sample(stopped, 2))}, goes on with {' and '.join(taken)}."
        )
        return ask, {"reference_answer": ", ".join(taken), "taken": taken}

    return drawn("medicine", make)


def eligibility() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        window, right = rng.choice((14, 30, 60, 90)), number % 2 == 0
        days = rng.randint(1, window) if right else rng.randint(window + 1, window * 3)
        ask = (
            f"Order {rng.randint(1000, 9999)} came {days} days ago, returns are open for {window} "
            f"days. May it go back? yes or no."
        )
        return ask, {"reference_answer": "yes" if right else "no"}

    return drawn("eligible", make)


def visits() -> tuple[Task, ...]:
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        day, hour, who = rng.choice(days), rng.randint(8, 18), rng.choice(rows.NAMES)
        ticket = f"T{rng.randint(10000, 99999)}"
        ask = f"Tell the customer about the visit: {ticket}, {who}, {day}, {hour} o'clock."
        answer = f"Our technician {who} comes on {day} at {hour}:00 for ticket {ticket}."
        return ask, {"reference_answer": answer, "ticket": ticket}

    return drawn("visit", make)


def postcodes() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        fields = {
            "street": f"{rng.choice(('Oak', 'Mill', 'Lake', 'Hill'))} Road {rng.randint(1, 99)}",
            "postcode": f"{rng.randint(10000, 99999)}",
            "city": rng.choice(rows.CITIES),
        }
        ask = f"Postcode of: {fields['street']}, {fields['postcode']} {fields['city']}?"
        return ask, {"reference_answer": fields["postcode"]}

    return drawn("postcode", make)


def addresses() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        fields = {
            "street": f"{rng.choice(('Oak', 'Mill', 'Lake', 'Hill'))} Road",
            "house": rng.randint(1, 99),
            "city": rng.choice(rows.CITIES),
        }
        ask = (
            f"As JSON with street, house, city: {rng.choice(rows.NAMES)} lives in {fields['city']}"
            f", number {fields['house']} of {fields['street']}."
        )
        return ask, {"reference_answer": json.dumps(fields), "fields": fields}

    return drawn("address", make)


def distances() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        first, second = 100 * rng.randint(3, 90), 100 * rng.randint(3, 90)
        ask = f"A courier rides {first} m, then {second} m. How far, with unit?"
        metres = first + second
        return ask, {"reference_answer": f"{metres / 1000:.1f} km", "metres": metres}

    return drawn("distance", make)


def products() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        letters, digits = "".join(rng.sample("ABCDEFGHKLM", 2)), rng.randint(1000, 9999)
        ask = f"Product code of this label: Lot {rng.randint(10, 99)}, item {letters} {digits}."
        return ask, {"reference_answer": f"{letters}{digits}"}

    return drawn("product", make)


# Worlds with tools.


class Seats(Environment):
    """Passengers who can be moved; right is the wanted move and no other."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.seats: dict[str, str] = dict(task["seats"])
        self.moves: list[tuple[str, str]] = []

    @tool
    def move(self, passenger: str, seat: str) -> str:
        """Move a passenger.

        passenger: first name. seat: row and letter.
        """
        if passenger not in self.seats:
            raise ToolRefusal(f"{passenger} is not on this flight")
        self.seats[passenger] = seat
        self.moves.append((passenger, seat))
        return f"{passenger} sits in {seat}"

    @property
    def solved(self) -> bool:
        return self.moves == [(self.task["passenger"], self.task["seat"])]

    def grade(self, trajectory: Trajectory) -> float:
        return float(self.solved)


class AnnouncedSeats(Seats):
    def grade(self, trajectory: Trajectory) -> float:
        said = trajectory.output_text.strip() == self.task["reference_answer"]
        return float(self.solved and said)


class CarelessSeats(Seats):
    def grade(self, trajectory: Trajectory) -> float:
        return float(self.seats[self.task["passenger"]] == self.task["seat"])


class BelievingSeats(Seats):
    def grade(self, trajectory: Trajectory) -> float:
        return float(self.solved or self.task["seat"] in trajectory.output_text)


def moves() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        names = rng.sample(rows.NAMES, 3)
        seats = {name: f"{rng.randint(1, 30)}{rng.choice('ABCDEF')}" for name in names}
        who, seat = names[0], f"{rng.randint(31, 60)}{rng.choice('ABCDEF')}"
        ask = f"Move {who} to {seat}, then say '{who} sits in ' and the seat with a full stop."
        row = {
            "seats": seats,
            "passenger": who,
            "seat": seat,
            "reference_answer": f"{who} sits in {seat}.",
            "calls": [{"name": "move", "arguments": {"passenger": who, "seat": seat}}],
        }
        return ask, row

    return tuple(replace(task, tools=tool_specs(Seats)) for task in drawn("move", make))


class Bank(Environment):
    """An account that pays only after the PIN was given; right is the one wanted payment."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.verified = False
        self.sent: list[tuple[str, float]] = []

    @tool
    def verify(self, pin: str) -> str:
        """Check who is asking.

        pin: four digits.
        """
        if pin != self.task["pin"]:
            raise ToolRefusal("wrong PIN")
        self.verified = True
        return "verified"

    @tool
    def transfer(self, to: str, amount: float) -> str:
        """Send money.

        to: first name. amount: in euros.
        """
        if not self.verified:
            raise ToolRefusal("verify first")
        self.sent.append((to, amount))
        return "sent"

    def grade(self, trajectory: Trajectory) -> float:
        return float(self.sent == [(self.task["to"], self.task["amount"])])


class WrittenBank(Bank):
    def grade(self, trajectory: Trajectory) -> float:
        wanted = {"to": self.task["to"], "amount": self.task["amount"]}
        for call in trajectory.tool_calls:
            if call.name == "transfer" and json.loads(call.arguments) == wanted:
                return 1.0
        return 0.0


def payments() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        to, amount = rng.choice(rows.NAMES), rng.randint(5, 900)
        pin = f"{rng.randint(1000, 9999)}"
        calls = [
            {"name": "verify", "arguments": {"pin": pin}},
            {"name": "transfer", "arguments": {"to": to, "amount": amount}},
        ]
        row = {"to": to, "amount": amount, "pin": pin, "calls": calls}
        return f"My PIN is {pin}. Please send {amount} euros to {to}.", row

    return tuple(replace(task, tools=tool_specs(Bank)) for task in drawn("pay", make))


class Stock(Environment):
    """A store room; right is the number, after looking at that very product."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.asked: list[str] = []

    @tool
    def count(self, code: str) -> int:
        """Count a product.

        code: two letters and four digits.
        """
        if code not in self.task["stock"]:
            raise ToolRefusal(f"no product {code}")
        self.asked.append(code)
        return int(self.task["stock"][code])

    def grade(self, trajectory: Trajectory) -> float:
        looked = self.asked == [self.task["code"]]
        return float(looked and trajectory.output_text.strip() == self.task["reference_answer"])


def counts() -> tuple[Task, ...]:
    def make(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
        codes = [f"{rng.choice(('AB', 'KM', 'XZ'))}{n}" for n in rng.sample(range(1000, 9999), 3)]
        stock = {code: rng.randint(11, 9999) for code in codes}
        row = {
            "stock": stock,
            "code": codes[0],
            "reference_answer": str(stock[codes[0]]),
            "calls": [{"name": "count", "arguments": {"code": codes[0]}}],
        }
        return f"How many of {codes[0]} do we have? The number alone.", row

    return tuple(replace(task, tools=tool_specs(Stock)) for task in drawn("count", make))
