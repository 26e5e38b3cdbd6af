"""The shop: customers, orders, items, payments, shipments and policies in SQLite, one copy per rollout.

It does what it is told, forbidden or not: keeping to the policies is the agent's work, and grading
compares what is left behind. Standard library only.
"""

import sqlite3
from collections.abc import Mapping
from datetime import date
from functools import cache
from typing import Any

_SCHEMA = """
CREATE TABLE customers (email TEXT PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE orders (id TEXT PRIMARY KEY, email TEXT NOT NULL REFERENCES customers,
    status TEXT NOT NULL, address TEXT NOT NULL);
CREATE TABLE items (order_id TEXT NOT NULL REFERENCES orders, name TEXT NOT NULL,
    cents INTEGER NOT NULL);
CREATE TABLE payments (order_id TEXT NOT NULL REFERENCES orders, method TEXT NOT NULL,
    cents INTEGER NOT NULL);
CREATE TABLE shipments (order_id TEXT NOT NULL REFERENCES orders, delivered_on TEXT NOT NULL);
CREATE TABLE policies (topic TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE changes (kind TEXT NOT NULL, order_id TEXT NOT NULL, detail TEXT NOT NULL);
"""

REFUND_DAYS = 30
REFUND_LIMIT_CENTS = 10_000

POLICIES = {
    "cancel": "cancel only while pending",
    "refund": "refund only if delivered, days<=30, amount<=100.00; above 100.00 hand over",
    "address": "change address only while pending",
    "legal": "legal threats: hand over",
    "privacy": "only the buyer may change an order",
}


@cache
def _empty_shop() -> bytes:
    """The schema and the policies as one database image; loading it is faster than creating it."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(_SCHEMA)
    connection.executemany("INSERT INTO policies VALUES (?, ?)", POLICIES.items())
    connection.commit()
    return connection.serialize()


class Shop:
    """One rollout's own shop. Results are short `key=value` text; refusals begin with `error:`."""

    def __init__(self, contents: Mapping[str, Any]) -> None:
        """`contents` is a row's `shop` field: `today` and the orders the rollout can find."""
        self._today = date.fromisoformat(contents["today"])
        # Synchronous tools may run on any thread of a pool.
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.deserialize(_empty_shop())
        self._db.execute("BEGIN")
        for order in contents["orders"]:
            self._add(order)
        self._db.execute("COMMIT")

    def _add(self, order: Mapping[str, Any]) -> None:
        key = order["id"]
        items = [(key, name, cents(price)) for name, price in order["items"].items()]
        self._db.execute(
            "INSERT OR IGNORE INTO customers VALUES (?, ?)", (order["email"], order["name"])
        )
        self._db.execute(
            "INSERT INTO orders VALUES (?, ?, ?, ?)",
            (key, order["email"], order["status"], order["address"]),
        )
        self._db.executemany("INSERT INTO items VALUES (?, ?, ?)", items)
        self._db.execute(
            "INSERT INTO payments VALUES (?, ?, ?)",
            (key, order["paid"], sum(amount for _, _, amount in items)),
        )
        if "delivered" in order:
            self._db.execute("INSERT INTO shipments VALUES (?, ?)", (key, order["delivered"]))

    def find_customer(self, email: str) -> str:
        """Return name and orders of a customer."""
        found = self._db.execute(
            "SELECT name FROM customers WHERE email = ?", (email.strip().lower(),)
        ).fetchone()
        if found is None:
            return "error: no such customer"
        orders = self._db.execute(
            "SELECT id FROM orders WHERE email = ? ORDER BY rowid", (email.strip().lower(),)
        ).fetchall()
        return f"name={found[0]} orders={','.join(order for (order,) in orders)}"

    def get_order(self, order_id: str) -> str:
        """Return status, days since delivery, total, payment and items of an order."""
        status = self._status(order_id)
        if status is None:
            hint = "; use find_customer" if "@" in order_id else ""
            return f"error: no such order{hint}"
        key = _key(order_id)
        method, total = self._db.execute(
            "SELECT method, cents FROM payments WHERE order_id = ?", (key,)
        ).fetchone()
        shipment = self._db.execute(
            "SELECT delivered_on FROM shipments WHERE order_id = ?", (key,)
        ).fetchone()
        items = self._db.execute("SELECT name, cents FROM items WHERE order_id = ?", (key,))
        parts = [f"status={status}"]
        if shipment is not None:
            parts.append(f"days={(self._today - date.fromisoformat(shipment[0])).days}")
        parts += [
            f"total={money(total)}",
            f"paid={method}",
            f"items={','.join(f'{name}:{money(price)}' for name, price in items)}",
        ]
        return " ".join(parts)

    def cancel_order(self, order_id: str) -> str:
        """Set an order to cancelled."""
        status = self._status(order_id)
        if status is None:
            return "error: no such order"
        if status == "cancelled":
            return "error: already cancelled"
        self._db.execute("UPDATE orders SET status = 'cancelled' WHERE id = ?", (_key(order_id),))
        self._record("cancel", _key(order_id), "")
        return "ok status=cancelled"

    def refund(self, order_id: str, amount: float) -> str:
        """Pay money back."""
        if self._status(order_id) is None:
            return "error: no such order"
        if not 0 < amount < 100_000:
            return "error: amount must be above 0"
        self._record("refund", _key(order_id), f"{cents(amount)}")
        return f"ok refunded={money(cents(amount))}"

    def change_address(self, order_id: str, address: str) -> str:
        """Send an order elsewhere."""
        if self._status(order_id) is None:
            return "error: no such order"
        if not address.strip():
            return "error: address is empty"
        self._db.execute("UPDATE orders SET address = ? WHERE id = ?", (address, _key(order_id)))
        plain = " ".join(address.lower().replace(",", " ").rstrip(". ").split())
        self._record("address", _key(order_id), plain)
        return f"ok address={address.strip()}"

    def search_policy(self, topic: str) -> str:
        """Return the written policies whose topic or text mentions a word of `topic`."""
        words = [word for word in topic.lower().split() if len(word) > 3] or [topic.lower()]
        rows = self._db.execute("SELECT topic, text FROM policies").fetchall()
        found = [text for name, text in rows if any(word in name or name in word for word in words)]
        found = found or [text for _, text in rows if any(word in text for word in words)]
        return "; ".join(found[:2]) or "error: no such policy"

    def hand_over(self, reason: str) -> str:
        """Open a ticket for a person."""
        self._record("hand over", "", "")
        return "ok ticket=open"

    def run(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Run a tool by its name."""
        match tool:
            case "find_customer":
                return self.find_customer(**arguments)
            case "get_order":
                return self.get_order(**arguments)
            case "cancel_order":
                return self.cancel_order(**arguments)
            case "refund":
                # A tool takes "12.50" for a number, so its calls must too when they are repeated.
                return self.refund(arguments["order_id"], float(arguments["amount"]))
            case "change_address":
                return self.change_address(**arguments)
            case "search_policy":
                return self.search_policy(**arguments)
            case "hand_over":
                return self.hand_over(**arguments)
            case _:
                return f"error: no tool {tool}"

    def changes(self) -> tuple[tuple[str, str, str], ...]:
        """Everything that was changed: kind, order and detail, in a comparable form."""
        rows = self._db.execute("SELECT kind, order_id, detail FROM changes").fetchall()
        return tuple(sorted(tuple(row) for row in rows))

    def close(self) -> None:
        """Free the copy."""
        self._db.close()

    def _status(self, order_id: str) -> str | None:
        found = self._db.execute(
            "SELECT status FROM orders WHERE id = ?", (_key(order_id),)
        ).fetchone()
        return None if found is None else found[0]

    def _record(self, kind: str, order_id: str, detail: str) -> None:
        self._db.execute("INSERT INTO changes VALUES (?, ?, ?)", (kind, order_id, detail))


def cents(price: float) -> int:
    """Return a price in whole cents."""
    return round(price * 100)


def money(value_cents: int) -> str:
    """Return cents as the shop prints them, e.g. `41.90`."""
    return f"{value_cents / 100:.2f}"


def _key(order_id: str) -> str:
    return order_id.strip().lstrip("#").upper()
