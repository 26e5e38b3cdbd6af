"""What graders reach beyond themselves: addresses, a sandbox, models, a project's own functions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentrft.core.protocols import Sandbox
from agentrft.egress.policy import EgressPolicy
from agentrft.graders.function import FindFunction
from agentrft.inference.grader_model import Embedder, GraderModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """Shared by all graders of a process; a grader that needs what is not here is refused."""

    policy: EgressPolicy = field(default_factory=EgressPolicy)
    sandbox: Sandbox | None = None
    images: Path | None = None
    """Package sets of the sandbox by `image_tag`; None leaves it to the first call to find one."""
    models: Mapping[str, GraderModel] = field(default_factory=dict[str, GraderModel])
    """By the name that grader objects use."""
    embedder: Embedder | None = None
    owner: str = ""
    """Whose graders these are: their code never shares a sandbox with anybody else's."""
    signing_key: str = ""
    """`whsec_...` with which calls of endpoint graders are signed; empty signs none."""
    functions: FindFunction | None = None
    """Grader functions of the open project; None where there is no project folder, as in a server."""
