"""Our processes do not map memory anew for every forward pass, slow down on denormal numbers, or spin."""

import os
import platform
import subprocess
import sys
import textwrap

import pytest

FAULTS = """
import resource
import gymnasium as gym
import numpy as np
from themis_ray.reward import RewardConfig, RewardEnsemble
from themis_ray.reward_actor import prepare_process
if {is_prepared}:
    prepare_process()
observations, actions = gym.spaces.Box(-9, 9, (17,)), gym.spaces.Box(-1, 1, (6,))
ensemble = RewardEnsemble(observations, actions, "vector", RewardConfig(), seed=0)
rows = np.zeros((16384, 17), np.float32), np.zeros((16384, 6), np.float32)
counts = []
for i in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    ensemble.predict(*rows, chunk_size=4096)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(counts)[3])
"""
DENORMALS = """
import threading
import torch
from themis_ray.reward_actor import prepare_process, prepare_thread
def is_flushed():
    return (torch.tensor(1e-38) * 0.01).item() == 0.0
def work():
    before = is_flushed()
    prepare_thread()
    print(before, is_flushed())
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""

PRODUCTS = """
import torch
from themis_ray.reward_actor import process
{change}
process.prepare_process()
numbers = torch.rand(512, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
error = (numbers.float() @ numbers.float().T - numbers @ numbers.T).abs().max()
print(torch.get_float32_matmul_precision(), error.item() < 1e-3)
"""


def output_of(program: str, **environ: str) -> list[str]:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = os.environ | environ
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is tuned")
def test_activations_are_not_mapped_anew_for_every_forward_pass() -> None:
    # By itself glibc hands memory back or keeps it, depending on what lies above: here it begins by handing it back.
    handing_back = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
    unprepared, prepared = (int(output_of(FAULTS.format(is_prepared=x), **handing_back)[0]) for x in (False, True))
    assert prepared * 20 < unprepared


def test_denormal_numbers_are_flushed_in_a_thread_that_asks_for_it() -> None:
    assert output_of(DENORMALS) == ["False", "True"]


def test_products_keep_the_precision_of_float32() -> None:
    assert output_of(PRODUCTS.format(change=""))[1] == "True"


@pytest.mark.parametrize(
    "change", ["process.MAX_PRODUCT_ERROR = -1.0", "torch.cuda.is_available = lambda: True"], ids=["cpu", "gpu"]
)
def test_products_are_left_as_they_were_where_they_would_be_rounded(change: str) -> None:
    assert output_of(PRODUCTS.format(change=change)) == ["highest", "True"]


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_threads_of_a_fit_sleep_while_they_wait_unless_told_otherwise(given: str | None, used: str) -> None:
    """OpenMP itself says what it uses, once torch loads it."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({"OMP_WAIT_POLICY": given} if given else {})
    command = [sys.executable, "-c", "import themis_ray.reward"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stderr
    assert f"OMP_WAIT_POLICY='{used}'" in said.replace(" ", "")
