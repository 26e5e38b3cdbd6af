"""The jobs' tests use the character chat of the rollout tests and the server of the egress tests."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "rollout", HERE.parent / "egress"):
    sys.path.insert(0, str(folder))
