"""A step's numbers in the words of the fine-tuning API: metrics event, checkpoint, result file.

Pure: records in, plain JSON values out. What nobody measured is null, never a guess.
"""

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.run import RolloutRecord
from agentrft.core.trajectory import Failure, FailureKind, ToolResult
from agentrft.core.usage import TokenUsage

Figures = dict[str, Any]

COMMON_ERRORS = ("sample_parse_error", "invalid_variable_error", "other_error")
ERRORS_OF: Mapping[str, tuple[str, ...]] = {
    "endpoint": ("endpoint_grader_server_error", "endpoint_grader_internal_error"),
    "python": ("python_grader_server_error", "python_grader_runtime_error"),
    "score_model": ("model_grader_server_error", "model_grader_parse_error"),
    "label_model": ("model_grader_server_error", "model_grader_parse_error"),
}
"""Error families that a type of grader always reports; others appear when they happen."""

SUPERVISED_COLUMNS = (
    "step",
    "train_loss",
    "train_mean_token_accuracy",
    "valid_loss",
    "valid_mean_token_accuracy",
    "full_valid_loss",
    "full_valid_mean_token_accuracy",
)
PREFERENCE_FIGURES: Mapping[str, str] = {
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "margin",
    "preferred_reward": "preferred_reward",
    "rejected_reward": "rejected_reward",
    "kl": "kl_to_reference",
    "mean_token_accuracy": "token_accuracy",
}
"""What the trainer calls each of them; all exist as `train_` and as `valid_`."""
PREFERENCE_COLUMNS = (
    "step",
    *(f"train_{name}" for name in PREFERENCE_FIGURES),
    *(f"valid_{name}" for name in PREFERENCE_FIGURES),
)
REINFORCEMENT_COLUMNS = (
    "step",
    "train_mean_reward",
    "full_valid_mean_reward",
    "completion_tokens_mean",
    "reasoning_tokens_mean",
    "mean_unresponsive_rewards",
    "pg_loss_sum",
    "total_loss_sum",
    "entropy_loss_sum",
)
"""First columns of the result file; error counts by grader and by tool follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step's metrics event says."""

    message: str
    data: Mapping[str, Any]


def reinforcement_report(
    values: Mapping[str, float],
    *,
    step: int,
    total_steps: int,
    grader: Mapping[str, Any],
    tools: Sequence[str],
    train: Sequence[RolloutRecord],
    validation: Sequence[RolloutRecord] = (),
) -> StepReport:
    """Report a reinforcement step from its metrics and rollouts, dropped ones included.

    `grader` is the job's grader object, names filled in; `tools` are the names of its tools. Without
    validation its twins are null.
    """
    sides = {
        "train": _Side([record.graded for record in train]),
        "valid": _Side([record.graded for record in validation]),
    }
    train_reward = values.get("reward")
    valid_reward = sides["valid"].score
    graders = _graders(grader)
    top = graders[:1]
    parse_error = sides["valid"].error("sample_parse_error")[0]
    data: Figures = {
        "step": step,
        "total_steps": total_steps,
        "train_mean_reward": train_reward,
        "train_reward_mean": train_reward,
        "full_valid_mean_reward": valid_reward,
        "valid_mean_reward": valid_reward,
        "valid_reward_mean": valid_reward,
        "full_valid_mean_parse_error": parse_error,
        "gold_valid_mean_reward": sides["valid"].gold,
        "reasoning_tokens_mean": None,
        "valid_reasoning_tokens_mean": None,
        "completion_tokens_mean": values.get("sampled_tokens"),
        "valid_completion_tokens_mean": sides["valid"].completion_tokens[0],
        "mean_unresponsive_rewards": 0.0,
        "pg_loss_sum": values.get("loss"),
        "total_loss_sum": values.get("loss"),
        "entropy_loss_sum": 0.0 if "loss" in values else None,
        "scores": {
            "train_reward_mean": train_reward,
            "train_mean_reward": train_reward,
            "valid_reward_mean": valid_reward,
            "valid_mean_reward": valid_reward,
            "graders": [_scores(g, values, sides["valid"]) for g in graders],
        },
        "usage": {
            "graders": [_grader_tokens(g, sides) for g in graders if g.model],
            "samples": _sample_tokens(sides),
        },
        "errors": {"graders": [_errors(g, sides) for g in top]},
        "timing": {
            "step": _timing(values),
            "graders": [_latency(g, sides) for g in top],
        },
        "model_graders_token_usage": {
            model: _model_tokens(model, sides)
            for model in dict.fromkeys(g.model for g in graders if g.model)
        },
        "tools": _tools(tools, sides),
        "dropped": {
            f"{name}_{key}": value
            for name, side in sides.items()
            for key, value in side.dropped.items()
        },
    }
    message = f"Step {step}/{total_steps} , train mean reward={_shown(train_reward)}"
    if validation:
        message += (
            f", full validation mean reward={_shown(valid_reward)}"
            f", full validation mean parse error={_shown(parse_error)}"
        )
    return StepReport(message=message, data=data)


def supervised_report(
    values: Mapping[str, float],
    *,
    step: int,
    total_steps: int,
    full_valid_loss: float | None = None,
    full_valid_mean_token_accuracy: float | None = None,
) -> StepReport:
    """Report a supervised step. A validation always reads the whole file, so both twins agree."""
    data: Figures = {
        "step": step,
        "total_steps": total_steps,
        "train_loss": values.get("loss"),
        "train_mean_token_accuracy": values.get("token_accuracy"),
        "valid_loss": full_valid_loss,
        "valid_mean_token_accuracy": full_valid_mean_token_accuracy,
        "full_valid_loss": full_valid_loss,
        "full_valid_mean_token_accuracy": full_valid_mean_token_accuracy,
        "trained_tokens": values.get("sample_tokens"),
        "learning_rate": values.get("learning_rate"),
        "timing": {"step": {"training": values.get("train_s")}},
    }
    message = f"Step {step}/{total_steps}: training loss={_shown(data['train_loss'])}"
    if full_valid_loss is not None:
        message += f", full validation loss={_shown(full_valid_loss)}"
    return StepReport(message=message, data=data)


def preference_report(values: Mapping[str, float], *, step: int, total_steps: int) -> StepReport:
    """Report a step on pairs. A validation always reads the whole file, so both twins agree."""
    data: Figures = {
        "step": step,
        "total_steps": total_steps,
        **{f"train_{name}": values.get(key) for name, key in PREFERENCE_FIGURES.items()},
        **{
            f"valid_{name}": values.get(f"validation_{key}")
            for name, key in PREFERENCE_FIGURES.items()
        },
        "trained_tokens": values.get("sample_tokens"),
        "learning_rate": values.get("learning_rate"),
        "timing": {"step": {"training": values.get("train_s")}},
    }
    for name in ("loss", "mean_token_accuracy"):
        data[f"full_valid_{name}"] = data[f"valid_{name}"]
    message = (
        f"Step {step}/{total_steps}: training loss={_shown(data['train_loss'])}, "
        f"accuracy={_shown(data['train_accuracy'])}, margin={_shown(data['train_margin'])}"
    )
    if data["valid_loss"] is not None:
        message += (
            f", full validation loss={_shown(data['valid_loss'])}, "
            f"accuracy={_shown(data['valid_accuracy'])}"
        )
    return StepReport(message=message, data=data)


def result_file(
    method: Literal["supervised", "dpo", "reinforcement"], steps: Iterable[Mapping[str, Any]]
) -> bytes:
    """Return the result CSV from the `data` of all metrics events: one line per step, in order.

    A step that was done again after a crash counts with its last event.
    """
    by_step = {data["step"]: data for data in steps}
    ordered = [by_step[step] for step in sorted(by_step)]
    if method != "reinforcement":
        columns = SUPERVISED_COLUMNS if method == "supervised" else PREFERENCE_COLUMNS
        return _csv(columns, [{key: data.get(key) for key in columns} for data in ordered])
    lines = [_reinforcement_line(data) for data in ordered]
    # A rare error family appears late; before that its cells are empty.
    return _csv(list(dict.fromkeys((*REINFORCEMENT_COLUMNS, *itertools.chain(*lines)))), lines)


def _reinforcement_line(data: Mapping[str, Any]) -> Figures:
    line: Figures = {key: data.get(key) for key in REINFORCEMENT_COLUMNS}
    for entry in data["errors"]["graders"]:
        for key, value in entry.items():
            if key.startswith("train_") and key.endswith("_count"):
                line[f"errors/graders/{entry['name']}/{key}"] = value
    for tool in data["tools"]["tools"]:
        line[f"train_error_count_{tool['name']}"] = tool["train_error_count"]
    return line


def _csv(header: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()


@dataclass(frozen=True, slots=True)
class _Grader:
    """A grader as the report names it; `part` is its key within a multi grader, else empty."""

    name: str
    type: str
    part: str = ""
    model: str = ""


def _graders(config: Mapping[str, Any]) -> list[_Grader]:
    """Return the job's grader, then the parts of a multi grader."""
    name, model = str(config.get("name", "grader")), str(config.get("model", ""))
    graders = [_Grader(name, str(config["type"]), model=model)]
    parts = cast(Mapping[str, Mapping[str, Any]], config.get("graders") or {})
    for key, part in parts.items():
        name, model = str(part.get("name", key)), str(part.get("model", ""))
        graders.append(_Grader(name, str(part["type"]), key, model))
    return graders


class _Side:
    """The rollouts of one split at one step."""

    def __init__(self, rollouts: Sequence[GradedTrajectory]) -> None:
        self.rollouts = rollouts
        self.survivors = [r for r in rollouts if r.outcome is not Outcome.INFRASTRUCTURE_FAULT]
        self.tried = [
            r
            for r in rollouts
            if r.grade.score is not None or _kind(r.grade.failure) is FailureKind.GRADER
        ]
        """Those that a grader looked at."""

    @property
    def score(self) -> float | None:
        return _mean([r.grade.score for r in self.survivors if r.grade.score is not None])

    @property
    def gold(self) -> float | None:
        """Mean of the held-out grader, where it looked."""
        golds = [r.gold.score for r in self.rollouts if r.gold is not None]
        return _mean([score for score in golds if score is not None])

    def part(self, name: str) -> float | None:
        return _mean([r.grade.parts[name] for r in self.survivors if name in r.grade.parts])

    @property
    def completion_tokens(self) -> tuple[float | None, float | None]:
        """Mean per surviving rollout, and sum."""
        tokens = [float(r.trajectory.sampled_tokens) for r in self.survivors]
        return _mean(tokens), self.count(sum(tokens))

    def count(self, number: float) -> float | None:
        """Return a count of something in these rollouts; None if there are none to count in."""
        return float(number) if self.rollouts else None

    @property
    def families(self) -> list[str]:
        """One error family per rollout whose grader complained."""
        failures = [r.grade.failure for r in self.tried if r.grade.failure is not None]
        return [failure.code or "other_error" for failure in failures]

    def error(self, family: str) -> tuple[float | None, float | None]:
        """Return share of the gradings, and count."""
        count = self.families.count(family)
        return _per(count, self.tried), self.count(count)

    def usage(self, model: str) -> list[TokenUsage]:
        """What a grader model took, by rollout."""
        return [r.grade.usage[model] for r in self.tried if model in r.grade.usage]

    @property
    def latency(self) -> float | None:
        return _mean([s for r in self.tried if (s := r.grade.duration_s) is not None])

    @property
    def dropped(self) -> Figures:
        """Rollouts lost to infrastructure: never a reward, so they are told apart by cause."""
        lost = [r for r in self.rollouts if r.outcome is Outcome.INFRASTRUCTURE_FAULT]
        failures = [r.grade.failure or r.trajectory.failure for r in lost]
        where = Counter(failure.where if failure else "unknown" for failure in failures)
        return {
            "count": self.count(len(lost)),
            "mean": _per(len(lost), self.rollouts),
            "where": dict(where.most_common()),
        }

    @property
    def results(self) -> list[ToolResult]:
        """Every tool result of a surviving rollout."""
        return [result for r in self.survivors for result in r.trajectory.tool_results]

    @property
    def tokens_per_call(self) -> float | None:
        """Tokens fed in per tool result, the chat format's own included."""
        tokens = calls = 0
        for rollout in self.survivors:
            for turns in rollout.trajectory.contexts().values():
                for before, after in itertools.pairwise(turns):
                    tokens += len(after.observation_ids)
                    calls += len(before.tool_results)
        return tokens / calls if calls else None


def _scores(grader: _Grader, values: Mapping[str, float], valid: _Side) -> Figures:
    train_key = f"score/{grader.part}" if grader.part else "reward"
    return {
        "name": grader.name,
        "type": grader.type,
        "train_reward_mean": values.get(train_key),
        "valid_reward_mean": valid.part(grader.part) if grader.part else valid.score,
    }


def _sample_tokens(sides: Mapping[str, _Side]) -> Figures:
    figures: Figures = {}
    for name, side in sides.items():
        mean, count = side.completion_tokens
        figures |= {
            f"{name}_reasoning_tokens_mean": None,
            f"{name}_reasoning_tokens_count": None,
            f"{name}_completion_tokens_mean": mean,
            f"{name}_completion_tokens_count": count,
        }
    return figures


def _grader_tokens(grader: _Grader, sides: Mapping[str, _Side]) -> Figures:
    """Return what a grader's model took; graders that share a model share these numbers."""
    figures: Figures = {"name": grader.name, "type": grader.type, "model": grader.model}
    for name, side in sides.items():
        usage = side.usage(grader.model)
        for kind in ("prompt_tokens", "completion_tokens"):
            tokens = [float(getattr(used, kind)) for used in usage]
            figures |= {
                f"{name}_{kind}_mean": _mean(tokens),
                f"{name}_{kind}_count": side.count(sum(tokens)),
            }
    return figures


def _model_tokens(model: str, sides: Mapping[str, _Side]) -> Figures:
    figures: Figures = {}
    for name, side in (("train", sides["train"]), ("eval", sides["valid"])):
        total = sum(side.usage(model), TokenUsage())
        figures |= {
            f"{name}_prompt_tokens": total.prompt_tokens,
            f"{name}_cached_tokens": total.cached_tokens,
            f"{name}_completion_tokens": total.completion_tokens,
        }
    return figures


def _errors(grader: _Grader, sides: Mapping[str, _Side]) -> Figures:
    figures: Figures = {"name": grader.name, "type": grader.type}
    seen = sorted({family for side in sides.values() for family in side.families})
    for family in dict.fromkeys((*COMMON_ERRORS, *ERRORS_OF.get(grader.type, ()), *seen)):
        for name, side in sides.items():
            mean, count = side.error(family)
            figures |= {f"{name}_{family}_mean": mean, f"{name}_{family}_count": count}
    return figures


def _latency(grader: _Grader, sides: Mapping[str, _Side]) -> Figures:
    latencies = {f"{name}_execution_latency_mean": side.latency for name, side in sides.items()}
    return {"name": grader.name, "type": grader.type, **latencies}


def _timing(values: Mapping[str, float]) -> Figures:
    parts = [seconds for name, seconds in values.items() if name.startswith("seconds/")]
    return {
        "eval": values.get("seconds/validation"),
        "sampling": values.get("seconds/rollout"),
        "training": values.get("seconds/training"),
        "full_iteration": sum(parts) if parts else None,
    }


def _tools(names: Sequence[str], sides: Mapping[str, _Side]) -> Figures:
    figures: Figures = {}
    for name, side in sides.items():
        unreadable = sum(not result.name for result in side.results)
        known = sum(result.name in names for result in side.results)
        unknown = len(side.results) - known - unreadable
        figures |= {
            f"{name}_tool_calls_mean": _per(known, side.survivors),
            f"{name}_unknown_tool_calls_mean": _per(unknown, side.survivors),
            f"{name}_unreadable_calls_mean": _per(unreadable, side.survivors),
            f"{name}_tokens_per_tool_call_mean": side.tokens_per_call,
        }
    return {**figures, "tools": [_tool(tool, sides) for tool in names]}


def _tool(tool: str, sides: Mapping[str, _Side]) -> Figures:
    figures: Figures = {"name": tool}
    for name, side in sides.items():
        results = [result for result in side.results if result.name == tool]
        errors = sum(result.is_error for result in results)
        figures |= {
            f"{name}_calls_mean": _per(len(results), side.survivors),
            f"{name}_calls_count": side.count(len(results)),
            f"{name}_error_mean": _per(errors, results),
            f"{name}_error_count": side.count(errors),
            f"{name}_latency_mean": _mean([result.duration_s for result in results]),
        }
    return figures


def _kind(failure: Failure | None) -> FailureKind | None:
    return failure.kind if failure else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _per(count: int, items: Sequence[object]) -> float | None:
    return count / len(items) if items else None


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
