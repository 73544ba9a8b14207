"""A wrong answer is found by what it spoils."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from themis_ray.data import LabelledPairs
from themis_ray.explain import Prediction, Snapshot, preference_influence, strongest
from themis_ray.reward import RewardConfig, RewardEnsemble, fit, make_optimizer

torch.set_num_threads(1)

NUM_PAIRS, LENGTH, NUM_SHIFTED = 100, 25, 5
SPACE, ACTIONS = Box(-np.inf, np.inf, (6,), np.float32), Box(-1.0, 1.0, (2,), np.float32)


def draw_episodes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slowly changing observations and actions, and a reward that reads three of them; two episodes for each pair."""
    count, length = 2 * NUM_PAIRS, LENGTH + NUM_SHIFTED
    steps = rng.normal(size=(count, length, 6)) * 0.3
    steps[:, 0] = rng.normal(size=(count, 6))
    observations = np.cumsum(steps, axis=1).astype(np.float32)
    actions = rng.uniform(-1, 1, (count, length, 2)).astype(np.float32)
    return observations, actions, observations[..., 1] - 0.7 * observations[..., 4] + 0.5 * actions[..., 0]


def fitted(pairs: LabelledPairs, seed: int) -> RewardEnsemble:
    config = RewardConfig(hidden_sizes=(64, 64), num_epochs=20)
    ensemble = RewardEnsemble(SPACE, ACTIONS, "vector", config, seed)
    fit(ensemble, make_optimizer(ensemble, config), pairs, config, np.random.default_rng(seed))
    return ensemble


def log_odds(ensemble: RewardEnsemble, prediction: Prediction) -> float:
    left, right = ensemble.segment_returns(prediction.observations, prediction.actions).mean(axis=0)
    return float(left - right)


def rank_of_the_flipped_answer(seed: int) -> int:
    """Flips the answer to the clearest of some pairs, fits, and asks what made the ensemble err on the same scene."""
    rng = np.random.default_rng(seed)
    observations, actions, rewards = draw_episodes(rng)
    returns = rewards[:, :LENGTH].sum(axis=1)
    margins = returns[:NUM_PAIRS] - returns[NUM_PAIRS:]
    labels = (margins > 0).astype(np.float32)
    flipped = int(np.abs(margins[:20]).argmax())
    labels[flipped] = 1 - labels[flipped]
    pairs = LabelledPairs(
        observations[:, :LENGTH], actions[:, :LENGTH], np.arange(NUM_PAIRS), np.arange(NUM_PAIRS) + NUM_PAIRS, labels
    )
    # Steps of the same two episodes a little later, which nobody was asked about.
    sides = [flipped, flipped + NUM_PAIRS]
    later = Prediction(observations[sides, NUM_SHIFTED:], actions[sides, NUM_SHIFTED:], (1.0, -1.0))
    right = LabelledPairs(
        pairs.observations,
        pairs.actions,
        pairs.left,
        pairs.right,
        np.where(np.arange(NUM_PAIRS) == flipped, 1 - labels, labels),
    )
    ensemble, unspoiled = fitted(pairs, seed), fitted(right, seed)
    assert log_odds(unspoiled, later) * margins[flipped] > log_odds(ensemble, later) * margins[flipped]
    influence = preference_influence([Snapshot(ensemble, np.ones(NUM_PAIRS, bool))], pairs, [later])[0]
    assert (influence[flipped] > 0) == (labels[flipped] == 1), "it pulled to its own, wrong, side"
    return strongest(influence, NUM_PAIRS).tolist().index(flipped)


@pytest.mark.slow
def test_a_flipped_answer_is_among_the_five_most_influential_ones_of_what_it_spoils() -> None:
    ranks = [rank_of_the_flipped_answer(seed) for seed in range(10)]
    assert sum(rank < 5 for rank in ranks) >= 8, ranks
