from fabricated import Situation, cancelled, levels, rollout, tasks, tool

from agentrft.core.spec import AgentSpec, Exposure
from agentrft.optimize.pruning import Pruning

SOLVED = [(one, cancelled(one)) for one in tasks(30)]
MANY = (*Situation().tools, *(tool(f"other_{n}") for n in range(6)))


def test_tools_that_no_solution_used_are_hidden() -> None:
    knob = Situation(SOLVED).knobs(Pruning())["tools shown"]
    views = levels(knob)["used only"].change(AgentSpec()).tools
    assert {name for name, view in views.items() if not view.exposed} == {"refund", "hand_over"}
    assert "in 30 solutions" in knob.levels[0].why


def test_few_solutions_hide_nothing() -> None:
    assert Situation(SOLVED[:29]).knobs(Pruning()) == {}


def test_failures_say_nothing_about_what_is_needed() -> None:
    failed = [(one, rollout(one, ("refund", {}, "ok"), score=0.0)) for one in tasks(5, start=90)]
    knob = Situation([*SOLVED, *failed]).knobs(Pruning())["tools shown"]
    assert not levels(knob)["used only"].change(AgentSpec()).tools["refund"].exposed


def test_of_many_tools_the_nearest_are_shown_and_the_usual_ones_always() -> None:
    knob = Situation(SOLVED, tools=MANY).knobs(Pruning())["tools shown"]
    assert list(levels(knob)) == ["used only", "4 nearest", "8 nearest"]
    assert levels(knob)["4 nearest"].change(AgentSpec()).exposure == Exposure(
        mode="retrieved", most=4, always=("get_order", "cancel_order")
    )
