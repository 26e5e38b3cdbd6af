"""A spec tested again once weights have changed: what training has learned need not be prompted.

Each change is taken back alone on validation tasks; those that no longer help go, together if that
does no harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agentrft.core.grade import GradedTrajectory
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Method
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Task
from agentrft.jobs.context import Job
from agentrft.jobs.reinforcement import serving
from agentrft.jobs.serving import ServedModel
from agentrft.jobs.trials import StoredTrials, keep_spec, spec_path
from agentrft.measure.search_summary import DropOne, Retest
from agentrft.measure.statistics import Values, paired_difference
from agentrft.optimize.crutches import without, without_one
from agentrft.optimize.trials import TrialRequest, passed
from agentrft.store.codec import from_json, to_json

HARMLESS = 0.02
"""Loss of pass@1 up to which taking several changes back together counts as harmless."""
FILE = "retest.json"


async def retest(
    job: Job, model: ServedModel, stage: str, checkpoint: Checkpoint, baseline: AgentSpec
) -> tuple[AgentSpec, Retest | None]:
    """Return the spec to go on with; None instead of a retest if it is the `baseline`.

    What stands in the baseline is the user's and stays.
    """
    chosen = model.project.spec
    drops = without_one(baseline, chosen)
    if not drops:
        return chosen, None
    child = job.child(f"{stage} spec", Method.OPTIMIZE)
    if child.is_done:
        kept = kept_retest(child)
        return from_json(AgentSpec, spec_path(child.folder, kept.spec_hash).read_bytes()), kept
    async with child.running():
        found, spec = await _tested(child, model, stage, checkpoint, baseline, drops)
        keep_spec(child.folder, spec)
        (child.folder / FILE).write_bytes(to_json(found))
        child.note_result(spec=spec.hash, dropped=list(found.dropped))
    return spec, found


def kept_retest(child: Job) -> Retest:
    """Return what a retest that is done has found."""
    return from_json(Retest, (child.folder / FILE).read_bytes())


async def _tested(
    job: Job,
    model: ServedModel,
    stage: str,
    checkpoint: Checkpoint,
    baseline: AgentSpec,
    drops: Mapping[str, AgentSpec],
) -> tuple[Retest, AgentSpec]:
    project, config = model.project, model.project.config
    tasks = project.tasks(project.validation_rows)[: config.methods.optimize.retest_tasks]
    trials = StoredTrials(
        job,
        await serving(job, model, Path(checkpoint.path)),
        # What it takes is settled above; the infrastructure may spoil some of it.
        rollouts=float("inf"),
        minutes=float("inf"),
        concurrency=model.concurrency,
    )

    async def values(specs: Sequence[AgentSpec]) -> list[Values]:
        wanted = [_request(spec, task) for task in tasks for spec in specs]
        graded = await trials.roll_out(wanted)
        return [
            _values(tasks, graded[place :: len(specs)], config.pass_threshold)
            for place in range(len(specs))
        ]

    def worth(name: str, others: Values) -> DropOne:
        difference = paired_difference(others, whole, seed=job.run.seed)
        return DropOne(knob=name, level="", difference=difference)

    chosen = project.spec
    whole, *others = await values([chosen, *drops.values()])
    worths = tuple(worth(name, values) for name, values in zip(drops, others, strict=True))
    idle = [one for one in worths if one.difference.value <= 0]
    dropped = frozenset(one.knob for one in idle)
    together: DropOne | None = None
    if len(dropped) > 1:
        (rest,) = await values([without(baseline, chosen, dropped)])
        together = worth("all of these", rest)
        if together.difference.value > HARMLESS:
            dropped = frozenset({min(idle, key=lambda one: one.difference.value).knob})
    spec = without(baseline, chosen, dropped)
    job.event(f"after the {stage}, taken back: {', '.join(sorted(dropped)) or 'nothing'}")
    return Retest(
        after=stage,
        tasks=len(tasks),
        drop_one=worths,
        dropped=tuple(sorted(dropped)),
        together=together,
        spec_hash=spec.hash,
    ), spec


def _request(spec: AgentSpec, task: Task) -> TrialRequest:
    return TrialRequest(spec=spec, split="dev", task=task, sample=0, purpose="retest")


def _values(tasks: Sequence[Task], graded: Sequence[GradedTrajectory], threshold: float) -> Values:
    pairs = [(task.id, passed(one, threshold)) for task, one in zip(tasks, graded, strict=True)]
    return {name: [float(solved)] for name, solved in pairs if solved is not None}


def for_training(spec: AgentSpec) -> AgentSpec:
    """Return the spec without its grammar, whose distribution the trainer cannot compute."""
    return replace(spec, decoding=replace(spec.decoding, grammar="off"))
