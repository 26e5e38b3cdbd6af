"""The neutral evaluator: our engine and the desk's grader play any adapter in PEFT's format."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from worker import Handler, serve

from agentrft.core.config import EngineConfig
from agentrft.core.policy import Weights
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.inference.renderer import load_renderer
from agentrft.jobs.project import open_project
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.group import collect
from agentrft.training.files import ADAPTER_PREFIX, each_tensor
from agentrft.training.parameters import merge


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    project = open_project(Path(settings["project"]))
    folder = Path(settings["model"])
    config = EngineConfig(threads=settings["threads"], device=settings["device"])
    limit = project.spec.limits.max_context_tokens
    engine = EmbeddedEngine(folder, config, max_context_tokens=limit)
    setup = project.setup(TokenSpeaker(engine, load_renderer(folder)))
    tasks = project.tasks("holdout")[: settings["holdout_tasks"]]
    versions = iter(range(1, 1_000_000))

    def evaluate(adapter: str) -> Mapping[str, Any]:
        # The weights without any are asked for first, and each adapter covers all of the last one.
        tensors = _merged(folder, Path(adapter) if adapter else None)

        async def run() -> list[float]:
            await engine.load(Weights(version=next(versions), tensors=tensors, canaries=()))
            size = settings["holdout_samples"]
            made = await collect(setup, tasks, group_size=size, seed=0)
            assert not made.lost_groups, "rollouts were lost to infrastructure"
            return [one.grade.score or 0.0 for group in made.groups for one in group.graded]

        scores = asyncio.run(run())
        return {"score": sum(scores) / len(scores)}

    return {"evaluate": evaluate}


def _merged(folder: Path, adapter: Path | None) -> dict[str, Tensor]:
    if adapter is None:
        return {}
    factors = load_file(adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    scale = settings["lora_alpha"] / settings["r"]
    merged: dict[str, Tensor] = {}
    for name, own in each_tensor(folder):
        layer = ADAPTER_PREFIX + name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" in factors:
            a, b = factors[f"{layer}.lora_A.weight"], factors[f"{layer}.lora_B.weight"]
            merged[name] = merge(own, a, b, scale).to(torch.bfloat16)
    assert 2 * len(merged) == len(factors), "the adapter has layers that the model lacks"
    return merged


serve(prepare)
