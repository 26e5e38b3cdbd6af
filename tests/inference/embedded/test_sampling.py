"""Draws follow the distribution they report, and depend on nothing but seed and position."""

import math

import pytest
import torch
from scipy.stats import chisquare

from agentrft.core.errors import SamplerError
from agentrft.inference.embedded.sampling import draw, uniform

DRAWS = 4000


def frequencies(
    logits: torch.Tensor, temperature: float, top_p: float
) -> tuple[torch.Tensor, dict[int, float]]:
    """Draw from one row many times; return counts and the log-probability reported per token."""
    tokens, logprobs = draw(
        logits.expand(DRAWS, -1),
        temperatures=[temperature] * DRAWS,
        top_ps=[top_p] * DRAWS,
        uniforms=[uniform(seed, 0) for seed in range(DRAWS)],
    )
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)), dict(
        zip(tokens, logprobs, strict=True)
    )


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    order = probabilities.argsort(descending=True)
    kept = order[probabilities[order].cumsum(0) - probabilities[order] < top_p]
    cut = torch.zeros_like(probabilities)
    cut[kept] = probabilities[kept]
    return cut / cut.sum()


@pytest.mark.parametrize("size", [7, 256, 1000])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7), (1.7, 0.9)])
def test_frequencies_and_logprobs_match_the_distribution(
    size: int, temperature: float, top_p: float
) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 3
    wanted = nucleus((logits.double() / temperature).softmax(-1), top_p)
    counts, reported = frequencies(logits, temperature, top_p)

    assert counts[wanted == 0].sum() == 0
    for token, logprob in reported.items():
        assert logprob == pytest.approx(math.log(wanted[token]), abs=1e-5)
    common = wanted * DRAWS >= 5
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    expected = [*(wanted[common] * DRAWS).tolist(), (wanted[~common] * DRAWS).sum().item()]
    if expected[-1] < 1e-9:
        observed, expected = observed[:-1], expected[:-1]
    # A nucleus of one token leaves nothing to test but that it is always drawn.
    assert len(observed) == 1 or chisquare(observed, expected).pvalue > 1e-3


def test_a_nucleus_wider_than_the_first_look_is_found() -> None:
    # Flat: half the mass is half of 3,000 tokens, more than the partial sort takes.
    tokens, logprobs = draw(
        torch.zeros(1, 3000), temperatures=[1.0], top_ps=[0.5], uniforms=[0.999999]
    )
    assert logprobs[0] == pytest.approx(-math.log(1500), abs=1e-5)
    assert 0 <= tokens[0] < 3000


def test_greedy_takes_the_argmax_and_reports_temperature_one() -> None:
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(
        logits, temperatures=[0, 1.0, 0], top_ps=[0.1, 1.0, 1.0], uniforms=[0.9, 0.5, 0.1]
    )
    for row in (0, 2):
        assert tokens[row] == logits[row].argmax().item()
        assert logprobs[row] == pytest.approx(logits[row].log_softmax(-1).max().item(), abs=1e-5)


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-53])
def test_tokens_without_mass_are_never_drawn(u: float) -> None:
    logits = torch.full((1, 1024), -1e4)
    logits[0, [300, 700]] = 0.0
    tokens, logprobs = draw(logits, temperatures=[1.0], top_ps=[1.0], uniforms=[u])
    assert tokens[0] == (300 if u < 0.5 else 700)
    assert logprobs[0] == pytest.approx(math.log(0.5), abs=1e-6)


def test_uniforms_are_flat_and_differ_by_seed_and_position() -> None:
    values = [uniform(seed, position) for seed in range(40) for position in range(50)]
    assert len(set(values)) == len(values)
    counts = [sum(k <= 10 * value < k + 1 for value in values) for k in range(10)]
    assert chisquare(counts).pvalue > 1e-3
    assert all(0 <= value < 1 for value in values)


def test_logits_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(SamplerError, match="not finite"):
        draw(torch.full((1, 9), math.nan), temperatures=[1.0], top_ps=[1.0], uniforms=[0.1])
