"""Our rollouts alone, as a step of reinforcement makes them: a group per task, graded."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slow_tools import DELAY_S
from worker import Handler, serve

from agentrft.core.config import EngineConfig
from agentrft.core.policy import Weights
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.inference.renderer import load_renderer
from agentrft.jobs.project import open_project
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.group import collect


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    project = open_project(Path(settings["project"]))
    folder = Path(settings["model"])
    renderer = load_renderer(folder)
    config = EngineConfig(threads=settings["threads"], device=settings["device"])
    limit = project.spec.limits.max_context_tokens
    engine = EmbeddedEngine(folder, config, max_context_tokens=limit)
    setup = project.setup(TokenSpeaker(engine, renderer))
    rows = project.tasks("train")
    versions = iter(range(1, 1_000_000))

    def first_prompt() -> Mapping[str, Any]:
        task = rows[0]
        begun = setup.harness.conversation(task, project.offered(task), task.messages)
        return {"ids": list(renderer.start(begun.messages, begun.tools))}

    def rollouts(first: int, tasks: int, delay_s: float, seed: int) -> Mapping[str, Any]:
        os.environ[DELAY_S] = str(delay_s)
        chosen = [rows[(first + place) % len(rows)] for place in range(tasks)]

        async def run() -> Any:
            # A step has new weights, for which nothing is computed yet.
            await engine.load(Weights(version=next(versions), tensors={}, canaries=()))
            return await collect(
                setup,
                chosen,
                group_size=settings["group_size"],
                seed=seed,
                temperature=1.0,
                concurrency=config.max_sequences * 3 // 2,
            )

        made = asyncio.run(run())
        assert not made.lost_groups, "rollouts were lost to infrastructure"
        graded = [one for group in made.groups for one in group.graded]
        trajectories = [one.trajectory for one in graded]
        return {
            "rollouts": len(graded),
            "turns": sum(len(one.turns) for one in trajectories),
            "tool_calls": sum(len(one.tool_results) for one in trajectories),
            "tokens": sum(one.sampled_tokens for one in trajectories),
            "score": sum(one.grade.score or 0.0 for one in graded) / len(graded),
        }

    return {"collect": rollouts, "first_prompt": first_prompt}


serve(prepare)
