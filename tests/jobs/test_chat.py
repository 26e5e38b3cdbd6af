"""A person talks with the agent: the loop of training, with somebody who answers its answers."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from byte_chat import ByteChat, a_policy, calls, requests, says

from agentrft.core.errors import UserError
from agentrft.core.protocols import Environment
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult
from agentrft.graders.fixed import FixedGrader
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.chat import COMMANDS, Chat, chosen_task
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.starter import write_starter
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.episode import RolloutSetup


@pytest.fixture
def project(tmp_path: Path) -> Project:
    write_starter(tmp_path / "library")
    return open_project(tmp_path / "library")


def talk(
    project: Project, script: Sequence[Sequence[int]], *lines: str, **limits: int
) -> tuple[list[str], RolloutSetup]:
    """Say the lines one by one; return what was shown."""
    speaker = TokenSpeaker(ScriptedSampler(script), ByteChat())
    setup = replace(project.setup(speaker), policy=a_policy(**limits))
    return talked(project, setup, *lines), setup


def talked(project: Project, setup: RolloutSetup, *lines: str) -> list[str]:
    shown, left = list[str](), list(lines)

    async def read() -> str | None:
        return left.pop(0) if left else None

    task = chosen_task(project, "")
    asyncio.run(Chat(setup, project, task, read=read, show=shown.append).run())
    return shown


class BrokenTools:
    """An environment whose tools raise, as those of a system that is down."""

    def __init__(self, inner: Environment) -> None:
        self._inner = inner

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        return self._inner.tool_specs()

    async def call_tool(self, call: ToolCall) -> ToolResult:
        raise RuntimeError("the library is closed")

    async def close(self) -> None:
        await self._inner.close()


def test_calls_and_results_are_shown_as_they_happen(project: Project) -> None:
    tool = project.tools[0].name
    shown, _ = talk(project, [calls((tool, {"a": 1})), says("It is there.")], "Where?")
    assert shown[0] == f'  call   {tool} {{"a": 1}}'
    assert shown[1].startswith("  result ")
    assert shown[2] == "agent> It is there."


def test_a_further_line_goes_on_where_the_conversation_is(project: Project) -> None:
    _, setup = talk(project, [says("one"), says("two"), says("three")], "a", "b", "c")
    prompts = [request.prompt_ids for request in requests(setup)]
    answers = [says("one"), says("two")]
    for before, said, after in zip(prompts, answers, prompts[1:], strict=False):
        assert after[: len(before) + len(said)] == (*before, *said)  # nothing is written anew


def test_limits_hold_for_each_message_of_the_user(project: Project) -> None:
    tool = project.tools[0].name
    script = [calls((tool, {})), says("one"), calls((tool, {})), says("two")]
    shown, _ = talk(project, script, "a", "b", max_turns=2, max_tool_calls=1)
    assert [line for line in shown if line.startswith("agent>")] == ["agent> one", "agent> two"]


def test_a_limit_ends_a_conversation_and_not_the_chat(project: Project) -> None:
    tool = project.tools[0].name
    script = [calls((tool, {})), calls((tool, {})), says("anew")]
    shown, setup = talk(project, script, "a", "b", max_turns=2)
    assert any("max_turns" in line for line in shown)
    assert shown[-1] == "agent> anew"
    first, last = requests(setup)[0], requests(setup)[-1]
    assert len(last.prompt_ids) == len(first.prompt_ids)


def test_a_tool_that_fails_ends_a_conversation_and_says_what_was_called(project: Project) -> None:
    tool = project.tools[0].name
    speaker = TokenSpeaker(ScriptedSampler([calls((tool, {"a": 1})), says("anew")]), ByteChat())

    def opened(task: Task, trace: str) -> Environment:
        return BrokenTools(project.open_environment(task, trace))

    async def at_once(seconds: float) -> None: ...

    setup = replace(
        project.setup(speaker),
        policy=a_policy(),
        open_environment=opened,
        grader=FixedGrader(lambda task, trajectory: 0.0),
        wait=at_once,
    )
    shown = talked(project, setup, "a", "b")
    assert shown[0] == f'  call   {tool} {{"a": 1}}'
    assert "ended by" in shown[1]
    assert "the library is closed" in shown[1]
    assert shown[-1] == "agent> anew"


def test_reset_begins_a_conversation_that_knows_nothing_of_the_last(project: Project) -> None:
    shown, setup = talk(project, [says("one"), says("two")], "a", "/reset", "b", "/quit", "c")
    first, second = (request.prompt_ids for request in requests(setup))
    assert len(first) == len(second)
    assert "[a new conversation; the environment is as at the beginning]" in shown


def test_an_empty_line_asks_what_the_row_asks(project: Project) -> None:
    _, setup = talk(project, [says("one")], "")
    asked = next(m.content for m in chosen_task(project, "").messages if m.role == "user")
    (request,) = requests(setup)
    assert asked in "".join(chr(i) for i in request.prompt_ids if i < 0x110000)


def test_commands_are_not_for_the_agent(project: Project) -> None:
    shown, setup = talk(project, [], "/tools", "/what", "/quit")
    assert [line.split(":")[0].strip() for line in shown[:2]] == [one.name for one in project.tools]
    assert shown[-1] == COMMANDS
    assert requests(setup) == []


def test_a_row_is_chosen_by_id_and_an_unknown_one_refused(project: Project) -> None:
    train = project.tasks("train")[0]
    assert chosen_task(project, train.id) == train
    with pytest.raises(UserError, match="no row of its data has the id 'nobody'"):
        chosen_task(project, "nobody")
