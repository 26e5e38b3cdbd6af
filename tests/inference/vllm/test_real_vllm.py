"""vLLM itself against the embedded engine and the trainer: tiny weights, in float32 on both sides."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_teacher import VOCABULARY, lesson, teacher_of, tokens
from transformers import AutoModelForCausalLM

from agentrft.core.config import EngineConfig, VllmConfig
from agentrft.core.errors import IdentityError, SamplerError
from agentrft.core.policy import Policy, Weights
from agentrft.core.protocols import Completion, Sampler, SampleRequest
from agentrft.core.spec import AgentSpec
from agentrft.core.training_config import Adapter
from agentrft.core.trajectory import FinishReason
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.inference.vllm.sampler import VllmSampler
from agentrft.inference.vllm.server import Served, VllmServer
from agentrft.jobs.publication import Publisher

CONTEXT = 255
ALIKE = 2e-3
"""Nats by which two ways of computing the same in float32 may differ."""


def request(
    prompt: Sequence[int], max_tokens: int = 16, temperature: float = 0.0, **others: Any
) -> SampleRequest:
    return SampleRequest(
        prompt_ids=tuple(prompt), max_tokens=max_tokens, temperature=temperature, **others
    )


def together(sampler: Sampler, requests: Sequence[SampleRequest]) -> list[Completion]:
    async def run() -> list[Completion]:
        return await asyncio.gather(*(sampler.sample(one) for one in requests))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def server(real_vllm: str, chat_model: Path) -> VllmServer:
    config = VllmConfig(executable=real_vllm, kv_cache_bytes=64 << 20)
    engine = EngineConfig(vllm=config, max_sequences=8)
    adapter = Adapter(rank=4)
    served = Served(
        folder=chat_model,
        dtype="float32",
        context_tokens=CONTEXT + 1,
        adapter_rank=adapter.rank,
        adapter_targets=adapter.targets,
    )
    return VllmServer(engine, served, print)


@pytest.fixture(scope="module")
def vllm(server: VllmServer) -> Iterator[VllmSampler]:
    sampler = VllmSampler(server, max_context_tokens=CONTEXT, vocabulary=VOCABULARY)
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def embedded(chat_model: Path) -> Iterator[EmbeddedEngine]:
    config = EngineConfig(dtype="float32", threads=1, max_sequences=8)
    engine = EmbeddedEngine(chat_model, config, max_context_tokens=CONTEXT)
    yield engine
    engine.close()


def test_greedy_tokens_logprobs_and_scores_are_the_embedded_engines(
    vllm: VllmSampler, embedded: EmbeddedEngine
) -> None:
    shared = tokens(70, 1)
    prompts = [
        tokens(1, 2),
        tokens(CONTEXT - 16, 3),
        *((*shared, *tokens(n, n)) for n in range(1, 7)),
    ]
    requests = [request(prompt) for prompt in prompts]
    ours, theirs = together(embedded, requests), together(vllm, requests)
    for one, other in zip(ours, theirs, strict=True):
        assert other.token_ids == one.token_ids
        assert other.logprobs == pytest.approx(one.logprobs, abs=ALIKE)
        assert other.finish_reason is FinishReason.LENGTH
    sequences = [tokens(1, 5), tokens(2, 6), tokens(90, 7), tokens(CONTEXT, 8)]
    scores = asyncio.run(vllm.score(sequences))
    for one, other in zip(asyncio.run(embedded.score(sequences)), scores, strict=True):
        assert other == pytest.approx(one, abs=ALIKE)


def test_logprobs_are_of_the_distribution_drawn_from(vllm: VllmSampler, chat_model: Path) -> None:
    forms = [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8), (0.6, 0.5), (0.0, 0.5)] * 3
    requests = [
        request(tokens(20, n), temperature=temperature, top_p=top_p, seed=n)
        for n, (temperature, top_p) in enumerate(forms)
    ]
    model = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    drawn = together(vllm, requests)
    assert [one.token_ids for one in drawn] == [one.token_ids for one in together(vllm, requests)]
    for one, completion in zip(requests, drawn, strict=True):
        ids = [*one.prompt_ids, *completion.token_ids]
        with torch.no_grad():
            logits_TV = model(torch.tensor([ids])).logits[0, len(one.prompt_ids) - 1 : -1]
        wanted = [
            _logprob(logits_V, token, one.temperature, one.top_p)
            for logits_V, token in zip(logits_TV, completion.token_ids, strict=True)
        ]
        assert completion.logprobs == pytest.approx(wanted, abs=ALIKE)


def _logprob(logits_V: torch.Tensor, token: int, temperature: float, top_p: float) -> float:
    if temperature == 0:
        return float(logits_V.log_softmax(-1)[token])
    mass_V, order_V = (logits_V / temperature).softmax(-1).sort(descending=True)
    kept = int((mass_V.cumsum(-1) - mass_V < top_p).sum())
    place = order_V.tolist().index(token)
    assert place < kept
    return float((mass_V[place] / mass_V[:kept].sum()).log())


def test_a_request_ends_at_its_stop_token_at_its_deadline_or_when_nobody_waits(
    vllm: VllmSampler, server: VllmServer
) -> None:
    (free,) = together(vllm, [request(tokens(20, 1))])
    stop = free.token_ids[6]
    (stopped,) = together(vllm, [request(tokens(20, 1), stop_token_ids=(VOCABULARY - 1, stop))])
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]

    async def interrupted() -> int:
        before = await _drawn(server)
        endless = request(tokens(5, 2), max_tokens=CONTEXT, temperature=1.0)
        late = await vllm.sample(replace(endless, deadline_s=0.2))
        assert late.finish_reason is FinishReason.DEADLINE
        assert len(late.token_ids) == len(late.logprobs)
        task = asyncio.create_task(vllm.sample(endless))
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        drawn = await _drawn(server)
        while drawn < (drawn := await _drawn(server)):
            pass
        return drawn - before

    assert asyncio.run(interrupted()) < 2 * 250


async def _drawn(server: VllmServer) -> int:
    """Tokens that vLLM has drawn up to a moment from now."""
    await asyncio.sleep(1.0)
    async with server.client(30.0) as client:
        text = (await client.get("/metrics")).text
    found = re.search(r"generation_tokens_total\{.*\} (\S+)", text)
    assert found is not None
    return int(float(found[1]))


def test_what_vllm_refuses_is_said(vllm: VllmSampler) -> None:
    for bad in (request((1,), temperature=-1.0), request((1,), top_p=1.5)):
        with pytest.raises(SamplerError, match=r"vLLM refused /v1/completions \(400\)"):
            asyncio.run(vllm.sample(bad))


def test_each_version_is_proven_and_nothing_of_the_last_one_is_left(
    vllm: VllmSampler, chat_model: Path
) -> None:
    teacher, policy = teacher_of(chat_model), Policy(model="tiny", version=0, spec=AgentSpec())
    publisher = Publisher(vllm, bound=ALIKE)
    one = request(tokens(200, 9), max_tokens=24)
    seen: list[Completion] = []

    async def act() -> None:
        nonlocal policy
        for version in range(3):
            policy, publication = await publisher.publish(teacher.weights(), policy)
            assert publication.mean_difference < ALIKE
            assert version == 0 or publication.move == pytest.approx(1.0, abs=0.01)
            seen.extend([await vllm.sample(one), await vllm.sample(one)])
            for _ in range(3):
                teacher.step([lesson()])

    asyncio.run(act())
    assert [c.first_version for c in seen] == [c.last_version for c in seen] == [0, 0, 3, 3, 6, 6]
    assert len({c.logprobs[0] for c in seen}) == 3
    # A new version computes the whole prompt again, and only the second request finds it computed.
    assert [c.cached_tokens > 0 for c in seen] == [False, True] * 3


def test_an_engine_that_keeps_its_weights_is_found_out(vllm: VllmSampler, chat_model: Path) -> None:
    class Stuck(VllmSampler):
        """Takes the first weights it is given and no others."""

        def __init__(self) -> None:
            self.loaded = False

        async def load(self, weights: Weights) -> None:
            if not self.loaded:
                await vllm.load(weights)
            self.loaded = True

        async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
            return await vllm.score(sequences)

    teacher, policy = teacher_of(chat_model), Policy(model="tiny", version=0, spec=AgentSpec())
    publisher = Publisher(Stuck(), bound=0.5)
    asyncio.run(publisher.publish(teacher.weights(), policy))
    teacher.step([lesson()])
    with pytest.raises(IdentityError, match="followed"):
        asyncio.run(publisher.publish(teacher.weights(), policy))
