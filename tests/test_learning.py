"""The main job learns: what `make demo` and the documentation promise, at full length."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def train(folder: Path, *settings: str) -> dict[str, float]:
    command = [sys.executable, "-m", "themis_ray.cli", "train", *settings, "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    summary: dict[str, float] = json.loads((folder / "summary.json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.ray
def test_pendulum_is_learned_from_at_most_200_labels(tmp_path):
    summary = train(tmp_path / "run", str(ROOT / "tune_configs" / "pendulum.yaml"))
    assert summary["true_return_mean"] >= -250
    assert summary["queries_asked"] <= 200


@pytest.mark.slow
@pytest.mark.ray
def test_cartpole_from_100_labels_is_as_good_as_from_its_own_reward(tmp_path):
    settings = ("env.id=CartPole-v1", "num_env_steps=60000", "feedback.budget=100")
    learned = train(tmp_path / "learned", *settings)
    own = train(tmp_path / "own", *settings, "learn_reward=false")
    assert learned["true_return_mean"] >= 0.9 * own["true_return_mean"]
