"""What several tests share is on the path; the server of the egress tests serves graders too."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "egress")]
