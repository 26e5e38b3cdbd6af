"""AgentRFT: what the author of an environment or grader needs. Loads neither torch nor transformers."""

from agentrft.core.grade import Grade
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.function import grader
from agentrft.rollout.environment import Environment
from agentrft.rollout.tools import ToolRefusal, tool

__all__ = ["Environment", "Grade", "Task", "ToolRefusal", "Trajectory", "grader", "tool"]
