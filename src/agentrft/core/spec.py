"""Everything a rollout depends on besides weights: the one thing that search before training changes.

Applied at the boundary by `rollout/harness.py`: graders, tools, stored conversations and training
data keep canonical names. The default of every knob changes nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from agentrft.core.config import Decoding, Limits
from agentrft.core.task import Demonstration


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A named part of the system text, e.g. `role`, `policy`, `plan`, `stop`, `format`."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How a tool's output is shown; errors are never cut or reshaped."""

    form: Literal["raw", "fields", "key_value", "table"] = "raw"
    """All but `raw` need an output that is a JSON object or a list of objects, else it stays raw.
    `fields` keeps JSON, `key_value` writes one `name: value` per line, `table` one row per object."""
    fields: tuple[str, ...] = ()
    """Top-level keys that are shown, in this order; empty shows all."""
    max_characters: int = 0
    """Longer text is cut, with a note that says so; 0 cuts nothing."""
    keep: Literal["head", "tail", "both"] = "head"
    """Which end survives the cut."""
    shorten_ids: bool = False
    """Long identifiers become `#1`, `#2`; the model's arguments are mapped back."""
    error_hints: bool = False
    """An error is followed by the form of the call that is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolView:
    """One tool as the model is told about it."""

    exposed: bool = True
    name: str = ""
    """What the model calls it; empty for its own name."""
    parameters: Mapping[str, str] = field(default_factory=dict[str, str])
    """Canonical parameter name to the one that the model writes; those left out keep theirs."""
    description: str = ""
    """Empty for the tool's own."""
    argument_notes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Canonical parameter name to the description that the model reads."""
    schema: Literal["as_is", "flat", "strict"] = "as_is"
    """`flat` inlines nested objects one level (`address.street` becomes `address_street`), `strict`
    requires every parameter and allows no other."""
    rendering: Rendering | None = None
    """None takes the spec's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Which of the exposed tools a task is told about."""

    mode: Literal["all", "retrieved"] = "all"
    """`retrieved` keeps the tools whose name and description are nearest to the request (BM25)."""
    most: int = 0
    """Tools of `retrieved`."""
    always: tuple[str, ...] = ()
    """Canonical names that `retrieved` never leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precondition:
    """A tool that may run only after another one has succeeded in this rollout."""

    tool: str
    after: tuple[str, ...]
    """Any one of them suffices."""
    same_argument: str = ""
    """Parameter that must have had the same value in the earlier call; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """Checks between the model and its tools. All names are canonical."""

    coerce: bool = False
    """Arguments become the schema's types where nothing is lost: `"12"` a number, `12` a text, a
    near miss the enum's value."""
    nearest_names: bool = False
    """A tool or parameter name that is nearly right is taken for the nearest one."""
    block_duplicates: bool = False
    """The same call with the same arguments is not run again; it is answered with what it said.
    A reading may be repeated once something was changed, a refused call once another succeeded."""
    preconditions: tuple[Precondition, ...] = ()
    check_first: tuple[str, ...] = ()
    """Tools that change something: the first call is held and answered with what was read so far
    and the question whether it is right; the same call again runs."""
    confirm: tuple[str, ...] = ()
    """Tools that cannot be undone: a call runs only when it is written twice in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Demonstrations put before the task's own messages, as messages."""

    count: int = 0
    """0 to 8; those whose id is the task's are never shown."""
    selection: Literal["static", "nearest", "covering"] = "static"
    """`static` takes the first of the pool, `nearest` those whose request is nearest (BM25),
    `covering` the first of the pool with no family twice."""
    pool: tuple[Demonstration, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """Everything a rollout depends on besides weights."""

    sections: tuple[Section, ...] = ()
    """The system text in order, put before the task's own messages; none leaves them alone."""
    tools: Mapping[str, ToolView] = field(default_factory=dict[str, ToolView])
    """Canonical name to view; tools left out are shown as they are."""
    exposure: Exposure = field(default_factory=Exposure)
    rendering: Rendering = field(default_factory=Rendering)
    guards: Guards = field(default_factory=Guards)
    limits: Limits = field(default_factory=Limits)
    decoding: Decoding = field(default_factory=Decoding)
    shown: Shown = field(default_factory=Shown)

    @property
    def system(self) -> str:
        """The system text, sections joined by an empty line."""
        return "\n\n".join(section.text for section in self.sections if section.text)

    @property
    def hash(self) -> str:
        """16 hex digits over every field; not cheap with a large pool of demonstrations."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def system_sections(text: str) -> tuple[Section, ...]:
    """Return a system text as one section; none for an empty text."""
    return (Section(name="system", text=text),) if text else ()
