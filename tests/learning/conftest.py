"""The toys are modules that the tests share; training needs a model folder made on the spot."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "training")]
