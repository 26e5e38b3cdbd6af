"""ChatML on the interface of the `renderers` library, for families it has no renderer for.

SmolLM2 was never taught tools, so its block is ours and short; Qwen2 keeps the words it learned.
Calls are `<tool_call>` JSON in both. Extending never touches what was sampled.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from renderers.base import (
    Message,
    ParsedResponse,
    ParsedToolCall,
    RenderedTokens,
    ToolCallParseStatus,
    ToolSpec,
)

from agentrft.inference.calls import read_call
from agentrft.inference.tokenizer import ChatTokenizer

_START, _END = "<|im_start|>", "<|im_end|>"
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class ChatMLRenderer:
    """Renders, extends and parses ChatML; `tool_block` and `tool_turn` make it a family's own."""

    is_prefix_stable = True

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        tool_block: Callable[[Sequence[ToolSpec]], str],
        tool_turn: Callable[[Sequence[str]], str],
        template: str,
    ) -> None:
        self.template = template
        """Name of the files in `templates/` that write the same elsewhere."""
        self._tokenizer = tokenizer
        self._tool_block = tool_block
        self._tool_turn = tool_turn
        self._end_id = tokenizer.control_ids[_END]

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[ToolSpec] | None = None,
        add_generation_prompt: bool = False,
    ) -> RenderedTokens:
        """Render a conversation; tools go into the first system message, made if there is none."""
        rendered = RenderedTokens(message_roles=[message["role"] for message in messages])
        block = self._tool_block(tools) if tools else ""
        if block and (not messages or messages[0]["role"] != "system"):
            self._add(rendered, f"{_START}system\n{block}{_END}\n", -1)
            block = ""
        self._add_messages(rendered, messages, block)
        if add_generation_prompt:
            self._add(rendered, f"{_START}assistant\n", -1)
        return rendered

    def render_ids(
        self,
        messages: list[Message],
        *,
        tools: list[ToolSpec] | None = None,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """Render a conversation to token ids only."""
        return self.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt
        ).token_ids

    def bridge_to_next_turn(
        self,
        previous_prompt_ids: list[int],
        previous_completion_ids: list[int],
        new_messages: list[Message],
        *,
        tools: list[ToolSpec] | None = None,
    ) -> RenderedTokens | None:
        """Append messages to what was sampled, closing a cut turn; None for assistant messages."""
        del tools  # already in the prompt
        if not previous_prompt_ids or any(m["role"] == "assistant" for m in new_messages):
            return None
        history = [*previous_prompt_ids, *previous_completion_ids]
        closed = bool(previous_completion_ids) and previous_completion_ids[-1] == self._end_id
        rendered = RenderedTokens(
            token_ids=history,
            message_indices=[-1] * len(history),
            sampled_mask=[False] * len(history),
            message_roles=[message["role"] for message in new_messages],
        )
        self._add(rendered, "\n" if closed else f"{_END}\n", -1)
        self._add_messages(rendered, new_messages, "")
        self._add(rendered, f"{_START}assistant\n", -1)
        return rendered

    def get_stop_token_ids(self) -> list[int]:
        """Return the ids that end a turn."""
        ids = {self._end_id, self._tokenizer.control_ids.get("<|endoftext|>", self._end_id)}
        return sorted(ids, key=lambda i: i != self._end_id)

    def parse_response(
        self,
        token_ids: list[int],
        *,
        tools: list[ToolSpec] | None = None,
        prompt_ids: list[int] | None = None,
    ) -> ParsedResponse:
        """Read calls from the decoded turn; every attempt is recorded, readable or not."""
        del tools, prompt_ids
        stops = self.get_stop_token_ids()
        end = next((n for n, i in enumerate(token_ids) if i in stops), len(token_ids))
        text = self._tokenizer.decode(token_ids[:end])
        content: list[str] = []
        calls: list[ParsedToolCall] = []
        position = 0
        while (start := text.find(_OPEN, position)) >= 0:
            content.append(text[position:start])
            call, position = _read_block(text, start + len(_OPEN))
            calls.append(call)
        content.append(text[position:])
        return ParsedResponse(content="".join(content).strip(), tool_calls=calls)

    def _add_messages(
        self, rendered: RenderedTokens, messages: Sequence[Message], block: str
    ) -> None:
        results: list[str] = []
        for index, message in enumerate(messages):
            role, content = message["role"], str(message["content"] or "")
            if role == "tool":
                results.append(content)
                last = index + 1 == len(messages) or messages[index + 1]["role"] != "tool"
                if last:
                    self._add(rendered, self._tool_turn(results), index)
                    results = []
            elif role == "assistant":
                self._add(rendered, f"{_START}assistant\n", index)
                self._add(rendered, _assistant_body(message) + _END, index, sampled=True)
                self._add(rendered, "\n", index)
            else:
                if index == 0 and block:
                    content = f"{content}\n\n{block}" if content else block
                self._add(rendered, f"{_START}{role}\n{content}{_END}\n", index)

    def _add(
        self, rendered: RenderedTokens, text: str, index: int, *, sampled: bool = False
    ) -> None:
        ids = self._tokenizer.encode(text)
        rendered.token_ids += ids
        rendered.message_indices += [index] * len(ids)
        rendered.sampled_mask += [sampled] * len(ids)


def smollm2_renderer(tokenizer: ChatTokenizer) -> ChatMLRenderer:
    """ChatML with one line per tool and a turn per result; also for ChatML models without tools."""
    return ChatMLRenderer(
        tokenizer,
        tool_block=signature_block,
        tool_turn=lambda results: "".join(f"{_START}tool\n{text}{_END}\n" for text in results),
        template="signatures",
    )


def qwen2_renderer(tokenizer: ChatTokenizer) -> ChatMLRenderer:
    """ChatML as Qwen2.5 was trained on tools: JSON schemas, results inside a user turn."""
    return ChatMLRenderer(
        tokenizer, tool_block=_schema_block, tool_turn=_response_turn, template="schemas"
    )


def signature_block(tools: Sequence[ToolSpec]) -> str:
    """Return one line per tool, as in `get_order(order_id: string) - Look up an order.`."""
    lines = [_signature(tool) for tool in tools]
    form = '<tool_call>{"name": ..., "arguments": {...}}</tool_call>'
    return "\n".join(["Tools:", *lines, f"Call a tool by writing {form}"])


def _signature(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", tool)
    schema: Mapping[str, Any] = function.get("parameters") or {}
    required = schema.get("required", ())
    arguments: list[str] = []
    notes: list[str] = [str(function.get("description", "")).strip()]
    for name, part in (schema.get("properties") or {}).items():
        optional = "" if name in required else "?"
        arguments.append(f"{name}{optional}: {_type(part)}")
        if note := isinstance(part, dict) and str(part.get("description", "")).strip():
            notes.append(f"{name}: {note}")
    text = " ".join(" ".join(note.split()) for note in notes if note)
    return f"{function['name']}({', '.join(arguments)})" + (f" - {text}" if text else "")


def _type(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "any"
    if "enum" in schema:
        return "|".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return "|".join(_type(part) for part in schema[key])
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return "|".join(map(str, kind))
    if kind == "array":
        return f"{_type(schema.get('items'))}[]"
    if kind == "object" and schema.get("properties"):
        required = schema.get("required", ())
        parts = (
            f"{name}{'' if name in required else '?'}: {_type(part)}"
            for name, part in schema["properties"].items()
        )
        return f"{{{', '.join(parts)}}}"
    return str(kind)


def _schema_block(tools: Sequence[ToolSpec]) -> str:
    schemas = "".join(f"\n{json.dumps(tool, ensure_ascii=False)}" for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>{schemas}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def _response_turn(results: Sequence[str]) -> str:
    parts = "".join(f"\n<tool_response>\n{text}\n</tool_response>" for text in results)
    return f"{_START}user{parts}{_END}\n"


def _assistant_body(message: Mapping[str, Any]) -> str:
    parts = [str(message["content"])] if message["content"] else []
    for call in message.get("tool_calls", ()):
        function = call["function"]
        name = json.dumps(function["name"], ensure_ascii=False)
        parts.append(f'{_OPEN}{{"name": {name}, "arguments": {function["arguments"]}}}{_CLOSE}')
    return "\n".join(parts)


def _read_block(text: str, start: int) -> tuple[ParsedToolCall, int]:
    """Read one call whose opening tag ends at `start`; return it and where the rest begins."""
    try:
        call, end = read_call(text, start)
    except ValueError:
        call, end = None, start
    close = text.find(_CLOSE, end)
    if close < 0:
        raw = text[start:].strip()
        return ParsedToolCall(raw=raw, status=ToolCallParseStatus.UNCLOSED_BLOCK), len(text)
    raw = text[start:close].strip()
    if call is None or text[end:close].strip():
        status = ToolCallParseStatus.INVALID_JSON
        return ParsedToolCall(raw=raw, status=status), close + len(_CLOSE)
    record = ParsedToolCall(raw=raw, name=call.name, arguments=json.loads(call.arguments))
    return record, close + len(_CLOSE)
