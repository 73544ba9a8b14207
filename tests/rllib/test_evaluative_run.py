"""Runs that ask for ratings or good steps, or are shown demonstrations: from the question to the fit, and resumed."""

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from recording import record

from themis_ray.config import load_config, resolve
from themis_ray.data import Demonstration, Evaluation, PreferenceDataset, Rating, Segment, StepFeedback
from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError, DataError
from themis_ray.experiment import _metrics
from themis_ray.randomness import seed_python
from themis_ray.rllib import PreferenceLoop, build_algorithm_config

SMALL = [
    "env.id=Pendulum-v1",
    "env.horizon=20",
    "num_env_steps=600",
    "algorithm.hidden_sizes=[8]",
    "algorithm.batch_size=8",
    "exploration.num_seed_steps=100",
    "exploration.num_env_steps=100",
    "feedback.budget=12",
    "feedback.session_size=4",
    "feedback.segment_length=10",
    "reward.hidden_sizes=[8]",
    "reward.num_epochs=4",
]


def build(folder: Path, *settings: str) -> Any:
    config, _ = resolve(load_config(None, [*SMALL, *settings]))
    seed_python(config.seed)
    return build_algorithm_config(config, folder).build_algo()


def train(algorithm: Any, until: int = 600) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while algorithm.env_steps < until:
        rows.append(_metrics(algorithm, algorithm.train()))
    return rows


def store_random_segments(folder: Path) -> list[Segment]:
    """Writes a dataset of ten rated segments of random actions."""
    env, rng, now = gym.make("Pendulum-v1"), np.random.default_rng(0), datetime.now(UTC)
    segments = []
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        steps = []
        for _ in range(10):
            action = rng.uniform(-1, 1, 1).astype(np.float32)
            following, reward, *_ = env.step(2 * action)
            steps.append((observation, action, reward))
            observation = following
        arrays = [np.array(column, np.float32) for column in zip(*steps, strict=True)]
        segments.append(Segment.create("Pendulum-v1", f"e{seed}", 0, *arrays))
    rows = [Rating(segment.id, 0, 2, "nobody", 0, 0, now, now) for segment in segments]
    PreferenceDataset(folder).append_evaluations(segments, rows)
    return segments


def loop_weights(algorithm: Any) -> dict[str, np.ndarray]:
    weights: dict[str, np.ndarray] = algorithm.loop.reward_model.state["ensemble"]["weights"]
    return weights


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["rating", "step"])
def test_a_run_asks_about_segments_and_fits_the_answers(kind: str, tmp_path: Path, ray_cluster: Any) -> None:
    algorithm = build(tmp_path, f"feedback.kind={kind}")
    try:
        rows = train(algorithm)
        dataset, loop = PreferenceDataset(tmp_path), algorithm.loop
        stored = dataset.ratings if kind == "rating" else dataset.step_feedback
        assert len(stored) == rows[-1]["queries_asked"] == 12, "the budget counts questions"
        assert rows[-1]["num_preferences"] == dataset.num_queries == 0
        assert dataset.evaluations == loop.dataset.evaluations
        assert {row.teacher for row in stored} == {"oracle"}
        assert sorted({row.feedback_session for row in stored}) == [0, 1, 2]
        assert rows[-1]["reward_version"] == 3
        assert np.isfinite(rows[-1]["fit_loss"])
        assert loop.info["fit_accuracy"] == loop.info[f"fit_{kind}_accuracy"]
        assert np.isfinite(rows[-1]["heldout_accuracy"])
    finally:
        algorithm.stop()


@pytest.mark.ray
def test_a_resumed_run_goes_on_like_one_that_never_stopped(tmp_path: Path, ray_cluster: Any) -> None:
    settings = ["feedback.kind=rating", "teacher.eps_mistake=0.2"]
    unstopped = build(tmp_path / "unstopped", *settings)
    train(unstopped, until=320)
    num_at_checkpoint = unstopped.loop.dataset.num_questions
    unstopped.save_to_path(str(tmp_path / "checkpoint"))
    unstopped.reset_environments()
    expected = train(unstopped)
    expected_rows = [(row.segment_id, row.level) for row in unstopped.loop.dataset.ratings]
    expected_weights = loop_weights(unstopped)
    unstopped.stop()
    assert 0 < num_at_checkpoint < 12

    resumed = build(tmp_path / "resumed", *settings)
    random.seed(99)
    torch.manual_seed(99)
    resumed.restore_from_path(str(tmp_path / "checkpoint"))
    assert len(PreferenceDataset(tmp_path / "resumed").ratings) == num_at_checkpoint
    resumed.reset_environments()
    rows = train(resumed)
    weights, levels = loop_weights(resumed), [(row.segment_id, row.level) for row in resumed.loop.dataset.ratings]
    resumed.stop()
    assert levels == expected_rows
    for name, values in expected_weights.items():
        np.testing.assert_array_equal(values, weights[name], name)
    for row, expected_row in zip(rows, expected, strict=True):
        np.testing.assert_equal(row, expected_row)

    # Answers that were stored after the checkpoint stay, and count against the budget.
    late = build(tmp_path / "unstopped", *settings)
    late.restore_from_path(str(tmp_path / "checkpoint"))
    version = late.loop.reward_model.version
    late.reset_environments()
    rows = train(late)
    kept = [(row.segment_id, row.level) for row in late.loop.dataset.ratings]
    late_version = late.loop.reward_model.version
    late.stop()
    assert kept == expected_rows
    assert rows[-1]["queries_asked"] == 12
    assert late_version > version, "answers given after the checkpoint were not fitted"


@pytest.mark.ray
def test_demonstrations_of_another_run_are_fitted_beside_preferences(tmp_path: Path, ray_cluster: Any) -> None:
    best = sorted(store_random_segments(tmp_path / "first"), key=lambda segment: -segment.true_return)[:3]
    settings = [f"feedback.demonstrations={tmp_path / 'first'}", "feedback.num_demonstrations=3", "seed=1"]
    algorithm = build(tmp_path / "second", *settings)
    rows = train(algorithm, until=400)
    algorithm.save_to_path(str(tmp_path / "checkpoint"))
    loop = algorithm.loop
    assert np.isfinite(loop.info["fit_demonstration_loss"])
    algorithm.stop()
    stored = PreferenceDataset(tmp_path / "second")
    assert [row.segment_id for row in stored.demonstrations] == [segment.id for segment in best]
    assert {row.teacher for row in stored.demonstrations} == {"first"}
    assert stored.num_queries == stored.num_questions == rows[-1]["queries_asked"] > 0
    restored = build(tmp_path / "third", *settings)
    restored.restore_from_path(str(tmp_path / "checkpoint"))
    assert restored.loop.dataset.evaluations == stored.evaluations
    restored.stop()


@pytest.mark.ray
def test_demonstrations_alone_are_fitted(tmp_path: Path, ray_cluster: Any) -> None:
    store_random_segments(tmp_path / "first")
    algorithm = build(tmp_path / "second", f"feedback.demonstrations={tmp_path / 'first'}", "feedback.budget=0")
    rows = train(algorithm, until=400)
    algorithm.stop()
    assert rows[-1]["queries_asked"] == 0
    assert rows[-1]["reward_version"] == 1


@pytest.mark.ray
@pytest.mark.parametrize("what", ["answers", "demonstrations"])
def test_what_was_stored_before_the_first_checkpoint_is_fitted_after_a_new_start(
    what: str, tmp_path: Path, ray_cluster: Any
) -> None:
    """The new start holds answers before it has stepped through two segments of its own."""
    settings = ["env.horizon=100", "feedback.segment_length=50", "exploration.num_seed_steps=0"]
    settings += ["exploration.num_env_steps=0", "reward.num_epochs=1"]
    if what == "demonstrations":
        first = build(tmp_path / "first", *settings)
        train(first, until=200)
        first.stop()
        settings += [f"feedback.demonstrations={tmp_path / 'first'}", "feedback.budget=0"]
    killed = build(tmp_path / "run", *settings)
    train(killed, until=100)
    killed.stop()
    num_stored = len(PreferenceDataset(tmp_path / "run").segments)
    assert num_stored > 0
    again = build(tmp_path / "run", *settings)
    rows = train(again)
    again.stop()
    assert rows[-1]["reward_version"] > 0
    assert rows[-1]["queries_asked"] == (0 if what == "demonstrations" else 12)


class Model:
    """A reward model that counts its fits."""

    def __init__(self) -> None:
        self.version = 0

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.version += 1
        return {}

    def predict(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.zeros(len(observations), np.float32)


def make_evaluations(kind: str, segments: list[Segment], values: list[int]) -> list[Evaluation]:
    """Returns ratings of these levels, segments whose steps are all of these values, or demonstrations."""
    about = "ann", 0, 0, datetime.now(UTC), datetime.now(UTC)
    pairs = zip(segments, values, strict=True)
    if kind == "rating":
        return [Rating(segment.id, level, 3, *about) for segment, level in pairs]
    if kind == "step":
        return [StepFeedback(segment.id, (value,) * len(segment), *about) for segment, value in pairs]
    return [Demonstration(segment.id, *about) for segment in segments]


@pytest.mark.parametrize(
    ("kind", "values", "weight", "is_fitted"),
    [
        ("rating", [0, 0, 0, 2], 1, True),
        ("rating", [0, 0, 0, 2], 0, False),
        ("rating", [2, 2, 2, 2], 1, False),
        ("step", [0, 0, 0, 1], 1, True),
        ("step", [0, 0, 0, 1], 0, False),
        ("step", [0, 0, 0, 0], 1, False),
        ("demonstration", [0] * 4, 1, True),
        ("demonstration", [0] * 4, 0, False),
    ],
)
def test_only_what_teaches_something_is_fitted(
    kind: str, values: list[int], weight: int, is_fitted: bool, tmp_path: Path
) -> None:
    settings = [*SMALL, "feedback.budget=0", f"reward.{kind}_weight={weight}"]
    config, spec = resolve(load_config(None, settings))
    loop = PreferenceLoop(config, spec, tmp_path, Model(), None)  # type: ignore[arg-type]
    loop.pool = record(EnvConfig(id="Pendulum-v1"), 300)[0]
    segments = loop.pool.sample_segments(4, 10, np.random.default_rng(0))
    loop.dataset.append_evaluations(segments, make_evaluations(kind, segments, values))
    assert loop.hold_session_if_due(200) == is_fitted
    assert loop.has_fitted_reward == is_fitted


def test_other_teachers_only_compare() -> None:
    settings = [
        *SMALL,
        "feedback.kind=rating",
        "teacher.kind=scripted",
        "teacher.function=examples.teachers:stay_upright",
    ]
    with pytest.raises(ConfigError, match="compares segments only"):
        resolve(load_config(None, settings))


def test_demonstrations_that_cannot_be_used_are_refused_before_the_run(tmp_path: Path) -> None:
    from themis_ray.experiment import resolve_new

    with pytest.raises(DataError, match="holds no segments"):
        resolve_new(load_config(None, [*SMALL, f"feedback.demonstrations={tmp_path}"]))
