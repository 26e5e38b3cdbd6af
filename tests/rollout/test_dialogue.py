from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from byte_chat import ByteChat, Desk, a_policy, a_setup, calls, play, requests, says

from agentrft.core.config import CallForm, Decoding
from agentrft.core.errors import UserError
from agentrft.core.protocols import SampleRequest
from agentrft.core.spec import AgentSpec
from agentrft.core.task import ToolSpec
from agentrft.core.trajectory import StopReason
from agentrft.inference.scripted import ScriptedSampler
from agentrft.rollout.environment import python_environment

SCRIPT = (calls(("get_order", {"order_id": "W1"})), says("It was shipped."))


@dataclass
class FormedChat(ByteChat):
    """Names its grammars, and remembers which were asked for."""

    built: list[tuple[tuple[str, ...], bool]] = field(
        default_factory=list[tuple[tuple[str, ...], bool]]
    )

    def call_grammar(self, tools: Sequence[ToolSpec], *, first_turn_must_call: bool) -> str:
        self.built.append((tuple(tool.name for tool in tools), first_turn_must_call))
        return "a call" if first_turn_must_call else "text or calls"


class RefusingChat(ByteChat):
    def call_grammar(self, tools: Sequence[ToolSpec], *, first_turn_must_call: bool) -> str:
        raise UserError("this format has no calls that can be forced")


def under(form: CallForm) -> AgentSpec:
    return AgentSpec(decoding=Decoding(grammar=form))


@pytest.mark.parametrize(
    ("form", "grammars"),
    [
        ("off", ["", "", ""]),
        ("calls", ["text or calls"] * 3),
        ("call_first", ["a call", "text or calls", "text or calls"]),
    ],
)
def test_the_spec_says_which_turns_are_forced_into_what(
    form: CallForm, grammars: Sequence[str]
) -> None:
    twice = (SCRIPT[0], *SCRIPT)
    chat = FormedChat()
    setup = a_setup(twice, python_environment(Desk), policy=a_policy(under(form)), renderer=chat)
    assert play(setup).trajectory.stop_reason is StopReason.FINISHED
    assert [request.grammar for request in requests(setup)] == grammars
    tools = ("get_order", "refund", "broken")
    # Once for each form and rollout, however many turns there are.
    assert chat.built == [(tools, name == "a call") for name in dict.fromkeys(grammars) if name]


def test_a_format_that_cannot_be_forced_stops_the_run_before_anything_is_sampled() -> None:
    sampler = ScriptedSampler(SCRIPT)
    setup = a_setup(
        sampler,
        python_environment(Desk),
        policy=a_policy(under("calls")),
        renderer=RefusingChat(),
    )
    with pytest.raises(UserError, match="no calls that can be forced"):
        play(setup)
    assert sampler.requests == []


def test_a_grammar_that_only_the_engine_refuses_stops_the_run_as_well() -> None:
    async def refuses(request: SampleRequest) -> None:
        raise UserError(f"the answer cannot be forced: {request.grammar}")

    sampler = ScriptedSampler(SCRIPT, before=refuses)
    policy = a_policy(under("calls"))
    setup = a_setup(sampler, python_environment(Desk), policy=policy, renderer=FormedChat())
    with pytest.raises(UserError, match="cannot be forced: text or calls"):
        play(setup)
