"""An environment of several parts trains with no setting but how long."""

import json
from pathlib import Path

import cloudpickle
import pytest
from click.testing import CliRunner

from themis_ray.cli import main
from themis_ray.data import PreferenceDataset
from themis_ray.envs import EnvConfig, get_env_spec
from themis_ray.rllib.modules import PPOModule

CAMERA = "tests.rllib.camera:Camera"
MODULE = "learner_group/learner/rl_module/default_policy"


@pytest.mark.ray
def test_images_beside_numbers_several_buttons_and_episodes_of_any_length_train(tmp_path: Path, ray_cluster) -> None:
    folder = tmp_path / "run"
    result = CliRunner().invoke(main, ["train", f"env.id={CAMERA}", "num_env_steps=500", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["algorithm"] == "ppo"
    assert summary["queries_asked"] == summary["budget"] > 0
    assert summary["heldout_accuracy"] is not None
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["num_env_steps"] >= 500
    assert rows[-1]["reward_version"] > 0
    assert (folder / "plot.png").is_file()

    dataset = PreferenceDataset(folder)
    spec = get_env_spec(EnvConfig(id=CAMERA))
    assert dataset.num_preferences == summary["num_preferences"] > 0
    assert {segment.observations.shape[1:] for segment in dataset.segments} == {spec.observation_space.shape}

    checkpoint = max((folder / "checkpoints").iterdir())
    with (checkpoint / MODULE / "class_and_ctor_args.pkl").open("rb") as file:
        made = cloudpickle.load(file)
    assert made["class"] is PPOModule
    assert made["ctor_args_and_kwargs"][1]["observation_space"] == spec.observation_space  # with its layout
    with (checkpoint / MODULE / "module_state.pkl").open("rb") as file:
        weights = cloudpickle.load(file)
    assert weights["pi_encoder.features.parts.0.0.weight"].shape == (32, 3, 8, 8)
