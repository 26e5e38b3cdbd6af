"""The jobs' tests talk in the character chat of the rollout tests, so both folders are on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "rollout"):
    sys.path.insert(0, str(folder))
