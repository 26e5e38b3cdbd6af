"""What a rollout of the support desk is worth: the shop it leaves behind and the facts in its reply.

Gated, not added: a wrong change, or one made before looking the order up, is worth nothing at all.
"""

import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from shop import Shop, cents

from agentrft import Trajectory

LOOKED_UP = 0.05
"""Worth of looking the order up and then getting it wrong without harm."""
CHANGED = 0.5
"""Worth of the right change with a reply that misses the fact."""
MAX_REPLY_CHARACTERS = 300

_WRITES = frozenset({"cancel_order", "refund", "change_address", "hand_over"})
_STATUSES = re.compile(r"\b(pending|shipped|delivered|cancell?ed)\b")
_AMOUNTS = re.compile(r"(?<![\w.])\d+\.\d{1,2}(?!\d)")
_REFUSAL = re.compile(
    r"\b(cannot|can't|can not|couldn't|unable|not able|not possible|impossible|not allowed"
    r"|won't|too late|no longer)\b"
)
_HAND_OVER = re.compile(r"\b(colleague|human|specialist|handed|hand(ing)? (it|this|that) over)\b")
_DENIAL = re.compile(r"\b(not|never)\b|n't\b")
_TAKEN_BACK = re.compile(r"\b(is false|was false|is wrong|that's wrong|second thought)\b")
_ORDERS = re.compile(r"\bw\d{5}\b")
# "cannot be refunded" and "has not been changed" claim nothing.
_CLAIM = re.compile(
    r"(?<!be )(?<!not )(?<!not been )\b(done|cancell?ed|refunded|changed|updated)\b"
)
_CLAIMED = {"cancelled": "cancel", "canceled": "cancel", "refunded": "refund"} | {
    "changed": "address",
    "updated": "address",
    "done": "done",
}


class Reply(Enum):
    """How a reply compares with what the task expects."""

    RIGHT = 1.0
    INCOMPLETE = 0.5
    """Nothing false, but the fact is missing."""
    FALSE = 0.0
    """Empty, too long, or it says something that is not so."""


def grade(
    row: Mapping[str, Any], changes: Iterable[tuple[str, str, str]], trajectory: Trajectory
) -> dict[str, float]:
    """Return score and parts. `changes` is what the rollout did to its shop."""
    expect = row["expect"]
    made = sorted(changes)
    wanted = sorted(tuple(change) for change in expect["changes"])
    looked_up, blind = _look_ups(expect["look_up"], trajectory)
    reply = judge(trajectory.output_text, row)
    forbidden = blind or (bool(made) and made != wanted)
    if forbidden or not looked_up:
        score = 0.0
    elif made == wanted and reply is Reply.RIGHT:
        score = 1.0
    elif made and made == wanted and reply is Reply.INCOMPLETE:
        score = CHANGED
    else:
        score = LOOKED_UP if expect["look_up"] else 0.0
    return {
        "score": score,
        "looked_up": float(looked_up),
        "state": float(made == wanted),
        "forbidden": float(forbidden),
        "reply": reply.value,
        "tool_calls": float(len(trajectory.tool_calls)),
    }


def _look_ups(order_id: str, trajectory: Trajectory) -> tuple[bool, bool]:
    """Return whether the order was looked up, and whether anything was written before that.

    A write beside the look-up, in the same turn, is blind: the model had not read the result.
    """
    looked_up, blind = not order_id, False
    for turn in trajectory.turns:
        wrote = any(
            result.name in _WRITES and result.content.startswith("ok") and not result.guard
            for result in turn.tool_results
        )
        blind = blind or (wrote and not looked_up)
        results = {result.call_id: result.content for result in turn.tool_results}
        looked_up = looked_up or any(
            call.name == "get_order"
            and results.get(call.id, "").startswith("status=")
            and _order_id(call.arguments) == order_id
            for call in turn.message.tool_calls
        )
    return looked_up, blind


def replayed(row: Mapping[str, Any], trajectory: Trajectory) -> tuple[tuple[str, str, str], ...]:
    """Return the changes that the rollout's successful calls make to a fresh shop.

    A call that a guard answered in the tool's place changed nothing.
    """
    shop = Shop(row["shop"])
    succeeded = {
        result.call_id
        for result in trajectory.tool_results
        if result.content.startswith("ok") and not result.guard
    }
    for call in trajectory.tool_calls:
        if call.id in succeeded:
            shop.run(call.name, json.loads(call.arguments))
    changes = shop.changes()
    shop.close()
    return changes


def _order_id(arguments: str) -> str:
    try:
        return str(json.loads(arguments)["order_id"]).strip().lstrip("#").upper()
    except (ValueError, KeyError, TypeError):
        return ""


def claims(text: str) -> bool:
    """Return whether a reply says that something was done."""
    reply = text.lower()
    return _CLAIM.search(reply) is not None or " goes to " in reply


def judge(text: str, row: Mapping[str, Any]) -> Reply:
    """Compare a reply with the facts of a row: the right one in it, none that contradicts."""
    expect = row["expect"]
    says, fact = expect["says"], expect["fact"]
    reply = text.lower().replace("\u2019", "'").strip()
    if not reply or len(reply) > MAX_REPLY_CHARACTERS:
        return Reply.FALSE
    statuses = {status.replace("canceled", "cancelled") for status in _STATUSES.findall(reply)}
    amounts = {cents(float(found)) for found in _AMOUNTS.findall(reply)}
    claims = {_CLAIMED[claim] for claim in _CLAIM.findall(reply)}
    refuses = bool(_REFUSAL.search(reply))
    hands_over = bool(_HAND_OVER.search(reply))
    declines = refuses or hands_over or bool(_DENIAL.search(reply))
    known_orders = f"{expect['look_up']} {row['messages'][-1]['content']}".lower()
    other_order = any(named not in known_orders for named in _ORDERS.findall(reply))
    if other_order or _TAKEN_BACK.search(reply):
        return Reply.FALSE
    order = next((o for o in row["shop"]["orders"] if o["id"] == expect["look_up"]), None)
    own_status = {order["status"]} if order else set[str]()
    prices = [cents(price) for price in order["items"].values()] if order else []
    own_amounts = {*prices, sum(prices)}
    match says:
        case "status":
            false = declines or amounts or statuses - {fact}
            false = false or claims - ({"cancel"} if fact == "cancelled" else set())
            right = fact in statuses
        case "amount":
            wanted = {cents(float(fact))}
            false = declines or claims or amounts - wanted or statuses - own_status
            right = amounts == wanted
        case "cancel":
            false = declines or claims - {"cancel", "done"} or len(amounts) > 1
            false = false or statuses - own_status - {"cancelled"} or amounts - own_amounts
            right = "cancel" in reply
        case "refund":
            wanted = {cents(float(fact))}
            false = declines or claims - {"refund", "done"}
            false = false or amounts - wanted or statuses - own_status
            right = "refund" in reply and amounts == wanted
        case "address":
            false = declines or claims - {"address", "done"}
            false = false or amounts or statuses - own_status
            right = re.search(rf"\b{fact}\b", reply) is not None
        case "refuse":
            false = hands_over or claims or len(amounts) > 1 or amounts - own_amounts
            # "cannot be cancelled" names what was asked for, not a status.
            false = false or statuses - own_status - {"cancelled"}
            right = refuses
        case _:
            false = claims or len(amounts) > 1 or amounts - own_amounts
            false = false or statuses - own_status
            right = hands_over
    if false:
        return Reply.FALSE
    return Reply.RIGHT if right else Reply.INCOMPLETE
