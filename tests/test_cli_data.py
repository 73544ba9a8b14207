import json
import os
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.spaces.space_utils import unsquash_action

from themis_ray.cli import main, progress
from themis_ray.cli.datasets import make_env_layout
from themis_ray.data import Choice, Preference, PreferenceDataset, Query, Segment
from themis_ray.envs import EnvConfig, get_env_spec, make_env

NOW = datetime(2025, 3, 1, tzinfo=UTC)


class CountsFromElsewhere(gym.Env):
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(3, start=5)


class CountsTwice(gym.Env):
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Tuple(
        [
            gym.spaces.MultiDiscrete([2, 3], start=[-1, 4]),
            gym.spaces.Dict(a=gym.spaces.Discrete(2, start=1), b=gym.spaces.MultiBinary(2)),
        ]
    )


def themis(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def assert_one_line(result: Result, *fragments: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for fragment in fragments:
        assert fragment in line


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three answers about three segments."""
    rng = np.random.default_rng(0)
    segments = [
        Segment.create("Pendulum-v1", "e", i, *rng.normal(size=(2, 4, 3)).astype("f4"), np.zeros(4)) for i in range(3)
    ]
    queries = [Query(segments[i], segments[(i + 1) % 3]) for i in range(3)]
    choices = [Choice.LEFT, Choice.SKIP, Choice.LEFT]
    PreferenceDataset(tmp_path / "run").append(
        queries,
        [
            Preference(q.id, q.left.id, q.right.id, c, "anna", 0, 0, NOW, NOW)
            for q, c in zip(queries, choices, strict=True)
        ],
    )
    return tmp_path / "run"


def bpref_file(
    path: Path, env_id: str, num_pairs: int = 5, length: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes buffers filled by random actions in the bare environment; returns observations, actions and labels."""
    env = make_env(EnvConfig(id=env_id, fixed_horizon=False))
    env.action_space.seed(0)
    observations: Any = np.zeros((2, num_pairs, length, *env.observation_space.shape))
    actions: Any = np.zeros((2, num_pairs, length, *env.action_space.shape))
    for index in np.ndindex(2, num_pairs):
        observation, _ = env.reset(seed=int(index[1]))
        for step in range(length):
            observations[(*index, step)], actions[(*index, step)] = observation, env.action_space.sample()
            observation = env.step(env.action_space.sample())[0]
    labels = np.resize([0, 1, -1], (num_pairs, 1))
    sides = np.concatenate([observations, actions.reshape(2, num_pairs, length, -1)], axis=-1).astype(np.float32)
    arrays = {"buffer_seg1": sides[0], "buffer_seg2": sides[1], "buffer_label": labels}
    path.write_bytes(pickle.dumps(arrays))
    return observations, actions, labels


@pytest.mark.parametrize("format_name", ["parquet", "jsonl", "huggingface"])
def test_export_and_import_print_counts_and_give_the_same_answers(
    dataset: Path, tmp_path: Path, format_name: str
) -> None:
    result = themis("export", dataset, "--out", tmp_path / "there", "--format", format_name)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "Exported 3 preferences (2 left, 0 right, 0 equal, 1 skip) about 3 segments of Pendulum-v1.",
        f"Folder: {tmp_path / 'there'}",
    ]
    assert not result.stderr
    result = themis("import", tmp_path / "there", "--out", tmp_path / "back", "--env", "Pendulum-v1")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Imported 3 preferences")
    assert PreferenceDataset(tmp_path / "back").preferences == PreferenceDataset(dataset).preferences


def test_work_that_takes_long_shows_a_bar(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PROGRESS_DELAY_S", 0.0)
    long_path = tmp_path / ("a-long-name-" * 10)
    dataset.rename(long_path)
    result = themis("export", long_path, "--out", tmp_path / "there", "--format", "jsonl")
    assert result.exit_code == 0, result.output
    assert "100%" in result.stderr


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", "MountainCarContinuous-v0"])
def test_imported_steps_are_what_a_run_would_have_stored(tmp_path: Path, env_id: str) -> None:
    observations, actions, labels = bpref_file(tmp_path / "labels.pkl", env_id)
    result = themis("import", tmp_path / "labels.pkl", "--out", tmp_path / "out", "--env", env_id)
    assert result.exit_code == 0, result.output
    spec = get_env_spec(EnvConfig(id=env_id))
    imported = PreferenceDataset(tmp_path / "out")
    # What RLlib makes of the tensor that a policy returns.
    chosen = torch.as_tensor(np.asarray([spec.action_space.sample()]))
    choices = [{0: Choice.LEFT, 1: Choice.RIGHT, -1: Choice.EQUAL}[int(label)] for label in labels[:, 0]]
    assert [preference.choice for preference in imported.preferences] == choices
    for i, preference in enumerate(imported.preferences):
        for side, segment_id in enumerate((preference.left_id, preference.right_id)):
            segment = imported.segment(segment_id)
            assert segment.observations.shape[1:] == spec.observation_space.shape
            assert segment.observations.dtype == spec.observation_space.dtype
            assert segment.actions.shape[1:] == spec.action_space.shape
            assert segment.actions.dtype == convert_to_numpy(chosen, reduce_type=True).dtype
            for step in range(6):
                assert spec.observation_space.contains(segment.observations[step])
                width = observations.shape[-1]
                np.testing.assert_array_equal(
                    segment.observations[step][:width], observations[side, i, step].astype(np.float32)
                )
                np.testing.assert_allclose(
                    unsquash_action(segment.actions[step], spec.action_space), actions[side, i, step], atol=1e-6
                )


def test_the_layout_of_an_environment() -> None:
    pendulum, cartpole = make_env_layout("Pendulum-v1"), make_env_layout("CartPole-v1")
    assert (pendulum.has_mark, cartpole.has_mark) == (False, True)
    assert (pendulum.num_choices, cartpole.num_choices) == (None, (2,))
    assert cartpole.action_bounds is None
    assert pendulum.action_bounds is not None
    assert [bound.tolist() for bound in pendulum.action_bounds] == [[-2.0], [2.0]]


def test_the_layout_of_choices_that_start_elsewhere() -> None:
    gym.register("CountsFromElsewhere-v0", lambda **_: CountsFromElsewhere())
    gym.register("CountsTwice-v0", lambda **_: CountsTwice())
    try:
        single, double = make_env_layout("CountsFromElsewhere-v0"), make_env_layout("CountsTwice-v0")
    finally:
        gym.registry.pop("CountsFromElsewhere-v0")
        gym.registry.pop("CountsTwice-v0")
    assert (single.num_choices, single.first_choices) == ((3,), (5,))
    assert (double.num_choices, double.first_choices) == ((2, 3, 2, 2, 2), (-1, 4, 1, 0, 0))


def test_errors_are_one_line_and_leave_nothing(dataset: Path, tmp_path: Path) -> None:
    bpref_file(tmp_path / "labels.pkl", "Pendulum-v1")
    before = sorted(tmp_path.iterdir())
    out = ("--out", tmp_path / "out")
    assert_one_line(themis("import", tmp_path / "labels.pkl", *out), "Give --env")
    assert_one_line(themis("import", tmp_path / "labels.pkl", *out, "--env", "Pendulum-v9"), "'Pendulum-v1'")
    assert_one_line(themis("import", tmp_path / "labels.pkl", *out, "--env", "CartPole-v1"), "a step has 4 numbers")
    assert_one_line(themis("import", dataset, *out, "--env", "CartPole-v1"), "of Pendulum-v1, not of CartPole-v1")
    assert_one_line(themis("import", dataset, *out, "--format", "json"), "Did you mean 'jsonl'?", "imitation")
    assert_one_line(themis("export", dataset, *out, "--format", "csv"), "no export format 'csv'", "parquet")
    assert_one_line(themis("export", tmp_path / "none", *out, "--format", "jsonl"), "none", "no preferences")
    assert_one_line(themis("export", dataset, "--out", dataset, "--format", "jsonl"), "holds something already")
    (dataset / "segments" / "part-00000.parquet").write_bytes(b"PAR1")
    assert_one_line(themis("export", dataset, *out, "--format", "jsonl"), "part-00000.parquet cannot be read")
    assert sorted(tmp_path.iterdir()) == before


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    (tmp_path / "labels.pkl").write_bytes(pickle.dumps(Evil()))
    result = themis("import", tmp_path / "labels.pkl", "--out", tmp_path / "out", "--env", "Pendulum-v1")
    assert_one_line(result, "posix.system", "Nothing of it was run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.pkl"]


def test_a_broken_line_of_json_is_one_line(dataset: Path, tmp_path: Path) -> None:
    themis("export", dataset, "--out", tmp_path / "there", "--format", "jsonl")
    path = tmp_path / "there" / "preferences.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps({**row, "choice": "both"}) + "\n")
    assert_one_line(themis("import", tmp_path / "there", "--out", tmp_path / "out"), "line 1", "'both'")
