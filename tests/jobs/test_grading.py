import asyncio
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from agentrft.core.config import GraderModel, ProjectConfig, SandboxConfig, ServerConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function
from agentrft.graders.build import build_grader
from agentrft.graders.dry_run import run_grader
from agentrft.jobs.grading import DeferredSandbox, Grading, grader_types, read_table
from agentrft.store.home import Home

SOURCE = "def grade(sample, item):\n    return float(sample['output_text'] == item['answer'])\n"
PYTHON: dict[str, object] = {"type": "python", "name": "same", "source": SOURCE}
TOO_LONG = SandboxConfig(timeout_s=500.0)
"""No machine offers it."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with closing(Home.open(tmp_path)) as opened:
        yield opened


def test_the_types_of_parts_count_too() -> None:
    multi = {"type": "multi", "graders": {"a": PYTHON, "b": {"type": "endpoint"}, "c": 7}}
    assert grader_types(multi) == {"multi", "python", "endpoint"}
    assert grader_types({}) == frozenset()


def test_nothing_is_opened_for_graders_that_need_nothing(home: Home) -> None:
    config = ProjectConfig(
        name="p", sandbox=TOO_LONG, grader_models={"judge": GraderModel(model="smollm2-135m")}
    )
    grading = Grading(home)
    backends = grading.of_project(config)
    assert list(backends.models) == ["judge"]
    assert backends.signing_key == home.signing_key()
    assert backends.functions is None
    asyncio.run(grading.close())


@pytest.mark.parametrize(
    "config",
    [
        ProjectConfig(name="p", sandbox=TOO_LONG, grader=PYTHON),
        ProjectConfig(name="p", sandbox=TOO_LONG, gold_grader=PYTHON),
    ],
)
def test_a_sandbox_that_is_not_to_be_had_is_refused_before_any_work(
    home: Home, config: ProjectConfig
) -> None:
    with pytest.raises(ConfigError, match=r"sandbox\.timeout_s"):
        Grading(home).of_project(config)


def test_a_server_begins_without_a_sandbox_and_refuses_only_who_needs_one(home: Home) -> None:
    backends = Grading(home, served=True).of_server(ServerConfig(sandbox=TOO_LONG), own_ports=[1])
    assert backends.policy.own_ports == {1}
    assert backends.sandbox is not None
    with pytest.raises(ConfigError, match=r"sandbox\.timeout_s"):
        asyncio.run(backends.sandbox.call(Function(source=SOURCE), ()))


def test_packages_that_are_not_installed_are_missed_before_any_work(home: Home) -> None:
    backends = Grading(home, served=True).of_server(ServerConfig())
    tagged = {**PYTHON, "image_tag": "2025-05-08"}
    with pytest.raises(ConfigError, match=r"^grader\.image_tag: .* is not installed here; run"):
        build_grader(tagged, backends=backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (home.images / "2025-05-08" / "lib" / f"python{version}" / "site-packages").mkdir(parents=True)
    assert build_grader(tagged, backends=backends).name == "same"


def test_a_python_grader_runs_in_the_sandbox_of_the_project(home: Home) -> None:
    grading = Grading(home)

    async def main() -> tuple[float | None, float | None]:
        backends = grading.of_project(ProjectConfig(name="p", grader=PYTHON))
        try:
            right = await run_grader(PYTHON, {"answer": "4"}, "4", "trace_1", backends)
            wrong = await run_grader(PYTHON, {"answer": "4"}, "5", "trace_2", backends)
        finally:
            await grading.close()
        return right.grade.score, wrong.grade.score

    assert asyncio.run(main()) == (1.0, 0.0)


def test_the_limits_of_the_config_hold_for_graders(home: Home) -> None:
    grading = Grading(home)
    config = ProjectConfig(name="p", sandbox=SandboxConfig(timeout_s=0.3))
    hangs = {"type": "python", "source": "def grade(sample, item):\n    while True: pass\n"}

    async def main() -> str:
        run = await run_grader(hangs, {}, "4", "trace_1", grading.of_project(config))
        await grading.close()
        return run.grade.failure.code if run.grade.failure else ""

    assert asyncio.run(main()) == "unresponsive_reward_error"


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", json.dumps(PYTHON)), ("a.toml", 'type = "python"')]
)
def test_a_grader_object_is_read_from_json_or_toml(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_table(tmp_path / name)["type"] == "python"


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.toml", "="), ("b.json", "[1]")])
def test_a_file_that_holds_no_object_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        read_table(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path / "missing.json")


def test_two_event_loops_open_one_sandbox(home: Home) -> None:
    async def graded() -> float | None:
        run = await run_grader(PYTHON, {"answer": "yes"}, "yes", "trace_1", backends)
        return run.grade.score

    grading = Grading(home)
    backends = grading.of_project(ProjectConfig(name="p"))
    assert isinstance(backends.sandbox, DeferredSandbox)
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda _: asyncio.run(graded()), range(2)))
    assert both == [1.0, 1.0]
    assert backends.sandbox.open() is backends.sandbox.open()
    asyncio.run(grading.close())
