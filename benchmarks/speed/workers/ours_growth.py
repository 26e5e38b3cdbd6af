"""Our embedded engine, asked for one conversation, one group or one prompt; what it computed."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker import Handler, serve

from agentrft.core.config import EngineConfig
from agentrft.core.policy import Weights
from agentrft.core.protocols import SampleRequest
from agentrft.inference.embedded.engine import EmbeddedEngine

WORDS = range(1000, 40_000)
COUNTED = ("prefilled_tokens", "cached_tokens", "sampled_tokens", "decode_steps", "busy_s")


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    config = EngineConfig(
        threads=settings["threads"],
        device=settings["device"],
        max_sequences=settings["most_sequences"],
        cached_sequences=settings["most_sequences"],
    )
    engine = EmbeddedEngine(
        Path(settings["model"]), config, max_context_tokens=settings["context_tokens"]
    )
    versions = iter(range(1, 1_000_000))

    async def forget() -> None:
        """Take over new weights, under which nothing that was computed before counts."""
        await engine.load(Weights(version=next(versions), tensors={}, canaries=()))

    async def ask(prompts: Sequence[Sequence[int]], tokens: int, seed: int) -> tuple[Any, Any]:
        """Sample once for each prompt; return the answers and what the engine did for them."""
        before = asdict(engine.stats)
        found = await asyncio.gather(
            *(
                engine.sample(
                    SampleRequest(prompt_ids=tuple(ids), max_tokens=tokens, seed=seed + place)
                )
                for place, ids in enumerate(prompts)
            )
        )
        after = asdict(engine.stats)
        return found, {name: after[name] - before[name] for name in COUNTED}

    def converse(turns: int, observed: int, sampled: int, seed: int) -> Mapping[str, Any]:
        draw = random.Random(seed)

        async def run() -> list[Mapping[str, Any]]:
            await forget()
            ids: list[int] = []
            done: list[Mapping[str, Any]] = []
            for turn in range(turns):
                ids += draw.choices(WORDS, k=observed)
                (answer,), did = await ask([ids], sampled, seed + turn)
                done.append({"prompt_tokens": len(ids), **did})
                ids += answer.token_ids
            return done

        return {"turns": asyncio.run(run())}

    def group(size: int, prompt_tokens: int, sampled: int, seed: int) -> Mapping[str, Any]:
        prompt = random.Random(seed).choices(WORDS, k=prompt_tokens)

        async def run() -> Mapping[str, Any]:
            await forget()
            _, did = await ask([prompt] * size, sampled, seed)
            return did

        return asyncio.run(run())

    return {"converse": converse, "group": group}


serve(prepare)
