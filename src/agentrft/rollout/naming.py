"""What tools and parameters are called: canonical names to those the model uses, and back.

Pure. A map that is not one to one is a ConfigError that names what clashes. Values keep their
spelling on the way: 25.20 stays 25.20.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from agentrft.core.errors import ConfigError
from agentrft.core.spec import ToolView
from agentrft.core.task import ToolCall, ToolSpec
from agentrft.inference.calls import read_members
from agentrft.rollout.tools import ArgumentsError, read_object, type_word

NEAR = 0.8
"""Similarity (`difflib`) from which a name counts as nearly right."""

Place = tuple[str, ...]
"""Where a parameter stands: its canonical name, or that and a key of the object."""
Members = list[tuple[str, str]]
"""Keys of a JSON object with the texts of their values."""

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LIKE_A_NAME = r"(?=['\"`:=({]| has no argument)"


def members(text: str) -> Members | None:
    """Split the JSON text of an object; None if it is none."""
    try:
        read_object(text)
    except ArgumentsError:
        return None
    return [(key, raw) for key, _, raw in read_members(text or "{}")[0]]


def joined(found: Members) -> str:
    """Write a JSON object of members."""
    return f"{{{', '.join(f'{json.dumps(k, ensure_ascii=False)}: {raw}' for k, raw in found)}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolForm:
    """One tool under both names."""

    canonical: ToolSpec
    shown: ToolSpec
    """As the model is told about it."""
    places: Mapping[str, Place]
    """The model's name of each parameter to its place; objects that were inlined are among them."""
    groups: Mapping[str, frozenset[str]]
    """Parameters that were inlined, with their keys."""
    optional: frozenset[Place]
    """What the model must write although it is optional: null stands for leaving it out."""
    same: bool
    """Whether arguments are the same under both names, so that nobody needs to read them."""

    def to_canonical(self, arguments: str) -> str:
        """Return the arguments that the model wrote under their own names; no JSON stays as it is."""
        given = None if self.same else members(arguments)
        if given is None:
            return arguments
        found: Members = []
        inner: dict[str, Members] = {}
        for key, raw in given:
            group, *rest = place = self.places.get(key, (key,))
            if raw == "null" and place in self.optional:
                continue
            parts = [(rest[0], raw)] if rest else members(raw) if group in self.groups else None
            if parts is None:
                found.append((group, raw))
                continue
            if group not in inner:
                found.append((group, ""))
            inner.setdefault(group, []).extend(parts)
        found = [(key, raw or joined(inner[key])) for key, raw in found]
        found += [(group, "{}") for group in self._empty_groups() if group not in dict(found)]
        return arguments if found == given else joined(found)

    def to_model(self, arguments: str) -> str:
        """Return canonical arguments as the model would have written them."""
        given = None if self.same else members(arguments)
        if given is None:
            return arguments
        names = {place: name for name, place in self.places.items()}
        found: Members = []
        for key, raw in given:
            parts = members(raw) if key in self.groups else None
            if parts and all(name in self.groups[key] for name, _ in parts):
                found += [(names[key, name], part) for name, part in parts]
            else:
                found.append((names.get((key,), key), raw))
        written = dict(found)
        missing = [name for name, place in self.places.items() if place in self.optional]
        found += [(name, "null") for name in missing if name not in written]
        return arguments if found == given else joined(found)

    def hidden(self, arguments: str) -> str:
        """Return the first canonical name in arguments that the model was never told; else empty."""
        if self.same:
            return ""
        known = _properties(self.canonical)
        unknown = (key for key, _ in members(arguments) or () if key not in self.places)
        return next((key for key in unknown if key in known), "")

    def nearest(self, arguments: str) -> str:
        """Return arguments whose unknown keys are taken for the nearest that is not given."""
        given = members(arguments) or []
        free = [name for name in self.shown_names if name not in dict(given)]
        mended: Members = []
        for key, raw in given:
            near = "" if key in self.places else nearest_name(key, free)
            free = [name for name in free if name != near]
            mended.append((near or key, raw))
        return arguments if mended == given else joined(mended)

    @property
    def shown_names(self) -> tuple[str, ...]:
        """Parameters as the model is told about them."""
        return tuple(_properties(self.shown))

    @property
    def call_form(self) -> str:
        """How a call is to be written, e.g. `refund {"order_id": string, "amount": number}`."""
        required = self.shown.parameters.get("required", ())
        parts = [
            f"{json.dumps(name)}: {type_word(schema)}{'' if name in required else ' (optional)'}"
            for name, schema in _properties(self.shown).items()
        ]
        return f"{self.shown.name} {{{', '.join(parts)}}}"

    def renamed(self) -> Iterator[tuple[str, str]]:
        """Return canonical names, dotted where inlined, with the model's where these differ."""
        for name, place in self.places.items():
            if name != ".".join(place):
                yield ".".join(place), name

    def _empty_groups(self) -> Iterator[str]:
        """Objects that must be given and have no key that must."""
        required = self.canonical.parameters.get("required", ())
        for group in self.groups:
            if group in required and not _properties(self.canonical)[group].get("required"):
                yield group


class Names:
    """The map of a rollout's tools. Raises ConfigError if it is not one to one."""

    def __init__(self, tools: Sequence[ToolSpec], views: Mapping[str, ToolView]) -> None:
        self.forms = {
            spec.name: tool_form(spec, views.get(spec.name, ToolView())) for spec in tools
        }
        self.shown = tuple(form.shown for form in self.forms.values())
        """Tools as the model is told about them."""
        self.by_shown: dict[str, ToolForm] = {}
        for form in self.forms.values():
            other = self.by_shown.setdefault(form.shown.name, form)
            if other is not form:
                raise ConfigError(
                    f"the spec calls two tools {form.shown.name!r}: {other.canonical.name!r} and "
                    f"{form.canonical.name!r}; name one otherwise"
                )
        renamed = [(name, form.shown.name) for name, form in self.forms.items()]
        self._tools = {name: shown for name, shown in renamed if name != shown}

    def to_canonical(self, call: ToolCall) -> ToolCall:
        """Return what the model wrote under canonical names; a tool it was not told stays."""
        form = self.by_shown.get(call.name)
        if form is None or form.hidden(call.arguments):
            return call
        arguments = form.to_canonical(call.arguments)
        return replace(call, name=form.canonical.name, arguments=arguments)

    def to_model(self, call: ToolCall) -> ToolCall:
        """Return a canonical call as the model would have written it."""
        form = self.forms.get(call.name)
        if form is None:
            return call
        return replace(call, name=form.shown.name, arguments=form.to_model(call.arguments))

    def nearest(self, call: ToolCall) -> ToolCall:
        """Return a call as written with names that are nearly right put right."""
        name = call.name if call.name in self.by_shown else nearest_name(call.name, self.by_shown)
        form = self.by_shown.get(name)
        if form is None:
            return call
        return replace(call, name=name, arguments=form.nearest(call.arguments))

    def shown_name(self, name: str) -> str:
        """Return what the model calls a tool; unknown ones stay."""
        return self._tools.get(name, name)

    def told(self, text: str, tool: str) -> str:
        """Return a tool's error in the model's names.

        A name that is an ordinary word is one only where it is written like one; values that a
        schema lists stay as they are.
        """
        form = self.forms.get(tool)
        names = {**self._tools, **dict(form.renamed() if form else ())}
        if form:
            schemas = _properties(form.canonical).values()
            listed = [value for schema in schemas for value in schema.get("enum", ())]
            names = {name: shown for name, shown in names.items() if name not in listed}
        if not names:
            return text
        longest_first = sorted(names, key=len, reverse=True)
        pattern = "|".join(
            re.escape(name) + (_LIKE_A_NAME if name.isalpha() and name.islower() else "")
            for name in longest_first
        )
        return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", lambda found: names[found[0]], text)


def nearest_name(name: str, known: Collection[str]) -> str:
    """Return the nearest known name if it is near and no other is as near; else empty.

    >>> nearest_name("getOrder", ["get_order", "get_orders"])
    'get_order'
    """
    plain = re.sub(r"[\W_]", "", name).lower()
    alike = [one for one in known if re.sub(r"[\W_]", "", one).lower() == plain]
    if len(alike) == 1 and plain:
        return alike[0]
    near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=NEAR)
    ratios = [difflib.SequenceMatcher(None, one, name.lower()).ratio() for one in near]
    return near[0] if near and ratios[0] > max(ratios[1:], default=0.0) else ""


def tool_form(spec: ToolSpec, view: ToolView) -> ToolForm:
    """Apply a view to a tool. Raises ConfigError for names that are unknown, wrong or taken."""
    groups = _groups(spec) if view.schema == "flat" else {}
    own = [place for name in _properties(spec) for place in _places(name, groups)]
    _check_known(spec, view, {".".join(place) for place in own})
    places: dict[str, Place] = {}
    for place in own:
        name = _model_name(place, view)
        other = places.setdefault(name, place)
        if other != place:
            raise ConfigError(
                f"the spec calls two parameters of tool {spec.name!r} {name!r}: "
                f"{'.'.join(other)!r} and {'.'.join(place)!r}; name one otherwise"
            )
    name = view.name or spec.name
    if view.name and not _TOOL_NAME.fullmatch(name):
        raise ConfigError(
            f"the spec calls tool {spec.name!r} {name!r}, which is not 1 to 64 letters, digits, "
            "'_' or '-'"
        )
    changed = bool(view.parameters or view.argument_notes) or view.schema != "as_is"
    shown = replace(
        spec,
        name=name,
        description=view.description or spec.description,
        parameters=_parameters(spec, view, places, groups) if changed else spec.parameters,
    )
    optional = frozenset(
        place
        for place in places.values()
        if view.schema == "strict"
        and place[0] not in spec.parameters.get("required", ())
        and not _takes_null(_properties(spec)[place[0]])
    )
    return ToolForm(
        canonical=spec,
        shown=shown,
        places=places,
        groups=groups,
        optional=optional,
        same=not view.parameters and view.schema == "as_is",
    )


def _properties(spec: ToolSpec) -> Mapping[str, Mapping[str, Any]]:
    return cast(Mapping[str, Mapping[str, Any]], spec.parameters.get("properties") or {})


def _groups(spec: ToolSpec) -> dict[str, frozenset[str]]:
    """Parameters that are objects of named keys and nothing else."""
    return {
        name: frozenset(cast(Mapping[str, Any], schema["properties"]))
        for name, schema in _properties(spec).items()
        if schema.get("type") == "object"
        and schema.get("properties")
        and not schema.get("additionalProperties")
    }


def _places(name: str, groups: Mapping[str, frozenset[str]]) -> list[Place]:
    return [(name,), *((name, key) for key in sorted(groups.get(name, ())))]


def _model_name(place: Place, view: ToolView) -> str:
    names = view.parameters
    group = names.get(place[0], place[0])
    return names.get(".".join(place), "_".join((group, *place[1:])))


def _check_known(spec: ToolSpec, view: ToolView, known: set[str]) -> None:
    for name in (*view.parameters, *view.argument_notes):
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise ConfigError(
                f"the spec names a parameter {name!r} of tool {spec.name!r}; its parameters: {listed}"
            )
    for name, shown in view.parameters.items():
        if not shown:
            raise ConfigError(f"the spec gives parameter {name!r} of tool {spec.name!r} no name")


def _parameters(
    spec: ToolSpec,
    view: ToolView,
    places: Mapping[str, Place],
    groups: Mapping[str, frozenset[str]],
) -> Mapping[str, Any]:
    """Return the schema under the model's names."""
    required = spec.parameters.get("required", ())
    names = {place: name for name, place in places.items()}
    properties: dict[str, Any] = {}
    demanded: list[str] = []
    for name, schema in _properties(spec).items():
        note = view.argument_notes.get(name, "")
        if name not in groups:
            must = name in required
            strict = view.schema == "strict" and not must
            properties[names[name,]] = _noted(_nullable(schema) if strict else schema, note)
            demanded += [names[name,]] if must or view.schema == "strict" else []
            continue
        about = note or schema.get("description", "")
        for key, part in cast(Mapping[str, Mapping[str, Any]], schema["properties"]).items():
            own = view.argument_notes.get(f"{name}.{key}", part.get("description", ""))
            properties[names[name, key]] = _noted(part, " ".join(filter(None, (about, own))))
            must = name in required and key in schema.get("required", ())
            demanded += [names[name, key]] if must else []
    built: dict[str, Any] = {**spec.parameters, "properties": properties}
    if demanded or "required" in built:
        built["required"] = demanded
    if view.schema == "strict":
        built["additionalProperties"] = False
    return built


def _noted(schema: Mapping[str, Any], note: str) -> Mapping[str, Any]:
    return {**schema, "description": note} if note else schema


def _nullable(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if _takes_null(schema):
        return schema
    if not isinstance(schema.get("type"), str):
        return {"anyOf": [schema, {"type": "null"}]}
    nullable = {**schema, "type": [schema["type"], "null"]}
    return {**nullable, "enum": [*schema["enum"], None]} if "enum" in schema else nullable


def _takes_null(schema: Mapping[str, Any]) -> bool:
    if "enum" in schema:
        return None in schema["enum"]
    options = (*schema.get("anyOf", ()), *schema.get("oneOf", ()))
    kind = schema.get("type")
    kinds = cast(list[str], kind) if isinstance(kind, list) else [kind]
    return "null" in kinds or (kind is None and not options) or any(map(_takes_null, options))
