"""How every process of ours computes on a CPU: one thread, no denormal numbers, and memory that stays."""

from __future__ import annotations

import ctypes

import torch

__all__ = ["prepare_process", "prepare_thread"]

# Parameters of glibc's mallopt(3), and what they are set to here.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_MMAP_THRESHOLD_BYTES = 2**25
TRIM_THRESHOLD_BYTES = 2**29


def prepare_process() -> None:
    """Prepares the calling thread and makes glibc keep freed activations instead of handing them back.

    Otherwise the same few MiB are mapped anew for every forward pass, page fault by page fault
    (docs/performance.md has the figure). Elsewhere than on glibc memory is left to its allocator.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    prepare_thread()


def prepare_thread(num_threads: int = 1) -> None:
    """Makes the calling thread compute with `num_threads`, numbers too small for normal floats flushed to zero.

    Both belong to the calling thread: a new thread starts without them.
    """
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
