"""A desk with a long spec and a scripted model that acts through a real renderer: own rollouts."""

import asyncio
import importlib.util
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Method
from agentrft.inference.renderer import ChatRenderer, load_renderer
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.context import Job
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.serving import OpenTrainer, OpenWeights
from agentrft.store.home import Home

_path = Path(__file__).parents[1] / "inference" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tiny_families", _path)
assert _spec is not None
assert _spec.loader is not None
tiny_families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_families)

TOOLS = """
from agentrft import Environment, tool

class Desk(Environment):
    def __init__(self, task):
        self.number = task["number"]

    @tool
    def get_order(self, order_id: str) -> dict:
        \"\"\"Look an order up.\"\"\"
        return {"order": order_id, "status": "sent"}

    def grade(self, trajectory) -> float:
        return float(trajectory.output_text == f"W{self.number} is sent.")
"""
TOML = """
name = "desk"
environment = "tools.py:Desk"
system = "system.txt"
[limits]
max_turns = 3
[engine]
max_sequences = 4
[methods.rejection]
samples = 6
[methods.rejection.supervised]
steps = 4
batch_size = 2
checkpoint_interval = 2
[methods.distillation]
samples = 4
[methods.distillation.supervised]
steps = 4
batch_size = 2
checkpoint_interval = 2
"""
LONG = """
[tools.get_order]
name = "lookup"
parameters = { order_id = "id" }
[limits]
show_remaining = true
[shown]
count = 1
"""
POLICY = "Look every order up first. Then answer in one short sentence. Never guess."


def a_desk(folder: Path, *, toml: str = "", tools: str = TOOLS) -> Project:
    """A project of few tasks; its spec shows a demonstration and a section of its own."""
    folder.mkdir(parents=True)
    (folder / "tools.py").write_text(tools)
    (folder / "agent.toml").write_text(TOML + toml)
    (folder / "system.txt").write_text("Be kind.")
    (folder / "spec" / "system").mkdir(parents=True)
    (folder / "spec" / "spec.toml").write_text(LONG)
    (folder / "spec" / "system" / "10-role.md").write_text("Be kind.")
    (folder / "spec" / "system" / "20-policy.md").write_text(POLICY)
    (folder / "spec" / "demonstrations.jsonl").write_text(json.dumps(a_row("shown", 90)))
    (folder / "demonstrations.jsonl").write_text(json.dumps(a_row("held-out", 80)))
    lines = (
        {"id": f"t{n}", "number": n, "messages": [{"role": "user", "content": f"where is W{n}?"}]}
        for n in (1, 2, 3)
    )
    (folder / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return open_project(folder)


def a_row(name: str, number: int) -> dict[str, object]:
    call = {"name": "get_order", "arguments": json.dumps({"order_id": f"W{number}"})}
    return {
        "id": name,
        "messages": [
            {"role": "user", "content": f"where is W{number}?"},
            {
                "role": "assistant",
                "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": '{"status": "sent"}'},
            {"role": "assistant", "content": f"W{number} is sent."},
        ],
    }


def a_renderer(folder: Path) -> ChatRenderer:
    """A real chat format with a tokenizer of a few hundred tokens."""
    return load_renderer(tiny_families.write_family("smollm2", folder))


def looks_up(renderer: ChatRenderer, solved: Callable[[int], bool]) -> Callable[..., Sequence[int]]:
    """Calls the tool in one of two spellings, then answers; right where the seed is `solved`."""

    def script(request: SampleRequest) -> Sequence[int]:
        text = renderer.decode(request.prompt_ids)
        request_text = text.rpartition("<|im_start|>user")[2]
        found = re.search(r"W\d+", request_text)
        assert found is not None
        if "<|im_start|>tool" in request_text:
            answer = f"{found[0]} is sent." if solved(request.seed) else "I do not know."
        else:
            name, argument = ("lookup", "id") if "lookup(" in text else ("get_order", "order_id")
            gap = " " * (1 + request.seed % 2)
            answer = (
                f'<tool_call>{{"name": "{name}",{gap}"arguments": '
                f'{{"{argument}": "{found[0]}"}}}}</tool_call>'
            )
        return (*renderer.encode(answer), renderer.stop_token_ids[0])

    return script


def a_model(
    project: Project,
    renderer: ChatRenderer,
    open_trainer: OpenTrainer,
    *,
    solved: Callable[[int], bool] = lambda seed: seed % 3 > 0,
    before: Callable[[SampleRequest], Awaitable[None]] | None = None,
) -> OpenWeights:
    return OpenWeights(
        renderer=renderer,
        sampler=ScriptedSampler(looks_up(renderer, solved), before=before),
        project=project,
        open_trainer=open_trainer,
        verify=lambda folder: None,
        changed=lambda folder: True,
    )


def a_training(home: Path, method: Method) -> Job:
    """Open a stage of an improvement, which has audited the grader."""
    return a_whole_run(home).child("training", method)


def a_whole_run(home: Path, method: Method = Method.IMPROVE) -> Job:
    return Job.start(
        Home.open(home),
        "desk",
        method,
        config={},
        seed=5,
        progress=SilentProgress(),
        stop=asyncio.Event(),
        run_id="run-1",
    )
