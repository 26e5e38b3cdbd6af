"""What another grader says of stored rollouts: the numbers, and the tables a person reads."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from agentrft.measure.ranks import GroupChange


@dataclass(frozen=True, slots=True, kw_only=True)
class StageChange:
    """Old and new scores of one stage on one split."""

    stage: str
    split: str
    rollouts: int
    graded_before: int
    graded_after: int
    changed: int
    """Of those graded before and after."""
    mean_before: float | None
    """Over the same; None if there are none."""
    mean_after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A rollout whose score changed much."""

    trajectory_id: str
    task_id: str
    stage: str
    split: str
    step: int
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrading:
    """What another grader says of the rollouts of a run."""

    run_id: str
    source_id: str
    grader: str
    stages: tuple[StageChange, ...]
    compared: int
    """Rollouts graded before and after; ranks and means are over these."""
    changed: int
    tau_b: float | None
    spearman: float | None
    groups: GroupChange
    """Inside the groups of one task at one step, the only differences that a gradient sees."""
    moved: tuple[Moved, ...]
    errors: Mapping[str, int]
    """New grades with a failure, by family."""


def terminal(result: Regrading) -> Group:
    """Return the tables for a terminal."""
    stages = _table(
        "Scores, old and new", ("stage", "split", "rollouts", "graded", "old", "new", "changed")
    )
    for stage in result.stages:
        stages.add_row(
            stage.stage,
            stage.split,
            str(stage.rollouts),
            f"{stage.graded_before} -> {stage.graded_after}",
            _number(stage.mean_before),
            _number(stage.mean_after),
            str(stage.changed),
        )
    moved = _table("Moved most", ("trajectory", "task", "stage", "step", "old", "new"))
    for one in result.moved:
        moved.add_row(
            one.trajectory_id,
            one.task_id,
            one.stage,
            str(one.step),
            f"{one.before:.3f}",
            f"{one.after:.3f}",
        )
    return Group(stages, *([moved] if result.moved else []), Text("\n".join(_lines(result))))


def _lines(result: Regrading) -> list[str]:
    groups = result.groups
    everything = (
        f"{result.changed} of {result.compared} scores changed; ranks of all: "
        f"tau-b {_number(result.tau_b)}, Spearman {_number(result.spearman)}"
    )
    inside = (
        f"inside {groups.groups} groups: tau-b {_number(groups.tau_b)}, "
        f"Spearman {_number(groups.spearman)}; {groups.reordered} reordered, "
        f"{groups.sign_flips} of {groups.members} advantages change sign, groups with spread "
        f"{groups.spread_before} -> {groups.spread_after}"
    )
    errors = ", ".join(f"{count} {family}" for family, count in sorted(result.errors.items()))
    return [everything, inside, *([f"failures: {errors}"] if errors else [])]


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
