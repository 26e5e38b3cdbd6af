"""Core types to JSON and back, and config files to frozen config. The only room that validates.

Unknown keys are errors that name their path; partial tables override the defaults of the field
they sit in, not those of the type.
"""

import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic_core
from pydantic import TypeAdapter, ValidationError

from agentrft.core.config import Methods, ProjectConfig, ServerConfig
from agentrft.core.errors import ConfigError, StoreError

T = TypeVar("T")

_SHOWN_ERRORS = 5
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def to_json(value: object) -> bytes:
    """Return UTF-8 JSON of a core dataclass; NaN and infinities stay readable by `from_json`.

    Half a surrogate pair, which a tool's JSON can contain but UTF-8 cannot, becomes U+FFFD.
    """
    try:
        return pydantic_core.to_json(value, inf_nan_mode="constants")
    except pydantic_core.PydanticSerializationError as error:
        if "surrogates not allowed" not in str(error):
            raise
        text = json.dumps(pydantic_core.to_jsonable_python(value), ensure_ascii=False)
        return _LONE_SURROGATE.sub("\ufffd", text).encode()


def from_json(kind: type[T], text: bytes | str) -> T:
    """Return the value that `to_json` wrote. Raises StoreError if the text does not fit."""
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StoreError(
            f"a stored {kind.__name__} cannot be read at '{_dotted(first['loc'])}': {first['msg']}"
        ) from error


def load_config(kind: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """Return the config a mapping describes.

    Raises ConfigError that names every wrong key or value by its dotted path, `source` first.
    """
    # JSON strictness is the right one for files: no "3" for 3, but a list is fine for a tuple.
    text = json.dumps(merged(_defaults(kind), mapping), default=str)
    try:
        return _adapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        lines = [_explain(kind, dict(problem)) for problem in error.errors(include_url=False)]
        hidden = len(lines) - _SHOWN_ERRORS
        shown = lines[:_SHOWN_ERRORS] + ([f"and {hidden} more"] if hidden > 0 else [])
        raise ConfigError("\n".join(f"{source}: {line}" for line in shown)) from None


def load_project_config(path: Path, preset: str | None = None) -> ProjectConfig:
    """Return the config in a project folder or its `agent.toml`.

    Each preset inherits from `[methods]`; a named one replaces `methods` in the result.
    Raises ConfigError for a missing or malformed file, unknown keys and unknown presets.
    """
    file = path / "agent.toml" if path.is_dir() else path
    table = read_toml(file)
    config = load_config(ProjectConfig, table, file.name)
    methods = table.get("methods", {})
    presets = {
        name: load_config(Methods, merged(methods, override), f"{file.name} [presets.{name}]")
        for name, override in table.get("presets", {}).items()
    }
    if preset is not None and preset not in presets:
        known = ", ".join(sorted(presets)) or "none"
        raise ConfigError(f"{file.name}: no preset {preset!r}; known presets: {known}")
    chosen = config.methods if preset is None else presets[preset]
    return dataclasses.replace(config, presets=presets, methods=chosen)


def load_server_config(home: Path) -> ServerConfig:
    """Return the server's config in a home folder; defaults if it has none.

    Raises ConfigError for a malformed file and unknown keys.
    """
    file = home / "server.toml"
    return load_config(ServerConfig, read_toml(file) if file.exists() else {}, file.name)


def read_toml(file: Path) -> dict[str, Any]:
    """Return the table in a file. Raises ConfigError if it is missing or malformed."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{file} does not exist; a project is a folder with an agent.toml"
        ) from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file.name} is not valid TOML: {error}") from error


def merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another one laid over it, table by table."""
    result = dict(base)
    for key, value in override.items():
        below = result.get(key)
        both_tables = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = (
            merged(cast(Mapping[str, Any], below), cast(Mapping[str, Any], value))
            if both_tables
            else value
        )
    return result


def _defaults(kind: type) -> dict[str, Any]:
    """Defaults as a mapping: a nested table keeps the defaults of its field, not of its type."""
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = pydantic_core.to_jsonable_python(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = pydantic_core.to_jsonable_python(field.default_factory())
    return defaults


def _explain(kind: type, problem: Mapping[str, Any]) -> str:
    location = cast(tuple[int | str, ...], problem["loc"])
    path = _dotted(location)
    if problem["type"] == "unexpected_keyword_argument":
        valid = _valid_keys(kind, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), valid, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"valid keys: {', '.join(valid)}"
        return f"unknown key '{path}'; {hint}"
    if problem["type"] == "missing" or problem["type"] == "missing_argument":
        return f"'{path}' is missing; add it"
    message = str(problem["msg"]).removeprefix("Input should be ")
    return f"'{path}' is {problem['input']!r}; expected {message}"


def _valid_keys(kind: type, path: tuple[int | str, ...]) -> list[str]:
    current: Any = kind
    for part in path:
        current = _step(current, part)
    return [field.name for field in dataclasses.fields(current)]


def _step(kind: Any, part: int | str) -> Any:
    """Return the type found under one key or index of a type."""
    if dataclasses.is_dataclass(kind):
        found: Any = typing.get_type_hints(kind)[str(part)]
    else:
        found = [a for a in typing.get_args(kind) if a is not Ellipsis][-1]
    if isinstance(found, types.UnionType):
        found = next(a for a in typing.get_args(found) if a is not types.NoneType)
    return found


def _dotted(location: tuple[int | str, ...]) -> str:
    def parts() -> Iterator[str]:
        for index, part in enumerate(location):
            yield f"[{part}]" if isinstance(part, int) else f"{'.' if index else ''}{part}"

    return "".join(parts())
