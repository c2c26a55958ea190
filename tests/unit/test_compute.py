"""Process-wide settings of torch, and the self-test that guards the faster matrix product."""

import platform
import subprocess
import sys

import pytest
import torch

from mpo_robot import compute
from mpo_robot.compute import configure_compute, matmul_is_exact


@pytest.fixture(autouse=True)
def restored():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def test_threads_and_precision_are_set_and_products_are_true_fp32():
    assert configure_compute(2) == torch.get_float32_matmul_precision()
    assert torch.get_num_threads() == 2
    assert matmul_is_exact()


def test_a_processor_that_would_round_is_sent_back_to_full_precision(monkeypatch):
    monkeypatch.setattr(compute, "matmul_is_exact", lambda: False)
    assert configure_compute(1) == "highest"


def test_the_self_test_notices_bfloat16(monkeypatch):
    product = torch.Tensor.__matmul__

    def rounded(left, right):
        if left.dtype == torch.float32:
            return product(left.bfloat16().float(), right.bfloat16().float())
        return product(left, right)

    assert matmul_is_exact()
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not matmul_is_exact()


def test_another_system_than_linux_is_no_obstacle(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("no glibc here"))
    configure_compute(1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are glibc's")
def test_blocks_beyond_the_threshold_are_mapped_and_smaller_ones_are_not():
    # In a process of its own: glibc's thresholds cannot be read back, only seen in what it asks the kernel for.
    program = """
import ctypes
from mpo_robot.compute import set_heap_thresholds

class Counts(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL("libc.so.6")
libc.mallinfo2.restype = Counts
libc.malloc.restype = ctypes.c_void_p

def mapped(size):
    before = libc.mallinfo2().hblks
    libc.malloc(ctypes.c_size_t(size))
    return libc.mallinfo2().hblks - before

set_heap_thresholds(mmap_bytes=1 << 20, trim_bytes=2 << 20)
print(mapped(2 << 20), mapped(1 << 19))
set_heap_thresholds(mmap_bytes=4 << 20, trim_bytes=8 << 20)
print(mapped(2 << 20))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "0", "0"]
