"""Grader objects of the fine-tuning contract to graders. Unknown types and keys are errors."""

import re
from collections.abc import Mapping
from typing import cast

from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function, Grader
from agentrft.egress.client import Endpoint
from agentrft.egress.errors import AddressRefusedError, HeaderRefusedError
from agentrft.graders.backends import Backends
from agentrft.graders.endpoint import EndpointGrader
from agentrft.graders.environment import EnvironmentGrader
from agentrft.graders.fields import name_field, number_field, only_keys, template_field, text_field
from agentrft.graders.formula import FUNCTIONS, parse_formula
from agentrft.graders.function import build_function_grader
from agentrft.graders.model_grader import build_model_grader
from agentrft.graders.multi import Multi
from agentrft.graders.python_code import PythonGrader, check_source
from agentrft.graders.string_check import OPERATIONS, StringCheck
from agentrft.graders.text_similarity import METRICS, TextSimilarity
from agentrft.sandbox.images import packages_of

SUPPORTED = (
    "string_check",
    "text_similarity",
    "python",
    "score_model",
    "label_model",
    "multi",
    "endpoint",
)


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
        case "text_similarity":
            return _text_similarity(config, path, backends, name)
        case "python":
            return _python(config, path, backends, name)
        case "multi":
            return _multi(config, path, backends)
        case "endpoint":
            return _endpoint(config, path, backends, name)
        case "function":
            return build_function_grader(config, path, name, backends.functions)
        case "score_model" | "label_model":
            return build_model_grader(config, path, name, backends)
        case "lambda":
            raise ConfigError(
                f"{path}.type 'lambda' is code of another service; host it behind an endpoint "
                'and use {"type": "endpoint", "url": ...}'
            )
        case other:
            given = "is missing" if other is None else f"is {other!r}"
            raise ConfigError(f"{path}.type {given}; supported types: {', '.join(SUPPORTED)}")


def _string_check(config: Mapping[str, object], path: str, name: str) -> StringCheck:
    only_keys(config, ("type", "name", "input", "reference", "operation"), path)
    operation = text_field(config, "operation", path)
    if operation not in OPERATIONS:
        raise ConfigError(f"{path}.operation is {operation!r}; one of: {', '.join(OPERATIONS)}")
    return StringCheck(
        name=name_field(config, path, name),
        given=template_field(config, "input", path),
        reference=template_field(config, "reference", path),
        operation=operation,
    )


def _text_similarity(
    config: Mapping[str, object], path: str, backends: Backends, name: str
) -> TextSimilarity:
    keys = ("type", "name", "input", "reference", "evaluation_metric", "pass_threshold")
    only_keys(config, keys, path)
    number_field(config, "pass_threshold", path)  # for reports; it changes no score
    metric = text_field(config, "evaluation_metric", path)
    if metric not in (*METRICS, "cosine"):
        raise ConfigError(
            f"{path}.evaluation_metric is {metric!r}; one of: {', '.join(METRICS)}, cosine"
        )
    if metric == "cosine" and backends.embedder is None:
        raise ConfigError(
            f"{path}.evaluation_metric 'cosine' compares embeddings, and no embedding model is set "
            "up here; set `embedding_model`, or take another metric"
        )
    return TextSimilarity(
        name=name_field(config, path, name),
        given=template_field(config, "input", path),
        reference=template_field(config, "reference", path),
        metric=metric,
        embedder=backends.embedder if metric == "cosine" else None,
    )


def _python(config: Mapping[str, object], path: str, backends: Backends, name: str) -> PythonGrader:
    only_keys(config, ("type", "name", "source", "image_tag", "pass_threshold"), path)
    number_field(config, "pass_threshold", path)
    source = text_field(config, "source", path)
    check_source(source, f"{path}.source")
    image_tag = "" if config.get("image_tag") is None else text_field(config, "image_tag", path)
    if not re.fullmatch(r"[\w.-]{0,64}", image_tag, re.ASCII) or image_tag.startswith("."):
        raise ConfigError(f"{path}.image_tag is {image_tag[:80]!r}; write one such as '2025-05-08'")
    if backends.sandbox is None:
        raise ConfigError(
            f"{path}.type 'python' needs a sandbox, and none is open here; "
            "`agentrft doctor` says what this machine offers"
        )
    if image_tag and backends.images is not None:
        try:
            packages_of(image_tag, backends.images)
        except ConfigError as error:
            raise ConfigError(f"{path}.{error}") from None
    return PythonGrader(
        name=name_field(config, path, name),
        function=Function(source=source, image_tag=image_tag, owner=backends.owner),
        sandbox=backends.sandbox,
    )


def _multi(config: Mapping[str, object], path: str, backends: Backends) -> Multi:
    only_keys(config, ("type", "name", "graders", "calculate_output", "invalid_grade"), path)
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
    text = text_field(config, "calculate_output", path)
    return Multi(
        name=name_field(config, path, ""),
        graders=graders,
        formula=parse_formula(text, graders, f"{path}.calculate_output"),
        invalid_grade=number_field(config, "invalid_grade", path),
    )


def _endpoint(
    config: Mapping[str, object], path: str, backends: Backends, name: str
) -> EndpointGrader:
    only_keys(config, ("type", "name", "url", "headers", "rate_limit", "pass_threshold"), path)
    number_field(config, "pass_threshold", path)  # for reports; a reward is what the endpoint says
    rate_limit = number_field(config, "rate_limit", path)
    if rate_limit is not None and rate_limit <= 0:
        raise ConfigError(f"{path}.rate_limit is {rate_limit:g}; it is calls per second, above 0")
    headers = config.get("headers") or {}
    if not isinstance(headers, Mapping) or not all(
        isinstance(value, str) for value in cast(Mapping[str, object], headers).values()
    ):
        raise ConfigError(f"{path}.headers must be an object of texts")
    name = name_field(config, path, name)
    try:
        endpoint = Endpoint(
            f"grader {name!r}",
            text_field(config, "url", path),
            headers=cast(Mapping[str, str], headers),
            policy=backends.policy,
            rate_limit=rate_limit,
            signing_key=backends.signing_key,
        )
    except AddressRefusedError as error:
        raise ConfigError(f"{path}.url {error}") from error
    except HeaderRefusedError as error:
        raise ConfigError(f"{path}.headers: {error}") from error
    return EndpointGrader(name=name, endpoint=endpoint)
