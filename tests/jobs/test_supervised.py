"""Demonstrations to imitate, rendered under a spec: what is fed in, and what carries loss."""

import asyncio
import csv
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from builders import a_job
from tuning import PROJECT, SUPERVISED, FakeModel, a_home, finished, submitted

from agentrft.core.config import Limits, ProjectConfig
from agentrft.core.errors import ConfigError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event, Method, StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.spec import AgentSpec, Rendering, Section, Shown, ToolView
from agentrft.core.task import Demonstration, Message, ToolCall
from agentrft.core.training_config import SupervisedConfig
from agentrft.graders.fixed import FixedGrader
from agentrft.inference.renderer import ChatRenderer, load_renderer
from agentrft.jobs.context import Job
from agentrft.jobs.project import Project
from agentrft.jobs.supervised import (
    HeldOut,
    demonstration_samples,
    imitated,
    learn,
    rendered,
)
from agentrft.rollout.environment import Environment, python_environment, tool_specs
from agentrft.rollout.harness import Harness
from agentrft.rollout.tools import tool
from agentrft.store.datasets import read_demonstrations
from agentrft.training.credit import imitation
from agentrft.training.recording import RecordingTrainer

_path = Path(__file__).parents[1] / "inference" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tiny_families", _path)
assert _spec is not None
assert _spec.loader is not None
tiny_families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_families)
APPENDING: Sequence[str] = sorted(set(tiny_families.FAMILIES) - {"template"})


class Desk(Environment):
    @tool
    def get_order(self, order_id: str) -> dict[str, str]:
        """Look an order up."""
        return {"order": order_id, "status": "sent"}


def a_demonstration(number: int) -> Demonstration:
    call = ToolCall(id="call_1", name="get_order", arguments=f'{{"order_id": "W{number}"}}')
    return Demonstration(
        id=f"row-{number}",
        messages=(
            Message(role="user", content=f"where is W{number}?"),
            Message(role="assistant", tool_calls=(call,)),
            Message(
                role="tool",
                content=f'{{"order": "W{number}", "status": "sent"}}',
                tool_call_id="call_1",
                name="get_order",
            ),
            Message(role="assistant", content=f"W{number} is sent."),
        ),
    )


POOL = (a_demonstration(1), a_demonstration(2))
SPEC = AgentSpec(
    sections=(Section(name="role", text="Be kind."),),
    tools={"get_order": ToolView(name="lookup", parameters={"order_id": "id"})},
    rendering=Rendering(form="fields", fields=("status",)),
    shown=Shown(count=1, pool=POOL),
)


def a_project(folder: Path, spec: AgentSpec) -> Project:
    return Project(
        folder=folder,
        config=ProjectConfig(name="desk"),
        spec=spec,
        open_environment=python_environment(Desk),
        grader=FixedGrader(lambda task, trajectory: 1.0),
        tools=tool_specs(Desk),
    )


@pytest.mark.parametrize("family", APPENDING)
def test_a_demonstration_is_fed_in_as_a_rollout_under_the_spec_would_be(
    tmp_path: Path, family: str
) -> None:
    renderer = load_renderer(tiny_families.write_family(family, tmp_path / family))
    project = a_project(tmp_path, SPEC)
    (sample,) = rendered([a_demonstration(2)], project, renderer)
    row = a_demonstration(2)
    seen = Harness(SPEC).demonstration(row, project.tools)
    prompt = renderer.start(seen.messages[:-3], seen.tools)
    assert sample.token_ids[: len(prompt)] == prompt
    assert not any(sample.action_mask[: len(prompt)])
    acted = [i for i, action in zip(sample.token_ids, sample.action_mask, strict=True) if action]
    text = renderer.decode(acted)
    assert "lookup" in text
    assert "W2 is sent." in text
    assert "W1" not in text
    assert "get_order" not in renderer.decode(sample.token_ids)
    fed = renderer.decode(prompt)
    assert fed.index("Be kind.") < fed.index("W1 is sent.") < fed.index("where is W2?")
    assert '"order":' not in renderer.decode(sample.token_ids)


def test_a_demonstration_is_never_shown_to_itself(tmp_path: Path) -> None:
    renderer = load_renderer(tiny_families.write_family("qwen2", tmp_path / "qwen2"))
    (sample,) = rendered([a_demonstration(1)], a_project(tmp_path, SPEC), renderer)
    text = renderer.decode(sample.token_ids)
    assert text.count("where is W1?") == 1
    assert text.count("where is W2?") == 1


def test_messages_not_to_be_imitated_are_counted_behind_those_shown() -> None:
    mask = [False, True, True, False, True, False, True, True]
    assert list(imitated(mask, ())) == mask
    wanted = list(imitated(mask, (False, True), before=1))
    assert wanted == [False] * 6 + [True, True]
    assert list(imitated(mask, (), before=3)) == [False] * 8


def test_under_a_default_spec_nothing_is_added(tmp_path: Path) -> None:
    renderer = load_renderer(tiny_families.write_family("smollm2", tmp_path / "smollm2"))
    project = a_project(tmp_path, AgentSpec())
    demonstration = replace(a_demonstration(1), imitated=(False, True))
    (sample,) = rendered([demonstration], project, renderer)
    ids, mask = renderer.demonstration(demonstration.messages, tool_specs(Desk))
    assert sample.token_ids == ids
    assert sum(sample.action_mask) < sum(mask)


def a_row(**changes: object) -> dict[str, object]:
    """Two calls at once, a second turn, and a third one, each of the assistant's."""
    calls = [
        {
            "id": f"call_{n}",
            "type": "function",
            "function": {"name": "get_order", "arguments": f'{{"order_id": "W{n}"}}'},
        }
        for n in (1, 2)
    ]
    messages = [
        {"role": "user", "content": "where are W1 and W2?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "sent"},
        {"role": "tool", "tool_call_id": "call_2", "content": "lost"},
        {"role": "assistant", "content": "W1 is sent, W2 lost.", "weight": 0},
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": "I asked again."},
    ]
    return {"messages": messages, "parallel_tool_calls": True, **changes}


def read(folder: Path, *rows: Mapping[str, object]) -> tuple[Demonstration, ...]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_demonstrations(path)


def acted(sample: Sample, renderer: ChatRenderer) -> str:
    return renderer.decode(
        [i for i, action in zip(sample.token_ids, sample.action_mask, strict=True) if action]
    )


@pytest.mark.parametrize("family", sorted(set(APPENDING) - {"llama3"}))
def test_several_calls_of_one_turn_are_imitated_and_a_turn_of_weight_0_is_not(
    tmp_path: Path, family: str
) -> None:
    renderer = load_renderer(tiny_families.write_family(family, tmp_path / family))
    (sample,) = rendered(read(tmp_path, a_row()), a_project(tmp_path, AgentSpec()), renderer)
    text = acted(sample, renderer)
    assert text.index("W1") < text.index("W2") < text.index("I asked again.")
    assert "lost" not in text
    assert "W1 is sent, W2 lost." in renderer.decode(sample.token_ids)
    begin = sample.action_mask.index(True)
    end = sample.action_mask.index(False, begin)
    parsed = renderer.parse(sample.token_ids[begin:end], tool_specs(Desk))
    assert [call.arguments for call in parsed.message.tool_calls] == [
        '{"order_id": "W1"}',
        '{"order_id": "W2"}',
    ]


def test_every_row_is_told_about_its_own_tools(tmp_path: Path) -> None:
    renderer = load_renderer(tiny_families.write_family("smollm2", tmp_path / "smollm2"))
    project = replace(a_project(tmp_path, AgentSpec()), tools=())

    def offered(name: str) -> list[dict[str, object]]:
        return [{"type": "function", "function": {"name": name}}]

    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [{"messages": said, "tools": offered(name)} for name in ("cancel", "refund")]
    first, second = (
        renderer.decode(sample.token_ids)
        for sample in rendered(read(tmp_path, *rows), project, renderer)
    )
    assert "cancel(" in first
    assert "refund(" not in first
    assert "refund(" in second


def test_long_rows_are_cut_at_the_end_and_counted(tmp_path: Path) -> None:
    renderer = load_renderer(tiny_families.write_family("smollm2", tmp_path / "smollm2"))
    weightless = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello", "weight": 0},
    ]
    rows = read(tmp_path, a_row(id="long"), {"messages": weightless})
    whole = a_project(tmp_path, AgentSpec())
    (sample,) = rendered(rows, whole, renderer)
    limit = len(sample.token_ids) - 2
    project = replace(whole, spec=AgentSpec(limits=Limits(max_context_tokens=limit)))
    job = a_job(tmp_path / "home", Method.SUPERVISED)
    (cut,) = demonstration_samples(job, project, renderer, rows)
    assert cut.token_ids == sample.token_ids[:limit]
    assert cut.action_mask == sample.action_mask[:limit]
    (warning,) = job.read_all(Event)
    assert warning.level == "warn"
    assert warning.message.startswith("1 of 2 conversations are longer than max_context_tokens")
    assert "1 have nothing to imitate" in warning.message


class Overfitting(RecordingTrainer):
    """Its held-out loss falls until the fourth step and rises then."""

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        return {"loss": 1.0 + abs(self.steps_done - 4), "token_accuracy": self.steps_done / 10}


def imitated_by(
    job: Job,
    trainer: RecordingTrainer,
    *,
    held_out_interval: int = 2,
    steps: int,
    checkpoint_interval: int,
    last_token: int = 9,
) -> None:
    rows = [imitation((1, n, last_token), (False, True, True), f"row-{n}") for n in range(6)]
    config = SupervisedConfig(steps=steps, batch_size=3, checkpoint_interval=checkpoint_interval)

    async def main() -> None:
        async with job.running():
            held_out = HeldOut(samples=rows[:1], interval=held_out_interval)
            await learn(job, trainer, [(row,) for row in rows], config, held_out=held_out)

    asyncio.run(main())


def test_held_out_rows_are_measured_and_their_best_checkpoint_stays(tmp_path: Path) -> None:
    job = a_job(tmp_path, Method.SUPERVISED)
    imitated_by(job, Overfitting(), steps=9, checkpoint_interval=5)
    looks = {
        m.step: (m.values["validation_loss"], m.values["validation_token_accuracy"])
        for m in job.read_all(StepMetrics)
        if "validation_loss" in m.values
    }
    assert looks == {2: (3.0, 0.2), 4: (1.0, 0.4), 6: (3.0, 0.6), 8: (5.0, 0.8), 9: (6.0, 0.9)}
    kept = [c.step for c in job.read_all(Checkpoint) if Path(c.path).is_dir()]
    assert kept == [4, 5, 9]
    assert job.run.result["best_step"] == 4
    assert job.run.result["held_out_before"] == {
        "validation_loss": 5.0,
        "validation_token_accuracy": 0.0,
    }
    told = [event.message for event in job.read_all(Event)]
    assert told[0] == "before step 1: held out: loss 5.000, token accuracy 0.000"
    assert told[2] == "step 4: held out: loss 1.000, token accuracy 0.400"


class Unsteady(RecordingTrainer):
    """Its held-out loss is no number at first, then the same twice, then higher."""

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        return {"loss": {2: math.nan, 4: 1.0, 6: 1.0}.get(self.steps_done, 2.0)}


def test_of_equal_losses_the_last_is_the_best_and_what_is_no_number_never_is(
    tmp_path: Path,
) -> None:
    job = a_job(tmp_path, Method.SUPERVISED)
    imitated_by(job, Unsteady(), steps=10, checkpoint_interval=4)
    kept = [c.step for c in job.read_all(Checkpoint) if Path(c.path).is_dir()]
    assert kept == [6, 8, 10]
    assert job.run.result["best_step"] == 6


def test_an_interval_of_0_keeps_a_checkpoint_of_each_epoch(tmp_path: Path) -> None:
    job = a_job(tmp_path, Method.SUPERVISED)
    imitated_by(job, RecordingTrainer(), held_out_interval=100, steps=7, checkpoint_interval=0)
    assert [checkpoint.step for checkpoint in job.read_all(Checkpoint)] == [2, 4, 6, 7]


def test_the_best_loss_of_before_a_kill_still_counts(tmp_path: Path) -> None:
    job = a_job(tmp_path, Method.SUPERVISED)
    imitated_by(job, Overfitting(), steps=5, checkpoint_interval=5)
    again = Overfitting.resumed(Path(job.checkpoint().path))
    imitated_by(job, again, steps=9, checkpoint_interval=5)
    kept = [c.step for c in job.read_all(Checkpoint) if Path(c.path).is_dir()]
    assert kept == [4, 5, 9]


def test_a_run_that_began_with_other_rows_does_not_go_on(tmp_path: Path) -> None:
    job = a_job(tmp_path, Method.SUPERVISED)
    imitated_by(job, Overfitting(), steps=5, checkpoint_interval=5)
    again = Overfitting.resumed(Path(job.checkpoint().path))
    with pytest.raises(ConfigError, match=r"began with other rows .* start a new run"):
        imitated_by(job, again, steps=9, checkpoint_interval=5, last_token=8)
    assert again.batches == []


def test_the_result_file_of_a_job_holds_every_look_at_the_validation_file(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    submitted(home, SUPERVISED)
    job = finished(home, FakeModel()).job
    with home.files.path(home.files.get(PROJECT, job.result_files[0])).open() as lines:
        rows = list(csv.DictReader(lines))
    looks = [row["step"] for row in rows if row["full_valid_mean_token_accuracy"] == "1.0"]
    assert looks == ["3", "6"]
    assert [row["step"] for row in rows if row["valid_loss"] == "0.0"] == looks
    assert [row["step"] for row in rows if row["valid_mean_token_accuracy"]] == looks
