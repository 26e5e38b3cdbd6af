"""The engine computes what transformers computes, however requests are batched and cached."""

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from agentrft.core.config import EngineConfig
from agentrft.core.errors import ModelError
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.inference.embedded.engine import EmbeddedEngine

VOCABULARY = 300
SaveModel = Callable[..., PreTrainedModel]
FLOAT32 = EngineConfig(dtype="float32", threads=1, max_sequences=6)


def tokens(count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(VOCABULARY) for _ in range(count)]


def greedy(prompt: Sequence[int], max_tokens: int) -> SampleRequest:
    return SampleRequest(prompt_ids=tuple(prompt), max_tokens=max_tokens, temperature=0)


@torch.no_grad()
def check_against(model: Any, prompt: Sequence[int], completion: Completion) -> None:
    """Token by token, the completion is the model's own greedy one with its logprobs."""
    expected = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=len(completion.token_ids),
        do_sample=False,
    )[0]
    assert list(completion.token_ids) == expected[len(prompt) :].tolist()
    logprobs = model(expected[None]).logits[0].log_softmax(-1)
    wanted = logprobs[:-1].gather(1, expected[1:, None])[len(prompt) - 1 :, 0].tolist()
    assert completion.logprobs == pytest.approx(wanted, abs=1e-4)


def test_concurrent_ragged_requests_are_greedy_like_transformers(
    save_model: SaveModel, family: str, tmp_path: Path
) -> None:
    model = save_model(family, tmp_path)
    engine = EmbeddedEngine(tmp_path, FLOAT32, max_context_tokens=384)
    shared = tokens(100, seed=1)
    prompts = [shared + tokens(n, seed=n) for n in (1, 2, 40, 40, 150)]
    prompts += [tokens(n, seed=n) for n in (1, 3, 70, 260)]

    async def run() -> list[Completion]:
        return await asyncio.gather(*(engine.sample(greedy(p, 20)) for p in prompts))

    completions = asyncio.run(run())
    engine.close()
    for prompt, completion in zip(prompts, completions, strict=True):
        check_against(model, prompt, completion)


def test_a_continued_conversation_reuses_its_row_and_changes_nothing(
    save_model: SaveModel, family: str, tmp_path: Path
) -> None:
    model = save_model(family, tmp_path)
    engine = EmbeddedEngine(tmp_path, FLOAT32, max_context_tokens=384)

    async def talk(seed: int) -> list[tuple[list[int], Completion]]:
        prompt = tokens(80, seed=0) + tokens(seed, seed)
        turns: list[tuple[list[int], Completion]] = []
        for turn in range(3):
            completion = await engine.sample(greedy(prompt, 8 + seed))
            turns.append((list(prompt), completion))
            prompt = [*prompt, *completion.token_ids, *tokens(5 + 3 * turn, seed)]
        return turns

    async def run() -> list[list[tuple[list[int], Completion]]]:
        return await asyncio.gather(*(talk(seed) for seed in range(1, 6)))

    talks = asyncio.run(run())
    engine.close()
    for turns in talks:
        for prompt, completion in turns:
            check_against(model, prompt, completion)
        for (before, first), (_, second) in itertools.pairwise(turns):
            # Everything but the last sampled token, which was never fed back.
            assert second.cached_tokens == len(before) + len(first.token_ids) - 1


def test_scores_are_transformers_logprobs(
    save_model: SaveModel, family: str, tmp_path: Path
) -> None:
    model = save_model(family, tmp_path)
    engine = EmbeddedEngine(tmp_path, FLOAT32, max_context_tokens=512)
    sequences = [tokens(n, seed=n) for n in (1, 2, 37, 37, 500, 512)] + [tokens(400, 9)] * 6

    scores = asyncio.run(engine.score(sequences))
    engine.close()
    for sequence, values in zip(sequences, scores, strict=True):
        ids = torch.tensor([sequence])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        wanted = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
        assert values == pytest.approx(wanted, abs=1e-4)


def test_bfloat16_stays_near_float32(model_folder: Path) -> None:
    sequence = tokens(200, seed=3)
    scores: list[list[float]] = []
    for config in (FLOAT32, EngineConfig(dtype="bfloat16", threads=1)):
        engine = EmbeddedEngine(model_folder, config, max_context_tokens=256)
        scores += asyncio.run(engine.score([sequence]))
        engine.close()
    differences = [abs(a - b) for a, b in zip(*scores, strict=True)]
    assert 0 < sum(differences) / len(differences) < 0.1


def test_bfloat16_sampling_reports_what_score_reports(model_folder: Path) -> None:
    config = EngineConfig(dtype="bfloat16", threads=1)
    engine = EmbeddedEngine(model_folder, config, max_context_tokens=256)
    prompts = [tokens(70, seed=1) + tokens(9, seed) for seed in range(4)]

    async def run() -> tuple[list[Completion], list[list[float]]]:
        completions = await asyncio.gather(
            *(engine.sample(SampleRequest(prompt_ids=tuple(p), max_tokens=30)) for p in prompts)
        )
        both = zip(prompts, completions, strict=True)
        return completions, await engine.score([[*p, *c.token_ids] for p, c in both])

    completions, scores = asyncio.run(run())
    engine.close()
    differences = [
        abs(a - b)
        for prompt, completion, score in zip(prompts, completions, scores, strict=True)
        for a, b in zip(completion.logprobs, score[len(prompt) - 1 :], strict=True)
    ]
    assert sum(differences) / len(differences) < 0.1


def test_weights_in_several_files_load(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model("qwen2", tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    engine = EmbeddedEngine(tmp_path / "parts", FLOAT32, max_context_tokens=64)
    completion = asyncio.run(engine.sample(greedy(tokens(10, 0), 5)))
    engine.close()
    check_against(model, tokens(10, 0), completion)


def test_a_model_that_really_slides_its_window_is_refused(
    save_model: SaveModel, tmp_path: Path
) -> None:
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    save_model("qwen2", tmp_path, **window)
    with pytest.raises(ModelError, match="window of 64 tokens"):
        EmbeddedEngine(tmp_path, FLOAT32, max_context_tokens=128)
    # Inside the window it is ordinary attention.
    engine = EmbeddedEngine(tmp_path, FLOAT32, max_context_tokens=64)
    completion = asyncio.run(engine.sample(greedy(tokens(10, 0), 5)))
    engine.close()
    check_against(AutoModelForCausalLM.from_pretrained(tmp_path), tokens(10, 0), completion)


def test_unusable_folders_name_what_is_wrong(save_model: SaveModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        EmbeddedEngine(tmp_path, FLOAT32, max_context_tokens=64)
    save_model("llama", tmp_path)
    with pytest.raises(ModelError, match="max_context_tokens is 4096 .* made for 512"):
        EmbeddedEngine(tmp_path, FLOAT32, max_context_tokens=4096)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text().replace('"intermediate_size": 80', '"intermediate_size": 81')
    )
    with pytest.raises(ModelError, match=r"does not fit its config\.json"):
        EmbeddedEngine(tmp_path, FLOAT32, max_context_tokens=64)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        EmbeddedEngine(tmp_path, FLOAT32, max_context_tokens=64)
