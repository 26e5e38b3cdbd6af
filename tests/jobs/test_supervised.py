"""Demonstrations to imitate, rendered under a spec: what is fed in, and what carries loss."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agentrft.core.config import ProjectConfig
from agentrft.core.spec import AgentSpec, Rendering, Section, Shown, ToolView
from agentrft.core.task import Demonstration, Message, ToolCall
from agentrft.graders.fixed import FixedGrader
from agentrft.inference.renderer import load_renderer
from agentrft.jobs.project import Project
from agentrft.jobs.supervised import imitated, rendered
from agentrft.rollout.environment import Environment, python_environment, tool_specs
from agentrft.rollout.harness import Harness
from agentrft.rollout.tools import tool

_path = Path(__file__).parents[1] / "inference" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tiny_families", _path)
assert _spec is not None
assert _spec.loader is not None
tiny_families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_families)
APPENDING: Sequence[str] = sorted(set(tiny_families.FAMILIES) - {"template"})


class Desk(Environment):
    @tool
    def get_order(self, order_id: str) -> dict[str, str]:
        """Look an order up."""
        return {"order": order_id, "status": "sent"}


def a_demonstration(number: int) -> Demonstration:
    call = ToolCall(id="call_1", name="get_order", arguments=f'{{"order_id": "W{number}"}}')
    return Demonstration(
        id=f"row-{number}",
        messages=(
            Message(role="user", content=f"where is W{number}?"),
            Message(role="assistant", tool_calls=(call,)),
            Message(
                role="tool",
                content=f'{{"order": "W{number}", "status": "sent"}}',
                tool_call_id="call_1",
                name="get_order",
            ),
            Message(role="assistant", content=f"W{number} is sent."),
        ),
    )


POOL = (a_demonstration(1), a_demonstration(2))
SPEC = AgentSpec(
    sections=(Section(name="role", text="Be kind."),),
    tools={"get_order": ToolView(name="lookup", parameters={"order_id": "id"})},
    rendering=Rendering(form="fields", fields=("status",)),
    shown=Shown(count=1, pool=POOL),
)


def a_project(folder: Path, spec: AgentSpec) -> Project:
    return Project(
        folder=folder,
        config=ProjectConfig(name="desk"),
        spec=spec,
        open_environment=python_environment(Desk),
        grader=FixedGrader(lambda task, trajectory: 1.0),
        tools=tool_specs(Desk),
    )


@pytest.mark.parametrize("family", APPENDING)
def test_a_demonstration_is_fed_in_as_a_rollout_under_the_spec_would_be(
    tmp_path: Path, family: str
) -> None:
    renderer = load_renderer(tiny_families.write_family(family, tmp_path / family))
    project = a_project(tmp_path, SPEC)
    (sample,) = rendered([a_demonstration(2)], project, renderer)
    row = a_demonstration(2)
    seen = Harness(SPEC).demonstration(row, project.tools)
    prompt = renderer.start(seen.messages[:-3], seen.tools)
    assert sample.token_ids[: len(prompt)] == prompt
    assert not any(sample.action_mask[: len(prompt)])
    acted = [i for i, action in zip(sample.token_ids, sample.action_mask, strict=True) if action]
    text = renderer.decode(acted)
    assert "lookup" in text
    assert "W2 is sent." in text
    assert "W1" not in text
    assert "get_order" not in renderer.decode(sample.token_ids)
    fed = renderer.decode(prompt)
    assert fed.index("Be kind.") < fed.index("W1 is sent.") < fed.index("where is W2?")
    assert '"order":' not in renderer.decode(sample.token_ids)


def test_a_demonstration_is_never_shown_to_itself(tmp_path: Path) -> None:
    renderer = load_renderer(tiny_families.write_family("qwen2", tmp_path / "qwen2"))
    (sample,) = rendered([a_demonstration(1)], a_project(tmp_path, SPEC), renderer)
    text = renderer.decode(sample.token_ids)
    assert text.count("where is W1?") == 1
    assert text.count("where is W2?") == 1


def test_messages_not_to_be_imitated_are_counted_behind_those_shown() -> None:
    mask = [False, True, True, False, True, False, True, True]
    assert list(imitated(mask, ())) == mask
    wanted = list(imitated(mask, (False, True), before=1))
    assert wanted == [False] * 6 + [True, True]
    assert list(imitated(mask, (), before=3)) == [False] * 8


def test_under_a_default_spec_nothing_is_added(tmp_path: Path) -> None:
    renderer = load_renderer(tiny_families.write_family("smollm2", tmp_path / "smollm2"))
    project = a_project(tmp_path, AgentSpec())
    demonstration = replace(a_demonstration(1), imitated=(False, True))
    (sample,) = rendered([demonstration], project, renderer)
    ids, mask = renderer.demonstration(demonstration.messages, tool_specs(Desk))
    assert sample.token_ids == ids
    assert sum(sample.action_mask) < sum(mask)
