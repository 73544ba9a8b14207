"""What MLflow has of a run, asked of a real store in SQLite."""

import builtins
import math
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tracked_folders import STEPS, make_config, make_row, make_run

from themis_ray.config import TrackingSettings
from themis_ray.errors import ConfigError
from themis_ray.tracking import MlflowLogger, check_tracking, describe_run, gather_artifacts
from themis_ray.tracking.description import without_password


def only_run(client: MlflowClient, experiment: str = "tests") -> Any:
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, Any]:
    """A store with one run that was tracked, stopped and resumed."""
    top = tmp_path_factory.mktemp("mlflow")
    path = make_run(top / "run", "seed=3", "tracking.wandb_group=pendulum/mistake")
    about = describe_run(path, make_config("seed=3", "tracking.wandb_group=pendulum/mistake"))
    uri = f"sqlite:///{top / 'mlflow.db'}"
    first = MlflowLogger(path, about, uri, "tests")
    for step in STEPS[:2]:
        first.log(make_row(step, true_return_mean=-float(step), alpha=math.nan))
    first.close(None)
    client = MlflowClient(uri)
    assert only_run(client).info.status == "FAILED"
    second = MlflowLogger(path, about, uri, "tests")
    assert second.num_env_steps == STEPS[1]
    for step in STEPS[1:]:  # the line at the checkpoint comes again
        second.log(make_row(step, true_return_mean=-float(step)))
    second.add(gather_artifacts(path))
    second.close({"env_id": "Pendulum-v1", "true_return_mean": -150.0, "heldout_accuracy": math.nan})
    return client, only_run(client)


def test_settings_are_parameters_with_dotted_names(store: tuple[MlflowClient, Any]) -> None:
    params = store[1].data.params
    assert params["env.id"] == "Pendulum-v1"
    assert params["seed"] == "3"
    assert params["reward.hidden_sizes"].startswith("[")
    assert params["method.teacher"] == "mistake"


def test_lines_have_env_steps_and_come_once(store: tuple[MlflowClient, Any]) -> None:
    client, run = store
    history = client.get_metric_history(run.info.run_id, "true_return_mean")
    assert [(metric.step, metric.value) for metric in history] == [(step, -float(step)) for step in STEPS]
    assert run.data.metrics["final/true_return_mean"] == -150.0
    assert "final/heldout_accuracy" not in run.data.metrics
    assert client.get_metric_history(run.info.run_id, "alpha")[0].step == STEPS[2]


def test_a_run_is_found_by_name_group_and_tags(store: tuple[MlflowClient, Any]) -> None:
    run = store[1]
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.tags["group"] == "pendulum/mistake"
    assert run.data.tags["job_type"] == "train"
    assert "mistake" in run.data.tags["tags"]


def test_files_lie_beside_the_database(store: tuple[MlflowClient, Any], tmp_path: Path) -> None:
    client, run = store
    assert "/mlartifacts/" in run.info.artifact_uri
    top = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    found = {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()}
    assert {
        "plot/plot.png",
        "clips/trained_policy/trained-policy.webm",
        "tables/preferences.csv",
        "preferences/preferences/part-00000.parquet",
        "run/config.yaml",
        "explanations/explanations/reward-saliency/explanations.json",
    } <= found
    assert (top / "tables/preferences.csv").read_text().count("mistake") == 4


def test_without_an_address_everything_is_in_the_run_folder(tmp_path: Path) -> None:
    logger = MlflowLogger(tmp_path, describe_run(tmp_path, make_config()), None, "tests")
    logger.log(make_row(10))
    logger.close({})
    assert logger.place == f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    assert only_run(MlflowClient(logger.place)).data.metrics["num_env_steps"] == 10


def test_a_password_stays_out_of_sight(store: tuple[MlflowClient, Any], tmp_path: Path) -> None:
    uri = store[0].tracking_uri
    logger = MlflowLogger(tmp_path, describe_run(tmp_path, make_config()), uri, "others")
    logger.close({})
    assert uri not in (tmp_path / "mlflow" / "run_ids.json").read_text()
    assert without_password("https://me:secret@host/mlflow") == "https://host/mlflow"


@pytest.mark.parametrize("text", ["https://me:secret@host/mlflow", "no route to https://me:p@ss@host/mlflow here"])
def test_a_password_may_hold_any_sign(text: str) -> None:
    shown = without_password(text)
    assert "https://host/mlflow" in shown
    assert "ss" not in shown
    assert without_password("https://host/a@b sqlite:///c@d") == "https://host/a@b sqlite:///c@d"


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:s3cret@host/x",
        "https://s3cret@host/x",
        "postgresql://me:s3@cret@host/db",
        "postgresql://host/db?user=me&password=s3cret",
        "https://host/x?access_token=s3cret",
    ],
)
def test_an_address_with_a_password_is_refused_as_a_setting(uri: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI") as caught:
        make_config(f"tracking.mlflow_tracking_uri={uri}")
    assert "s3" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["https://host:5000/x", "sqlite:///a@b/mlflow.db", "databricks://profile", "file:/mlruns"]
)
def test_any_other_address_is_a_setting(uri: str) -> None:
    assert make_config(f"tracking.mlflow_tracking_uri={uri}").tracking.mlflow_tracking_uri == uri


def test_a_run_that_was_deleted_there_begins_anew(tmp_path: Path) -> None:
    about, uri = describe_run(tmp_path, make_config()), f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    for _ in range(2):
        logger = MlflowLogger(tmp_path, about, uri, "tests")
        assert logger.num_env_steps == -1
        for step in STEPS:
            logger.log(make_row(step))
        logger.close({})
        run = only_run(client)
        assert run.data.metrics["num_env_steps"] == STEPS[-1]
        assert run.data.params["env.id"] == "Pendulum-v1"
        client.delete_run(run.info.run_id)


def test_a_line_is_one_request(
    store: tuple[MlflowClient, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = MlflowLogger(tmp_path, describe_run(tmp_path, make_config()), store[0].tracking_uri, "others")
    batches: list[int] = []
    monkeypatch.setattr(logger._client, "log_batch", lambda run_id, metrics: batches.append(len(metrics)))
    logger.log(make_row(10))
    assert batches == [len(make_row(10)) - 1]  # all but the phase, which is a word


def test_a_missing_package_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else find(name, *a))
    check_tracking(TrackingSettings())
    with pytest.raises(ConfigError, match=r"pip install 'themis-ray\[mlflow\]'"):
        check_tracking(TrackingSettings(mlflow=True))


def test_nothing_of_mlflow_is_imported_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        assert not name.startswith(("mlflow", "wandb", "filelock"))
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    from themis_ray.tracking import RunFolder, make_loggers

    config = make_config()
    for logger in make_loggers(RunFolder.create(tmp_path / "run", config), config):
        logger.log(make_row(10))
        logger.close({})
