"""The same grader with another model behind it, to see whether a score is one model's taste."""

from collections.abc import Mapping
from typing import Any

from agentrft.core.errors import ConfigError


def second_opinion(grader: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return the grader object with another model in every part that asks one.

    Raises ConfigError if no part does.
    """
    changed = _with_model(grader, model)
    if changed == dict(grader):
        raise ConfigError(
            f"the second model is {model!r}, but no part of the grader asks another model; "
            "leave it out"
        )
    return changed


def _with_model(grader: Mapping[str, Any], model: str) -> dict[str, Any]:
    if grader.get("type") in ("score_model", "label_model"):
        return {**grader, "model": model}
    parts: Mapping[str, Any] = grader.get("graders") or {}
    if not parts:
        return dict(grader)
    return {**grader, "graders": {key: _with_model(part, model) for key, part in parts.items()}}
