"""Answers forced into a grammar: they fit, and their logprobs say what was drawn from."""

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
from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.core.training_config import TrainerConfig
from agentrft.core.trajectory import FinishReason
from agentrft.inference.chat import ChatEnd, ChatRequest
from agentrft.inference.embedded.engine import SampledToken
from agentrft.inference.embedded.grammar import Grammar, Grammars, where_allowed
from agentrft.inference.renderer import ChatRenderer
from agentrft.inference.served import ServedModel, open_model
from agentrft.inference.tokenizer import ChatTokenizer
from agentrft.inference.turn_grammar import schema_grammar
from agentrft.training.trainer import LocalTrainer

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


SMALL = EngineConfig(dtype="float32", threads=1, max_sequences=8)


@asynccontextmanager
async def opened(base: Path, config: EngineConfig = SMALL) -> AsyncIterator[ServedModel]:
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
    ways = " | ".join(" ".join(["s"] * count) for count in range(2, 16))

    async def run() -> None:
        async with opened(base) as model:
            free = SampleRequest(
                prompt_ids=model.renderer.start(HI, ()),
                max_tokens=200,
                seed=1,
                stop_token_ids=model.renderer.stop_token_ids,
            )
            too_many = replace(free, grammar=f'start: s "!"\ns: {ways} | /[a-z]/')
            failed, other = await asyncio.gather(
                model.engine.sample(too_many), model.engine.sample(free), return_exceptions=True
            )
            assert isinstance(failed, SamplerError)
            assert "grammar is too much" in str(failed)
            assert isinstance(other, Completion)

    asyncio.run(run())


def test_a_grammar_needs_a_stop_token_and_must_be_one(base: Path) -> None:
    async def run() -> None:
        async with opened(base) as model:
            prompt = model.renderer.start(HI, ())
            endless = SampleRequest(prompt_ids=prompt, max_tokens=4, grammar='start: "a"')
            with pytest.raises(SamplerError, match="the request names none"):
                await model.engine.sample(endless)
            broken = replace(
                endless, grammar="start: nowhere", stop_token_ids=model.renderer.stop_token_ids
            )
            with pytest.raises(UserError, match=r"cannot be forced: .*nowhere"):
                await model.engine.sample(broken)

    asyncio.run(run())


REFUND = ToolSpec(
    name="refund",
    description="Pay back.",
    parameters={
        "type": "object",
        "properties": {"order_id": {"type": "string", "maxLength": 8}},
        "required": ["order_id"],
    },
)


def turn_request(model: ServedModel, *, must_call: bool, **options: Any) -> SampleRequest:
    grammar = model.renderer.call_grammar([REFUND], first_turn_must_call=must_call)
    request = SampleRequest(
        prompt_ids=model.renderer.start(HI, [REFUND]),
        max_tokens=300,
        stop_token_ids=model.renderer.stop_token_ids,
        grammar=grammar,
    )
    return replace(request, **options)


def test_greedy_and_sampled_calls_are_the_same_alone_and_among_guesses(base: Path) -> None:
    async def run() -> None:
        async with opened(base) as model:
            asked = [
                turn_request(model, must_call=True, temperature=temperature, seed=seed)
                for temperature, seed in ((0.0, 0), (1.0, 1), (1.0, 2), (0.7, 3))
            ]
            alone = [await model.engine.sample(one) for one in asked]
            together = await asyncio.gather(*(model.engine.sample(one) for one in asked * 2))
            assert [one.token_ids for one in together] == [one.token_ids for one in alone] * 2
            assert model.engine.stats.accepted_tokens > 0
            for one in alone:
                turn = model.renderer.parse(one.token_ids, [REFUND])
                assert turn.message.tool_calls
                assert turn.parse_failures == ()

    asyncio.run(run())


def test_logprobs_under_a_grammar_are_not_the_trainers_and_others_are(base: Path) -> None:
    config = TrainerConfig(dtype="float32", threads=1)
    trainer = LocalTrainer(base, config, loss="policy_gradient", canaries=[], seed=1)

    async def run() -> tuple[list[float], list[float]]:
        async with opened(base) as model:
            differences: list[list[float]] = []
            forced = turn_request(model, must_call=True, seed=4)
            for request in (forced, replace(forced, grammar="", max_tokens=40)):
                drawn = await model.engine.sample(request)
                (scored,) = trainer.score([(*request.prompt_ids, *drawn.token_ids)])
                pairs = zip(drawn.logprobs, scored[-len(drawn.logprobs) :], strict=True)
                differences.append([own - trained for own, trained in pairs])
            return differences[0], differences[1]

    forced, free = asyncio.run(run())
    assert min(forced) > -1e-3  # leaving tokens out makes the others likelier
    assert max(forced) > 1.0
    assert max(map(abs, free)) < 1e-3


DESK = tuple(
    ToolSpec(
        name=name,
        description="",
        parameters={
            "type": "object",
            "properties": {key: {"type": kind} for key, kind in arguments.items()},
            "required": list(arguments),
        },
    )
    for name, arguments in (
        ("find_customer", {"email": "string"}),
        ("get_order", {"order_id": "string"}),
        ("cancel_order", {"order_id": "string"}),
        ("refund", {"order_id": "string", "amount": "number"}),
        ("change_address", {"order_id": "string", "address": "string"}),
        ("search_policy", {"topic": "string"}),
        ("hand_over", {"reason": "string"}),
    )
)
"""The tools of the support desk in `examples/`."""
EXCHANGES = (
    ("Where is my order W7654321?", "get_order", {"order_id": "W7654321"}, "It was shipped."),
    ("Please cancel order W1111111.", "cancel_order", {"order_id": "W1111111"}, "It is cancelled."),
    ("I want 12.50 back.", "refund", {"order_id": "W3333333", "amount": 12.5}, "It is paid back."),
    ("Is that all?", "hand_over", {"reason": "more questions"}, "A colleague will answer."),
)
QUESTIONS = ("Where is W5555555?", "Cancel W4444444 please.", "Thank you!", "W9 is broken, pay me.")


def desk_conversation(question: str) -> list[Message]:
    messages = [Message(role="system", content="You are a support desk. Be brief.")]
    for number, (asked, name, arguments, answer) in enumerate(EXCHANGES):
        call = ToolCall(id=f"call_{number}", name=name, arguments=json.dumps(arguments))
        messages += [
            Message(role="user", content=asked),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="done", tool_call_id=call.id),
            Message(role="assistant", content=answer),
        ]
    return [*messages, Message(role="user", content=question)]


@pytest.mark.parametrize(("form", "turns"), [("calls", 200), ("call_first", 24)])
def test_every_call_of_the_real_model_is_of_a_tool_and_fits_its_schema(
    smollm2_folder: Path, form: str, turns: int
) -> None:
    must_call = form == "call_first"
    fits = {tool.name: validator_for(dict(tool.parameters)) for tool in DESK}

    async def run() -> tuple[list[Completion], ChatRenderer]:
        async with opened(smollm2_folder, EngineConfig()) as model:
            grammar = model.renderer.call_grammar(DESK, first_turn_must_call=must_call)
            prompts = [model.renderer.start(desk_conversation(q), DESK) for q in QUESTIONS]
            asked = [
                SampleRequest(
                    prompt_ids=prompts[seed % len(prompts)],
                    max_tokens=128,
                    seed=seed,
                    stop_token_ids=model.renderer.stop_token_ids,
                    grammar=grammar,
                )
                for seed in range(turns)
            ]
            drawn = await asyncio.gather(*(model.engine.sample(one) for one in asked))
            return drawn, model.renderer

    drawn, renderer = asyncio.run(run())
    whole = [one for one in drawn if one.finish_reason is FinishReason.STOP]
    read = [renderer.parse(one.token_ids, DESK) for one in whole]
    assert len(whole) > 0.8 * turns  # the others were cut while they were still going
    assert not any(turn.parse_failures for turn in read)
    calls = [call for turn in read for call in turn.message.tool_calls]
    assert all(fits[call.name].is_valid(json.loads(call.arguments)) for call in calls)
    calling = sum(bool(turn.message.tool_calls) for turn in read)
    assert calling == len(whole) if must_call else turns / 10 < calling < len(whole)
