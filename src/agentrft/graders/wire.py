"""The grader object as the API shows it: names filled in and header values taken out."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from agentrft.core.job import REDACTED

Config = Mapping[str, Any]


def grader_name(config: Config) -> str:
    """Return the name of a grader that has none: the same for the same grader, keys aside."""
    text = json.dumps(_with_headers(config, "", lambda path, value: REDACTED), sort_keys=True)
    return f"grader-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def normalised(config: Config, path: str = "grader") -> tuple[dict[str, Any], dict[str, str]]:
    """Return a grader that `build_grader` took, named and without secrets, and these by path.

    A path looks like `grader.headers.X-Key` or `grader.graders.a.headers.X-Key`.
    """
    secrets: dict[str, str] = {}

    def take(at: str, value: str) -> str:
        secrets[at] = value
        return REDACTED

    shown = _with_headers(config, path, take)
    shown["name"] = config.get("name") or grader_name(config)
    for key, part in shown.get("graders", {}).items():
        part["name"] = part.get("name") or key
    return shown, secrets


def _with_headers(config: Config, path: str, change: Callable[[str, str], str]) -> dict[str, Any]:
    result = dict(config)
    if headers := cast(Mapping[str, str] | None, config.get("headers")):
        result["headers"] = {
            name: change(f"{path}.headers.{name}", value) for name, value in headers.items()
        }
    if parts := cast(Mapping[str, Config] | None, config.get("graders")):
        result["graders"] = {
            key: _with_headers(part, f"{path}.graders.{key}", change) for key, part in parts.items()
        }
    return result
