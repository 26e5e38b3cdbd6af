"""What an answer must be, as grammars that engines force: a JSON value, or a turn of text or calls.

The texts are Lark as llguidance reads it; nothing here knows a tokenizer or a model.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from llguidance import LLMatcher

from agentrft.core.errors import UserError, boundary
from agentrft.core.task import ToolSpec

TEXT_CHARACTERS = 500
"""Of a text in a call whose schema sets no `maxLength`: a lost model that may go on for ever does."""
ITEMS = 20
"""Of a list or a map in a call whose schema sets no bound."""
CALLS = 4
"""Of one turn."""
_KEY_CHARACTERS = 64
_MAGNITUDE = 10**15
_NESTED = 2
"""How deep a value may be of which the schema says nothing."""
_MOST_SCHEMA_CHARACTERS = 100_000

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write it: blanks wherever they may stand are a place to get lost for a small model."""
_CALL_STYLE = {**_STYLE, "coerce_one_of": True}

_FORMATS = frozenset(
    "date-time time date duration email hostname ipv4 ipv6 uuid uri".split()  # those it can force
)
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTED = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SINGLE = frozenset({"items", "additionalProperties"})
_COMPOSED = frozenset({"$ref", "anyOf", "oneOf", "allOf"})
_SAYS = _NAMED | _LISTED | _SINGLE | _COMPOSED | {"type", "enum", "const"}
"""A schema without any of these says nothing about the form of a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWriting:
    """How a model family writes calls: what stands around their names and arguments.

    Names and arguments are JSON; control tokens stand in these texts as their names.
    """

    before: str
    """Up to the name of the first call."""
    between: str
    """From a name to its arguments."""
    joint: str
    """From arguments to the name of the next call; empty where a turn holds only one."""
    after: str
    """From the last arguments to the stop token."""
    bare: bool
    """A call is told by its opening brace, not by tags around it."""


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of one JSON value. Raises UserError for a schema beyond all measure."""
    text = json.dumps({**schema, "x-guidance": _STYLE})
    if len(text) > _MOST_SCHEMA_CHARACTERS:
        raise UserError(
            f"the JSON schema has {len(text)} characters; at most {_MOST_SCHEMA_CHARACTERS} are read"
        )
    return f"start: %json {text}"


def turn_grammar(
    writing: CallWriting,
    controls: Mapping[str, int],
    tools: Sequence[ToolSpec],
    *,
    must_call: bool,
) -> str:
    """Return the grammar of a turn that is text or calls of these tools, or only the latter.

    Text is not blank and holds no mark of a call. Raises UserError, naming the tool, for schemas that
    cannot be forced.
    """
    if must_call and not tools:
        raise UserError(
            "the first turn must be a call (decoding.grammar = 'call_first') and there are no tools; "
            "offer some or set it to 'calls' or 'off'"
        )
    between = _scaffold(writing.between, controls)
    calls = [f"{_name(tool)} {between} {_arguments(tool)}" for tool in tools]
    lines = ["start: calls" if must_call else "start: TEXT | calls" if tools else "start: TEXT"]
    if calls:
        before, joint, after = (
            _scaffold(text, controls) for text in (writing.before, writing.joint, writing.after)
        )
        more = f"({joint} call){{0,{CALLS - 1}}}" if writing.joint else ""
        lines += [f"calls: {before} call {more} {after}", "call: " + "\n    | ".join(calls)]
    if not must_call:
        lines.append(f"TEXT: {_text(writing)}")
    return "\n".join(lines)


def _text(writing: CallWriting) -> str:
    if writing.bare:
        return r"/[\s\x1c-\x1f]*[^\s\x1c-\x1f{](?s:.*)/"
    return r"/\s*\S(?s:.*)/ & ~/(?s:.*)(<tool_call>|<\/tool_call>)(?s:.*)/"


def _scaffold(text: str, controls: Mapping[str, int]) -> str:
    """Return text with control tokens in it as terms; these can be written in no other way."""
    names = sorted(controls, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names)) or '(?!)'})", text)
    terms = [f"<[{controls[p]}]>" if p in controls else json.dumps(p) for p in parts if p]
    return " ".join(terms)


def _name(tool: ToolSpec) -> str:
    if not tool.name or not tool.name.isprintable():
        raise UserError(
            f"a call of tool {tool.name!r} could not be read; give it a name of printable characters "
            "or set decoding.grammar to 'off'"
        )
    return json.dumps(json.dumps(tool.name, ensure_ascii=False))


def _arguments(tool: ToolSpec) -> str:
    with boundary(UserError, f"the schema of tool {tool.name!r} cannot be read"):
        schema = call_schema(tool.parameters)
        term = f"%json {json.dumps({**schema, 'x-guidance': _CALL_STYLE})}"
    if reason := _refusal(term):
        raise UserError(
            f"the arguments of tool {tool.name!r} cannot be forced into its schema: {reason}; change "
            "the schema or set decoding.grammar to 'off'"
        )
    return term


@lru_cache(maxsize=1024)
def _refusal(term: str) -> str:
    """Return why a schema cannot be forced; empty if it can."""
    return first_line(LLMatcher.validate_grammar(f"start: {term}"))


def first_line(error: str) -> str:
    """Return what is wrong with a grammar, without the grammar."""
    return re.sub(r"^at \d+\(\d+\): ", "", error.strip().partition("\n")[0])


def call_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema of arguments that fit `parameters` and end: texts, lists and maps are bounded.

    Objects that name their properties hold no others, unless the schema allows them in words or is
    put together with `allOf`. Three things are relaxed: `oneOf` reads as `anyOf`, and `uniqueItems`
    and formats that llguidance does not know are left to the tool.
    """
    schema = {**parameters, "type": "object"}
    if not (_NAMED | _SINGLE | _COMPOSED) & schema.keys():
        schema["properties"] = {}
    return _Bounds(closes='"allOf"' not in json.dumps(schema)).within(schema)


@dataclass(frozen=True, slots=True)
class _Bounds:
    closes: bool
    """Whether objects that name their properties are taken to hold no others."""

    def within(self, schema: Any) -> Any:
        """Return a schema whose values all fit `schema` and have a greatest length."""
        if not isinstance(schema, Mapping):
            return _anything(_NESTED) if schema is True else schema
        given = cast(Mapping[str, Any], schema)
        result = {key: self._part(key, value) for key, value in given.items() if _kept(key, value)}
        if not _SAYS & given.keys():
            return {**result, **_anything(_NESTED)}
        if "properties" in result:
            result.setdefault("type", "object")
        if not {"enum", "const"} & result.keys():
            named: Any = result.get("type", ())
            types: set[str] = {named} if isinstance(named, str) else set(named)
            _bound_values(result, types)
            if "object" in types and not _COMPOSED & result.keys():
                self._bound_object(result)
        return result

    def _part(self, key: str, value: Any) -> Any:
        if key in _NAMED and isinstance(value, Mapping):
            named = cast(Mapping[str, Any], value)
            return {name: self.within(part) for name, part in named.items()}
        if key in _LISTED | _SINGLE and isinstance(value, list):
            return [self.within(part) for part in cast(list[Any], value)]
        return self.within(value) if key in _SINGLE else value

    def _bound_object(self, schema: dict[str, Any]) -> None:
        required = set(schema.get("required", ()))
        if "properties" in schema:
            if self.closes and required <= schema["properties"].keys():
                schema.setdefault("additionalProperties", False)
        elif not required and "patternProperties" not in schema:
            values = schema.get("additionalProperties", _anything(_NESTED))
            if values is not False:
                schema |= {"maxProperties": ITEMS, **schema, **_keys(values)}


def _kept(key: str, value: Any) -> bool:
    return key != "uniqueItems" and (key != "format" or str(value) in _FORMATS)


def _bound_values(schema: dict[str, Any], types: set[str]) -> None:
    if "string" in types:
        schema.setdefault("maxLength", max(TEXT_CHARACTERS, schema.get("minLength", 0)))
    if "array" in types:
        schema.setdefault("maxItems", max(ITEMS, schema.get("minItems", 0)))
        schema.setdefault("items", _anything(_NESTED))
    if types & {"number", "integer"}:
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None:
            schema["minimum"] = min(0, high or 0) - _MAGNITUDE
        if high is None:
            schema["maximum"] = max(0, low or 0) + _MAGNITUDE


def _keys(values: Any) -> dict[str, Any]:
    """Return the part of a schema that lets keys of some length hold such values."""
    pattern = f"^.{{1,{_KEY_CHARACTERS}}}$"
    return {"patternProperties": {pattern: values}, "additionalProperties": False}


def _anything(depth: int) -> dict[str, Any]:
    """Return a schema of every JSON value of some size."""
    types = ["string", "number", "boolean", "null", *(["array", "object"] if depth else [])]
    schema: dict[str, Any] = {
        "type": types,
        "maxLength": TEXT_CHARACTERS,
        "minimum": -_MAGNITUDE,
        "maximum": _MAGNITUDE,
    }
    if depth:
        values = _anything(depth - 1)
        schema |= {"items": values, "maxItems": ITEMS, "maxProperties": ITEMS, **_keys(values)}
    return schema
