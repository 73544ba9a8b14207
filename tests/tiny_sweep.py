"""A sweep of trials that are over in seconds."""

from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "horizon": 50},
    "num_env_steps": 600,
    "exploration": {"num_seed_steps": 100, "num_env_steps": 100},
    "feedback": {"budget": 8, "session_size": 4, "segment_length": 10},
    "algorithm": {"hidden_sizes": [16], "batch_size": 16},
    "reward": {"hidden_sizes": [16], "num_epochs": 2},
    "num_evaluation_episodes": 1,
    "resources": {"num_fit_threads": 1},
}


def write_sweep(folder: Path, **settings: Any) -> Path:
    """Write a sweep's file over `BASE` and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, **settings}, sort_keys=False))
    return path
