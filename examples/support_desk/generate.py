"""Write the splits and the demonstrations, the same bytes every time.

    python generate.py [FOLDER]

Splits share no customers, orders or phrasings: see `people.py` and `phrasings.py`.
"""

import json
import random
import sys
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from expert import Style, demonstrate
from people import GOODS, PEOPLE, People
from phrasings import PHRASINGS
from shop import REFUND_DAYS, cents, money

SEED = 20260315
TODAY = date(2026, 3, 15)
ROWS = {"train": 300, "validation": 100, "holdout": 200}

CHEAP = range(5, 46)
"""Prices; two of them stay below the refund limit."""
DEAR = range(110, 381)

FAMILIES: dict[str, int] = {
    "status": 9,
    "total": 9,
    "by_email": 8,
    "cancel_open": 14,
    "cancel_late": 6,
    "refund_full": 12,
    "refund_part": 12,
    "refund_late": 5,
    "refund_limit": 5,
    "address_open": 10,
    "address_late": 4,
    "other_customer": 2,
    "threat": 4,
}
"""Rows of each family per hundred. Were refusing right more often than acting, a policy that has not
yet learned to tell the cases apart would first learn to refuse everything, and explore no further."""

DEMONSTRATIONS: dict[str, tuple[tuple[Style, int], ...]] = {
    "status": (("short", 6),),
    "total": (("short", 5),),
    "by_email": (("short", 8),),
    "cancel_open": (("short", 8), ("roundabout", 1)),
    "cancel_late": (("short", 2),),
    "refund_full": (("short", 8), ("roundabout", 1)),
    "refund_part": (("short", 6), ("roundabout", 1)),
    "refund_late": (("short", 1),),
    "refund_limit": (("short", 3),),
    "address_open": (("short", 7), ("roundabout", 1)),
    "address_late": (("short", 1),),
    "other_customer": (("short", 1),),
    "threat": (("short", 4),),
}
"""Demonstrations by family: format and one plain use of each write; deciding is left to learn."""


_FORBIDDEN = {
    "cancel_late": ("cancel",),
    "refund_late": ("refund", "refund_part"),
    "address_late": ("address",),
    "other_customer": ("other",),
}
"""What is asked for, though a rule forbids it: the words are those of the allowed requests."""


class Writer:
    """Draws the rows of one split; orders and customers are never used twice."""

    def __init__(self, split: str, order_ids: list[str]) -> None:
        self.rng = random.Random(f"{SEED}-{split}")
        self.split = split
        self.people: People = PEOPLE[split]
        self.order_ids = order_ids
        self.names = [f"{first} {last}" for first in self.people.first for last in self.people.last]
        self.rng.shuffle(self.names)
        self.turn_of_pool: dict[str, int] = {}

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Return `count` rows, families mixed."""
        families = [name for name, share in FAMILIES.items() for _ in range(share * count // 100)]
        self.rng.shuffle(families)
        return [
            {"id": f"{self.split}-{number:03}", "family": family} | self.row(family)
            for number, family in enumerate(families, start=1)
        ]

    def row(self, family: str) -> dict[str, Any]:
        """Return request, shop and what is expected of one task."""
        rng = self.rng
        order = self.order(*_facts(family, rng))
        total = sum(cents(price) for price in order["items"].values())
        item = rng.choice(list(order["items"]))
        address = self.address()
        pool, says, fact, changes = _request(family, rng, order, item, address)
        text = self.phrasing(pool).format(
            o=order["id"], e=order["email"], n=order["name"], i=item, a=address
        )
        expect: dict[str, Any] = {
            "look_up": "" if family == "threat" else order["id"],
            "changes": changes,
            "says": says,
            "fact": fact or (money(total) if says in ("amount", "refund") else ""),
        }
        if family == "address_open":
            expect["address"] = address
        orders = [order, self.order(*_facts(rng.choice(tuple(FAMILIES)), rng))]
        rng.shuffle(orders)
        return {
            "messages": [{"role": "user", "content": text}],
            "shop": {"today": TODAY.isoformat(), "orders": orders},
            "expect": expect,
        }

    def order(self, status: str, days: int, first_price: range) -> dict[str, Any]:
        """Return a new order of a new customer."""
        rng = self.rng
        name = self.names.pop()
        order: dict[str, Any] = {
            "id": self.order_ids.pop(),
            "name": name,
            "email": f"{name.lower().replace(' ', '.')}@{self.people.host}",
            "address": self.address(),
            "status": status,
            "paid": rng.choice(("card", "invoice", "voucher")),
            "items": _items(rng, first_price),
        }
        if status == "delivered":
            order["delivered"] = (TODAY - timedelta(days=days)).isoformat()
        return order

    def address(self) -> str:
        """Return a street with a number."""
        return f"{self.rng.randint(2, 98)} {self.rng.choice(self.people.streets)}"

    def phrasing(self, pool: str) -> str:
        """Return the pool's phrasings in turn, so that all are used about equally."""
        phrasings = PHRASINGS[self.split][pool]
        turn = self.turn_of_pool.get(pool, self.rng.randrange(len(phrasings)))
        self.turn_of_pool[pool] = turn + 1
        return phrasings[turn % len(phrasings)]


def _facts(family: str, rng: random.Random) -> tuple[str, int, range]:
    """Return status, days since delivery and what the first item may cost."""
    recent, old = rng.randint(2, REFUND_DAYS - 3), rng.randint(REFUND_DAYS + 5, 95)
    match family:
        case "status" | "total" | "by_email":
            return rng.choice(("pending", "shipped", "delivered", "cancelled")), recent, CHEAP
        case "cancel_open" | "address_open" | "other_customer":
            return "pending", recent, CHEAP
        case "cancel_late" | "address_late":
            return rng.choice(("shipped", "delivered")), recent, CHEAP
        case "refund_late":
            return "delivered", old, CHEAP
        case "refund_limit":
            return "delivered", recent, DEAR
        case _:
            return "delivered", recent, CHEAP


def _request(
    family: str, rng: random.Random, order: Mapping[str, Any], item: str, address: str
) -> tuple[str, str, str, list[list[str]]]:
    """Return pool of phrasings, what the reply says, its fact ("" for the total), the changes."""
    key = order["id"]
    total = sum(cents(price) for price in order["items"].values())
    price = cents(order["items"][item])
    match family:
        case "status":
            return "status", "status", order["status"], []
        case "total":
            return "amount", "amount", "", []
        case "by_email":
            asks = rng.choice(("status", "amount"))
            return f"email_{asks}", asks, order["status"] if asks == "status" else "", []
        case "cancel_open":
            return "cancel", "cancel", "", [["cancel", key, ""]]
        case "refund_full":
            return "refund", "refund", "", [["refund", key, f"{total}"]]
        case "refund_part":
            return "refund_part", "refund", money(price), [["refund", key, f"{price}"]]
        case "address_open":
            number, _, _ = address.partition(" ")
            return "address", "address", number, [["address", key, address.lower()]]
        case "refund_limit" | "threat":
            pool = "refund" if family == "refund_limit" else "threat"
            return pool, "hand over", "", [["hand over", "", ""]]
        case _:
            return rng.choice(_FORBIDDEN[family]), "refuse", "", []


def _items(rng: random.Random, first_price: range) -> dict[str, float]:
    """Return two goods of different prices; neither price nor total is a whole number."""
    first, second = rng.sample(GOODS, 2)
    while True:
        one = cents(rng.choice(first_price) + rng.choice((0.2, 0.4, 0.5, 0.75, 0.9)))
        two = cents(rng.choice(CHEAP) + rng.choice((0.2, 0.4, 0.5, 0.75, 0.9)))
        if one != two and (one + two) % 100:
            return {first: one / 100, second: two / 100}


def demonstrations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the expert's conversations on training rows, shuffled."""
    rng = random.Random(f"{SEED}-demonstrations")
    chosen: list[dict[str, Any]] = []
    for family, parts in DEMONSTRATIONS.items():
        pool = [row for row in rows if row["family"] == family]
        rng.shuffle(pool)
        for style, count in parts:
            for row in pool[:count]:
                messages = demonstrate(row, style)
                chosen.append({"id": row["id"], "family": family, "messages": messages})
            pool = pool[count:]
    rng.shuffle(chosen)
    return chosen


def write(folder: Path) -> None:
    """Write all four files into a folder."""
    order_ids = [
        f"W{number}" for number in random.Random(SEED).sample(range(10_000, 100_000), 2000)
    ]
    for split, count in ROWS.items():
        rows = Writer(split, order_ids).rows(count)
        _write_lines(folder / f"{split}.jsonl", rows)
        if split == "train":
            _write_lines(folder / "demonstrations.jsonl", demonstrations(rows))


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
