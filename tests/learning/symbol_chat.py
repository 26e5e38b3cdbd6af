"""A chat format whose tokens are whole words, so that a tiny model writes a call in three tokens."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.core.trajectory import ParseFailure

START, END, CALL, UNKNOWN = "<s>", "<e>", "<call>", "<?>"
ROLES = ("system", "user", "assistant", "tool")
TOOLS = ("red", "green", "blue", "black", "look", "open")
VALUES = ("one", "two", "a", "b", "c", "d", "yes", "no", "done")
WORDS = (START, END, CALL, UNKNOWN, *ROLES, *TOOLS, *VALUES)
IDS = {word: number for number, word in enumerate(WORDS)}


@dataclass(frozen=True)
class Read:
    message: Message
    parse_failures: tuple[ParseFailure, ...] = ()


class SymbolChat:
    """A turn is `<call> tool value` or words, then `<e>`; a call's one argument is `value`."""

    stop_token_ids = (IDS[END],)

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[int, ...]:
        words = [word for message in messages for word in _told(message)]
        return _ids([*words, START, "assistant"])

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> tuple[int, ...] | None:
        closed = bool(completion_ids) and completion_ids[-1] == IDS[END]
        return (*(() if closed else self.stop_token_ids), *self.start(messages, tools))

    def parse(
        self,
        completion_ids: Sequence[int],
        tools: Sequence[ToolSpec],
        prompt_ids: Sequence[int] = (),
    ) -> Read:
        # The model's vocabulary is larger than the words; what it never saw it may still sample.
        words = [WORDS[n] if n < len(WORDS) else UNKNOWN for n in completion_ids if n != IDS[END]]
        if CALL not in words:
            return Read(Message(role="assistant", content=" ".join(words)))
        if words[0] != CALL or not 2 <= len(words) <= 3 or words[1] not in TOOLS:
            failure = ParseFailure(raw=" ".join(words), reason="no")
            return Read(Message(role="assistant"), (failure,))
        arguments = json.dumps({"value": words[2]} if len(words) == 3 else {})
        call = ToolCall(id="call_0", name=words[1], arguments=arguments)
        return Read(Message(role="assistant", tool_calls=(call,)))

    def call_grammar(self, tools: Sequence[ToolSpec], *, first_turn_must_call: bool) -> str:
        return ""

    def demonstration(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        words: list[str] = []
        mask: list[bool] = []
        for message in messages:
            told = _told(message)
            words += told
            own = message.role == "assistant"
            mask += [own and place >= 2 for place in range(len(told))]
        return _ids(words), tuple(mask)


def _told(message: Message) -> list[str]:
    words = message.content.split()
    for call in message.tool_calls:
        words += [CALL, call.name, *json.loads(call.arguments).values()]
    return [START, message.role, *words, END]


def _ids(words: Sequence[str]) -> tuple[int, ...]:
    return tuple(IDS.get(word, IDS[UNKNOWN]) for word in words)
