"""How a tool's output is shown to the model. Pure; what the tool said is kept elsewhere."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from agentrft.core.spec import Rendering

_LABEL = re.compile(r"(?<![\w#&])#\d+(?!\w)")
_DIGITS = 4
_IDENTIFIER = re.compile(
    r"(?<![\w@/:.-])(?!\d{4}-\d\d-\d\d)"  # not in addresses, and no dates
    r"[A-Za-z0-9][A-Za-z0-9_-]{10,}[A-Za-z0-9]"
    r"(?![\w@/:-]|\.\w)"
)

Object = Mapping[str, Any]


def formed(text: str, rendering: Rendering) -> str:
    """Return an output in its form; as it is if that form cannot hold it."""
    objects = _objects(text)
    if rendering.form == "raw" or not objects:
        return text
    chosen = [_chosen(one, rendering.fields) for one in objects]
    if not any(chosen):
        return text
    match rendering.form:
        case "fields":
            if not rendering.fields:
                return text
            shown = chosen if text.lstrip().startswith("[") else chosen[0]
            return json.dumps(shown, ensure_ascii=False)
        case "key_value":
            blocks = ("\n".join(f"{key}: {_word(one[key])}" for key in one) for one in chosen)
            return "\n\n".join(blocks)
        case "table":
            return _table(chosen)


def cut(text: str, rendering: Rendering) -> str:
    """Return the text cut to `max_characters`, with a note of what is missing in its place."""
    most = rendering.max_characters
    if not 0 < most < len(text):
        return text
    note = f"[{len(text) - most} of {len(text)} characters left out]"
    match rendering.keep:
        case "head":
            return f"{text[:most]}\n{note}"
        case "tail":
            return f"{note}\n{text[-most:]}"
        case "both":
            end = most // 2
            return f"{text[: most - end]}\n{note}\n{text[len(text) - end :]}"


class IdShortener:
    """Long identifiers of one conversation as `#1`, `#2`, in the order in which they were shown."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self._taken: set[str] = set()

    def seen(self, text: str) -> None:
        """Keep the labels that stand in a text from being given away."""
        self._taken.update(_LABEL.findall(text))

    def shorten(self, text: str) -> str:
        """Return the text with a label for every long identifier in it."""
        self.seen(text)
        return _IDENTIFIER.sub(lambda found: self._label(found[0]), text)

    def known(self, text: str) -> str:
        """Return the text with the labels of identifiers that were shown; new ones stay."""
        return _IDENTIFIER.sub(lambda found: self._labels.get(found[0], found[0]), text)

    def restore(self, text: str) -> str:
        """Return what the model wrote, e.g. its arguments, with identifiers for their labels."""
        return _LABEL.sub(lambda found: self._ids.get(found[0], found[0]), text)

    def _label(self, identifier: str) -> str:
        if sum(character.isdigit() for character in identifier) < _DIGITS or identifier.isdigit():
            return identifier
        if identifier not in self._labels:
            numbers = (f"#{n}" for n in range(1, len(self._taken) + len(self._ids) + 2))
            label = next(n for n in numbers if n not in self._taken and n not in self._ids)
            self._labels[identifier] = label
            self._ids[label] = identifier
        return self._labels[identifier]


def _objects(text: str) -> list[Object]:
    """Return the object or the objects that a text holds; none for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    values = cast(list[Any], value) if isinstance(value, list) else [value]
    return cast(list[Object], values) if all(isinstance(one, dict) for one in values) else []


def _chosen(one: Object, fields: Sequence[str]) -> Object:
    return {name: one[name] for name in fields if name in one} if fields else one


def _word(value: Any) -> str:
    """Return a value on one line; a text only in quotes if it has several."""
    if isinstance(value, str) and len(value.splitlines()) < 2:
        return value
    return json.dumps(value, ensure_ascii=False)


def _table(rows: Sequence[Object]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([_word(row[n]) if n in row else "" for n in columns] for row in rows)]
    return "\n".join(" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
