"""A run whose policy exploits its reward model says so, and a run that is asked on says nothing."""

from pathlib import Path

import pytest

from themis_ray.config import load_config, resolve
from themis_ray.experiment import run_experiment
from themis_ray.tracking import RunFolder

SETTINGS = [
    "env.id=tests.rllib.trap:Trap",
    "env.horizon=60",
    "num_env_steps=24000",
    "algorithm.batch_size=600",
    "algorithm.hidden_sizes=[32,32]",
    "reward.hidden_sizes=[32,32]",
    "feedback.segment_length=10",
    "feedback.budget=60",
]


def run(folder: Path, *settings: str) -> tuple[str, list[dict[str, float]]]:
    config, spec = resolve(load_config(None, [*SETTINGS, *settings]))
    run_folder = RunFolder.create(folder, config)
    for _ in run_experiment(config, spec, run_folder):
        pass
    return (folder / "run.log").read_text(), run_folder.read_metrics()


@pytest.mark.ray
def test_exploitation_is_reported_with_its_evidence(tmp_path, ray_cluster):
    log, rows = run(tmp_path / "trapped", "feedback.session_size=60", "feedback.until_share=0.01")
    assert "the reward model may be exploited" in log
    assert log.count("may be exploited") <= 2
    looks = [row for row in rows if row["fresh_accuracy"] is not None]
    assert looks[0]["fresh_accuracy"] > 0.9
    assert looks[-1]["fresh_accuracy"] < 0.5
    assert looks[-1]["predicted_return_mean"] > looks[0]["predicted_return_mean"]
    assert looks[-1]["true_return_mean"] < max(row["true_return_mean"] for row in looks) - 10
    assert looks[-1]["growth_ratio"] < 0.5


@pytest.mark.ray
def test_a_run_that_is_asked_about_its_policy_to_the_end_is_not_reported(tmp_path, ray_cluster):
    # So many answers keep up with the policy: the accuracy on fresh queries never stays low.
    asked = ["feedback.session_size=100", "feedback.budget=1000", "feedback.sampler=newest", "feedback.until_share=1"]
    log, rows = run(tmp_path / "asked", *asked)
    accuracies = [row["fresh_accuracy"] for row in rows if row["fresh_accuracy"] is not None]
    assert "may be exploited" not in log
    assert rows[-1]["fresh_accuracy"] is not None
    assert min(max(pair) for pair in zip(accuracies, accuracies[2:], strict=False)) > 0.7
