"""An agent behind an OpenAI-compatible endpoint: messages out, turns back, no tokens.

Its rollouts can be measured and searched over, never trained on.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from agentrft.core.config import AgentEndpoint
from agentrft.core.errors import AgentRFTError, ConfigError, PausedError, UserError
from agentrft.core.task import Message, ToolSpec
from agentrft.core.trajectory import FinishReason
from agentrft.core.usage import TokenUsage
from agentrft.egress.client import EndpointReply, Wait, idempotency_key
from agentrft.egress.errors import EndpointError, LeftAloneError, TryAgain
from agentrft.egress.limits import Clock
from agentrft.egress.openai_api import (
    UNKNOWN_FORM,
    ChatReply,
    TurnedDown,
    api_endpoint,
    at,
    chat_reply,
    parsed,
    post,
    shown,
)
from agentrft.egress.policy import EgressPolicy
from agentrft.rollout.calling import Calling, NativeCalls, TextCalls, Wire, written_calls
from agentrft.rollout.dialogue import DialogueError, SpokenTurn, TurnRequest

DOWN_AFTER = 8
"""Calls without an answer one after the other, of all rollouts, after which the run pauses."""
_LEAST_WAIT_S = 1.0
"""Between looks at an endpoint that is left alone."""
_CHARACTERS_PER_TOKEN = 4
"""Where a server does not count."""
_WRONG_SETUP = (401, 403, 404)
"""Before anything was answered; later it may be a moderated text, or a key that ran out."""

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Budget:
    """What one run has taken of an endpoint, and may take."""

    config: AgentEndpoint
    spent: TokenUsage

    @property
    def money(self) -> float:
        """What the tokens cost, in the currency of the prices."""
        prompt = self.spent.prompt_tokens * self.config.input_price
        return (prompt + self.spent.completion_tokens * self.config.output_price) / 1e6

    def check(self) -> None:
        """Raise PausedError once a bound is reached; calls under way may go beyond it."""
        config, spent = self.config, self.spent
        tokens = spent.prompt_tokens + spent.completion_tokens
        reached = [
            f"{used:,.{digits}f} of {bound:,.{digits}f} (endpoint.{key})"
            for key, used, bound, digits in (
                ("most_tokens", tokens, config.most_tokens, 0),
                ("most_money", self.money, config.most_money, 2),
            )
            if 0 < bound <= used
        ]
        if reached:
            raise PausedError(
                f"the run's budget at the endpoint is spent: {', '.join(reached)}; "
                f"{spent.prompt_tokens:,} prompt and {spent.completion_tokens:,} sampled tokens so "
                "far. Raise the bound in agent.toml and continue with --resume"
            )


class EndpointSpeaker:
    """Holds conversations with the model of one endpoint.

    What it learns about the endpoint counts for all of them: whether it takes tools, which name it
    has for the bound on tokens. `told` hears of it once, `kept` of all that is spent, after every
    answer. Raises ConfigError when made.
    """

    def __init__(
        self,
        config: AgentEndpoint,
        *,
        spent: TokenUsage | None = None,
        kept: Callable[[TokenUsage], None] = lambda spent: None,
        told: Callable[[str], None] = _log.warning,
        wait: Wait = asyncio.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        if config.most_money and not (config.input_price or config.output_price):
            raise ConfigError(
                "endpoint.most_money bounds nothing without endpoint.input_price and output_price"
            )
        self._endpoint = api_endpoint(
            "endpoint",
            "chat/completions",
            config,
            EgressPolicy(),
            wait=wait,
            clock=clock,
        )
        self._config = config
        self._told, self._kept, self._wait = told, kept, wait
        self.budget = Budget(config=config, spent=spent or TokenUsage())
        self._text = config.calls == "text"
        self._took_tools = self._called_natively = config.calls != "auto"
        self._bound_name = "max_tokens"
        """Every server knows this name or says so; some would silently ignore the newer one."""
        self._answered = self._estimated = False
        self._lost_in_a_row = 0

    def begin(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], trace_id: str
    ) -> "EndpointDialogue":
        """Open the conversation of one rollout; nothing is sent yet."""
        return EndpointDialogue(self, tuple(messages), tuple(tools), trace_id)

    async def first_turn(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        request: TurnRequest,
        trace_id: str,
    ) -> tuple[Calling, list[Wire], ChatReply]:
        """Ask for a first turn, and find out by it how this endpoint calls tools.

        Return the way of calling, what was sent, and the reply. Raises what `turn` does.
        """
        calling = TextCalls(tools) if self._text and tools else NativeCalls(tools)
        sent = calling.opening(messages)
        answer = await self._asked(calling, sent, request, trace_id)
        if calling.name == "text" or not tools:
            return calling, sent, self._answer(answer)
        text = TextCalls(tools)
        if (
            isinstance(answer, TurnedDown)
            and answer.status in UNKNOWN_FORM
            and not self._took_tools
        ):
            plainly = text.opening(messages)
            second = await self._asked(text, plainly, request, trace_id)
            if isinstance(second, ChatReply):
                self._write_text(f"it turns `tools` down ({answer.reason})")
                return text, plainly, self._answer(second)
        reply = self._answer(answer)
        self._took_tools = True
        if reply.message.get("tool_calls"):
            self._called_natively = True
        elif written_calls(reply.text, tools)[1] and not self._called_natively:
            self._write_text("its model writes calls as text")
            return text, text.opening(messages), reply
        return calling, sent, reply

    async def turn(
        self, calling: Calling, sent: Sequence[Wire], request: TurnRequest, key: str
    ) -> ChatReply:
        """Ask for a turn. Raises DialogueError, ConfigError, or PausedError: a budget, an outage."""
        return self._answer(await self._asked(calling, sent, request, key))

    def lost(self, reason: str) -> AgentRFTError:
        """Return the error of a call without an answer: a fault of its rollout, or an outage."""
        self._lost_in_a_row += 1
        if self._lost_in_a_row < DOWN_AFTER:
            return DialogueError("endpoint", reason)
        return PausedError(
            f"{self._lost_in_a_row} calls one after the other had no answer; the last: {reason}. "
            "Continue with --resume once the endpoint answers"
        )

    @property
    def where(self) -> str:
        """The endpoint, as errors name it."""
        return self._endpoint.where

    async def _asked(
        self, calling: Calling, sent: Sequence[Wire], request: TurnRequest, key: str
    ) -> ChatReply | TurnedDown:
        bound_name = self._bound_name
        fields = {
            "model": self._config.model,
            "messages": sent,
            **calling.fields,
            bound_name: request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed % 2**31,  # some servers hold it in 32 bits
        }
        part = f"turn-{len(sent)}-{calling.name}-{bound_name}"
        answer = await self._posted(fields, idempotency_key(key, part))
        newer = "max_completion_tokens"
        if isinstance(answer, TurnedDown) and newer in answer.reason and bound_name != newer:
            self._bound_name = newer
            return await self._asked(calling, sent, request, key)
        return answer

    async def _posted(self, fields: Mapping[str, object], key: str) -> ChatReply | TurnedDown:
        waited_s = 0.0
        while True:
            self.budget.check()
            try:
                answer = await post(self._endpoint, fields, self._read, key=key)
            except LeftAloneError as error:
                # One pause is waited out, and the probes at its end; a second one is an outage.
                if waited_s and error.left_s:
                    raise self.lost(str(error)) from error
                waited_s += error.left_s
                await self._wait(max(error.left_s, _LEAST_WAIT_S))
            except EndpointError as error:
                raise self.lost(str(error)) from error
            else:
                break
        if isinstance(answer, ChatReply):
            answer = replace(answer, usage=self._counted(answer, fields))
            self.budget.spent += answer.usage
            self._kept(self.budget.spent)
        return answer

    def _answer(self, answer: ChatReply | TurnedDown) -> ChatReply:
        if isinstance(answer, ChatReply):
            self._answered, self._lost_in_a_row = True, 0
            return answer
        reason = f"{self.where} answered {answer.reason}"
        if answer.status in _WRONG_SETUP and not self._answered:
            raise ConfigError(
                f"{reason}; check base_url, model and api_key_file of [endpoint] in agent.toml"
            )
        raise self.lost(reason)

    def _read(self, reply: EndpointReply) -> ChatReply | TurnedDown:
        if not 400 <= reply.status < 500:
            return chat_reply(parsed(self._endpoint, reply))
        error: object = None
        with suppress(TryAgain):
            error = at(reply.parsed(), "error")
        if at(error, "code") == "content_filter":
            # Some services answer so where others say it in the choice.
            refusal = str(at(error, "message") or "its content filter stopped it")
            return ChatReply(
                message={}, text="", refusal=refusal, finish_reason="stop", usage=TokenUsage()
            )
        return TurnedDown(reply.status, shown(reply))

    def _counted(self, reply: ChatReply, fields: Mapping[str, object]) -> TokenUsage:
        """Return the server's count, with an estimate for what it does not count."""
        usage = reply.usage
        said = reply.text, reply.message.get("tool_calls")
        estimate = TokenUsage(
            prompt_tokens=usage.prompt_tokens or _tokens([fields["messages"], fields.get("tools")]),
            completion_tokens=usage.completion_tokens or (_tokens(said) if any(said) else 0),
            cached_tokens=usage.cached_tokens,
        )
        if estimate != usage and not self._estimated:
            self._estimated = True
            self._told(
                f"{self.where} does not count tokens; they are estimated, "
                f"{_CHARACTERS_PER_TOKEN} characters each"
            )
        return estimate

    def _write_text(self, reason: str) -> None:
        if not self._text:
            self._told(f"{self.where}: calls are written as text from now on, for {reason}")
        self._text = True


class EndpointDialogue:
    """One conversation. The server sees the whole of it every time."""

    def __init__(
        self,
        speaker: EndpointSpeaker,
        messages: tuple[Message, ...],
        tools: tuple[ToolSpec, ...],
        trace_id: str,
    ) -> None:
        self._speaker = speaker
        self._messages, self._tools = messages, tools
        self._trace_id = trace_id
        self._calling: Calling | None = None
        """Settled by the first turn."""
        self._sent: list[Wire] = []
        self._usage = TokenUsage()
        """Of the last call."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the conversation when the model last spoke; 0 before it did."""
        return self._usage.prompt_tokens + self._usage.completion_tokens

    async def speak(self, request: TurnRequest) -> SpokenTurn:
        """Ask for a turn. Raises DialogueError if there is no answer in the time that is left.

        UserError and PausedError are for the whole run: a wrong setup, a budget, an outage.
        """
        if request.form != "off":
            raise UserError(
                f"decoding.grammar = {request.form!r} needs an engine of ours, and the agent is behind "
                "an endpoint; set it to 'off', or set `model` to an open-weights base and remove "
                "[endpoint]"
            )
        deadline = asyncio.timeout(max(request.left_s, 0.0))
        try:
            async with deadline:
                calling, reply = await self._reply(request)
        except TimeoutError:
            if not deadline.expired():
                raise
            reason = f"gave no answer in the {request.left_s:.0f} s that the rollout had left"
            raise self._speaker.lost(f"{self._speaker.where} {reason}") from None
        message, failures = calling.read(reply)
        self._usage = reply.usage
        cut = reply.finish_reason == "length"
        return SpokenTurn(
            message=message,
            parse_failures=failures,
            finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
            usage=reply.usage,
        )

    async def _reply(self, request: TurnRequest) -> tuple[Calling, ChatReply]:
        speaker = self._speaker
        if self._calling is None:
            self._calling, self._sent, reply = await speaker.first_turn(
                self._messages, self._tools, request, self._trace_id
            )
            return self._calling, reply
        return self._calling, await speaker.turn(self._calling, self._sent, request, self._trace_id)

    def hear(self, said: Message, answers: Sequence[Message]) -> None:
        """Go on after a turn."""
        if self._calling is None:
            raise DialogueError("endpoint", "the model is answered before it has spoken")
        self._sent += self._calling.following(said, answers)


def _tokens(value: object) -> int:
    return math.ceil(len(json.dumps(value, ensure_ascii=False)) / _CHARACTERS_PER_TOKEN)
