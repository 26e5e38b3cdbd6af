"""Grader objects of the fine-tuning contract to graders. Unknown types and keys are errors."""

import re
from collections.abc import Collection, Mapping
from typing import cast

from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Grader
from agentrft.graders.environment import EnvironmentGrader
from agentrft.graders.formula import FUNCTIONS, parse_formula
from agentrft.graders.multi import Multi
from agentrft.graders.string_check import OPERATIONS, StringCheck
from agentrft.graders.template import parse_template

SUPPORTED = ("string_check", "multi")


def build_grader(config: Mapping[str, object], path: str = "grader") -> Grader:
    """Build a grader; empty means the environment's own `grade`. Raises ConfigError naming the path."""
    if not config:
        return EnvironmentGrader()
    return _build(config, path, name="")


def _build(config: Mapping[str, object], path: str, name: str) -> Grader:
    match config.get("type"):
        case "string_check":
            return _string_check(config, path, name)
        case "multi":
            return _multi(config, path, name)
        case other:
            given = "is missing" if other is None else f"is {other!r}"
            raise ConfigError(f"{path}.type {given}; supported types: {', '.join(SUPPORTED)}")


def _string_check(config: Mapping[str, object], path: str, name: str) -> StringCheck:
    _only(config, ("type", "name", "input", "reference", "operation"), path)
    operation = _text(config, "operation", path)
    if operation not in OPERATIONS:
        raise ConfigError(f"{path}.operation is {operation!r}; one of: {', '.join(OPERATIONS)}")
    return StringCheck(
        name=_text(config, "name", path, name or "string_check"),
        given=parse_template(_text(config, "input", path), f"{path}.input"),
        reference=parse_template(_text(config, "reference", path), f"{path}.reference"),
        operation=operation,
    )


def _multi(config: Mapping[str, object], path: str, name: str) -> Multi:
    _only(config, ("type", "name", "graders", "calculate_output"), path)
    entries = config.get("graders")
    if not isinstance(entries, Mapping) or not entries:
        raise ConfigError(f"{path}.graders must be an object of named graders, at least one")
    graders: dict[str, Grader] = {}
    for key, entry in cast(Mapping[str, object], entries).items():
        at = f"{path}.graders.{key}"
        if not re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII) or key in FUNCTIONS:
            raise ConfigError(
                f"{at}: the name is used in the formula, so write letters, digits and '_' "
                f"and none of {', '.join(FUNCTIONS)}"
            )
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{at} must be a grader object")
        part = cast(Mapping[str, object], entry)
        if part.get("type") == "multi":
            raise ConfigError(f"{at}: a multi grader cannot hold another one; write one formula")
        graders[key] = _build(part, at, name=key)
    text = _text(config, "calculate_output", path)
    return Multi(
        name=_text(config, "name", path, name or "multi"),
        graders=graders,
        formula=parse_formula(text, graders, f"{path}.calculate_output"),
    )


def _only(config: Mapping[str, object], keys: Collection[str], path: str) -> None:
    for key in config:
        if key not in keys:
            raise ConfigError(f"{path}.{key} is unknown; {config['type']} has {', '.join(keys)}")


def _text(config: Mapping[str, object], key: str, path: str, default: str | None = None) -> str:
    value = config.get(key, default)
    if not isinstance(value, str):
        given = "is missing" if value is None else f"is {value!r}"
        raise ConfigError(f"{path}.{key} {given}; it must be a text")
    return value
