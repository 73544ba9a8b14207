"""Every option of a fit does what it says, and those that are off change nothing."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from themis_ray.data import LabelledPairs
from themis_ray.reward import (
    RewardConfig,
    RewardEnsemble,
    UnlabelledPairs,
    ensemble_state,
    fit,
    left_probabilities,
    load_ensemble_state,
    make_optimizer,
    selection,
    training,
)

torch.set_num_threads(1)

STATE = Box(-np.inf, np.inf, (4,), np.float32)
TORQUE = Box(-1.0, 1.0, (2,), np.float32)
WEIGHTS = np.array([1.0, -0.5, 0.25, 0.0, 0.5, -1.0], np.float32)
SMALL = RewardConfig(hidden_sizes=(16, 16), num_epochs=3, target_accuracy=1.0, batch_size=8)


def make_pairs(num_pairs: int, rng: np.random.Generator, length: int = 10) -> LabelledPairs:
    """Pairs answered by an oracle whose reward is linear; the steps of a segment resemble each other, as in an env."""
    centres, noise = rng.uniform(-1, 1, (2 * num_pairs, 1, 6)), rng.standard_normal((2 * num_pairs, length, 6))
    steps = (centres + 0.2 * noise).astype(np.float32)
    observations, actions = steps[..., :4], steps[..., 4:].clip(-1, 1)
    returns = (np.concatenate([observations, actions], axis=-1) @ WEIGHTS).sum(axis=1)
    left, right = np.arange(num_pairs), np.arange(num_pairs, 2 * num_pairs)
    return LabelledPairs(observations, actions, left, right, (returns[left] > returns[right]).astype(np.float32))


def take(pairs: LabelledPairs, chosen: Any) -> LabelledPairs:
    return LabelledPairs(
        pairs.observations,
        pairs.actions,
        pairs.left[chosen],
        pairs.right[chosen],
        pairs.labels[chosen],
        pairs.weights[chosen],
    )


def make(config: RewardConfig = SMALL) -> tuple[RewardEnsemble, torch.optim.Optimizer]:
    ensemble = RewardEnsemble(STATE, TORQUE, "vector", config, 0)
    return ensemble, make_optimizer(ensemble, config)


def fitted(
    pairs: LabelledPairs, config: RewardConfig = SMALL, unlabelled: UnlabelledPairs | None = None
) -> tuple[RewardEnsemble, dict[str, float]]:
    ensemble, optimizer = make(config)
    return ensemble, fit(ensemble, optimizer, pairs, config, np.random.default_rng(1), unlabelled=unlabelled)


def parameters(ensemble: RewardEnsemble) -> np.ndarray:
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in ensemble.parameters()])


def probabilities(ensemble: RewardEnsemble, pairs: LabelledPairs) -> np.ndarray:
    returns = ensemble.segment_returns(pairs.observations, pairs.actions)
    return left_probabilities(returns[:, pairs.left], returns[:, pairs.right]).mean(axis=0)


def true_accuracy(ensemble: RewardEnsemble, pairs: LabelledPairs) -> float:
    returns = ensemble.segment_returns(pairs.observations, pairs.actions).mean(axis=0)
    return float(((returns[pairs.left] > returns[pairs.right]) == (pairs.labels > 0.5)).mean())


def as_unlabelled(pairs: LabelledPairs) -> UnlabelledPairs:
    return UnlabelledPairs(pairs.observations, pairs.actions, pairs.left, pairs.right)


def test_options_that_are_off_run_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    for name in ("_margins", "trust_labels", "pseudo_labels"):
        monkeypatch.setattr(selection, name, fail)
    for name in ("random_windows", "heldout_metrics", "BestPass"):
        monkeypatch.setattr(training, name, fail)
    monkeypatch.setattr(RewardEnsemble, "normalize_on", fail)
    pairs = make_pairs(20, np.random.default_rng(0))
    ensemble, info = fitted(pairs, unlabelled=as_unlabelled(pairs))
    assert set(info) == {"loss", "accuracy", "num_epochs"}
    np.testing.assert_array_equal(parameters(ensemble), parameters(fitted(pairs)[0]))


# ---------------------------------------------------------------- soft labels and weights


@pytest.mark.parametrize("label", [0.0, 0.2, 0.5, 0.7, 1.0])
def test_any_probability_can_be_a_label_and_is_what_the_fit_goes_to(label: float) -> None:
    pair = take(make_pairs(1, np.random.default_rng(0)), [0])
    config = SMALL.model_copy(update={"num_epochs": 300, "learning_rate": 3e-3})
    ensemble, optimizer = make(config)
    fit(ensemble, optimizer, replace(pair, labels=np.array([label], np.float32)), config, np.random.default_rng(0))
    assert probabilities(ensemble, pair)[0] == pytest.approx(label, abs=0.02)


def test_weight_zero_equals_leaving_out() -> None:
    rng = np.random.default_rng(0)
    pairs = make_pairs(40, rng)
    counts = rng.random(40) < 0.6
    zero = replace(pairs, weights=counts.astype(np.float32))
    for options in ({}, {"filter_wrong_labels": True}, {"heldout_share": 0.2}, {"normalize_predictions": True}):
        config = SMALL.model_copy(update=options)
        ours, our_info = fitted(zero, config)
        theirs, their_info = fitted(take(pairs, counts), config)
        np.testing.assert_array_equal(parameters(ours), parameters(theirs))
        assert our_info == their_info
    ensemble, info = fitted(replace(pairs, weights=np.zeros(40, np.float32)))
    assert info["num_epochs"] == 0
    np.testing.assert_array_equal(parameters(ensemble), parameters(make()[0]))


def test_equal_weights_of_any_size_change_nothing() -> None:
    pairs = make_pairs(20, np.random.default_rng(0))
    heavy, info = fitted(replace(pairs, weights=np.full(20, 7, np.float32)))
    plain, plain_info = fitted(pairs)
    np.testing.assert_array_equal(parameters(heavy), parameters(plain))
    assert info == plain_info


def test_a_weighted_fit_equals_plain_torch_training_of_each_member() -> None:
    rng = np.random.default_rng(0)
    pairs = make_pairs(20, rng)
    pairs = replace(pairs, weights=rng.uniform(0.1, 3, 20).astype(np.float32))
    ensemble, optimizer = make()
    plain = copy.deepcopy(ensemble)
    info = fit(ensemble, optimizer, pairs, SMALL, np.random.default_rng(1))
    rng, losses = np.random.default_rng(1), []
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=SMALL.learning_rate)
    for _ in range(3):
        order = rng.permuted(np.tile(np.arange(20), (3, 1)), axis=1)
        losses = [[], [], []]
        for start in range(0, 20, 8):
            plain_optimizer.zero_grad()
            for member in range(3):
                rows = order[member, start : start + 8]
                left, right = (
                    plain(pairs.observations[side[rows]].reshape(-1, 4), pairs.actions[side[rows]].reshape(-1, 2))[
                        member
                    ]
                    .reshape(len(rows), -1)
                    .sum(dim=1)
                    for side in (pairs.left, pairs.right)
                )
                p, y = torch.sigmoid(left - right), torch.from_numpy(pairs.labels[rows])
                entropies = -(y * p.log() + (1 - y) * (1 - p).log())
                w = torch.from_numpy(pairs.weights[rows])
                ((w * entropies).sum() / w.sum()).backward()
                losses[member] += (w * entropies).tolist()
            plain_optimizer.step()
    np.testing.assert_allclose(parameters(ensemble), parameters(plain), rtol=1e-3, atol=1e-5)
    assert info["loss"] == pytest.approx(np.sum(losses) / (3 * pairs.weights.sum()), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"temporal_crop": 4}])
def test_micro_batches_give_the_weighted_gradients_of_the_whole_batch(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_MICRO_BATCH_ROWS_CPU", 10**9)
    rng = np.random.default_rng(0)
    pairs = replace(make_pairs(7, rng), weights=rng.uniform(0.1, 3, 7).astype(np.float32))
    gradients = []
    for max_batch_bytes in (2**30, 1):
        config = SMALL.model_copy(update={"num_epochs": 1, "max_batch_bytes": max_batch_bytes, **options})
        ensemble, _ = fitted(pairs, config)
        gradients.append(np.concatenate([p.grad.numpy().ravel() for p in ensemble.parameters()]))
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- SURF: crops and pseudo-labels


def test_a_crop_learns_the_planted_reward_from_windows() -> None:
    rng = np.random.default_rng(0)
    config = RewardConfig(hidden_sizes=(64, 64), learning_rate=1e-3, temporal_crop=5)
    pairs, test = make_pairs(200, rng), make_pairs(500, rng)
    ensemble, _ = fitted(pairs, config)
    assert true_accuracy(ensemble, test) > 0.9
    assert not np.array_equal(
        parameters(ensemble), parameters(fitted(pairs, config.model_copy(update={"temporal_crop": 0}))[0])
    )


def test_only_pairs_that_the_ensemble_is_sure_about_join_a_pass() -> None:
    rng = np.random.default_rng(0)
    config = RewardConfig(
        hidden_sizes=(32, 32), learning_rate=1e-3, pseudo_label_threshold=0.9, pseudo_label_weight=0.5
    )
    pairs, others = make_pairs(50, rng), make_pairs(80, rng)
    ensemble, info = fitted(pairs, config, as_unlabelled(others))
    data = selection.training_data(ensemble, pairs, config, as_unlabelled(others), 4)
    examples, num_labelled, info = selection.choose_examples(ensemble, data, config)
    expected = probabilities(ensemble, others)
    is_sure = (expected > 0.9) | (expected < 0.1)
    assert 0 < is_sure.sum() < 80
    assert num_labelled == 50
    assert info["num_pseudo_labels"] == is_sure.sum() == len(examples) - 50
    np.testing.assert_array_equal(examples.labels[50:], expected[is_sure] > 0.5)
    np.testing.assert_array_equal(examples.weights, [1.0] * 50 + [0.5] * is_sure.sum())
    np.testing.assert_array_equal(examples.sides[:, 50:] - 100, np.stack([others.left, others.right])[:, is_sure])


def test_a_fresh_ensemble_gives_no_pseudo_labels_and_metrics_are_about_answers() -> None:
    rng = np.random.default_rng(0)
    pairs, others = make_pairs(20, rng), as_unlabelled(make_pairs(40, rng))
    config = SMALL.model_copy(update={"num_epochs": 1, "pseudo_label_threshold": 0.99})
    ensemble, info = fitted(pairs, config, others)
    plain, plain_info = fitted(pairs, config.model_copy(update={"pseudo_label_threshold": None}))
    assert info == {**plain_info, "num_pseudo_labels": 0}
    np.testing.assert_array_equal(parameters(ensemble), parameters(plain))
    assert fitted(pairs, config)[1] == info  # without unlabelled pairs
    sure = RewardConfig(hidden_sizes=(32, 32), learning_rate=3e-3, num_epochs=30, pseudo_label_threshold=0.6)
    _, info = fitted(pairs, sure, others)
    assert info["num_pseudo_labels"] > 0
    assert info["accuracy"] * 60 == pytest.approx(round(info["accuracy"] * 60))  # 3 members, 20 answers


# ---------------------------------------------------------------- RIME


def accuracy_under_noise(seed: int, **options: Any) -> tuple[float, dict[str, float]]:
    """Two sessions, three answers in ten wrong, a fit to all answers after each."""
    rng = np.random.default_rng(seed)
    pairs, test = make_pairs(200, rng), make_pairs(500, rng)
    labels = np.where(rng.random(200) < 0.3, 1 - pairs.labels, pairs.labels)
    margin = options.get("label_margin", 0.0)
    noisy = replace(pairs, labels=np.where(labels > 0.5, 1 - margin, margin).astype(np.float32))
    config = RewardConfig(hidden_sizes=(32, 32), learning_rate=3e-3, num_epochs=60, **options)
    ensemble, optimizer = make(config)
    info: dict[str, float] = {}
    for num_pairs in (100, 200):
        info = fit(ensemble, optimizer, take(noisy, slice(num_pairs)), config, rng)
    return true_accuracy(ensemble, test), info


def test_a_known_mistake_rate_learns_more_from_wrong_answers() -> None:
    # 0.66 without, 0.74 with it.
    plain = np.mean([accuracy_under_noise(seed)[0] for seed in range(5)])
    informed = np.mean([accuracy_under_noise(seed, mistake_rate=0.3)[0] for seed in range(5)])
    assert informed > plain + 0.03


def test_filter_and_margin_learn_more_from_wrong_answers() -> None:
    # Over ten seeds: 0.65 without, 0.73 with filter and margin, 0.79 with the filter alone.
    plain = np.mean([accuracy_under_noise(seed)[0] for seed in range(5)])
    filtered = [accuracy_under_noise(seed, filter_wrong_labels=True) for seed in range(5)]
    robust = np.mean([accuracy_under_noise(seed, filter_wrong_labels=True, label_margin=0.1)[0] for seed in range(5)])
    assert np.mean([accuracy for accuracy, _ in filtered]) > plain + 0.06
    assert robust > plain + 0.03
    for _, info in filtered:
        assert 0.4 < info["trusted_share"] < 0.95
        assert info["trusted_share"] + info["flipped_share"] <= 1


def test_very_wrong_answers_are_turned_round_and_the_answers_stay_as_they_were() -> None:
    rng = np.random.default_rng(0)
    config = RewardConfig(hidden_sizes=(64, 64), learning_rate=3e-3, num_epochs=30, filter_wrong_labels=True)
    pairs = make_pairs(100, rng)
    ensemble, optimizer = make(config)
    for _ in range(4):
        fit(ensemble, optimizer, pairs, config.model_copy(update={"target_accuracy": 1.0}), rng)
    wrong = replace(pairs, labels=1 - pairs.labels)
    labels = wrong.labels.copy()
    data = selection.training_data(ensemble, wrong, config, None, 8)
    examples, _, info = selection.choose_examples(ensemble, data, config)
    expected = probabilities(ensemble, wrong)
    is_flipped = np.minimum(expected, 1 - expected) < 1e-3
    assert is_flipped.sum() > 5
    assert info["flipped_share"] == is_flipped.mean()
    np.testing.assert_array_equal(wrong.labels, labels)
    row = {int(left): label for left, label in zip(examples.sides[0], examples.labels, strict=True)}
    for number in np.flatnonzero(is_flipped):
        assert row[number] == pairs.labels[number]


def test_the_filter_remembers_from_fit_to_fit_through_a_saved_state() -> None:
    pairs = make_pairs(30, np.random.default_rng(0))
    config = SMALL.model_copy(update={"filter_wrong_labels": True})
    through, optimizer = make(config)
    rng = np.random.default_rng(1)
    fit(through, optimizer, pairs, config, rng)
    assert float(through.filter_statistics[2]) == 3
    stored, stored_rng = pickle.dumps(ensemble_state(through, optimizer)), copy.deepcopy(rng)
    fit(through, optimizer, pairs, config, rng)
    resumed, resumed_optimizer = make(config)
    load_ensemble_state(resumed, resumed_optimizer, pickle.loads(stored))
    fit(resumed, resumed_optimizer, pairs, config, stored_rng)
    np.testing.assert_array_equal(parameters(resumed), parameters(through))
    assert resumed.filter_statistics.tolist() == through.filter_statistics.tolist()
    assert float(through.filter_statistics[2]) == 6


# ---------------------------------------------------------------- held-out preferences


def test_held_out_preferences_are_not_learnt_and_measure_the_fit() -> None:
    pairs = make_pairs(60, np.random.default_rng(0))
    config = SMALL.model_copy(update={"heldout_share": 0.25})
    ensemble, info = fitted(pairs, config)
    is_held_out = selection.held_out(pairs, 0.25)
    assert 1 <= is_held_out.sum() <= 30
    theirs, _ = fitted(take(pairs, ~is_held_out))
    np.testing.assert_array_equal(parameters(ensemble), parameters(theirs))
    kept_out = take(pairs, is_held_out)
    returns = ensemble.segment_returns(pairs.observations, pairs.actions)
    members = left_probabilities(returns[:, kept_out.left], returns[:, kept_out.right])
    y = kept_out.labels
    assert info["heldout_loss"] == pytest.approx(
        -(y * np.log(members) + (1 - y) * np.log(1 - members)).mean(), rel=1e-4
    )
    assert info["heldout_pair_accuracy"] == pytest.approx(((members > 0.5) == (y > 0.5)).mean())


def test_a_fit_stops_after_its_patience_and_goes_back_to_the_best_pass() -> None:
    rng = np.random.default_rng(0)
    pairs = make_pairs(60, rng)
    labels = np.where(rng.random(60) < 0.35, 1 - pairs.labels, pairs.labels).astype(np.float32)
    config = RewardConfig(
        hidden_sizes=(64, 64), learning_rate=3e-3, num_epochs=100, heldout_share=0.3, early_stop_patience=4
    )
    ensemble, optimizer = make(config)
    heard: list[dict[str, float]] = []
    states: list[bytes] = []

    def listen(metrics: dict[str, float]) -> None:
        heard.append(dict(metrics))
        states.append(pickle.dumps(ensemble_state(ensemble, optimizer)))

    info = fit(ensemble, optimizer, replace(pairs, labels=labels), config, rng, listen)
    losses = [metrics["heldout_loss"] for metrics in heard]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 4 < 100
    assert info["heldout_loss"] == losses[best]
    assert info["num_epochs"] == len(losses)
    assert pickle.dumps(ensemble_state(ensemble, optimizer)) == states[best]


def test_one_preference_is_fitted_even_if_some_are_to_be_held_out() -> None:
    pair = make_pairs(1, np.random.default_rng(0))
    config = SMALL.model_copy(update={"heldout_share": 0.5, "early_stop_patience": 1})
    ensemble, info = fitted(pair, config)
    assert info["num_epochs"] == 3
    assert np.isnan(info["heldout_loss"])
    np.testing.assert_array_equal(parameters(ensemble), parameters(fitted(pair)[0]))


# ---------------------------------------------------------------- what predict returns


def test_normalized_predictions_have_mean_0_and_std_1_and_survive_saving() -> None:
    rng = np.random.default_rng(0)
    pairs, probe = make_pairs(40, rng), rng.uniform(-1, 1, (30, 6)).astype(np.float32)
    config = SMALL.model_copy(update={"normalize_predictions": True})
    ensemble, optimizer = make(config)
    fit(ensemble, optimizer, pairs, config, np.random.default_rng(1))
    steps = pairs.observations.reshape(-1, 4), pairs.actions.reshape(-1, 2)
    rewards = ensemble.predict(*steps)
    assert rewards.dtype == np.float32
    assert rewards.mean() == pytest.approx(0, abs=1e-4)
    assert rewards.std() == pytest.approx(1, abs=1e-4)
    plain, _ = fitted(pairs)
    np.testing.assert_array_equal(parameters(ensemble), parameters(plain))
    np.testing.assert_array_equal(
        ensemble.segment_returns(pairs.observations, pairs.actions),
        plain.segment_returns(pairs.observations, pairs.actions),
    )
    loaded, loaded_optimizer = make(config)
    load_ensemble_state(loaded, loaded_optimizer, pickle.loads(pickle.dumps(ensemble_state(ensemble, optimizer))))
    arguments = probe[:, :4], probe[:, 4:]
    np.testing.assert_array_equal(loaded.predict(*arguments), ensemble.predict(*arguments))
    # A second fit normalises anew, from the members themselves and not from what was normalised before.
    fit(ensemble, optimizer, make_pairs(40, rng), config, rng)
    assert abs(ensemble.predict(*steps).mean()) > 1e-4


def test_predictions_that_do_not_differ_are_shifted_only() -> None:
    ensemble, _ = make()
    observations, actions = np.ones((2, 3, 4), np.float32), np.ones((2, 3, 2), np.float32)
    ensemble.normalize_on(observations, actions)
    np.testing.assert_allclose(ensemble.predict(observations[0], actions[0]), 0, atol=1e-6)


def test_the_bonus_pays_for_disagreement_and_is_part_of_the_state() -> None:
    ensemble, optimizer = make()
    probe = np.random.default_rng(0).uniform(-1, 1, (50, 6)).astype(np.float32)
    arguments = probe[:, :4], probe[:, 4:]
    members = ensemble.predict_members(*arguments)
    np.testing.assert_array_equal(ensemble.predict(*arguments), members.mean(axis=0))
    ensemble.bonus = 0.25
    assert ensemble.bonus == 0.25
    np.testing.assert_allclose(
        ensemble.predict(*arguments), members.mean(axis=0) + 0.25 * members.std(axis=0), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(ensemble.predict_members(*arguments), members)
    loaded, loaded_optimizer = make()
    load_ensemble_state(loaded, loaded_optimizer, ensemble_state(ensemble, optimizer))
    assert loaded.bonus == 0.25


def test_a_state_from_before_these_options_can_be_loaded() -> None:
    ensemble, optimizer = make()
    state = ensemble_state(ensemble, optimizer)
    for name in ("prediction_terms", "filter_statistics"):
        del state["weights"][name]
    loaded, loaded_optimizer = make()
    load_ensemble_state(loaded, loaded_optimizer, state)
    assert loaded.prediction_terms.tolist() == [0, 0, 1]
    assert loaded.filter_statistics.tolist() == [0, 1, 0]


def test_all_options_go_together() -> None:
    rng = np.random.default_rng(0)
    config = RewardConfig(
        filter_wrong_labels=True,
        label_margin=0.1,
        hidden_sizes=(16, 16),
        num_epochs=4,
        temporal_crop=3,
        pseudo_label_threshold=0.6,
        heldout_share=0.2,
        early_stop_patience=2,
        normalize_predictions=True,
    )
    pairs = replace(make_pairs(40, rng), weights=rng.uniform(0, 2, 40).astype(np.float32))
    _, info = fitted(pairs, config, as_unlabelled(make_pairs(60, rng)))
    assert set(info) == {
        *("loss", "accuracy", "num_epochs", "heldout_loss", "heldout_pair_accuracy"),
        *("trusted_share", "flipped_share", "num_pseudo_labels"),
    }
    assert all(np.isfinite(value) for value in info.values())
