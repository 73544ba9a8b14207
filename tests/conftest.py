"""What all tests share: quiet, single-threaded libraries, and one small Ray cluster for those that need it."""

import os
from collections.abc import Iterator

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# Machines that run tests are busy: how long one example takes says nothing.
settings.register_profile("themis", deadline=None)
settings.load_profile("themis")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start one cluster for every test marked `ray`, and end it after the last."""
    import ray

    from themis_ray.sessions import start_ray

    start_ray(num_cpus=4, object_store_memory=150 * 2**20, namespace="themis")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _compute_as_usual() -> Iterator[None]:
    """Undo what an experiment does to its whole process: small numbers become zero and oneDNN multiplies."""
    yield
    torch.set_flush_denormal(False)
    torch.set_float32_matmul_precision("highest")
