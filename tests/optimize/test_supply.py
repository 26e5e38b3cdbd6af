from dataclasses import replace

from agentrft.core.spec import AgentSpec, Section, Shown
from agentrft.core.task import Demonstration, Message
from agentrft.measure.diagnosis import FailureClass
from agentrft.measure.search_summary import MixEntry
from agentrft.measure.statistics import Estimate
from agentrft.optimize.edits import viewing
from agentrft.optimize.leaks import Withheld, withheld
from agentrft.optimize.planted import Planted, planted_knobs, planted_tasks
from agentrft.optimize.supply import large_treatments, useful_knobs
from agentrft.optimize.variants import Change, Knob, Level

NOTHING = Withheld(ids=frozenset(), requests=frozenset())


def mix(**shares: float) -> list[MixEntry]:
    return [
        MixEntry(
            failure_class=FailureClass[name].value,
            rollouts=round(100 * share),
            share=Estimate(value=share, low=0, high=1, method=""),
        )
        for name, share in shares.items()
    ]


def knob(name: str, *treats: FailureClass, levels: str = "a") -> Knob:
    [made] = planted_knobs([Planted(knob=name, level=level) for level in levels])
    return replace(made, treats=treats)


def saying(text: str) -> Change:
    return lambda spec: replace(spec, sections=(Section(name="said", text=text),))


def names(knobs: list[Knob]) -> list[str]:
    return [one.name for one in knobs]


def test_knobs_for_frequent_failures_come_first_and_those_for_none_not_at_all() -> None:
    offers = [
        [knob("rare", FailureClass.NO_CALL), knob("absent", FailureClass.TRUNCATED)],
        [knob("any"), knob("frequent", FailureClass.MALFORMED_CALL)],
    ]
    failures = mix(MALFORMED_CALL=0.4, NO_CALL=0.02, INFRASTRUCTURE=0.3)
    found, _ = useful_knobs(offers, AgentSpec(), failures, tried=(), withheld=NOTHING)
    assert names(found) == ["frequent", "any", "rare"]


def test_between_equals_every_proposer_has_its_first_choice_first() -> None:
    offers = [[knob("a1"), knob("a2")], [knob("b1"), knob("b2")]]
    failures = mix(MALFORMED_CALL=0.4)
    found, _ = useful_knobs(offers, AgentSpec(), failures, tried=(), withheld=NOTHING)
    assert names(found) == ["a1", "b1", "a2", "b2"]


def test_levels_that_were_tried_or_change_nothing_are_left_out() -> None:
    idle = Level(name="idle", change=lambda spec: spec)
    offered = knob("one", levels="abcde")
    offers = [[replace(offered, levels=(idle, *offered.levels)), Knob(name="two", levels=(idle,))]]
    failures = mix(MALFORMED_CALL=0.4)
    found, _ = useful_knobs(offers, AgentSpec(), failures, tried={("one", "b")}, withheld=NOTHING)
    assert [level.name for one in found for level in one.levels] == ["a", "c", "d"]


def test_levels_that_show_or_quote_a_withheld_task_are_left_out_and_named() -> None:
    [task] = planted_tasks("a holdout task with a long request", 1, mean=0.5, seed=0)
    shown = Demonstration(id=task.id, messages=(Message(role="user", content="other"),))
    request = task.messages[0].content
    leaking = Knob(
        name="leaking",
        levels=(
            Level(
                name="shows",
                change=lambda spec: replace(spec, shown=replace(spec.shown, pool=(shown,))),
            ),
            Level(name="quotes", change=saying(f"For example: {request}")),
            Level(
                name="notes",
                change=viewing({"get_order": {"argument_notes": {"order": f"E.g. {request}"}}}),
            ),
            Level(name="fair", change=saying("Think first.")),
        ),
    )
    own = replace(shown, id="own", messages=(*task.messages,))
    contaminated = AgentSpec(shown=Shown(count=1, pool=(own,)))
    for spec in (AgentSpec(), contaminated):  # what a project shows itself excuses nothing
        found, named = useful_knobs(
            [[leaking]], spec, mix(MALFORMED_CALL=0.4), tried=(), withheld=withheld([task])
        )
        assert [level.name for one in found for level in one.levels] == ["fair"]
        assert named == [("leaking", "shows"), ("leaking", "quotes"), ("leaking", "notes")]


def test_frequent_classes_are_treated_together_and_then_alone() -> None:
    format_, plan = knob("format", FailureClass.MALFORMED_CALL), knob("call", FailureClass.NO_CALL)
    rare = knob("rare", FailureClass.TRUNCATED)
    failures = mix(MALFORMED_CALL=0.4, NO_CALL=0.25, TRUNCATED=0.1)
    found = large_treatments([format_, plan, rare], failures, least=0.2, most=2)
    assert [names([*changes]) for changes in found] == [["format", "call"], ["format"]]
