"""Verifiers that choose among rollouts without the grader: a model that judges, and the project's own
base model taught on graded train rollouts to say whether a transcript solved its task.

Neither sees a grade or a reference of the holdout.
"""

import math
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from agentrft.core.errors import GraderError, UserError
from agentrft.core.grade import Grade, Outcome
from agentrft.core.protocols import Sampler
from agentrft.core.run import Method, RolloutRecord, StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Message, Task
from agentrft.core.training_config import SupervisedConfig
from agentrft.core.trajectory import Trajectory
from agentrft.core.usage import TokenUsage
from agentrft.graders.build import build_grader
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, stored_records
from agentrft.jobs.project import Project
from agentrft.jobs.reinforcement import serving
from agentrft.jobs.serving import DemonstrationRenderer, ServedModel
from agentrft.jobs.supervised import learn
from agentrft.measure.arms import Arm, RolloutKey, Spending, rollout_key, spent_on_training
from agentrft.measure.statistics import Estimate, rate
from agentrft.measure.summary import score_of
from agentrft.rollout.episode import grade_rollout, in_order
from agentrft.store.codec import from_json, to_json
from agentrft.training.credit import imitation

LEARNED, JUDGE = "learned", "judge:"
QUESTION = "Did the assistant do what was asked, completely and correctly? Answer yes or no."
JUDGE_RULES = (
    "You check the work of an assistant that uses tools. You read one transcript and say how likely "
    "it is that the assistant did what was asked, completely and correctly, by the rules it was given."
)
LEAST = 16
"""Solved and failed rollouts, each, below which nothing is taught."""
MOST = 256
"""Of each that are learned from."""
EPOCHS, BATCH = 2, 16
HELD_OUT = 4
"""Every so many train tasks one is kept out of learning, to see whether it was any use."""
PAGE = 32
"""Rollouts judged together and stored in one transaction."""
TOGETHER = 8
"""Rollouts whose answers are scored in one call."""
Judge = Callable[[Sequence[Trajectory]], Coroutine[Any, Any, list[Grade]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """`verifier.json`: what a taught verifier took and how well it ranks."""

    solved: int
    """Rollouts it learned from."""
    failed: int
    training: Spending
    auc: Estimate | None
    """Chance that it ranks a solved rollout above a failed one of the same held-out train task, a tie
    counting half; None if no such task has both."""
    auc_tasks: int

    @property
    def note(self) -> str:
        """What a reader must know of it."""
        if self.auc is None:
            return "The learned verifier: no held-out train task has both outcomes to rank."
        return (
            f"The learned verifier, taught on {self.solved} solved and {self.failed} failed rollouts, "
            f"ranks a solved rollout above a failed one of the same task in {self.auc.value:.0%} of "
            f"cases (95% interval {self.auc.low:.0%} to {self.auc.high:.0%}, {self.auc_tasks} held-out "
            "train tasks; 50% is chance)."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What a verifier says of several policies' rollouts."""

    verdicts: tuple[Mapping[RolloutKey, Grade], ...]
    """For each policy."""
    training: Spending = field(default_factory=Spending)
    """What the verifier took before it could say anything."""
    notes: tuple[str, ...] = ()


async def judged(job: Job, project: Project, name: str, arms: Sequence[Arm]) -> Verdicts:
    """Return the word of a judge on each rollout of the arms.

    What an interrupted run stored is not asked again. Raises ConfigError for a model that is no
    entry of `grader_models`, GraderError if it said nothing of most rollouts.
    """
    said = {
        "type": "score_model",
        "name": JUDGE + name,
        "model": name,
        "input": [
            {"role": "system", "content": JUDGE_RULES},
            {"role": "user", "content": "{{ item.transcript }}"},
        ],
    }
    grader = build_grader(said, "judge", backends=project.backends)

    async def judge(page: Sequence[Trajectory]) -> list[Grade]:
        # The row holds the transcript and nothing else: no reference can reach the judge.
        rows = [Task(id=t.task_id, messages=(), row={"transcript": transcript(t)}) for t in page]
        pairs = zip(rows, page, strict=True)
        return await in_order([grade_rollout(grader, row, made, None) for row, made in pairs])

    verdicts = job.child("judged", Method.REGRADE)
    if not verdicts.is_done:
        async with verdicts.running():
            await _each(verdicts, arms, judge)
            _unsaid(verdicts, arms, JUDGE + name)
    return Verdicts(
        verdicts=tuple(_kept(verdicts, arm) for arm in arms),
        notes=_unsaid(verdicts, arms, JUDGE + name),
    )


async def verified(
    job: Job, model: ServedModel, teaching: Sequence[RolloutRecord], arms: Sequence[Arm]
) -> Verdicts:
    """Teach the project's base model on graded train rollouts, and let it speak on the arms'.

    Raises UserError if too few of them are solved, or failed.
    """
    child = job.child("verifier", Method.SUPERVISED)
    verdicts = job.child("verified", Method.REGRADE)
    threshold = model.project.config.pass_threshold
    fitted, held_out = split(_of_train(teaching, arms), seed=job.run.seed)
    chosen = balanced(fitted, threshold, seed=job.run.seed)
    if not (child.is_done and verdicts.is_done):
        await _taught(child, model, chosen, threshold)
        await serving(child, model, Path(child.checkpoint().path))
    limit = model.project.spec.limits.max_context_tokens

    async def verify(page: Sequence[Trajectory]) -> list[Grade]:
        return await _scores(model.sampler, model.renderer, page, limit)

    if not verdicts.is_done:
        async with verdicts.running():
            await _each(verdicts, arms, verify)
            ranked = await verify([record.graded.trajectory for record in held_out])
            learned = _learned(child, chosen, held_out, ranked, threshold)
            (job.folder / "verifier.json").write_bytes(to_json(learned))
    learned = from_json(Learned, (job.folder / "verifier.json").read_bytes())
    return Verdicts(
        verdicts=tuple(_kept(verdicts, arm) for arm in arms),
        training=learned.training,
        notes=(learned.note,),
    )


async def _each(job: Job, arms: Sequence[Arm], judge: Judge) -> None:
    """Store a verdict on every graded rollout of every arm, under the arm's name."""
    missing: list[RolloutRecord] = []
    for arm in arms:
        known = [key for key, grade in _kept(job, arm).items() if not grade.failure]
        missing += [
            replace(record, stage=arm.name, split="holdout", step=0)
            for record in arm.records
            if record.graded.outcome is not Outcome.INFRASTRUCTURE_FAULT
            and rollout_key(record.graded.trajectory) not in known
        ]
    with job.progress.phase(f"verdicts of {job.run.id}", max(1, len(missing))) as phase:
        for place in range(0, len(missing), PAGE):
            page = missing[place : place + PAGE]
            # The judge is handed what was done, never how it was graded.
            grades = await job.unless_stopped(judge([one.graded.trajectory for one in page]))
            pairs = zip(page, grades, strict=True)
            job.append(
                [replace(one, graded=replace(one.graded, grade=grade)) for one, grade in pairs]
            )
            phase.advance(len(page))


def _unsaid(job: Job, arms: Sequence[Arm], name: str) -> tuple[str, ...]:
    """Return a note on rollouts of which a judge said nothing. Raises GraderError if most are such."""
    kept = {key: grade for arm in arms for key, grade in _kept(job, arm).items()}
    failures = [grade.failure for grade in kept.values() if grade.failure]
    if not failures:
        return ()
    told = f"{name} said nothing of {len(failures)} of {len(kept)} rollouts ({failures[0].message})"
    if 2 * len(failures) > len(kept):
        raise GraderError(f"{told}; mend that, and --resume asks for these again")
    return (f"{told}; these are chosen last.",)


def _kept(job: Job, arm: Arm) -> dict[RolloutKey, Grade]:
    """Return the verdicts that are stored on rollouts of arms of this name."""
    stored = stored_records(job, Measurement(stage=arm.name, split="holdout"))
    return {rollout_key(record.graded.trajectory): record.graded.grade for record in stored}


def split(
    records: Sequence[RolloutRecord], *, seed: int
) -> tuple[list[RolloutRecord], list[RolloutRecord]]:
    """Return rollouts to learn from, and those of tasks that are held out; no task is in both."""
    tasks = sorted({record.graded.trajectory.task_id for record in records})
    random.Random(derive_seed(seed, "verifier", "tasks")).shuffle(tasks)
    held = set(tasks[::HELD_OUT])
    fitted = [r for r in records if r.graded.trajectory.task_id not in held]
    return fitted, [r for r in records if r.graded.trajectory.task_id in held]


def balanced(
    records: Sequence[RolloutRecord], threshold: float, *, seed: int
) -> list[RolloutRecord]:
    """Return as many solved as failed rollouts. Raises UserError if there are too few of either."""
    solved = [record for record in records if score_of(record.graded) >= threshold]
    failed = [record for record in records if score_of(record.graded) < threshold]
    count = min(len(solved), len(failed), MOST)
    if count < LEAST:
        raise UserError(
            f"a verifier learns from at least {LEAST} solved and {LEAST} failed rollouts on train "
            f"tasks, and these runs stored {len(solved)} and {len(failed)} to learn from; add a run "
            "with more of them (`agentrft evaluate PROJECT --split train`), or choose with --verifier "
            "grader or judge:NAME"
        )
    draw = random.Random(derive_seed(seed, "verifier", "rows"))
    return [*draw.sample(solved, count), *draw.sample(failed, count)]


def transcript(trajectory: Trajectory, *, rules: bool = True) -> str:
    """Return a rollout as text: what was asked, said, called and answered; `rules` are system text."""
    lines: list[str] = []
    for message in trajectory.messages:
        if message.role in ("system", "developer") and not rules:
            continue
        calls = [f"{call.name}({call.arguments})" for call in message.tool_calls]
        lines.append("\n".join((f"[{message.role}] {message.content}".rstrip(), *calls)))
    if not trajectory.output_text:
        lines.append(f"[no answer: {trajectory.stop_reason.value}]")
    return "\n".join(lines)


def answers(
    renderer: DemonstrationRenderer, trajectory: Trajectory, limit: int
) -> tuple[Sample, Sample]:
    """Return the question about a rollout with yes and with no, the mask on what differs.

    System text is left out: it is the same for every rollout that is chosen from. What does not fit
    into `limit` tokens loses its beginning.
    """
    text = transcript(trajectory, rules=False)
    while True:
        asked = Message(role="user", content=f"{text}\n\n{QUESTION}")
        yes, no = (
            renderer.demonstration((asked, Message(role="assistant", content=word)), ())[0]
            for word in ("yes", "no")
        )
        if max(len(yes), len(no)) <= limit or not text:
            return _differing(yes, no, trajectory.id), _differing(no, yes, trajectory.id)
        text = text[len(text) // 5 + 1 :]


def _differing(ids: Sequence[int], other: Sequence[int], name: str) -> Sample:
    shorter = min(len(ids), len(other))
    before = _shared(ids, other)
    after = min(_shared(ids[::-1], other[::-1]), shorter - before - 1)
    mask = [before <= place < len(ids) - after for place in range(len(ids))]
    return imitation(ids, mask, name)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


async def _scores(
    sampler: Sampler, renderer: DemonstrationRenderer, page: Sequence[Trajectory], limit: int
) -> list[Grade]:
    """Return log p(yes) - log p(no) of each rollout, in nats."""
    grades: list[Grade] = []
    for place in range(0, len(page), TOGETHER):
        few = page[place : place + TOGETHER]
        asked = [sample for made in few for sample in answers(renderer, made, limit)]
        rows = await sampler.score([sample.token_ids for sample in asked])
        logprobs = [
            sum(value for value, own in zip(row, sample.action_mask[1:], strict=True) if own)
            for row, sample in zip(rows, asked, strict=True)
        ]
        grades += [
            Grade(
                score=logprobs[yes] - logprobs[yes + 1],
                grader=LEARNED,
                usage={LEARNED: TokenUsage(prompt_tokens=_tokens(asked[yes : yes + 2]))},
            )
            for yes in range(0, len(asked), 2)
        ]
    return grades


def _tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.token_ids) for sample in samples)


async def _taught(
    job: Job, model: ServedModel, chosen: Sequence[RolloutRecord], threshold: float
) -> None:
    if job.is_done:
        return
    own = model.project.config.methods.supervised
    config = SupervisedConfig(
        steps=math.ceil(EPOCHS * len(chosen) / BATCH), batch_size=BATCH, trainer=own.trainer
    )
    limit = model.project.spec.limits.max_context_tokens
    samples: list[Sample] = []
    for record in chosen:
        yes, no = answers(model.renderer, record.graded.trajectory, limit)
        samples.append(yes if score_of(record.graded) >= threshold else no)
    async with job.running():
        trainer = model.resumed_trainer(job, config.trainer, "cross_entropy", None)
        await learn(job, trainer, [(sample,) for sample in samples], config)


def _of_train(records: Sequence[RolloutRecord], arms: Sequence[Arm]) -> list[RolloutRecord]:
    """Keep graded rollouts on train tasks that no arm was measured on, each once."""
    measured = {record.graded.trajectory.task_id for arm in arms for record in arm.records}
    kept = {
        rollout_key(r.graded.trajectory): r
        for r in records
        if r.split == "train"
        and r.graded.outcome is not Outcome.INFRASTRUCTURE_FAULT
        and r.graded.trajectory.task_id not in measured
    }
    return list(kept.values())


def _learned(
    child: Job,
    chosen: Sequence[RolloutRecord],
    held_out: Sequence[RolloutRecord],
    ranked: Sequence[Grade],
    threshold: float,
) -> Learned:
    by_outcome: dict[str, tuple[list[float], list[float]]] = {}
    for record, grade in zip(held_out, ranked, strict=True):
        assert grade.score is not None  # a difference of log-probabilities
        pair = by_outcome.setdefault(record.graded.trajectory.task_id, ([], []))
        pair[score_of(record.graded) >= threshold].append(grade.score)
    rates = {
        task: [ranked_right(solved, failed)]
        for task, (failed, solved) in by_outcome.items()
        if solved and failed
    }
    return Learned(
        solved=len(chosen) // 2,
        failed=len(chosen) // 2,
        training=spent_on_training(chosen, child.read_all(StepMetrics), seconds=child.seconds),
        auc=rate(rates) if rates else None,
        auc_tasks=len(rates),
    )


def ranked_right(solved: Sequence[float], failed: Sequence[float]) -> float:
    """Return the share of pairs whose solved rollout is ranked above, a tie counting half."""
    pairs = [(good > bad) + 0.5 * (good == bad) for good in solved for bad in failed]
    return sum(pairs) / len(pairs)
