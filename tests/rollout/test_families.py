"""The agent loop with the real renderers of every family, on tiny tokenizers."""

import asyncio
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from byte_chat import a_policy, a_setup
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrft.core.config import Limits
from agentrft.core.spec import AgentSpec, system_sections
from agentrft.core.task import Message, Task, ToolCall
from agentrft.core.trajectory import StopReason
from agentrft.inference.renderer import ChatRenderer, load_renderer
from agentrft.inference.scripted import ScriptedSampler
from agentrft.rollout.episode import recorded_ids, run_episode
from agentrft.rollout.scripted import ScriptedEnvironment

_path = Path(__file__).parents[1] / "inference" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tiny_families", _path)
assert _spec is not None
assert _spec.loader is not None
tiny_families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_families)
FAMILIES: list[str] = sorted(tiny_families.FAMILIES)
ROOMY = Limits(max_tokens=10_000, max_turn_tokens=10_000, max_context_tokens=100_000)
"""A byte of text may be a token here, so that three calls are longer than a usual turn."""


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ChatRenderer]:
    root = tmp_path_factory.mktemp("families")
    return {name: load_renderer(tiny_families.write_family(name, root / name)) for name in FAMILIES}


texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "<|im_end|>\n<|im_start|>assistant", "</tool_call>", "<|eot_id|>", "ünï"]),
)
arguments = st.dictionaries(st.sampled_from(["order_id", "note"]), texts, max_size=2)
calls = st.lists(
    st.tuples(st.sampled_from(["get", "refuse", "unknown"]), arguments), min_size=1, max_size=3
)
noise = st.lists(st.integers(0, 250), max_size=6)


def written(renderer: ChatRenderer, message: Message) -> tuple[int, ...]:
    """What the model would sample to say this."""
    ids, mask = renderer.demonstration([Message(role="user", content="?"), message], ())
    return tuple(i for i, sampled in zip(ids, mask, strict=True) if sampled)


@pytest.mark.parametrize("family", FAMILIES)
@given(st.lists(st.one_of(calls, noise), max_size=3), texts, texts)
@settings(max_examples=40)
def test_every_family_sees_exactly_what_is_recorded(
    renderers: Mapping[str, ChatRenderer],
    family: str,
    script: list[list[tuple[str, dict[str, str]]] | list[int]],
    user: str,
    result: str,
) -> None:
    renderer = renderers[family]
    completions: list[tuple[int, ...]] = []
    for turn in script:
        made = [
            ToolCall(id=f"call_{n}", name=pair[0], arguments=json.dumps(pair[1]))
            for n, pair in enumerate(turn)
            if not isinstance(pair, int)
        ]
        if family == "llama3":
            del made[1:]  # This family writes one call per turn.
        junk = tuple(token for token in turn if isinstance(token, int))
        message = Message(role="assistant", tool_calls=tuple(made))
        completions.append(written(renderer, message) if made else junk)
    completions.append(written(renderer, Message(role="assistant", content="bye")))
    sampler = ScriptedSampler(completions)
    setup = a_setup(
        sampler,
        ScriptedEnvironment({"get": [result], "refuse": [f"Error: {result}"]}, score=1.0),
        policy=a_policy(AgentSpec(sections=system_sections("Be kind."), limits=ROOMY)),
        renderer=renderer,
    )
    task = Task(id="t", messages=(Message(role="user", content=user),))
    trajectory = asyncio.run(run_episode(setup, task, seed=1)).trajectory

    assert trajectory.stop_reason is StopReason.FINISHED, trajectory.failure
    assert len(sampler.requests) == len(trajectory.turns)
    for number, request in enumerate(sampler.requests):
        turn = trajectory.turns[number]
        before = [t for t in trajectory.turns[:number] if t.context == turn.context]
        assert request.prompt_ids == (*recorded_ids(before), *turn.observation_ids)
    appends = {turn.context for turn in trajectory.turns} == {0}
    assert appends == (family != "template" or len(trajectory.turns) == 1)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "template"])
def test_calls_of_every_family_reach_their_tools(
    renderers: Mapping[str, ChatRenderer], family: str
) -> None:
    renderer = renderers[family]
    call = ToolCall(id="call_0", name="get", arguments='{"order_id": "W1 ü"}')
    environment = ScriptedEnvironment({"get": ["shipped"]}, score=1.0)
    completions = [
        written(renderer, Message(role="assistant", tool_calls=(call,))),
        written(renderer, Message(role="assistant", content="bye")),
    ]
    task = Task(id="t", messages=(Message(role="user", content="?"),))
    setup = a_setup(completions, environment, renderer=renderer)
    graded = asyncio.run(run_episode(setup, task, seed=1))
    assert [json.loads(made.arguments) for made in environment.calls] == [{"order_id": "W1 ü"}]
    assert graded.trajectory.output_text == "bye"
