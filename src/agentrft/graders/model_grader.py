"""`score_model` and `label_model`: another model reads the output and judges it.

A refusal, a cut reply and one that cannot be read are errors, never zeros.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Role, Task
from agentrft.core.trajectory import Trajectory
from agentrft.egress.client import idempotency_key
from agentrft.graders.backends import Backends
from agentrft.graders.fields import name_field, number_field, only_keys, text_field
from agentrft.graders.model_prompt import PromptMessage, render
from agentrft.graders.model_reply import read_number, read_reply, reply_schema, unreadable
from agentrft.graders.template import AbsentFromOutput, Template, parse_template, sample_of
from agentrft.inference.grader_model import GraderModel, GradingReply, GradingRequest

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_TEXTS = ("text", "input_text", "output_text")
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_SAMPLING = ("seed", "top_p", "temperature", "max_completions_tokens", "reasoning_effort")


class Scale(Protocol):
    """How the result of a reply becomes a score."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """JSON schema of the result."""
        ...

    @property
    def asked(self) -> str:
        """The result in words."""
        ...

    @property
    def least(self) -> float:
        """The lowest score there is."""
        ...

    def score(self, result: object, text: str, where: str) -> tuple[float, str]:
        """Return score and remark. Raises GraderError for a result that is not on the scale."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberScale:
    """A number, clipped to a range."""

    low: float = 0.0
    high: float = 1.0

    @property
    def schema(self) -> Mapping[str, Any]:
        """A number within the range."""
        return {"type": "number", "minimum": self.low, "maximum": self.high}

    @property
    def asked(self) -> str:
        """The range in words."""
        return f"a number from {self.low:g} to {self.high:g}"

    @property
    def least(self) -> float:
        """The range's lower end."""
        return self.low

    def score(self, result: object, text: str, where: str) -> tuple[float, str]:
        """Clip, and say so."""
        number = read_number(result, text, where)
        score = min(max(number, self.low), self.high) + 0.0  # no negative zero
        return score, "" if score == number else f"clipped from {number:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScale:
    """One of several labels; the passing ones are worth 1."""

    labels: tuple[str, ...]
    passing: frozenset[str]

    @property
    def schema(self) -> Mapping[str, Any]:
        """One of the labels."""
        return {"type": "string", "enum": list(self.labels)}

    @property
    def asked(self) -> str:
        """The labels in words."""
        return "one of these labels: " + ", ".join(f'"{label}"' for label in self.labels)

    @property
    def least(self) -> float:
        """No label is worth less."""
        return 0.0

    def score(self, result: object, text: str, where: str) -> tuple[float, str]:
        """Look the label up; spelling counts."""
        if result not in self.labels:
            raise unreadable(where, text, f"`result` is not {self.asked}")
        return float(result in self.passing), f"label {result}"


def draw_nonce() -> str:
    """Return a number that nobody can guess."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGrader:
    """Asks a model once per rollout."""

    name: str
    model: str
    """As the grader object names it; token use is counted under it."""
    backend: GraderModel
    messages: tuple[PromptMessage, ...]
    scale: Scale
    asking: GradingRequest = field(default_factory=lambda: GradingRequest(messages=()))
    """Sampling parameters of every question."""
    draw: Callable[[], str] = draw_nonce
    """Makes the numbers of data blocks; a text that holds one is given another."""

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Ask and read the reply. Raises GraderError for a row that lacks a path and for no score."""
        try:
            request = self.request(task, trajectory)
        except AbsentFromOutput as absent:
            # On a range that reaches below zero, a zero would be a reward for writing nothing.
            return replace(absent.grade(self.name), score=min(0.0, self.scale.least))
        return self.read(await self.backend.ask(request))

    def request(self, task: Task, trajectory: Trajectory) -> GradingRequest:
        """Return the question. Raises GraderError, and AbsentFromOutput if it cannot be put."""
        sample = sample_of(trajectory)
        written = str(sample)
        nonce = next(nonce for nonce in iter(self.draw, "") if nonce not in written)
        return replace(
            self.asking,
            messages=render(
                self.messages, task.row, sample, nonce=nonce, answer_form=self._answer_form
            ),
            schema=reply_schema(self.scale.schema),
            key=idempotency_key(trajectory.id, f"grade:{self.name}:{nonce}"),
        )

    def read(self, reply: GradingReply) -> Grade:
        """Return what a reply says. Raises GraderError for one that says no score."""
        where = f"grader {self.name!r}: model {self.model!r}"
        usage = {self.model: reply.usage}
        try:
            result, conclusions = read_reply(reply, where)
            score, remark = self.scale.score(result, reply.text, where)
        except GraderError as error:
            error.usage = usage
            raise
        return Grade(
            score=score,
            explanation="; ".join(part for part in (remark, conclusions) if part),
            grader=self.name,
            usage=usage,
        )

    @property
    def _answer_form(self) -> str:
        return (
            'Reply with one JSON object and nothing else: {"steps": [{"description": "...", '
            '"conclusion": "..."}], "result": ...}. Write your reasoning into the steps, a few short '
            f"ones. `result` is {self.scale.asked}."
        )


def build_model_grader(
    config: Mapping[str, object], path: str, name: str, backends: Backends
) -> ModelGrader:
    """Build a `score_model` or `label_model`. Raises ConfigError naming the path."""
    own = ("range", "pass_threshold") if config["type"] == "score_model" else _LABEL_KEYS
    only_keys(config, ("type", "name", "model", "input", *own, "sampling_params"), path)
    number_field(config, "pass_threshold", path)  # for reports; it changes no score
    model = text_field(config, "model", path)
    if model not in backends.models:
        known = ", ".join(sorted(backends.models)) or "none"
        raise ConfigError(
            f"{path}.model {model!r} is no grader model here; configured: {known}. Add "
            f'[grader_models."{model}"] to agent.toml of the project, or to server.toml for jobs'
        )
    return ModelGrader(
        name=name_field(config, path, name),
        model=model,
        backend=backends.models[model],
        messages=_messages(config.get("input"), f"{path}.input"),
        scale=_range(config, path) if config["type"] == "score_model" else _labels(config, path),
        asking=_sampling(config.get("sampling_params"), f"{path}.sampling_params"),
    )


_LABEL_KEYS = ("labels", "passing_labels")


def _range(config: Mapping[str, object], path: str) -> NumberScale:
    given = config.get("range")
    if given is None:
        return NumberScale()
    ends = cast(Sequence[object], given) if isinstance(given, list | tuple) else ()
    numbers = [number_field({"range": end}, "range", path) for end in ends]
    match numbers:
        case [float() as low, float() as high] if low < high:
            return NumberScale(low=low, high=high)
        case _:
            raise ConfigError(f"{path}.range is {given!r}; it must be [lowest, highest]")


def _labels(config: Mapping[str, object], path: str) -> LabelScale:
    labels = _texts(config.get("labels"), f"{path}.labels")
    passing = _texts(config.get("passing_labels"), f"{path}.passing_labels")
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{path}.labels has a label twice")
    if unknown := [label for label in passing if label not in labels]:
        raise ConfigError(f"{path}.passing_labels: {unknown[0]!r} is none of the labels")
    return LabelScale(labels=labels, passing=frozenset(passing))


def _texts(value: object, path: str) -> tuple[str, ...]:
    texts = cast(Sequence[object], value) if isinstance(value, list | tuple) else ()
    found = tuple(text for text in texts if isinstance(text, str) and text)
    if not found or len(found) < len(texts):
        raise ConfigError(f"{path} is {value!r}; it must be a list of texts, at least one")
    return found


def _messages(value: object, path: str) -> tuple[PromptMessage, ...]:
    entries = cast(Sequence[object], value) if isinstance(value, list | tuple) else ()
    if not entries:
        raise ConfigError(f"{path} must be a list of messages, at least one")
    messages: list[PromptMessage] = []
    for index, entry in enumerate(entries):
        at = f"{path}[{index}]"
        fields = _object(entry, at, ("type", "role", "content"))
        if fields.get("type", "message") != "message":
            raise ConfigError(f"{at}.type is {fields['type']!r}; it must be 'message'")
        role = fields.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise ConfigError(f"{at}.role is {role!r}; one of: {', '.join(_ROLES)}")
        text = _content(fields.get("content"), f"{at}.content")
        messages.append(PromptMessage(role=_ROLES[role], text=text))
    return tuple(messages)


def _content(value: object, path: str) -> Template:
    if isinstance(value, str):
        return parse_template(value, path)
    if isinstance(value, Mapping):
        return _part(cast(object, value), path)
    parts = cast(Sequence[object], value) if isinstance(value, list | tuple) else ()
    if not parts:
        raise ConfigError(f"{path} must be a text or a list of parts, at least one")
    pieces = [
        piece
        for index, part in enumerate(parts)
        for piece in (
            parse_template(part, f"{path}[{index}]")
            if isinstance(part, str)
            else _part(part, f"{path}[{index}]")
        ).pieces
    ]
    return Template(tuple(pieces))


def _part(value: object, path: str) -> Template:
    if isinstance(value, Mapping):
        kind = cast(Mapping[str, object], value).get("type")
        if kind not in _TEXTS:
            raise ConfigError(
                f"{path}.type {kind!r} is not supported; grader models here read text, in parts of "
                f"type {', '.join(_TEXTS)}"
            )
    fields = _object(value, path, ("type", "text"))
    return parse_template(text_field(fields, "text", path), f"{path}.text")


def _sampling(value: object, path: str) -> GradingRequest:
    if value is None:
        return GradingRequest(messages=())
    fields = _object(value, path, _SAMPLING)
    effort = fields.get("reasoning_effort")
    if effort is not None and effort not in _EFFORTS:
        raise ConfigError(f"{path}.reasoning_effort is {effort!r}; one of: {', '.join(_EFFORTS)}")
    temperature = _within(fields, "temperature", path, 0, 2)
    if effort is not None and temperature is not None:
        raise ConfigError(
            f"{path}: reasoning models take no temperature; leave it or reasoning_effort out"
        )
    top_p = _within(fields, "top_p", path, 0, 1)
    if top_p == 0:
        raise ConfigError(f"{path}.top_p is 0; it must be above 0")
    most = _whole(fields, "max_completions_tokens", path)
    if most is not None and most < 1:
        raise ConfigError(f"{path}.max_completions_tokens is {most}; it must be at least 1")
    return GradingRequest(
        messages=(),
        max_tokens=most,
        temperature=temperature,
        top_p=top_p,
        seed=_whole(fields, "seed", path),
        reasoning_effort=None if effort is None else str(effort),
    )


def _within(
    fields: Mapping[str, object], key: str, path: str, low: float, high: float
) -> float | None:
    value = number_field(fields, key, path)
    if value is not None and not low <= value <= high:
        raise ConfigError(f"{path}.{key} is {value:g}; it must be from {low:g} to {high:g}")
    return value


def _whole(fields: Mapping[str, object], key: str, path: str) -> int | None:
    value = fields.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigError(f"{path}.{key} is {value!r}; it must be a whole number")
    return value


def _object(value: object, path: str, keys: Sequence[str]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is {value!r}; it must be an object of {', '.join(keys)}")
    fields = cast(Mapping[str, object], value)
    for key in fields:
        if key not in keys:
            raise ConfigError(f"{path}.{key} is unknown; there are {', '.join(keys)}")
    return fields
