"""What the docs say about the code is read back and compared with it."""

import asyncio
import json
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from agentrft.core import config, training_config
from agentrft.core.task import Message, Task, ToolCall
from agentrft.core.trajectory import StopReason, Trajectory
from agentrft.rollout.environment import Environment, python_environment

ROOT = Path(__file__).parent.parent
SECTIONS: dict[str, type] = {
    "Top level": config.ProjectConfig,
    "`[reward]`": config.RewardTerms,
    "`[reward.<what>]`": config.Allowance,
    "`[grader_models.<name>]`": config.GraderModel,
    "`[endpoint]`": config.AgentEndpoint,
    "`[sandbox]`": config.SandboxConfig,
    "`[audit]`": config.AuditConfig,
    "`[advisor]`": config.AdvisorConfig,
    "`[data]`": config.DataFiles,
    "`[[tools]]`": config.HttpTool,
    "`[limits]`": config.Limits,
    "`[decoding]`": config.Decoding,
    "`[engine]`": config.EngineConfig,
    "`[engine.vllm]`": config.VllmConfig,
    "`[methods.evaluation]`": config.EvaluationConfig,
    "`[methods.preflight]`": config.PreflightConfig,
    "`[methods.optimize]`": config.OptimizeConfig,
    "`[prices]`": config.PriceList,
    "`[methods.supervised]`": training_config.SupervisedConfig,
    "`[methods.rejection]`": training_config.RejectionConfig,
    "`[methods.distillation]`": training_config.DistillationConfig,
    "`[methods.preference]`": training_config.PreferenceConfig,
    "`[methods.reinforcement]`": training_config.ReinforcementConfig,
    "`[methods.reinforcement.credit]`": training_config.Credit,
    "`[methods.reinforcement.tasks]`": training_config.TaskChoice,
    "`[methods.reinforcement.monitors]`": training_config.MonitorConfig,
    "`[methods.<method>.trainer]`": training_config.TrainerConfig,
    "`[methods.<method>.trainer.adapter]`": training_config.Adapter,
    "`[methods.<method>.trainer.optimizer]`": training_config.Optimizer,
    "`[methods.<method>.trainer.loss]`": training_config.Loss,
    "`[methods.<method>.trainer.preference]`": training_config.PreferenceLoss,
    "`server.toml`": config.ServerConfig,
}


def defaults(kind: Any) -> dict[str, str]:
    """Every key that is not a table of its own, with its default as the docs write it."""
    written: dict[str, str] = {}
    for field in fields(kind):
        value = field.default
        if field.default_factory is not MISSING:
            value = field.default_factory()
        if value is MISSING or not is_dataclass(value):
            written[field.name] = "required" if value is MISSING else f"`{json.dumps(value)}`"
    return written


def documented() -> dict[str, dict[str, str]]:
    text = (ROOT / "docs" / "project.md").read_text()
    sections = re.split(r"^### (.+)$", text, flags=re.MULTILINE)[1:]
    return {
        heading: dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", body, re.MULTILINE))
        for heading, body in zip(sections[::2], sections[1::2], strict=True)
    }


def test_every_config_type_has_its_section() -> None:
    modules = (config, training_config)
    ours = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
    }
    assert ours - {config.Methods} == set(SECTIONS.values())
    assert set(documented()) == set(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_of_agent_toml_lists_every_key_with_its_default(section: str) -> None:
    assert documented()[section] == defaults(SECTIONS[section])


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_test_that_holds_an_invariant_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "invariants.md").read_text()))
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named - written == set()


def test_the_example_in_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    row = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert row is not None
    scope: dict[str, Any] = {}
    exec(code[1], scope)
    message = Message(role="user", content=json.loads(row[1])["messages"][0]["content"])
    task = Task(id="readme", messages=(message,), row=json.loads(row[1]))

    async def cancel() -> tuple[str, object]:
        environment = python_environment(scope["SupportDesk"])(task, "trace_0")
        assert isinstance(environment, Environment)
        call = ToolCall(id="call_0", name="cancel_order", arguments='{"order_id": "W1204"}')
        result = await environment.call_tool(call)
        graded = await environment.run_grade(trajectory_without_answer(task))
        await environment.close()
        return result.content, graded

    assert asyncio.run(cancel()) == ("cancelled", 0.0)


def trajectory_without_answer(task: Task) -> Trajectory:
    return Trajectory(
        id="trace_0",
        task_id=task.id,
        model="none",
        spec_hash="",
        seed=0,
        prompt=task.messages,
        turns=(),
        stop_reason=StopReason.MAX_TURNS,
    )
