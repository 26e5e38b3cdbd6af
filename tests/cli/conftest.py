"""The command line's tests use the projects and models of the jobs' tests."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / room) for room in ("jobs", "rollout")]
