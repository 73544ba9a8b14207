"""themis_ray: reinforcement learning from human feedback, on Ray."""

import os
from importlib.metadata import version

# Read when torch is loaded. Threads that share a fit sleep while they wait for each other; libgomp lets them spin, on
# cores that other trials of a machine compute on (docs/performance.md has the figures).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = version("themis-ray")
__all__ = ["__version__"]
