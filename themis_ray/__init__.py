"""themis_ray: reinforcement learning from human feedback, on Ray."""

from importlib.metadata import version

__version__ = version("themis-ray")
__all__ = ["__version__"]
