"""What the docs say about the code is read back and compared with it."""

import json
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from agentrft.core import config

ROOT = Path(__file__).parent.parent
SECTIONS: dict[str, type] = {
    "Top level": config.ProjectConfig,
    "`[data]`": config.DataFiles,
    "`[[tools]]`": config.HttpTool,
    "`[limits]`": config.Limits,
    "`[decoding]`": config.Decoding,
    "`[engine]`": config.EngineConfig,
    "`[methods.evaluation]`": config.EvaluationConfig,
    "`[methods.supervised]`": config.SupervisedConfig,
    "`[methods.reinforcement]`": config.ReinforcementConfig,
    "`[methods.<method>.trainer]`": config.TrainerConfig,
    "`[methods.<method>.trainer.adapter]`": config.Adapter,
    "`[methods.<method>.trainer.optimizer]`": config.Optimizer,
    "`[methods.<method>.trainer.loss]`": config.Loss,
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
    kinds = {kind for kind in vars(config).values() if isinstance(kind, type)}
    ours = {kind for kind in kinds if kind.__module__ == config.__name__}
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
