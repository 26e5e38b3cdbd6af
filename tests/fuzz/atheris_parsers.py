"""Coverage-guided fuzzing of one parser: `python atheris_parsers.py formula -max_total_time=60`.

Other options are libFuzzer's. `make fuzz-parsers` runs all four, each for a minute.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # it has a dependency group of its own
with atheris.instrument_imports(include=["agentrft"]):
    import properties

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def template(data: bytes) -> None:
    """Template, row and output in one input, apart by a byte that UTF-8 never has."""
    texts = [part.decode(errors="replace") for part in data.split(b"\xff")]
    properties.template(*(*texts, "", "")[:3])


CONVERSATION = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": ""},
        {"role": "assistant", "content": "y", "weight": 0},
    ],
    "parallel_tool_calls": False,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
}
PREFERENCE = {
    "input": {"messages": [{"role": "user", "content": "x"}]},
    "preferred_output": [{"role": "assistant", "content": "a"}],
    "non_preferred_output": [{"role": "assistant", "content": "b"}],
}
TARGETS: Mapping[str, tuple[Callable[[bytes], object], Sequence[str]]] = {
    "formula": (
        lambda data: properties.formula(data.decode(errors="replace")),
        ["2 * a * b / max(a + b, 1e-9)", "-2^2 + min(a, 1)", "exp(log(sqrt(abs(low)))) - zero"],
    ),
    "template": (
        template,
        [
            '{{ item.list[1].k }} {{item["x"]}}',
            "{{sample.output_json.k[0]}}|{{ sample.output_text }}",
            "{{sample.choices[0].message.content}}",
        ],
    ),
    "rows": (
        lambda data: properties.rows(data, FOLDER / "rows.jsonl"),
        [
            '{"messages": [{"role": "user", "content": "x"}]}\n\n{"id": 1e5, "a": "\\ud83d\\ude00"}',
            json.dumps(CONVERSATION),
            json.dumps(PREFERENCE),
        ],
    ),
    "reply": (
        lambda data: properties.reply(data.decode(errors="replace")),
        [
            '{"steps": [{"description": "d", "conclusion": "c"}], "result": 0.5}',
            '```json\n{"result": 1}\n```',
            '{"result": -1e-3, "steps": null}',
        ],
    ),
}


def main() -> None:
    """Fuzz the target that the first argument names."""
    name, *options = sys.argv[1:]
    target, seeds = TARGETS[name]
    for number, seed in enumerate(seeds):
        (FOLDER / f"seed-{number}").write_text(seed)
    corpus = tempfile.mkdtemp(dir=FOLDER)  # new inputs go into the first folder
    atheris.Setup([sys.argv[0], "-timeout=10", *options, corpus, str(FOLDER)], target)
    atheris.Fuzz()


main()
