"""Runs that measured the holdout, compared: rollouts are read from the store, none is made."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import ConfigError, UserError
from agentrft.core.run import TRAINING, Method, RolloutRecord, Run, RunStatus, StepMetrics
from agentrft.jobs.context import Job
from agentrft.jobs.holdout import runs_beside
from agentrft.jobs.improvement_report import rebuilt
from agentrft.jobs.optimize import kept_summary, opened_run, search_report
from agentrft.jobs.project import Project
from agentrft.jobs.provenance import FILES
from agentrft.jobs.rebase_report import rebased_arms
from agentrft.jobs.regrade import listed_rollouts, rollout_runs
from agentrft.jobs.serving import OpenModel, served_model
from agentrft.jobs.verifier import JUDGE, LEARNED, Verdicts, judged, verified
from agentrft.measure.arms import GRADER, spent_on_training
from agentrft.measure.comparison import (
    RELIABLE,
    Arm,
    Comparison,
    Spending,
    best_of,
    compare,
    samples,
)
from agentrft.measure.comparison_section import (
    arms_of,
    comparison_table,
    markdown,
    spent_on_search,
)
from agentrft.measure.page import document
from agentrft.measure.report import finite
from agentrft.store.codec import load_config
from agentrft.store.home import Home


async def compare_runs(
    job: Job,
    project: Project,
    runs: Sequence[str],
    *,
    best_of_k: int = 0,
    verifier: str = GRADER,
    reference: str = "",
    open_model: OpenModel | None = None,
) -> Comparison:
    """Compare what runs measured on the holdout; `NAME=RUN` names a run in the table.

    Rows that runs of one name bring are pooled as seeds of one policy, stage by stage.
    `best_of_k` 0 takes four where there are as many rollouts per task. `verifier` is `grader`,
    `learned`, or `judge:` and an entry of `grader_models`. Raises StoreError for a run that nobody
    knows, UserError for one without holdout rollouts and for what cannot be compared.
    """
    async with job.running():
        _check(job, {"runs": list(runs), "best_of": best_of_k, "verifier": verifier})
        found = [
            _arms_of_run(job.home, named, alone=len(runs) == 1, teaches=verifier == LEARNED)
            for named in runs
        ]
        arms = [arm for of_run, _ in found for arm in of_run]
        notes = [note for _, of_run in found for note in of_run]
        notes += _changed_files(job.home, runs)
        k = best_of_k or RELIABLE
        sources = [arm for arm in arms if samples(arm) >= k]
        if not sources and (best_of_k or verifier != GRADER):
            most = max(map(samples, arms), default=0)
            raise UserError(
                f"best of {k} needs {k} rollouts per task, and the most are {most}; measure the best "
                f"spec with methods.evaluation.samples_per_task = {k}"
            )
        choices = [best_of(arm, k) for arm in sources]
        if verifier != GRADER:
            said = await _verdicts(job, project, runs, sources, verifier, open_model)
            for arm, verdicts in zip(sources, said.verdicts, strict=True):
                chosen = best_of(arm, k, verifier, verdicts=verdicts, training=said.training)
                choices.append(chosen)
            notes += said.notes
        compared = compare(
            [*arms, *choices],
            pass_threshold=_config(job.home, _run_id(runs[0])).pass_threshold,
            prices=project.config.prices,
            reference=reference,
        )
        job.note_result(answer=compared.answer)
    return replace(compared, notes=(*compared.notes, *notes))


def write_comparison(compared: Comparison, folder: Path, title: str) -> Path:
    """Write `comparison.html`, `.json` and `.md` into a folder, made if missing; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    body = (
        f'<h1>{escape(title)}</h1><p class="outcome">{escape(compared.answer)}</p>'
        + comparison_table(compared)
    )
    page = folder / "comparison.html"
    page.write_text(document(f"{title} - AgentRFT comparison", body, ()), encoding="utf-8")
    text = json.dumps(finite(asdict(compared)), indent=2, allow_nan=False)
    (folder / "comparison.json").write_text(text + "\n", encoding="utf-8")
    (folder / "comparison.md").write_text(markdown(compared), encoding="utf-8")
    return page


def _check(job: Job, asked: Mapping[str, Any]) -> None:
    name = asked["verifier"]
    if name not in (GRADER, LEARNED) and not name.startswith(JUDGE):
        raise ConfigError(f"no verifier {name!r}; use {GRADER}, {LEARNED} or {JUDGE}NAME")
    if job.run.result.get("asked", asked) != asked:
        raise ConfigError(
            f"comparison {job.run.id} was begun with {job.run.result['asked']}; repeat these, or "
            "start a new one without --resume"
        )
    job.note_result(asked=asked)


async def _verdicts(
    job: Job,
    project: Project,
    runs: Sequence[str],
    sources: Sequence[Arm],
    verifier: str,
    open_model: OpenModel | None,
) -> Verdicts:
    """Let a verifier speak on all that is chosen from."""
    if verifier != LEARNED:
        return await judged(job, project, verifier.removeprefix(JUDGE), sources)
    opened = open_model or partial(served_model, job=job)
    with opened(project, job.home, trained=True) as model:
        return await verified(job, model, _teaching(job.home, runs), sources)


def _teaching(home: Home, runs: Sequence[str]) -> list[RolloutRecord]:
    """Read what the runs, their stages and the trainings of their weights rolled out on train tasks."""
    sources: dict[str, None] = {}
    for named in runs:
        run = _root(home, _run_id(named))
        led_to = _lineage(home, run.result.get("checkpoint", ""))
        sources |= dict.fromkeys(
            (*rollout_runs(opened_run(home, run.id)), *(job.run.id for job in led_to))
        )
    lines = listed_rollouts(home.store, [*sources])
    return [
        home.store.trajectory(line.record_id)
        for line in lines
        if line.split == "train" and line.score is not None
    ]


def _arms_of_run(
    home: Home, named: str, *, alone: bool, teaches: bool
) -> tuple[list[Arm], list[str]]:
    """Return a run's policies with notes on them, named after the run unless it stands alone.

    Where a verifier is taught, a run may bring nothing but rollouts on train tasks.
    """
    label, _, _ = named.rpartition("=")
    run = _root(home, _run_id(named))
    arms, notes = _measured(home, run)
    if not arms:
        if teaches and home.store.trajectories(run.id, split="train", limit=1).items:
            return [], []
        raise UserError(
            f"run {run.id} has no rollouts on the holdout; measure what it left with "
            "`agentrft evaluate PROJECT [--checkpoint FOLDER]` and compare that run"
        )
    grader = _grader(home, run)
    prefix = label or ("" if alone else run.id)
    return [
        replace(arm, name=_name(prefix, arm.name, single=len(arms) == 1), grader=grader)
        for arm in arms
    ], notes


def _name(prefix: str, name: str, *, single: bool) -> str:
    if not prefix:
        return name
    return prefix if single else f"{prefix} {name}"


def _measured(home: Home, run: Run) -> tuple[list[Arm], list[str]]:
    match run.method:
        case Method.IMPROVE:
            return arms_of(rebuilt(home, run.id).given), []
        case Method.REBASE:
            return rebased_arms(opened_run(home, run.id)), []
        case Method.OPTIMIZE:
            job = opened_run(home, run.id)
            config = load_config(ProjectConfig, run.config, run.id)
            report, _ = search_report(job, config, kept_summary(job))
            return arms_of(report.given), []
        case Method.EVALUATION:
            return _evaluated(home, run)
        case _:
            return [], []


def _evaluated(home: Home, run: Run) -> tuple[list[Arm], list[str]]:
    records = [
        record
        for record in opened_run(home, run.id).read_all(RolloutRecord)
        if record.split == "holdout"
    ]
    if not records:
        return [], []
    checkpoint = str(run.result.get("checkpoint", ""))
    lineage = _lineage(home, checkpoint)
    known = bool(lineage) and not lineage[-1].run.result.get("start")
    trained = bool(checkpoint)
    notes = [f"What training {run.id} took is not known here in full."] * (trained and not known)
    took = _searched(home, run, records[0].graded.trajectory.spec_hash, lineage)
    for job in lineage:
        # In full: which of its checkpoints is the one to take was not known before its end.
        rollouts, steps = job.read_all(RolloutRecord), job.read_all(StepMetrics)
        took += spent_on_training(rollouts, steps, seconds=job.seconds)
    return [Arm(name=records[0].stage, records=records, training=took, trained=trained)], notes


def _searched(home: Home, run: Run, spec: str, lineage: Sequence[Job]) -> Spending:
    """Return what the searches took that found the spec, or came before the trainings; each once."""
    climbs = {job.run.parent_id for job in lineage if job.run.parent_id}
    took, promoted = Spending(), False
    for other in reversed([*runs_beside(opened_run(home, run.id))]):
        if other.method is not Method.OPTIMIZE or other.status is not RunStatus.SUCCEEDED:
            continue
        found = bool(other.result.get("promoted")) and other.result.get("spec") == spec
        # The first that found a spec is the one that it came from.
        if other.parent_id in climbs or (found and not promoted):
            took += spent_on_search(kept_summary(opened_run(home, other.id)))
        promoted = promoted or found
    return took


def _lineage(home: Home, checkpoint: str) -> list[Job]:
    """Return the trainings that led to a checkpoint, last first."""
    run = home.store.find_run(Path(checkpoint).parent.parent.name) if checkpoint else None
    if run is None:
        return []
    return [opened_run(home, run.id), *_lineage(home, str(run.result.get("start", "")))]


def _changed_files(home: Home, runs: Sequence[str]) -> Iterator[str]:
    """Say which files that tasks and grades come from changed between the runs."""
    roots = dict.fromkeys(_run_id(named).partition(".")[0] for named in runs)
    noted = {run_id: home.store.run(run_id).result.get(FILES, {}) for run_id in roots}
    for what in ("holdout", "environment", "grader"):
        known = {run_id: files[what] for run_id, files in noted.items() if what in files}
        if len({file["sha256"] for file in known.values()}) > 1:
            name = next(iter(known.values()))["name"]
            yield (
                f"{name} ({what}) changed between {' and '.join(known)}, so these may have been graded "
                "otherwise; measure again what was measured before the change."
            )


def _root(home: Home, run_id: str) -> Run:
    """Return a run, or the one that a training was a stage of."""
    run = home.store.run(run_id)
    return home.store.run(run.parent_id) if run.method in TRAINING and run.parent_id else run


def _run_id(named: str) -> str:
    return named.rpartition("=")[2]


def _config(home: Home, run_id: str) -> ProjectConfig:
    return load_config(ProjectConfig, home.store.run(run_id).config, run_id)


def _grader(home: Home, run: Run) -> str:
    config = _config(home, run.id)
    told: Mapping[str, Any] = {
        "grader": config.grader,
        "reward": asdict(config.reward),
        "pass_threshold": config.pass_threshold,
    }
    return json.dumps(told, sort_keys=True)
