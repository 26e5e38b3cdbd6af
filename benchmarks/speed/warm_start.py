"""The desk of rollouts and learning, and the weights both begin from.

An untrained small model hardly calls a tool. So its weights imitate the desk's demonstrations first:
once, by our own training, and written as any program reads them.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from setting import DESK, ROOT, Setting

from agentrft.jobs.project import open_project

SPEED_DESK = Path(__file__).parent / "desk"


def warm_start(setting: Setting) -> Path:
    """Return the model folder, made anew where desk or demonstrations changed.

    Raises CalledProcessError if a command of ours fails.
    """
    digest = hashlib.sha256(setting.model.folder.name.encode())
    for file in (*sorted(SPEED_DESK.glob("*.*")), DESK / "demonstrations.jsonl"):
        digest.update(file.read_bytes())
    folder = setting.home / "bench" / f"warm-{digest.hexdigest()[:8]}"
    if not folder.exists():
        print(f"warm start: imitating the demonstrations into {folder}", flush=True)
        lines = _run(setting, "train", str(SPEED_DESK), "supervised")
        weights = next(line for line in reversed(lines) if line.startswith("weights "))
        checkpoint = weights.removeprefix("weights ").strip()
        _run(setting, "export", checkpoint, "--to", str(folder), "--format", "merged")
    return folder


def desk_settings(
    setting: Setting, model: Path, *, tasks_per_step: int, group_size: int
) -> dict[str, Any]:
    """Return what every worker on the desk is told, so that all have the same budget."""
    project = open_project(SPEED_DESK)
    limits = project.spec.limits
    return {
        "model": str(model),
        "project": str(SPEED_DESK),
        "rows": str(SPEED_DESK / project.config.data.train),
        "system": project.spec.system,
        "turns": limits.max_turns,
        "turn_tokens": limits.max_turn_tokens,
        "completion_tokens": limits.max_context_tokens // 2,
        "tasks_per_step": tasks_per_step,
        "group_size": group_size,
        "scratch": str(setting.home / "bench" / "trl"),
    }


def desk_path() -> dict[str, str]:
    """Return the variables under which any interpreter finds desk, grader and our records."""
    folders = (Path(__file__).parent, SPEED_DESK, DESK, ROOT / "src")
    return {"PYTHONPATH": os.pathsep.join(map(str, folders))}


def _run(setting: Setting, *command: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "agentrft", *command, "--home", str(setting.home)],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()
