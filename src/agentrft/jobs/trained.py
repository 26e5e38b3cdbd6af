"""Trained weights found by whatever names them: a run, a model of the API, or a folder."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from agentrft.core.errors import UserError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import TRAINING, Method, Run
from agentrft.core.spec import AgentSpec
from agentrft.inference.models import REGISTRY, ModelFiles, resolve
from agentrft.jobs.checkpoints import delivered
from agentrft.jobs.optimize import opened_run
from agentrft.jobs.trials import spec_path
from agentrft.store.codec import from_json
from agentrft.store.home import Home
from agentrft.training.checkpoint import (
    RECORD,
    check_base,
    fingerprint,
    read_record,
    verify_checkpoint,
)


class NothingLearnedError(UserError):
    """A training ended without weights to go on with, since there was nothing to learn."""


class UnchangedError(NothingLearnedError):
    """Training ended with the weights of the base model."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: the weights equal those of the base model, rounded as they would be served. "
            "Either no task's scores differed between its rollouts (`agentrft runs show` tells: tasks "
            "are too easy or too hard, or the grader is flat), or the learning rate is too small for "
            "so few steps. Change that and train again"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A checkpoint with what is known of where it came from."""

    folder: Path
    run: Run | None = None
    """The run that was asked for, or that wrote the folder."""
    spec_hash: str = ""
    """The spec it was trained under."""


def is_job(run: Run) -> bool:
    """Whether a run is a job of the API, whose record the queue keeps."""
    return run.id.startswith("ftjob-")


def find_trained(home: Home, name: str) -> Trained:
    """Return the weights that a run delivered, that a model `ft:...` names, or of a folder.

    Raises UserError for a run without weights, StoreError for a run that nobody knows or a folder
    that is damaged.
    """
    if name.startswith("ft:"):
        found = _of_model(home, name)
    elif (folder := Path(name)).is_dir():
        found = _of_folder(home, folder.resolve())
    else:
        found = _of_run(home, home.store.run(name))
    verify_checkpoint(found.folder)
    return found


def _of_run(home: Home, run: Run) -> Trained:
    if run.method in (Method.IMPROVE, Method.REBASE):
        path = run.result.get("checkpoint")
        if not path:
            raise UserError(
                f"{run.method} {run.id} delivered no weights; it trained none, or not yet"
            )
        return replace(_of_folder(home, Path(path)), run=run)
    checkpoint = delivered(opened_run(home, run.id))
    return Trained(folder=Path(checkpoint.path), run=run, spec_hash=checkpoint.spec_hash)


def _of_model(home: Home, name: str) -> Trained:
    # The job's id is the last part of the name, before the part that names a checkpoint; a suffix
    # may hold colons of its own.
    job_id = f"ftjob-{re.sub(r':ckpt-step-[0-9]+$', '', name).rpartition(':')[2]}"
    for model in home.catalogue.of_job(job_id):
        if model.id == name:
            return Trained(folder=Path(model.path), run=home.store.find_run(job_id))
    raise UserError(f"this home folder has no model {name!r}; `agentrft runs list` shows its runs")


def _of_folder(home: Home, folder: Path) -> Trained:
    if not (folder / RECORD).is_file():
        raise UserError(
            f"{folder} is no checkpoint: it has no {RECORD}; give a folder below "
            "runs/RUN/checkpoints, or a run id"
        )
    run = home.store.find_run(folder.parent.parent.name)
    rows = opened_run(home, run.id).read_all(Checkpoint) if run else ()
    spec_hash = next((row.spec_hash for row in rows if Path(row.path) == folder), "")
    return Trained(folder=folder, run=run, spec_hash=spec_hash)


def base_model(home: Home, trained: Trained) -> ModelFiles:
    """Return the base model of a checkpoint. Raises ModelError if it is not on this machine."""
    record, run = read_record(trained.folder), trained.run
    if run is not None and is_job(run):
        name = home.queue.get(run.id).job.base
    elif run is not None and "model" in run.config:
        name = str(run.config["model"])
    else:
        name = _by_fingerprint(home, record.base) or record.base_name
    files = resolve(name, cache=home.models)
    check_base(record, files.folder, trained.folder)
    return files


def _by_fingerprint(home: Home, wanted: str) -> str | None:
    known = [(model.name, model.folder(home.models)) for model in REGISTRY.values()]
    known += [(str(config.parent), config.parent) for config in home.models.glob("**/config.json")]
    for name, folder in known:
        if (folder / "config.json").is_file() and fingerprint(folder) == wanted:
            return name
    return None


def trained_spec(home: Home, trained: Trained) -> AgentSpec | None:
    """Return the spec that the weights act under: what an improvement ended with, or trained with."""
    run = trained.run
    if run is None:
        return None
    names = [trained.spec_hash, str(run.result.get("spec", ""))]
    if run.method not in TRAINING:
        names.reverse()
    folders = {home.run_folder(one) for one in (run.id, run.id.partition(".")[0])}
    paths = (spec_path(folder, name) for name in names if name for folder in folders)
    kept = next((path for path in paths if path.is_file()), None)
    return from_json(AgentSpec, kept.read_bytes()) if kept else None
