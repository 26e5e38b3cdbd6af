import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentrft.cli.audit import shown

CHECK = {
    "type": "string_check",
    "operation": "like",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    grader, rows = tmp_path / "grader.json", tmp_path / "rows.jsonl"
    grader.write_text(json.dumps(CHECK))
    rows.write_text("\n".join(json.dumps({"answer": str(n + 30)}) for n in range(10)))
    return grader, rows


def agentrft(home: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "agentrft", "audit", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"AGENTRFT_HOME": str(home), "PATH": "", "COLUMNS": "120"},
    )


def test_a_bad_grader_ends_with_code_two_its_texts_and_a_better_one(
    tmp_path: Path, files: tuple[Path, Path]
):
    grader, rows = files
    report, better = tmp_path / "audit.json", tmp_path / "better.json"
    done = agentrft(tmp_path, "--grader", grader, "--data", rows, "--json", report, "--fix", better)
    assert done.returncode == 2, done.stderr
    assert "BLOCKED: false-pass ceiling" in done.stdout
    assert "B  right answers made wrong" in done.stdout
    assert "suggestion 1" in done.stdout
    assert len(json.loads(report.read_text())["findings"]) >= 45
    again = agentrft(tmp_path, "--grader", better, "--data", rows)
    assert again.returncode == 0, again.stdout
    assert "passed" in again.stdout


def test_the_replay_that_is_shown_shows_the_text_again(tmp_path: Path, files: tuple[Path, Path]):
    grader, rows = files
    done = agentrft(tmp_path, "--grader", grader, "--data", rows, "--probe", "14")
    lines = [line.strip() for line in done.stdout.splitlines()]
    replay = next(line for line in lines if line.startswith("agentrft audit "))
    text = lines[lines.index(replay) - 1].split("  score")[0]
    again = agentrft(tmp_path, *replay.split()[2:])
    assert text in again.stdout
    assert "1.000  right or wrong" in again.stdout


def test_without_a_project_grader_and_rows_are_needed(tmp_path: Path, files: tuple[Path, Path]):
    done = agentrft(tmp_path, "--grader", files[0])
    assert done.returncode == 1
    assert "--data" in done.stderr


def test_a_model_that_nobody_configured_is_an_error(tmp_path: Path, files: tuple[Path, Path]):
    done = agentrft(tmp_path, "--grader", files[0], "--data", files[1], "--model", "judge")
    assert done.returncode == 1
    assert "grader_models has no such entry" in done.stderr


def test_texts_are_shown_with_nothing_invisible_and_nothing_endless():
    assert shown("a\u202eb\x1b[31m\n") == "'a\\u202eb\\x1b[31m\\n'"
    assert shown("x" * 500).endswith("... (500 characters)")
    assert shown("\ud800") == "'\\ud800'"
