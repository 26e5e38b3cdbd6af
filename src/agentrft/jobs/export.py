"""Trained weights as files that other programs run: PEFT adapter, merged model, GGUF.

Every export is loaded back and compared with the weights as they are served, and gets a model card.
Nothing is left behind by one that fails.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from agentrft.core.config import EngineConfig
from agentrft.core.errors import AgentRFTError, ConfigError, DataError, UserError
from agentrft.core.job import FineTuningJob, ReinforcementMethod
from agentrft.core.policy import Policy
from agentrft.core.protocols import SampleRequest
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Message, ToolSpec
from agentrft.inference import gguf
from agentrft.inference.gguf_export import Precision, modelfile, write_gguf
from agentrft.inference.models import ModelFiles, check_memory
from agentrft.inference.renderer import ChatRenderer, load_renderer
from agentrft.inference.templates import chat_template
from agentrft.inference.tokenizer import ChatTokenizer
from agentrft.jobs.export_card import known_card
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.publication import Publisher
from agentrft.jobs.regrade import project_file
from agentrft.jobs.trained import (
    Trained,
    UnchangedError,
    base_model,
    find_trained,
    is_job,
    trained_spec,
)
from agentrft.measure.model_card import Check, model_card
from agentrft.rollout.harness import Harness
from agentrft.store.home import Home
from agentrft.store.spec_files import write_spec
from agentrft.training.checkpoint import TrainerRecord, read_record

Format = Literal["adapter", "merged", "gguf"]
BOUNDS: Mapping[str, float] = {
    "float32": 0.005,
    "float16": 0.05,
    "f16": 0.05,
    "bfloat16": 0.3,
    "bf16": 0.3,
    "q8_0": 1.0,
}
"""Nats by which a token of the probes may differ, by what the weights are stored in. Rounding alone
stays some times below; other weights differ by several nats."""
_COARSE = (("BF16", "bfloat16"), ("F16", "float16"))
"""Names of number formats in files, and ours; the coarsest first."""
CLEAR_MOVE = 0.5
"""Share of a bound that training must have moved a token by to be told from rounding."""
IDENTITY_BOUND = 0.1
"""Mean difference of canaries, in nats, between the float32 engine and a trainer in any precision."""
_CONTINUED = 24
"""Tokens of each probe's greedy continuation."""

_SHELF = ToolSpec(
    name="shelf_of",
    description="Find the shelf of a book.",
    parameters={
        "type": "object",
        "properties": {"title": {"type": "string", "description": "as printed"}},
        "required": ["title"],
    },
)
_PROBES: Sequence[tuple[tuple[Message, ...], tuple[ToolSpec, ...]]] = (
    ((Message(role="user", content="Name three colours."),), ()),
    (
        (
            Message(role="system", content="You help in a library."),
            Message(role="user", content="Where is 'The Sea'?"),
        ),
        (_SHELF,),
    ),
)


class ExportError(AgentRFTError):
    """What was written does not say what was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A finished export."""

    folder: Path
    checks: tuple[Check, ...]
    identity: float | None
    notes: tuple[str, ...]
    """What its user must know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What is exported, and what is known of where it came from."""

    home: Home
    trained: Trained
    base: ModelFiles
    record: TrainerRecord
    renderer: ChatRenderer
    spec: AgentSpec | None
    project: Project | None
    agent: AgentSpec
    """The spec, or as much of it as is known."""
    prompts: tuple[tuple[int, ...], ...]
    """Of the probes: two of any agent, two of this one."""
    tools: tuple[ToolSpec, ...]
    """The agent's, as its model knows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A prompt with the greedy continuation of the trained weights."""

    ids: tuple[int, ...]
    prompt_tokens: int
    logprobs: tuple[float, ...]
    """Of every token after the first."""
    untrained: tuple[float, ...]
    """The same by the base model."""


async def export(
    home: Home, name: str, target: Path, form: Format, *, precision: Precision = "f16"
) -> Exported:
    """Write what a run, model or checkpoint folder names into a new folder.

    Raises UnchangedError for weights that equal the base model's, ExportError if what was written
    differs from what was trained, UserError for a format that these weights cannot have.
    """
    source = _source(home, name)
    _refuse(source, target, form)
    probes, identity = await _probed(source)
    stored = {"adapter": "float32", "merged": _stored(source.base.folder), "gguf": precision}[form]
    with _whole(target, _needed_bytes(source, form)) as folder:
        checks, notes = _write(source, folder, target.name, form, stored, probes)
        for check in checks:
            require(check)
        _write_card(source, folder, target.name, form, stored, checks, identity, notes)
    return Exported(folder=target, checks=checks, identity=identity, notes=notes)


def _needed_bytes(source: _Source, form: Format) -> int:
    """Return what is on the disk at most while an export is written."""
    if form == "adapter":
        return sum(file.stat().st_size for file in source.trained.folder.iterdir())
    if form == "merged":
        return source.base.size_bytes
    # Beside the file, of two bytes a number at most, the merged model and then what is read back.
    numbers = source.base.parameters
    return 2 * numbers + max(source.base.size_bytes, 4 * numbers)


@contextmanager
def _whole(target: Path, needed_bytes: int) -> Iterator[Path]:
    """Give a folder beside the target that takes its place if nothing is raised, or goes."""
    partial = target.parent / f".{target.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if (free := shutil.disk_usage(partial).free) < needed_bytes:
            raise ExportError(
                f"{target}: writing takes up to {needed_bytes >> 20} MiB, {free >> 20} MiB are "
                "free; free some or give a folder on another disk with --to"
            )
        yield partial
        os.sync()  # else the name may outlive a power cut that the files do not
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _source(home: Home, name: str) -> _Source:
    trained = find_trained(home, name)
    base = base_model(home, trained)
    spec = trained_spec(home, trained)
    renderer = load_renderer(base.folder)
    prompts = [renderer.start(messages, tools) for messages, tools in _PROBES]
    tools = dict[str, ToolSpec]()
    project, agent = None, spec or AgentSpec()
    if trained.run is not None and is_job(trained.run):
        tools = _declared(home.queue.get(trained.run.id).job)
    elif trained.run is not None:
        # A project that has moved costs tools and probes of its own, not the export.
        with suppress(ConfigError, DataError):
            file = project_file(home.store, trained.run.id)
            opened = open_project(file.parent, config_file=file.name)
            agent = spec or opened.spec
            harness = Harness(agent)
            sessions = [harness.session(task, opened.offered(task)) for task in opened.examples()]
            prompts += [renderer.start(one.prompt, one.tools) for one in sessions[:2]]
            tools = {tool.name: tool for session in sessions for tool in session.tools}
            project = opened
    return _Source(
        home=home,
        trained=trained,
        base=base,
        record=read_record(trained.folder),
        renderer=renderer,
        spec=spec,
        project=project,
        agent=agent,
        prompts=tuple(prompts),
        tools=tuple(tools.values()),
    )


def _declared(job: FineTuningJob) -> dict[str, ToolSpec]:
    """Return the tools that a job of the API describes itself; rows may describe others."""
    declared = job.method.tools if isinstance(job.method, ReinforcementMethod) else ()
    return {
        one.name: ToolSpec(name=one.name, description=one.description, parameters=one.parameters)
        for one in declared
        if one.parameters
    }


def _refuse(source: _Source, target: Path, form: Format) -> None:
    from agentrft.training.change import changed

    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists already; give a new folder with --to")
    if form == "adapter" and source.record.kind != "lora":
        raise UserError(
            f"{source.trained.folder} holds full weights, which are no adapter; use --format merged"
        )
    if not changed(source.trained.folder, source.base.folder):
        raise UnchangedError(str(source.trained.folder))


async def _probed(source: _Source) -> tuple[list[Probe], float | None]:
    """Let our own engine, in float32, continue the probes with the trained weights."""
    from agentrft.inference.embedded.checkpoint import read_checkpoint
    from agentrft.inference.embedded.engine import EmbeddedEngine
    from agentrft.training.read_back import read_model

    check_memory(source.base, "float32")
    prompts = source.prompts
    weights = read_checkpoint(source.trained.folder, source.base.folder)
    lengths = [len(prompt) + _CONTINUED for prompt in prompts]
    longest = max(lengths + [len(canary.token_ids) for canary in weights.canaries])
    engine = EmbeddedEngine(
        source.base.folder, EngineConfig(dtype="float32"), max_context_tokens=longest
    )
    try:
        policy = Policy(model=source.base.name, version=0, spec=AgentSpec())
        _, identity = await Publisher(engine, bound=IDENTITY_BOUND).load(weights, policy)
        sequences = list[tuple[int, ...]]()
        for prompt in prompts:
            request = SampleRequest(
                prompt_ids=prompt,
                max_tokens=_CONTINUED,
                temperature=0.0,
                stop_token_ids=source.renderer.stop_token_ids,
            )
            sequences.append((*prompt, *(await engine.sample(request)).token_ids))
        scored = await engine.score(sequences)
    finally:
        engine.close()
    before = read_model(source.base.folder, sequences)
    return [
        Probe(
            ids=ids,
            prompt_tokens=len(prompt),
            logprobs=tuple(logprobs),
            untrained=untrained.logprobs,
        )
        for ids, prompt, logprobs, untrained in zip(sequences, prompts, scored, before, strict=True)
    ], identity


def _write(
    source: _Source,
    folder: Path,
    name: str,
    form: Format,
    stored: str,
    probes: Sequence[Probe],
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Write the weights with tokenizer and chat template, and read them back."""
    back = folder
    match form:
        case "adapter":
            _write_adapter(source, folder)
            checks = [read_back(probes, "PEFT", stored, source.base.folder, adapter=folder)]
        case "merged":
            _write_merged(source, folder)
            checks = [read_back(probes, "transformers", stored, folder)]
        case "gguf":
            merged, back = folder / "merged", folder / "back"
            for made in (merged, back):
                made.mkdir()
            _write_merged(source, merged)
            file = folder / "model.gguf"
            write_gguf(merged, file, precision=cast(Precision, stored), name=name)
            for licence in merged.glob("LICENSE*"):
                licence.rename(folder / licence.name)
            shutil.rmtree(merged)
            gguf.convert(file, back, progress=lambda share: None)
            checks = [
                read_back(probes, "transformers", stored, folder, gguf_file=file.name),
                read_back(probes, "agentrft", stored, back),
            ]
    notes = tuple(_notes(source, back))
    if form == "gguf":
        shutil.rmtree(back)
        _write_modelfile(source, folder)
    if source.tools:
        wire = [_as_sent(tool) for tool in source.tools]
        (folder / "tools.json").write_text(json.dumps(wire, indent=1, ensure_ascii=False) + "\n")
    return tuple(checks), notes


def _as_sent(tool: ToolSpec) -> Mapping[str, Any]:
    """Return a tool as requests carry it, and as our renderers order it."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
        },
    }


def _write_adapter(source: _Source, folder: Path) -> None:
    from agentrft.training.change import copy_beside

    checkpoint = source.trained.folder
    copy_beside(source.base.folder, folder)
    (folder / "config.json").unlink()  # the base model's: with it a folder is a model, no adapter
    (folder / "generation_config.json").unlink(missing_ok=True)
    _set_template(source, folder)
    shutil.copyfile(checkpoint / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    settings = json.loads((checkpoint / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = source.base.name
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def _write_merged(source: _Source, folder: Path) -> None:
    from agentrft.training.change import write_merged

    write_merged(source.trained.folder, source.base.folder, folder)
    _set_template(source, folder)


def _forget_paths(folder: Path) -> None:
    """Drop where the base model lay when it was saved."""
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.exists():
            settings = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: settings[key] for key in settings if not key.endswith("name_or_path")}
            text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")


def _set_template(source: _Source, folder: Path) -> None:
    """Give the folder the chat format that the model was trained in, if it is one of ours."""
    _forget_paths(folder)
    if source.renderer.template is None:
        return
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = chat_template(source.renderer.template, "jinja")
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def _write_modelfile(source: _Source, folder: Path) -> None:
    spec, template = source.agent, source.renderer.template
    limit = spec.limits.max_context_tokens
    text = modelfile(
        template=chat_template(template, "gotmpl") if template else None,
        system=spec.system,
        decoding=spec.decoding,
        context_tokens=min(limit, source.base.context_length or limit),
        stop=tuple(source.renderer.decode([token]) for token in source.renderer.stop_token_ids),
    )
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def _stored(folder: Path) -> str:
    """Return in what a model's weights are stored: of several, the coarsest."""
    kinds = set[str]()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="np") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}
    return next((ours for theirs, ours in _COARSE if theirs in kinds), "float32")


def read_back(
    probes: Sequence[Probe],
    read_by: str,
    stored: str,
    folder: Path,
    *,
    gguf_file: str | None = None,
    adapter: Path | None = None,
) -> Check:
    """Compare an export with the trained weights on the tokens that these would say."""
    from agentrft.training.read_back import read_model

    readings = read_model(
        folder, [probe.ids for probe in probes], gguf_file=gguf_file, adapter=adapter
    )
    pairs = [
        (slice(probe.prompt_tokens - 1, None), probe, reading)
        for probe, reading in zip(probes, readings, strict=True)
    ]
    trained = np.concatenate([probe.logprobs[said] for said, probe, _ in pairs])
    untrained = np.concatenate([probe.untrained[said] for said, probe, _ in pairs])
    read = np.concatenate([reading.logprobs[said] for said, _, reading in pairs])
    moved, bound = trained - untrained, BOUNDS[stored]
    clear = np.abs(moved).max() >= CLEAR_MOVE * bound
    return Check(
        read_by=read_by,
        tokens=len(trained),
        difference=float(np.abs(read - trained).max()),
        bound=bound,
        shortfall=max(value for said, _, reading in pairs for value in reading.shortfalls[said]),
        # The slope of what was read on what was trained: a wrong scale shows, rounding averages out.
        arrived=float((read - untrained) @ moved / (moved @ moved)) if clear else None,
    )


def require(check: Check) -> None:
    """Raise ExportError if what was read back differs by more than rounding explains, or lacks what
    was trained.
    """
    # A continuation may part at a tie: two tokens closer than twice the difference allowed.
    if not (check.difference <= check.bound and check.shortfall <= 2 * check.bound):
        raise ExportError(
            f"the export was not kept: read by {check.read_by}, a token's log-probability differs by "
            f"{check.difference:.4f} nats from the trained weights' (at most {check.bound} is "
            f"allowed), and greedy decoding parts by {check.shortfall:.4f}; try another --format or "
            "--precision"
        )
    if check.arrived is not None and not 0.5 <= check.arrived <= 1.5:
        raise ExportError(
            f"the export was not kept: read by {check.read_by}, {check.arrived:.0%} of what training "
            "changed on the probes arrives in it, which rounding does not explain; try another "
            "--format or --precision"
        )


def writes_alike(folder: Path, base: Path, renderer: ChatRenderer) -> bool:
    """Whether an export's chat template writes the probes as the model was trained with.

    Raises ExportError if its tokenizer reads them otherwise than the base model's, or if the template
    is ours and writes them otherwise.
    """
    tokenizer, own = ChatTokenizer(folder), ChatTokenizer(base)
    prompts = [renderer.start(messages, tools) for messages, tools in _PROBES]
    texts = [renderer.decode(prompt) for prompt in prompts]
    alike = [_written(tokenizer, messages, tools) for messages, tools in _PROBES] == prompts
    if any(tokenizer.encode(text) != own.encode(text) for text in texts) or (
        renderer.template and not alike
    ):
        raise ExportError(
            "the export was not kept: its tokenizer and chat template write a prompt in other tokens "
            "than the model was trained with; try another --format"
        )
    return alike


def _notes(source: _Source, folder: Path) -> list[str]:
    """Say what the user of an export must know."""
    notes = list[str]()
    if not writes_alike(folder, source.base.folder, source.renderer):
        notes.append(
            "The chat template is the base model's own; it writes conversations otherwise than this "
            "model was trained with, so other programs may see worse results."
        )
    if source.trained.run is not None and is_job(source.trained.run):
        return notes  # there a model is told what each request says
    if source.spec is None:
        notes.append("The spec of the run was not kept, so it does not lie beside the weights.")
    if source.project is None:
        notes.append("The run's project is gone or cannot be read, so `tools.json` is missing.")
    return notes


def _written(
    tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Sequence[ToolSpec]
) -> tuple[int, ...]:
    """Return the prompt that an exported chat template writes."""
    wire = [{"role": one.role, "content": one.content} for one in messages]
    offered = [_as_sent(tool) for tool in tools] or None
    return tuple(tokenizer.apply_chat_template(wire, tools=offered, add_generation_prompt=True))


def _write_card(
    source: _Source,
    folder: Path,
    name: str,
    form: Format,
    stored: str,
    checks: tuple[Check, ...],
    identity: float | None,
    notes: tuple[str, ...],
) -> None:
    if source.spec is not None:
        write_spec(folder / "spec", source.spec, AgentSpec())
    card = known_card(
        source.home,
        source.trained,
        source.record,
        source.base,
        name=name,
        form=form,
        stored=stored,
        beside=frozenset(file.name for file in folder.iterdir()),
        project=source.project,
        spec_hash=source.spec.hash if source.spec else source.trained.spec_hash,
        checks=checks,
        identity=identity,
        notes=notes,
    )
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")
