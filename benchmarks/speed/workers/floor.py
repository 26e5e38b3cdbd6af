"""What the machine can do at best: matrix products per second, and bytes read or copied per second."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from worker import Handler, serve

_SIZE, _GPU_SIZE = 2048, 8192
_BYTES = 1 << 30
_REPEATS, _GPU_REPEATS = 5, 20


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    torch.set_num_threads(settings["threads"])
    device, on_gpu = settings["device"], settings["device"] == "cuda"
    size = _GPU_SIZE if on_gpu else _SIZE
    a, b = torch.randn(2, size, size, device=device).to(torch.bfloat16)
    numbers = torch.zeros(_BYTES // 4, device=device)
    best = _best_on_gpu if on_gpu else _best

    def bytes_per_s() -> float:
        if not on_gpu:
            return _BYTES / best(numbers.sum)
        copy = torch.empty_like(numbers)
        # Each byte is read and written.
        return 2 * _BYTES / best(lambda: copy.copy_(numbers))

    def measure() -> Mapping[str, Any]:
        return {
            "flops_per_s": 2 * size**3 / best(lambda: a @ b),
            "bytes_per_s": bytes_per_s(),
        }

    return {"measure": measure}


def _best(work: Callable[[], object]) -> float:
    seconds: list[float] = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _best_on_gpu(work: Callable[[], object]) -> float:
    """Take the time on the device itself: a call returns before its work is done."""
    seconds: list[float] = []
    for _ in range(_GPU_REPEATS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        ended.synchronize()
        seconds.append(began.elapsed_time(ended) / 1e3)
    return min(seconds)


serve(prepare)
