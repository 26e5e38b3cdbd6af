"""Our agent loop with everything but the model: scripted answers, real tools, grader and store."""

import asyncio
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker import Handler, serve

from agentrft import Environment, Task, Trajectory, tool
from agentrft.core.config import Limits
from agentrft.core.policy import Policy
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Method, RolloutRecord, Run, RunStatus
from agentrft.core.spec import AgentSpec, system_sections
from agentrft.core.task import Message
from agentrft.graders.environment import EnvironmentGrader
from agentrft.inference.renderer import load_renderer
from agentrft.inference.scripted import ScriptedSampler
from agentrft.rollout.dialogue import Renderer, TokenSpeaker
from agentrft.rollout.environment import python_environment
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.group import Collected, collect
from agentrft.store.home import Home

TESTS = Path(__file__).parents[3] / "tests" / "rollout"
SYSTEM = "You serve the customers of a shop. Look everything up before you answer, and be brief."
TURNS = (
    ("get_order", '{"order_id": "W1042"}'),
    ("search_policy", '{"topic": "refund"}'),
    ("refund", '{"order_id": "W1042", "amount": 25.20}'),
)
ANSWER = "Done: 25.20 refunded for W1042."
GROUP_SIZE = 8
PROBE_S = 0.001


class Shop(Environment):
    """One order; tools that cost next to nothing."""

    def __init__(self, task: Task) -> None:
        self.paid = 0.0
        self.order = {"id": task["order"], "status": "delivered", "items": {"mug": 25.2, "rug": 9}}

    @tool
    def get_order(self, order_id: str) -> dict[str, Any]:
        """Look up an order. order_id: as printed on the receipt."""
        return self.order

    @tool
    def search_policy(self, topic: str) -> str:
        """Read the rules."""
        return f"On {topic}: 30 days after delivery, in full, by the way it was paid."

    @tool
    def refund(self, order_id: str, amount: float) -> str:
        """Pay money back."""
        self.paid += amount
        return "paid"

    def grade(self, trajectory: Trajectory) -> dict[str, float]:
        """Full marks for the refund and for saying so."""
        return {"score": float(self.paid > 0), "said": float("25.20" in trajectory.output_text)}


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    renderer, said = _renderer(settings)
    home = _empty_home(Path(settings["store"])) if settings["store"] else None
    limits = Limits(max_context_tokens=100_000, timeout_s=3600.0)
    spec = AgentSpec(sections=system_sections(SYSTEM), limits=limits)

    def play(rollouts: int, seed: int, answer_s: float) -> Mapping[str, Any]:
        setup = RolloutSetup(
            policy=Policy(model="scripted", version=0, spec=spec),
            speaker=TokenSpeaker(_sampler(said, answer_s), renderer),
            open_environment=python_environment(Shop),
            grader=EnvironmentGrader(),
        )
        tasks = [
            Task(
                id=f"task-{number}",
                messages=(Message(role="user", content=f"Refund the mug of W1042 ({number})."),),
                row={"order": "W1042"},
            )
            for number in range(rollouts // GROUP_SIZE)
        ]

        async def run() -> Mapping[str, Any]:
            late: list[float] = []
            probe = asyncio.create_task(_probe(late))
            collected = await collect(
                setup, tasks, group_size=GROUP_SIZE, seed=seed, concurrency=rollouts
            )
            probe.cancel()
            if home is not None:
                _commit(home, collected, seed)
            return {**_counted(collected), **_lag(late)}

        return asyncio.run(run())

    return {"play": play}


def _renderer(settings: Mapping[str, Any]) -> tuple[Renderer, Sequence[tuple[int, ...]]]:
    """Return a renderer and what the model says in it, turn by turn."""
    written = [f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in TURNS]
    if settings["renderer"] == "characters":
        sys.path.insert(0, str(TESTS))
        from byte_chat import ByteChat, says

        return ByteChat(), [says(f"<call>{text}</call>") for text in written] + [says(ANSWER)]
    chat = load_renderer(Path(settings["model"]))
    stop = chat.stop_token_ids[0]
    texts = [*(f"<tool_call>{text}</tool_call>" for text in written), ANSWER]
    return chat, [(*chat.encode(text), stop) for text in texts]


def _empty_home(folder: Path) -> Home:
    shutil.rmtree(folder, ignore_errors=True)
    return Home.open(folder)


def _sampler(said: Sequence[tuple[int, ...]], answer_s: float) -> ScriptedSampler:
    """Answer by the number of turns so far, after about `answer_s` seconds."""
    stop = said[0][-1]

    def answer(request: SampleRequest) -> Sequence[int]:
        # System text and request end with one each, and so do a turn and the tool's answer to it.
        return said[request.prompt_ids.count(stop) // 2 - 1]

    async def before(request: SampleRequest) -> None:
        await asyncio.sleep(answer_s * random.Random(request.seed).uniform(0.5, 1.5))

    return ScriptedSampler(answer, before=before if answer_s else None)


async def _probe(late: list[float]) -> None:
    """Ask for a millisecond again and again, and note how much later it comes."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(PROBE_S)
        late.append(time.perf_counter() - began - PROBE_S)


def _lag(late: list[float]) -> Mapping[str, float]:
    ordered = sorted(late)
    return {
        "lag_p50_s": ordered[len(ordered) // 2],
        "lag_p99_s": ordered[len(ordered) * 99 // 100],
        "lag_max_s": ordered[-1],
    }


def _counted(collected: Collected) -> Mapping[str, Any]:
    graded = [one for group in collected.groups for one in group.graded]
    return {
        "rollouts": len(graded),
        "turns": sum(len(one.trajectory.turns) for one in graded),
        "tool_calls": sum(len(one.trajectory.tool_calls) for one in graded),
        "tokens": sum(
            one.trajectory.sampled_tokens + one.trajectory.observed_tokens for one in graded
        ),
        "full_marks": sum(one.grade.score == one.grade.parts["said"] == 1.0 for one in graded),
    }


def _commit(home: Home, collected: Collected, seed: int) -> None:
    """Store the rollouts as a training step does, in one transaction."""
    run = Run(
        id=f"run-{seed}", project="bench", method=Method.REINFORCEMENT, status=RunStatus.QUEUED
    )
    home.store.put_run(run)
    home.store.append(
        run.id,
        [
            RolloutRecord(stage="reinforcement", split="train", step=1, family="", graded=graded)
            for group in collected.groups
            for graded in group.graded
        ],
    )


serve(prepare)
