"""The example's files are imported as a project folder's are: by being on the path."""

import sys
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parents[2] / "examples" / "support_desk"),
]
