"""These tests put parts together, so builders of other folders and the examples are on the path."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"
for folder in (
    *(TESTS / room for room in ("store", "jobs", "rollout", "server")),
    *(EXAMPLES / name for name in ("support_desk", "openai_client")),
):
    sys.path.insert(0, str(folder))
