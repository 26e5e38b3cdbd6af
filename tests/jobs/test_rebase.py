"""What a run did to one model, repeated on another: on fakes, and once on real weights."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from byte_chat import decode, says
from desk_model import tiny_families
from search_project import ASKED, Asking, a_project
from tuning import FakeModel

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import ConfigError, UserError
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Method, RolloutRecord, RunStatus
from agentrft.core.training_config import Adapter
from agentrft.jobs.comparison import compare_runs
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.improve import improve
from agentrft.jobs.improvement_report import children_of
from agentrft.jobs.optimize import opened_run
from agentrft.jobs.origin import Origin, carried_over, origin_of
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project
from agentrft.jobs.rebase import rebase
from agentrft.jobs.rebase_report import adoption, rebase_report_again
from agentrft.jobs.serving import ServedModel
from agentrft.measure.report import Report, as_json
from agentrft.store.home import Home

TOML = """
name = "desk"
model = "{model}"
environment = "tools.py:Desk"
[limits]
max_context_tokens = 500
[methods.optimize]
rollouts = 500
configurations = 4
screen_rollouts = 8
race_tasks = 8
baseline_samples = 1
rounds = 1
[methods.supervised]
steps = 2
batch_size = 2
[methods.reinforcement]
steps = 2
tasks_per_step = 4
group_size = 4
[methods.preflight]
tasks = 8
samples = 4
[methods.evaluation]
best_of = 0
[advisor]
tasks = 1
detectable = 1.0
train_tasks = 1
demonstrations = 1
"""


def hesitant(request: SampleRequest) -> Sequence[int]:
    chance = 55 if ASKED in decode(request.prompt_ids) else 20
    return says("yes" if request.seed % 100 < chance else "no")


def always(request: SampleRequest) -> Sequence[int]:
    return says("no" if request.seed % 100 == 99 else "yes")


@dataclass(frozen=True)
class TwoModels:
    """Opens one or the other by the project's model."""

    old: FakeModel
    new: FakeModel
    new_folder: Path

    @contextmanager
    def __call__(self, project: Project, home: Home, *, trained: bool) -> Iterator[ServedModel]:
        model = self.new if project.config.model == str(self.new_folder) else self.old
        with model(project, home, trained=trained) as opened:
            yield opened


@dataclass(frozen=True)
class Climb:
    """An improvement on one of two models."""

    home: Home
    job: Job
    project: Project
    other: Project
    """The same with the other model."""

    @property
    def origin(self) -> Origin:
        return origin_of(opened_run(self.home, self.job.run.id), self.project)


def a_job(home: Home, project: Project, method: Method, run_id: str = "") -> Job:
    return Job.start(
        home,
        project.config.name,
        method,
        config={
            "name": "desk",
            "environment": "tools.py:Desk",
            "model": project.config.model,
        },
        seed=3,
        progress=SilentProgress(),
        stop=asyncio.Event(),
        run_id=run_id,
    )


def with_model(project: Project, folder: Path) -> Project:
    return replace(project, config=replace(project.config, model=str(folder)))


@pytest.fixture(scope="module")
def climb(tmp_path_factory: pytest.TempPathFactory) -> Climb:
    folder = tmp_path_factory.mktemp("climb")
    old = tiny_families._write_chat_model(folder / "old")
    new = tiny_families._write_chat_model(folder / "new", seed=1)
    project = a_project(folder / "desk", toml=TOML.format(model=old), rows=12)
    home = Home.open(folder / "home")
    job = a_job(home, project, Method.IMPROVE)
    model = FakeModel(script=hesitant)
    asyncio.run(improve(job, project, allow_findings=True, open_model=model, proposers=(Asking(),)))
    passed_over = job.child("preference", Method.PREFERENCE)
    home.store.put_run(replace(passed_over.run, status=RunStatus.FAILED))
    return Climb(home=home, job=job, project=project, other=with_model(project, new))


def rebased(climb: Climb, job: Job, new: FakeModel, old: FakeModel | None = None) -> Report:
    models = TwoModels(
        old=old or FakeModel(script=hesitant), new=new, new_folder=Path(climb.other.config.model)
    )
    report, _ = asyncio.run(
        rebase(job, climb.origin, climb.other, allow_findings=True, open_model=models)
    )
    return report


def test_another_model_goes_the_same_way_and_is_held_against_the_first(climb: Climb) -> None:
    job = a_job(climb.home, climb.other, Method.REBASE)
    new = FakeModel(script=always)
    told = as_json(rebased(climb, job, new))
    names = [stage["name"] for stage in told["stages"]]
    assert names[:4] == ["old base", "old tuned", "new base", "new tuned"]
    methods = [method for method, _ in climb.origin.steps]
    assert methods == [Method.SUPERVISED, Method.REINFORCEMENT]
    repeated = [c.run.method for c in children_of(job).values() if c.run.method in methods]
    assert repeated == methods
    paid = told["did_weights_pay"]
    assert paid["question"] == "Should the model change?"
    assert paid["answer"].startswith(f"Change to {climb.other.config.model}: on 12 validation")
    table = paid["comparison"]
    assert table["reference"] == "old tuned"
    trained = {row["name"] for row in table["rows"] if row["trained"]}
    assert trained - {"new tuned lean"} == {"old tuned", "new tuned"}
    made = {row["name"]: row["training"]["rollouts"] for row in table["rows"]}
    assert made["new tuned"] == made["old tuned"] > 0
    assert made["new base"] == 0
    again, _ = rebase_report_again(climb.home, job.run.id)
    assert as_json(again) == told
    comparison = a_job(climb.home, climb.other, Method.COMPARISON)
    rows = asyncio.run(compare_runs(comparison, climb.other, [job.run.id])).rows
    assert {row.name for row in rows if row.trained} == trained, "as in its own report"
    assert {row.name: row.training.rollouts for row in rows} == made


def test_what_the_first_run_measured_is_not_measured_again(climb: Climb) -> None:
    job = a_job(climb.home, climb.other, Method.REBASE)
    rebased(climb, job, FakeModel(script=always))
    children = children_of(job)
    for stage, trained in (("old base", False), ("old tuned", True)):
        known = {record.graded.trajectory.id for record in climb.origin.known(trained=trained)}
        stored = children[f"{stage} measured"].read_all(RolloutRecord)
        found = {record.graded.trajectory.id for record in stored}
        assert found == (known or found)
    assert climb.origin.known(trained=True)


def test_a_rebase_that_was_stopped_goes_on_where_it_was(climb: Climb) -> None:
    job = a_job(climb.home, climb.other, Method.REBASE)
    stopping = FakeModel(
        script=always, on_step=lambda steps: job.stop.set() if steps == 0 else None
    )
    with pytest.raises(Stopped):
        rebased(climb, job, stopping)
    again = a_job(climb.home, climb.other, Method.REBASE, job.run.id)
    resumed = FakeModel(script=always)
    told = as_json(rebased(climb, again, resumed))
    # The second step of the warm start; groups that are always solved teach nothing afterwards.
    assert len(resumed.batches) == 1
    assert told["did_weights_pay"]["answer"].startswith("Change to")
    other = replace(climb.origin, job=job)
    with pytest.raises(ConfigError, match="rebases"):
        asyncio.run(rebase(again, other, climb.other, open_model=resumed))


def test_what_the_other_model_cannot_do_is_refused_with_the_reason(climb: Climb) -> None:
    origin, other, models = climb.origin, climb.other, climb.home.models
    with pytest.raises(UserError, match="name another model"):
        carried_over(origin, climb.project, models)
    limits = replace(origin.spec.limits, max_context_tokens=513)
    roomy = replace(origin, spec=replace(origin.spec, limits=limits))
    with pytest.raises(UserError, match=r"513 tokens of context .* was made for 512"):
        carried_over(roomy, other, models)
    tuning = other.config.methods.supervised
    fused = replace(tuning.trainer, adapter=Adapter(targets=("q_proj", "qkv_proj")))
    methods = replace(other.config.methods, supervised=replace(tuning, trainer=fused))
    strange = replace(other, config=replace(other.config, methods=methods))
    with pytest.raises(UserError, match="no layers named qkv_proj, which methods.supervised"):
        carried_over(origin, strange, models)
    assert carried_over(origin, other, models) == []


def test_another_way_of_writing_conversations_is_told(climb: Climb, tmp_path: Path) -> None:
    written = tiny_families._write_chat_model(tmp_path / "qwen")
    tiny_families.write_family("qwen2", written)
    config = json.loads((Path(climb.other.config.model) / "config.json").read_text())
    (written / "config.json").write_text(json.dumps(config))
    notes = carried_over(climb.origin, with_model(climb.project, written), climb.home.models)
    assert len(notes) == 1
    assert "another tokenizer" in notes[0]
    tiny_families.write_family("llama3", written)
    (written / "config.json").write_text(json.dumps(config))
    notes = carried_over(climb.origin, with_model(climb.project, written), climb.home.models)
    assert ["another tokenizer" in notes[0], "another chat family" in notes[1]] == [True, True]


def test_a_run_that_trained_nothing_or_is_not_done_has_nothing_to_repeat(
    climb: Climb, tmp_path: Path
) -> None:
    home = Home.open(tmp_path)
    for method, told in (
        (Method.OPTIMIZE, "name an improvement or a training"),
        (Method.IMPROVE, "finish it with --resume"),
    ):
        job = a_job(home, climb.project, method)
        with pytest.raises(UserError, match=told):
            origin_of(job, climb.project)

    async def ends(job: Job, **result: str) -> Job:
        async with job.running():
            job.note_result(**result)
        return job

    idle = asyncio.run(ends(a_job(home, climb.project, Method.IMPROVE)))
    with pytest.raises(UserError, match="trained nothing"):
        origin_of(idle, climb.project)


def test_a_run_that_began_from_other_weights_is_not_repeated(climb: Climb) -> None:
    (_, second) = climb.origin.trainings
    with pytest.raises(UserError, match="began from the checkpoint"):
        origin_of(second, climb.project)


@pytest.mark.parametrize(
    ("new", "said"), [(1.0, "Change to new"), (0.5, "Keep old, unless"), (0.0, "Keep old: ")]
)
def test_only_a_certain_gain_changes_the_model(climb: Climb, new: float, said: str) -> None:
    records = climb.origin.known(trained=True)
    config = ProjectConfig(name="desk", pass_threshold=0.5)

    def scored(share: float) -> list[RolloutRecord]:
        graded = [record.graded for record in records]
        return [
            replace(
                record,
                graded=replace(one, grade=replace(one.grade, score=float(n < share * len(graded)))),
            )
            for n, (record, one) in enumerate(zip(records, graded, strict=True))
        ]

    told = adoption(("old", "new"), scored(0.5), scored(new), config, "validation")
    assert told.startswith(said)
    assert f"on {len(records)} validation tasks" in told
    few = adoption(("old", "new"), scored(0.0)[:3], scored(1.0)[:3], config, "validation")
    assert few.startswith("Keep old, unless"), "three tasks that all agree prove nothing"
