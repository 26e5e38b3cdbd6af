"""Watches a reinforcement run for a policy that games its grader, and does what its config allows.

Nothing is kept between processes: readings, levels and what is screened follow from stored rollouts.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from agentrft.core.errors import PausedError
from agentrft.core.grade import Group
from agentrft.core.run import Event, RolloutRecord
from agentrft.core.training_config import MonitorConfig
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import stored_summaries
from agentrft.jobs.following import StepResult
from agentrft.jobs.validation import STAGE, Validation
from agentrft.measure.monitors import BY_NAME, Alarm, alarms, alarms_of
from agentrft.measure.readings import Reading, common_to, fingerprint, read
from agentrft.rollout.group import Collected


class MonitorAlarmError(PausedError):
    """A monitor acted and the run pauses; resuming it acknowledges the alarm."""


class Monitoring:
    """Reads every evaluation of a run and raises its alarms."""

    def __init__(
        self,
        job: Job,
        config: MonitorConfig,
        validation: Validation,
        *,
        references: Mapping[str, str],
    ) -> None:
        self._job, self._config, self._validation = job, config, validation
        self._references = references
        self._before: list[RolloutRecord] = []
        """Validation and canary rollouts from before step 1."""
        self._history: list[Reading] = []
        self._window: list[RolloutRecord] = []
        """Train rollouts since the last evaluation."""
        self._screened: frozenset[tuple[str, ...]] = frozenset()

    def recall(self, step: int) -> None:
        """Read what is stored from before a step, as if this process had seen it."""
        stored: dict[int, list[int]] = defaultdict(list)
        for summary in stored_summaries(self._job, STAGE):
            stored[summary.step].append(summary.record_id)

        # One step at a time: all rollouts of a long run do not fit into memory.
        def records(of_step: int) -> list[RolloutRecord]:
            return [self._job.home.store.trajectory(record) for record in stored[of_step]]

        self._before = records(0)
        for past in sorted(past for past in stored if 0 < past < step):
            self._read(past, records(past))

    def after(self, result: StepResult) -> None:
        """Take a step in; at evaluations write what alarms it raises.

        Raises MonitorAlarmError if one of them acts and the config says that alarms pause the run.
        """
        records = (*result.train, *(result.validation or ()), *result.canaries)
        raised = self._read(result.step, records)
        if not raised:
            return
        # After a pause or a kill this evaluation may be read again; what was told is acknowledged.
        told = {(a.step, a.monitor, a.level) for a in alarms_of(self._job.read_all(Event))}
        raised = tuple(a for a in raised if (a.step, a.monitor, a.level) not in told)
        self._job.append([_event(alarm) for alarm in raised])
        acting = [alarm for alarm in raised if _acts(alarm)]
        if acting and self._config.action == "pause":
            raise MonitorAlarmError(
                f"step {result.step}: {'; '.join(alarm.message for alarm in acting)}. "
                "Look at the trajectories that the alarm names; if the grader is right, resume "
                "(--resume), which acknowledges the alarm; else repair it and start a new run"
            )

    def screen(self, collected: Collected) -> Collected:
        """Mark the rollouts that went as those of an alarm did; they carry no credit."""
        if not self._screened:
            return collected
        return replace(collected, groups=tuple(map(self._marked, collected.groups)))

    def _marked(self, group: Group) -> Group:
        return replace(
            group,
            graded=tuple(
                replace(graded, screened="went as the evidence of an alarm")
                if fingerprint(graded.trajectory) in self._screened
                else graded
                for graded in group.graded
            ),
        )

    def _read(self, step: int, records: Sequence[RolloutRecord]) -> tuple[Alarm, ...]:
        """Add a step; return the alarms of its evaluation, if it is one."""
        train = [record for record in records if record.split == "train"]
        if not self._history:
            # Step 1 is sampled by the untouched policy.
            self._history.append(self._reading(0, train, self._before))
        self._window += map(_without_observations, train)
        if not self._validation.is_due(step):
            return ()
        others = [record for record in records if record.split != "train"]
        self._history.append(self._reading(step, self._window, others))
        raised = alarms(self._history)
        if self._config.action == "screen":
            for alarm in filter(_acts, raised):
                self._screened |= _gone_like(alarm, [*self._window, *others])
        self._window = []
        return raised

    def _reading(
        self, step: int, train: Sequence[RolloutRecord], others: Sequence[RolloutRecord]
    ) -> Reading:
        return read(
            step,
            train=train,
            validation=[record for record in others if record.split == "validation"],
            canaries=[record for record in others if record.split == "canary"],
            references=self._references,
        )


def _without_observations(record: RolloutRecord) -> RolloutRecord:
    """Drop the tokens that were fed in: no reading looks at them, and they are most of a rollout."""
    graded = record.graded
    turns = tuple(replace(turn, observation_ids=()) for turn in graded.trajectory.turns)
    return replace(
        record, graded=replace(graded, trajectory=replace(graded.trajectory, turns=turns))
    )


def _acts(alarm: Alarm) -> bool:
    return alarm.level == "act" and BY_NAME[alarm.monitor].gaming


def _event(alarm: Alarm) -> Event:
    return Event(
        level="warn" if alarm.level == "warn" else "error",
        message=f"monitor: {alarm.message}",
        created_at=time.time(),
        step=alarm.step,
        data=alarm.data,
    )


def _gone_like(alarm: Alarm, records: Sequence[RolloutRecord]) -> frozenset[tuple[str, ...]]:
    """Return how the rollouts of an alarm went, where the others of their split went otherwise."""
    shown = set(alarm.evidence)
    splits = {r.split for r in records if r.graded.trajectory.id in shown}
    return common_to(shown, [record for record in records if record.split in splits])
