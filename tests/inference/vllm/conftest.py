"""The server that speaks vLLM's protocol is imported by name, so it is on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
