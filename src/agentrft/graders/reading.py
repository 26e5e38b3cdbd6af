"""What a grader object says of itself before it is built: its parts and what they read."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from agentrft.graders.template import Placeholder, parse_template


def keys_read(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of a row that a grader object reads, as far as its text shows."""
    keys: list[str] = []
    for part in parts(config):
        for node in (part.get("input"), part.get("reference")):
            found = [piece for piece in placeholders(node) if piece.namespace == "item"]
            keys += [str(piece.steps[0]) for piece in found if piece.steps]
        keys += re.findall(r"""\bitem(?:\.get\(|\[)\s*["'](\w+)["']""", str(part.get("source", "")))
    return tuple(dict.fromkeys(keys))


def parts(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the graders that look at an output: those of a multi, or the object itself."""
    graders = cast(Mapping[str, Mapping[str, Any]] | None, config.get("graders"))
    return tuple(graders.values()) if graders else (config,)


def placeholders(node: object) -> Iterator[Placeholder]:
    """Yield the placeholders of every text in a template or a list of messages."""
    match node:
        case str():
            pieces = parse_template(node, "grader").pieces
            yield from (piece for piece in pieces if isinstance(piece, Placeholder))
        case Mapping():
            for value in cast(Mapping[str, object], node).values():
                yield from placeholders(value)
        case list() | tuple():
            for value in cast(Sequence[object], node):
                yield from placeholders(value)
        case _:
            return
