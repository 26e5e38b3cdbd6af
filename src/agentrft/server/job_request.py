"""From the body of a request to a job that a worker can run: every check that needs no compute.

Header values are taken out on the way; the job holds `REDACTED` where they were.
"""

import re
import secrets as randomness
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from agentrft.core.config import HttpTool
from agentrft.core.errors import ConfigError, DataError
from agentrft.core.job import (
    REDACTED,
    FineTuningJob,
    FineTuningMethod,
    PreferenceMethod,
    ReinforcementMethod,
    SupervisedMethod,
)
from agentrft.core.training_config import MonitorAction
from agentrft.egress.client import check_headers
from agentrft.egress.errors import AddressRefusedError, HeaderRefusedError
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.wire import normalised
from agentrft.server.context import Server
from agentrft.server.errors import bad_request, wrong_grader
from agentrft.server.job_wire import (
    JobBody,
    MethodBody,
    ReinforcementBody,
    ReinforcementHyperparameters,
    SupervisedBody,
    ToolBody,
)
from agentrft.store.errors import NotFoundError
from agentrft.store.rows import check_rows

_AT = "method.reinforcement"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


_WISHES: Mapping[str, tuple[Sequence[str], str]] = {
    "preflight": (("warn",), "lets a job run that fails the checks before compute"),
    "audit": (("allow",), "lets a job train with a grader that its audit refuses"),
    "monitors": (get_args(MonitorAction), "says how far an alarm of a monitor may go"),
}
"""Keys of the metadata that a job obeys; all others are the user's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A job that was asked for, ready to be queued."""

    job: FineTuningJob
    secrets: Mapping[str, str]
    """Header values by dotted path."""
    warnings: Sequence[str]
    """What the user should know; each becomes an event."""


def asked(server: Server, project: str, job_id: str, body: JobBody, now: float) -> Asked:
    """Check a request in full. Raises ApiError 400 naming the parameter."""
    warnings: list[str] = []
    base, start = _model(server, project, body.model, warnings)
    if body.integrations:
        raise bad_request(
            "The integration 'wandb' is not available on this server; leave 'integrations' out.",
            "integrations",
            "integration_not_available",
        )
    _check_wishes(body.metadata or {})
    method, secrets = _method(server, project, body)
    _check_files(server, project, body, method)
    if body.validation_file is None and isinstance(method, ReinforcementMethod):
        warnings.append(
            "There is no validation_file, so no validation reward will be measured and the best "
            "checkpoints cannot be told from the latest; a dozen held-out rows are enough."
        )
    job = FineTuningJob(
        id=job_id,
        project=project,
        model=body.model,
        base=base,
        start=start,
        method=method,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix,
        seed=randomness.randbelow(2**31) if body.seed is None else body.seed,
        metadata=body.metadata,
        created_at=now,
    )
    return Asked(job=job, secrets=secrets, warnings=warnings)


def _check_wishes(metadata: Mapping[str, str]) -> None:
    for name, (known, means) in _WISHES.items():
        if name in metadata and metadata[name] not in known:
            choice = " or ".join(f"'{value}'" for value in known)
            raise bad_request(
                f"Metadata '{name}' may only be {choice}, which {means}.",
                f"metadata.{name}",
                "invalid_value",
            )


def _model(server: Server, project: str, name: str, warnings: list[str]) -> tuple[str, str | None]:
    """Return the base model and, for a fine-tuned name, the checkpoint folder to begin from."""
    settings = server.settings
    base = settings.base_of(name)
    if base is not None:
        if base != name:
            warnings.append(f"Model {name!r} is not hosted here; {base!r} is trained in its place.")
        return base, None
    try:
        tuned = server.home.catalogue.get(project, name)
    except NotFoundError:
        own = [model.id for model in server.home.catalogue.list(project)]
        known = ", ".join((*settings.bases, *own))
        raise bad_request(
            f"The model {name!r} does not exist here or you do not have access to it. "
            f"There are: {known}.",
            "model",
            "model_not_found",
        ) from None
    return tuned.base, tuned.path


def _method(server: Server, project: str, body: JobBody) -> tuple[FineTuningMethod, dict[str, str]]:
    """Return the method with its secrets apart."""
    method = body.method or MethodBody(type="supervised")
    if method.type == "dpo":
        wished = method.dpo and method.dpo.hyperparameters
        return PreferenceMethod(**(wished.model_dump() if wished else {})), {}
    if method.reinforcement is not None:
        return _reinforcement(server, project, method.reinforcement)
    given = method.supervised or SupervisedBody()
    settings = given.hyperparameters or body.hyperparameters
    return SupervisedMethod(**({} if settings is None else settings.model_dump())), {}


def _reinforcement(
    server: Server, project: str, body: ReinforcementBody
) -> tuple[ReinforcementMethod, dict[str, str]]:
    tools, secrets = _tools(server, body.tools or [])
    backends = server.backends_of(project)
    grader, more = _grader(backends, "grader", body.grader)
    gold: dict[str, Any] | None = None
    if body.gold_grader is not None:
        gold, of_gold = _grader(backends, "gold_grader", body.gold_grader)
        more |= of_gold
    settings = body.hyperparameters or ReinforcementHyperparameters()
    given = settings.model_dump()
    given["reasoning_effort"] = settings.reasoning_effort or "default"
    method = ReinforcementMethod(
        grader=grader,
        gold_grader=gold,
        tools=tools,
        response_format=_response_format(body.response_format),
        max_episode_steps=body.max_episode_steps,
        **given,
    )
    return method, secrets | more


def _grader(
    backends: Backends, name: str, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    path = f"{_AT}.{name}"
    if not config:
        raise bad_request("Grader is empty; give a grader object with a type.", path)
    try:
        build_grader(config, path, backends=backends)
    except ConfigError as error:
        raise wrong_grader(error, path) from None
    return normalised(config, name)


def _tools(
    server: Server, entries: Sequence[ToolBody]
) -> tuple[tuple[HttpTool, ...], dict[str, str]]:
    tools: list[HttpTool] = []
    secrets: dict[str, str] = {}
    for number, entry in enumerate(entries):
        at = f"{_AT}.tools[{number}]"
        if any(tool.name == entry.name for tool in tools):
            raise bad_request(f"Two tools are named {entry.name!r}.", f"{at}.name")
        headers = entry.headers or {}
        try:
            server.policy.target(entry.server_url)
            check_headers(headers)
        except AddressRefusedError as refusal:
            raise bad_request(
                f"The URL of tool {entry.name!r} {refusal}.", f"{at}.server_url", "invalid_url"
            ) from None
        except HeaderRefusedError as refusal:
            raise bad_request(f"Tool {entry.name!r}: {refusal}.", f"{at}.headers") from None
        secrets |= {f"tools[{number}].headers.{name}": value for name, value in headers.items()}
        tools.append(
            HttpTool(
                name=entry.name,
                server_url=entry.server_url,
                headers=dict.fromkeys(headers, REDACTED),
                rate_limit=entry.rate_limit,
            )
        )
    return tuple(tools), secrets


def _response_format(given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Read both forms: nested as in chat completions, flat as in responses."""
    if given is None or given == {"type": "text"}:
        return None
    path = f"{_AT}.response_format"
    if given.get("type") != "json_schema":
        raise bad_request(
            f"Type {given.get('type')!r} is not supported; use 'json_schema', or null for text.",
            f"{path}.type",
        )
    form: Mapping[str, Any] = {key: value for key, value in given.items() if key != "type"}
    if "json_schema" in given:
        path = f"{path}.json_schema"
        if form.keys() != {"json_schema"} or not isinstance(given["json_schema"], Mapping):
            raise bad_request("Put name, schema and strict into 'json_schema'.", path)
        form = cast(Mapping[str, Any], given["json_schema"])
    for key in form:
        if key not in ("name", "schema", "strict", "description"):
            raise bad_request(f"Unknown parameter: '{path}.{key}'.", f"{path}.{key}")
    if not isinstance(form.get("schema"), Mapping):
        raise bad_request("The schema must be a JSON schema object.", f"{path}.schema")
    name, strict = form.get("name", "answer"), form.get("strict")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request("The name has 1 to 64 letters, digits, '_' or '-'.", f"{path}.name")
    if not isinstance(strict, bool | None):
        raise bad_request("strict must be true, false or null.", f"{path}.strict")
    return {"name": name, "schema": form["schema"], "strict": bool(strict)}


def _check_files(server: Server, project: str, body: JobBody, method: FineTuningMethod) -> None:
    """Check every row of the files that the job names."""
    offered = _offered(method)
    for param, file_id in (
        ("training_file", body.training_file),
        ("validation_file", body.validation_file),
    ):
        if file_id is None:
            continue
        try:
            file = server.home.files.get(project, file_id)
        except NotFoundError:
            raise bad_request(
                f"File {file_id!r} does not exist; upload it with purpose 'fine-tune'.",
                param,
                "file_not_found",
            ) from None
        if file.purpose != "fine-tune":
            raise bad_request(
                f"File {file_id!r} has purpose {file.purpose!r}; upload it with 'fine-tune'.",
                param,
                f"invalid_{param}",
            )
        try:
            count = check_rows(
                server.home.files.path(file),
                method.type,
                validation=param == "validation_file",
                tools=offered,
            )
        except DataError as error:
            raise bad_request(str(error), param, f"invalid_{param}") from None
        if offered and count.with_tools < count.rows:
            raise bad_request(
                f"{count.rows - count.with_tools} of {count.rows} rows list no tools; each row must "
                "list, with its schema, every tool that it may use.",
                param,
                f"invalid_{param}",
            )


def _offered(method: FineTuningMethod) -> frozenset[str] | None:
    """Return the tools that rows may list; None if rows bring their own."""
    if not isinstance(method, ReinforcementMethod) or not method.tools:
        return None
    return frozenset(tool.name for tool in method.tools)
