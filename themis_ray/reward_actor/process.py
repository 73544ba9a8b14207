"""How every process of ours computes on a CPU: one thread, oneDNN, no denormal numbers, and memory that stays."""

from __future__ import annotations

import ctypes

import torch

__all__ = ["prepare_process", "prepare_thread"]

# Parameters of glibc's mallopt(3), and what they are set to here.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_MMAP_THRESHOLD_BYTES = 2**25
TRIM_THRESHOLD_BYTES = 2**29
# Largest error of a product of two 256 x 256 matrices of numbers below 1: float32 stays below 1e-4, bfloat16 does not.
MAX_PRODUCT_ERROR = 1e-3


def prepare_process() -> None:
    """Prepares the calling thread and makes glibc keep freed activations instead of handing them back.

    Otherwise the same few MiB are mapped anew for every forward pass, page fault by page fault
    (docs/performance.md has the figure). Elsewhere than on glibc memory is left to its allocator.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    _multiply_with_onednn()
    prepare_thread()


def _multiply_with_onednn() -> None:
    """Lets oneDNN multiply float32 matrices, wherever it does so in float32.

    On AMD's CPUs it takes half the time of MKL, torch's first choice (docs/performance.md has the figures). The setting
    that prefers it also allows a CPU with AMX to round to bfloat16, and a GPU to round to TF32: on both it stays as it
    was. Whether this CPU rounds is tried.
    """
    if torch.cuda.is_available():
        return
    before = torch.get_float32_matmul_precision()
    numbers = torch.arange(256 * 256, dtype=torch.float64).sin().view(256, 256)
    torch.set_float32_matmul_precision("medium")
    error = (numbers.float() @ numbers.float() - numbers @ numbers).abs().max()
    if error > MAX_PRODUCT_ERROR:
        torch.set_float32_matmul_precision(before)


def prepare_thread(num_threads: int = 1) -> None:
    """Makes the calling thread compute with `num_threads`, numbers too small for normal floats flushed to zero.

    Both belong to the calling thread: a new thread starts without them.
    """
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
