"""How small a difference a comparison can show, and how many rollouts one needs. Pure.

For the paired one-sided test of two specs over the same tasks. A task's mean differs between the
arms by chance, repeats lessen that, and by how much the change does for it, which they do not.
"""

import math

from scipy.optimize import root_scalar
from scipy.stats import nct, t

POWER = 0.8
WITHIN = 0.55
"""Share of a single rollout's variance that repeats of its task show too: that of tasks whose
difficulty is Beta distributed with concentration 1.2, where many are nearly always or never solved."""
SPREAD = 0.5
"""Standard deviation of a change's effect over tasks, in units of its mean."""


def power(
    effect: float,
    tasks: int,
    samples: int,
    *,
    p: float,
    within: float = WITHIN,
    alpha: float = 0.05,
) -> float:
    """Return the chance that a change of pass@1 from p to p + effect is shown.

    `samples` are rollouts of each task in each arm.
    """
    # A sign-flip test cannot reach its level on fewer rollouts that came out otherwise than this.
    if tasks < 2 or effect * tasks * samples < math.log2(1 / alpha):
        return 0.0
    after = min(1.0, p + effect)
    chance = within * (p * (1 - p) + after * (1 - after)) / samples
    error = math.sqrt((chance + (SPREAD * effect) ** 2) / tasks)
    beyond = float(t.ppf(1 - alpha, tasks - 1))
    return float(nct.sf(beyond, tasks - 1, effect / error))


def minimum_detectable(
    tasks: int,
    samples: int,
    *,
    p: float,
    within: float = WITHIN,
    alpha: float = 0.05,
) -> float:
    """Return the smallest gain of pass@1 that is shown with 80% power; 1 if none is."""

    def missing(effect: float) -> float:
        return power(effect, tasks, samples, p=p, within=within, alpha=alpha) - POWER

    if missing(1.0) <= 0:  # also where one task is all there is
        return 1.0
    return float(root_scalar(missing, bracket=(1e-6, 1.0), xtol=1e-4).root)


def rollouts_needed(
    effect: float,
    *,
    p: float,
    samples: int = 1,
    within: float = WITHIN,
    alpha: float = 0.05,
) -> int:
    """Return rollouts of each arm that show a gain with 80% power, `samples` of each task.

    Raises ValueError for an effect that is not above 0.
    """
    if effect <= 0:
        raise ValueError(f"no number of rollouts shows a gain of {effect}; it must be above 0")
    enough = 2
    while power(effect, enough, samples, p=p, within=within, alpha=alpha) < POWER:
        enough *= 2
    low = enough // 2
    while enough - low > 1:
        middle = (low + enough) // 2
        if power(effect, middle, samples, p=p, within=within, alpha=alpha) < POWER:
            low = middle
        else:
            enough = middle
    return enough * samples
