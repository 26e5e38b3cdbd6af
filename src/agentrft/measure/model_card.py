"""The `README.md` of an exported model: what it is, what it was made from, what was measured. Pure.

The front matter is what model hubs read: https://huggingface.co/docs/hub/model-cards
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

_SECRET = ("headers", "api_key", "key", "token", "secret", "password", "authorization")
"""Keys whose values no card shows."""
_URL = re.compile(
    r"""(https?://)(?:[^\s/?#"']*@)?([^\s?#"'<>\\]*)(\?[^\s#"'<>\\]*)?(?:\#[^\s"'<>\\]*)?""",
    re.IGNORECASE,
)
"""Scheme, place and query of an address, wherever it stands."""
_ONE_AGENT = (
    "It was trained for one agent with its own tools, system text and grader; nothing here says what "
    "it is worth elsewhere."
)
_ENVIRONMENT = "the environment's own `grade`"
_LEFT_OUT = (
    "Guards, tool limits and output rendering of the spec act in `agentrft`; other programs that run "
    "this model leave them out."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One way in which the export was loaded back and compared with the trained weights."""

    read_by: str
    tokens: int
    difference: float
    """Largest difference of a log-probability, in nats."""
    bound: float
    shortfall: float
    """How far greedy decoding was from taking another token, at most; 0 where it took the same."""
    arrived: float | None
    """Share of what training changed on these tokens that was read back; None if training moved all of
    them by too little to tell from rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is known of an exported model; whatever is not known is empty."""

    name: str
    format: str
    stored: str
    """Number format of the weights."""
    beside: frozenset[str]
    """Names of the files and folders beside the card."""
    base: str
    base_files: Mapping[str, str]
    """sha256 of the base model's config and weights by file name."""
    license: str
    methods: Sequence[tuple[str, Mapping[str, Any]]]
    """Each training that led to the weights, in their order: its method and settings."""
    run_id: str
    seed: int | None
    steps: int
    """Of the last training."""
    metrics: Mapping[str, float]
    """What that noted beside the weights."""
    files: Mapping[str, Mapping[str, str]]
    """Name and sha256 of what it was trained and measured on, by what it is."""
    spec_hash: str
    grader: Mapping[str, Any] | None
    """Empty for the environment's own `grade`, None if none is known."""
    stages: Sequence[Mapping[str, Any]]
    """As in `report.json`."""
    identity: float | None
    """Mean difference of likely canary tokens to the trainer's own numbers, in nats."""
    checks: Sequence[Check]
    versions: Mapping[str, str]
    caveats: Sequence[str]


def model_card(card: ModelCard) -> str:
    """Return the card in Markdown."""
    parts = [
        _front_matter(card),
        f"# {card.name}",
        _summary(card),
        "## How to use it\n\n" + _usage(card),
        "## What was measured\n\n" + _measured(card),
        "## What it was made from\n\n" + _provenance(card),
        "## How it was trained\n\n" + _training(card),
        "## Whether this is what was trained\n\n" + _checks(card),
        "## Limits\n\n" + _limits(card),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: ModelCard) -> str:
    library = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}[card.format]
    fields: dict[str, Any] = {
        "base_model": card.base,
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["agentrft", "tool-use", *(name for name, _ in card.methods)])),
    }
    if card.license and " " not in card.license:
        fields["license"] = card.license.lower()
    # JSON values are YAML values.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _summary(card: ModelCard) -> str:
    methods = " and then ".join(f"{name} training" for name, _ in card.methods)
    return (
        f"The weights of `{card.base}` after {methods or 'training of an unknown kind'} "
        f"({_count(card.steps, 'optimizer step')} in the last run, `{card.run_id or 'unknown'}`). "
        f"Format: {card.format}, in {card.stored}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _usage(card: ModelCard) -> str:
    parts = list[str]()
    match card.format:
        case "adapter":
            parts.append(
                _python(
                    card,
                    "from peft import PeftModel",
                    f'base = AutoModelForCausalLM.from_pretrained("{card.base}")'
                    "  # or the folder it lies in",
                    'model = PeftModel.from_pretrained(base, ".")',
                )
            )
        case "merged":
            parts.append(_python(card, 'model = AutoModelForCausalLM.from_pretrained(".")'))
        case _:
            parts.append(
                "```sh\nollama create my-agent -f Modelfile\nollama run my-agent\n```\n\nor with "
                "llama.cpp: `llama-server -m model.gguf --jinja`."
            )
    if "tools.json" in card.beside:
        parts.append(
            "`tools.json` holds the tools as this model knows them; pass them with each request."
        )
    if "spec" in card.beside:
        parts.append(
            "`spec/` holds what it was told; the files of `spec/system/`, in order, are its system "
            f"message{', which the Modelfile has' if 'Modelfile' in card.beside else ''}."
        )
    if card.run_id:
        parts.append(
            "With the agent's real tools, in a terminal:\n\n"
            f"```sh\nagentrft chat PROJECT --checkpoint {card.run_id}\n```"
        )
    return "\n\n".join(parts)


def _python(card: ModelCard, *lines: str) -> str:
    tools = 'json.loads(Path("tools.json").read_text())' if "tools.json" in card.beside else "[]"
    code = (
        "import json",
        "from pathlib import Path",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        *lines,
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        f"tools = {tools}",
        'told = [file.read_text().strip() for file in sorted(Path("spec/system").glob("*.md"))]',
        "messages = [",
        '    {"role": "system", "content": "\\n\\n".join(told)},',
        '    {"role": "user", "content": "..."},',
        "]",
        "prompt = tokenizer.apply_chat_template(",
        "    messages, tools=tools, add_generation_prompt=True,",
        '    return_dict=True, return_tensors="pt",',
        ")",
        "output = model.generate(**prompt, max_new_tokens=64)",
        'print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]))',
    )
    return "\n".join(("```python", *code, "```"))


def _measured(card: ModelCard) -> str:
    rows = [
        (
            str(stage["name"]),
            str(stage["measured"]["tasks"]),
            _share(stage["measured"]["pass_at_1"]),
            _number(stage["measured"]["score"]),
            _number(stage["measured"]["tool_calls"]),
            _number(stage["measured"]["sampled_tokens"]),
        )
        for stage in card.stages
        if stage.get("measured")
    ]
    if not rows:
        return (
            "Not measured on held-out tasks; `agentrft evaluate PROJECT --checkpoint ...` does it."
        )
    heads = ("stage", "tasks", "pass@1", "score", "tool calls", "sampled tokens")
    return "Held-out tasks; in brackets 95 % intervals.\n\n" + _table(heads, rows)


def _provenance(card: ModelCard) -> str:
    rows = [
        *((f"base: {name}", f"`{digest}`") for name, digest in card.base_files.items()),
        *((f"{what}: {file['name']}", f"`{file['sha256']}`") for what, file in card.files.items()),
    ]
    if card.spec_hash:
        where = "in `spec/`" if "spec" in card.beside else "not kept"
        rows.append((f"spec ({where})", f"`{card.spec_hash}`"))
    parts = ["The base model, and the project's data and code, whether or not training read them."]
    if card.grader:
        shown = _json(without_secrets(card.grader))
        rows.append(("grader", f"`{hashlib.sha256(shown.encode()).hexdigest()}`"))
        grader = f"Grader:\n\n```json\n{shown}\n```"
    else:
        grader = f"Grader: {'none' if card.grader is None else _ENVIRONMENT}."
    return "\n\n".join((*parts, _table(("what", "sha256, or hash of the spec"), rows), grader))


def _training(card: ModelCard) -> str:
    seed = "unknown" if card.seed is None else str(card.seed)
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    parts = [f"Seed {seed}. Exported with {versions}."]
    if card.metrics:
        noted = ", ".join(f"{name} {value:.4g}" for name, value in sorted(card.metrics.items()))
        parts.append(f"Noted beside these weights: {noted}.")
    for name, values in card.methods:
        parts.append(f"Settings of {name}:\n\n```\n{chr(10).join(_flat(values))}\n```")
    return "\n\n".join(parts)


def _checks(card: ModelCard) -> str:
    lines = list[str]()
    if card.identity is not None:
        lines.append(
            f"The checkpoint's own proof of identity holds: on its canaries, likely tokens differ by "
            f"{card.identity:.4f} nats on average from what the trainer computed."
        )
    if card.checks:
        rows = [
            (
                check.read_by,
                str(check.tokens),
                f"{check.difference:.2g}",
                f"{check.bound:g}",
                "the same" if check.shortfall == 0 else f"ties within {check.shortfall:.2g} nats",
                "too little to tell" if check.arrived is None else f"{check.arrived:.0%}",
            )
            for check in card.checks
        ]
        heads = (
            *("read by", "tokens", "largest difference (nats)", "allowed", "greedy continuation"),
            "of what training changed",
        )
        lines.append(
            "Loaded back after writing, and compared on probe prompts with the engine that serves "
            "the trained weights, in float32:\n\n" + _table(heads, rows)
        )
    return "\n\n".join(lines) or "Not checked."


def _limits(card: ModelCard) -> str:
    return "\n".join(f"- {caveat}" for caveat in (*card.caveats, _ONE_AGENT, _LEFT_OUT))


def without_secrets(value: object) -> object:
    """Return JSON with what may be secret hidden: values of headers and keys, and parts of URLs."""
    if isinstance(value, str):
        return _URL.sub(lambda url: f"{url[1]}{url[2]}{'?(hidden)' if url[3] else ''}", value)
    if isinstance(value, Mapping):
        mapping = cast(Mapping[str, object], value)
        return {
            key: "(hidden)" if key.lower() in _SECRET and item else without_secrets(item)
            for key, item in mapping.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in cast(Sequence[object], value)]
    return value


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(cast(Mapping[str, Any], without_secrets(value)), f"{path}{key}.")
        else:
            yield f"{path}{key} = {json.dumps(without_secrets(value), default=str)}"


def _share(estimate: Mapping[str, float]) -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _number(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def lines() -> Iterator[str]:
        for row in (heads, ["---"] * len(heads), *rows):
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

    return "\n".join(lines())


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str)
