"""What trackers call a run, so that a sweep can be compared."""

from pathlib import Path
from typing import Any

import pytest
from tracked_folders import make_config

from themis_ray.sweeping import SweepFolder, SweepSettings, expand
from themis_ray.tracking import RunDescription, describe_run
from themis_ray.tracking.description import SWEEP_FILE


def describe(path: Path, *settings: str) -> RunDescription:
    path.mkdir(parents=True, exist_ok=True)
    return describe_run(path, make_config(*settings))


def test_a_run_that_stands_alone_is_called_like_its_folder(tmp_path: Path) -> None:
    about = describe(tmp_path / "pendulum-v1-sac-oracle-s0")
    assert (about.name, about.group, about.job_type) == ("pendulum-v1-sac-oracle-s0", None, "train")
    assert about.tags == ("Pendulum-v1", "auto", "mistake", "disagreement")


def test_a_trial_is_called_like_its_path_below_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / SWEEP_FILE).write_text("{}")
    about = describe(tmp_path / "smoke" / "pendulum" / "mistake" / "s3", "seed=3")
    assert (about.name, about.group) == ("pendulum/mistake/s3", "pendulum/mistake")
    assert about.tags[-1] == "smoke"


def test_a_sweep_is_known_by_the_file_that_it_writes(tmp_path: Path) -> None:
    SweepFolder.create(tmp_path / "sweep", SweepSettings(base={"env": {"id": "Pendulum-v1"}}))
    assert (tmp_path / "sweep" / SWEEP_FILE).is_file()


def test_settings_win(tmp_path: Path) -> None:
    given = ("tracking.run_name=mine", "tracking.wandb_group=ours", "tracking.wandb_tags=[paper, Pendulum-v1]")
    about = describe(tmp_path / "run", "preset=robust", *given)
    assert (about.name, about.group) == ("mine", "ours")
    assert about.tags == ("Pendulum-v1", "auto", "mistake", "uniform", "robust", "paper")  # none twice


@pytest.mark.parametrize(
    ("settings", "method", "tags"),
    [
        ((), {"teacher": "mistake", "sampler": "disagreement"}, ("mistake", "disagreement")),
        (("learn_reward=false",), {"teacher": "true-reward", "sampler": "none"}, ("true-reward",)),
        (("feedback.dataset=/data/a",), {"teacher": "answers of a", "sampler": "none"}, ("answers of a",)),
    ],
)
def test_runs_are_told_apart_by_method(
    tmp_path: Path, settings: tuple[str, ...], method: dict[str, str], tags: tuple[str, ...]
) -> None:
    about = describe(tmp_path, *settings)
    assert about.settings["method"] == method
    assert about.settings["env"]["id"] == "Pendulum-v1"  # nested, as in config.yaml
    assert about.tags[2:] == tags


def test_names_and_tags_are_no_longer_than_trackers_take() -> None:
    about = RunDescription("a" * 200 + "/s3", "g" * 200, "train", ("t" * 99, " ", "t" * 99), {})
    assert about.name.endswith("/s3")
    assert len(about.name) == 128
    assert len(about.group or "") == 128
    assert about.tags == ("t" * 64,)


def test_a_sweep_names_its_trials_wherever_their_folders_are() -> None:
    base: dict[str, Any] = {"env": {"id": "Pendulum-v1"}, "tracking": {"tensorboard": True}}
    (trial,) = expand(SweepSettings(base=base, space={"teacher.name": ["oracle"]}, seeds=[3]))
    assert trial.config.tracking.run_name == trial.name == "pendulum/oracle/s3"
    assert trial.config.tracking.wandb_group == "pendulum/oracle"
    (untracked,) = expand(SweepSettings(base={"env": {"id": "Pendulum-v1"}}))
    assert untracked.config.tracking.run_name is None
