"""What the machine can do at best: matrix products per second, and bytes read per second."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from worker import Handler, serve

_SIZE = 2048
_READ_BYTES = 1 << 30
_REPEATS = 5


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    torch.set_num_threads(settings["threads"])
    a, b = torch.randn(2, _SIZE, _SIZE).to(torch.bfloat16)
    numbers = torch.zeros(_READ_BYTES // 4)

    def measure() -> Mapping[str, Any]:
        return {
            "flops_per_s": 2 * _SIZE**3 / _best(lambda: a @ b),
            "bytes_per_s": _READ_BYTES / _best(numbers.sum),
        }

    return {"measure": measure}


def _best(work: Callable[[], object]) -> float:
    seconds: list[float] = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


serve(prepare)
