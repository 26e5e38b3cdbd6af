"""Answers forced into a schema: they fit, and their logprobs say what was drawn from."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema_rs import validator_for

from agentrft.core.config import EngineConfig
from agentrft.core.errors import SamplerError, UserError
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.core.task import Message, ToolSpec
from agentrft.inference.chat import ChatEnd, ChatRequest
from agentrft.inference.embedded.engine import SampledToken
from agentrft.inference.embedded.grammar import Grammar, Grammars, where_allowed
from agentrft.inference.served import ServedModel, open_model
from agentrft.inference.tokenizer import ChatTokenizer
from agentrft.inference.turn_grammar import schema_grammar

VERDICT: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {"conclusion": {"type": "string", "maxLength": 12}},
                "required": ["conclusion"],
                "additionalProperties": False,
            },
        },
        "result": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["steps", "result"],
    "additionalProperties": False,
}
CHOICE: Mapping[str, Any] = {"type": "string", "enum": ["right", "wrong", "status"]}
HI = (Message(role="user", content="Where is my order W1234567?"),)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_chat_model: Callable[..., Path]) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("base"))


@asynccontextmanager
async def opened(base: Path) -> AsyncIterator[ServedModel]:
    config = EngineConfig(dtype="float32", threads=1, max_sequences=8)
    model = await open_model(str(base), None, models=base.parent, config=config)
    try:
        yield model
    finally:
        await asyncio.to_thread(model.engine.close)


def begun(base: Path, model: ServedModel, schema: Mapping[str, Any]) -> Grammar:
    grammars = Grammars(lambda: ChatTokenizer(base).as_json(), model.engine.vocabulary)
    return grammars.begin(schema_grammar(schema), model.renderer.stop_token_ids)


def ask(base: Path, schema: Mapping[str, Any] | None, **options: Any) -> ChatRequest:
    request = ChatRequest(base=str(base), messages=HI, max_tokens=400, seed=3, schema=schema)
    return replace(request, **options)


async def answer(model: ServedModel, request: ChatRequest) -> ChatEnd:
    *_, end = [piece async for piece in model.answer(request)]
    assert isinstance(end, ChatEnd)
    return end


@pytest.mark.parametrize("schema", [VERDICT, CHOICE, {"type": "object", "maxProperties": 0}])
def test_whatever_a_random_model_wants_to_say_fits_the_schema(
    base: Path, schema: Mapping[str, Any]
) -> None:
    async def run() -> list[ChatEnd]:
        async with opened(base) as model:
            asked = [ask(base, schema, seed=seed, temperature=1.3) for seed in range(12)]
            return await asyncio.gather(*(answer(model, one) for one in asked))

    fits = validator_for(dict(schema))
    ends = asyncio.run(run())
    assert all(end.finish_reason == "stop" for end in ends)
    assert all(fits.is_valid(json.loads(end.message.content)) for end in ends)
    distinct = len({end.message.content for end in ends})
    assert distinct == 1 if "maxProperties" in schema else distinct > 1


def test_without_room_the_answer_is_cut_and_says_so(base: Path) -> None:
    async def run() -> ChatEnd:
        async with opened(base) as model:
            return await answer(model, ask(base, VERDICT, max_tokens=4))

    assert asyncio.run(run()).finish_reason == "length"


def test_logprobs_are_of_the_distribution_that_was_drawn_from(base: Path) -> None:
    async def run() -> list[SampledToken]:
        async with opened(base) as model:
            vocabulary = model.engine.vocabulary
            sample = SampleRequest(
                prompt_ids=model.renderer.start(HI, ()),
                max_tokens=60,
                temperature=1.0,
                seed=1,
                stop_token_ids=model.renderer.stop_token_ids,
                grammar=schema_grammar(VERDICT),
            )
            drawn = model.engine.stream(sample, top_logprobs=vocabulary)
            tokens = [one async for one in drawn if isinstance(one, SampledToken)]
            grammar = begun(base, model, VERDICT)
            for token in tokens:
                (allowed,) = grammar.allowed([])
                assert allowed is not None
                assert token.likely is not None
                own = dict(token.likely.top)  # the model's own, of every token
                mass = sum(math.exp(own[i]) for i in range(vocabulary) if allowed[i])
                expected = own[token.token_id] - math.log(mass)
                assert token.logprob == pytest.approx(expected, abs=1e-3)
                assert token.likely.logprob == pytest.approx(own[token.token_id], abs=1e-5)
                grammar.take(token.token_id)
            return tokens

    tokens = asyncio.run(run())
    assert any(token.logprob == 0.0 for token in tokens)  # forced
    assert any(token.logprob < -0.1 for token in tokens)


def test_guesses_change_nothing_and_neighbours_without_a_schema_are_as_before(base: Path) -> None:
    schema = {"type": "array", "minItems": 12, "maxItems": 12, "items": {"enum": ["aa", "bb"]}}

    async def run() -> None:
        async with opened(base) as model:
            free = ask(base, None, max_tokens=60)
            forced = [ask(base, schema, seed=seed) for seed in (1, 2, 1, 2)]
            alone = [(await answer(model, one)).message for one in (*forced[:2], free)]
            asked = (*forced, free, free)
            ends = await asyncio.gather(*(answer(model, one) for one in asked))
            first, second, third = alone
            assert [end.message for end in ends] == [first, second, first, second, third, third]
            assert model.engine.stats.accepted_tokens > 20
            assert first != second

    asyncio.run(run())


def test_a_wrong_guess_leaves_the_grammar_where_it_was(base: Path) -> None:
    async def run() -> None:
        async with opened(base) as model:
            written = model.renderer.encode('"right"')
            wrong = model.renderer.encode("}")[0]
            grammar = begun(base, model, CHOICE)
            for position, token in enumerate(written):
                rest = [*written[position : position + 1], wrong, wrong]
                first, after, *others = grammar.allowed(rest)
                assert first is not None
                assert after is not None
                assert others == [None, None]
                assert bool(first[token])
                assert not bool(first[wrong])
                grammar.take(token)
            (end,) = grammar.allowed([])
            assert end is not None
            assert end.nonzero()[:, 0].tolist() == sorted(model.renderer.stop_token_ids)

    asyncio.run(run())


def test_without_a_grammar_logits_are_not_even_copied() -> None:
    logits = torch.randn(5, 32)
    assert where_allowed(logits, [(None, [1]), (None, []), (None, [2])]) is logits


def test_control_tokens_cannot_be_written_inside_a_text(base: Path) -> None:
    async def run() -> None:
        async with opened(base) as model:
            grammar = begun(base, model, {"type": "string"})
            grammar.take(model.renderer.encode('"')[0])
            (allowed,) = grammar.allowed([])
            assert allowed is not None
            controls = [
                i for i in range(model.engine.vocabulary) if model.renderer.decode([i])[:2] == "<|"
            ]
            assert controls
            assert not allowed[controls].any()
            assert allowed.sum() > 100

    asyncio.run(run())


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "frob"}, "cannot be forced: .*frob"),
        ({"$ref": "#/nowhere"}, "cannot be forced"),
        ({"allOf": [{"not": {}}]}, "cannot be forced: .*not"),
        ({"enum": ["x" * 100_000]}, "at most 100000 are read"),
    ],
)
def test_a_schema_that_cannot_be_forced_is_refused(
    base: Path, schema: Mapping[str, Any], message: str
) -> None:
    async def run() -> None:
        async with opened(base) as model:
            await answer(model, ask(base, schema))

    with pytest.raises(UserError, match=message):
        asyncio.run(run())


def test_tools_and_a_schema_exclude_each_other(base: Path) -> None:
    tool = ToolSpec(name="refund", description="", parameters={"type": "object"})

    async def run() -> ChatEnd:
        async with opened(base) as model:
            request = ask(base, CHOICE, tools=(tool,))
            with pytest.raises(UserError, match="cannot call tools"):
                await answer(model, request)
            return await answer(model, replace(request, tool_choice="none"))

    assert json.loads(asyncio.run(run()).message.content) in CHOICE["enum"]


def test_a_grammar_that_grows_beyond_its_limits_fails_its_own_answer_alone(base: Path) -> None:
    async def run() -> None:
        async with opened(base) as model:
            grammar = begun(base, model, CHOICE)
            grammar.take(model.renderer.encode("}")[0])
            assert grammar.failed
            sample = SampleRequest(prompt_ids=model.renderer.start(HI, ()), max_tokens=8, seed=1)

            async def broken() -> None:
                async for _ in model.engine.stream(sample, grammar=grammar):
                    pass

            failed, other = await asyncio.gather(
                broken(), model.engine.sample(sample), return_exceptions=True
            )
            assert isinstance(failed, SamplerError)
            assert "JSON schema" in str(failed)
            assert isinstance(other, Completion)

    asyncio.run(run())
