"""The C library's allocator in a process that trains or samples."""

import ctypes
import os

_M_ARENA_MAX = -8
ARENAS = 2


def share_arenas() -> None:
    """Let all threads allocate from two of glibc's arenas; elsewhere do nothing.

    By default each thread has its own, which keeps what its largest step took. Steps of a training run
    on changing threads, so a process came to hold the same gigabytes several times. Call it before
    threads allocate. `MALLOC_ARENA_MAX` wins.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    # None is the program with what it is linked to; musl and macOS have no such function.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, ARENAS)
