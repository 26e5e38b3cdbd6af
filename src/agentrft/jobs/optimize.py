"""The search before weights as a job: its folder holds the chosen spec and all that led to it.

spec/                the chosen spec as files, as they go into the project
specs/<hash>.json    every spec that was rolled out
ledger.jsonl         every rollout
summary.json         what reports show
demonstrations.jsonl solved rollouts of feedback tasks, for training
"""

import hashlib
from asyncio import Event
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import ConfigError, UserError
from agentrft.core.run import Method, RolloutRecord
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Demonstration, Message, Task, ToolSpec
from agentrft.inference.grader_model import GraderModel, GradingRequest
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import stored_summaries
from agentrft.jobs.holdout import holdout_looks
from agentrft.jobs.ledger import Ledger
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import SPEC_FOLDER, Project, plain_spec
from agentrft.jobs.serving import OpenModel, ServedModel, served_model
from agentrft.jobs.trials import StoredTrials, keep_spec, spec_path
from agentrft.measure.report import Report, ReportInput, StageResult, build_report, write_report
from agentrft.measure.search_summary import SearchSummary
from agentrft.measure.summary import HOLDOUT_LOOKS
from agentrft.optimize.gepa_proposer import GepaProposer
from agentrft.optimize.problem import Found, Problem, Proposer
from agentrft.optimize.proposers import PROPOSERS
from agentrft.optimize.search import search
from agentrft.optimize.splits import prepare
from agentrft.store.codec import from_json, load_config, to_json
from agentrft.store.home import Home
from agentrft.store.spec_files import demonstration_rows, read_pool, write_spec

SUMMARY, DEMONSTRATIONS = "summary.json", "demonstrations.jsonl"
STAGE = "search"
"""Name of the search as a stage of an improvement."""


async def optimize(
    job: Job,
    project: Project,
    *,
    open_model: OpenModel | None = None,
    proposers: Sequence[Proposer] = PROPOSERS,
) -> Found:
    """Search for a better spec with the project's untouched model, and write the run's report."""
    async with job.running():
        opened = open_model or partial(served_model, job=job)
        with opened(project, job.home, trained=False) as model:
            found = await search_spec(job, model, proposers=proposers)
        report, folder = search_report(job, project.config, found.summary)
        write_report(report, folder)
        job.note_result(report=str(folder))
    return found


async def search_spec(
    job: Job, model: ServedModel, *, proposers: Sequence[Proposer] = PROPOSERS
) -> Found:
    """Search with a model that is open, from its project's spec, and keep what comes of it.

    Raises ConfigError if the project's spec is not the one that an interrupted run began with.
    """
    project, config = model.project, model.project.config.methods.optimize
    _check_baseline(job, project.spec)
    prepared = prepare(
        project.tasks("train"),
        project.tasks("validation") if project.validation_rows == "validation" else (),
        project.tasks("holdout"),
        project.demonstrations(),
        seed=job.run.seed,
    )
    problem = Problem(
        baseline=project.spec,
        splits=prepared.splits,
        tools=_tools(project, prepared.splits.feedback),
        pass_threshold=project.config.pass_threshold,
        demonstrations=prepared.demonstrations,
        endpoint=project.config.endpoint is not None,
    )
    trials = StoredTrials(
        job,
        model.setup(),
        rollouts=config.rollouts,
        minutes=config.minutes,
        concurrency=model.concurrency,
    )
    everyone = (*proposers, *reflection(project, trials.ledger))
    found = await search(
        problem, trials, everyone, config, seed=job.run.seed, told=partial(job.event)
    )
    found = _noted(job, found, prepared.notes)
    keep(job.folder, found, project)
    job.note_result(spec=found.chosen.hash, promoted=found.summary.promoted)
    return found


def reflection(project: Project, ledger: Ledger) -> tuple[Proposer, ...]:
    """Return GEPA if the project names a reflection model. Raises ConfigError if nobody knows it."""
    config = project.config.methods.optimize
    name = config.reflection_model
    if not name:
        return ()
    if name not in project.backends.models:
        known = ", ".join(sorted(project.backends.models)) or "none"
        raise ConfigError(
            f"methods.optimize.reflection_model is {name!r}; grader_models has: {known}"
        )
    asked = _KeptReflection(name, project.backends.models[name], ledger)
    return (GepaProposer(reflect=asked, rollouts=config.reflection_rollouts),)


class _KeptReflection:
    """A reflection model whose answers stay with the run: a resumed search goes the same way."""

    def __init__(self, name: str, model: GraderModel, ledger: Ledger) -> None:
        self._name, self._model, self._ledger = name, model, ledger
        self._asked: Counter[str] = Counter()

    async def __call__(self, prompt: str) -> str:
        """Answer. Raises GraderError if the model cannot be reached."""
        question = hashlib.sha256(prompt.encode(errors="replace")).hexdigest()[:16]
        number = self._asked[question]
        self._asked[question] += 1
        kept = self._ledger.completion(question, number)
        if kept is not None:
            return kept
        message = Message(role="user", content=prompt)
        key = f"{question}-{number}"
        reply = await self._model.ask(GradingRequest(messages=(message,), key=key))
        self._ledger.ask(question, number, reply.text, usage=reply.usage, model=self._name)
        return reply.text


def keep(folder: Path, found: Found, project: Project) -> None:
    """Write what a search found into its run's folder."""
    for spec in (project.spec, found.chosen):
        keep_spec(folder, spec)
    write_spec(folder / SPEC_FOLDER, found.chosen, plain_spec(project.folder, project.config))
    (folder / DEMONSTRATIONS).write_text(demonstration_rows(found.demonstrations), encoding="utf-8")
    (folder / SUMMARY).write_bytes(to_json(found.summary))


def found_again(job: Job) -> Found:
    """Read back what a search that is done found. Raises UserError if it is not done."""
    summary = kept_summary(job)
    return Found(
        chosen=kept_spec(job.folder, summary.chosen_hash),
        summary=summary,
        demonstrations=read_pool(job.folder / DEMONSTRATIONS),
    )


def kept_summary(job: Job) -> SearchSummary:
    """Return the summary of a search. Raises UserError if it is not done."""
    path = job.folder / SUMMARY
    if not path.is_file():
        raise UserError(
            f"run {job.run.id} has found nothing yet; continue it with "
            "`agentrft optimize PROJECT --resume`"
        )
    return from_json(SearchSummary, path.read_bytes())


def kept_spec(folder: Path, name: str) -> AgentSpec:
    """Return the spec of this hash that a run rolled out."""
    return from_json(AgentSpec, spec_path(folder, name).read_bytes())


def search_report(job: Job, config: ProjectConfig, summary: SearchSummary) -> tuple[Report, Path]:
    """Return the report of a search with the folder it belongs into."""
    given = replace(
        run_report(job, config, _stages(job, summary)),
        holdout_looks=summary.holdout_looks,
        search=summary,
        search_examples=search_examples(job, summary),
    )
    return build_report(given), job.home.report(job.run.id)


def run_report(job: Job, config: ProjectConfig, stages: Sequence[StageResult]) -> ReportInput:
    """Return what the report of a run says of it, whatever its method."""
    return ReportInput(
        project=config.name,
        model=config.agent_model,
        run_id=job.run.id,
        seeds=(job.run.seed,),
        config=job.run.config,
        pass_threshold=config.pass_threshold,
        created_at=job.run.created_at,
        stages=tuple(stages),
    )


def search_report_again(home: Home, run_id: str) -> tuple[Report, Path]:
    """Rebuild and write the report of a search that is done. Raises UserError if it is not."""
    job = opened_run(home, run_id)
    config = load_config(ProjectConfig, job.run.config, job.run.id)
    report, folder = search_report(job, config, kept_summary(job))
    write_report(report, folder)
    return report, folder


def search_examples(job: Job, summary: SearchSummary) -> tuple[RolloutRecord, ...]:
    """Return the rollouts that a summary shows as examples."""
    entries = (*summary.mix_before, *summary.mix_after)
    return tuple(rollouts_of(job, {entry.example for entry in entries if entry.example}).values())


def opened_run(home: Home, run_id: str) -> Job:
    """Return a run to read from. Raises StoreError if there is none of this id."""
    return Job(home=home, run=home.store.run(run_id), progress=SilentProgress(), stop=Event())


def searched(job: Job) -> Job:
    """Return the run that searched: this one, or the stage of an improvement that did."""
    if job.run.method is not Method.IMPROVE:
        return job
    return replace(job, run=job.home.store.run(job.child_id(STAGE)))


def rollouts_of(job: Job, wanted: set[str]) -> dict[str, RolloutRecord]:
    """Read rollouts of a run by trajectory id; those it has not stored are left out."""
    return {
        line.trajectory_id: job.home.store.trajectory(line.record_id)
        for line in stored_summaries(job)
        if line.trajectory_id in wanted
    }


def _stages(job: Job, summary: SearchSummary) -> tuple[StageResult, ...]:
    """Return the confirmation as stages: the baseline, and the finalist that came first."""
    if not summary.confirmations:
        return ()
    finalist = next(
        (one for one in summary.confirmations if one.spec_hash == summary.chosen_hash),
        summary.confirmations[0],
    )
    names = {summary.baseline_hash: "baseline", finalist.spec_hash: finalist.verdict}
    records: dict[str, list[RolloutRecord]] = {name: [] for name in names}
    for line in stored_summaries(job, split="holdout"):
        record = job.home.store.trajectory(line.record_id)
        records.get(record.graded.trajectory.spec_hash, []).append(record)
    return tuple(StageResult(name=names[name], records=records[name]) for name in names)


def _check_baseline(job: Job, spec: AgentSpec) -> None:
    began = job.run.result.get("baseline")
    if began not in (None, spec.hash):
        raise ConfigError(
            f"run {job.run.id} began with spec {began}, the project's is {spec.hash} now; restore "
            "it (`agentrft spec diff` shows what a run found), or start a new run without --resume"
        )
    job.note_result(baseline=spec.hash)


def _tools(project: Project, tasks: Sequence[Task]) -> tuple[ToolSpec, ...]:
    """Return the project's tools, or those that its rows bring."""
    of_rows = {tool.name: tool for task in tasks for tool in task.tools}
    return project.tools or tuple(of_rows.values())


def _noted(job: Job, found: Found, notes: Sequence[str]) -> Found:
    """Add what the data told and how often the holdout was looked at."""
    looks = holdout_looks(job)
    told = list(notes)
    if looks > HOLDOUT_LOOKS:
        told.append(f"the holdout has been looked at {looks} times; collect fresh tasks")
        job.event(told[-1], level="warn")
    summary = found.summary
    summary = replace(summary, holdout_looks=looks, notes=(*summary.notes, *told))
    readable = tuple(filter(_fits_a_row, found.demonstrations))
    return replace(found, summary=summary, demonstrations=readable)


def _fits_a_row(demonstration: Demonstration) -> bool:
    try:
        demonstration_rows([demonstration])
    except ConfigError:
        return False
    return True
