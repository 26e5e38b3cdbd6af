"""Reads the fields of a grader object; what is wrong is a ConfigError that names the path."""

import sys
from collections.abc import Collection, Mapping

from agentrft.core.errors import ConfigError
from agentrft.graders.template import Template, parse_template
from agentrft.graders.wire import grader_name


def only_keys(config: Mapping[str, object], keys: Collection[str], path: str) -> None:
    """Refuse a key that this type does not have."""
    for key in config:
        if key not in keys:
            raise ConfigError(f"{path}.{key} is unknown; {config['type']} has {', '.join(keys)}")


def name_field(config: Mapping[str, object], path: str, key: str) -> str:
    """Return the grader's name: its own, else its key in a multi grader, else one of its content."""
    if config.get("name") in (None, ""):
        return key or grader_name(config)
    return text_field(config, "name", path)


def text_field(config: Mapping[str, object], key: str, path: str) -> str:
    """Return a text that must be there."""
    value = config.get(key)
    if not isinstance(value, str):
        given = "is missing" if value is None else f"is {value!r}"
        raise ConfigError(f"{path}.{key} {given}; it must be a text")
    return value


def template_field(config: Mapping[str, object], key: str, path: str) -> Template:
    """Return a text with placeholders that must be there."""
    return parse_template(text_field(config, key, path), f"{path}.{key}")


def number_field(config: Mapping[str, object], key: str, path: str) -> float | None:
    """Return a number that may be left out."""
    value = config.get(key)
    if value is None:
        return None
    # The comparison is false for NaN too, and bears integers that no float can hold.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= sys.float_info.max
    ):
        raise ConfigError(f"{path}.{key} is {value!r}; it must be a finite number")
    return float(value)
