"""The test chat format and the test server are imported by name, so they are on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
