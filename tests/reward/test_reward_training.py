import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from themis_ray.data import LabelledPairs
from themis_ray.reward import (
    RewardConfig,
    RewardEnsemble,
    accuracy,
    ensemble_state,
    fit,
    load_ensemble_state,
    make_optimizer,
    training,
)

torch.set_num_threads(1)

STATE = Box(-np.inf, np.inf, (4,), np.float32)
TORQUE = Box(-1.0, 1.0, (2,), np.float32)
WEIGHTS = np.array([1.0, -0.5, 0.25, 0.0, 0.5, -1.0], np.float32)
SMALL = RewardConfig(hidden_sizes=(16, 16), num_epochs=3, target_accuracy=1.0)


def planted_rewards(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return np.concatenate([observations, actions], axis=-1) @ WEIGHTS


def make_pairs(num_pairs: int, rng: np.random.Generator, length: int = 10) -> LabelledPairs:
    """Pairs answered by an oracle whose reward is linear; the steps of a segment resemble each other, as in an env."""
    centres, noise = rng.uniform(-1, 1, (2 * num_pairs, 1, 6)), rng.standard_normal((2 * num_pairs, length, 6))
    steps = (centres + 0.2 * noise).astype(np.float32)
    observations, actions = steps[..., :4], steps[..., 4:].clip(-1, 1)
    returns = planted_rewards(observations, actions).sum(axis=1)
    left, right = np.arange(num_pairs), np.arange(num_pairs, 2 * num_pairs)
    labels = (returns[left] > returns[right]).astype(np.float32)
    return LabelledPairs(observations, actions, left, right, labels)


def make_frame_pairs(rng: np.random.Generator) -> LabelledPairs:
    observations = rng.integers(0, 256, (6, 2, 36, 36, 1), dtype=np.uint8)
    return LabelledPairs(
        observations,
        rng.integers(0, 3, (6, 2)),
        np.array([0, 1, 2, 5, 5]),
        np.array([3, 4, 5, 0, 1]),
        np.array([1, 0, 0.5, 1, 0], np.float32),
    )


def make(config: RewardConfig = SMALL, *, is_image: bool = False) -> tuple[RewardEnsemble, torch.optim.Optimizer]:
    observation_space = Box(0, 255, (36, 36, 1), np.uint8) if is_image else STATE
    action_space: gym.Space[Any] = Discrete(3) if is_image else TORQUE
    ensemble = RewardEnsemble(observation_space, action_space, "image" if is_image else "vector", config, 0)
    return ensemble, make_optimizer(ensemble, config)


def weights(ensemble: RewardEnsemble) -> list[np.ndarray]:
    return [parameter.detach().numpy().copy() for parameter in ensemble.parameters()]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fit_learns_a_planted_linear_reward(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # With the default target of 0.97 the fit stops sooner and held-out accuracy was 0.915 to 0.965 over six seeds.
    config = RewardConfig(hidden_sizes=(64, 64), learning_rate=1e-3, target_accuracy=0.99)
    ensemble, optimizer = make(config)
    info = fit(ensemble, optimizer, make_pairs(200, rng), config, rng)
    assert info["accuracy"] > config.target_accuracy
    assert info["num_epochs"] < ensemble.num_epochs
    held_out = make_pairs(1000, rng)
    returns = ensemble.segment_returns(held_out.observations, held_out.actions).mean(axis=0)
    agrees = (returns[held_out.left] > returns[held_out.right]) == (held_out.labels > 0.5)
    assert agrees.mean() > 0.95
    rows, actions = held_out.observations[:, 0], held_out.actions[:, 0]
    correlation = np.corrcoef(ensemble.predict(rows, actions), planted_rewards(rows, actions))[0, 1]
    assert correlation > 0.95


def test_fit_equals_plain_torch_training_of_each_member() -> None:
    pairs, config = make_pairs(20, np.random.default_rng(0)), SMALL.model_copy(update={"batch_size": 8})
    ensemble, optimizer = make(config)
    plain = copy.deepcopy(ensemble)
    fit(ensemble, optimizer, pairs, config, np.random.default_rng(1))
    rng = np.random.default_rng(1)
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=config.learning_rate)
    for _ in range(config.num_epochs):
        order = rng.permuted(np.tile(np.arange(20), (3, 1)), axis=1)
        for start in range(0, 20, 8):
            plain_optimizer.zero_grad()
            for member in range(3):
                rows = order[member, start : start + 8]
                sums = [
                    plain(pairs.observations[side[rows]].reshape(-1, 4), pairs.actions[side[rows]].reshape(-1, 2))[
                        member
                    ]
                    .reshape(len(rows), -1)
                    .sum(dim=1)
                    for side in (pairs.left, pairs.right)
                ]
                target = torch.from_numpy(np.stack([pairs.labels[rows], 1 - pairs.labels[rows]], axis=1))
                torch.nn.functional.cross_entropy(torch.stack(sums, dim=1), target).backward()
            plain_optimizer.step()
    for ours, theirs in zip(weights(ensemble), weights(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_accuracy_leaves_ties_out() -> None:
    probabilities = np.array([[0.9, 0.2, 0.9, 0.5], [0.1, 0.2, 0.1, 0.9]])
    assert accuracy(probabilities, np.array([1.0, 0.05, 0.5, 1.0], np.float32)) == pytest.approx(4 / 6)
    assert np.isnan(accuracy(probabilities, np.full(4, 0.5)))


def test_fit_stops_early_among_ties_and_on_ties_alone() -> None:
    pairs = make_pairs(60, np.random.default_rng(0))
    labels = pairs.labels.copy()
    labels[::2] = 0.5
    config = RewardConfig(hidden_sizes=(64, 64), learning_rate=3e-3, num_epochs=100)
    mixed = LabelledPairs(pairs.observations, pairs.actions, pairs.left, pairs.right, labels)
    info = fit(*make(config), mixed, config, np.random.default_rng(0))
    assert info["num_epochs"] < 100
    assert info["accuracy"] > config.target_accuracy
    ties = LabelledPairs(pairs.observations, pairs.actions, pairs.left, pairs.right, np.full(60, 0.5, np.float32))
    info = fit(*make(config), ties, config, np.random.default_rng(0))
    assert info["num_epochs"] < 100
    assert info["loss"] == pytest.approx(np.log(2), rel=0.01)
    assert np.isnan(info["accuracy"])


def test_fit_without_pairs_changes_nothing() -> None:
    pairs = make_pairs(2, np.random.default_rng(0))
    none = np.zeros(0, np.int64)
    ensemble, optimizer = make()
    before = weights(ensemble)
    empty = LabelledPairs(pairs.observations, pairs.actions, none, none, np.zeros(0, np.float32))
    assert fit(ensemble, optimizer, empty, SMALL, np.random.default_rng(0))["num_epochs"] == 0
    for ours, theirs in zip(weights(ensemble), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_members_see_different_shuffles(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    take_step = training._gradient_step

    def record(*arguments: Any) -> torch.Tensor:
        seen.append(arguments[3][0])
        return take_step(*arguments)

    monkeypatch.setattr(training, "_gradient_step", record)
    fit(*make(), make_pairs(50, np.random.default_rng(0)), SMALL, np.random.default_rng(0))
    assert len(seen) == SMALL.num_epochs  # 50 pairs are one batch
    for left in seen:
        assert [sorted(member) for member in left] == [list(range(50))] * 3
    orders = {member.tobytes() for left in seen for member in left}
    assert len(orders) == 3 * SMALL.num_epochs


def test_on_epoch_hears_every_pass() -> None:
    heard: list[dict[str, float]] = []
    info = fit(*make(), make_pairs(10, np.random.default_rng(0)), SMALL, np.random.default_rng(0), heard.append)
    assert [metrics["num_epochs"] for metrics in heard] == [1, 2, 3]
    assert heard[-1] == info


@pytest.mark.parametrize("is_image", [False, True])
def test_micro_batches_give_the_gradients_of_the_whole_batch(is_image: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_MICRO_BATCH_ROWS_CPU", 10**9)
    rng = np.random.default_rng(0)
    pairs = make_frame_pairs(rng) if is_image else make_pairs(7, rng)
    gradients, sizes = [], []
    for max_batch_bytes in (2**30, 1):
        config = SMALL.model_copy(update={"num_epochs": 1, "max_batch_bytes": max_batch_bytes})
        ensemble, optimizer = make(config, is_image=is_image)
        sizes.append(training._micro_batch_size(ensemble, pairs.observations.shape[1], config))
        fit(ensemble, optimizer, pairs, config, np.random.default_rng(0))
        gradients.append([p.grad.numpy() for p in ensemble.parameters() if p.grad is not None])
    assert sizes[0] > len(pairs)
    assert sizes[1] == 1
    assert len(gradients[0]) == len(list(ensemble.parameters()))
    for whole, split in zip(*gradients, strict=True):
        np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-6)


def test_frames_stay_bytes_until_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, int]] = []
    evaluate = RewardEnsemble.evaluate

    def record(self: RewardEnsemble, inputs: Any) -> torch.Tensor:
        seen.append((inputs.pixels.dtype, inputs.pixels.shape[1]))
        return evaluate(self, inputs)

    monkeypatch.setattr(RewardEnsemble, "evaluate", record)
    config = SMALL.model_copy(update={"max_batch_bytes": 1})
    fit(*make(config, is_image=True), make_frame_pairs(np.random.default_rng(0)), config, np.random.default_rng(0))
    assert set(seen) == {(torch.uint8, 4)}  # one query: two segments of two steps


def test_a_fit_continued_from_a_pickled_state_equals_one_that_never_stopped() -> None:
    pairs = make_pairs(30, np.random.default_rng(0))
    through, optimizer = make()
    rng = np.random.default_rng(1)
    fit(through, optimizer, pairs, SMALL, rng)
    stored, stored_rng = pickle.dumps(ensemble_state(through, optimizer)), copy.deepcopy(rng)
    fit(through, optimizer, pairs, SMALL, rng)

    resumed = RewardEnsemble(STATE, TORQUE, "vector", SMALL, seed=99)
    resumed_optimizer = make_optimizer(resumed, SMALL)
    load_ensemble_state(resumed, resumed_optimizer, pickle.loads(stored))
    assert pickle.dumps(ensemble_state(resumed, resumed_optimizer)) == stored
    fit(resumed, resumed_optimizer, pairs, SMALL, stored_rng)
    for ours, theirs in zip(weights(resumed), weights(through), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    first, second = (
        ensemble_state(*both)["optimizer"] for both in ((resumed, resumed_optimizer), (through, optimizer))
    )
    for index, values in first["state"].items():
        for name, value in values.items():
            np.testing.assert_array_equal(value, second["state"][index][name])
            assert isinstance(value, np.ndarray)


def test_a_saved_state_does_not_follow_the_ensemble() -> None:
    ensemble, optimizer = make()
    state = ensemble_state(ensemble, optimizer)
    before = {name: value.copy() for name, value in state["weights"].items()}
    fit(ensemble, optimizer, make_pairs(10, np.random.default_rng(0)), SMALL, np.random.default_rng(0))
    for name, value in state["weights"].items():
        np.testing.assert_array_equal(value, before[name])


def test_refuses_the_state_of_another_shape() -> None:
    state = ensemble_state(*make())
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_ensemble_state(*make(RewardConfig(hidden_sizes=(8, 16))), state)
