"""A project whose agent says yes far more often when its system text asks for it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from byte_chat import decode, says

from agentrft.core.protocols import SampleRequest
from agentrft.core.spec import AgentSpec, Section
from agentrft.jobs.project import Project, open_project
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.problem import Known
from agentrft.optimize.variants import Knob, Level

ASKED = "Say yes."
TOOLS = """
from agentrft import Environment, tool

class Desk(Environment):
    @tool
    def look(self, name: str) -> str:
        \"\"\"Look something up. name: what to look up.\"\"\"
        return name

    def grade(self, trajectory) -> float:
        return float(trajectory.output_text == "yes")
"""
TOML = """
name = "desk"
environment = "tools.py:Desk"
[limits]
max_context_tokens = 100000
[methods.optimize]
rollouts = 500
configurations = 4
screen_rollouts = 8
race_tasks = 8
baseline_samples = 1
rounds = 1
"""
WORDS = "apple brook cedar delta ember flint grove heron inlet jewel".split()


def a_project(folder: Path, *, toml: str = TOML, rows: int = 24) -> Project:
    """Tasks that share no prompt, each of its own family."""
    folder.mkdir()
    (folder / "tools.py").write_text(TOOLS)
    (folder / "agent.toml").write_text(toml)
    for place, split in enumerate(("train", "validation", "holdout")):
        lines = [
            json.dumps(
                {
                    "id": f"{split}-{n}",
                    "family": f"f{n}",
                    "messages": [{"role": "user", "content": _request(place, n)}],
                }
            )
            for n in range(rows)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return open_project(folder)


def _request(place: int, n: int) -> str:
    return " ".join(WORDS[(n // 10**digit + place * 3 + digit) % 10] for digit in range(4)) + (
        f" {place}-{n}"
    )


def willing(request: SampleRequest) -> tuple[int, ...]:
    """Says yes in 85 of 100 rollouts when asked for it, else in 30."""
    chance = 85 if ASKED in decode(request.prompt_ids) else 30
    return says("yes" if request.seed % 100 < chance else "no")


@dataclass(frozen=True)
class Asking:
    """Proposes to ask for it, and to greet."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        return (_section("ask", ASKED), _section("greet", "Hello."))


@dataclass(frozen=True)
class Silent:
    """Proposes nothing."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        return ()


def _section(name: str, text: str) -> Knob:
    def change(spec: AgentSpec) -> AgentSpec:
        return replace(spec, sections=(*spec.sections, Section(name=name, text=text)))

    levels = (Level(name="added", change=change, why="the agent says no"),)
    return Knob(name=name, levels=levels, treats=(FailureClass.WRONG_PLAN,))
