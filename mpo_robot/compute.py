"""Process-wide CPU settings: thread count, allocator thresholds, and the faster fp32 matrix product where it is exact.

Measured background: docs/math.md, section "Speed".
"""

from __future__ import annotations

import ctypes
import platform

import torch

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def configure_compute(threads: int) -> str:
    """Set up torch for many small matrix products on a CPU and return the matmul precision that was chosen.

    Large temporaries are kept in the heap (glibc only), and fp32 products go to oneDNN if a self-test shows that they
    stay true fp32 on this processor (with AMX, for example, they would be rounded to bfloat16).
    """
    torch.set_num_threads(threads)
    set_heap_thresholds(mmap_bytes=1 << 30, trim_bytes=(1 << 31) - 1)
    torch.set_float32_matmul_precision("medium")
    if not matmul_is_exact():
        torch.set_float32_matmul_precision("highest")
    return torch.get_float32_matmul_precision()


def set_heap_thresholds(mmap_bytes: int, trim_bytes: int) -> None:
    """Blocks up to `mmap_bytes` come from the heap, which gives back what is free above `trim_bytes`; glibc only.

    See mallopt(3). glibc no longer moves the two by itself afterwards.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, mmap_bytes)
        libc.mallopt(_M_TRIM_THRESHOLD, trim_bytes)


def matmul_is_exact(size: int = 256, tolerance: float = 1e-6) -> bool:
    """Whether an fp32 product at the current precision setting agrees with float64 to fp32 accuracy.

    The error is relative to the sum of absolute products; bfloat16 rounding gives about 1e-3, fp32 below 1e-7.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(size, size, generator=generator)
    right = torch.randn(size, size, generator=generator)
    error = (left @ right).double() - left.double() @ right.double()
    scale = left.double().abs() @ right.double().abs()
    return bool((error.abs() / scale).max() < tolerance)
