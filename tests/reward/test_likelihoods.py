"""Each likelihood against a slow, obvious one, and what an ensemble learns from a few hundred answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_ray.data import EvaluatedSegments, LabelledPairs
from themis_ray.reward import RewardConfig, RewardEnsemble, fit, make_optimizer
from themis_ray.reward.likelihoods import (
    STEP_STEEPNESS,
    EvaluationLosses,
    demonstration_losses,
    matched_cut_points,
    preference_losses,
    rating_losses,
    spread,
    step_losses,
    teaches_anything,
)

torch.set_num_threads(1)

STATE = Box(-np.inf, np.inf, (4,), np.float32)
TORQUE = Box(-1.0, 1.0, (2,), np.float32)
WEIGHTS = np.array([1.0, -0.5, 0.25, 0.0, 0.5, -1.0], np.float32)
SMALL = RewardConfig(hidden_sizes=(16,), num_epochs=2, target_accuracy=1.0, batch_size=8)
LEARNING = RewardConfig(hidden_sizes=(64, 64), learning_rate=1e-3, num_epochs=40)


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def make(config: RewardConfig) -> tuple[RewardEnsemble, torch.optim.Optimizer]:
    ensemble = RewardEnsemble(STATE, TORQUE, "vector", config, 0)
    return ensemble, make_optimizer(ensemble, config)


def make_steps(num_segments: int, rng: np.random.Generator, length: int = 10) -> np.ndarray:
    """Steps of a segment resemble each other, as in an env: (S, L, 6)."""
    centres, noise = rng.uniform(-1, 1, (num_segments, 1, 6)), rng.standard_normal((num_segments, length, 6))
    steps = (centres + 0.2 * noise).astype(np.float32)
    steps[..., 4:] = steps[..., 4:].clip(-1, 1)
    return steps


def answer(kind: str, num_answers: int, rng: np.random.Generator) -> EvaluatedSegments:
    """Answers of an oracle whose reward is linear; demonstrations are the best tenth among other segments."""
    rows = np.arange(num_answers)
    steps = make_steps(10 * num_answers if kind == "demonstration" else num_answers, rng)
    arrays = steps[..., :4], steps[..., 4:]
    rewards = steps @ WEIGHTS
    ranks = rewards.sum(axis=1).argsort().argsort()
    match kind:
        case "rating":
            return EvaluatedSegments(*arrays, rated=rows, levels=5 * ranks // num_answers, num_levels=5)
        case "step":
            values = np.sign(rewards - np.median(rewards)).astype(np.int8)
            return EvaluatedSegments(*arrays, judged=rows, step_values=values)
    is_shown = ranks >= 9 * num_answers
    return EvaluatedSegments(*arrays, shown=np.flatnonzero(is_shown), own=np.flatnonzero(~is_shown))


# ---------------------------------------------------------------- the likelihoods


def test_rating_losses_equal_the_formula() -> None:
    rng = np.random.default_rng(0)
    returns, ends = rng.normal(size=(2, 12)), np.sort(rng.normal(size=(2, 3)), axis=1)
    levels = rng.integers(0, 4, (2, 12))
    losses = rating_losses(torch.from_numpy(returns), torch.from_numpy(levels), torch.from_numpy(ends))
    for (member, i), level in np.ndenumerate(levels):
        above = [sigmoid(returns[member, i] - end) for end in ends[member]]
        expected = [-np.log(p if level > j else 1 - p) for j, p in enumerate(above)]
        assert float(losses[member, i]) == pytest.approx(np.mean(expected))


def test_a_rating_pulls_the_return_towards_its_level() -> None:
    ends = torch.tensor([[-1.0, 1.0]])
    returns = torch.tensor([[0.0, 3.0, -3.0, 0.0, 0.0]], requires_grad=True)
    rating_losses(returns, torch.tensor([[0, 1, 1, 2, 1]]), ends).sum().backward()
    assert returns.grad is not None
    assert [float(x) for x in np.sign(returns.grad.numpy().round(6))[0]] == [1, 1, -1, -1, 0]


@pytest.mark.parametrize("mistake_rate", [0.0, 0.05, 0.3, 0.49])
def test_preference_losses_are_those_of_a_teacher_who_errs(mistake_rate: float) -> None:
    numbers = np.array([-12.0, -2.0, 0.0, 0.5, 12.0])
    for margin, label in ((m, y) for m in numbers for y in (0.0, 0.1, 0.5, 1.0)):
        left = mistake_rate + (1 - 2 * mistake_rate) * sigmoid(margin)
        expected = -label * np.log(left) - (1 - label) * np.log1p(-left)
        loss = preference_losses(torch.tensor(margin), torch.tensor(label, dtype=torch.float64), mistake_rate)
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_an_answer_that_contradicts_all_the_others_stops_pulling() -> None:
    margins = torch.tensor([0.0, -5.0, -200.0, 200.0], requires_grad=True)
    losses = preference_losses(margins, torch.ones(4), 0.3)
    losses.sum().backward()
    assert margins.grad is not None
    assert torch.isfinite(losses).all()
    assert float(losses[2].detach()) == pytest.approx(-np.log(0.3))
    np.testing.assert_allclose(margins.grad[[0, 2, 3]], [-0.2, 0, 0], atol=1e-6)  # plain: -0.5, -1, 0
    assert -0.02 < float(margins.grad[1]) < 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 30.0])
)
def test_cut_points_match_the_shares_and_returns_do_not_drift(levels: list[int], seed: int, scale: float) -> None:
    numbers = scale * np.random.default_rng(seed).standard_normal((2, len(levels)))
    ends = matched_cut_points(numbers, np.array(levels), 4)
    assert (ends[:, 1:] >= ends[:, :-1]).all()
    for member, j in np.ndindex(2, 3):
        expected = sum(sigmoid(number - float(ends[member, j])) for number in numbers[member])
        assert expected == pytest.approx(sum(level > j for level in levels), abs=1e-3)
    np.testing.assert_allclose(matched_cut_points(numbers + 7, np.array(levels), 4), ends + 7, atol=1e-3)
    returns = torch.tensor(numbers, requires_grad=True)
    losses = rating_losses(returns, torch.tensor([levels, levels]), torch.from_numpy(ends))
    assert torch.isfinite(losses).all()
    losses.sum().backward()
    assert returns.grad is not None
    np.testing.assert_allclose(returns.grad.sum(dim=1), 0, atol=1e-3)


def test_step_losses_equal_the_formula_and_pull_rewards_to_their_sign() -> None:
    rng = np.random.default_rng(0)
    values, numbers = rng.integers(-1, 2, (2, 3, 4)).astype(np.float32), rng.uniform(-1, 1, (2, 3, 4))
    rewards = torch.tensor(numbers, requires_grad=True)
    losses = step_losses(rewards, torch.from_numpy(values))
    for index, value in np.ndenumerate(values):
        good = sigmoid(STEP_STEEPNESS * numbers[index])
        expected = {1: -np.log(good), -1: -np.log(1 - good), 0: 0.0}[int(value)]
        assert float(losses[index].detach()) == pytest.approx(expected)
    losses.sum().backward()
    assert rewards.grad is not None
    np.testing.assert_array_equal(np.sign(rewards.grad), -values)


def test_demonstration_losses_equal_the_formula() -> None:
    shown = torch.tensor([[0.0, 2.0, -3.0]], requires_grad=True)
    own = torch.tensor([[0.0, 1.0, 4.0]], requires_grad=True)
    losses = demonstration_losses(shown, own)
    expected = [-np.log(sigmoid(margin)) for margin in (0.0, 1.0, -7.0)]
    np.testing.assert_allclose(losses.detach()[0], expected, rtol=1e-5)
    losses.sum().backward()
    assert shown.grad is not None
    assert own.grad is not None
    assert (shown.grad < 0).all()
    assert (own.grad > 0).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 10))
def test_every_example_is_in_a_pass(num_examples: int, num_steps: int) -> None:
    order = np.stack([np.random.default_rng(member).permutation(num_examples) for member in range(3)])
    steps = spread(order, num_steps)
    assert steps.shape[:2] == (3, num_steps)
    assert steps.size < 3 * (num_examples + num_steps)
    for member in range(3):
        assert set(steps[member].flat) == set(range(num_examples))


# ---------------------------------------------------------------- the fit


@pytest.mark.parametrize("kind", ["rating", "step", "demonstration"])
def test_a_fit_learns_a_planted_linear_reward(kind: str) -> None:
    correlations = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        ensemble, optimizer = make(LEARNING)
        info = fit(
            ensemble,
            optimizer,
            no_pairs(),
            LEARNING,
            rng,
            evaluations=answer(kind, 20 if kind == "demonstration" else 200, rng),
        )
        assert info[f"{kind}_accuracy"] == info["accuracy"]
        fresh = make_steps(200, rng).reshape(-1, 6)
        correlations.append(np.corrcoef(ensemble.predict(fresh[:, :4], fresh[:, 4:]), fresh @ WEIGHTS)[0, 1])
    assert min(correlations) > 0.8, correlations


def no_pairs() -> LabelledPairs:
    none = np.zeros(0, np.int64)
    return LabelledPairs(np.empty((0, 0)), np.empty((0, 0)), none, none, np.zeros(0, np.float32))


def make_pairs(num_pairs: int, rng: np.random.Generator) -> LabelledPairs:
    steps = make_steps(2 * num_pairs, rng)
    left, right = np.arange(num_pairs), np.arange(num_pairs, 2 * num_pairs)
    returns = (steps @ WEIGHTS).sum(axis=1)
    labels = (returns[left] > returns[right]).astype(np.float32)
    return LabelledPairs(steps[..., :4], steps[..., 4:], left, right, labels)


def mixed(rng: np.random.Generator) -> EvaluatedSegments:
    steps, values = make_steps(12, rng, 5), rng.integers(-1, 2, (5, 5)).astype(np.int8)
    values[:, 0] = 1
    return EvaluatedSegments(
        steps[..., :4],
        steps[..., 4:],
        rated=np.array([0, 1, 2]),
        levels=np.array([0, 1, 1]),
        num_levels=3,
        judged=np.array([2, 3, 4, 5, 6]),
        step_values=values,
        shown=np.array([7, 8]),
        own=np.array([9, 10, 11]),
    )


def test_gradients_are_those_of_the_weighted_sum_of_mean_losses() -> None:
    data = mixed(np.random.default_rng(0))
    config = SMALL.model_copy(update={"rating_weight": 2.0, "step_weight": 0.5, "demonstration_weight": 3.0})
    gradients = []
    for micro_size in (1, 100):
        ensemble, _ = make(config)
        losses = EvaluationLosses(ensemble, data, config, micro_size)
        losses.start_pass(1, np.random.default_rng(1))
        losses.backward(0)
        gradients.append([parameter.grad.numpy().copy() for parameter in ensemble.parameters()])

    plain, _ = make(config)
    pairs = losses._demonstrations._pairs
    total = torch.tensor(0.0)
    for member in range(3):
        rewards = plain(data.observations.reshape(-1, 4), data.actions.reshape(-1, 2))[member].reshape(12, 5)
        returns = rewards.sum(dim=1)
        # One rating of level 0, two above, none of level 2: the upper cut point is infinite and its loss 0.
        low, high = -50.0, 50.0
        for _ in range(60):
            middle = (low + high) / 2
            is_low = sum(sigmoid(float(returns[i].detach()) - middle) for i in range(3)) > 2
            low, high = (middle, high) if is_low else (low, middle)
        ratings = [-torch.log(torch.sigmoid(sign * (returns[i] - low))) / 2 for i, sign in enumerate((-1, 1, 1))]
        steps = [
            -torch.log(torch.sigmoid(STEP_STEEPNESS * int(value) * rewards[row, step]))
            for row, values in zip(data.judged, data.step_values, strict=True)
            for step, value in enumerate(values)
            if value
        ]
        shown = [-torch.log(torch.sigmoid(returns[a] - returns[b])) for a, b in pairs[member]]
        total = total + 2.0 * sum(ratings) / 3 + 0.5 * sum(steps) / len(steps) + 3.0 * sum(shown) / 3
    total.backward()
    for whole, split, parameter in zip(gradients[1], gradients[0], plain.parameters(), strict=True):
        np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(whole, parameter.grad, rtol=1e-4, atol=1e-6)


def test_demonstrations_are_paired_anew_in_every_pass() -> None:
    data = mixed(np.random.default_rng(0))
    losses = EvaluationLosses(make(SMALL)[0], data, SMALL, 10)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(10):
        losses.start_pass(1, rng)
        pairs = losses._demonstrations._pairs
        seen.add(pairs.tobytes())
        for member in range(3):
            assert sorted(pairs[member, :, 1]) == [9, 10, 11]
            assert set(pairs[member, :, 0]) == {7, 8}
    assert len(seen) == 10


def test_preferences_and_evaluations_are_fitted_together() -> None:
    rng = np.random.default_rng(0)
    pairs, data = make_pairs(20, rng), mixed(rng)
    info = fit(*make(SMALL), pairs, SMALL, np.random.default_rng(1), evaluations=data)
    parts = [info[f"{kind}_loss"] for kind in ("rating", "step", "demonstration")]
    only_pairs = fit(*make(SMALL.model_copy(update={"learning_rate": 1e-9})), pairs, SMALL, np.random.default_rng(1))
    assert info["loss"] == pytest.approx(sum(parts) + only_pairs["loss"], abs=0.2)
    assert info["accuracy"] <= min(info[f"{kind}_accuracy"] for kind in ("rating", "step", "demonstration"))
    assert info["num_epochs"] == 2


def test_more_evaluations_than_pairs_make_the_pass_longer_and_all_pairs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pairs, data = make_pairs(5, rng), answer("rating", 20, rng)
    steps: list[int] = []
    backward = EvaluationLosses.backward
    monkeypatch.setattr(EvaluationLosses, "backward", lambda self, step: (steps.append(step), backward(self, step)))
    fit(*make(SMALL), pairs, SMALL, rng, evaluations=data)
    assert steps == [0, 1, 2] * 2


def test_a_kind_of_weight_zero_changes_nothing() -> None:
    pairs = make_pairs(10, np.random.default_rng(0))
    config = SMALL.model_copy(update={"rating_weight": 0.0, "step_weight": 0.0, "demonstration_weight": 0.0})
    first, optimizer = make(config)
    second, other_optimizer = make(config)
    fit(first, optimizer, pairs, config, np.random.default_rng(1))
    info = fit(
        second, other_optimizer, pairs, config, np.random.default_rng(1), evaluations=mixed(np.random.default_rng(2))
    )
    assert "rating_loss" not in info
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_ratings_of_a_single_level_teach_nothing() -> None:
    pairs, data = make_pairs(10, np.random.default_rng(0)), answer("rating", 20, np.random.default_rng(1))
    data = replace(data, levels=np.full(20, 3))
    assert not teaches_anything(data, SMALL)
    assert fit(*make(SMALL), no_pairs(), SMALL, np.random.default_rng(2), evaluations=data)["num_epochs"] == 0
    (first, optimizer), (second, other_optimizer) = make(SMALL), make(SMALL)
    expected = fit(first, optimizer, pairs, SMALL, np.random.default_rng(2))
    assert fit(second, other_optimizer, pairs, SMALL, np.random.default_rng(2), evaluations=data) == expected
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_predictions_are_normalised_on_evaluated_segments() -> None:
    config = SMALL.model_copy(update={"normalize_predictions": True})
    data = mixed(np.random.default_rng(0))
    ensemble, optimizer = make(config)
    fit(ensemble, optimizer, no_pairs(), config, np.random.default_rng(1), evaluations=data)
    rewards = ensemble.predict(data.observations.reshape(-1, 4), data.actions.reshape(-1, 2))
    assert rewards.mean() == pytest.approx(0, abs=1e-4)
    assert rewards.std() == pytest.approx(1, abs=1e-3)
