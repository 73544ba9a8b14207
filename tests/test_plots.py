"""The picture of a run."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from themis_ray.plots import BLUE, GREEN, ORANGE, PURPLE, plot_run

SUMMARY = {
    "true_return_mean": -3.0,
    "random_return_mean": -5.0,
    "learn_reward": True,
    "env_id": "Pendulum-v1",
    "algorithm": "sac",
    "num_preferences": 3,
    "seed": 0,
}
ROW = {
    "num_env_steps": 100,
    "true_return_mean": -4.0,
    "predicted_return_mean": 2.0,
    "queries_asked": 5,
    "num_preferences": 4,
    "heldout_accuracy": 0.8,
    "fresh_accuracy": 0.7,
    "reward_correlation": 0.5,
}


@pytest.mark.parametrize("name", [name for name in ROW if name != "num_env_steps"])
def test_a_series_of_one_point_is_seen(name: str, tmp_path: Path) -> None:
    pictures = []
    for row in (ROW, {**ROW, name: None}):
        plot_run([row], SUMMARY, tmp_path / "plot.png")
        pictures.append(matplotlib.image.imread(tmp_path / "plot.png")[:, :, :3])
    colors = np.array([to_rgb(color) for color in (BLUE, ORANGE, GREEN, PURPLE)])
    with_it, without = ((np.abs(picture[:, :, None] - colors).sum(-1) < 0.05).sum() for picture in pictures)
    assert with_it > without + 10
