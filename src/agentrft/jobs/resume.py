"""Finding the run that `--resume` continues."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import ConfigError
from agentrft.core.run import Method, RunStatus
from agentrft.store.codec import load_config
from agentrft.store.sql import SqlStore

MAY_CHANGE = {
    f"endpoint.{key}"
    for key in (
        *("api_key_file", "rate_limit", "max_concurrent", "timeout_s"),
        *("input_price", "output_price", "most_tokens", "most_money"),
    )
}
"""Settings that change how long a run takes and what it may cost, and nothing that it measures."""
UNFINISHED = {RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED, RunStatus.FAILED}


def unfinished_run(
    store: SqlStore,
    project: str,
    method: Method,
    settings: ProjectConfig | Mapping[str, Any],
    *,
    parent_id: str | None = None,
) -> str:
    """Return the id of the newest unfinished run of a project and method, under the parent given.

    Raises ConfigError if there is none, or if the settings changed since it began.
    """
    asked = asdict(settings) if isinstance(settings, ProjectConfig) else settings
    for run in store.runs(project=project).items:
        if run.parent_id == parent_id and run.method is method and run.status in UNFINISHED:
            began = run.config
            if isinstance(settings, ProjectConfig):
                began = _with_newer_settings(began)
            changed = _first_difference("", began, asked)
            if changed:
                raise ConfigError(
                    f"run {run.id} cannot be resumed: {changed} changed since it began; "
                    "restore it, or start a new run without --resume"
                )
            return run.id
    raise ConfigError(
        f"project {project!r} has no unfinished {method} run in this home folder; "
        "start one without --resume"
    )


def _with_newer_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add settings that a later version brought, at their defaults: what the run did without them."""
    try:
        return asdict(load_config(ProjectConfig, config, "stored settings"))
    except ConfigError:
        return config


def _first_difference(path: str, old: object, new: object) -> str:
    """Return the dotted path of the first setting that differs; empty if none does."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            found = _first_difference(f"{path}.{key}".lstrip("."), old.get(key), new.get(key))
            if found:
                return found
        return ""
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return "" if list(old) == list(new) else path
    return "" if old == new or path in MAY_CHANGE else path
