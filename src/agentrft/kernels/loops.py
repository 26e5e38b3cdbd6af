"""Loops over stored numbers, compiled at first use; the machine code is kept on disk.

Numbers are float32 in between whatever they are stored as; NumPy has no bfloat16, so its bits pass as
16-bit integers. Decision 013 says why.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
Stored = NDArray[Any]
"""Float32, or bfloat16 as unsigned integers."""
Floats = NDArray[np.float32]

# Not the whole of fastmath: what is not a number must stay none, or broken weights would go unseen.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


def compiled(loops: Compiled) -> Compiled:
    """Compile a function at its first call for each kind of arguments; it runs without the GIL."""
    made = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)(loops)
    return cast(Compiled, made)


def read(stored: Any) -> Any:
    """Return a stored number as float32; only inside compiled loops."""
    raise NotImplementedError(stored)


def written(value: Any, target: Any) -> Any:
    """Return a float32 as the target stores it, rounded to nearest even; only inside such loops."""
    raise NotImplementedError(value, target)


# The variants are told apart while compiling; their parameters must be written as in the originals.
@overload(read, inline="always")
def _compile_read(stored: Any) -> Callable[..., Any]:
    def widened(stored: Any) -> Any:
        return np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)

    def same(stored: Any) -> Any:
        return stored

    return widened if isinstance(stored, types.Integer) else same


@overload(written, inline="always")
def _compile_written(value: Any, target: Any) -> Callable[..., Any]:
    def rounded(value: Any, target: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    def same(value: Any, target: Any) -> Any:
        return np.float32(value)

    return rounded if isinstance(target.dtype, types.Integer) else same


@compiled
def norm_rows(x_NE: Stored, weight_E: Stored, epsilon: float, normed_NE: Stored) -> None:
    """Divide rows by their root mean square and weigh them (RMSNorm, arXiv 1910.07467)."""
    for n in range(x_NE.shape[0]):
        square = np.float32(0)
        for e in range(x_NE.shape[1]):
            square += read(x_NE[n, e]) * read(x_NE[n, e])
        inverse = np.float32(1) / np.sqrt(square / np.float32(x_NE.shape[1]) + np.float32(epsilon))
        for e in range(x_NE.shape[1]):
            normed_NE[n, e] = written(read(x_NE[n, e]) * inverse * read(weight_E[e]), normed_NE)


@compiled
def exp_of_negative(x: Any) -> Any:
    """Return exp(x) for x <= 0 to float32's precision: 2**n times a polynomial (Cephes' expf)."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled
def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + exp(-x)), which no x makes overflow."""
    small = exp_of_negative(-abs(x))
    share = np.float32(1) / (np.float32(1) + small)
    return share * small if x < 0 else share
