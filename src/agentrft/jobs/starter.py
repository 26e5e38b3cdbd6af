"""The project that `agentrft init` writes: small, complete, accepted by `agentrft improve` at once."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from agentrft.core.errors import UserError


def write_starter(folder: Path) -> None:
    """Copy the starter project to a new folder. Raises UserError if the folder exists."""
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another name or remove it")
    with as_file(files("agentrft.jobs") / "starter_project") as source:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "agent.toml"
    text = config.read_text(encoding="utf-8").replace('name = "starter"', f'name = "{folder.name}"')
    config.write_text(text, encoding="utf-8")
