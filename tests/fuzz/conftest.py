"""The properties are one module that the tests and the coverage-guided targets share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
