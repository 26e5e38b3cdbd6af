import numpy as np
import torch

from agentrft.kernels.loops import Floats, Stored, compiled, exp_of_negative, read, sigmoid, written


@compiled
def copied(source: Stored, target: Stored) -> None:
    for place in range(source.shape[0]):
        target[place] = written(read(source[place]), target)


@compiled
def functions(x: Floats, exponential: Floats, share: Floats) -> None:
    for place in range(x.shape[0]):
        exponential[place] = exp_of_negative(-abs(x[place]))
        share[place] = sigmoid(x[place])


def test_numbers_round_to_bfloat16_as_pytorch_rounds_them_and_come_back_unchanged() -> None:
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0))
    halfway = (torch.arange(2**16) << 16) + 0x8000
    values = torch.cat([bits, halfway]).to(torch.int32).view(torch.float32)
    values = values[values.isfinite()]
    expected = values.bfloat16()
    rounded = torch.empty_like(expected)
    copied(values.numpy(), rounded.view(torch.uint16).numpy())
    assert torch.equal(rounded, expected)
    back = torch.empty_like(values)
    copied(rounded.view(torch.uint16).numpy(), back.numpy())
    assert torch.equal(back, expected.float())


def test_exponentials_and_shares_have_the_precision_of_float32() -> None:
    x = np.linspace(-200, 200, 100_001, dtype=np.float32)
    exponential, share = np.empty_like(x), np.empty_like(x)
    functions(x, exponential, share)
    exact = np.abs(x).astype(np.float64)
    # Below exp(-87) float32 has no normal numbers.
    np.testing.assert_allclose(exponential, np.exp(-exact), rtol=2e-7, atol=2e-38)
    np.testing.assert_allclose(
        share, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=4e-7, atol=2e-38
    )


def test_what_is_not_a_number_stays_none() -> None:
    x = np.full(8, np.nan, np.float32)
    exponential, share = np.empty_like(x), np.empty_like(x)
    functions(x, exponential, share)
    assert np.isnan(share).all()
