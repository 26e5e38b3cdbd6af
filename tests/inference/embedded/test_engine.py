"""Requests join, share, leave, fail and survive new weights without disturbing each other."""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from agentrft.core.config import EngineConfig
from agentrft.core.errors import SamplerError
from agentrft.core.policy import Weights
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.core.trajectory import FinishReason
from agentrft.inference.embedded.engine import EmbeddedEngine, SampledToken

VOCABULARY = 300
SaveModel = Callable[..., PreTrainedModel]
CONTEXT = 448
CONFIG = EngineConfig(dtype="float32", threads=1, max_sequences=8)


def tokens(count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(VOCABULARY) for _ in range(count)]


def request(
    prompt: Sequence[int], max_tokens: int = 12, temperature: float = 1.0, seed: int = 0
) -> SampleRequest:
    return SampleRequest(
        prompt_ids=tuple(prompt), max_tokens=max_tokens, temperature=temperature, seed=seed
    )


@pytest.fixture
def engine(model_folder: Path) -> Iterator[EmbeddedEngine]:
    engine = EmbeddedEngine(model_folder, CONFIG, max_context_tokens=CONTEXT)
    yield engine
    engine.close()


def together(engine: EmbeddedEngine, requests: Sequence[SampleRequest]) -> list[Completion]:
    async def run() -> list[Completion]:
        return await asyncio.gather(*(engine.sample(r) for r in requests))

    return asyncio.run(run())


async def until_sampled(engine: EmbeddedEngine, count: int) -> None:
    while engine.stats.sampled_tokens < count:  # noqa: ASYNC110 - the engine has no such event
        await asyncio.sleep(0)


def alone(folder: Path, requests: Sequence[SampleRequest]) -> list[Completion]:
    """Each on an engine that has seen nothing else."""
    completions: list[Completion] = []
    for one in requests:
        engine = EmbeddedEngine(folder, CONFIG, max_context_tokens=CONTEXT)
        completions += together(engine, [one])
        engine.close()
    return completions


def test_the_same_seed_draws_the_same_tokens_alone_and_in_a_batch(
    engine: EmbeddedEngine, model_folder: Path
) -> None:
    shared = tokens(70, 0)
    requests = [request(shared + tokens(1 + n % 5, n), seed=n // 2) for n in range(20)]
    batched = together(engine, requests)
    for one, other in zip(batched, alone(model_folder, requests), strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert len({c.token_ids for c in batched}) > 10


def test_a_cold_prefix_is_computed_once_for_all_who_want_it(engine: EmbeddedEngine) -> None:
    prefix = tokens(200, 0)
    completions = together(engine, [request([*prefix, n, n + 1], seed=n) for n in range(40)])
    assert engine.stats.prefilled_tokens <= 202 + 39 * 2
    assert sum(c.cached_tokens == 0 for c in completions) == 1
    assert engine.stats.cached_tokens == sum(c.cached_tokens for c in completions) == 39 * 200
    assert engine.stats.sampled_tokens == 40 * 12


def test_results_survive_eviction_under_pressure(model_folder: Path) -> None:
    config = EngineConfig(dtype="float32", threads=1, max_sequences=2, cached_sequences=1)
    engine = EmbeddedEngine(model_folder, config, max_context_tokens=CONTEXT)
    # Eleven prefixes shared in pairs: more trunks wanted than are kept, more rows than exist.
    requests = [request(tokens(70 + n % 11, n % 11) + tokens(3, n), seed=n) for n in range(22)] * 2
    completions = together(engine, requests)
    engine.close()
    expected = alone(model_folder, requests[:22]) * 2
    assert [c.token_ids for c in completions] == [c.token_ids for c in expected]


def test_the_stop_token_ends_a_completion_and_is_its_last_token(engine: EmbeddedEngine) -> None:
    (free,) = together(engine, [request(tokens(20, 1), temperature=0)])
    assert free.finish_reason is FinishReason.LENGTH
    assert len(free.token_ids) == len(free.logprobs) == 12
    stop = free.token_ids[4]
    first = free.token_ids.index(stop)
    (stopped,) = together(
        engine,
        [
            SampleRequest(
                prompt_ids=tuple(tokens(20, 1)),
                max_tokens=12,
                temperature=0,
                stop_token_ids=(VOCABULARY - 1, stop),
            )
        ],
    )
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.token_ids == free.token_ids[: first + 1]


def test_a_completion_ends_where_the_context_does(engine: EmbeddedEngine) -> None:
    (completion,) = together(engine, [request(tokens(CONTEXT - 5, 0), max_tokens=99)])
    assert completion.finish_reason is FinishReason.LENGTH
    assert len(completion.token_ids) == 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(tokens(CONTEXT, 0)), f"{CONTEXT} tokens and the context holds {CONTEXT}"),
        (request(tokens(CONTEXT + 9, 0)), f"{CONTEXT + 9} tokens .* holds {CONTEXT}"),
        (request([]), "empty"),
        (request([1, VOCABULARY]), f"vocabulary has {VOCABULARY}"),
        (request([1], max_tokens=0), "max_tokens is 0"),
        (request([1], temperature=-1.0), "temperature -1"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(
    engine: EmbeddedEngine, bad: SampleRequest, message: str
) -> None:
    with pytest.raises(SamplerError, match=message):
        together(engine, [bad])
    assert together(engine, [request([1])])[0].token_ids


def test_at_its_deadline_a_request_returns_what_it_has(engine: EmbeddedEngine) -> None:
    prompt = tokens(20, 0)
    (free,) = together(engine, [request(prompt, max_tokens=400)])
    for deadline_s in (0.0, 0.02):
        timed = SampleRequest(prompt_ids=tuple(prompt), max_tokens=400, deadline_s=deadline_s)
        (completion,) = together(engine, [timed])
        assert completion.finish_reason is FinishReason.DEADLINE
        assert completion.token_ids == free.token_ids[: len(completion.token_ids)]
        assert len(completion.token_ids) < 400


def test_patience_keeps_the_line_from_using_up_the_time(model_folder: Path) -> None:
    config = EngineConfig(dtype="float32", threads=1, max_sequences=1)
    engine = EmbeddedEngine(model_folder, config, max_context_tokens=CONTEXT)
    ended: list[str] = []

    async def run() -> dict[str, Completion]:
        async def sample(name: str, wanted: SampleRequest) -> Completion:
            completion = await engine.sample(wanted)
            ended.append(name)
            return completion

        running = asyncio.create_task(sample("running", request([1, 2], max_tokens=440)))
        await until_sampled(engine, 1)
        hasty = replace(request([3, 4]), deadline_s=0.0)
        waiting = [
            sample("hasty", hasty),
            sample("patient", replace(hasty, patience_s=600.0)),
        ]
        of_hasty, of_patient = await asyncio.gather(*waiting)
        return {"running": await running, "hasty": of_hasty, "patient": of_patient}

    completions = asyncio.run(run())
    engine.close()
    assert ended == ["hasty", "running", "patient"]
    assert completions["patient"].finish_reason is FinishReason.DEADLINE
    assert 0.0 < completions["patient"].waited_s < 600.0
    assert completions["hasty"].waited_s == completions["running"].waited_s == 0.0


def test_cancelling_the_awaiting_task_frees_the_row(model_folder: Path) -> None:
    config = EngineConfig(dtype="float32", threads=1, max_sequences=1)
    engine = EmbeddedEngine(model_folder, config, max_context_tokens=CONTEXT)

    async def run() -> Completion:
        running = asyncio.create_task(engine.sample(request([1, 2], max_tokens=440)))
        waiting = asyncio.create_task(engine.sample(request([3, 4], max_tokens=440)))
        last = asyncio.create_task(engine.sample(request([5, 6], max_tokens=3)))
        await until_sampled(engine, 1)
        waiting.cancel()
        running.cancel()
        completion = await last
        assert running.cancelled()
        assert waiting.cancelled()
        return completion

    completion = asyncio.run(run())
    engine.close()
    assert len(completion.token_ids) == 3
    assert engine.stats.sampled_tokens < 440


async def stream(
    engine: EmbeddedEngine, wanted: SampleRequest, top_logprobs: int | None = None
) -> list[SampledToken | Completion]:
    return [piece async for piece in engine.stream(wanted, top_logprobs=top_logprobs)]


def test_a_stream_gives_out_what_sampling_returns_in_a_batch_of_both(
    engine: EmbeddedEngine,
) -> None:
    requests = [request(tokens(30, n), seed=n, temperature=n % 3 / 2) for n in range(12)]
    whole = together(engine, requests)

    async def run() -> list[list[SampledToken | Completion]]:
        half = asyncio.gather(*map(engine.sample, requests[6:]))
        streams = await asyncio.gather(*(stream(engine, one) for one in requests[:6]))
        assert [c.token_ids for c in await half] == [c.token_ids for c in whole[6:]]
        return streams

    for pieces, expected in zip(asyncio.run(run()), whole[:6], strict=True):
        *drawn, last = pieces
        assert isinstance(last, Completion)
        assert last.token_ids == expected.token_ids
        sampled = [piece for piece in drawn if isinstance(piece, SampledToken)]
        assert tuple(piece.token_id for piece in sampled) == last.token_ids
        assert tuple(piece.logprob for piece in sampled) == last.logprobs
        assert all(piece.likely is None for piece in sampled)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_asked_for_the_models_own_logprobs_come_with_each_token(
    engine: EmbeddedEngine, temperature: float
) -> None:
    prompt = tokens(30, 1)
    wanted = replace(request(prompt, temperature=temperature, seed=4), top_p=0.9)
    *drawn, last = asyncio.run(stream(engine, wanted, 5))
    assert isinstance(last, Completion)
    (scored,) = asyncio.run(engine.score([[*prompt, *last.token_ids]]))
    for piece, expected in zip(drawn, scored[len(prompt) - 1 :], strict=True):
        assert isinstance(piece, SampledToken)
        assert piece.likely is not None
        assert piece.likely.logprob == pytest.approx(expected, abs=1e-4)
        values = [logprob for _, logprob in piece.likely.top]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert max(values) >= piece.likely.logprob - 1e-6
        assert dict(piece.likely.top).get(piece.token_id, piece.likely.logprob) == (
            piece.likely.logprob
        )


def test_leaving_a_stream_frees_the_row(model_folder: Path) -> None:
    config = EngineConfig(dtype="float32", threads=1, max_sequences=1)
    engine = EmbeddedEngine(model_folder, config, max_context_tokens=CONTEXT)

    async def run() -> Completion:
        async with aclosing(engine.stream(request([1, 2], max_tokens=440))) as pieces:
            async for _ in pieces:
                break
        return await engine.sample(request([5, 6], max_tokens=3))

    assert len(asyncio.run(run()).token_ids) == 3
    assert engine.stats.sampled_tokens < 440
    engine.close()


def test_a_stream_of_a_closed_engine_fails(engine: EmbeddedEngine) -> None:
    async def run() -> None:
        async with aclosing(engine.stream(request([1], max_tokens=440))) as pieces:
            async for _ in pieces:
                await asyncio.to_thread(engine.close)

    with pytest.raises(SamplerError, match="was closed"):
        asyncio.run(run())


def test_one_engine_serves_one_event_loop_after_another(engine: EmbeddedEngine) -> None:
    first = together(engine, [request([1, 2, 3], seed=5)])
    second = together(engine, [request([1, 2, 3], seed=5)])
    assert first[0].token_ids == second[0].token_ids


@pytest.fixture
def other(save_model: SaveModel, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Parameters of another random model of the same shape, which is saved in `tmp_path`."""
    return save_model("llama", tmp_path, seed=7).state_dict()


@pytest.mark.parametrize("parts", [(), ("k_proj", "up_proj"), ("embed_tokens",), ("layernorm",)])
def test_loaded_weights_answer_like_a_freshly_opened_engine(
    engine: EmbeddedEngine,
    save_model: SaveModel,
    other: dict[str, torch.Tensor],
    tmp_path: Path,
    parts: tuple[str, ...],
) -> None:
    new = {n: t for n, t in other.items() if not parts or any(part in n for part in parts)}
    mixed = save_model("llama", tmp_path / "mixed", seed=0)
    before = together(engine, [request(tokens(90, 1), seed=3)])[0]
    mixed.load_state_dict(new, strict=False)
    mixed.save_pretrained(tmp_path / "mixed")

    asyncio.run(engine.load(Weights(version=4, tensors=new, canaries=())))
    after = together(engine, [request(tokens(90, 1), seed=3)])[0]
    (fresh,) = alone(tmp_path / "mixed", [request(tokens(90, 1), seed=3)])
    assert after.token_ids == fresh.token_ids != before.token_ids
    assert after.logprobs == pytest.approx(fresh.logprobs, abs=1e-4)
    assert after.cached_tokens == 0
    assert (before.first_version, before.last_version) == (0, 0)
    assert (after.first_version, after.last_version) == (4, 4)


def test_requests_under_way_go_on_under_new_weights(
    engine: EmbeddedEngine, model_folder: Path, other: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    prompts = [tokens(70, 1) + tokens(5, n) for n in range(3)]

    async def run() -> list[Completion]:
        tasks = [asyncio.create_task(engine.sample(request(p, 300, 0))) for p in prompts]
        await until_sampled(engine, 9)
        await engine.load(Weights(version=1, tensors=other, canaries=()))
        return await asyncio.gather(*tasks)

    for prompt, completion in zip(prompts, asyncio.run(run()), strict=True):
        assert (completion.first_version, completion.last_version) == (0, 1)
        (old,) = alone(model_folder, [request(prompt, 300, 0)])
        same = [a == b for a, b in zip(completion.token_ids, old.token_ids, strict=True)]
        swapped = same.index(False)
        assert swapped > 0
        # The old weights may by chance have chosen what the new ones would: look back a little.
        continued = alone(
            tmp_path,
            [
                request([*prompt, *completion.token_ids[:k]], 300 - k, 0)
                for k in range(max(swapped - 3, 1), swapped + 1)
            ],
        )
        tails = [completion.token_ids[-len(c.token_ids) :] for c in continued]
        assert any(c.token_ids == tail for c, tail in zip(continued, tails, strict=True))


def test_weights_that_do_not_fit_change_nothing(
    engine: EmbeddedEngine, other: dict[str, torch.Tensor]
) -> None:
    before = together(engine, [request(tokens(30, 1))])[0]
    wrong = {**other, "model.norm.weight": torch.zeros(5)}
    with pytest.raises(SamplerError, match=r"model\.norm\.weight.*\(5,\).*\(48,\)"):
        asyncio.run(engine.load(Weights(version=1, tensors=wrong, canaries=())))
    unknown = {**other, "model.layers.9.self_attn.q_proj.weight": torch.zeros(48, 48)}
    with pytest.raises(SamplerError, match=r"layers\.9"):
        asyncio.run(engine.load(Weights(version=1, tensors=unknown, canaries=())))
    after = together(engine, [request(tokens(30, 1))])[0]
    assert (after.token_ids, after.last_version) == (before.token_ids, 0)


def test_a_failing_step_fails_its_requests_and_leaves_the_engine_usable(
    engine: EmbeddedEngine, other: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in other.items()}
    asyncio.run(engine.load(Weights(version=1, tensors=broken, canaries=())))

    async def run() -> list[Completion | BaseException]:
        requests = [request(tokens(20, n)) for n in range(12)]
        return await asyncio.gather(*map(engine.sample, requests), return_exceptions=True)

    results = asyncio.run(run())
    assert all(isinstance(r, SamplerError) and "not finite" in str(r) for r in results)
    asyncio.run(engine.load(Weights(version=2, tensors=other, canaries=())))
    (healed,) = together(engine, [request(tokens(20, 0))])
    (fresh,) = alone(tmp_path, [request(tokens(20, 0))])
    assert healed.token_ids == fresh.token_ids


def test_closing_fails_whoever_waits_and_whoever_comes_later(engine: EmbeddedEngine) -> None:
    async def run() -> None:
        task = asyncio.create_task(engine.sample(request([1], max_tokens=440)))
        await until_sampled(engine, 1)
        await asyncio.to_thread(engine.close)
        with pytest.raises(SamplerError, match="was closed"):
            await task
        with pytest.raises(SamplerError, match="is closed"):
            await engine.sample(request([1]))

    asyncio.run(run())


def test_other_architectures_load_weights_and_refuse_wrong_ones(
    save_model: SaveModel, tmp_path: Path
) -> None:
    save_model("gpt2", tmp_path / "first")
    new = save_model("gpt2", tmp_path / "second", seed=7).state_dict()
    engine = EmbeddedEngine(tmp_path / "first", CONFIG, max_context_tokens=CONTEXT)
    asks = [request(tokens(20 + n, n), seed=n) for n in range(12)]
    with pytest.raises(SamplerError, match="lm_body"):
        asyncio.run(engine.load(Weights(version=1, tensors={"lm_body": None}, canaries=())))
    asyncio.run(engine.load(Weights(version=1, tensors=new, canaries=())))
    loaded = together(engine, asks)
    engine.close()
    assert [c.token_ids for c in loaded] == [c.token_ids for c in alone(tmp_path / "second", asks)]
    assert {c.last_version for c in loaded} == {1}


def test_guesses_save_steps_and_change_nothing(model_folder: Path) -> None:
    asks = [request(tokens(30, n), max_tokens=40, seed=n) for n in range(6)]
    engine = EmbeddedEngine(model_folder, CONFIG, max_context_tokens=CONTEXT)
    first = together(engine, asks)
    before = engine.stats
    again = together(engine, asks)
    engine.close()
    assert [c.token_ids for c in again] == [c.token_ids for c in first]
    for one, other in zip(again, first, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert engine.stats.accepted_tokens - before.accepted_tokens > 6 * 20
    assert engine.stats.decode_steps - before.decode_steps < 20
    assert engine.stats.sampled_tokens == 2 * 6 * 40


def test_guesses_stop_at_the_end_of_an_answer_and_of_the_context(model_folder: Path) -> None:
    engine = EmbeddedEngine(model_folder, CONFIG, max_context_tokens=CONTEXT)
    prompt = tokens(CONTEXT - 30, 0)
    (full,) = together(engine, [request(prompt, max_tokens=99)])
    assert len(full.token_ids) == 30
    for length in range(1, 30, 4):
        (short,) = together(engine, [request(prompt, max_tokens=length)])
        assert short.token_ids == full.token_ids[:length]
        stop = SampleRequest(
            prompt_ids=tuple(prompt), max_tokens=99, stop_token_ids=(full.token_ids[length],)
        )
        (stopped,) = together(engine, [stop])
        ends = full.token_ids.index(full.token_ids[length]) + 1
        assert stopped.token_ids == full.token_ids[:ends]
        assert len(stopped.logprobs) == ends
    engine.close()
    assert engine.stats.accepted_tokens > 100
