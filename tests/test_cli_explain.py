"""`themis explain` on real runs: numbers, clips, and a page that asks nobody else for anything."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from short_run import SHORT_RUN

from themis_ray.cli import main
from themis_ray.clips import read_clip
from themis_ray.config import load_config
from themis_ray.data import Choice, PreferenceDataset
from themis_ray.data.episodes import EpisodePool
from themis_ray.errors import DataError
from themis_ray.explain import METHODS, Prediction
from themis_ray.explaining import ExplainedRun, Explanation
from themis_ray.rllib import open_finished_run

PENDULUM = [*SHORT_RUN, "num_env_steps=800", "feedback.budget=8"]
GRID = [
    "env.id=MiniGrid-Empty-5x5-v0",
    "num_env_steps=600",
    "feedback.budget=6",
    "feedback.segment_length=10",
    "algorithm.hidden_sizes=[16]",
    "reward.hidden_sizes=[16]",
    "reward.num_epochs=2",
    "num_evaluation_episodes=1",
]
TRUE_REWARD = [*SHORT_RUN, "num_env_steps=300", "learn_reward=false"]


def train(folder: Path, settings: list[str]) -> Path:
    done = CliRunner().invoke(main, ["train", *settings, "--out", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory, ray_cluster) -> Path:
    return train(tmp_path_factory.mktemp("explain") / "pendulum", PENDULUM)


@pytest.fixture(scope="module")
def grid(tmp_path_factory, ray_cluster) -> Path:
    return train(tmp_path_factory.mktemp("explain") / "grid", GRID)


def explain(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["explain", *map(str, arguments)])
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done.output


def read(out: Path) -> dict:
    return json.loads((out / "explanations.json").read_text())


def test_influence_of_states_without_a_long_episode_is_told_in_one_line(tmp_path: Path, monkeypatch) -> None:
    finished = SimpleNamespace(path=tmp_path, pool=EpisodePool("Pendulum-v1", 100))
    monkeypatch.setattr("themis_ray.explaining.run.open_finished_run", lambda path, config: finished)
    opened = ExplainedRun(tmp_path, load_config(None, ["env.id=Pendulum-v1"]))
    with pytest.raises(DataError, match="holds no episode of 8 env steps"):
        opened.moved_by_states(Explanation("value"), (np.zeros((1, 3)), np.zeros((1, 1))))


@pytest.mark.ray
@pytest.mark.parametrize("of", ["action", "value", "reward", "preference"])
def test_everything_is_explained_in_numbers_clips_and_one_page(pendulum: Path, tmp_path: Path, of: str) -> None:
    output = explain(pendulum, "--of", of, "--segments", 2, "--out", tmp_path)
    assert "index.html" in output
    told = read(tmp_path)
    assert told["of"] == of
    assert len(told["segments"]) == (4 if of == "preference" else 2)
    for segment in told["segments"]:
        names = ["cos angle", "sin angle", "angular velocity", "action 0"]
        assert segment["input_names"] == names[: 3 if of == "action" else 4]
        assert np.shape(segment["attributions"]) == (10, len(segment["input_names"]))
        assert np.ptp(segment["numbers"]) > 0
    clips = list(tmp_path.glob("*.webm"))
    num_pairs = 2 if of == "preference" else 0
    assert len(clips) == len(told["segments"]) + num_pairs
    assert all(len(read_clip(clip)) == 10 for clip in clips)
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:video/webm") >= len(told["segments"])
    assert not re.findall(r"(?:src|href)=\"https?://", page)


@pytest.mark.ray
def test_attributions_of_the_reward_add_up_to_what_the_ensemble_predicts(pendulum: Path, tmp_path: Path) -> None:
    explain(pendulum, "--segments", 3, "--out", tmp_path)
    run = open_finished_run(pendulum, load_config(pendulum / "config.yaml"))
    dataset = PreferenceDataset(pendulum)
    at_baseline = []
    for told in read(tmp_path)["segments"]:
        segment = dataset.segment(told["segment_id"])
        rewards = run.ensemble.predict(segment.observations, segment.actions)
        np.testing.assert_allclose(told["numbers"], rewards, rtol=1e-3, atol=1e-4)
        at_baseline.append(rewards - np.sum(told["attributions"], axis=1))
        assert np.ptp(rewards) > 0.03
    # What is left of each step is the prediction at the baseline, which is the same for all.
    assert np.ptp(at_baseline) < 0.01


@pytest.mark.ray
def test_the_same_seed_gives_the_same_numbers(pendulum: Path, tmp_path: Path) -> None:
    for name in "ab":
        explain(pendulum, "--method", "kernel_shap", "--segments", 2, "--out", tmp_path / name)
    assert read(tmp_path / "a") == read(tmp_path / "b")


@pytest.mark.ray
@pytest.mark.parametrize("of", ["action", "reward", "preference"])
def test_influence_shows_the_five_that_moved_a_prediction_most(pendulum: Path, tmp_path: Path, of: str) -> None:
    explain(pendulum, "--of", of, "--method", "tracin_cp_fast", "--segments", 2, "--out", tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert not (tmp_path / "explanations.json").exists()
    if of == "action":
        assert page.count("pulls with it") >= 2
    else:
        assert len(re.findall(r"Answer \d+ of 8", page)) >= 10


@pytest.mark.ray
def test_an_answer_pulls_the_log_odds_of_its_own_query_to_its_own_side(pendulum: Path) -> None:
    run = ExplainedRun(pendulum, load_config(pendulum / "config.yaml"))
    answered = run.run.dataset.labelled_preferences()
    sides = [[run.run.dataset.segment(id_) for id_ in (one.left_id, one.right_id)] for one in answered]
    queries = [
        Prediction(
            np.stack([side.observations for side in pair]), np.stack([side.actions for side in pair]), (1.0, -1.0)
        )
        for pair in sides
    ]
    same, influence = run.moved_by_preferences(queries)
    assert same == answered
    own = influence.diagonal()
    assert [moved > 0 for moved in own] == [one.choice is Choice.LEFT for one in answered]


@pytest.mark.ray
@pytest.mark.parametrize("of", ["action", "reward"])
def test_grids_are_drawn_and_stored_cell_by_cell(grid: Path, tmp_path: Path, of: str) -> None:
    explain(grid, "--of", of, "--segments", 2, "--out", tmp_path)
    told = read(tmp_path)
    with np.load(tmp_path / "attributions.npz") as places:
        for segment in told["segments"]:
            assert places[segment["segment_id"]].shape == (10, 7, 7)
            view = places[segment["segment_id"]].sum(axis=(1, 2))
            np.testing.assert_allclose(view, np.array(segment["attributions"])[:, 0], rtol=1e-2, atol=1e-4)


@pytest.mark.ray
def test_a_run_on_the_true_reward_explains_its_policy_and_has_no_reward_to_explain(
    ray_cluster: None, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", TRUE_REWARD)
    explain(run, "--of", "action", "--segments", 1)
    assert (run / "explanations" / "action-integrated_gradients" / "index.html").is_file()
    output = explain(run, "--of", "reward", code=2)
    assert "has fitted no reward ensemble" in output
    assert output.count("\n") == 1


@pytest.mark.ray
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--of", "rewards"], "Did you mean 'reward'"),
        (["--method", "integrated"], "integrated_gradients"),
        (["--method", "guided_backprop"], "Use integrated_gradients"),
        (["--baseline", "black"], "zero"),
        (["--of", "reward", "--dimension", "0"], "Leave it out"),
        (["--of", "action", "--dimension", "4"], "Allowed: 0 to 0"),
        (["--segments", "0"], "Give 1 or more"),
        (["--codec", "gif"], "vp9"),
        (["--of", "value", "--method", "tracin_cp_fast"], "Explain the action"),
    ],
)
def test_what_cannot_be_explained_is_told_in_one_line(
    pendulum: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    output = explain(pendulum, *arguments, "--out", tmp_path / "out", code=2)
    assert told in output
    assert output.strip().count("\n") == 0


def test_methods_are_listed_with_one_line_each() -> None:
    done = CliRunner().invoke(main, ["list", "explanations"])
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == [*METHODS, "tracin_cp_fast"]


def test_an_explanation_refuses_names_that_nobody_knows() -> None:
    with pytest.raises(Exception, match="Did you mean 'kernel_shap'"):
        Explanation(method="kernel_shape")
