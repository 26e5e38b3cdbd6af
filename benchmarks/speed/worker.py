"""The worker's end of a comparison: a line of JSON in, a line of JSON out. Standard library alone.

Each system is measured in a process and an environment of its own, so this file must import anywhere.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

Handler = Callable[..., Mapping[str, Any]]


def serve(prepare: Callable[[Mapping[str, Any]], Mapping[str, Handler]]) -> None:
    """Answer until the input ends.

    `prepare` gets the settings of the driver's first line and returns a function per command.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print must not mix with the answers.
    os.dup2(2, 1)
    handlers = prepare(json.loads(sys.stdin.readline()))
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        _answer(answers, handlers[asked.pop("do")](**asked))


def _answer(answers: Any, value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()
