"""A spec as files that people review: the `spec/` folder of a project.

`spec.toml` overlays what `agent.toml` says, key by key; long texts lie beside it: the system text
in `system/NN-name.md`, descriptions in `tools/NAME.md`, the pool in `demonstrations.jsonl`.
"""

import difflib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

import tomli_w

from agentrft.core.errors import ConfigError, StoreError
from agentrft.core.spec import AgentSpec, Rendering, Section, ToolView
from agentrft.core.task import Demonstration, Message
from agentrft.store.codec import load_config, merged, read_toml, to_json
from agentrft.store.jsonl import RowError, parsed, strict_json
from agentrft.store.rows import demonstration_of

STRUCTURE, SYSTEM, TOOLS, POOL = "spec.toml", "system", "tools", "demonstrations.jsonl"
_SECTION_FILE = re.compile(r"(\d+)-(.*)\.md", re.DOTALL)
_TOOL_FILE = re.compile(r"(.+)\.md", re.DOTALL)


def read_spec(folder: Path, baseline: AgentSpec) -> AgentSpec:
    """Return the baseline as the folder changes it; without a folder it stays.

    `tools` replaces that of the baseline as a whole, all else only what it names. Raises
    ConfigError or DataError that names the file, for keys and files that nobody knows too.
    """
    if not folder.is_dir():
        if _old(folder).is_dir():
            raise ConfigError(
                f"{_old(folder)} is what an interrupted write left of {folder}; rename it back"
            )
        return baseline
    _check_known(folder)
    table = read_toml(folder / STRUCTURE) if (folder / STRUCTURE).is_file() else {}
    sections = _sections(folder / SYSTEM)
    descriptions = _descriptions(folder / TOOLS)
    pool = folder / POOL
    _check_once(folder, table, sections, descriptions, has_pool=pool.is_file())
    start = json.loads(to_json(baseline))
    if "tools" in table or descriptions:
        start["tools"] = {name: {"description": text} for name, text in descriptions.items()}
    spec = load_config(AgentSpec, merged(start, table), f"{folder.name}/{STRUCTURE}")
    if sections:
        spec = replace(spec, sections=sections)
    if pool.is_file():
        spec = replace(spec, shown=replace(spec.shown, pool=read_pool(pool)))
    return spec


def write_spec(folder: Path, spec: AgentSpec, baseline: AgentSpec) -> None:
    """Replace the folder by what differs from the baseline; nothing differs, no folder.

    Raises StoreError if it cannot be written, ConfigError for a demonstration that no row can hold.
    """
    texts = spec_files(spec, baseline)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as drafts:
            new = Path(drafts) / folder.name
            for name, text in texts.items():
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # Half of a surrogate pair, which models can write, is no text that a file can hold.
                path.write_text(text, encoding="utf-8", errors="replace", newline="")
            if folder.exists():
                shutil.rmtree(_old(folder), ignore_errors=True)
                folder.rename(_old(folder))
            if texts:
                new.rename(folder)
        shutil.rmtree(_old(folder), ignore_errors=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}") from error


def spec_files(spec: AgentSpec, baseline: AgentSpec) -> Mapping[str, str]:
    """Return path and text of every file that makes this spec of the baseline.

    Raises ConfigError for a demonstration that no row can hold.
    """
    files: dict[str, str] = {}
    structure = _structure(spec, baseline)
    if structure:
        files[STRUCTURE] = tomli_w.dumps(structure)
    if spec.sections != baseline.sections:
        for number, section in enumerate(spec.sections, start=1):
            files[f"{SYSTEM}/{number:02}-{_file_name(section.name)}.md"] = f"{section.text}\n"
    if spec.tools != baseline.tools:
        for name, view in sorted(spec.tools.items()):
            if view.description:
                files[f"{TOOLS}/{_file_name(name)}.md"] = f"{view.description}\n"
    if spec.shown.pool and spec.shown.pool != baseline.shown.pool:
        files[POOL] = demonstration_rows(spec.shown.pool)
    return files


def spec_diff(first: AgentSpec, second: AgentSpec) -> str:
    """Return the files in which two specs differ, as one unified diff; empty if none does."""
    nothing = AgentSpec()
    before, after = spec_files(first, nothing), spec_files(second, nothing)
    diffs: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, ""), after.get(name, "")
        names = (name if name in before else "/dev/null", name if name in after else "/dev/null")
        diffs += difflib.unified_diff(old.splitlines(), new.splitlines(), *names, lineterm="")
    return "\n".join(diffs)


def demonstration_rows(demonstrations: Iterable[Demonstration]) -> str:
    """Return JSON Lines that `read_demonstrations` reads.

    Raises ConfigError for one that no row can hold, e.g. with a result that answers no call.
    """
    lines: list[str] = []
    for demonstration in demonstrations:
        line = json.dumps(_row(demonstration), ensure_ascii=False)
        try:
            demonstration_of(strict_json(line))
        except RowError as problem:
            raise ConfigError(f"demonstration {demonstration.id!r}: {problem}") from None
        lines.append(f"{line}\n")
    return "".join(lines)


def read_pool(path: Path) -> tuple[Demonstration, ...]:
    """Return what `demonstration_rows` wrote. Raises DataError with file, line and field."""

    def read(row: Mapping[str, Any], line: int) -> Demonstration:
        found = demonstration_of(row)
        weighed = any("weight" in message for message in row["messages"])
        # A spec is hashed: what no row says must come back as it was, and none means all.
        return found if weighed else replace(found, imitated=())

    return tuple(parsed(path, read, f"{path} "))


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _check_known(folder: Path) -> None:
    known = {STRUCTURE, SYSTEM, TOOLS, POOL}
    for path in sorted(folder.iterdir()):
        if path.name not in known and not path.name.startswith("."):
            close = difflib.get_close_matches(path.name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{path}: not a part of a spec; {hint}")


def _check_once(
    folder: Path,
    table: Mapping[str, Any],
    sections: tuple[Section, ...],
    descriptions: Mapping[str, str],
    *,
    has_pool: bool,
) -> None:
    """Refuse what is said twice, since one of the two would be ignored."""
    twice = [f"tools.{name}.description" for name in descriptions if _given(table, name)]
    if sections and "sections" in table:
        twice.append("sections")
    if has_pool and "pool" in _table(table, "shown"):
        twice.append("shown.pool")
    if twice:
        raise ConfigError(
            f"{folder / STRUCTURE}: '{twice[0]}' has a file of its own in {folder.name}/ too; keep one"
        )


def _given(table: Mapping[str, Any], tool: str) -> bool:
    return "description" in _table(_table(table, "tools"), tool)


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = table.get(key)
    return cast(Mapping[str, Any], found) if isinstance(found, Mapping) else {}


def _sections(folder: Path) -> tuple[Section, ...]:
    found: list[tuple[int, str, Section]] = []
    for path, match in _named(folder, _SECTION_FILE, "NN-name.md, e.g. 10-role.md"):
        section = Section(name=unquote(match[2]), text=_text(path))
        found.append((int(match[1]), path.name, section))
    return tuple(section for _, _, section in sorted(found, key=lambda entry: entry[:2]))


def _descriptions(folder: Path) -> dict[str, str]:
    files = _named(folder, _TOOL_FILE, "NAME.md, after the tool's own name")
    return {unquote(match[1]): _text(path) for path, match in files}


def _named(
    folder: Path, pattern: re.Pattern[str], form: str
) -> Iterable[tuple[Path, re.Match[str]]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match:
            yield path, match
        elif not path.name.startswith("."):
            raise ConfigError(f"{path}: not the name of a part of a spec; name it {form}")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _file_name(name: str) -> str:
    return quote(name, safe=" ")


def _structure(spec: AgentSpec, baseline: AgentSpec) -> dict[str, Any]:
    """Return what `spec.toml` says."""
    ours, theirs = json.loads(to_json(spec)), json.loads(to_json(baseline))
    structure: dict[str, Any] = {}
    if not spec.sections and baseline.sections:
        structure["sections"] = []
    for part in ("exposure", "rendering", "guards", "limits", "decoding", "shown"):
        changed = {key: value for key, value in ours[part].items() if value != theirs[part][key]}
        if changed.get("pool"):
            del changed["pool"]
        if changed:
            structure[part] = changed
    if spec.tools != baseline.tools:
        views = {name: _view(view) for name, view in sorted(ours["tools"].items())}
        views = {n: v for n, v in views.items() if v or not spec.tools[n].description}
        if views or not spec.tools:
            structure["tools"] = views
    return structure


def _view(view: Mapping[str, Any]) -> dict[str, Any]:
    told = _without_defaults(view, ToolView())
    told.pop("description", None)
    if "rendering" in told:
        told["rendering"] = _without_defaults(told["rendering"], Rendering())
    return told


def _without_defaults(table: Mapping[str, Any], default: object) -> dict[str, Any]:
    usual = json.loads(to_json(default))
    return {key: value for key, value in table.items() if value != usual[key]}


def _row(demonstration: Demonstration) -> dict[str, Any]:
    imitated = iter(demonstration.imitated)
    row: dict[str, Any] = {"id": demonstration.id}
    if demonstration.family:
        row["family"] = demonstration.family
    row["messages"] = [
        _message(message, imitated=next(imitated, None) if message.role == "assistant" else None)
        for message in demonstration.messages
    ]
    if demonstration.tools:
        row["tools"] = [{"type": "function", "function": asdict(t)} for t in demonstration.tools]
    return row


def _message(message: Message, *, imitated: bool | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        entry["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        entry["tool_call_id"] = message.tool_call_id
    if imitated is not None:
        entry["weight"] = int(imitated)
    return entry
