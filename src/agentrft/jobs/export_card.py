"""What the store and the home folder know of trained weights, for their model card."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from agentrft.core.job import ReinforcementMethod
from agentrft.core.run import TRAINING, Event, Method, Run, RunStatus
from agentrft.core.spec import AgentSpec
from agentrft.inference.cache import file_sha256
from agentrft.inference.models import ModelFiles
from agentrft.jobs.audit import caveats
from agentrft.jobs.optimize import opened_run
from agentrft.jobs.project import Project
from agentrft.jobs.provenance import FILES, file_hashes
from agentrft.jobs.trained import Trained
from agentrft.measure.model_card import Check, ModelCard
from agentrft.measure.monitors import alarms_of
from agentrft.store.home import Home
from agentrft.training.checkpoint import TrainerRecord

CHECKPOINT = "checkpoint"
"""In the result of an evaluation: the folder of the weights that were measured."""


def known_card(
    home: Home,
    trained: Trained,
    record: TrainerRecord,
    base: ModelFiles,
    *,
    name: str,
    form: str,
    project: Project | None,
    spec: AgentSpec | None,
    checks: Sequence[Check],
    identity: float | None,
    notes: Sequence[str],
) -> ModelCard:
    """Return the card of an export; what nobody noted stays empty."""
    run = trained.run
    files, noted = _files(home, run, project)
    return ModelCard(
        name=name,
        format=form,
        base=base.name,
        base_files={
            path.name: file_sha256(path)
            for path in (
                base.folder / "config.json",
                *sorted(base.folder.glob("model*.safetensors")),
            )
        },
        license=base.license,
        methods={one.method: _settings(home, one) for one in _trainings(home, run)},
        run_id=run.id if run else "",
        seed=record.seed,
        steps=record.steps_done,
        files=files,
        spec_hash=spec.hash if spec else trained.spec_hash,
        spec_kept=spec is not None,
        grader=_grader(home, run),
        stages=list(_stages(home, trained)),
        identity=identity,
        checks=checks,
        versions={
            lib: version(lib) for lib in ("agentrft", "torch", "transformers", "peft", "gguf")
        },
        tools=project is not None,
        caveats=(*_caveats(home, run), *notes, *([] if noted or not files else [_LATE])),
    )


_LATE = (
    "Hashes of files were taken at export, since the run is older than the record of them; the files "
    "may have changed since it was trained."
)


def _trainings(home: Home, run: Run | None) -> list[Run]:
    """Return the runs that changed the weights, in their order."""
    if run is None or run.method in TRAINING:
        return [run] if run else []
    children = [
        one for one in home.store.runs(project=run.project).items if one.parent_id == run.id
    ]
    trained = [
        one for one in children if one.method in TRAINING and one.status is RunStatus.SUCCEEDED
    ]
    return sorted(trained, key=lambda one: one.created_at)


def _settings(home: Home, run: Run) -> Mapping[str, Any]:
    if run.id.startswith("ftjob-"):
        return home.queue.get(run.id).job.hyperparameters
    return run.config.get("methods", {}).get(str(run.method), {})


def _files(
    home: Home, run: Run | None, project: Project | None
) -> tuple[Mapping[str, Mapping[str, str]], bool]:
    """Return names and hashes of a run's files, and whether they were noted when it began."""
    if run is None:
        return {}, False
    if run.id.startswith("ftjob-"):
        job = home.queue.get(run.id).job
        named = {"training_file": job.training_file, "validation_file": job.validation_file}
        found = {what: home.files.get(job.project, file) for what, file in named.items() if file}
        return {
            what: {"name": file.filename, "sha256": file.sha256} for what, file in found.items()
        }, True
    noted = home.store.run(run.id.partition(".")[0]).result.get(FILES)
    if noted:
        return noted, True
    return (file_hashes(project) if project else {}), False


def _grader(home: Home, run: Run | None) -> Mapping[str, Any]:
    if run is None:
        return {}
    if run.id.startswith("ftjob-"):
        method = home.queue.get(run.id).job.method
        return method.grader if isinstance(method, ReinforcementMethod) else {}
    return run.config.get("grader", {})


def _stages(home: Home, trained: Trained) -> Iterator[Mapping[str, Any]]:
    """Yield what was measured on held-out tasks: the run's stages, then evaluations."""
    run = trained.run
    if run is None:
        return
    yield from _report(home, run.id.partition(".")[0])
    for one in home.store.runs(project=run.project).items:
        if one.method is Method.EVALUATION and one.result.get(CHECKPOINT) == str(trained.folder):
            yield from _report(home, one.id)


def _report(home: Home, run_id: str) -> Iterator[Mapping[str, Any]]:
    path = home.path / "runs" / run_id / "report" / "report.json"
    if path.is_file():
        yield from json.loads(path.read_text(encoding="utf-8"))["stages"]


def _caveats(home: Home, run: Run | None) -> Iterator[str]:
    if run is None:
        yield "No run of this home folder wrote these weights: what they were trained on is unknown."
        return
    yield from caveats(opened_run(home, run.id))
    for training in _trainings(home, run):
        for alarm in alarms_of(opened_run(home, training.id).read_all(Event)):
            yield f"Monitor `{alarm.monitor}` at step {alarm.step}: {alarm.message}"
