"""What a run was made from, noted when it begins: hashes of its files, and its spec."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentrft.inference.cache import file_sha256
from agentrft.jobs.context import Job
from agentrft.jobs.project import Project
from agentrft.jobs.trials import keep_spec

FILES = "files"
"""In a run's result: the sha256 of each file by what it is."""


def note_provenance(job: Job, project: Project) -> None:
    """Note files and spec; a run that goes on keeps what it began with."""
    if FILES not in job.run.result:
        job.note_result(**{FILES: file_hashes(project)})
    keep_spec(job.folder, project.spec)


def file_hashes(project: Project) -> Mapping[str, Mapping[str, Any]]:
    """Return name and sha256 of every data file, and of the files with environment and grader."""
    config = project.config
    named = {**asdict(config.data), "environment": config.environment.partition(":")[0]}
    if config.grader.get("type") == "function":
        named["grader"] = str(config.grader.get("function", "")).partition(":")[0]
    paths = {what: (name, project.folder / name) for what, name in named.items() if name}
    return {
        what: {"name": path.name if Path(name).is_absolute() else name, "sha256": file_sha256(path)}
        for what, (name, path) in paths.items()
        if path.is_file()
    }
