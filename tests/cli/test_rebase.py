"""`agentrft rebase` and `agentrft report` on two tiny models with real weights."""

import asyncio
import json
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from desk_model import tiny_families
from search_project import a_project

from agentrft.core.run import Method
from agentrft.jobs.context import Job
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project
from agentrft.jobs.training_stage import train
from agentrft.store.home import Home

TOML = """
name = "desk"
model = "{model}"
environment = "tools.py:Desk"
[limits]
max_turns = 1
max_tokens = 8
max_context_tokens = 500
[engine]
dtype = "float32"
threads = 1
[data]
demonstrations = "demonstrations.jsonl"
[methods.supervised]
steps = 2
batch_size = 2
[methods.supervised.trainer]
dtype = "float32"
threads = 1
"""


def agentrft(home: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from agentrft.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"AGENTRFT_HOME": str(home), "PATH": "", "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def a_training(home: Path, project: Project) -> str:
    """A run that imitated one conversation for two steps."""
    with closing(Home.open(home)) as opened:
        job = Job.start(
            opened,
            project.config.name,
            Method.SUPERVISED,
            config=asdict(project.config),
            seed=0,
            progress=SilentProgress(),
            stop=asyncio.Event(),
        )
        asyncio.run(train(job, project, None))
        return job.run.id


def test_real_weights_of_another_model_are_trained_the_same_way(tmp_path: Path) -> None:
    old, new = (
        tiny_families._write_chat_model(tmp_path / name, seed=seed)
        for seed, name in enumerate(("old", "new"))
    )
    project = a_project(tmp_path / "desk", toml=TOML.format(model=old), rows=3)
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    (project.folder / "demonstrations.jsonl").write_text(json.dumps(row))
    home = tmp_path / "home"
    run = a_training(home, project)
    where = ("--project", project.folder, "--allow-audit-findings")
    told = agentrft(home, "rebase", run, "--model", new, *where)
    for stage in ("old base", "old tuned", "new base", "new tuned"):
        assert f" {stage} 3 " in told
    assert f"Keep {old}, unless {new} is wanted" in told
    found = re.search(r"run (run-\S+)", told)
    assert found is not None
    assert f"Keep {old}, unless {new} is wanted" in agentrft(home, "report", found[1])
