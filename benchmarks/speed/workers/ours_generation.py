"""Our embedded engine, asked for many answers at once."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker import Handler, serve

from agentrft.core.config import EngineConfig
from agentrft.core.policy import Weights
from agentrft.core.protocols import SampleRequest
from agentrft.inference.embedded.engine import EmbeddedEngine


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    config = EngineConfig(
        threads=settings["threads"],
        max_sequences=settings["most_sequences"],
        device=settings["device"],
    )
    engine = EmbeddedEngine(
        Path(settings["model"]), config, max_context_tokens=settings["context_tokens"]
    )
    versions = iter(range(1, 1_000_000))

    def generate(prompts: Sequence[Sequence[int]], tokens: int, seed: int) -> Mapping[str, Any]:
        requests = [
            SampleRequest(prompt_ids=tuple(prompt), max_tokens=tokens, seed=seed * 1000 + place)
            for place, prompt in enumerate(prompts)
        ]

        async def run() -> list[int]:
            # A new version of the weights: what an earlier round computed counts no more.
            await engine.load(Weights(version=next(versions), tensors={}, canaries=()))
            found = await asyncio.gather(*map(engine.sample, requests))
            return [len(completion.token_ids) for completion in found]

        before = engine.stats
        counts = asyncio.run(run())
        after = engine.stats
        return {
            "tokens": sum(counts),
            "computed_prompt_tokens": after.prefilled_tokens - before.prefilled_tokens,
            "steps": after.decode_steps - before.decode_steps,
        }

    return {"generate": generate}


serve(prepare)
