import asyncio
from pathlib import Path

import pytest

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import ConfigError, DataError, UserError
from agentrft.core.grade import Grade
from agentrft.core.task import Task
from agentrft.core.trajectory import StopReason, Trajectory
from agentrft.graders.backends import Backends
from agentrft.graders.function import FunctionGrader
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.starter import write_starter
from agentrft.rollout.harness import Harness, visible_tools


def a_project(folder: Path, *, tools: str | None = None, toml: str | None = None) -> Path:
    write_starter(folder)
    if tools is not None:
        (folder / "tools.py").write_text(tools)
    if toml is not None:
        (folder / "agent.toml").write_text(toml)
    return folder


def test_the_starter_is_a_complete_project(tmp_path: Path) -> None:
    project = open_project(a_project(tmp_path / "loans"))
    assert project.config.name == "loans"
    assert [tool.name for tool in project.tools] == ["get_loan", "renew_loan"]
    assert len(project.tasks("train")) == 12
    assert project.demonstrations()
    for split in ("train", "validation", "holdout"):
        for task in project.tasks(split):
            assert visible_tools(project.tools, task, {}) == project.tools


def test_init_never_overwrites(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        write_starter(tmp_path)


def test_a_folder_without_agent_toml_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="agentrft init"):
        open_project(tmp_path)


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    folder = a_project(tmp_path / "p")
    config = folder / "agent.toml"
    config.write_text(config.read_text().replace("group_size", "group_sze"))
    with pytest.raises(ConfigError, match=r"methods\.reinforcement\.group_sze.*group_size"):
        open_project(folder)


def test_an_unknown_preset_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quik"):
        open_project(a_project(tmp_path / "p"), preset="quik")


def test_an_agent_without_tools_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tools"):
        open_project(a_project(tmp_path / "p", toml='name = "p"\n'))


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LoanDesk is missing"):
        open_project(a_project(tmp_path / "p", tools="x = 1\n"))


def test_a_class_that_is_no_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not inherit from agentrft\.Environment"):
        open_project(a_project(tmp_path / "p", tools="class LoanDesk: ...\n"))


def test_a_tools_file_that_fails_to_import_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tools\.py.*ZeroDivisionError"):
        open_project(a_project(tmp_path / "p", tools="1 / 0\n"))


def test_a_tool_without_type_hints_is_named(tmp_path: Path) -> None:
    tools = (
        "from agentrft import Environment, tool\n"
        "class LoanDesk(Environment):\n"
        "    @tool\n"
        "    def get_loan(self, loan_id):\n"
        '        """Look a loan up."""\n'
        "        return loan_id\n"
    )
    with pytest.raises(UserError, match=r"get_loan.*loan_id"):
        open_project(a_project(tmp_path / "p", tools=tools))


def test_a_tool_name_used_twice_is_named(tmp_path: Path) -> None:
    folder = a_project(tmp_path / "p")
    config = folder / "agent.toml"
    entry = '[[tools]]\nname = "get_loan"\nserver_url = "http://127.0.0.1:1/get_loan"\n'
    config.write_text(config.read_text() + entry)
    with pytest.raises(UserError, match="get_loan"):
        open_project(folder)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    folder = a_project(tmp_path / "p")
    (folder / "holdout.jsonl").unlink()
    with pytest.raises(DataError, match=r"holdout\.jsonl"):
        open_project(folder).tasks("holdout")


def test_a_broken_row_is_named_with_file_line_and_field(tmp_path: Path) -> None:
    folder = a_project(tmp_path / "p")
    rows = (folder / "train.jsonl").read_text().splitlines()
    rows[2] = '{"id": "x", "message": []}'
    (folder / "train.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"train\.jsonl.*line 3.*messages"):
        open_project(folder).tasks("train")


def test_a_system_file_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = a_project(tmp_path / "p")
    (folder / "system.txt").unlink()
    with pytest.raises(ConfigError, match=r"system\.txt"):
        open_project(folder)


def test_adapters_that_do_not_match_are_refused_before_any_work(tmp_path: Path) -> None:
    folder = a_project(tmp_path / "p")
    config = folder / "agent.toml"
    plain = config.read_text()
    names = ("supervised", "rejection.supervised", "distillation.supervised", "preference")
    tables = {name: f"[methods.{name}.trainer.adapter]\nrank = 4\n" for name in names}
    every = plain + "".join(tables.values()) + "[methods.reinforcement.trainer.adapter]\nrank = 4\n"
    config.write_text(every)
    open_project(folder)
    for name, table in tables.items():
        config.write_text(every.replace(table, ""))
        with pytest.raises(ConfigError, match=rf"methods\.{name}\.trainer\.adapter and .*differ"):
            open_project(folder)


def test_an_unknown_grader_type_lists_what_there_is(tmp_path: Path) -> None:
    folder = a_project(tmp_path / "p")
    config = folder / "agent.toml"
    config.write_text(config.read_text() + '[grader]\ntype = "pyton"\n')
    with pytest.raises(ConfigError, match=r"grader\.type is 'pyton'.*string_check"):
        open_project(folder)


GRADERS = """
from agentrft import grader
from tools import LoanDesk

@grader
def renewed(task, trajectory):
    return {"score": 1.0, "polite": 0.5}

def plain(task, trajectory):
    return 1.0
"""


def a_graded_project(folder: Path, lines: str, graders: str = GRADERS) -> Path:
    """The starter with `graders.py` and more lines at the end of its config."""
    a_project(folder)
    (folder / "graders.py").write_text(graders)
    config = folder / "agent.toml"
    config.write_text(config.read_text() + lines)
    return folder


def test_a_function_of_the_project_grades(tmp_path: Path) -> None:
    lines = '[grader]\ntype = "function"\nfunction = "graders.py:renewed"\n'
    grader = open_project(a_graded_project(tmp_path / "p", lines)).grader
    assert isinstance(grader, FunctionGrader)
    assert grader.name == "renewed"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("graders.py:plain", r"grader\.function = .*@agentrft\.grader"),
        ("graders.py:missing", r"missing is missing in .*graders\.py"),
        ("others.py:renewed", r"others\.py does not exist"),
        ("graders.py", "write it as `file.py:name`"),
    ],
)
def test_a_function_that_cannot_grade_is_named(
    tmp_path: Path, reference: str, message: str
) -> None:
    lines = f'[grader]\ntype = "function"\nfunction = "{reference}"\n'
    with pytest.raises(ConfigError, match=message):
        open_project(a_graded_project(tmp_path / "p", lines))


def test_a_file_with_environment_and_grader_is_imported_once(tmp_path: Path) -> None:
    folder = a_graded_project(
        tmp_path / "p", '[grader]\ntype = "function"\nfunction = "tools.py:state"\n'
    )
    tools = folder / "tools.py"
    tools.write_text(
        tools.read_text()
        + "\nfrom agentrft import grader\n"
        + "@grader\ndef state(task, trajectory, environment):\n"
        + "    return float(isinstance(environment, LoanDesk))\n"
    )
    project = open_project(folder)
    task = project.tasks("train")[0]
    assert asyncio.run(graded(project, task)).score == 1


async def graded(project: Project, task: Task) -> Grade:
    environment = project.open_environment(task, "trace_1")
    try:
        return await project.grader.grade(task, a_trajectory(task), environment)
    finally:
        await environment.close()


def a_trajectory(task: Task) -> Trajectory:
    return Trajectory(
        id="trace_1",
        task_id=task.id,
        model="m",
        spec_hash="",
        seed=0,
        prompt=task.messages,
        turns=(),
        stop_reason=StopReason.MAX_TURNS,
    )


def test_reward_terms_stand_around_the_training_grader_only(tmp_path: Path) -> None:
    function = 'type = "function"\nfunction = "graders.py:renewed"\n'
    lines = f'[grader]\n{function}[gold_grader]\n{function}[reward]\ngates = ["polite"]\n'
    project = open_project(a_graded_project(tmp_path / "p", lines))
    assert asyncio.run(graded(project, project.tasks("train")[0])).score == 0.5
    assert isinstance(project.gold_grader, FunctionGrader)


def test_without_a_gold_grader_there_is_none(tmp_path: Path) -> None:
    assert open_project(a_project(tmp_path / "p")).gold_grader is None


def test_graders_get_what_the_caller_opened_for_this_config(tmp_path: Path) -> None:
    asked: list[str] = []

    def backends(config: ProjectConfig) -> Backends:
        asked.append(config.name)
        return Backends()

    open_project(a_project(tmp_path / "p"), backends=backends)
    assert asked == ["p"]


def test_a_sibling_means_the_file_of_the_project_that_is_opened(tmp_path: Path) -> None:
    lines = '[grader]\ntype = "function"\nfunction = "graders.py:NAME"\n'
    graders = (
        "from agentrft import grader\nfrom price import PRICE\n\n"
        "def fixed(task, trajectory):\n    return PRICE\n\n"
        "fixed.__name__ = PRICE\nglobals()[PRICE] = grader(fixed)\n"
    )
    for name in ("cheap", "dear"):
        folder = a_graded_project(tmp_path / name, lines.replace("NAME", name), graders)
        (folder / "price.py").write_text(f"PRICE = {name!r}\n")
        assert open_project(folder).grader.name == name


def test_the_spec_folder_overlays_what_agent_toml_says(tmp_path: Path) -> None:
    folder = a_project(tmp_path / "p")
    plain = open_project(folder)
    (folder / "spec" / "tools").mkdir(parents=True)
    (folder / "spec" / "spec.toml").write_text("[guards]\ncoerce = true\n")
    (folder / "spec" / "tools" / "get_loan.md").write_text("Find a loan.\n")
    project = open_project(folder)
    assert project.spec.guards.coerce
    assert project.spec.sections == plain.spec.sections
    task = project.tasks("train")[0]
    shown = Harness(project.spec).session(task, project.offered(task)).tools
    assert [tool.description for tool in shown if tool.name == "get_loan"] == ["Find a loan."]
    assert project.tools == plain.tools


def test_a_spec_for_a_tool_that_the_agent_has_not_is_named(tmp_path: Path) -> None:
    folder = a_project(tmp_path / "p")
    (folder / "spec" / "tools").mkdir(parents=True)
    (folder / "spec" / "tools" / "get_lone.md").write_text("Find a loan.\n")
    with pytest.raises(ConfigError, match="no tool 'get_lone'; did you mean 'get_loan'"):
        open_project(folder)
