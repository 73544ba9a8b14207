"""A prepared process neither maps memory anew for every forward pass nor slows down on denormal numbers."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
import resource, threading
import torch
from themis_ray.rllib.process import prepare_process, prepare_thread
if {is_prepared}:
    prepare_process()
network = torch.nn.Sequential(torch.nn.Linear(16, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1024))
def work():
    if {is_prepared}:
        prepare_thread()
    for i in range(22):
        if i == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        with torch.inference_mode():
            network(torch.zeros(1024, 16))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, (torch.tensor(1e-38) * 0.01).item() == 0.0)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def run(is_prepared: bool) -> tuple[int, bool]:
    program = textwrap.dedent(PROGRAM.format(is_prepared=is_prepared))
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    num_faults, is_flushed = output.split()
    return int(num_faults), is_flushed == "True"


@pytest.mark.skipif(not Path("/lib/x86_64-linux-gnu/libc.so.6").exists(), reason="glibc's allocator is what is tuned")
def test_activations_are_not_mapped_anew_for_every_forward_pass() -> None:
    unprepared, _ = run(is_prepared=False)
    prepared, _ = run(is_prepared=True)
    assert prepared * 20 < unprepared


def test_denormal_numbers_are_flushed_in_a_thread_that_asks_for_it() -> None:
    assert run(is_prepared=True)[1]
    assert not run(is_prepared=False)[1]
