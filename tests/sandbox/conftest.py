"""The attacks and the benign graders are folders beside these tests, so this folder is on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
