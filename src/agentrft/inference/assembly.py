"""Sampled tokens to pieces of an answer, as they come. Pure: knows a renderer, no engine, no I/O.

Text is given out as soon as nothing that may follow can change it; put together, the pieces say what
`ChatRenderer.parse` says of the whole completion.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.core.trajectory import FinishReason
from agentrft.inference.chat import CallDelta, ChatDelta, ChatFinish, TokenLogprob
from agentrft.inference.renderer import ChatRenderer, ParsedTurn

_READ_AGAIN_TOKENS = 16
"""After the first mark the whole turn is read again this often; plain text never is."""
_HALF = "\ufffd"
"""What bytes that are no character yet decode to."""


@dataclass(frozen=True, slots=True)
class _Marks:
    """Strings that change how a turn is read, and what may become one of them."""

    pattern: re.Pattern[str]
    beginnings: frozenset[str]
    longest: int

    def undecided(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a mark."""
        for size in range(min(self.longest - 1, len(text)), 0, -1):
            if text[-size:] in self.beginnings:
                return size
        return 0


@lru_cache(maxsize=64)
def _marks(strings: tuple[str, ...]) -> _Marks:
    return _Marks(
        pattern=re.compile("|".join(map(re.escape, strings)) or r"(?!)"),
        beginnings=frozenset(text[:size] for text in strings for size in range(1, len(text))),
        longest=max(map(len, strings), default=0),
    )


class _Detokenizer:
    """Text of tokens one by one; a character whose bytes are not all there waits."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._known = ""
        """Text of the tokens in `_ids` that was given out; they tell the decoder what goes before."""
        self._new: list[int] = []

    def push(self, token_id: int) -> str:
        self._new.append(token_id)
        text = self._decode([*self._ids, *self._new])
        if text.endswith(_HALF):
            return ""
        added = text[len(self._known) :]
        self._ids, self._new = self._new, []
        self._known = self._decode(self._ids)
        return added


class TurnAssembler:
    """One answer on its way out.

    `most_calls` bounds the calls that count: after the last of them the answer is `done`, and with 0
    whatever looks like a call is text. `call_id` is put before the number of a call.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        prompt_ids: Sequence[int],
        tools: Sequence[ToolSpec] = (),
        *,
        forced_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        most_calls: int | None = None,
        call_id: str = "call_",
    ) -> None:
        self.done = False
        """Nothing more is wanted; say so with `finish`."""
        self._renderer, self._prompt_ids, self._tools = renderer, prompt_ids, tools
        self._most_calls, self._call_id = most_calls, call_id
        self._detokenizer = _Detokenizer(renderer.decode)
        self._marks, self._stops = _marks(renderer.marks), _marks(tuple(stop))
        self._ids: list[int] = []
        self._text = ""
        self._starts: list[int] = []
        """Where in the text each token begins."""
        self._logprobs: list[tuple[int, TokenLogprob]] = []
        """Those not given out, with where their token begins."""
        self._unread_tokens = 0
        self._sent = ""
        self._sent_calls = 0
        # Some templates open the reasoning in the prompt: then text is not content at first.
        probe = renderer.parse(renderer.encode("x"), tools, prompt_ids)
        self._reasons = probe.message.content != "x"
        self._plain = not self._reasons
        for token_id in forced_ids:
            self._add(token_id)
        self._forced = len(self._text)
        self._plain = self._plain and self._marks.pattern.search(self._text) is None

    def push(self, token_id: int, logprob: TokenLogprob | None = None) -> list[ChatDelta]:
        """Take a sampled token; return what is certain now."""
        if self.done or token_id in self._renderer.stop_token_ids:
            return []
        before = len(self._text)
        if logprob is not None:
            self._logprobs.append((before, logprob))
        self._add(token_id)
        self._unread_tokens += 1
        if len(self._text) == before or self._stopped(before):
            return []
        mark_from = max(0, before - self._marks.longest + 1)
        marked = self._marks.pattern.search(self._text, mark_from) is not None
        self._plain = self._plain and not marked
        if self._plain:
            return self._settle(self._text.strip(), ())
        if marked or self._unread_tokens >= _READ_AGAIN_TOKENS:
            return self._read_again()
        return []

    def finish(self, reason: FinishReason) -> tuple[list[ChatDelta], Message, ChatFinish]:
        """Return the last pieces, the whole message, and why it ended."""
        turn = self._parse()
        calls = self._calls(turn)
        spare = turn.message.tool_calls if self._most_calls == 0 else ()
        unread = [failure.raw for failure in turn.parse_failures]
        unread += [f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in spare]
        content = "\n".join(part for part in (turn.message.content, *unread) if part)
        if not content.startswith(self._sent):
            content = self._sent  # a control token amid the answer; what is out stays out
        deltas = self._calls_since(calls)
        rest = content[len(self._sent) :]
        if rest or self._logprobs:
            deltas.append(ChatDelta(text=rest, logprobs=self._take_logprobs(len(self._text) + 1)))
        message = Message(role="assistant", content=content, tool_calls=calls)
        if reason is not FinishReason.STOP and not self.done:
            return deltas, message, "length"
        return deltas, message, "tool_calls" if calls else "stop"

    def _add(self, token_id: int) -> None:
        self._ids.append(token_id)
        self._starts.append(len(self._text))
        self._text += self._detokenizer.push(token_id)

    def _stopped(self, before: int) -> bool:
        """Cut the answer at the first stop string, if there is one."""
        if not self._stops.longest:
            return False
        first = max(self._forced, before - self._stops.longest + 1)
        found = self._stops.pattern.search(self._text, first)
        if found is None:
            return False
        cut = found.start()
        # The first token that reaches beyond the cut, and those that share a character with it.
        ends = [*self._starts[1:], len(self._text)]
        kept = bisect_left(self._starts, self._starts[bisect_right(ends, cut)])
        rest = self._text[self._starts[kept] : cut]
        self._ids = [*self._ids[:kept], *self._renderer.encode(rest)]
        self._text = self._text[:cut]
        self._logprobs = [(start, one) for start, one in self._logprobs if start < cut]
        self.done = True
        return True

    def _read_again(self) -> list[ChatDelta]:
        self._unread_tokens = 0
        self._reasons = self._reasons or self._text.lstrip().startswith("<think>")
        if self._reasons and "</think>" not in self._text:
            return []
        turn = self._parse()
        if turn.parse_failures:
            # The call may yet become readable, and then its text was not content.
            return []
        return self._settle(turn.message.content, self._calls(turn))

    def _parse(self) -> ParsedTurn:
        return self._renderer.parse(self._ids, self._tools, self._prompt_ids)

    def _calls(self, turn: ParsedTurn) -> tuple[ToolCall, ...]:
        calls = turn.message.tool_calls[: self._most_calls]
        return tuple(replace(call, id=f"{self._call_id}{n}") for n, call in enumerate(calls))

    def _settle(self, content: str, calls: Sequence[ToolCall]) -> list[ChatDelta]:
        """Return what of content and calls nothing can change any more."""
        if self._renderer.bare_calls and (calls or content.startswith("{")):
            return []  # only the end of the turn tells whether this is a call
        undecided = max(self._marks.undecided(content), self._stops.undecided(content))
        certain = content[: len(content) - undecided].rstrip().rstrip(_HALF).rstrip()
        deltas: list[ChatDelta] = []
        if len(certain) > len(self._sent):
            upto = len(self._text) - self._stops.longest
            text = certain[len(self._sent) :]
            deltas.append(ChatDelta(text=text, logprobs=self._take_logprobs(upto)))
            self._sent = certain
        deltas += self._calls_since(calls)
        self.done = self._most_calls is not None and 0 < self._most_calls <= len(calls)
        return deltas

    def _calls_since(self, calls: Sequence[ToolCall]) -> list[ChatDelta]:
        first, self._sent_calls = self._sent_calls, max(self._sent_calls, len(calls))
        return [
            ChatDelta(call=CallDelta(index=n, id=call.id, name=call.name, arguments=call.arguments))
            for n, call in enumerate(calls[first:], first)
        ]

    def _take_logprobs(self, upto: int) -> tuple[TokenLogprob, ...]:
        """Give out logprobs of tokens that begin before a place which no stop string can cut off."""
        taken = tuple(one for start, one in self._logprobs if start < upto)
        self._logprobs = self._logprobs[len(taken) :]
        return taken
