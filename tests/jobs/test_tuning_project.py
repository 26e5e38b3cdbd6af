from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import some_tasks
from tuning import GRADER, REINFORCEMENT, SUPERVISED, a_home, questions, submitted

from agentrft.core.config import HttpTool
from agentrft.core.errors import ConfigError, StoreError
from agentrft.core.job import REDACTED, FineTuningMethod, ReinforcementMethod
from agentrft.core.task import Task, ToolSpec
from agentrft.graders.backends import Backends
from agentrft.graders.fixed import FixedGrader
from agentrft.jobs.answer_format import AnswerFormat
from agentrft.jobs.hyperparameters import resolve
from agentrft.jobs.project import Project
from agentrft.jobs.tuning_project import JobFiles, restored, tuning_project, with_headers


def opened(
    tmp_path: Path,
    method: FineTuningMethod = REINFORCEMENT,
    rows: list[dict[str, Any]] | None = None,
    secrets: Mapping[str, str] | None = None,
) -> Project:
    home = a_home(tmp_path)
    job = submitted(home, method, rows=rows)
    training = home.files.path(home.files.get(job.project, job.training_file))
    return tuning_project(
        job,
        resolve(method, train_rows=10, validation_rows=3),
        JobFiles(training=training),
        secrets or {},
        folder=tmp_path,
        backends=Backends(),
    )


def test_rows_are_named_by_their_line_and_keep_every_field(tmp_path: Path) -> None:
    tasks = opened(tmp_path, rows=[{**row, "id": 3} for row in questions(10)]).tasks("train")
    assert [task.id for task in tasks][:2] == ["row-1", "row-2"]
    assert tasks[0]["id"] == 3


def test_the_training_file_of_a_supervised_job_is_what_is_imitated(tmp_path: Path) -> None:
    project = opened(tmp_path, SUPERVISED)
    assert len(project.demonstrations()) == 12


def test_without_tools_the_calls_of_a_row_end_the_rollout(tmp_path: Path) -> None:
    project = opened(tmp_path)
    spec = ToolSpec(name="look", description="", parameters={"type": "object"})
    task = Task(id="t", messages=some_tasks(1)[0].messages, tools=(spec,))
    assert project.open_environment(task, "trace_1").tool_specs() == (spec,)
    assert project.offered(task) == (spec,)
    assert project.spec.limits.max_turns == 1


def test_headers_come_back_from_the_secrets() -> None:
    tool = HttpTool(name="a", server_url="http://127.0.0.1:1/a", headers={"X-Key": REDACTED})
    (whole,) = with_headers([tool], {"tools[0].headers.X-Key": "s3cret"})
    assert whole.headers == {"X-Key": "s3cret"}


def test_headers_of_graders_within_graders_come_back_too() -> None:
    config = {
        "type": "multi",
        "graders": {"a": {"headers": {"Authorization": REDACTED}, "input": REDACTED}},
    }
    secrets = {"grader.graders.a.headers.Authorization": "Bearer s3cret"}
    found = restored(config, "grader", secrets)["graders"]["a"]
    assert found["headers"] == {"Authorization": "Bearer s3cret"}
    assert found["input"] == REDACTED, "only headers are secret"


def test_a_secret_that_is_gone_is_named() -> None:
    with pytest.raises(StoreError, match=r"grader\.headers\.X"):
        restored({"headers": {"X": REDACTED}}, "grader", {})


def test_secrets_are_nowhere_in_the_projects_config(tmp_path: Path) -> None:
    method = ReinforcementMethod(
        grader=GRADER,
        tools=(HttpTool(name="a", server_url="http://127.0.0.1:1/a", headers={"X": REDACTED}),),
    )
    project = opened(tmp_path, method, secrets={"tools[0].headers.X": "s3cret"})
    assert "s3cret" not in repr(project.config)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no_such_type"},
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "file:///etc/passwd"},
        {"type": "string", "pattern": "(?=a)b"},
    ],
)
def test_a_format_that_is_no_schema_or_reaches_elsewhere_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="response_format"):
        AnswerFormat(FixedGrader({}), schema)
