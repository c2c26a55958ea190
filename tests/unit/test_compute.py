"""Process-wide settings of torch, and the self-test that guards the faster matrix product."""

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
