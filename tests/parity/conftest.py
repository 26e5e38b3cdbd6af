"""The readable twin is imported as users read it; models and samples are the training tests'."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "parity"), str(TESTS / "training"), str(TESTS.parent / "examples")]
