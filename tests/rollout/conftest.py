"""The test chat format and the test servers are imported by name, so they are on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "egress")]
