"""The vLLM sampler against a server that speaks vLLM's protocol and misbehaves on demand."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fake_vllm import BASE, Fake, files_of, serving

from agentrft.core.config import EngineConfig, VllmConfig
from agentrft.core.errors import ConfigError, SamplerError, UserError
from agentrft.core.policy import Weights
from agentrft.core.protocols import SampleRequest
from agentrft.core.trajectory import FinishReason
from agentrft.inference.vllm.sampler import VllmSampler
from agentrft.inference.vllm.server import Served, VllmServer

T = TypeVar("T")
CONTEXT = 40
SERVED = Served(
    folder=Path("/models/tiny"),
    dtype="float32",
    context_tokens=41,
    adapter_rank=8,
    adapter_targets=("q_proj", "up_proj"),
)


def request(**changes: Any) -> SampleRequest:
    values: dict[str, Any] = dict(prompt_ids=(1, 2, 3), max_tokens=5, stop_token_ids=(99,))
    return SampleRequest(**(values | changes))


def weights(version: int) -> Weights:
    def write(folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_text(str(version))

    return Weights(version=version, tensors={}, canaries=(), write_adapter=write)


def sampled(
    fake: Fake, act: Callable[[VllmSampler], Awaitable[T]], *, context: int = CONTEXT, key: str = ""
) -> T:
    """What a sampler of a running server does."""

    async def scenario() -> T:
        async with serving(fake):
            config = VllmConfig(url=fake.url + "/v1", api_key_file=key)
            server = VllmServer(EngineConfig(vllm=config), SERVED, print)
            sampler = VllmSampler(server, max_context_tokens=context, vocabulary=100)
            try:
                return await act(sampler)
            finally:
                await asyncio.to_thread(sampler.close)
                assert not server.folder.exists()

    return asyncio.run(scenario())


def test_tokens_logprobs_and_the_versions_that_sampled_them_come_back() -> None:
    fake = Fake()
    completion = sampled(fake, lambda sampler: sampler.sample(request(seed=2**63 + 5)))
    assert completion.token_ids == (10, 11, 12, 13, 14)
    assert completion.logprobs == (-0.5,) * 5
    assert completion.finish_reason is FinishReason.LENGTH
    assert (completion.first_version, completion.last_version) == (0, 0)
    assert completion.cached_tokens == 3
    (asked,) = fake.requests
    assert (asked["model"], asked["prompt"], asked["seed"]) == (BASE, [1, 2, 3], 5)
    # Nothing may be left to settings of the server or of the model's folder.
    assert asked["ignore_eos"] is True
    assert (asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (0, 0.0, 1.0)


def test_the_stop_token_is_the_last_token() -> None:
    completion = sampled(Fake(), lambda sampler: sampler.sample(request(stop_token_ids=(12,))))
    assert completion.token_ids == (10, 11, 12)
    assert completion.finish_reason is FinishReason.STOP


def test_a_completion_ends_where_the_context_does() -> None:
    prompt = tuple(range(CONTEXT - 2))
    act = request(prompt_ids=prompt, max_tokens=50)
    completion = sampled(Fake(), lambda sampler: sampler.sample(act))
    assert len(completion.token_ids) == 2
    assert completion.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (request(prompt_ids=(1,) * CONTEXT), SamplerError, f"{CONTEXT} tokens and the context"),
        (request(prompt_ids=()), SamplerError, "empty"),
        (request(prompt_ids=(1, 100)), SamplerError, "vocabulary of 100"),
        (request(grammar="start: x"), UserError, "grammar"),
        (request(temperature=0.001), UserError, "0.001 was asked"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(
    bad: SampleRequest, error: type[Exception], message: str
) -> None:
    fake = Fake()
    with pytest.raises(error, match=message):
        sampled(fake, lambda sampler: sampler.sample(bad))
    assert fake.requests == []


@pytest.mark.parametrize(
    ("fake", "error", "message"),
    [
        (Fake(raw_logprobs=True), ConfigError, "--logprobs-mode=processed_logprobs"),
        (Fake(context_tokens=39), ConfigError, "--max-model-len=40"),
        (Fake(key="secret"), SamplerError, "401"),
        (Fake(stops_at=12), SamplerError, "stopped at token 12.*--generation-config"),
        (Fake(error_after=2), SamplerError, "vLLM failed: out of memory"),
        (Fake(breaks_after=2), SamplerError, "does not answer|ended a request early"),
        (Fake(logprob=None), SamplerError, "not finite"),
        (Fake(logprob=-9999.0), SamplerError, "not finite"),
    ],
)
def test_a_server_that_is_set_up_otherwise_or_fails_is_an_error(
    fake: Fake, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sampled(fake, lambda sampler: sampler.sample(request()))


def test_a_server_that_is_not_there_is_named() -> None:
    server = VllmServer(EngineConfig(vllm=VllmConfig(url="http://127.0.0.1:9")), SERVED, print)
    sampler = VllmSampler(server, max_context_tokens=CONTEXT, vocabulary=100)
    with pytest.raises(ConfigError, match="http://127.0.0.1:9"):
        asyncio.run(sampler.sample(request()))
    sampler.close()


def test_the_key_of_a_server_is_sent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    fake = Fake(key="secret")
    sampled(fake, lambda sampler: sampler.sample(request()), key=str(tmp_path / "key"))
    assert len(fake.requests) == 1


def test_a_deadline_returns_what_was_sampled_and_ends_the_request() -> None:
    fake = Fake(silent_after=2)

    async def act(sampler: VllmSampler) -> None:
        # Patience that is left when the first token comes adds nothing.
        completion = await sampler.sample(request(deadline_s=0.3, patience_s=600.0))
        assert completion.token_ids == (10, 11)
        assert len(completion.logprobs) == 2
        assert completion.finish_reason is FinishReason.DEADLINE
        assert 0 < completion.waited_s < 600
        await until(lambda: fake.aborted == 1)

    sampled(fake, act)


def test_patience_is_spent_before_the_deadline_begins() -> None:
    async def act(sampler: VllmSampler) -> None:
        completion = await sampler.sample(request(deadline_s=0.1, patience_s=0.2))
        assert completion.token_ids == ()
        assert completion.finish_reason is FinishReason.DEADLINE
        assert completion.waited_s == 0.2

    sampled(Fake(silent_after=0), act)


def test_cancelling_the_task_cancels_the_request() -> None:
    fake = Fake(silent_after=1)

    async def act(sampler: VllmSampler) -> None:
        task = asyncio.create_task(sampler.sample(request()))
        await until(lambda: len(fake.requests) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: fake.aborted == 1)

    sampled(fake, act)


def test_scores_are_of_every_token_after_the_first() -> None:
    fake = Fake()
    scores = sampled(fake, lambda sampler: sampler.score([(4, 7, 2), (9,)]))
    assert scores == [[-0.7, -0.2], []]
    assert sampled(Fake(), lambda sampler: sampler.score([])) == []


def test_each_load_is_an_adapter_of_its_own_and_the_last_one_is_forgotten() -> None:
    fake = Fake()

    async def act(sampler: VllmSampler) -> None:
        for version in (1, 2, 2):  # a step that is repeated publishes its version again
            await sampler.load(weights(version))
            completion = await sampler.sample(request())
            assert (completion.first_version, completion.last_version) == (version, version)
        assert len(fake.adapters) == 1

    sampled(fake, act)
    names = [asked["model"] for asked in fake.requests]
    assert len(set(names)) == 3
    assert fake.seen == [frozenset({"adapter_config.json", "adapter_model.safetensors"})] * 3
    assert fake.unloaded == names
    assert fake.adapters == {}


def test_requests_under_way_keep_the_version_they_began_with() -> None:
    fake = Fake(piece_s=0.05)

    async def act(sampler: VllmSampler) -> None:
        await sampler.load(weights(1))
        task = asyncio.create_task(sampler.sample(request(max_tokens=12)))
        await until(lambda: len(fake.requests) == 1)
        await sampler.load(weights(2))
        old, new = fake.adapters
        assert files_of(fake.adapters[old])  # vLLM may read it again
        assert (await sampler.sample(request())).last_version == 2
        completion = await task
        assert (completion.first_version, completion.last_version) == (1, 1)
        await sampler.load(weights(3))
        assert fake.unloaded == [old, new]

    sampled(fake, act)


def test_weights_that_are_no_adapter_are_refused_and_change_nothing() -> None:
    async def act(sampler: VllmSampler) -> None:
        with pytest.raises(ConfigError, match="adapter.kind to 'lora'"):
            await sampler.load(Weights(version=1, tensors={}, canaries=()))
        broken = Weights(version=1, tensors={}, canaries=(), write_adapter=lambda folder: None)
        with pytest.raises(SamplerError, match="no adapter there"):
            await sampler.load(broken)
        assert (await sampler.sample(request())).last_version == 0

    sampled(Fake(), act)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not done():  # noqa: ASYNC110 - the server is a process of its own
            await asyncio.sleep(0.01)
