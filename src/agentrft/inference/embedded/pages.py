"""Tensors that take memory page by page, as they are written, and can give all of it back.

Cache rows have one size but hold sequences of very different lengths: what a row does not use
costs addresses and no memory.
"""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_DONT_NEED: int | None = getattr(mmap, "MADV_DONTNEED", None)


class Pages:
    """A tensor of zeros in memory of its own; on devices other than a CPU an ordinary one."""

    def __init__(self, size: Sequence[int], like: Tensor) -> None:
        count = math.prod(size)
        self._mapped: mmap.mmap | None = None
        if like.device.type != "cpu" or count == 0:
            self.tensor = like.new_zeros(size)
            return
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._mapped = mmap.mmap(-1, count * like.element_size(), flags=flags)
        self.tensor = torch.frombuffer(self._mapped, dtype=like.dtype).view(size)

    def clear(self) -> None:
        """Make everything zero again; a CPU's memory goes back to the system."""
        if self._mapped is None or _DONT_NEED is None:
            self.tensor.zero_()
        else:
            self._mapped.madvise(_DONT_NEED)
