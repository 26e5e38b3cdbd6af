"""What reaches the model, and with which seed."""

import asyncio
from dataclasses import replace

import pytest
from byte_chat import Desk, a_policy, a_setup, a_task, calls, decode, play, requests, says

from agentrft.core.config import Decoding, Limits
from agentrft.core.errors import UserError
from agentrft.core.grade import Outcome
from agentrft.core.spec import AgentSpec, ToolView, system_sections
from agentrft.core.task import Message, Task, ToolSpec
from agentrft.core.trajectory import Trajectory
from agentrft.rollout.environment import python_environment
from agentrft.rollout.episode import run_episode, trace_id
from agentrft.rollout.scripted import ScriptedEnvironment


def test_references_grader_text_and_other_rows_never_reach_the_prompt() -> None:
    class Knows(Desk):
        """SENTINEL-CLASS"""

        def __init__(self, task: Task) -> None:
            super().__init__(task)
            self.reference = task["reference"]

        def grade(self, trajectory: Trajectory) -> float:
            """SENTINEL-GRADE"""
            return 1.0

    task = a_task("where is W1?", reference="SENTINEL-REFERENCE", answer=["SENTINEL-ANSWER"])
    task = replace(task, family="SENTINEL-FAMILY", id="SENTINEL-ID")
    script = [calls(("get_order", {"order_id": "W1"})), calls(("unknown", {})), says("shipped")]
    setup = a_setup(script, python_environment(Knows))
    assert play(setup, task).outcome is Outcome.SCORED
    assert len(requests(setup)) == 3
    assert all("SENTINEL" not in decode(request.prompt_ids) for request in requests(setup))


def test_the_same_seed_gives_the_same_rollout_and_another_seed_another_trace() -> None:
    environment = ScriptedEnvironment({"get": ["x"]})
    script = [calls(("get", {})), says("hi")]
    setups = [a_setup(script, environment) for _ in range(3)]
    ids = [
        play(setup, seed=seed).trajectory.id for setup, seed in zip(setups, (1, 1, 2), strict=True)
    ]
    assert ids[0] == ids[1] != ids[2]
    assert environment.trace_ids == ids
    assert ids[0].startswith("trace_")
    assert len(ids[0]) == 38
    int(ids[0].removeprefix("trace_"), 16)
    seeds = [[request.seed for request in requests(setup)] for setup in setups]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 4


def test_two_policies_never_share_a_trace_id() -> None:
    setup = a_setup([], ScriptedEnvironment({}))
    other = replace(setup, policy=replace(setup.policy, version=1))
    assert trace_id(setup, a_task(), 1) != trace_id(other, a_task(), 1)


def test_decoding_comes_from_the_spec_unless_a_temperature_is_given() -> None:
    spec = AgentSpec(decoding=Decoding(temperature=0.5, top_p=0.9), limits=Limits())
    setup = a_setup([says("a"), says("b")], ScriptedEnvironment({}), policy=a_policy(spec))
    play(setup)
    asyncio.run(run_episode(setup, a_task(), seed=1, temperature=0.0))
    assert [(r.temperature, r.top_p) for r in requests(setup)] == [(0.5, 0.9), (0.0, 0.9)]


def test_system_text_is_joined_with_the_tasks_own() -> None:
    policy = a_policy(AgentSpec(sections=system_sections("Be kind.")))
    own = (Message(role="system", content="Be brief."), Message(role="user", content="hi"))
    setup = a_setup([says("a")], ScriptedEnvironment({}), policy=policy)
    prompt = play(setup, Task(id="t", messages=own)).trajectory.prompt
    assert prompt == (Message(role="system", content="Be kind.\n\nBe brief."), own[1])


def test_tool_notes_replace_what_the_model_is_told() -> None:
    policy = a_policy(AgentSpec(tools={"refund": ToolView(description="SAY-THIS")}))
    setup = a_setup([says("a")], python_environment(Desk), policy=policy)
    play(setup)
    prompt = decode(requests(setup)[0].prompt_ids)
    assert "SAY-THIS" in prompt
    assert "Pay back." not in prompt
    policy = a_policy(AgentSpec(tools={"refnd": ToolView(description="SAY-THIS")}))
    with pytest.raises(UserError, match="the spec names a tool 'refnd'"):
        play(a_setup([says("a")], python_environment(Desk), policy=policy))


def test_a_row_may_show_fewer_tools_but_none_that_do_not_exist() -> None:
    def listing(name: str) -> Task:
        spec = ToolSpec(name=name, description="", parameters={"type": "object"})
        return replace(a_task(), tools=(spec,))

    setup = a_setup([calls(("get_order", {"order_id": "W1"})), says("a")], python_environment(Desk))
    trajectory = play(setup, listing("refund")).trajectory
    assert "get_order" not in decode(requests(setup)[0].prompt_ids)
    assert trajectory.tool_results[0].content == (
        "Error: there is no tool 'get_order'; tools: refund"
    )
    with pytest.raises(UserError, match="lists tool 'pay'.*get_order, refund, broken"):
        play(setup, listing("pay"))
