"""An agent behind an endpoint, with our own engine and server at the other end of the wire."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from builders import a_job
from live import Live, live_server

from agentrft.core.config import EngineConfig
from agentrft.core.grade import Outcome
from agentrft.core.run import Method, RolloutRecord
from agentrft.core.task import ToolCall
from agentrft.core.trajectory import Trajectory
from agentrft.inference.chat import ChatClient, ChatRequest
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.inference.renderer import load_renderer
from agentrft.inference.scripted import Answer, ScriptedChat, scripted_answer
from agentrft.jobs.improve import measure
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.starter import write_starter
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.episode import run_episode

TASKS = 2
CHILD = """
import sys
from pathlib import Path
from agentrft.core.config import EngineConfig
from agentrft.inference.service import serve_chat
serve_chat(Path(sys.argv[1]), Path(sys.argv[2]), EngineConfig(max_sequences=2, dtype="float32"))
"""


@pytest.fixture(scope="module")
def live(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The API, and the process that answers its chats with the real model."""
    folder = tmp_path_factory.mktemp("chat")
    socket = folder / "chat.sock"
    command = [sys.executable, "-c", CHILD, str(socket), str(smollm2_folder.parent)]
    with subprocess.Popen(command) as child:
        client = ChatClient(socket)

        async def until_ready() -> None:
            while not await client.ready():
                assert child.poll() is None, "the chat process ended"
                await asyncio.sleep(0.05)

        asyncio.run(until_ready())
        with live_server(folder / "home", client) as live:
            yield live
        child.terminate()


def a_project(folder: Path, live: Live, calls: Literal["native", "text"]) -> Project:
    write_starter(folder)
    (folder / "key").write_text(live.token)
    lines = [
        *("[endpoint]", f'base_url = "{live.url}/v1"', 'model = "smollm2-135m"'),
        *(f'api_key_file = "{folder / "key"}"', f'calls = "{calls}"', "max_concurrent = 2"),
        *("[decoding]", "temperature = 0.0", "[methods.evaluation]", f"tasks = {TASKS}"),
    ]
    with (folder / "agent.toml").open("a") as file:
        file.write("\n".join(["", *lines, ""]))
    return open_project(folder)


def evaluated(project: Project, home: Path) -> list[Trajectory]:
    job = a_job(home, Method.EVALUATION)
    asyncio.run(measure(job, project, "holdout", None))
    records = job.read_all(RolloutRecord)
    assert {r.graded.outcome for r in records} <= {Outcome.SCORED, Outcome.MODEL_FAULT}
    assert len(records) == TASKS
    return [r.graded.trajectory for r in records]


def said(trajectory: Trajectory) -> list[object]:
    return [
        (turn.message.content, [(c.name, c.arguments) for c in turn.message.tool_calls])
        for turn in trajectory.turns
    ]


def test_rollouts_behind_an_endpoint_say_what_the_engine_says_itself(
    live: Live, smollm2_folder: Path, tmp_path: Path
) -> None:
    project = a_project(tmp_path / "loans", live, "native")
    remote = evaluated(project, tmp_path / "home")
    engine = EmbeddedEngine(
        smollm2_folder, EngineConfig(dtype="float32", max_sequences=2), max_context_tokens=768
    )
    try:
        local = replace(project, config=replace(project.config, endpoint=None)).setup(
            TokenSpeaker(engine, load_renderer(smollm2_folder))
        )
        tasks = project.tasks("holdout")[:TASKS]
        own = [asyncio.run(run_episode(local, task, seed=1)).trajectory for task in tasks]
    finally:
        engine.close()
    by_task = {trajectory.task_id: trajectory for trajectory in remote}
    assert [said(by_task[t.task_id]) for t in own] == [said(t) for t in own]
    sampled = [(by_task[t.task_id].sampled_tokens, t.sampled_tokens) for t in own]
    assert all(counted == real for counted, real in sampled)


def test_a_project_whose_agent_writes_calls_as_text_is_evaluated_end_to_end(
    live: Live, tmp_path: Path
) -> None:
    trajectories = evaluated(a_project(tmp_path / "loans", live, "text"), tmp_path / "home")
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    assert all(turn.usage and turn.usage.prompt_tokens > 100 for turn in turns)
    assert all(turn.message.content or turn.message.tool_calls for turn in turns)


def test_calls_and_results_pass_our_own_server_in_both_directions(tmp_path: Path) -> None:
    def looks_up_and_answers(request: ChatRequest) -> Answer:
        if request.messages[-1].role == "tool":
            return scripted_answer("Your loan is looked after.")
        call = ToolCall(id="call_1", name="get_loan", arguments='{"loan_id": "L1"}')
        return scripted_answer("Let me see.", call)

    chat = ScriptedChat(looks_up_and_answers)
    with live_server(tmp_path / "api", chat) as live:
        trajectories = evaluated(a_project(tmp_path / "loans", live, "native"), tmp_path / "home")
    for trajectory in trajectories:
        first, last = trajectory.turns
        assert first.message.content == "Let me see."
        assert [c.name for c in first.message.tool_calls] == ["get_loan"]
        assert first.tool_results[0].content == "no loan L1"
        assert last.message.content == "Your loan is looked after."
    answered = [r.messages[-2:] for r in chat.requests if r.messages[-1].role == "tool"]
    assert len(answered) == TASKS
    for said, result in answered:
        assert said.content == "Let me see."
        assert (result.name, result.content) == ("get_loan", "no loan L1")
