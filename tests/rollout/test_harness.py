"""Each knob of a spec at the boundary: what the model saw, what the tools got, what is recorded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from byte_chat import (
    ByteChat,
    Desk,
    a_policy,
    a_setup,
    a_task,
    calls,
    decode,
    play,
    requests,
    says,
)

from agentrft.core.errors import ConfigError
from agentrft.core.grade import GradedTrajectory
from agentrft.core.protocols import OpenEnvironment
from agentrft.core.spec import (
    AgentSpec,
    Exposure,
    Guards,
    Rendering,
    Section,
    Shown,
    ToolView,
)
from agentrft.core.task import Demonstration, Message, ToolCall
from agentrft.rollout.environment import python_environment, tool_specs
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.harness import Harness
from agentrft.rollout.scripted import ScriptedEnvironment

GET = ("get_order", {"order_id": "W1"})
LONG = "ord_8f3a9c2b1d4e"
RENAMED = ToolView(
    name="lookup", parameters={"order_id": "id"}, argument_notes={"order_id": "NOTE"}
)


def rolled_out(
    spec: AgentSpec,
    *turns: tuple[int, ...],
    environment: OpenEnvironment | None = None,
    asked: str = "hello",
) -> tuple[GradedTrajectory, str, list[str]]:
    """Play the turns and `done`; return the rollout, the prompt, and what followed each turn."""
    setup: RolloutSetup = a_setup(
        [*turns, says("done")],
        environment or python_environment(Desk),
        policy=a_policy(spec),
    )
    graded = play(setup, a_task(asked))
    assert graded.trajectory.failure is None
    saw = [decode(turn.observation_ids) for turn in graded.trajectory.turns]
    assert decode(requests(setup)[0].prompt_ids) == saw[0]
    return graded, saw[0], [text.removesuffix("<|s|>assistant\n") for text in saw[1:]]


def arguments_of(calls: Sequence[ToolCall]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(call.name, json.loads(call.arguments)) for call in calls]


def test_a_default_spec_changes_nothing() -> None:
    graded, prompt, saw = rolled_out(AgentSpec(), calls(GET))
    task = a_task()
    assert prompt == decode(ByteChat().start(task.messages, tool_specs(Desk)))
    assert saw == ['<|s|>tool\n{"order": "W1", "status": "shipped"}<|e|>']
    (result,) = graded.trajectory.tool_results
    assert (result.shown, result.guard, result.repairs) == (None, "", ())
    assert graded.trajectory.prompt == task.messages


def test_the_model_reads_and_writes_its_names_and_all_else_keeps_the_tools() -> None:
    spec = AgentSpec(tools={"get_order": RENAMED})
    graded, prompt, _ = rolled_out(spec, calls(("lookup", {"id": "W1"})))
    assert '"lookup"' in prompt
    assert '"description": "NOTE"' in prompt
    assert "get_order" not in prompt
    assert "order_id" not in prompt
    assert graded.grade.parts["asked"] == 1.0
    assert arguments_of(graded.trajectory.tool_calls) == [GET]
    assert graded.trajectory.tool_results[0].name == "get_order"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (GET, "there is no tool 'get_order'; tools: broken, lookup, refund"),
        (
            ("lookup", {"order_id": "W1"}),
            "lookup has no argument 'order_id'; expected lookup {\"id\": string}",
        ),
        (("lookup", {"id": 3}), "argument 'id': Input should be a valid string"),
        (("lookup", {}), "argument 'id' is missing; expected {id: string}"),
    ],
)
def test_canonical_names_are_unknown_and_errors_speak_the_models(
    call: tuple[str, Mapping[str, Any]], told: str
) -> None:
    graded, _, saw = rolled_out(AgentSpec(tools={"get_order": RENAMED}), calls(call))
    assert graded.grade.parts["asked"] == 0.0
    assert told in saw[0]
    (result,) = graded.trajectory.tool_results
    assert result.is_error
    assert (result.guard == "names") == ("id" not in call[1] and bool(call[1]))


def test_calls_in_a_tasks_own_history_are_shown_in_the_models_names() -> None:
    task = replace(a_task(), messages=(*shows(1).messages, Message(role="user", content="And W2?")))
    spec = AgentSpec(tools={"get_order": RENAMED}, rendering=Rendering(form="key_value"))
    turns = [calls(("lookup", {"id": "W2"})), says("done")]
    setup = a_setup(turns, python_environment(Desk), policy=a_policy(spec))
    trajectory = play(setup, task).trajectory
    prompt = decode(trajectory.turns[0].observation_ids)
    assert '<call>lookup {"id": "W1"}</call>' in prompt
    assert "tool\nstatus: sent<" in prompt
    assert "get_order" not in prompt
    assert trajectory.prompt == task.messages
    ids = [call.id for message in trajectory.messages for call in message.tool_calls]
    assert len(set(ids)) == len(ids) == 2


def test_a_hidden_tool_cannot_be_called() -> None:
    spec = AgentSpec(
        tools={"get_order": ToolView(exposed=False)}, guards=Guards(nearest_names=True)
    )
    graded, prompt, _ = rolled_out(spec, calls(GET))
    assert "get_order" not in prompt
    assert graded.grade.parts["asked"] == 0.0
    assert graded.trajectory.tool_results[0].guard == "names"


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (AgentSpec(guards=Guards(confirm=("pay",))), "pay"),
        (AgentSpec(exposure=Exposure(always=("look",))), "look"),
        (AgentSpec(tools={"get": ToolView()}), "get"),
    ],
)
def test_a_spec_that_names_an_unknown_tool_is_refused(spec: AgentSpec, named: str) -> None:
    with pytest.raises(ConfigError, match=f"a tool '{named}'; the project's tools: get_order"):
        rolled_out(spec)


def test_rollouts_of_the_same_tools_share_their_names_and_others_have_their_own() -> None:
    offered = tool_specs(Desk)
    harness = Harness(AgentSpec(tools={"get_order": RENAMED}))
    whole = harness.session(a_task(), offered)
    assert harness.session(a_task(), offered).tools is whole.tools
    # The default is 1 here and true there, which compare as equal.
    one, true = (
        replace(offered[0], parameters={**offered[0].parameters, "default": value})
        for value in (1, True)
    )
    told = [harness.session(a_task(), (tool, *offered[1:])).tools[0] for tool in (one, true)]
    assert [tool.parameters["default"] is True for tool in told] == [False, True]


def test_retrieved_tools_are_the_nearest_to_the_request_and_those_always_kept() -> None:
    spec = AgentSpec(exposure=Exposure(mode="retrieved", most=2, always=("broken",)))
    _, prompt, saw = rolled_out(spec, calls(GET), asked="please look up my order")
    assert "get_order" in prompt
    assert "broken" in prompt
    assert "refund" not in prompt
    assert "shipped" in saw[0]
    _, prompt, saw = rolled_out(spec, calls(GET), asked="I want you to pay back")
    assert "refund" in prompt
    assert "there is no tool 'get_order'" in saw[0]


def test_an_output_is_shown_in_its_form_and_kept_as_the_tool_said_it() -> None:
    rendering = Rendering(form="key_value", fields=("status",))
    spec = AgentSpec(tools={"get_order": ToolView(rendering=rendering)})
    graded, _, saw = rolled_out(spec, calls(GET))
    assert saw == ["<|s|>tool\nstatus: shipped<|e|>"]
    (result,) = graded.trajectory.tool_results
    assert result.content == '{"order": "W1", "status": "shipped"}'
    assert result.shown == "status: shipped"
    assert graded.trajectory.messages[2].content == result.content


def test_a_cut_output_says_so_but_an_error_is_never_cut() -> None:
    spec = AgentSpec(rendering=Rendering(max_characters=9))
    turns = (calls(GET), calls(("refund", {"cents": 500})))
    _, _, saw = rolled_out(spec, *turns)
    assert saw == [
        '<|s|>tool\n{"order":\n[27 of 36 characters left out]<|e|>',
        "<|s|>tool\nError: at most 100 cents<|e|>",
    ]


def test_short_identifiers_come_back_whole_in_calls_and_answers() -> None:
    environment = ScriptedEnvironment({"find": [f'{{"order": "{LONG}"}}'], "get": ["fine"]})
    spec = AgentSpec(rendering=Rendering(shorten_ids=True))
    graded, _, saw = rolled_out(
        spec,
        calls(("find", {})),
        calls(("get", {"order": "#1"})),
        environment=environment,
    )
    assert saw[0] == '<|s|>tool\n{"order": "#1"}<|e|>'
    assert arguments_of(environment.calls)[1] == ("get", {"order": LONG})
    assert arguments_of(graded.trajectory.tool_calls)[1] == ("get", {"order": LONG})
    said = Message(role="assistant", content="Order #1 is fine.")
    harness = Harness(spec)
    session = harness.session(a_task(), environment.tool_specs())
    found = Message(role="tool", name="find", content=f"order={LONG}", tool_call_id="c")
    assert session.to_model(found).content == "order=#1"
    assert session.read(said).content == f"Order {LONG} is fine."
    assert session.to_model(session.read(said)) == said


def test_an_error_may_be_followed_by_the_form_that_is_expected() -> None:
    spec = AgentSpec(
        tools={"refund": ToolView(name="pay", parameters={"cents": "amount"})},
        rendering=Rendering(error_hints=True),
    )
    graded, _, saw = rolled_out(
        spec, calls(("pay", {"amount": 500})), calls(("pay", {"amount": 1}))
    )
    assert saw[0] == ('<|s|>tool\nError: at most 100 cents\nExpected: pay {"amount": integer}<|e|>')
    assert saw[1] == "<|s|>tool\npaid<|e|>"
    assert graded.trajectory.tool_results[0].content == "Error: at most 100 cents"


def shows(
    number: int, *, tool: str = "get_order", asked: str = "", family: str = ""
) -> Demonstration:
    call = ToolCall(id="call_1", name=tool, arguments=f'{{"order_id": "W{number}"}}')
    return Demonstration(
        id=f"shown-{number}",
        family=family,
        messages=(
            Message(role="system", content="SENTINEL"),
            Message(role="user", content=asked or f"where is W{number}?"),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content='{"status": "sent"}', tool_call_id="call_1", name=tool),
            Message(role="assistant", content=f"W{number} is sent."),
        ),
    )


def test_demonstrations_stand_between_system_text_and_task_in_the_models_names() -> None:
    spec = AgentSpec(
        sections=(Section(name="role", text="Be kind."),),
        tools={"get_order": RENAMED},
        rendering=Rendering(form="key_value"),
        shown=Shown(count=1, pool=(shows(1), shows(2))),
    )
    graded, prompt, _ = rolled_out(spec, calls(("lookup", {"id": "W9"})))
    assert prompt.endswith(
        "<|s|>system\nBe kind.<|e|><|s|>user\nwhere is W1?<|e|>"
        '<|s|>assistant\n<call>lookup {"id": "W1"}</call><|e|>'
        "<|s|>tool\nstatus: sent<|e|><|s|>assistant\nW1 is sent.<|e|>"
        "<|s|>user\nhello<|e|><|s|>assistant\n"
    )
    assert "SENTINEL" not in prompt
    assert [message.role for message in graded.trajectory.prompt] == ["system", "user"]


def test_call_ids_of_demonstrations_are_unlike_each_other() -> None:
    spec = AgentSpec(shown=Shown(count=2, pool=(shows(1), shows(2))))
    session = Harness(spec).session(a_task(), tool_specs(Desk))
    made = [call.id for message in session.prompt for call in message.tool_calls]
    answered = [m.tool_call_id for m in session.prompt if m.role == "tool"]
    assert made == answered
    assert len(set(made)) == 2


POOL = (
    shows(1, family="where"),
    shows(2, family="where"),
    shows(3, asked="please refund my money", family="money"),
    shows(4, tool="hidden_tool"),
    shows(5, asked="hello there"),
)


@pytest.mark.parametrize(
    ("shown", "task_id", "chosen"),
    [
        (Shown(count=0, pool=POOL), "t", []),
        (Shown(count=2, pool=POOL), "t", [1, 2]),
        (Shown(count=2, pool=POOL), "shown-1", [2, 3]),
        (Shown(count=8, pool=POOL), "t", [1, 2, 3, 5]),
        (Shown(count=3, pool=POOL, selection="covering"), "t", [1, 3, 5]),
        (Shown(count=2, pool=POOL, selection="nearest"), "t", [1, 3]),
        (Shown(count=1, pool=POOL, selection="nearest"), "shown-3", [1]),
    ],
)
def test_each_selection_takes_its_own_and_never_the_task_itself(
    shown: Shown, task_id: str, chosen: list[int]
) -> None:
    asked = Message(role="user", content="where is my money? refund W2 please")
    row = Demonstration(id=task_id, messages=(asked, Message(role="assistant", content="x")))
    seen = Harness(AgentSpec(shown=shown)).demonstration(row, tool_specs(Desk))
    users = [message.content for message in seen.messages if message.role == "user"][:-1]
    texts = {number: POOL[number - 1].messages[1].content for number in (1, 2, 3, 5)}
    assert users == [texts[number] for number in chosen]
    assert seen.shown == 2 * len(chosen)


def test_a_count_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="shows 9 demonstrations; 0 to 8"):
        Harness(AgentSpec(shown=Shown(count=9)))


def test_a_recorded_rollout_is_rendered_again_as_the_model_saw_it() -> None:
    spec = AgentSpec(
        tools={"get_order": RENAMED, "refund": ToolView(name="pay")},
        rendering=Rendering(form="key_value"),
        shown=Shown(count=1, pool=(shows(1),)),
    )
    turns = (calls(("lookup", {"id": "W1"})), calls(("pay", {"cents": 500})))
    setup = a_setup([*turns, says("done")], python_environment(Desk), policy=a_policy(spec))
    trajectory = play(setup).trajectory
    task = a_task()
    seen = setup.harness.conversation(
        task, tool_specs(Desk), (*task.messages, *trajectory.messages[1:])
    )
    ids: tuple[int, ...] = ByteChat().start(
        seen.messages[: -len(trajectory.messages) + 1], seen.tools
    )
    assert ids == trajectory.turns[0].observation_ids
    told = [message.content for message in seen.messages if message.role == "tool"][1:]
    assert told == ["order: W1\nstatus: shipped", "Error: at most 100 cents"]
    names = [call.name for message in seen.messages for call in message.tool_calls]
    assert names == ["lookup", "lookup", "pay"]
