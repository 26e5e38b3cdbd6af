from dataclasses import replace

from agentrft.core.config import Decoding, Limits
from agentrft.core.spec import AgentSpec, Guards, Section, ToolView
from agentrft.optimize.crutches import without, without_one

PLAIN = AgentSpec()
RICH = AgentSpec(
    sections=(Section(name="role", text="Be kind."),),
    tools={"refund": ToolView(name="pay_back")},
    guards=Guards(coerce=True, block_duplicates=True),
    decoding=Decoding(temperature=0.0),
    limits=Limits(max_context_tokens=9000, show_remaining=True),
)


def test_each_change_can_be_taken_back_alone() -> None:
    found = without_one(PLAIN, RICH)
    assert set(found) == {
        "sections",
        "tools",
        "guards.coerce",
        "guards.block_duplicates",
        "decoding.temperature",
        "limits.show_remaining",
    }
    assert found["guards.coerce"].guards == Guards(block_duplicates=True)
    assert found["tools"] == replace(RICH, tools={})


def test_room_that_other_changes_need_stays() -> None:
    everything = frozenset(without_one(PLAIN, RICH))
    assert without(PLAIN, RICH, everything) == replace(
        PLAIN, limits=Limits(max_context_tokens=9000)
    )


def test_a_spec_without_changes_has_nothing_to_take_back() -> None:
    assert without_one(PLAIN, PLAIN) == {}
