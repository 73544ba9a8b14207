"""What TensorBoard has of a run, read from its event files."""

import math
from pathlib import Path

import pytest
from PIL import Image
from records import read_events
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tracked_folders import make_config, make_row, make_run

from themis_ray.tracking import METRICS, TensorBoardLogger, describe_run, gather_artifacts


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_run(tmp_path_factory.mktemp("runs") / "run")
    logger = TensorBoardLogger(path / "tensorboard", describe_run(path, make_config()))
    logger.log(make_row(70, alpha=math.nan, true_return_mean=-3.0))
    logger.add(gather_artifacts(path))
    logger.close({"env_id": "Pendulum-v1", "true_return_mean": -150.0, "heldout_accuracy": math.nan})
    return path / "tensorboard"


def test_every_finite_number_is_there_against_env_steps(tracked: Path) -> None:
    scalars = read_events(tracked).scalars
    assert scalars["true_return_mean"] == {70: -3.0}
    assert scalars["final/true_return_mean"] == {70: -150.0}
    assert set(scalars) == (set(METRICS) - {"phase", "alpha"}) | {"final/true_return_mean"}


def test_settings_are_text_and_hyper_parameters(tracked: Path) -> None:
    events = read_events(tracked)
    assert '"id": "Pendulum-v1"' in events.texts["config"]
    assert "mistake" in events.texts["run"]
    started = HParamsPluginData.FromString(events.plugins["_hparams_/session_start_info"]).session_start_info
    assert started.hparams["teacher.name"].string_value == "mistake"
    assert started.hparams["seed"].number_value == 0
    about = HParamsPluginData.FromString(events.plugins["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in about.metric_infos] == ["final/true_return_mean"]


def test_pictures_clips_and_tables_are_there(tracked: Path) -> None:
    events = read_events(tracked)
    assert events.images["plot"] == (tracked.parent / "plot.png").read_bytes()
    assert events.images["clips/trained_policy"].startswith(b"GIF89a")
    (tracked / "clip.gif").write_bytes(events.images["clips/trained_policy"])
    with Image.open(tracked / "clip.gif") as clip:
        assert getattr(clip, "n_frames", 1) == 8
    (tracked / "clip.gif").unlink()
    assert events.texts["tables/preferences"].count("| left |") == 1


def test_a_resumed_run_hides_what_it_does_again(tmp_path: Path) -> None:
    about = describe_run(tmp_path, make_config())
    for steps in ((100, 200), (150, 250)):
        logger = TensorBoardLogger(tmp_path, about)
        for step in steps:
            logger.log(make_row(step))
        logger.close(None)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2, "two starts in one second are two files"
    assert read_events(tmp_path).starts == [150]
    assert TensorBoardLogger(tmp_path, about).num_env_steps == 250
