import asyncio
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch
from gymnasium.spaces import Box
from ray.exceptions import ActorUnavailableError, RayActorError

from themis_ray.data import LabelledPairs
from themis_ray.reward import (
    RewardConfig,
    RewardEnsemble,
    UnlabelledPairs,
    ensemble_state,
    fit,
    load_ensemble_state,
    make_optimizer,
)
from themis_ray.reward_actor import RewardModel, RewardModelActor, RewardModelSpec, prepare_process
from themis_ray.reward_actor.client import PREDICT_CHUNK_ROWS, RESTART_TIMEOUT_S, _is_too_late

pytestmark = pytest.mark.ray

STATE = Box(-np.inf, np.inf, (6,), np.float32)
TORQUE = Box(-1.0, 1.0, (2,), np.float32)
# target_accuracy=1 is never exceeded, so a fit makes all its passes and its time is known.
CONFIG = RewardConfig(hidden_sizes=(64, 64), num_epochs=150, target_accuracy=1.0)
SPEC = RewardModelSpec(STATE, TORQUE, "vector", CONFIG, seed=3)
LENGTH = 20


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """What the model said about restarts."""
    return []


@pytest.fixture(scope="module")
def model(ray_cluster: None, messages: list[str]) -> Iterator[RewardModel]:
    """One actor for all tests, as its process takes seconds to start; tests run in file order."""
    model = RewardModel(SPEC, f"test-{uuid.uuid4().hex[:8]}", num_cpus=0.5, on_restart=messages.append)
    yield model
    if model.name in ray.util.list_named_actors():
        model.stop()


def restarts(messages: list[str]) -> list[str]:
    """On a busy machine a restart takes so long that the model says first that it waits."""
    return [message for message in messages if "waiting up to" not in message]


@pytest.fixture(autouse=True)
def _compute_as_the_actor_does() -> None:
    prepare_process()


def steps(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_rows, 6)).astype(np.float32), rng.uniform(-1, 1, (num_rows, 2)).astype(np.float32)


def make_pairs(num_pairs: int = 100, seed: int = 0) -> LabelledPairs:
    observations, actions = steps(2 * num_pairs * LENGTH, seed)
    observations = observations.reshape(2 * num_pairs, LENGTH, 6)
    returns = observations[..., 0].sum(-1)
    left, right = np.arange(num_pairs), np.arange(num_pairs, 2 * num_pairs)
    labels = (returns[left] > returns[right]).astype(np.float32)
    return LabelledPairs(observations, actions.reshape(2 * num_pairs, LENGTH, 2), left, right, labels)


def local_ensemble() -> tuple[RewardEnsemble, Any]:
    ensemble = RewardEnsemble(STATE, TORQUE, "vector", CONFIG, SPEC.seed)
    return ensemble, make_optimizer(ensemble, CONFIG)


def assert_same_tree(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_tree(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_tree(a, b)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_rows", [1, 300, 5000])
def test_predict_equals_the_local_ensemble_bit_for_bit(model: RewardModel, num_rows: int) -> None:
    # Version 0: this runs before any fit of this module's model.
    assert model.version == 0
    observations, actions = steps(num_rows)
    predicted = model.predict(observations, actions)
    assert predicted.dtype == np.float32
    np.testing.assert_array_equal(predicted, local_ensemble()[0].predict(observations, actions))


def test_predict_of_no_steps_is_empty(model: RewardModel) -> None:
    assert model.predict(*steps(0)).shape == (0,)


def test_predict_in_chunks_loses_no_row(model: RewardModel) -> None:
    observations, actions = steps(PREDICT_CHUNK_ROWS + 10)
    predicted = model.predict(observations, actions)
    assert predicted.shape == (PREDICT_CHUNK_ROWS + 10,)
    tail = local_ensemble()[0].predict(observations[-10:], actions[-10:])
    np.testing.assert_allclose(predicted[-10:], tail, rtol=1e-5, atol=1e-6)


def test_segment_returns_equal_the_local_ensemble(model: RewardModel) -> None:
    pairs = make_pairs(5)
    expected = local_ensemble()[0].segment_returns(pairs.observations, pairs.actions)
    np.testing.assert_array_equal(model.segment_returns(pairs.observations, pairs.actions), expected)


def test_concurrent_callers_share_forward_passes_and_get_their_own_rows(model: RewardModel) -> None:
    ensemble = local_ensemble()[0]
    before = model.status()["num_forwards"]
    model.predict_later(*steps(PREDICT_CHUNK_ROWS))  # keeps the actor busy while the others queue up
    calls = [steps(3 + i % 5, seed=i) for i in range(40)]
    pending = [model.predict_later(*call) for call in calls]
    for call, one in zip(calls, pending, strict=True):
        np.testing.assert_allclose(model.collect(one), ensemble.predict(*call), rtol=1e-4, atol=1e-6)
    num_forwards = model.status()["num_forwards"] - before
    assert num_forwards < 41, num_forwards


def test_a_bad_call_fails_alone_and_the_actor_lives_on(model: RewardModel) -> None:
    observations, actions = steps(4)
    with pytest.raises(Exception, match=r"shape|size|dimension"):
        model.predict(observations[:, :3], actions)
    assert model.predict(observations, actions).shape == (4,)
    assert model.num_restarts == 0


def test_predict_answers_while_a_fit_runs_and_the_fit_is_that_of_the_local_ensemble(model: RewardModel) -> None:
    pairs, (observations, actions) = make_pairs(), steps(32)
    old = model.predict(observations, actions)
    result: dict[str, Any] = {}

    def run_fit() -> None:
        started = time.perf_counter()
        result["info"] = model.fit(pairs, seed=11)
        result["wall_s"] = time.perf_counter() - started

    thread = threading.Thread(target=run_fit)
    thread.start()
    latencies, answers = [], []
    while thread.is_alive():
        started = time.perf_counter()
        answers.append(model.predict(observations, actions))
        latencies.append(time.perf_counter() - started)
        time.sleep(0.005)
    thread.join()
    assert np.median(latencies) < result["wall_s"] / 10, (np.median(latencies), result["wall_s"])
    assert len(latencies) > 10
    # While it fits the old weights answer, never half-fitted ones.
    new = model.predict(observations, actions)
    assert not np.array_equal(old, new)
    for answer in answers:
        assert np.array_equal(answer, old) or np.array_equal(answer, new)
    np.testing.assert_array_equal(answers[1], old)

    ensemble, optimizer = local_ensemble()
    info = fit(ensemble, optimizer, pairs, CONFIG, np.random.default_rng(11))
    assert result["info"] == info
    assert model.version == model.status()["version"] == 1
    assert_same_tree(model.state, {"ensemble": ensemble_state(ensemble, optimizer), "version": 1})


def test_a_fit_takes_unlabelled_pairs_and_sets_the_bonus() -> None:
    config = RewardConfig(hidden_sizes=(16,), num_epochs=10, pseudo_label_threshold=0.6, normalize_predictions=True)
    pairs, others, probe = make_pairs(40), make_pairs(60, seed=1), steps(30)
    unlabelled = UnlabelledPairs(others.observations, others.actions, others.left, others.right)
    # The actor without Ray: what it computes is the same.
    actor = RewardModelActor(RewardModelSpec(STATE, TORQUE, "vector", config, seed=3).pack())

    async def run() -> tuple[dict[str, float], dict[str, Any], np.ndarray]:
        await actor.start()
        info, state = await actor.fit(pairs, 11, bonus=0.3, unlabelled=unlabelled)
        return info, state, await actor.predict(*probe)

    info, state, predicted = asyncio.run(run())
    ensemble = RewardEnsemble(STATE, TORQUE, "vector", config, 3)
    optimizer = make_optimizer(ensemble, config)
    rng = np.random.default_rng(11)
    assert info == fit(ensemble, optimizer, pairs, config, rng, unlabelled=unlabelled)
    assert info["num_pseudo_labels"] > 0
    plain = ensemble.predict(*probe)
    ensemble.bonus = 0.3
    np.testing.assert_array_equal(predicted, ensemble.predict(*probe))
    assert not np.array_equal(predicted, plain)
    assert_same_tree(state["ensemble"], ensemble_state(ensemble, optimizer))


def test_from_scratch_every_fit_starts_from_weights_of_its_own() -> None:
    config = RewardConfig(hidden_sizes=(16,), num_epochs=5, from_scratch=True)
    first, second = make_pairs(40), make_pairs(40, seed=1)
    actor = RewardModelActor(RewardModelSpec(STATE, TORQUE, "vector", config, seed=3).pack())

    async def run() -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
        await actor.start()
        await actor.fit(first, 11)
        info, state = await actor.fit(second, 12, bonus=0.3)
        return info, state, await actor.state()

    info, state, kept = asyncio.run(run())
    # As if there had been no fit before: what the first answers said is gone where it is not said again.
    ensemble = RewardEnsemble(STATE, TORQUE, "vector", config, 12)
    optimizer = make_optimizer(ensemble, config)
    assert info == fit(ensemble, optimizer, second, config, np.random.default_rng(12))
    ensemble.bonus = 0.3
    assert_same_tree(state, {"ensemble": ensemble_state(ensemble, optimizer), "version": 2})
    assert_same_tree(kept, state)


def test_load_puts_weights_optimiser_and_version_back(model: RewardModel) -> None:
    state, probe = model.state, steps(20)
    predicted = model.predict(*probe)
    model.fit(make_pairs(10), seed=0)
    assert model.version == state["version"] + 1
    assert not np.array_equal(model.predict(*probe), predicted)
    model.load(state)
    assert model.version == model.status()["version"] == state["version"]
    np.testing.assert_array_equal(model.predict(*probe), predicted)


def test_a_killed_actor_comes_back_with_the_same_weights(model: RewardModel, messages: list[str]) -> None:
    assert model.num_restarts == len(messages) == 0
    probe = steps(50)
    before, state, version, pid = model.predict(*probe), model.state, model.version, model.status()["pid"]
    assert version > 0
    os.kill(pid, signal.SIGKILL)
    # Two predictions are under way when the actor dies; both are made again, and it is brought back once.
    pending = [model.predict_later(*probe) for _ in range(2)]
    for one in pending:
        np.testing.assert_array_equal(model.collect(one), before)
    np.testing.assert_array_equal(model.predict(*probe), before)
    assert model.num_restarts == len(restarts(messages)) == 1
    assert f"version {version}" in restarts(messages)[0]
    assert not any("\n" in message for message in messages)
    assert model.status()["pid"] != pid
    assert model.version == model.status()["version"] == version
    assert model.state is state


def test_a_fit_that_is_killed_half_way_ends_like_one_that_is_not(model: RewardModel, messages: list[str]) -> None:
    pairs, state, num_before = make_pairs(), model.state, model.num_restarts
    result: dict[str, Any] = {}
    pid = model.status()["pid"]
    thread = threading.Thread(target=lambda: result.update(info=model.fit(pairs, seed=5)))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive(), "the fit was over before it could be killed"
    os.kill(pid, signal.SIGKILL)
    thread.join(120)
    ensemble, optimizer = local_ensemble()
    load_ensemble_state(ensemble, optimizer, state["ensemble"])
    assert result["info"] == fit(ensemble, optimizer, pairs, CONFIG, np.random.default_rng(5))
    version = state["version"] + 1
    assert_same_tree(model.state, {"ensemble": ensemble_state(ensemble, optimizer), "version": version})
    assert model.num_restarts == len(restarts(messages)) == num_before + 1
    assert model.status()["version"] == version


def test_the_actor_is_named_and_gone_after_stop(model: RewardModel) -> None:
    assert ray.get_actor(model.name) is not None
    model.stop()
    with pytest.raises(ValueError, match=model.name):
        ray.get_actor(model.name)


def test_room_is_waited_for_longer_than_an_actor_that_does_not_come_back() -> None:
    """A cluster that starts a machine first takes some ten minutes."""
    began = time.monotonic() - RESTART_TIMEOUT_S - 1
    assert _is_too_late(began, RayActorError())
    assert not _is_too_late(began, ActorUnavailableError("restarting", None))
    assert _is_too_late(began - 1800, ActorUnavailableError("restarting", None))


def test_a_gpu_that_was_not_reserved_is_left_to_others(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert RewardModelActor(SPEC.pack())._device.type == "cpu"
