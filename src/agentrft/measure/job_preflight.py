"""The verdict of the checks before a fine-tuning job. Pure: facts in, verdict out.

`RULES` is the whole judgement: a failure stops the job before it trains, a warning is told.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from agentrft.core.errors import ConfigError
from agentrft.measure.job_preflight_facts import LONG_REFERENCE, Facts, RolloutFacts
from agentrft.measure.standing import SAME

Level = Literal["fail", "warn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    code: str
    message: str
    param: str | None
    """The part of the job it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether to train; `code`, `reason` and `param` are those of the job's error."""

    go: bool
    code: str = ""
    reason: str = ""
    param: str | None = None
    warnings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the judgement; `check` says what is wrong, nothing if all is well."""

    level: Level
    code: str
    param: str | None
    check: Callable[[Facts], str]


def only_warns(metadata: Mapping[str, str] | None) -> bool:
    """Whether a job wants failures of the checks as warnings. Raises ConfigError for nonsense."""
    value = (metadata or {}).get("preflight")
    if value not in (None, "warn"):
        raise ConfigError(
            f"metadata.preflight is {value!r}; write 'warn' to turn failed checks before compute "
            "into warnings, or leave it out"
        )
    return value == "warn"


def judge(facts: Facts, *, warn_only: bool = False) -> Verdict:
    """Go through `RULES`. The first failure names the code; with `warn_only` none stops the job."""
    findings: dict[Level, list[Finding]] = {"fail": [], "warn": []}
    for rule in RULES:
        if message := rule.check(facts):
            level: Level = "warn" if warn_only else rule.level
            findings[level].append(Finding(code=rule.code, message=message, param=rule.param))
    failures, warnings = findings["fail"], tuple(findings["warn"])
    if not failures:
        return Verdict(go=True, warnings=warnings)
    return Verdict(
        go=False,
        code=failures[0].code,
        reason="; also: ".join(failure.message for failure in failures),
        param=failures[0].param,
        warnings=warnings,
    )


def numbers(facts: Facts, verdict: Verdict) -> dict[str, Any]:
    """Return facts and verdict as the job shows them, in JSON types."""
    return {**asdict(facts), "verdict": asdict(verdict)}


def _too_few_rows(facts: Facts) -> str:
    rows = facts.rows.rows
    return f"the training file has {rows} rows; give at least 10" if rows < 10 else ""


def _too_few_to_imitate(facts: Facts) -> str:
    return _too_few_rows(facts) if facts.method != "reinforcement" else ""


def _too_few_to_reinforce(facts: Facts) -> str:
    return _too_few_rows(facts) if facts.method == "reinforcement" else ""


def _nothing_to_learn(facts: Facts) -> str:
    lengths = facts.lengths
    if lengths is None or lengths.unlearnable < lengths.rendered:
        return ""
    has = "outputs that differ" if facts.method == "dpo" else "an assistant token"
    return (
        f"no training row has {has} within the context of {lengths.limit_tokens} tokens; "
        "shorten the rows"
    )


def _long_rows(facts: Facts) -> str:
    lengths = facts.lengths
    if lengths is None or not lengths.cut:
        return ""
    return (
        f"{lengths.cut} of {lengths.rendered} training rows are longer than the context of "
        f"{lengths.limit_tokens} tokens and are cut at the end; {lengths.unlearnable} keep nothing "
        "to learn from"
    )


def _dead_tool(facts: Facts) -> str:
    dead = [tool for tool in facts.tools if not tool.alive]
    return "; ".join(
        f"tool {tool.name!r} does not work: {tool.problem}; check server_url and headers"
        for tool in dead
    )


def _tool_errors(facts: Facts) -> str:
    return "; ".join(
        f"tool {tool.name!r} failed {tool.failed} of {tool.calls} trial calls: {tool.problem}"
        for tool in facts.tools
        if tool.alive and tool.failed > 0.01 * tool.calls
    )


def _tool_refusals(facts: Facts) -> str:
    return "; ".join(
        f"tool {tool.name!r} refused {tool.refused} of {tool.calls} trial calls without an "
        f"`output` ({tool.problem}); the model will see that as its answer"
        for tool in facts.tools
        if tool.alive and tool.refused
    )


def _slow_tools(facts: Facts) -> str:
    return "; ".join(
        f"tool {tool.name!r} takes {tool.p95_s:.1f} s (p95 of 50 calls at once); rollouts wait for it"
        for tool in facts.tools
        if tool.alive and tool.p95_s is not None and tool.p95_s > 5.0
    )


def _all_dropped(facts: Facts) -> str:
    rollouts = facts.rollouts
    return _lost(rollouts) if rollouts and rollouts.dropped * 2 > rollouts.rollouts else ""


def _some_dropped(facts: Facts) -> str:
    rollouts = facts.rollouts
    if rollouts is None or not 0.05 * rollouts.rollouts < rollouts.dropped <= rollouts.rollouts / 2:
        return ""
    return _lost(rollouts)


def _lost(rollouts: RolloutFacts) -> str:
    worst = max(rollouts.dropped_where.items(), key=lambda item: item[1])[0]
    return (
        f"{rollouts.dropped} of {rollouts.rollouts} base rollouts were lost to infrastructure, "
        f"most often: {worst}"
    )


def _nothing_graded(facts: Facts) -> str:
    rollouts = facts.rollouts
    if rollouts is None or rollouts.mean is not None:
        return ""
    return f"none of {rollouts.rollouts} base rollouts was graded"


def _grader_crashes(facts: Facts) -> str:
    grader = facts.grader
    if grader is None or grader.crashed <= 0.05 * grader.tried:
        return ""
    return (
        f"the grader failed on {grader.crashed} of {grader.tried} base rollouts; "
        f"first: {grader.first_crash}"
    )


def _grader_stumbles(facts: Facts) -> str:
    grader = facts.grader
    if grader is None or not 0 < grader.crashed <= 0.05 * grader.tried:
        return ""
    return f"the grader failed on {grader.crashed} of {grader.tried}: {grader.first_crash}"


def _is_constant(rollouts: RolloutFacts | None) -> bool:
    if rollouts is None or rollouts.lowest is None or rollouts.highest is None:
        return False
    return rollouts.highest - rollouts.lowest <= SAME


def _grader_constant(facts: Facts) -> str:
    rollouts = facts.rollouts
    if rollouts is None or not _is_constant(rollouts):
        return ""
    return (
        f"every base rollout scored {rollouts.highest:g}, so nothing can be learned: the grader "
        "does not tell answers apart, or the tasks are all too hard or too easy for this model; "
        "give partial credit, or imitate good conversations first (a supervised job)"
    )


def _no_spread(facts: Facts) -> str:
    rollouts = facts.rollouts
    if rollouts is None or _is_constant(rollouts) or not rollouts.tasks:
        return ""
    if rollouts.tasks_with_spread:
        return ""
    return (
        f"each of {rollouts.tasks} sampled tasks scored the same in all its rollouts, so there is "
        "nothing to reinforce; give partial credit or choose tasks that succeed sometimes"
    )


def _little_spread(facts: Facts) -> str:
    rollouts = facts.rollouts
    if rollouts is None or not 0 < rollouts.tasks_with_spread < 0.1 * rollouts.tasks:
        return ""
    return (
        f"only {rollouts.tasks_with_spread} of {rollouts.tasks} sampled tasks have rollouts that "
        "score differently; most compute will teach nothing"
    )


def _grader_unsteady(facts: Facts) -> str:
    grader = facts.grader
    if grader is None or not grader.changed:
        return ""
    return (
        f"the grader gave {grader.changed} of {grader.regraded} unchanged trajectories another "
        f"score when asked again (by up to {grader.largest_change:g}) or failed; "
        "training learns that noise too"
    )


def _truncated(facts: Facts) -> str:
    rollouts = facts.rollouts
    if rollouts is None or rollouts.truncated <= 0.2 * (rollouts.rollouts - rollouts.dropped):
        return ""
    return (
        f"{rollouts.truncated} of {rollouts.rollouts - rollouts.dropped} base rollouts were ended by "
        "a limit; raise max_episode_steps or reasoning_effort"
    )


def _duplicates(facts: Facts) -> str:
    count = facts.rows.duplicates
    return f"{count} training rows repeat the messages of another row" if count else ""


def _equal_outputs(facts: Facts) -> str:
    count = facts.rows.equal_outputs
    return f"{count} training rows prefer an output to itself; they are left out" if count else ""


def _shared(facts: Facts) -> str:
    count = facts.rows.shared
    return (
        f"{count} validation rows are also training rows; validation will flatter" if count else ""
    )


def _some_tools(facts: Facts) -> str:
    rows = facts.rows
    if rows.with_tools in (0, rows.rows):
        return ""
    return (
        f"{rows.with_tools} of {rows.rows} training rows list tools; the others are offered all "
        "tools of the job that have a schema"
    )


def _uneven_keys(facts: Facts) -> str:
    keys = facts.rows.uneven_keys
    return f"only some training rows have the keys {', '.join(keys)}" if keys else ""


def _missing_keys(facts: Facts) -> str:
    return "; ".join(
        f"the grader reads item.{key}, which {count} training rows lack; they stay ungraded"
        for key, count in facts.rows.missing.items()
    )


def _constant_keys(facts: Facts) -> str:
    return "; ".join(
        f"item.{key}, which the grader reads, is the same in every training row"
        for key in facts.rows.constant
    )


def _long_keys(facts: Facts) -> str:
    return "; ".join(
        f"item.{key}, which the grader reads, has over {LONG_REFERENCE} characters on average"
        for key in facts.rows.long
    )


RULES: tuple[Rule, ...] = (
    Rule("fail", "invalid_training_file", "training_file", _too_few_to_imitate),
    Rule("fail", "invalid_training_file", "training_file", _nothing_to_learn),
    Rule("fail", "tool_unreachable", "method.reinforcement.tools", _dead_tool),
    Rule("fail", "grader_failing", "method.reinforcement.grader", _grader_crashes),
    Rule("fail", "rollouts_failing", None, _all_dropped),
    Rule("fail", "rollouts_failing", None, _nothing_graded),
    Rule("fail", "grader_constant", "method.reinforcement.grader", _grader_constant),
    Rule("fail", "no_learning_signal", "training_file", _no_spread),
    Rule("warn", "few_rows", "training_file", _too_few_to_reinforce),
    Rule("warn", "long_rows", "training_file", _long_rows),
    Rule("warn", "tool_errors", "method.reinforcement.tools", _tool_errors),
    Rule("warn", "tool_refusals", "method.reinforcement.tools", _tool_refusals),
    Rule("warn", "slow_tool", "method.reinforcement.tools", _slow_tools),
    Rule("warn", "rollouts_failing", None, _some_dropped),
    Rule("warn", "grader_failing", "method.reinforcement.grader", _grader_stumbles),
    Rule("warn", "grader_unsteady", "method.reinforcement.grader", _grader_unsteady),
    Rule("warn", "little_spread", "training_file", _little_spread),
    Rule("warn", "truncated", None, _truncated),
    Rule("warn", "duplicate_rows", "training_file", _duplicates),
    Rule("warn", "equal_outputs", "training_file", _equal_outputs),
    Rule("warn", "shared_rows", "validation_file", _shared),
    Rule("warn", "uneven_tools", "training_file", _some_tools),
    Rule("warn", "uneven_keys", "training_file", _uneven_keys),
    Rule("warn", "missing_key", "training_file", _missing_keys),
    Rule("warn", "constant_key", "training_file", _constant_keys),
    Rule("warn", "long_key", "training_file", _long_keys),
)
"""In the order in which they are told."""
