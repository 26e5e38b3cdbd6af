from fabricated import Situation, levels, rollout, tasks

from agentrft.core.spec import AgentSpec, Section, system_sections
from agentrft.core.trajectory import StopReason
from agentrft.optimize.templates import BANK, Templates, first_sentences

ORDER = ("get_order", {"order_id": "W1"}, "status=pending")
LOOPED = [
    (one, rollout(one, ORDER, ORDER, ORDER, score=0.0, stop=StopReason.MAX_TURNS))
    for one in tasks(3)
]
POLICY = (
    "You work at a desk. Look first. Then act. Then stop.\nRules:\n"
    + "- Refund only what was delivered.\n" * 12
)


def test_sections_are_offered_for_the_failures_that_occur() -> None:
    knobs = Situation(LOOPED).knobs(Templates())
    assert set(knobs) == {"section: stop"}
    spec = AgentSpec(sections=system_sections("Be kind."))
    changed = knobs["section: stop"].levels[0].change(spec)
    assert [section.name for section in changed.sections] == ["system", "stop"]
    assert changed == knobs["section: stop"].levels[0].change(changed)


def test_long_system_text_is_offered_short_and_not_at_all() -> None:
    spec = AgentSpec(sections=system_sections(POLICY))
    knob = Situation(LOOPED, baseline=spec).knobs(Templates())["system text"]
    assert levels(knob)["first sentences"].change(spec).system == (
        "You work at a desk. Look first. Then act."
    )
    assert levels(knob)["none"].change(spec).system == ""


def test_less_system_text_leaves_the_sections_of_the_bank() -> None:
    stop = Section(name=BANK[0].name, text=BANK[0].text)
    spec = AgentSpec(sections=(*system_sections(POLICY), stop))
    knob = Situation(LOOPED, baseline=spec).knobs(Templates())["system text"]
    assert levels(knob)["none"].change(spec).sections == (stop,)


def test_short_system_text_stays() -> None:
    spec = AgentSpec(sections=system_sections("Be kind."))
    assert "system text" not in Situation(LOOPED, baseline=spec).knobs(Templates())


def test_a_paragraph_ends_where_a_list_begins() -> None:
    assert first_sentences("One. Two!\n- three") == "One. Two!"
    assert first_sentences("One line without an end\n\nAnother") == "One line without an end"
    assert first_sentences("A. B. C. D.") == "A. B. C."
