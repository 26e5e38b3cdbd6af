"""What the server's tests share is imported by name; the tool server is that of the rollout tests."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "rollout"):
    sys.path.insert(0, str(folder))
