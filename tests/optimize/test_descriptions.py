from dataclasses import replace

from fabricated import GET, Situation, cancelled, rollout, shown, task, tasks, tool

from agentrft.core.spec import AgentSpec, ToolView
from agentrft.optimize.descriptions import argument_notes, when_not_to_use, when_to_use
from agentrft.optimize.evidence import evidence
from agentrft.optimize.treatments import Treatments

GET_ORDER = ("get_order", {"order_id": "W00001"}, "status=delivered")
CANCELLED = [(one, cancelled(one)) for one in tasks(5)]
REFUNDED = [
    (
        one := task(n, f"I sent W{n:05} back and want my money. Ned Baker"),
        rollout(one, GET_ORDER, ("refund", {"order_id": f"W{n:05}", "amount": 3}, "ok")),
    )
    for n in range(20, 25)
]
SITUATION = Situation([*CANCELLED, *REFUNDED])
SOLUTIONS = evidence(SITUATION.known).solutions


def test_a_description_says_for_which_requests_solutions_called_the_tool() -> None:
    texts = when_to_use(SITUATION.known.problem, SOLUTIONS)
    assert texts["cancel_order"] == (
        "Cancel an order. Use it for requests about cancel, please. Call get_order first."
    )
    assert "money" in texts["refund"]
    assert "get_order" not in texts  # every solution calls it, so no request stands out
    assert "hand_over" not in texts


def test_a_description_says_which_requests_belong_to_the_tool_it_is_confused_with() -> None:
    texts = when_not_to_use(SITUATION.known.problem, SOLUTIONS)
    assert texts["cancel_order"].endswith("back, money, sent, want: use refund.")
    assert "Not for requests about cancel, please: use cancel_order." in texts["refund"]


def test_a_description_never_holds_names_or_numbers_of_tasks() -> None:
    texts = " ".join(when_not_to_use(SITUATION.known.problem, SOLUTIONS).values())
    assert "Ned" not in texts
    assert not any(character.isdigit() for character in texts)


def test_a_description_that_was_changed_already_is_the_one_that_grows() -> None:
    own = AgentSpec(tools={"cancel_order": ToolView(description="Stop a parcel.")})
    problem = replace(SITUATION.known.problem, baseline=own)
    assert when_to_use(problem, SOLUTIONS)["cancel_order"].startswith("Stop a parcel. Use it")


def test_two_uses_are_too_few_for_a_word() -> None:
    few = evidence(Situation([*CANCELLED[:2], *REFUNDED]).known).solutions
    assert "cancel_order" not in when_to_use(SITUATION.known.problem, few)


def test_demonstrations_count_as_solutions() -> None:
    known = Situation(REFUNDED, demonstrations=tuple(shown(n) for n in range(3))).known
    assert "cancel" in when_to_use(known.problem, evidence(known).solutions)["cancel_order"]


def test_arguments_are_described_by_the_shape_of_what_solutions_wrote() -> None:
    notes = argument_notes(SITUATION.known.problem, SOLUTIONS)
    assert notes["get_order"] == {"order_id": "Written like W99999."}
    assert "amount" not in notes["refund"]


def test_values_that_come_back_again_and_again_are_listed() -> None:
    ship = tool(
        "ship",
        speed={"type": "string", "description": "How fast."},
        mode={"type": "string", "enum": ["a"]},
    )
    shipped = [
        (one, rollout(one, ("ship", {"speed": ("fast", "slow")[n % 2], "mode": "a"}, "ok")))
        for n, one in enumerate(tasks(6))
    ]
    known = Situation(shipped, tools=(ship, GET)).known
    assert argument_notes(known.problem, evidence(known).solutions) == {
        "ship": {"speed": "How fast. One of: fast, slow."}
    }


def test_values_of_a_task_that_was_solved_again_and_again_are_not_listed() -> None:
    ship = tool("ship", to={"type": "string", "description": "Where to."})
    places = ("Rome", "Oslo", "Bern")
    shipped = [
        (one, rollout(one, ("ship", {"to": place}, "ok")))
        for one, place in zip(tasks(3), places, strict=True)
        for _ in range(3)
    ]
    known = Situation(shipped, tools=(ship, GET)).known
    assert argument_notes(known.problem, evidence(known).solutions) == {}


def test_wrong_arguments_are_met_with_notes_and_wrong_tools_with_descriptions() -> None:
    one = task(90)
    wrong = rollout(one, ("refund", {"amount": "x"}, "!amount must be a number"), score=0.0)
    other = rollout(task(91), GET_ORDER, answer="No.", score=0.0)
    knobs = Situation([*CANCELLED, *REFUNDED, (one, wrong), (task(91), other)]).knobs(Treatments())
    assert knobs["argument notes"].levels[0].change(AgentSpec()).tools["get_order"] == ToolView(
        argument_notes={"order_id": "Written like W99999."}
    )
