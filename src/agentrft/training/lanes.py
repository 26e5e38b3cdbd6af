"""Micro-batches side by side: each lane is a thread with its own gradients, for a core of its own.

Which lane takes which micro-batch depends on sizes only, and lanes are added up in order, so a result
never depends on timing.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from agentrft.training.pack import MicroBatch
from agentrft.training.parameters import Gradients

T = TypeVar("T")


def run_in_lanes(
    batches: Sequence[MicroBatch], work: Callable[[MicroBatch, Gradients], T], *, lanes: int
) -> list[T]:
    """Run all micro-batches, hand their gradients to the masters, return results in order."""
    assigned = _assign([batch.computed_tokens for batch in batches], lanes)

    def run(places: Sequence[int]) -> tuple[Gradients, dict[int, T]]:
        gradients = Gradients()
        return gradients, {place: work(batches[place], gradients) for place in places}

    if len(assigned) == 1:
        finished = [run(assigned[0])]
    else:
        with ThreadPoolExecutor(len(assigned)) as pool:
            finished = list(pool.map(run, assigned))
    results: dict[int, T] = {}
    for gradients, lane_results in finished:
        gradients.hand_over()
        results |= lane_results
    return [results[place] for place in range(len(batches))]


@contextmanager
def torch_settings(*, threads: int, deterministic: bool) -> Iterator[None]:
    """Set torch for the time of a step; threads born in it take over the thread count."""
    threads_before = torch.get_num_threads()
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(deterministic_before)


def _assign(sizes: Sequence[int], lanes: int) -> list[list[int]]:
    """Give each size, largest first, to the lane with the least so far; at least one lane."""
    loads = [0] * max(1, min(lanes, len(sizes)))
    assigned: list[list[int]] = [[] for _ in loads]
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        lane = loads.index(min(loads))
        loads[lane] += sizes[place]
        assigned[lane].append(place)
    return assigned
