"""Sweeps: many experiments from one file, run side by side by Ray Tune."""

from themis_ray.sweeping.estimate import Estimate, estimate
from themis_ray.sweeping.folder import Outcome, SweepFolder, is_shown
from themis_ray.sweeping.pretraining import share_exploration
from themis_ray.sweeping.run import Progress, run_sweep
from themis_ray.sweeping.settings import SweepSettings, load_sweep
from themis_ray.sweeping.trials import Trial, examples, expand

__all__ = [
    "Estimate",
    "Outcome",
    "Progress",
    "SweepFolder",
    "SweepSettings",
    "Trial",
    "estimate",
    "examples",
    "expand",
    "is_shown",
    "load_sweep",
    "run_sweep",
    "share_exploration",
]
