"""Messages to tokens and back for every model family, on the `renderers` library.

Foreign text never becomes a control token, history is never rendered again, and whatever the model
writes is either a readable call, plain text or a parse failure; nothing it writes raises.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agentrft.core.errors import DataError, UserError, boundary
from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.core.trajectory import ParseFailure
from agentrft.inference.calls import FORM, read_call
from agentrft.inference.tokenizer import ChatTokenizer
from agentrft.inference.turn_grammar import CallWriting, turn_grammar

if TYPE_CHECKING:
    from renderers.base import ParsedToolCall, Renderer

TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""What families write around calls and reasoning, as text or as tokens."""
_ANY_TOOL = "any_tool"
_TOOL_SETS = 64
"""Sets of tools that are kept as the family wants them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTurn:
    """What one completion says."""

    message: Message
    parse_failures: tuple[ParseFailure, ...] = ()


def load_renderer(folder: Path) -> "ChatRenderer":
    """Return the renderer of a model folder; raises ModelError if it has no usable tokenizer.

    The family is told by `config.json` and by which control tokens exist: Qwen3 (thinking off) and
    Llama-3 come from the library; ChatML with `<tool_call>` as a token is written as Qwen2.5 does;
    other ChatML as SmolLM2. Everything else uses the folder's own template and cannot be extended.
    """
    from renderers.configs import DefaultRendererConfig, Qwen3RendererConfig

    tokenizer = ChatTokenizer(folder)
    controls = tokenizer.control_ids
    if tokenizer.model_type in ("qwen3", "qwen3_moe") and "<tool_response>" in controls:
        from renderers.qwen3 import Qwen3Renderer

        config = Qwen3RendererConfig(enable_thinking=False)
        return ChatRenderer(tokenizer, Qwen3Renderer(tokenizer, config))
    if {"<|start_header_id|>", "<|eot_id|>", "<|eom_id|>"} <= controls.keys():
        from renderers.llama_3 import Llama3Renderer

        return ChatRenderer(tokenizer, Llama3Renderer(tokenizer), bare_calls=True)
    if {"<|im_start|>", "<|im_end|>"} <= controls.keys():
        from agentrft.inference.chatml import qwen2_renderer, smollm2_renderer

        family = qwen2_renderer if "<tool_call>" in controls else smollm2_renderer
        return ChatRenderer(tokenizer, family(tokenizer))
    from renderers.default import DefaultRenderer

    parser = "qwen3" if "<tool_call>" in controls else None
    renderer = DefaultRenderer(tokenizer, DefaultRendererConfig(tool_parser=parser))
    return ChatRenderer(tokenizer, renderer)


class ChatRenderer:
    """One model family's way of writing conversations, in the types of this package."""

    def __init__(
        self, tokenizer: ChatTokenizer, renderer: "Renderer", *, bare_calls: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._tool_sets: dict[str, list[dict[str, Any]]] = {}
        self._last_tools: tuple[Sequence[ToolSpec], Any] = ((), None)
        self.stop_token_ids = tuple(renderer.get_stop_token_ids())
        self.bare_calls = bare_calls
        """Whether a call is a turn that is a JSON object, with nothing around it to tell it by."""
        self.marks = (*tokenizer.control_ids, *(t for t in TAGS if t not in tokenizer.control_ids))
        """Strings after which, in a completion, text may be anything but content."""

    @property
    def template(self) -> str | None:
        """Name of the chat template in `templates/` that writes the same; None: the model's own."""
        from agentrft.inference.chatml import ChatMLRenderer

        return self._renderer.template if isinstance(self._renderer, ChatMLRenderer) else None

    def as_text(self) -> "ChatRenderer":
        """Return a renderer that reads completions as text alone: no calls, no reasoning."""
        return _TextRenderer(self._tokenizer, self._renderer)

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[int, ...]:
        """Return prompt ids that end where the assistant begins to write.

        Raises UserError for conversations that the family cannot express.
        """
        return tuple(self._render(messages, tools, add_generation_prompt=True))

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> tuple[int, ...] | None:
        """Return only the ids to append after the completion, up to the next assistant start.

        A turn that was cut is closed first. None where the family cannot append: start anew then.
        """
        history = [*prompt_ids, *completion_ids]
        with boundary(UserError, "these messages cannot follow in this model's chat format"):
            bridged = self._renderer.bridge_to_next_turn(
                list(prompt_ids),
                list(completion_ids),
                [self._message(message) for message in messages],
                tools=self._tools(tools),
            )
        if bridged is None or bridged.token_ids[: len(history)] != history:
            return None
        return tuple(bridged.token_ids[len(history) :])

    def parse(
        self,
        completion_ids: Sequence[int],
        tools: Sequence[ToolSpec],
        prompt_ids: Sequence[int] = (),
        *,
        first_call: int = 0,
    ) -> ParsedTurn:
        """Read a completion; never raises for what the model wrote.

        Calls get the ids `call_N`, counted from `first_call`. Content is the text outside calls.
        """
        try:
            response = self._renderer.parse_response(
                list(completion_ids), tools=self._tools(tools), prompt_ids=list(prompt_ids) or None
            )
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raw = self.decode(completion_ids)
            failure = ParseFailure(raw=raw, reason=f"the call cannot be read; write {FORM}")
            return ParsedTurn(message=Message(role="assistant"), parse_failures=(failure,))
        calls: list[ToolCall] = []
        failures: list[ParseFailure] = []
        for record in response.tool_calls:
            call_id = f"call_{first_call + len(calls)}"
            match _read(record, call_id):
                case ToolCall() as call:
                    calls.append(call)
                case ParseFailure() as failure:
                    failures.append(failure)
        message = Message(
            role="assistant", content=response.content.strip(), tool_calls=tuple(calls)
        )
        return ParsedTurn(message=message, parse_failures=tuple(failures))

    def call_opening(self, tool: ToolSpec | None) -> tuple[int, ...]:
        """Return ids with which a call begins: of this tool up to its first argument, or of any.

        Raises UserError for families that write calls in a way that cannot be begun.
        """
        if self._writing is None:
            raise UserError(
                "this model's chat format cannot force a tool call; use tool_choice 'auto'"
            )
        # Without the blank before a value: models write it together with what follows.
        opening = self._writing.before.rstrip(" ")
        if tool is not None:
            name = json.dumps(tool.name, ensure_ascii=False)
            escaped = (
                self._tokenizer.escape(t) for t in (name, _arguments_opening(tool.parameters))
            )
            opening = self._writing.before + self._writing.between.join(escaped)
        return tuple(self._tokenizer.encode(opening))

    def call_grammar(self, tools: Sequence[ToolSpec], *, first_turn_must_call: bool) -> str:
        """Return the grammar of a turn: text, or calls as `demonstration` writes them.

        Raises UserError for families whose calls cannot be forced and read, and for tools whose
        schema cannot be.
        """
        if self._writing is None:
            raise UserError(
                "this model's chat format has no calls that can be forced; set decoding.grammar to "
                "'off' or use a model whose format has them (SmolLM2, Qwen2.5, Qwen3, Llama-3)"
            )
        return turn_grammar(
            self._writing, self._tokenizer.control_ids, tools, must_call=first_turn_must_call
        )

    @cached_property
    def _writing(self) -> CallWriting | None:
        """How this family writes calls, learnt from what it writes; None if it cannot read that."""
        once, twice = self._around_calls(1), self._around_calls(2)
        if len(once) != 3:
            return None
        before, between, after = once
        joint = twice[2] if len(twice) == 5 else ""
        return CallWriting(
            before=before, between=between, joint=joint, after=after, bare=self.bare_calls
        )

    def _around_calls(self, count: int) -> list[str]:
        """Return what is written around names and arguments; nothing where calls cannot be read."""
        call = ToolCall(id="call_0", name=_ANY_TOOL, arguments="{}")
        asked = Message(role="user", content="?")
        try:
            said = Message(role="assistant", tool_calls=(call,) * count)
            action = self._action((asked, said), ())
        except (DataError, UserError):
            return []
        read = [call.name for call in self.parse(action, ()).message.tool_calls]
        written = self.decode(action[:-1])
        return re.split(rf'"{_ANY_TOOL}"|{{}}', written) if read == [_ANY_TOOL] * count else []

    def demonstration(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Return the ids of a whole conversation, and True where the model would have sampled.

        The ids are those of `start`, sampled turns and `extend` in turn. Raises DataError for a
        conversation without an assistant turn or one that the family cannot express.
        """
        prompt: list[int] = []
        action: list[int] = []
        mask: list[bool] = []
        written = 0
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            observed = self._observe(
                prompt, action, messages[:index], messages[written:index], tools
            )
            prompt = [*prompt, *action, *observed]
            action = self._action(messages[: index + 1], tools)
            mask += [False] * len(observed) + [True] * len(action)
            written = index + 1
        if not written:
            raise DataError("a demonstration needs an assistant message; this one has none")
        return (*prompt, *action), tuple(mask)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens included."""
        return self._tokenizer.decode(ids)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; a character may need several tokens."""
        return self._tokenizer.token_bytes(token_id)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of text; no control token is among them."""
        return tuple(self._tokenizer.plain(text))

    def _observe(
        self,
        prompt: Sequence[int],
        action: Sequence[int],
        history: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> Sequence[int]:
        """Return the ids between two sampled turns; `history` ends with `new`."""
        if not prompt:
            return self.start(history, tools)
        extension = self.extend(prompt, action, new, tools)
        if extension is not None:
            return extension
        seen = (*prompt, *action)
        again = self.start(history, tools)
        if again[: len(seen)] != seen:
            raise DataError(
                "this model's chat template rewrites earlier turns, so one sequence cannot hold "
                "the demonstration; split it into one demonstration per assistant turn"
            )
        return again[len(seen) :]

    def _action(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """Return what the model would have sampled for the last message, stop token included."""
        prompt = self._render(messages[:-1], tools, add_generation_prompt=True)
        whole = self._render(messages, tools, add_generation_prompt=False)
        action = whole[len(prompt) :]
        stop = next((n for n, i in enumerate(action) if i in self.stop_token_ids), None)
        if whole[: len(prompt)] != prompt or stop is None:
            raise DataError(
                f"message {len(messages)} of the demonstration cannot be told apart from its "
                "prompt in this model's chat format"
            )
        return action[: stop + 1]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, add_generation_prompt: bool
    ) -> list[int]:
        with boundary(UserError, "the conversation does not fit this model's chat format"):
            return self._renderer.render_ids(
                [self._message(message) for message in messages],
                tools=self._tools(tools),
                add_generation_prompt=add_generation_prompt,
            )

    def _message(self, message: Message) -> Any:
        escape = self._tokenizer.escape
        role = "system" if message.role == "developer" else message.role
        content = message.content.strip() if role == "assistant" else message.content
        result: dict[str, Any] = {"role": role, "content": escape(content)}
        if message.tool_calls:
            result["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": escape(call.name), "arguments": escape(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            result["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            result["name"] = escape(message.name)
        return result

    def _tools(self, tools: Sequence[ToolSpec]) -> Any:
        # Every turn of every rollout asks for the same few sets, mostly for the very same one.
        last, written = self._last_tools
        if tools is last:
            return written
        key = repr(tools)  # which tells 1 from True
        written = self._tool_sets.get(key)
        if written is None:
            if len(self._tool_sets) >= _TOOL_SETS:
                self._tool_sets.clear()
            written = self._tool_sets[key] = self._escaped_tools(tools)
        # Only what nobody changes is known by its identity.
        if isinstance(tools, tuple):
            self._last_tools = (tools, written or None)
        return written or None

    def _escaped_tools(self, tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
        return [
            {
                "type": "function",
                "function": self._escaped(
                    {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": dict(tool.parameters),
                    }
                ),
            }
            for tool in tools
        ]

    def _escaped(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._tokenizer.escape(value)
        if isinstance(value, Mapping):
            items = cast(Mapping[str, Any], value).items()
            return {self._tokenizer.escape(key): self._escaped(part) for key, part in items}
        if isinstance(value, list | tuple):
            return [self._escaped(part) for part in cast(Sequence[Any], value)]
        return value


class _TextRenderer(ChatRenderer):
    """For completions whose form is forced, where nothing is to be told apart."""

    def __init__(self, tokenizer: ChatTokenizer, renderer: "Renderer") -> None:
        super().__init__(tokenizer, renderer)
        self.marks = ()

    def parse(
        self,
        completion_ids: Sequence[int],
        tools: Sequence[ToolSpec],
        prompt_ids: Sequence[int] = (),
        *,
        first_call: int = 0,
    ) -> ParsedTurn:
        """Read everything up to the stop token as content."""
        del tools, prompt_ids, first_call
        written = takewhile(lambda token: token not in self.stop_token_ids, completion_ids)
        return ParsedTurn(message=Message(role="assistant", content=self.decode(list(written))))


def _arguments_opening(schema: Mapping[str, Any]) -> str:
    """Return the beginning of an object of this schema, up to the value of what it must hold."""
    properties: Mapping[str, Any] = schema.get("properties") or {}
    required = [name for name in schema.get("required") or () if name in properties]
    if required:
        return f"{{{json.dumps(required[0], ensure_ascii=False)}:"
    return "{" if properties else "{}"


def _read(record: "ParsedToolCall", call_id: str) -> ToolCall | ParseFailure:
    """Turn one attempt into a call with its arguments as written, or into a reason."""
    from renderers.base import ToolCallParseStatus

    if record.status is ToolCallParseStatus.UNCLOSED_BLOCK:
        reason = "the call has no end, so it was not run; write it again in full and close it"
        return ParseFailure(raw=record.raw, reason=reason)
    if record.raw.lstrip().startswith("{") or record.status is ToolCallParseStatus.INVALID_JSON:
        try:
            call, end = read_call(record.raw)
        except ValueError as error:
            return ParseFailure(raw=record.raw, reason=str(error))
        if record.raw[end:].strip():
            reason = f"there is text after the call's JSON object; write only {FORM}"
            return ParseFailure(raw=record.raw, reason=reason)
        return ToolCall(id=call_id, name=call.name, arguments=call.arguments)
    # Families that do not write JSON: the library has parsed the arguments.
    if record.status is not ToolCallParseStatus.OK or not record.name:
        reason = f"the call cannot be read ({record.status.value.replace('_', ' ')})"
        return ParseFailure(raw=record.raw, reason=reason)
    written = record.arguments
    text = written if isinstance(written, str) else json.dumps(written, ensure_ascii=False)
    return ToolCall(id=call_id, name=record.name, arguments=text)
