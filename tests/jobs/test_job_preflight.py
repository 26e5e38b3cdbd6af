import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import YesGrader, a_job, some_tasks, yes_or_no
from byte_chat import ByteChat, a_policy, calls, decode
from tool_server import Reply, Request, ToolServer, output

from agentrft.core.config import HttpTool
from agentrft.core.errors import GraderError, UserError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment, Grader, SampleRequest
from agentrft.core.run import Event, RolloutRecord
from agentrft.core.task import Demonstration, Message, Preference, Task, ToolSpec
from agentrft.core.trajectory import Trajectory
from agentrft.graders.fixed import FixedGrader
from agentrft.graders.reading import keys_read
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.job_preflight import (
    Preflight,
    check_preference,
    check_reinforcement,
    check_supervised,
)
from agentrft.jobs.tool_probe import BURST, least_value
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.http_tools import http_environment
from agentrft.rollout.scripted import ScriptedEnvironment
from agentrft.training.credit import imitation, preference_pair

GRADER = {"type": "string_check", "name": "yes", "input": "{{ item.answer }}"}
SCHEMA = {
    "type": "object",
    "properties": {"order_id": {"type": "string"}, "cents": {"type": "integer", "minimum": 5}},
    "required": ["order_id", "cents"],
}


@pytest.fixture
def server() -> Iterator[ToolServer]:
    running = ToolServer()
    yield running
    running.close()


async def no_wait(seconds: float) -> None:
    """Retry at once."""


def with_tools(url: str, grader: Grader | None = None) -> RolloutSetup:
    """A model that calls the tool once and then says yes or no."""

    def script(request: SampleRequest) -> tuple[int, ...]:
        if "tool\n" not in decode(request.prompt_ids):
            return calls(("shop", {"order_id": "W1", "cents": 5}))
        return yes_or_no(request)

    tool = HttpTool(name="shop", server_url=url, headers={"Authorization": "Bearer secret-token"})
    return RolloutSetup(
        policy=a_policy(),
        speaker=TokenSpeaker(ScriptedSampler(script), ByteChat()),
        open_environment=http_environment([tool], wait=no_wait),
        grader=grader or YesGrader(),
    )


def without_tools(grader: Grader | None = None) -> RolloutSetup:
    return RolloutSetup(
        policy=a_policy(),
        speaker=TokenSpeaker(ScriptedSampler(yes_or_no), ByteChat()),
        open_environment=ScriptedEnvironment({}),
        grader=grader or YesGrader(),
    )


def shop_tasks(count: int) -> list[Task]:
    spec = ToolSpec(name="shop", description="Ask the shop.", parameters=SCHEMA)
    return [
        Task(
            id=f"row-{n}",
            messages=(Message(role="user", content=f"order {n}?"),),
            tools=(spec,),
            row={"answer": f"W{n}"},
        )
        for n in range(count)
    ]


def check(
    job: Job,
    setup: RolloutSetup,
    train: list[Task],
    *,
    tools: tuple[str, ...] = (),
    grader: Mapping[str, Any] = GRADER,
    warn_only: bool = False,
) -> Preflight:
    return asyncio.run(
        check_reinforcement(
            job,
            setup,
            train=train,
            validation=[],
            tools=tools,
            grader=grader,
            temperature=1.0,
            concurrency=16,
            warn_only=warn_only,
        )
    )


def test_a_healthy_job_passes_and_its_numbers_are_told(tmp_path: Path, server: ToolServer) -> None:
    job = a_job(tmp_path)
    checked = check(job, with_tools(f"{server.url}/shop"), shop_tasks(20), tools=("shop",))
    assert checked.error is None
    assert checked.warnings == ()
    numbers = json.loads(json.dumps(checked.numbers, allow_nan=False))
    (tool,) = numbers["tools"]
    assert (tool["name"], tool["calls"], tool["failed"]) == ("shop", 1 + BURST, 0)
    assert tool["p50_s"] <= tool["p95_s"]
    assert numbers["rollouts"]["rollouts"] == 64
    assert 0 < numbers["rollouts"]["tasks_with_spread"] <= 16
    assert numbers["rollouts"]["mean"] < numbers["rollouts"]["best_of_k"]
    assert (numbers["grader"]["regraded"], numbers["grader"]["changed"]) == (8, 0)
    records = job.read_all(RolloutRecord)
    assert {(r.stage, r.split, r.step) for r in records} == {("preflight", "train", 0)}
    messages = [event.message for event in job.read_all(Event)]
    assert "preflight: 32 of 64 rollouts" in messages
    assert any("tool 'shop' answers in" in message for message in messages)


def test_trial_calls_carry_the_least_the_schema_asks_for_and_a_trace_of_their_own(
    tmp_path: Path, server: ToolServer
) -> None:
    check(a_job(tmp_path), with_tools(f"{server.url}/shop"), shop_tasks(3), tools=("shop",))
    trials = server.to("/shop")[: 1 + BURST]
    assert {request.body["arguments"] for request in trials} == {
        '{"order_id": "example", "cents": 5}'
    }
    assert len({request.body["trace_id"] for request in trials}) == 1 + BURST
    assert trials[0].body["item"] == {"answer": "W0"}


def test_a_dead_tool_stops_the_job_before_any_rollout(tmp_path: Path, server: ToolServer) -> None:
    server.replies["/shop"] = [Reply("down", 503)]
    job, setup = a_job(tmp_path), with_tools(f"{server.url}/shop")
    checked = check(job, setup, shop_tasks(12), tools=("shop",))
    assert checked.error is not None
    assert checked.error.code == "tool_unreachable"
    assert "tool 'shop'" in checked.error.message
    assert "503" in checked.error.message
    assert "secret-token" not in json.dumps(checked.numbers)
    assert job.read_all(RolloutRecord) == []
    assert len(server.to("/shop")) == 4  # one call with its three retries, no burst


def test_a_wrong_url_is_a_dead_tool_though_somebody_answers(
    tmp_path: Path, server: ToolServer
) -> None:
    server.replies["/shop"] = [Reply('{"detail": "Not Found"}', 404)]
    checked = check(
        a_job(tmp_path), with_tools(f"{server.url}/shop"), shop_tasks(12), tools=("shop",)
    )
    assert checked.error is not None
    assert checked.error.code == "tool_unreachable"
    assert "HTTP 404" in checked.error.message


def test_a_refusal_meant_for_the_model_is_an_answer(tmp_path: Path, server: ToolServer) -> None:
    def refuse(request: Request) -> Reply:
        return Reply(output(request, "no such order").body, 404)

    server.replies["/shop"] = refuse
    checked = check(
        a_job(tmp_path), with_tools(f"{server.url}/shop"), shop_tasks(12), tools=("shop",)
    )
    assert checked.error is None
    assert checked.numbers["tools"][0]["refused"] == 0


def test_a_tool_that_breaks_under_load_is_a_warning(tmp_path: Path, server: ToolServer) -> None:
    traces: list[str] = []

    def every_tenth_rollout(request: Request) -> Reply:
        trace_id = request.body["trace_id"]
        if trace_id not in traces:
            traces.append(trace_id)
        # A retry carries the same trace, so it fails again.
        return Reply("busy", 503) if traces.index(trace_id) % 10 == 1 else output(request, "ok")

    server.replies["/shop"] = every_tenth_rollout
    setup = with_tools(f"{server.url}/shop")
    checked = check(a_job(tmp_path), setup, shop_tasks(12), tools=("shop",))
    assert checked.error is None
    assert any("failed 5 of 51 trial calls" in warning for warning in checked.warnings)


def test_tools_that_nobody_serves_are_not_called(tmp_path: Path) -> None:
    environment = ScriptedEnvironment({"shop": ["ok"]})
    setup = RolloutSetup(
        policy=a_policy(),
        speaker=TokenSpeaker(ScriptedSampler(yes_or_no), ByteChat()),
        open_environment=environment,
        grader=YesGrader(),
    )
    checked = check(a_job(tmp_path), setup, some_tasks(12))
    assert checked.numbers["tools"] == ()
    assert environment.calls == []


def test_a_row_with_an_unknown_tool_is_refused(tmp_path: Path, server: ToolServer) -> None:
    other = ToolSpec(name="bank", description="", parameters=SCHEMA)
    stray = Task(id="stray", messages=(Message(role="user", content="hi"),), tools=(other,))
    with pytest.raises(UserError, match="task 'stray' lists tool 'bank'"):
        check(a_job(tmp_path), with_tools(server.url), [*shop_tasks(2), stray], tools=("shop",))


def test_a_constant_grader_stops_the_job(tmp_path: Path) -> None:
    setup = without_tools(FixedGrader(lambda task, trajectory: 0.0))
    checked = check(a_job(tmp_path), setup, some_tasks(12))
    assert checked.error is not None
    assert checked.error.code == "grader_constant"
    assert checked.error.param == "method.reinforcement.grader"


def test_tasks_that_always_score_the_same_carry_no_signal(tmp_path: Path) -> None:
    grader = FixedGrader(lambda task, trajectory: float(task.id[-1] in "02468"))
    checked = check(a_job(tmp_path), without_tools(grader), some_tasks(12))
    assert checked.error is not None
    assert checked.error.code == "no_learning_signal"
    warned = check(a_job(tmp_path / "w"), without_tools(grader), some_tasks(12), warn_only=True)
    assert warned.error is None
    assert any("nothing to reinforce" in warning for warning in warned.warnings)


class Moody:
    """Crashes on a no the first time, and adds a little each time it is asked again."""

    name = "moody"

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        if trajectory.output_text == "no":
            raise GraderError("grader 'moody': no is not a number")
        before = self.asked.get(trajectory.id, 0)
        self.asked[trajectory.id] = before + 1
        return Grade(score=before / 10, grader=self.name)


def test_a_grader_that_crashes_on_wrong_answers_stops_the_job(tmp_path: Path) -> None:
    checked = check(a_job(tmp_path), without_tools(Moody()), some_tasks(12))
    assert checked.error is not None
    assert checked.error.code == "grader_failing"
    assert "no is not a number" in checked.error.message
    grader = checked.numbers["grader"]
    assert grader["changed"] == grader["regraded"] > 0
    assert grader["largest_change"] == pytest.approx(0.2)


def test_base_rollouts_survive_a_worker_that_dies_after_them(tmp_path: Path) -> None:
    first = check(a_job(tmp_path), without_tools(), some_tasks(12))
    setup = without_tools()
    second = check(a_job(tmp_path), setup, some_tasks(12))
    assert isinstance(setup.speaker, TokenSpeaker)
    assert isinstance(setup.speaker.sampler, ScriptedSampler)
    assert setup.speaker.sampler.requests == []
    assert second.numbers["rollouts"] == first.numbers["rollouts"]


def test_base_rollouts_go_on_where_a_pause_cut_them_short(tmp_path: Path) -> None:
    job, asked = a_job(tmp_path), itertools.count(1)

    async def pause(request: SampleRequest) -> None:
        if next(asked) == 20:
            job.stop.set()

    setup = without_tools()
    interrupted = replace(
        setup, speaker=TokenSpeaker(ScriptedSampler(yes_or_no, before=pause), ByteChat())
    )
    with pytest.raises(Stopped):
        check(job, interrupted, some_tasks(12))
    kept = len(job.read_all(RolloutRecord))
    assert 0 < kept < 48
    again = a_job(tmp_path)
    resumed = check(again, setup, some_tasks(12))
    assert isinstance(setup.speaker, TokenSpeaker)
    assert isinstance(setup.speaker.sampler, ScriptedSampler)
    assert len(setup.speaker.sampler.requests) == 48 - kept
    whole = check(a_job(tmp_path / "whole"), without_tools(), some_tasks(12))
    for name in ("mean", "best_of_k", "tasks_with_spread"):
        assert resumed.numbers["rollouts"][name] == whole.numbers["rollouts"][name]


def test_a_base_rollout_that_is_lost_is_counted_and_not_tried_again(tmp_path: Path) -> None:
    sound = check(a_job(tmp_path / "sound"), without_tools(), some_tasks(12))
    said_no = 48 - round(48 * sound.numbers["rollouts"]["mean"])
    checked = check(a_job(tmp_path), without_tools(Moody()), some_tasks(12))
    assert checked.numbers["rollouts"]["rollouts"] == 48
    assert checked.numbers["grader"]["crashed"] == said_no > 0


def test_a_pause_ends_the_checks_at_once(tmp_path: Path) -> None:
    job = a_job(tmp_path)

    async def stop(request: SampleRequest) -> None:
        job.stop.set()
        await asyncio.Event().wait()

    setup = without_tools()
    setup = RolloutSetup(
        policy=setup.policy,
        speaker=TokenSpeaker(ScriptedSampler(yes_or_no, before=stop), ByteChat()),
        open_environment=setup.open_environment,
        grader=setup.grader,
    )
    with pytest.raises(Stopped):
        check(job, setup, some_tasks(12))
    assert job.read_all(RolloutRecord) == []


def test_the_pass_rate_uses_the_graders_threshold(tmp_path: Path) -> None:
    grader = FixedGrader(lambda t, trajectory: 0.8 if trajectory.output_text == "yes" else 0.1)
    lenient = {**GRADER, "pass_threshold": 0.75}
    low = check(a_job(tmp_path / "a"), without_tools(grader), some_tasks(12), grader=lenient)
    high = check(a_job(tmp_path / "b"), without_tools(grader), some_tasks(12))
    assert low.numbers["rollouts"]["pass_rate"] > 0
    assert high.numbers["rollouts"]["pass_rate"] == 0


def test_keys_are_read_from_every_template_of_a_grader() -> None:
    multi = {
        "type": "multi",
        "graders": {
            "a": {"input": "{{ sample.output_text }}", "reference": "{{ item.answer.value }}"},
            "b": {"input": [{"role": "user", "content": 'x {{item["the key"]}} {{item.answer}}'}]},
            "c": {"type": "endpoint", "url": "http://host/{{ item.not_a_template }}"},
        },
        "calculate_output": "a + b",
    }
    assert keys_read(multi) == ("answer", "the key")


def test_a_supervised_job_is_judged_by_its_rows(tmp_path: Path) -> None:
    message = Message(role="assistant", content="hello")
    rows = [Demonstration(id=str(n), messages=(message,)) for n in range(10)]
    samples = [imitation((1, 2, 3), (False, True, True), row.id) for row in rows]
    checked = check_supervised(
        a_job(tmp_path), train=rows, validation=rows[:1], samples=samples, limit_tokens=2
    )
    assert checked.error is None
    assert checked.numbers["lengths"]["cut"] == 10
    assert [warning.split(":")[1].split()[0] for warning in checked.warnings] == ["10", "9", "1"]
    few = check_supervised(
        a_job(tmp_path), train=rows[:9], validation=[], samples=samples[:9], limit_tokens=9
    )
    assert few.error is not None
    assert few.error.code == "invalid_training_file"


def test_a_preference_job_is_judged_by_its_pairs(tmp_path: Path) -> None:
    asked = (Message(role="user", content="well?"),)
    yes, no = (Message(role="assistant", content=text) for text in ("yes", "no"))
    good = [
        Preference(id=str(n), messages=(*asked, yes) * n + asked, preferred=(yes,), rejected=(no,))
        for n in range(9)
    ]
    swapped = Preference(id="swapped", messages=asked, preferred=(no,), rejected=(yes,))
    same = Preference(id="same", messages=asked, preferred=(yes,), rejected=(yes,))
    sides = (((1, 2, 3), (False, True, True)), ((1, 4), (False, True)))
    rendered = [preference_pair(*sides, row.id) for row in good]
    checked = check_preference(
        a_job(tmp_path),
        train=[*good, swapped, same, same],
        validation=good[:1],
        pairs=rendered,
        limit_tokens=2,
    )
    assert checked.error is None
    assert checked.numbers["lengths"]["cut"] == 9
    assert [warning.removeprefix("preflight: ") for warning in checked.warnings] == [
        (
            "9 of 9 training rows are longer than the context of 2 tokens and are cut at the end; "
            "0 keep nothing to learn from"
        ),
        "1 training rows repeat the messages of another row",
        "2 training rows prefer an output to itself; they are left out",
        "1 validation rows are also training rows; validation will flatter",
    ]
    nothing = check_preference(
        a_job(tmp_path), train=[same] * 10, validation=[], pairs=[], limit_tokens=9
    )
    assert nothing.error is not None
    assert nothing.error.message.startswith("no training row has outputs that differ")


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}}, {}),
        ({"type": "string", "enum": ["late", "open"]}, "late"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "string", "minLength": 9}, "examplexx"),
        ({"type": "string", "maxLength": 2}, "ex"),
        ({"type": "integer", "maximum": -3}, -3),
        ({"type": "number", "exclusiveMinimum": 4}, 5),
        ({"type": ["null", "boolean"]}, False),
        ({"type": "array", "minItems": 2, "items": {"const": 7}}, [7, 7]),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 1),
        ({"$ref": "#/$defs/size", "$defs": {"size": {"default": "m"}}}, "m"),
        ({"$ref": "#"}, "example"),
        ({"allOf": [{"required": ["a"]}, {"properties": {"a": {"type": "null"}}}]}, {"a": None}),
        ({"type": "object", "required": ["unknown"]}, {"unknown": "example"}),
        ({}, "example"),
    ],
)
def test_the_least_value_of_a_schema(schema: dict[str, Any], value: object) -> None:
    assert least_value(schema) == value
