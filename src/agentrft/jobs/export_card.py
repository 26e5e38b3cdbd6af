"""What the store and the home folder know of trained weights, for their model card."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agentrft.core.job import ReinforcementMethod
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event, Method, Run, RunStatus
from agentrft.inference.cache import file_sha256
from agentrft.inference.models import ModelFiles
from agentrft.jobs.audit import caveats
from agentrft.jobs.holdout import runs_beside
from agentrft.jobs.optimize import opened_run
from agentrft.jobs.project import Project
from agentrft.jobs.provenance import FILES, file_hashes
from agentrft.jobs.trained import Trained, is_job
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
    stored: str,
    beside: frozenset[str],
    project: Project | None,
    spec_hash: str,
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
        stored=stored,
        beside=beside,
        base=base.name,
        base_files={
            path.name: file_sha256(path)
            for path in (
                base.folder / "config.json",
                *sorted(base.folder.glob("model*.safetensors")),
            )
        },
        license=base.license,
        methods=[_settings(home, one) for one in _trainings(home, trained.folder)],
        run_id=run.id if run else "",
        seed=record.seed,
        steps=record.steps_done,
        files=files,
        spec_hash=spec_hash,
        grader=_grader(home, run),
        stages=list(_stages(home, trained)),
        identity=identity,
        checks=checks,
        versions={
            lib: version(lib) for lib in ("agentrft", "torch", "transformers", "peft", "gguf")
        },
        metrics=_metrics(home, trained.folder),
        caveats=(*_caveats(home, trained), *notes, *([] if noted or not files else [_LATE])),
    )


_LATE = (
    "Hashes of files were taken at export, since the run is older than the record of them; the files "
    "may have changed since it was trained."
)


def _trainings(home: Home, folder: Path) -> list[Run]:
    """Return the runs that led to the weights of a checkpoint folder, in their order."""
    run = home.store.find_run(folder.parent.parent.name)
    if run is None:
        return []
    start = run.result.get("start")
    return [*(_trainings(home, Path(start)) if start else ()), run]


def _settings(home: Home, run: Run) -> tuple[str, Mapping[str, Any]]:
    """Return a run's method with its settings, those aside that its loss does not read."""
    if is_job(run):
        return run.method, home.queue.get(run.id).job.hyperparameters
    unread = {
        Method.REINFORCEMENT: ("preference",),
        Method.PREFERENCE: ("loss",),
    }.get(run.method, ("loss", "preference", "reference"))
    return run.method, _without(run.config.get("methods", {}).get(str(run.method), {}), unread)


def _without(settings: Mapping[str, Any], unread: Sequence[str]) -> Mapping[str, Any]:
    """Leave settings of trainers out, however deep."""
    return {
        key: {name: one for name, one in value.items() if name not in unread}
        if key == "trainer"
        else _without(value, unread)
        if isinstance(value, dict)
        else value
        for key, value in settings.items()
    }


def _files(
    home: Home, run: Run | None, project: Project | None
) -> tuple[Mapping[str, Mapping[str, str]], bool]:
    """Return names and hashes of a run's files, and whether they were noted when it began."""
    if run is None:
        return {}, False
    if is_job(run):
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


def _grader(home: Home, run: Run | None) -> Mapping[str, Any] | None:
    """Return what graded; empty for the environment's own `grade`, None if nothing is known of it."""
    if run is None:
        return None
    if is_job(run):
        method = home.queue.get(run.id).job.method
        return method.grader if isinstance(method, ReinforcementMethod) else None
    return run.config.get("grader", {})


def _metrics(home: Home, folder: Path) -> Mapping[str, float]:
    """Return what training noted beside the weights."""
    run = home.store.find_run(folder.parent.parent.name)
    rows = opened_run(home, run.id).read_all(Checkpoint) if run else ()
    return next((row.metrics for row in rows if Path(row.path) == folder), {})


def _stages(home: Home, trained: Trained) -> Iterator[Mapping[str, Any]]:
    """Yield what was measured on held-out tasks: the run's stages, then evaluations."""
    run = trained.run
    if run is None:
        return
    yield from _report(home, run.id.partition(".")[0])
    for one in runs_beside(opened_run(home, run.id)):
        measured = one.result.get(CHECKPOINT) if one.result.get("split") == "holdout" else ""
        if measured and Path(measured).resolve() == trained.folder.resolve():
            yield from _report(home, one.id)


def _report(home: Home, run_id: str) -> Iterator[Mapping[str, Any]]:
    path = home.path / "runs" / run_id / "report" / "report.json"
    if path.is_file():
        yield from json.loads(path.read_text(encoding="utf-8"))["stages"]


def _caveats(home: Home, trained: Trained) -> Iterator[str]:
    if trained.run is None:
        yield "No run of this home folder wrote these weights: what they were trained on is unknown."
        return
    runs = {run.id: run for run in (trained.run, *_trainings(home, trained.folder))}
    for run in runs.values():
        job = opened_run(home, run.id)
        yield from caveats(job)
        if run.status is not RunStatus.SUCCEEDED:
            yield f"Run `{run.id}` was {run.status} when this was exported."
        for alarm in alarms_of(job.read_all(Event)):
            yield f"Monitor `{alarm.monitor}` at step {alarm.step}: {alarm.message}"
