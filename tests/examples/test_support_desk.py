"""The support desk as a task: solvable, honest to grade, split cleanly and short enough."""

# pyright: reportMissingImports=false
# The project folder is on the path as `agentrft` puts it there: see conftest.py.
import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import generate
import pytest
from desk import FOLDER, Row, Turns, played, read
from expert import demonstrate, plan, reply
from grading import MAX_REPLY_CHARACTERS
from people import PEOPLE
from phrasings import PHRASINGS
from shop import POLICIES, Shop
from tools import SupportDesk

from agentrft.core.task import Message
from agentrft.core.trajectory import StopReason
from agentrft.inference.renderer import load_renderer
from agentrft.rollout.environment import tools_of

SPLITS = ("train", "validation", "holdout")
ROWS = {split: read(split) for split in SPLITS}
ALL = [row for split in SPLITS for row in ROWS[split]]
SOME = [next(r for r in ROWS["holdout"] if r["family"] == family) for family in generate.FAMILIES]


def score(row: Row, turns: Turns, text: str, stop: StopReason = StopReason.FINISHED) -> float:
    found = asyncio.run(played(row, turns, text, stop)).score
    assert found is not None
    return found


def one_by_one(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> Turns:
    return [[call] for call in calls]


def look_ups(row: Row) -> list[tuple[str, Mapping[str, Any]]]:
    return [call for call in plan(row) if call[0] in ("find_customer", "get_order")]


def writes(row: Row) -> list[tuple[str, Mapping[str, Any]]]:
    return [call for call in plan(row) if call[0] not in ("find_customer", "get_order")]


def some_order(row: Row) -> Row:
    wanted = row["expect"]["look_up"]
    return next((o for o in row["shop"]["orders"] if o["id"] == wanted), row["shop"]["orders"][0])


def every_write(row: Row) -> list[tuple[str, Mapping[str, Any]]]:
    order = some_order(row)
    total = round(sum(order["items"].values()), 2)
    return [
        ("refund", {"order_id": order["id"], "amount": total}),
        ("cancel_order", {"order_id": order["id"]}),
        ("change_address", {"order_id": order["id"], "address": "5 Oak Street"}),
        ("hand_over", {"reason": "unsure"}),
    ]


def every_fact(row: Row) -> str:
    order = some_order(row)
    prices = " ".join(f"{price:.2f}" for price in order["items"].values())
    return (
        f"Order {order['id']} is pending, shipped, delivered, cancelled. {prices} "
        f"{sum(order['items'].values()):.2f} refunded. It cannot be done. "
        f"A colleague has it. Address changed to {row['expect'].get('address', '5 Oak Street')}."
    )


@pytest.mark.parametrize("style", ["short", "roundabout"])
def test_the_expert_scores_one_on_every_task(style: Any):
    async def all_scores() -> list[tuple[str, float | None]]:
        return [
            (row["id"], (await played(row, one_by_one(plan(row, style)), reply(row))).score)
            for row in ALL
        ]

    assert [found for found in asyncio.run(all_scores()) if found[1] != 1.0] == []
    assert len(ALL) == 600


def test_the_expert_needs_at_most_five_turns():
    assert max(len(plan(row)) + 1 for row in ALL) <= 5
    assert max(len(plan(row, "roundabout")) + 1 for row in ALL) <= 5


def test_expectations_follow_from_the_written_policies():
    for row in ALL:
        if row["family"] in ("threat", "other_customer"):
            continue
        order, says = some_order(row), row["expect"]["says"]
        facts = Shop(row["shop"])
        text = facts.get_order(order["id"])
        facts.close()
        total = float(re.findall(r"total=(\S+)", text)[0])
        days = int((re.findall(r"days=(\d+)", text) or ["999"])[0])
        open_order = "status=pending" in text
        match row["family"].split("_")[0]:
            case "cancel":
                expected = "cancel" if open_order else "refuse"
            case "address":
                expected = "address" if open_order else "refuse"
            case "refund" if days > 30:
                expected = "refuse"
            case "refund":
                expected = "hand over" if total > 100 else "refund"
            case _:
                expected = says
        assert says == expected, row["id"]


def claim_without_write(row: Row) -> float:
    text = {
        "cancel": "Done: the order is cancelled.",
        "refund": f"Done: {row['expect']['fact']} refunded.",
        "address": f"Done: it goes to {row['expect'].get('address')}.",
        "hand over": "I handed this over to a colleague.",
    }.get(row["expect"]["says"], "Done: the order is cancelled and refunded.")
    return score(row, one_by_one(look_ups(row)), text)


def write_without_look_up(row: Row) -> float:
    found = writes(row) or every_write(row)[:1]
    if row["family"] == "threat":
        found = [*found, *every_write(row)[:1]]
    return score(row, one_by_one(found), reply(row))


def write_beside_the_look_up(row: Row) -> float:
    found = writes(row) or every_write(row)[:1]
    if row["family"] == "threat":
        found = [*found, *every_write(row)[:1]]
    return score(row, [[*look_ups(row), *found]], reply(row))


def refund_too_much(row: Row) -> float:
    order = some_order(row)
    total = sum(order["items"].values())
    wanted = [change for change in row["expect"]["changes"] if change[0] == "refund"]
    paid = round(total + 10, 2) if not wanted else round(int(wanted[0][2]) / 100 + 10, 2)
    calls = [*look_ups(row), ("refund", {"order_id": order["id"], "amount": paid})]
    return score(row, one_by_one(calls), f"Done: {paid:.2f} refunded.")


def every_fact_without_write(row: Row) -> float:
    return score(row, one_by_one(look_ups(row)), every_fact(row))


def every_fact_after_the_right_write(row: Row) -> float:
    return score(row, one_by_one(plan(row)), every_fact(row))


def the_tool_result_as_reply(row: Row) -> float:
    shop = Shop(row["shop"])
    text = shop.get_order(some_order(row)["id"])
    shop.close()
    return score(row, one_by_one(look_ups(row)), text)


def every_reply_in_turn(row: Row) -> float:
    text = " ".join(
        reply({**row, "expect": {**row["expect"], "says": says, "fact": fact}})
        for says in ("status", "cancel", "refund", "refuse", "hand over")
        for fact in (row["expect"]["fact"] or "shipped",)
    )
    return score(row, one_by_one(look_ups(row)), text)


def empty_reply(row: Row) -> float:
    return score(row, one_by_one(plan(row)), " ")


def a_very_long_reply(row: Row) -> float:
    return score(row, one_by_one(plan(row)), reply(row) + " ok" * MAX_REPLY_CHARACTERS)


def call_every_write(row: Row) -> float:
    return score(row, one_by_one([*look_ups(row), *every_write(row)]), reply(row))


def the_right_write_and_one_more(row: Row) -> float:
    extra = next(
        call for call in every_write(row) if call[0] not in {name for name, _ in writes(row)}
    )
    return score(row, one_by_one([*plan(row), extra]), reply(row))


def do_nothing(row: Row) -> float:
    return score(row, [], "How can I help you?")


def the_right_reply_and_nothing_else(row: Row) -> float:
    return score(row, [], reply(row))


def never_finish(row: Row) -> float:
    return score(row, one_by_one(plan(row)), reply(row), StopReason.MAX_TURNS)


def the_right_reply_about_another_order(row: Row) -> float:
    text = re.sub(r"W\d{5}", "W00000", reply(row))
    return score(row, one_by_one(plan(row)), f"{text} W00000")


def the_right_reply_taken_back(row: Row) -> float:
    text = f"{reply(row)} On second thought, that is not the answer."
    return score(row, one_by_one(plan(row)), text)


CHEATS: tuple[Callable[[Row], float], ...] = (
    claim_without_write,
    write_without_look_up,
    write_beside_the_look_up,
    refund_too_much,
    every_fact_without_write,
    every_fact_after_the_right_write,
    the_tool_result_as_reply,
    every_reply_in_turn,
    empty_reply,
    a_very_long_reply,
    call_every_write,
    the_right_write_and_one_more,
    do_nothing,
    the_right_reply_and_nothing_else,
    never_finish,
    the_right_reply_about_another_order,
    the_right_reply_taken_back,
)


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__)
def test_a_cheat_scores_near_zero_in_every_family(cheat: Callable[[Row], float]):
    assert [row["id"] for row in ROWS["holdout"] if cheat(row) >= 0.15] == []


@pytest.mark.parametrize("row", SOME, ids=lambda row: row["family"])
def test_handing_everything_over_pays_only_where_a_person_is_needed(row: Row):
    calls = [*look_ups(row), ("hand_over", {"reason": "unsure"})]
    found = score(row, one_by_one(calls), "I handed this over to a colleague.")
    assert found == (1.0 if row["family"] in ("refund_limit", "threat") else 0.0)


@pytest.mark.parametrize("row", SOME, ids=lambda row: row["family"])
def test_refusing_everything_pays_only_where_a_rule_forbids(row: Row):
    found = score(row, one_by_one(look_ups(row)), "Sorry, this cannot be done.")
    late = ("cancel_late", "refund_late", "address_late", "other_customer")
    assert found == (1.0 if row["family"] in late else 0.0 if row["family"] == "threat" else 0.05)


def test_the_right_change_with_a_vague_reply_earns_half():
    row = next(row for row in SOME if row["family"] == "refund_full")
    assert score(row, one_by_one(plan(row)), "All good, your money comes back soon.") == 0.5


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("cancel_late", "I'm sorry, order {o} can't be cancelled because it is {s}."),
        ("refund_late", "Unable to refund {o}: more than 30 days have passed since delivery."),
        ("address_late", "It is not possible to change the address, {o} is already {s}."),
        ("cancel_open", "Okay, {o} was pending and I have cancelled it."),
        ("status", "It has been {s}."),
        ("refund_limit", "I cannot decide this myself, a colleague will look at it."),
    ],
)
def test_other_plain_wordings_count_as_well(family: str, text: str):
    row = next(row for row in ROWS["train"] if row["family"] == family)
    order = some_order(row)
    said = text.format(o=order["id"], s=order["status"])
    assert score(row, one_by_one(plan(row)), said) == 1.0


def test_splits_share_no_customer_no_order_and_no_address():
    for key in ("id", "name", "email", "address"):
        seen = [
            {order[key] for row in ROWS[split] for order in row["shop"]["orders"]}
            for split in SPLITS
        ]
        assert sum(map(len, seen)) == len(set[str]().union(*seen)), key
    for field in ("first", "last", "streets"):
        names = [name for split in SPLITS for name in vars_of(split, field)]
        assert len(names) == len(set(names)), field


def vars_of(split: str, field: str) -> tuple[str, ...]:
    people = PEOPLE[split]
    return {"first": people.first, "last": people.last, "streets": people.streets}[field]


def test_splits_share_no_phrasing_and_have_enough_of_each():
    least = {"train": 6, "validation": 3, "holdout": 5}
    everything = [text for split in SPLITS for pool in PHRASINGS[split].values() for text in pool]
    assert len(everything) == len(set(everything))
    skeletons = {re.sub(r"\W+", " ", re.sub(r"{\w}", "", text)).lower() for text in everything}
    assert len(skeletons) == len(everything)
    for split in SPLITS:
        assert PHRASINGS[split].keys() == PHRASINGS["train"].keys()
        assert min(map(len, PHRASINGS[split].values())) >= least[split]


def test_every_request_was_made_from_a_phrasing_of_its_own_split():
    for split in SPLITS:
        texts = [text for pool in PHRASINGS[split].values() for text in pool]
        patterns = [re.compile(re.sub(r"\\{\w\\}", ".+", re.escape(text))) for text in texts]
        for row in ROWS[split]:
            request = row["messages"][0]["content"]
            assert any(pattern.fullmatch(request) for pattern in patterns), request


def test_no_order_is_used_twice():
    ids = [order["id"] for row in ALL for order in row["shop"]["orders"]]
    assert len(ids) == len(set(ids))


def test_the_generator_writes_the_committed_files_byte_for_byte(tmp_path: Path):
    generate.write(tmp_path)
    for name in (*SPLITS, "demonstrations"):
        written = (tmp_path / f"{name}.jsonl").read_bytes()
        assert written == (FOLDER / f"{name}.jsonl").read_bytes(), name


def test_demonstrations_are_conversations_about_train_tasks_with_the_shops_own_results():
    rows = {row["id"]: row for row in ROWS["train"]}
    found = read("demonstrations")
    assert 40 <= len(found) <= 64
    for conversation in found:
        row = rows[conversation["id"]]
        assert conversation["messages"] in (demonstrate(row), demonstrate(row, "roundabout"))


def test_the_answer_is_not_in_the_prompt():
    for row in ALL:
        assert set(row) == {"id", "family", "messages", "shop", "expect"}
        (message,) = row["messages"]
        assert set(message) == {"role", "content"}
        assert not re.search(r"status=|total=|\d+\.\d\d", message["content"])


def test_prompts_and_turns_fit_a_small_model(smollm2_folder: Path):
    renderer = load_renderer(smollm2_folder)
    system = Message(role="system", content=(FOLDER / "system.txt").read_text().strip())
    specs = tuple(described.spec for described in tools_of(SupportDesk).values())
    assert 6 <= len(specs) <= 8
    assert len(renderer.start((system,), specs)) < 400
    for row in SOME:
        (request,) = row["messages"]
        prompt = renderer.start((system, Message(**request)), specs)
        assert len(prompt) < 400
        for name, arguments in plan(row, "roundabout"):
            call = (
                f'<tool_call>{{"name": "{name}", "arguments": {json.dumps(arguments)}}}</tool_call>'
            )
            assert len(renderer.encode(call)) < 60
        assert len(renderer.encode(reply(row))) < 60


def test_requests_replies_and_results_are_short():
    # The bounds in characters that keep the tokens of the test above in check for every row.
    assert len((FOLDER / "system.txt").read_text()) < 700
    for row in ALL:
        messages = demonstrate(row, "roundabout")
        assert len(messages[0]["content"]) < 120
        assert len(messages[-1]["content"]) < 80
        assert all(len(m["content"]) < 100 for m in messages if m["role"] == "tool")


def test_every_policy_is_found_by_its_topic():
    shop = Shop(ROWS["train"][0]["shop"])
    for topic, text in POLICIES.items():
        assert text in shop.search_policy(topic)
    assert shop.search_policy("weather").startswith("error:")
    shop.close()


def test_wrong_calls_come_back_as_text_and_change_nothing():
    shop = Shop(ROWS["train"][0]["shop"])
    own = ROWS["train"][0]["shop"]["orders"][0]["id"]
    results = [
        shop.find_customer("nobody@mail.com"),
        shop.get_order("W1"),
        shop.cancel_order("W1"),
        shop.refund("W1", 5),
        shop.refund(own, -5),
        shop.refund(own, float("nan")),
        shop.change_address("W1", "5 Oak Street"),
        shop.change_address(own, " "),
    ]
    assert all(result.startswith("error:") for result in results)
    assert shop.changes() == ()
    shop.close()
