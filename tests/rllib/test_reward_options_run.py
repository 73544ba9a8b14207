"""The options of `reward` reach the fits of a whole run, and a run without them draws nothing for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from themis_ray.config import load_config, resolve
from themis_ray.experiment import _metrics
from themis_ray.randomness import seed_python
from themis_ray.rllib import build_algorithm_config

SMALL = [
    "env.id=Pendulum-v1",
    "env.horizon=20",
    "num_env_steps=600",
    "algorithm.hidden_sizes=[8]",
    "algorithm.batch_size=8",
    "exploration.num_seed_steps=100",
    "exploration.num_env_steps=100",
    "feedback.budget=12",
    "feedback.session_size=6",
    "feedback.segment_length=10",
    "reward.hidden_sizes=[8]",
    "reward.num_epochs=4",
]
OPTIONS = [
    "reward.filter_wrong_labels=true",
    "reward.label_margin=0.1",
    "reward.temporal_crop=3",
    "reward.pseudo_label_threshold=0.501",
    "reward.pseudo_labels_per_label=3",
    "reward.heldout_share=0.3",
    "reward.early_stop_patience=3",
    "reward.from_scratch=true",
    "reward.normalize_predictions=true",
    "reward.disagreement_bonus=0.5",
    "reward.disagreement_bonus_decay=0.999",
]
FILLED = {
    *("fit_trusted_share", "fit_flipped_share", "fit_num_pseudo_labels"),
    *("fit_heldout_loss", "fit_heldout_pair_accuracy"),
}

pytestmark = pytest.mark.ray


def run(folder: Path, *settings: str) -> tuple[Any, list[dict[str, Any]]]:
    config, _ = resolve(load_config(None, [*SMALL, *settings]))
    seed_python(config.seed)
    algorithm = build_algorithm_config(config, folder).build_algo()
    rows: list[dict[str, Any]] = []
    while not rows or rows[-1]["num_env_steps"] < config.num_env_steps:
        rows.append(_metrics(algorithm, algorithm.train()))
    return algorithm, rows


def test_every_option_reaches_the_fits_of_a_run(tmp_path, ray_cluster, monkeypatch):
    from themis_ray.reward_actor import RewardModel

    calls: list[tuple[int, float, int]] = []
    fit = RewardModel.fit

    def record(self: RewardModel, pairs: Any, seed: int, bonus: float, unlabelled: Any) -> dict[str, float]:
        calls.append((len(pairs), bonus, len(unlabelled.left)))
        assert set(np.unique(pairs.labels)) <= {np.float32(0.1), np.float32(0.5), np.float32(0.9)}
        return fit(self, pairs, seed, bonus, unlabelled)

    monkeypatch.setattr(RewardModel, "fit", record)
    algorithm, rows = run(tmp_path, *OPTIONS)
    try:
        assert rows[-1]["num_preferences"] == 12
        for name in FILLED:
            assert np.isfinite(rows[-1][name]), name
        assert rows[-1]["fit_num_pseudo_labels"] > 0
        assert len(calls) >= 2
        asked = sorted({preference.num_env_steps for preference in algorithm.loop.dataset.preferences})
        for (num_pairs, bonus, num_unlabelled), env_step in zip(calls, asked, strict=True):
            assert num_unlabelled == 3 * num_pairs
            assert bonus == pytest.approx(0.5 * 0.999**env_step)
        weights = algorithm.loop.reward_model.state["ensemble"]["weights"]
        bonus, shift, scale = weights["prediction_terms"].tolist()
        assert bonus == pytest.approx(calls[-1][1])
        assert shift != 0
        assert scale != 1
        assert weights["filter_statistics"][2] > 0
    finally:
        algorithm.stop()


def test_a_run_without_options_draws_and_reports_nothing_for_them(tmp_path, ray_cluster):
    algorithm, rows = run(tmp_path)
    try:
        assert rows[-1]["reward_version"] >= 2
        for name in FILLED:
            assert np.isnan(rows[-1][name]), name
        assert "unlabelled" not in algorithm.loop.streams.get_state()
        weights = algorithm.loop.reward_model.state["ensemble"]["weights"]
        assert weights["prediction_terms"].tolist() == [0, 0, 1]
        assert weights["filter_statistics"].tolist() == [0, 1, 0]
    finally:
        algorithm.stop()
