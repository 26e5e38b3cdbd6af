"""What a run was made from, as it was when the run began."""

import hashlib
from dataclasses import replace
from pathlib import Path

from builders import a_job
from desk_model import a_desk

from agentrft.jobs.provenance import FILES, file_hashes, note_provenance
from agentrft.jobs.trials import spec_path


def test_a_run_that_goes_on_keeps_what_it_began_with(tmp_path: Path) -> None:
    project, job = a_desk(tmp_path / "desk"), a_job(tmp_path / "home")
    note_provenance(job, project)
    rows = (project.folder / "train.jsonl").read_bytes()
    (project.folder / "train.jsonl").write_text("{}")
    note_provenance(job, project)
    noted = job.home.store.run("run-1").result[FILES]
    digest = hashlib.sha256(rows).hexdigest()
    assert noted["train"] == {"name": "train.jsonl", "sha256": digest}
    assert spec_path(job.folder, project.spec.hash).is_file()


def test_code_that_acts_and_grades_is_among_the_files(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    (project.folder / "grading.py").write_text("def grade(item, sample): return 1.0")
    grader: dict[str, object] = {"type": "function", "function": "grading.py:grade"}
    found = file_hashes(replace(project, config=replace(project.config, grader=grader)))
    names = {what: file["name"] for what, file in found.items()}
    assert names == {"train": "train.jsonl", "environment": "tools.py", "grader": "grading.py"}
