"""Forced turns of the default model: what they are, and what forcing them costs.

python benchmarks/grammar.py [--home FOLDER] [--turns 200] [--max-tokens 192]

Tools and questions are those of `examples/support_desk`; a few exchanges stand before each question,
since an untuned model hardly ever calls by itself.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "support_desk"))

from jsonschema_rs import validator_for
from platformdirs import user_data_path
from tools import SupportDesk  # pyright: ignore[reportMissingImports]

from agentrft.core.config import CallForm, EngineConfig
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.core.trajectory import FinishReason
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.inference.embedded.grammar import Grammars
from agentrft.inference.models import resolve
from agentrft.inference.renderer import ChatRenderer, load_renderer
from agentrft.inference.tokenizer import ChatTokenizer
from agentrft.rollout.environment import tool_specs

DESK = Path(__file__).parent.parent / "examples" / "support_desk"
EXCHANGES = (
    ("Where is my order W7654321?", "get_order", {"order_id": "W7654321"}, "It was shipped."),
    ("Please cancel order W1111111.", "cancel_order", {"order_id": "W1111111"}, "Cancelled."),
    ("I want 12.50 back.", "refund", {"order_id": "W3333333", "amount": 12.5}, "It is paid back."),
    ("Is that all?", "hand_over", {"reason": "more questions"}, "A colleague will answer."),
)


def conversations(turns: int) -> list[list[Message]]:
    rows = [json.loads(line) for line in (DESK / "train.jsonl").read_text().splitlines()]
    shown = [Message(role="system", content="You are a support desk. Be brief.")]
    for number, (asked, name, arguments, answer) in enumerate(EXCHANGES):
        call = ToolCall(id=f"call_{number}", name=name, arguments=json.dumps(arguments))
        shown += [
            Message(role="user", content=asked),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="done", tool_call_id=call.id),
            Message(role="assistant", content=answer),
        ]
    asked = [row["messages"][-1]["content"] for row in rows]
    return [[*shown, Message(role="user", content=asked[n % len(asked)])] for n in range(turns)]


async def drawn(
    folder: Path,
    renderer: ChatRenderer,
    tools: Sequence[ToolSpec],
    form: CallForm,
    turns: int,
    most: int,
) -> tuple[list[Completion], float]:
    """Draw first turns at temperature 1; return them, and tokens per second of computing."""
    grammar = ""
    if form != "off":
        grammar = renderer.call_grammar(tools, first_turn_must_call=form == "call_first")
    engine = EmbeddedEngine(folder, EngineConfig(), max_context_tokens=2048)
    requests = [
        SampleRequest(
            prompt_ids=renderer.start(messages, tools),
            max_tokens=most,
            seed=seed,
            stop_token_ids=renderer.stop_token_ids,
            grammar=grammar,
        )
        for seed, messages in enumerate(conversations(turns))
    ]
    try:
        completions = await asyncio.gather(*(engine.sample(request) for request in requests))
        return completions, engine.stats.sampled_tokens / engine.stats.busy_s
    finally:
        await asyncio.to_thread(engine.close)


def counted(
    renderer: ChatRenderer, tools: Sequence[ToolSpec], completions: Sequence[Completion]
) -> Counter[str]:
    fits = {tool.name: validator_for(dict(tool.parameters)) for tool in tools}
    found: Counter[str] = Counter()
    for completion in completions:
        turn = renderer.parse(completion.token_ids, tools)
        if completion.finish_reason is FinishReason.LENGTH:
            found["cut"] += 1
            continue
        found["turns with calls"] += bool(turn.message.tool_calls)
        found["parse failures"] += len(turn.parse_failures)
        for call in turn.message.tool_calls:
            found["calls"] += 1
            if call.name not in fits:
                found["unknown tools"] += 1
            elif not fits[call.name].is_valid(json.loads(call.arguments)):
                found["arguments beside their schema"] += 1
    return found


def mask_costs(folder: Path, renderer: ChatRenderer, tools: Sequence[ToolSpec]) -> None:
    """Print what compiling, copying and every mask take on one thread."""
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    grammars = Grammars(lambda: ChatTokenizer(folder).as_json(), vocabulary)
    text = renderer.call_grammar(tools, first_turn_must_call=False)
    stops = renderer.stop_token_ids
    for what in ("tokenizer and first grammar", "copy"):
        started = time.perf_counter()
        grammars.begin(text, stops)
        print(f"{what}: {1e3 * (time.perf_counter() - started):.2f} ms")
    arguments = {"order_id": "W1234567", "address": "12 Some Street, 1234 Town, " * 6}
    call = ToolCall(id="call_0", name="change_address", arguments=json.dumps(arguments))
    for what, said in (
        ("call", Message(role="assistant", tool_calls=(call,))),
        ("text", Message(role="assistant", content="It was shipped on Monday by post. " * 10)),
    ):
        ids, sampled = renderer.demonstration([Message(role="user", content="?"), said], tools)
        grammar = grammars.begin(text, stops)
        times: list[float] = []
        for token in (i for i, ours in zip(ids, sampled, strict=True) if ours):
            started = time.perf_counter()
            grammar.allowed(())
            times.append(1e3 * (time.perf_counter() - started))
            grammar.take(token)
        print(
            f"masks of a {what}, {len(times)} tokens: mean {mean(times):.3f} ms, "
            f"most {max(times):.2f} ms"
        )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=user_data_path("agentrft"))
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=192)
    options = parser.parse_args()
    folder = resolve("smollm2-135m", cache=options.home / "models").folder
    renderer, tools = load_renderer(folder), tool_specs(SupportDesk)
    mask_costs(folder, renderer, tools)
    forms: tuple[CallForm, ...] = ("off", "calls", "call_first")
    for form in forms:
        completions, speed = await drawn(
            folder, renderer, tools, form, options.turns, options.max_tokens
        )
        found = counted(renderer, tools, completions)
        print(f"{form}: {options.turns} turns, {dict(found)}, {speed:.0f} tokens/s", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
