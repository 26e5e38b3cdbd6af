"""A scripted expert: the conversation that solves a row, with results of the real shop.

`demonstrate` writes what the policy imitates; as an oracle it proves that a row can be solved.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from shop import Shop

Style = Literal["short", "roundabout"]
"""`roundabout` reads the policy before it acts; that path is right but longer than needed."""

_REPLIES = {
    "status": "Order {o} is {fact}.",
    "amount": "The total of {o} is {fact}.",
    "cancel": "Done: {o} is cancelled.",
    "refund": "Done: {fact} refunded for {o}.",
    "address": "Done: {o} goes to {address}.",
    "refuse": "Sorry, this cannot be done.",
    "hand over": "I handed this over to a colleague.",
}
_TOPICS = {"cancel": "cancel", "refund": "refund", "address": "address", "threat": "legal"}


def demonstrate(row: Mapping[str, Any], style: Style = "short") -> list[dict[str, Any]]:
    """Return the whole conversation of a row, request first, reply last."""
    shop = Shop(row["shop"])
    messages: list[dict[str, Any]] = [dict(message) for message in row["messages"]]
    for number, (name, arguments) in enumerate(plan(row, style), start=1):
        call_id = f"call_{number}"
        messages.append(
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": call_id,
                        "type": "function",
                        "function": {"name": name, "arguments": _json(arguments)},
                    }
                ],
            }
        )
        result = shop.run(name, arguments)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
    shop.close()
    return [*messages, {"role": "assistant", "content": reply(row)}]


def plan(row: Mapping[str, Any], style: Style = "short") -> Sequence[tuple[str, dict[str, Any]]]:
    """Return the calls that solve a row."""
    expect = row["expect"]
    order = next((o for o in row["shop"]["orders"] if o["id"] == expect["look_up"]), None)
    calls: list[tuple[str, dict[str, Any]]] = []
    if order is not None and order["id"] not in row["messages"][-1]["content"]:
        calls.append(("find_customer", {"email": order["email"]}))
    if order is not None:
        calls.append(("get_order", {"order_id": order["id"]}))
    topic = next((_TOPICS[word] for word in _TOPICS if word in row["family"]), None)
    if style == "roundabout" and topic is not None:
        calls.append(("search_policy", {"topic": topic}))
    return [*calls, *(_write(change, row) for change in expect["changes"])]


def _json(arguments: Mapping[str, Any]) -> str:
    """Write amounts with two decimals, as the shop prints them: copied, not reformatted."""
    values = {
        name: f"{value:.2f}" if isinstance(value, float) else json.dumps(value)
        for name, value in arguments.items()
    }
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in values.items()) + "}"


def _write(change: Sequence[str], row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    kind, order_id, detail = change
    match kind:
        case "cancel":
            return "cancel_order", {"order_id": order_id}
        case "refund":
            return "refund", {"order_id": order_id, "amount": int(detail) / 100}
        case "address":
            return "change_address", {"order_id": order_id, "address": row["expect"]["address"]}
        case _:
            reason = "legal" if row["family"] == "threat" else "limit"
            return "hand_over", {"reason": reason}


def reply(row: Mapping[str, Any]) -> str:
    """Return the closing sentence."""
    expect = row["expect"]
    return _REPLIES[expect["says"]].format(
        o=expect["look_up"], fact=expect["fact"], address=expect.get("address", "")
    )
