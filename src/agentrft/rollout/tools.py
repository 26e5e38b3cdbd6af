"""What makes a method a tool: a schema from type hints and docstring, and checked arguments.

The model's mistakes become error results that say what is expected; a mistake in the tool's
definition is a `UserError` when the tools are first described.
"""

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeVar, cast, get_type_hints, overload

from agentrft.core.errors import UserError
from agentrft.core.task import ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult

F = TypeVar("F", bound=Callable[..., object])


class ToolRefusal(Exception):
    """Raise it in a tool to refuse the call; the model sees the text and may recover."""


class ArgumentsError(Exception):
    """The model's arguments do not fit; the text says what is expected."""


class ToolMethod:
    """A method marked with `@tool`; called from Python it is the plain method."""

    def __init__(self, function: Callable[..., object], name: str, *, read_only: bool) -> None:
        self.function = function
        self.name = name
        self.read_only = read_only

    def __get__(self, instance: object, owner: type | None = None) -> object:
        return self if instance is None else MethodType(self.function, instance)


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(*, name: str = "", read_only: bool = False) -> Callable[[F], F]: ...
def tool(
    function: F | None = None, /, *, name: str = "", read_only: bool = False
) -> F | Callable[[F], F]:
    """Offer an `Environment` method, sync or async, to the model; bare or as `@tool(name=...)`.

    `read_only` says that a call changes nothing: the audit, the guards and the diagnosis then know it.

    Type hints become the JSON schema, the docstring the description; sentences `name: text` or a
    Google-style `Args:` section become argument notes. Raise `ToolRefusal` to refuse a call.
    """

    def mark(function: F) -> F:
        return cast(F, ToolMethod(function, name or function.__name__, read_only=read_only))

    return mark if function is None else mark(function)


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter of a tool."""

    convert: Callable[[object], object]
    """Check and convert one value; raises pydantic's ValidationError."""
    schema: Mapping[str, Any]
    required: bool


@dataclass(frozen=True, slots=True)
class PythonTool:
    """A described tool."""

    spec: ToolSpec
    function: Callable[..., object]
    arguments: Mapping[str, Argument]

    def read_arguments(self, text: str) -> dict[str, Any]:
        """Parse and check the model's JSON. Raises ArgumentsError."""
        try:
            given = read_object(text)
        except ArgumentsError as error:
            raise ArgumentsError(f"{error}; {self._expected()}") from None
        for name in given:
            if name not in self.arguments:
                raise ArgumentsError(
                    f"{self.spec.name} has no argument {name!r}; {self._expected()}"
                )
        for name, argument in self.arguments.items():
            if argument.required and name not in given:
                raise ArgumentsError(f"argument {name!r} is missing; {self._expected()}")
        return {name: self._read(name, value) for name, value in given.items()}

    def _read(self, name: str, value: Any) -> Any:
        from pydantic import ValidationError

        try:
            return self.arguments[name].convert(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            path = ".".join(str(part) for part in (name, *first["loc"]))
            shown = json.dumps(value, ensure_ascii=False)[:80]
            raise ArgumentsError(
                f"argument {path!r}: {first['msg']}, got {shown}; {self._expected()}"
            ) from None

    def _expected(self) -> str:
        parts = [
            f"{name}: {type_word(argument.schema)}{'' if argument.required else ' (optional)'}"
            for name, argument in self.arguments.items()
        ]
        return f"expected {{{', '.join(parts)}}}" if parts else "it takes no arguments, write {}"


def read_object(text: str) -> dict[str, Any]:
    """Parse the arguments of a call; empty text means none. Raises ArgumentsError.

    Stricter than `json`: NaN and halves of characters are not JSON, whatever Python thinks.
    """
    try:
        given = _DECODER.decode(text or "{}")
        if "\\u" in text or not text.isascii():
            json.dumps(given, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ArgumentsError(f"the arguments are not valid JSON ({error})") from None
    if not isinstance(given, dict):
        raise ArgumentsError("the arguments must be a JSON object")
    return cast(dict[str, Any], given)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


# Of its own, for `json.loads` makes a new one whenever it is given more than the text.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def describe_tool(method: ToolMethod, owner: str) -> PythonTool:
    """Build the spec of a tool method. Raises UserError if hints or docstring are missing."""
    where = f"tool {method.name!r} of {owner}"
    signature = inspect.signature(method.function)
    parameters = list(signature.parameters.values())[1:]
    hints = _hints(method.function, where)
    documentation = inspect.getdoc(method.function) or ""
    description, notes = split_docstring(documentation, [p.name for p in parameters])
    if not description:
        raise UserError(
            f"{where} has no description; write a docstring that tells the model what it does"
        )
    arguments: dict[str, Argument] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UserError(
                f"{where}: '*{parameter.name}' has no schema; name every parameter with a type hint"
            )
        if parameter.name not in hints:
            raise UserError(
                f"{where}: parameter {parameter.name!r} has no type hint; "
                f"write for example '{parameter.name}: str'"
            )
        arguments[parameter.name] = _argument(
            hints[parameter.name],
            notes.get(parameter.name, ""),
            required=parameter.default is parameter.empty,
            where=f"{where}: parameter {parameter.name!r}",
        )
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: argument.schema for name, argument in arguments.items()},
        "required": [name for name, argument in arguments.items() if argument.required],
    }
    spec = ToolSpec(
        name=method.name, description=description, parameters=schema, read_only=method.read_only
    )
    return PythonTool(spec, method.function, arguments)


def _hints(function: Callable[..., object], where: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UserError(
            f"{where}: a type hint cannot be resolved ({error}); import the type"
        ) from error


def _argument(hint: Any, note: str, *, required: bool, where: str) -> Argument:
    # Imported here: `import agentrft` and the command line start in half the time without it.
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    try:
        try:
            # A refund of NaN passes every comparison that should stop it.
            adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))
        except PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
            adapter = TypeAdapter(hint)
        full = adapter.json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{where} has type {hint!r}, which has no JSON form ({reason}); "
            "use str, int, float, bool, Literal, Enum, list, dict or a dataclass"
        ) from error
    schema = _compact(full, full.get("$defs", {}), where)
    if note:
        schema["description"] = note
    return Argument(adapter.validate_python, schema, required)


def _compact(schema: Any, definitions: Mapping[str, Any], where: str, depth: int = 0) -> Any:
    """Inline references and drop what costs tokens and tells the model nothing."""
    if depth > 20:
        raise UserError(f"{where} has a type that contains itself; use a flat type")
    if isinstance(schema, list):
        return [_compact(s, definitions, where, depth + 1) for s in cast(list[Any], schema)]
    if not isinstance(schema, dict):
        return schema
    node = cast(dict[str, Any], schema)
    if "$ref" in node:
        target = definitions[str(node["$ref"]).rsplit("/", 1)[-1]]
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    options = node.get("anyOf")
    if (
        isinstance(options, list)
        and {"type": "null"} in options
        and len(cast(list[Any], options)) == 2
    ):
        (option,) = [o for o in cast(list[Any], options) if o != {"type": "null"}]
        rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        return _compact({**option, **rest}, definitions, where, depth + 1)
    compact: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            named = cast(dict[str, Any], value)
            compact[key] = {n: _compact(v, definitions, where, depth + 1) for n, v in named.items()}
        elif key not in ("title", "$defs"):
            compact[key] = _compact(value, definitions, where, depth + 1)
    return compact


def type_word(schema: Mapping[str, Any]) -> str:
    """Return the type of a value as an error names it."""
    if "enum" in schema:
        return " or ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type", "any")
    return " or ".join(cast(list[str], kind)) if isinstance(kind, list) else str(kind)


_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_ARGUMENT_LINE = re.compile(r"^\s+\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def split_docstring(text: str, parameters: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the description and the argument notes of a docstring.

    >>> split_docstring("Look an order up. order_id: as printed, e.g. W1.", ["order_id"])
    ('Look an order up.', {'order_id': 'as printed, e.g. W1.'})
    """
    names = set(parameters)
    prose: list[str] = []
    notes: dict[str, str] = {}
    section = current = ""
    indent = 0
    for line in text.splitlines():
        if header := _SECTION.match(line):
            section, current = header[1], ""
        elif not section or (line.strip() and not line[0].isspace()):
            section = ""
            prose.append(line)
        elif section in ("Args", "Arguments", "Parameters"):
            named = _ARGUMENT_LINE.match(line)
            depth = len(line) - len(line.lstrip())
            if named and (named[1] in names or depth <= indent):
                indent = depth
                current = named[1] if named[1] in names else ""
                if current:
                    notes[current] = named[2]
            elif current:
                notes[current] += f" {line.strip()}"
    description: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(prose)):
        lead, found = _sentence_notes(" ".join(paragraph.split()), names)
        description.append(lead)
        notes |= found
    return " ".join(filter(None, description)), {n: " ".join(t.split()) for n, t in notes.items()}


def _sentence_notes(paragraph: str, names: set[str]) -> tuple[str, dict[str, str]]:
    if not names:
        return paragraph, {}
    pattern = "|".join(re.escape(name) for name in sorted(names))
    pieces = re.split(rf"(?:^|(?<=[.!?;,])\s+)({pattern}): ", paragraph)
    return pieces[0].strip(), dict(zip(pieces[1::2], pieces[2::2], strict=True))


def output_text(value: object) -> str:
    """Return what the model sees of a tool's return value: text as it is, the rest as JSON."""
    if isinstance(value, str):
        return value
    from pydantic_core import to_jsonable_python

    plain = to_jsonable_python(value)
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def error_result(call: ToolCall, text: str) -> ToolResult:
    """Make a result that tells the model what went wrong."""
    return ToolResult(call_id=call.id, name=call.name, content=f"Error: {text}", is_error=True)


def unknown_tool(call: ToolCall, names: Iterable[str]) -> ToolResult:
    """Answer a call of a tool that does not exist, with the nearest name."""
    known = sorted(names)
    near = difflib.get_close_matches(call.name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = f"tools: {', '.join(known)}" if known else "there are no tools here"
    return error_result(call, f"there is no tool {call.name!r}; {hint}{listed}")
