"""Grader objects of the fine-tuning contract to graders. Unknown types and keys are errors."""

import math
import re
from collections.abc import Collection, Mapping
from typing import cast

from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Grader
from agentrft.egress.client import Endpoint
from agentrft.egress.errors import AddressRefusedError, HeaderRefusedError
from agentrft.graders.backends import Backends
from agentrft.graders.endpoint import EndpointGrader
from agentrft.graders.environment import EnvironmentGrader
from agentrft.graders.formula import FUNCTIONS, parse_formula
from agentrft.graders.multi import Multi
from agentrft.graders.string_check import OPERATIONS, StringCheck
from agentrft.graders.template import parse_template
from agentrft.graders.wire import grader_name

SUPPORTED = ("string_check", "multi", "endpoint")


def build_grader(
    config: Mapping[str, object], path: str = "grader", *, backends: Backends | None = None
) -> Grader:
    """Build a grader; empty means the environment's own `grade`. Raises ConfigError naming the path."""
    if not config:
        return EnvironmentGrader()
    return _build(config, path, backends or Backends(), name="")


def _build(config: Mapping[str, object], path: str, backends: Backends, name: str) -> Grader:
    match config.get("type"):
        case "string_check":
            return _string_check(config, path, name)
        case "multi":
            return _multi(config, path, backends)
        case "endpoint":
            return _endpoint(config, path, backends, name)
        case "text_similarity" | "python" | "score_model" | "label_model" as known:
            raise ConfigError(
                f"{path}.type {known!r} is not available on this server yet; "
                f"available: {', '.join(SUPPORTED)}"
            )
        case "lambda":
            raise ConfigError(
                f"{path}.type 'lambda' is code of another service; host it behind an endpoint "
                'and use {"type": "endpoint", "url": ...}'
            )
        case other:
            given = "is missing" if other is None else f"is {other!r}"
            raise ConfigError(f"{path}.type {given}; supported types: {', '.join(SUPPORTED)}")


def _string_check(config: Mapping[str, object], path: str, name: str) -> StringCheck:
    _only(config, ("type", "name", "input", "reference", "operation"), path)
    operation = _text(config, "operation", path)
    if operation not in OPERATIONS:
        raise ConfigError(f"{path}.operation is {operation!r}; one of: {', '.join(OPERATIONS)}")
    return StringCheck(
        name=_name(config, path, name),
        given=parse_template(_text(config, "input", path), f"{path}.input"),
        reference=parse_template(_text(config, "reference", path), f"{path}.reference"),
        operation=operation,
    )


def _multi(config: Mapping[str, object], path: str, backends: Backends) -> Multi:
    _only(config, ("type", "name", "graders", "calculate_output", "invalid_grade"), path)
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
        graders[key] = _build(part, at, backends, name=key)
    text = _text(config, "calculate_output", path)
    return Multi(
        name=_name(config, path, ""),
        graders=graders,
        formula=parse_formula(text, graders, f"{path}.calculate_output"),
        invalid_grade=_number(config, "invalid_grade", path),
    )


def _endpoint(
    config: Mapping[str, object], path: str, backends: Backends, name: str
) -> EndpointGrader:
    _only(config, ("type", "name", "url", "headers", "rate_limit", "pass_threshold"), path)
    _number(config, "pass_threshold", path)  # for reports; a reward is what the endpoint says
    rate_limit = _number(config, "rate_limit", path)
    if rate_limit is not None and rate_limit <= 0:
        raise ConfigError(f"{path}.rate_limit is {rate_limit:g}; it is calls per second, above 0")
    headers = config.get("headers") or {}
    if not isinstance(headers, Mapping) or not all(
        isinstance(value, str) for value in cast(Mapping[str, object], headers).values()
    ):
        raise ConfigError(f"{path}.headers must be an object of texts")
    name = _name(config, path, name)
    try:
        endpoint = Endpoint(
            f"grader {name!r}",
            _text(config, "url", path),
            headers=cast(Mapping[str, str], headers),
            policy=backends.policy,
            rate_limit=rate_limit,
        )
    except AddressRefusedError as error:
        raise ConfigError(f"{path}.url {error}") from error
    except HeaderRefusedError as error:
        raise ConfigError(f"{path}.headers: {error}") from error
    return EndpointGrader(name=name, endpoint=endpoint)


def _only(config: Mapping[str, object], keys: Collection[str], path: str) -> None:
    for key in config:
        if key not in keys:
            raise ConfigError(f"{path}.{key} is unknown; {config['type']} has {', '.join(keys)}")


def _name(config: Mapping[str, object], path: str, key: str) -> str:
    if config.get("name") is None:
        return key or grader_name(config)
    return _text(config, "name", path)


def _text(config: Mapping[str, object], key: str, path: str) -> str:
    value = config.get(key)
    if not isinstance(value, str):
        given = "is missing" if value is None else f"is {value!r}"
        raise ConfigError(f"{path}.{key} {given}; it must be a text")
    return value


def _number(config: Mapping[str, object], key: str, path: str) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{path}.{key} is {value!r}; it must be a finite number")
    return float(value)
