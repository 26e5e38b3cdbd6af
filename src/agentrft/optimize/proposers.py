"""Who is asked for changes, in the order of what usually helps most; none needs another model."""

from agentrft.optimize.bootstrapping import Bootstrapping
from agentrft.optimize.guard_mining import GuardMining
from agentrft.optimize.output_selection import OutputSelection
from agentrft.optimize.problem import Proposer
from agentrft.optimize.pruning import Pruning
from agentrft.optimize.self_naming import SelfNaming
from agentrft.optimize.templates import Templates
from agentrft.optimize.treatments import Treatments

PROPOSERS: tuple[Proposer, ...] = (
    Bootstrapping(),
    Treatments(),
    Pruning(),
    Templates(),
    SelfNaming(),
    GuardMining(),
    OutputSelection(),
)
