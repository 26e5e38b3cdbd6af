"""What a served model answers, how many are kept open, and which weights they prove."""

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agentrft.core.config import EngineConfig
from agentrft.core.errors import ModelError, SamplerError, UserError
from agentrft.core.policy import Canary
from agentrft.core.protocols import SampleRequest
from agentrft.core.sample import Sample
from agentrft.core.task import Message, ToolSpec
from agentrft.core.training_config import Adapter, Optimizer, TrainerConfig
from agentrft.inference.chat import ChatBusyError, ChatDelta, ChatEnd, ChatRequest, ToolName
from agentrft.inference.served import ServedModel, ServedModels, open_model
from agentrft.training.checkpoint import write_canaries, write_checkpoint
from agentrft.training.trainer import LocalTrainer

WriteModel = Callable[..., Path]
CONFIG = EngineConfig(dtype="float32", threads=1, max_sequences=2)
HI = (Message(role="user", content="Where is my order W1234567?"),)
REFUND = ToolSpec(
    name="refund",
    description="Refund an order.",
    parameters={"properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
)
CANARY = (5, 9, 40, 41, 42, 7, 100, 101)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_chat_model: WriteModel) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("base"))


def trained(base: Path, folder: Path, kind: str = "lora") -> LocalTrainer:
    """Make two steps and write a checkpoint."""
    config = TrainerConfig(
        adapter=Adapter(kind=kind, rank=4),  # pyright: ignore[reportArgumentType]
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=1),
        dtype="float32",
        device="cpu",
        threads=1,
    )
    trainer = LocalTrainer(base, config, loss="cross_entropy", canaries=[CANARY], seed=1)
    sample = Sample(
        token_ids=CANARY,
        action_mask=(False, *(True,) * 7),
        behavior_logprobs=(0.0,) * 8,
        advantages=(0.0, *(1.0,) * 7),
        trajectory_id="demonstration",
    )
    for _ in range(2):
        trainer.step([sample])
    trainer.save(folder, {"step": 2})
    return trainer


@pytest.fixture(scope="module")
def checkpoint(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "step-000002"
    trained(base, folder)
    return folder


@asynccontextmanager
async def opened(
    base: Path, adapter: Path | None = None, config: EngineConfig = CONFIG
) -> AsyncIterator[ServedModel]:
    path = None if adapter is None else str(adapter)
    model = await open_model(str(base), path, models=base.parent, config=config)
    try:
        yield model
    finally:
        await asyncio.to_thread(model.engine.close)


def ask(base: Path, **options: object) -> ChatRequest:
    request = ChatRequest(base=str(base), messages=HI, max_tokens=24, seed=3)
    return replace(request, **options)  # pyright: ignore[reportArgumentType]


async def answer(model: ServedModel, request: ChatRequest) -> tuple[Sequence[ChatDelta], ChatEnd]:
    *deltas, end = [piece async for piece in model.answer(request)]
    assert isinstance(end, ChatEnd)
    return [delta for delta in deltas if isinstance(delta, ChatDelta)], end


def test_a_stream_says_what_sampling_says(base: Path) -> None:
    async def run() -> None:
        async with opened(base) as model:
            for seed in range(8):
                _, end = await answer(model, ask(base, seed=seed, temperature=0.8, tools=(REFUND,)))
                prompt = model.renderer.start(HI, (REFUND,))
                completion = await model.engine.sample(
                    SampleRequest(
                        prompt_ids=prompt,
                        max_tokens=24,
                        temperature=0.8,
                        seed=seed,
                        stop_token_ids=model.renderer.stop_token_ids,
                    )
                )
                assert end.message == model.renderer.parse(completion.token_ids, ()).message
                assert end.completion_tokens == len(completion.token_ids)
                assert end.prompt_tokens == len(prompt)

    asyncio.run(run())


def test_without_max_tokens_an_answer_may_fill_the_context(base: Path) -> None:
    async def run() -> None:
        async with opened(base) as model:
            for seed in range(50):
                _, end = await answer(model, ask(base, seed=seed, max_tokens=None))
                if end.finish_reason == "length":
                    assert end.prompt_tokens + end.completion_tokens == 512
                    return
            pytest.fail("the random model always stops by itself")

    asyncio.run(run())


def test_logprobs_are_the_models_own_and_cover_the_answer(base: Path) -> None:
    async def run() -> None:
        async with opened(base) as model:
            request = ask(base, temperature=0.6, top_p=0.8, top_logprobs=3)
            deltas, end = await answer(model, request)
            tokens = [one for delta in deltas for one in delta.logprobs]
            assert len(tokens) >= end.completion_tokens - 1
            assert all(len(one.top) == 3 and one.logprob <= one.top[0][1] for one in tokens)
            written = b"".join(one.bytes for one in tokens).decode(errors="replace")
            assert written.strip() == end.message.content
            deltas, _ = await answer(model, replace(request, top_logprobs=None))
            assert not any(delta.logprobs for delta in deltas)

    asyncio.run(run())


def test_a_call_can_be_required_of_any_model(base: Path) -> None:
    async def run() -> None:
        async with opened(base) as model:
            other = replace(REFUND, name="cancel")
            for choice in ("required", ToolName(name="refund")):
                for tools in ((REFUND,), (other, REFUND)):
                    request = ask(base, tools=tools, tool_choice=choice)
                    forced = await model.forced(request, tools, model.renderer.start(HI, tools))
                    text = model.renderer.decode(forced)
                    names = ["cancel", "refund"] if choice == "required" else ["refund"]
                    assert any(
                        text == f'<tool_call>{{"name": "{name}", "arguments": {{"order_id":'
                        for name in names
                    )

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tool_choice": "required"}, "asks for any tool"),
        ({"tool_choice": ToolName(name="x"), "tools": (REFUND,)}, "asks for tool 'x'"),
        ({"messages": (replace(HI[0], content="x " * 600),)}, "context holds 512; shorten them"),
    ],
)
def test_what_a_model_cannot_do_is_the_users_error(
    base: Path, options: dict[str, object], message: str
) -> None:
    async def run() -> None:
        async with opened(base) as model:
            await answer(model, ask(base, **options))

    with pytest.raises(UserError, match=message):
        asyncio.run(run())


def test_leaving_an_answer_frees_its_row(base: Path) -> None:
    async def run() -> None:
        async with opened(base, config=replace(CONFIG, max_sequences=1)) as model:
            long = ask(base, max_tokens=None, stop=("never written",))
            async with aclosing(model.answer(long)) as pieces:
                async for _ in pieces:
                    break
            before = model.engine.stats.sampled_tokens
            _, end = await answer(model, ask(base, max_tokens=2))
            assert end.completion_tokens <= 2
            assert model.engine.stats.sampled_tokens - before < 100

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_checkpoint_is_served_as_trained(base: Path, tmp_path: Path, kind: str) -> None:
    trainer = trained(base, tmp_path / "step", kind)

    async def run() -> None:
        sequences = [list(range(3, 40)), [*CANARY]]
        async with opened(base, tmp_path / "step") as model:
            served = await model.engine.score(sequences)
        async with opened(base) as model:
            untrained = await model.engine.score(sequences)
        for row, expected in zip(served, trainer.score(sequences), strict=True):
            assert row == pytest.approx(expected, abs=1e-3)
        assert sum(served[1]) > sum(untrained[1]) + 1.0

    asyncio.run(run())


def with_canaries(checkpoint: Path, folder: Path, logprob: float | None) -> Path:
    """Copy a checkpoint, intact by its manifest, but with other canaries or none."""

    def fill(partial: Path) -> None:
        for file in checkpoint.iterdir():
            if file.name not in ("manifest.json", "canaries.json"):
                shutil.copyfile(file, partial / file.name)
        if logprob is not None:
            write_canaries(partial, [Canary(token_ids=CANARY, logprobs=(logprob,) * 7)])

    write_checkpoint(folder, fill)
    return folder


def test_weights_that_do_not_reproduce_the_canaries_are_not_served(
    base: Path, checkpoint: Path, tmp_path: Path
) -> None:
    async def run() -> None:
        async with opened(base, with_canaries(checkpoint, tmp_path / "step", -0.01)):
            pass

    with pytest.raises(SamplerError, match=r"differ from the trainer's by .* at most 0.05"):
        asyncio.run(run())


def test_a_checkpoint_from_before_there_were_canaries_is_served_with_a_warning(
    base: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with opened(base, with_canaries(checkpoint, tmp_path / "step", None)) as model:
            await answer(model, ask(base))

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert "served without proof" in caplog.text


def test_a_damaged_or_foreign_checkpoint_is_refused(
    base: Path, checkpoint: Path, tmp_path: Path, write_chat_model: WriteModel
) -> None:
    async def run(base: Path, folder: Path) -> None:
        async with opened(base, folder):
            pass

    damaged = tmp_path / "step"
    shutil.copytree(checkpoint, damaged)
    weights = damaged / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    with pytest.raises(SamplerError, match=r"adapter_model.safetensors has changed"):
        asyncio.run(run(base, damaged))
    other = write_chat_model(tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5}))
    with pytest.raises(SamplerError, match="belongs to model"):
        asyncio.run(run(other, checkpoint))


def test_models_answer_side_by_side_and_the_one_used_least_recently_goes(
    base: Path, checkpoint: Path, tmp_path: Path, write_chat_model: WriteModel
) -> None:
    third = write_chat_model(tmp_path / "third", seed=5)

    async def run() -> None:
        served = ServedModels(tmp_path, CONFIG, max_loaded=2)
        adapter = str(checkpoint)
        async with (
            served.use(str(base), None) as plain,
            served.use(str(base), adapter) as tuned,
        ):
            ends = await asyncio.gather(
                *(answer(model, ask(base, seed=n)) for n in range(4) for model in (plain, tuned))
            )
            texts = [end.message.content for _, end in ends]
            assert all(one != other for one, other in zip(texts[::2], texts[1::2], strict=True))
            waiting = asyncio.create_task(served.use(str(third), None).__aenter__())
            await asyncio.sleep(0)
            # Both places are taken; one that is open already is still had at once.
            async with served.use(str(base), None) as again:
                assert again is plain
            assert not waiting.done()
        await waiting
        with pytest.raises(SamplerError, match="is closed"):
            await answer(tuned, ask(base))
        await answer(plain, ask(base))
        await served.close()
        with pytest.raises(SamplerError, match="is closed"):
            await answer(plain, ask(base))

    asyncio.run(run())


def test_more_than_wait_in_line_are_turned_away(base: Path, tmp_path: Path) -> None:
    async def run() -> None:
        served = ServedModels(tmp_path, replace(CONFIG, max_sequences=1), max_loaded=1)
        async with AsyncExitStack() as stack:
            for _ in range(4):
                await stack.enter_async_context(served.use(str(base), None))
            with pytest.raises(ChatBusyError, match="4 requests of this model are under way"):
                await stack.enter_async_context(served.use(str(base), None))
        async with served.use(str(base), None):
            pass
        await served.close()

    asyncio.run(run())


def test_a_checkpoint_written_again_is_opened_again_and_a_failure_is_not_kept(
    base: Path, checkpoint: Path, tmp_path: Path
) -> None:
    async def run() -> None:
        served = ServedModels(tmp_path, CONFIG, max_loaded=2)
        folder = tmp_path / "step"
        with pytest.raises(SamplerError, match="not there any more"):
            await served.use(str(base), str(folder)).__aenter__()
        with_canaries(checkpoint, folder, -0.01)
        with pytest.raises(SamplerError, match="differ"):
            await served.use(str(base), str(folder)).__aenter__()
        shutil.rmtree(folder)
        shutil.copytree(checkpoint, folder)
        async with served.use(str(base), str(folder)) as model:
            await answer(model, ask(base))
        with pytest.raises(ModelError, match="neither a known name"):
            await served.use("no-such-model", None).__aenter__()
        await served.close()

    asyncio.run(run())
