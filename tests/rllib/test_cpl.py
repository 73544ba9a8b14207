"""Contrastive preference learning: its loss, what it reads, what it learns, resuming, and the whole command."""

import json
import math
import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from hypothesis import given
from hypothesis import strategies as st
from test_resume import assert_same, train
from torch.distributions import Categorical, Normal

from themis_ray.cli import main
from themis_ray.config import dump_config, load_config, resolve
from themis_ray.data import Choice, EpisodeChunk, EpisodePool, Preference, PreferenceDataset, Query, Segment
from themis_ray.envs import EnvConfig, get_env_spec, make_env
from themis_ray.errors import ConfigError, DataError
from themis_ray.randomness import seed_python
from themis_ray.rllib import build_algorithm_config, deterministic_policy, evaluate, open_preferences
from themis_ray.rllib.cpl import StoredPreferenceLoop, action_log_probabilities, cpl_loss, discounted_sums

TORQUE, BUTTONS, KNOBS = Box(-1.0, 1.0, (3,), np.float32), Discrete(5), MultiDiscrete([2, 4, 3])
NUM_INPUTS = {"Box": 6, "Discrete": 5, "MultiDiscrete": 9}
CART_POLE = EnvConfig(id="CartPole-v1", horizon=200)
PENDULUM = EnvConfig(id="Pendulum-v1")
SMALL = [
    "algorithm.name=cpl",
    "algorithm.hidden_sizes=[32,32]",
    "algorithm.learning_rate=2e-3",
    "algorithm.batch_size=32",
    "algorithm.updates_per_env_step=0.25",
    "seed=3",
]


# ---------------------------------------------------------------- the loss


def slow_log_probability(inputs: torch.Tensor, action: Any, space: Any) -> float:
    """log pi of one step as torch's distributions know it; of a Gaussian without the constant."""
    if isinstance(space, Discrete):
        return Categorical(logits=inputs).log_prob(torch.tensor(action)).item()
    if isinstance(space, MultiDiscrete):
        total, start = 0.0, 0
        for size, choice in zip(space.nvec, action, strict=True):
            total += Categorical(logits=inputs[start : start + size]).log_prob(torch.tensor(choice)).item()
            start += size
        return total
    mean = inputs[: len(inputs) // 2]
    peak = Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
    return sum((Normal(m, 1.0).log_prob(torch.tensor(a)) - peak).item() for m, a in zip(mean, action, strict=True))


def slow_loss(log_pi: Any, labels: Any, alpha: float, gamma: float, bias: float) -> float:
    """The formula of the paper pair by pair: exp(preferred) / (exp(preferred) + exp(bias other))."""
    total = 0.0
    for (left_steps, right_steps), label in zip(log_pi, labels, strict=True):
        left = sum(gamma**t * x for t, x in enumerate(left_steps))
        right = sum(gamma**t * x for t, x in enumerate(right_steps))
        for weight, winner, loser in ((label, left, right), (1 - label, right, left)):
            chance = math.exp(alpha * winner) / (math.exp(alpha * winner) + math.exp(alpha * bias * loser))
            total -= weight * math.log(chance)
    return total / len(labels)


@pytest.mark.parametrize("space", [TORQUE, BUTTONS, KNOBS], ids=lambda space: type(space).__name__)
@pytest.mark.parametrize(("gamma", "bias"), [(1.0, 1.0), (0.9, 0.5), (0.5, 0.0)])
def test_the_loss_is_the_papers_formula(space, gamma, bias):
    rng = np.random.default_rng(0)
    num_pairs, length = 7, 4
    num_rows = num_pairs * 2 * length
    inputs = torch.tensor(rng.normal(size=(num_rows, NUM_INPUTS[type(space).__name__])))
    space.seed(0)
    actions = np.stack([space.sample() for _ in range(num_rows)])
    labels = rng.choice([0.0, 0.5, 1.0, 0.8], size=num_pairs)

    slow = [slow_log_probability(row, action, space) for row, action in zip(inputs, actions.tolist(), strict=True)]
    expected = slow_loss(np.reshape(slow, (num_pairs, 2, length)), labels, 0.7, gamma, bias)

    log_pi = action_log_probabilities(inputs, torch.tensor(actions), space)
    np.testing.assert_allclose(log_pi.numpy(), slow, rtol=1e-6, atol=1e-9)
    left, right = discounted_sums(log_pi.reshape(num_pairs, 2, length), gamma).unbind(1)
    assert cpl_loss(left, right, torch.tensor(labels), 0.7, bias).item() == pytest.approx(expected, rel=1e-6)


sums = st.floats(-100, 0)


@given(sums, sums, st.floats(0, 1), st.floats(0.01, 2), st.floats(0, 1))
def test_swapping_left_and_right_turns_the_label_round_and_keeps_the_loss(left, right, label, alpha, bias):
    left, right, label = (torch.tensor([x], dtype=torch.float64) for x in (left, right, label))
    swapped = cpl_loss(right, left, 1 - label, alpha, bias)
    assert cpl_loss(left, right, label, alpha, bias).item() == pytest.approx(swapped.item(), rel=1e-9, abs=1e-12)


@given(sums, st.floats(0.01, 2))
def test_equal_answers_about_equally_likely_segments_cost_log_2_without_the_bias(total, alpha):
    both = torch.tensor([total], dtype=torch.float64)
    assert cpl_loss(both, both, torch.tensor([0.5]), alpha, 1.0).item() == pytest.approx(math.log(2))


def test_only_a_conservative_loss_wants_the_winner_to_be_likely_too():
    shift = torch.tensor(-5.0)
    for bias, grows in ((1.0, False), (0.5, True)):
        near, far = (
            cpl_loss(torch.tensor([-1.0]) + x, torch.tensor([-2.0]) + x, torch.ones(1), 1.0, bias) for x in (0, shift)
        )
        assert (far > near + 1e-4) == grows


# ---------------------------------------------------------------- datasets of a random and a scripted policy


def balance(observation: Any) -> int:
    return int(observation[2] + 0.5 * observation[3] > 0)


def swing_up(observation: Any) -> Any:
    """Pump energy into the pendulum, and hold it near the top; in units of the largest torque."""
    cosine, sine, velocity = observation[:3]
    angle = math.atan2(sine, cosine)
    missing_energy = 15 * (1 - cosine) - velocity**2 / 2
    torque = -8 * angle - 2 * velocity if cosine > 0.8 else 2 * np.sign(velocity * missing_energy)
    return np.clip(np.array([torque / 2], np.float32), -1, 1)


def true_return(segment: Segment) -> float:
    return segment.true_return


def closeness_to_swing_up(segment: Segment) -> float:
    """How little a segment lost against the good policy: the regret that the loss takes answers to be about."""
    good = np.stack([swing_up(observation) for observation in segment.observations])
    return -float(np.square(good - segment.actions).sum())


def record(
    folder: Path,
    env: EnvConfig,
    policy: Callable[[Any], Any],
    judge: Callable[[Segment], float],
    seed: int,
    num_episodes: int = 30,
) -> float:
    """Store preferences about episodes of a policy that takes 0 to 100 % random actions; return its mean return."""
    rng = np.random.default_rng(seed)
    simulator = make_env(env)
    space = simulator.action_space
    space.seed(seed)
    pool = EpisodePool(env.id, 100_000)
    returns = []
    for episode in range(num_episodes):
        random_share = episode / (num_episodes - 1)
        observations, actions, rewards = [], [], []
        observation, _ = simulator.reset(seed=int(rng.integers(2**31)))
        is_over = False
        while not is_over:
            action = policy(observation)
            if rng.random() < random_share:
                action = space.sample()
                action = action / space.high if isinstance(space, Box) else action
            observations.append(observation)
            actions.append(action)
            scaled = action * space.high if isinstance(space, Box) else action
            observation, reward, terminated, truncated, _ = simulator.step(scaled)
            rewards.append(reward)
            is_over = terminated or truncated
        returns.append(sum(rewards))
        pool.add(
            EpisodeChunk(
                f"e{episode}", 0, np.stack(observations), np.stack(actions), np.array(rewards, np.float32), True
            )
        )
    queries = pool.sample_queries(400, 25, rng)
    now = datetime.now(UTC)
    preferences = []
    for query in queries:
        margin = judge(query.left) - judge(query.right)
        choice = Choice.EQUAL if margin == 0 else Choice.LEFT if margin > 0 else Choice.RIGHT
        preferences.append(
            Preference(query.id, query.left.id, query.right.id, choice, "oracle", 0, len(returns), now, now)
        )
    PreferenceDataset(folder).append(queries, preferences)
    return float(np.mean(returns))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preferences about CartPole."""
    folder = tmp_path_factory.mktemp("stored")
    record(folder, CART_POLE, balance, true_return, seed=0, num_episodes=10)
    return folder


def build(folder: Path, dataset: Path, *settings: str) -> Any:
    overrides = [*SMALL, "env.id=CartPole-v1", "env.horizon=200", f"feedback.dataset={dataset}", *settings]
    config, _ = resolve(load_config(None, overrides))
    seed_python(config.seed)
    return build_algorithm_config(config, folder).build_algo()


# ---------------------------------------------------------------- learning


@pytest.mark.ray
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("env", "policy", "judge"),
    [(CART_POLE, balance, true_return), (PENDULUM, swing_up, closeness_to_swing_up)],
    ids=["discrete", "box"],
)
def test_the_policy_beats_what_it_learned_from(env, policy, judge, seed, tmp_path, ray_cluster):
    behaviour_return = record(tmp_path / "stored", env, policy, judge, seed)
    settings = [f"env={env.model_dump_json()}", f"seed={seed}", "num_env_steps=1600"]
    if env is PENDULUM:
        settings += [f"algorithm.{x}" for x in ("contrastive_alpha=0.5", "updates_per_env_step=1")]
        settings.append("algorithm.hidden_sizes=[64,64]")
    algorithm = build(tmp_path / "run", tmp_path / "stored", *settings)
    try:
        while algorithm.env_steps < 1600:
            row = train(algorithm, 1)[0]
        returns = evaluate(deterministic_policy(algorithm.env_runner.module), env, range(10))
    finally:
        algorithm.stop()
    assert row["cpl_accuracy"] > 0.8
    assert returns.mean() > behaviour_return + 0.3 * abs(behaviour_return), (behaviour_return, returns)


# ---------------------------------------------------------------- what is read, and resuming


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved_parts(algorithm: Any) -> dict[str, Any]:
    state = algorithm.get_state()
    learner = state["learner_group"]["learner"]
    return {"weights": learner["rl_module"], "optimizer": learner["optimizer"], "loop": state["preference_loop"]}


@pytest.mark.ray
def test_resumed_run_goes_on_like_one_that_never_stopped_also_when_the_dataset_has_grown(stored, tmp_path, ray_cluster):
    dataset = tmp_path / "stored"
    shutil.copytree(stored, dataset)
    unstopped = build(tmp_path / "unstopped", dataset)
    train(unstopped, 2)
    unstopped.save_to_path(str(tmp_path / "checkpoint"))
    expected = saved_parts(unstopped)
    assert expected["loop"]["queries"] == []
    assert expected["loop"]["preferences"] == []
    unstopped.reset_environments()
    expected_rows = train(unstopped, 3)
    expected_end = saved_parts(unstopped)
    unstopped.stop()
    assert files(dataset) == files(stored), "the dataset was written to"
    assert not (tmp_path / "unstopped").exists()

    grown = PreferenceDataset(dataset)
    first = grown.preferences[0]
    pool = EpisodePool(CART_POLE.id, 1000)
    segment = grown.segment(first.left_id)
    pool.add(EpisodeChunk("new", 0, *(np.tile(x, (2,) + (1,) * (x.ndim - 1)) for x in arrays_of(segment)), True))
    (query,) = pool.sample_queries(1, len(segment), np.random.default_rng(0))
    now = datetime.now(UTC)
    grown.append([query], [Preference(query.id, query.left.id, query.right.id, Choice.LEFT, "oracle", 1, 0, now, now)])
    resumed = build(tmp_path / "resumed", dataset)
    random.seed(99)
    torch.manual_seed(99)
    assert len(resumed.loop.pairs) == expected["loop"]["stored_preferences"][0] + 1
    resumed.restore_from_path(str(tmp_path / "checkpoint"))
    assert_same(saved_parts(resumed), expected)
    resumed.reset_environments()
    rows = train(resumed, 3)
    end = saved_parts(resumed)
    resumed.stop()
    for part in ("weights", "optimizer"):
        assert_same(end[part], expected_end[part])
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert_same(row, expected_row, f"metrics at {row['num_env_steps']} env steps")


def test_a_resumed_run_counts_what_it_learns_from_and_not_what_the_dataset_has_grown_to(stored, tmp_path):
    shutil.copytree(stored, tmp_path / "stored")
    config, spec = resolve(load_config(None, [*SMALL, "env.id=CartPole-v1", f"feedback.dataset={tmp_path / 'stored'}"]))

    def make_loop() -> StoredPreferenceLoop:
        return StoredPreferenceLoop(config, spec, tmp_path / "stored", None, None)

    state = make_loop().get_state()
    grown = PreferenceDataset(tmp_path / "stored")
    row, num_before = grown.preferences[0], grown.num_preferences
    grown.append([Query(grown.segment(row.left_id), grown.segment(row.right_id))], [row])
    resumed = make_loop()
    assert (resumed.num_questions, resumed.num_preferences) == (num_before + 1, num_before + 1)
    resumed.set_state(state)
    assert (resumed.num_questions, resumed.num_preferences) == (num_before, num_before) == (400, 400)
    del state["num_stored_questions"]  # Earlier checkpoints have none.
    resumed = make_loop()
    resumed.set_state(state)
    assert (resumed.num_questions, resumed.num_preferences) == (num_before + 1, num_before)


def arrays_of(segment: Segment) -> tuple[Any, Any, Any]:
    return segment.observations, segment.actions, segment.true_rewards


@pytest.mark.ray
def test_a_dataset_with_other_answers_than_before_is_refused(stored, tmp_path, ray_cluster):
    algorithm = build(tmp_path / "run", stored)
    try:
        state = algorithm.loop.get_state()
        num_queries, fingerprint = state["stored_preferences"]
        with pytest.raises(DataError, match="has changed"):
            algorithm.loop.set_state({**state, "stored_preferences": (num_queries - 1, fingerprint)})
    finally:
        algorithm.stop()


def test_preferences_that_do_not_fit_the_environment_are_refused(stored, tmp_path):
    def opened(env_id: str, folder: Path) -> PreferenceDataset:
        config = load_config(None, [*SMALL, f"env.id={env_id}", f"feedback.dataset={folder}"])
        return open_preferences(config, get_env_spec(config.env))

    assert opened("CartPole-v1", stored).num_preferences == 400
    with pytest.raises(DataError, match=r"does not fit this run: environment Pendulum-v1 here, CartPole-v1 in"):
        opened("Pendulum-v1", stored)
    with pytest.raises(DataError, match=r"holds no answered preferences\. Give the folder of a run"):
        opened("CartPole-v1", tmp_path)


def test_preferences_about_observations_of_another_meaning_are_refused(stored, tmp_path):
    copied = shutil.copytree(stored, tmp_path / "copied")
    settings = ["env.id=CartPole-v1", f"feedback.dataset={copied}"]
    (copied / "config.yaml").write_text(dump_config(load_config(None, settings)))
    config = load_config(None, [*SMALL, *settings])
    assert open_preferences(config, get_env_spec(config.env)).num_preferences == 400
    config = load_config(None, [*SMALL, *settings, "env.normalize_observations=true"])
    with pytest.raises(DataError, match=r"env.normalize_observations True here, False in the dataset"):
        open_preferences(config, get_env_spec(config.env))
    (copied / "config.yaml").write_text("env: 3")
    with pytest.raises(DataError, match=r"config.yaml cannot be read"):
        open_preferences(config, get_env_spec(config.env))


def test_preferences_about_choices_that_the_environment_does_not_have_are_refused(tmp_path):
    config = load_config(None, [*SMALL, "env.id=CartPole-v1", f"feedback.dataset={tmp_path}"])
    spec = get_env_spec(config.env)
    observations = np.zeros((4, *spec.observation_space.shape), np.float32)
    one, other = (Segment.create(spec.id, "e", 0, observations, np.full(4, i), np.zeros(4)) for i in (1, 2))
    query, now = Query(one, other), datetime.now(UTC)
    answer = Preference(query.id, one.id, other.id, Choice.LEFT, "me", 0, 0, now, now)
    PreferenceDataset(tmp_path).append([query], [answer])
    with pytest.raises(DataError, match=r"^feedback.dataset=.* an action is 2 there, and allowed are .* from 0 to 1\."):
        open_preferences(config, spec)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["algorithm.name=cpl"], "algorithm.name=cpl learns from stored preferences only and asks nobody"),
        (["algorithm.name=sac", "feedback.dataset=x"], "feedback.dataset=x was given, but sac learns from the answers"),
        ([*SMALL, "feedback.dataset=x", "learn_reward=false"], "learn_reward=false was given"),
        ([*SMALL, "feedback.dataset=x", "feedback.budget=7"], "feedback.budget=7 was given"),
        ([*SMALL, "feedback.dataset=x", "feedback.segment_length=7"], "a setting of feedback beside dataset was given"),
        ([*SMALL, "feedback.dataset=x", "teacher.eps_mistake=0.1"], "a setting of teacher was given"),
        (
            [*SMALL, "feedback.dataset=x", "reward.hidden_sizes=[9]"],
            "a setting of reward beside label_margin was given",
        ),
        ([*SMALL, "feedback.dataset=x", "preset=robust"], "preset=robust was given, but cpl learns"),
        (
            [*SMALL, "feedback.dataset=x", "preset=robust", "feedback.sampler=disagreement"],
            "preset=robust was given, but cpl learns",
        ),
        ([*SMALL, "feedback.dataset=x", "exploration.num_env_steps=9"], "a setting of exploration was given"),
        ([*SMALL, "feedback.dataset=x", "exploration.num_neighbors=7"], "a setting of exploration was given"),
        ([*SMALL, "feedback.dataset=x", "snapshot=y"], "snapshot=y was given, but cpl"),
        (
            [*SMALL, "feedback.dataset=x", "algorithm.reference=y"],
            "algorithm.reference was given, but the learner is cpl",
        ),
        ([*SMALL, "feedback.dataset=x", "resources.num_learners=2"], "resources.num_learners=2 was given"),
    ],
)
def test_what_the_learner_cannot_use_is_refused_in_one_line(settings, complaint):
    config = load_config(None, ["env.id=Pendulum-v1", *settings])
    with pytest.raises(ConfigError) as caught:
        build_algorithm_config(resolve(config)[0])
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_resolving_twice_changes_nothing_and_the_dataset_is_named_in_full(stored, monkeypatch):
    monkeypatch.chdir(stored.parent)
    config, spec = resolve(
        load_config(None, [*SMALL, "env.id=CartPole-v1", f"feedback.dataset={stored.name}", "reward.label_margin=0.1"])
    )
    assert config.feedback.dataset == str(stored.resolve())
    assert resolve(type(config).model_validate(config.model_dump())) == (config, spec)
    assert build_algorithm_config(config, Path("elsewhere")).dataset_path == str(stored.resolve())


# ---------------------------------------------------------------- the command


@pytest.mark.ray
def test_the_command_learns_from_another_run_and_goes_on(stored, tmp_path, ray_cluster):
    before = files(stored)
    run = tmp_path / "run"
    settings = [*SMALL, "env.id=CartPole-v1", "env.horizon=200", f"feedback.dataset={stored}", "num_env_steps=1200"]
    result = CliRunner().invoke(main, ["train", *settings, "num_evaluation_episodes=3", "--out", str(run)])
    assert result.exit_code == 0, result.output
    assert "400 of" in result.output.replace("\n", " ")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["algorithm"], summary["teacher"], summary["dataset"]) == ("cpl", None, str(stored.resolve()))
    assert summary["true_return_mean"] > summary["random_return_mean"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["num_env_steps"] >= 1200
    assert rows[-1]["cpl_accuracy"] > 0.7
    assert rows[-1]["cpl_loss"] < rows[0]["cpl_loss"]
    assert rows[-1]["reward_version"] == 0
    assert not (run / "preferences").exists()
    assert (run / "plot.png").exists()

    (newest,) = [path for path in (run / "checkpoints").iterdir() if str(rows[-1]["num_env_steps"]) in path.name]
    shutil.rmtree(newest)
    (run / "summary.json").unlink()
    result = CliRunner().invoke(main, ["train", "--resume", str(run)])
    assert result.exit_code == 0, result.output
    again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert again[-1]["num_env_steps"] == rows[-1]["num_env_steps"]
    assert json.loads((run / "summary.json").read_text())["algorithm"] == "cpl"
    assert files(stored) == before
