"""Right answers made wrong, and right answers written otherwise. Pure text, no grading."""

import json
import random
import re
from collections.abc import Mapping
from typing import Any, cast

from agentrft.audit.references import json_object

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_NEAR = 50
"""Numbers up to here are spoilt by one; larger ones by a tenth, which no tolerance means to allow."""
_LOOKALIKE = str.maketrans(
    "aceopxyiABCEHKMOPTX",
    "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0456\u0410\u0412\u0421\u0415\u041d\u041a\u041c\u041e\u0420\u0422\u0425",
)
_FULLWIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def number_in(text: str) -> str:
    """Return the number that a text is; empty if it is more or none."""
    stripped = text.strip()
    return stripped if _NUMBER.fullmatch(stripped) else ""


def near_misses(text: str, rng: random.Random) -> Mapping[str, str]:
    """Return wrong answers that differ little from this one, by what was changed."""
    if number_in(text):
        return _spoilt_number(number_in(text))
    if found := json_object(text):
        return _spoilt_object(found, rng)
    misses: dict[str, str] = {}
    if numbers := list(_NUMBER.finditer(text)):
        hit = rng.choice(numbers)
        other = _moved(hit[0])
        misses["one number changed"] = text[: hit.start()] + other + text[hit.end() :]
    items = [item.strip() for item in text.split(",")]
    # "Sorry, this cannot be done." is no list, and says the same without its first part.
    sentence = text.rstrip().endswith((".", "!", "?"))
    if len(items) > 1 and not sentence and all(len(item.split()) <= 4 for item in items):
        items.pop(rng.randrange(len(items)))
        misses["one list item missing"] = ", ".join(items)
    return misses


def _moved(number: str) -> str:
    """Return another number of the same looks."""
    value = float(number)
    step = 1.0 if abs(value) < _NEAR else abs(value) / 10
    decimals = len(number.partition(".")[2])
    return f"{value + step:.{decimals}f}"


def _spoilt_number(number: str) -> dict[str, str]:
    misses = {"off by a little": _moved(number), "ten times too much": f"{number}0"}
    if float(number) != 0:
        misses["wrong sign"] = number[1:] if number.startswith("-") else f"-{number}"
    if "." in number:
        whole, _, part = number.partition(".")
        misses["point misplaced"] = f"{whole}{part[:1]}.{part[1:] or '0'}"
        misses.pop("ten times too much")
    return misses


def _spoilt_object(found: dict[str, Any], rng: random.Random) -> dict[str, str]:
    misses: dict[str, str] = {}
    key = rng.choice(list(found))
    changed = _another(found[key])
    if changed != found[key]:
        misses["one field changed"] = json.dumps({**found, key: changed}, ensure_ascii=False)
    if len(found) > 1:
        fewer = {name: value for name, value in found.items() if name != key}
        misses["one field missing"] = json.dumps(fewer, ensure_ascii=False)
    lists = [name for name, value in found.items() if isinstance(value, list) and value]
    if lists:
        items = cast(list[Any], found[lists[0]])
        misses["one list item missing"] = json.dumps({**found, lists[0]: items[1:]})
    return misses


def _another(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + max(1, abs(value) // 10)
        case str():
            return _moved(value) if number_in(value) else f"other {value[::-1]}"
        case list():
            return [*cast(list[Any], value), "one more"]
        case dict():
            return {name: _another(entry) for name, entry in cast(dict[str, Any], value).items()}
        case _:
            return "something"


def lookalikes(text: str) -> Mapping[str, str]:
    """Return texts that look like this one and are not."""
    return {
        "letters of another script": text.translate(_LOOKALIKE),
        "full width": text.translate(_FULLWIDTH),
        "zero width joiners": "\u200d".join(text),
        "written right to left": f"\u202e{text[::-1]}\u202c",
        "combining marks": "".join(f"{char}\u0301" if char.isalpha() else char for char in text),
    }


def unsolved(text: str) -> Mapping[str, str]:
    """Return answers of the right shape that nobody thought about, given another row's answer."""
    if found := json_object(text):
        return {
            "right keys, empty values": json.dumps({key: _blank(v) for key, v in found.items()}),
            "right keys, null values": json.dumps(dict.fromkeys(found)),
        }
    if number_in(text):
        return {"zero": "0", "one": "1"}
    return {"a single word": "answer", "a placeholder": "[answer]"}


def _blank(value: Any) -> Any:
    match value:
        case bool():
            return False
        case int() | float():
            return 0
        case str():
            return ""
        case list():
            return []
        case dict():
            return {key: _blank(entry) for key, entry in cast(dict[str, Any], value).items()}
        case _:
            return None


def rewritings(text: str) -> Mapping[str, str]:
    """Return the same answer as another careful writer might put it."""
    if found := json_object(text):
        backwards = dict(reversed(found.items()))
        return {
            "trailing newline": f"{text}\n",
            "keys in another order": json.dumps(backwards, ensure_ascii=False),
            "indented": json.dumps(found, indent=2, ensure_ascii=False),
            "no spaces": json.dumps(found, separators=(",", ":"), ensure_ascii=False),
        }
    same = {"trailing newline": f"{text}\n", "spaces around": f"  {text} "}
    if number := number_in(text):
        same["in dollars signs"] = f"${text}$"
        if "." in number:
            same["trailing zero"] = f"{number}0"
        elif len(number.lstrip("-")) > 3:
            same["thousands separated"] = f"{int(number):,}"
        return same
    same["upper case"] = text.upper()
    same["lower case"] = text.lower()
    if " " in text:
        same["two spaces"] = text.replace(" ", "  ")
    else:
        same["full stop"] = f"{text}."
    return {label: other for label, other in same.items() if other != text}
