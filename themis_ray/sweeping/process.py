"""What runs in a trial's own process: the experiment of `themis train`, with each line of metrics told to Tune."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from themis_ray.config import ExperimentConfig, dump_config, load_config, make_config, resolve
from themis_ray.experiment import Iteration, run_experiment, run_pretraining
from themis_ray.files import write_whole
from themis_ray.storage import Mirror, Storage
from themis_ray.sweeping.folder import ERROR_FILE
from themis_ray.sweeping.pretraining import fetch_snapshot
from themis_ray.tracking import FOLDERS, RunFolder

__all__ = ["pretrain_trial", "train_trial"]

SOURCE_FILE, TAKEOVER = "source.json", ".takeover"
# Of FOLDERS, what belongs to the learner's past rather than to the trial that shows it.
COPIED = tuple(name for name in FOLDERS if name not in ("checkpoints", "clips", "tensorboard", "wandb"))
TAKEN_OVER = (*COPIED, "checkpoints")
# Columns that only grow: a trial ends when they are as large, whatever the metric's better end is.
COUNTERS = frozenset(
    ("iteration", "num_env_steps", "num_episodes", "queries_asked", "num_preferences", "reward_version", "wall_s")
)


def train_trial(config: dict[str, Any]) -> None:
    """Run one trial to its end, or on from its own newest checkpoint; the function that Tune calls.

    Args:
        config: `trial`, as `themis_ray.sweeping.run` packs it, and with pbt the mutable settings by their dotted keys.
    """
    trial = config["trial"]
    # pbt copies the configuration of one trial to another, names included; only the name that Tune keeps stays.
    name = tune.get_context().get_trial_name()
    path = Path(trial["root"]) / name
    with _mirrored(path, name, trial["storage"]) as push:
        try:
            for _ in _train(path, trial, config):
                push()
        except Exception:
            path.mkdir(parents=True, exist_ok=True)
            (path / ERROR_FILE).write_text(traceback.format_exc())
            raise


def _train(path: Path, trial: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[None]:
    """Run the experiment, and yield where answers or a checkpoint have come since the last time."""
    experiment = _settings(path, trial, config)
    is_resumed = (path / "config.yaml").is_file()
    if trial["mutable"]:
        is_resumed = _take_over(path, experiment) or is_resumed
    folder = RunFolder(path) if is_resumed else RunFolder.create(path, experiment)
    (path / ERROR_FILE).unlink(missing_ok=True)
    if trial["storage"] is not None and experiment.snapshot is not None:
        fetch_snapshot(Path(experiment.snapshot), Path(trial["root"]), Storage(trial["storage"]))
    experiment, spec = resolve(experiment)
    should_stop = _stopper(trial["stop"], trial["mode"])
    kept: Any = None
    for iteration in run_experiment(experiment, spec, folder, is_resumed=is_resumed, should_stop=should_stop):
        newest = (iteration.metrics.get("queries_asked"), folder.checkpoints()[-1:])
        if newest != kept:
            yield
            kept = newest
        _report(iteration, trial, folder)


@contextlib.contextmanager
def _mirrored(path: Path, name: str, storage: str | None) -> Iterator[Callable[[], None]]:
    """Work in `path` as the storage has it, and keep the storage up to date; what is done there stays here no longer.

    Raises:
        OSError: The storage could not be written in the end.
        RunFolderError: Another process goes on with the trial.
    """
    if storage is None:
        yield lambda: None
        return
    mirror = Mirror(path, Storage(storage).child(name))
    mirror.claim()
    try:
        yield mirror.try_to_push
    except Exception:
        mirror.try_to_push()
        raise
    mirror.push()
    shutil.rmtree(path, ignore_errors=True)


def pretrain_trial(config: dict[str, Any]) -> None:
    """Write one snapshot that trials start from; the function that Tune calls."""
    trial = config["trial"]
    experiment = ExperimentConfig.model_validate(trial["settings"])
    path = Path(trial["root"]) / trial["name"]
    for num_env_steps in run_pretraining(experiment, path):
        tune.report({"num_env_steps": num_env_steps})
    if trial["storage"] is not None:
        Mirror(path, Storage(trial["storage"]).child(trial["name"])).push()


def _settings(path: Path, trial: Mapping[str, Any], config: Mapping[str, Any]) -> ExperimentConfig:
    if not trial["mutable"]:
        return ExperimentConfig.model_validate(trial["settings"])
    own = load_config(path / "config.yaml").model_dump(mode="json") if (path / "config.yaml").is_file() else None
    values = {**(own or trial["settings"]), **{key: config[key] for key in trial["mutable"]}}
    return make_config(values)


def _stopper(stop: Mapping[str, float], mode: str) -> Callable[[Mapping[str, Any]], bool]:
    def should_stop(row: Mapping[str, Any]) -> bool:
        for name, limit in stop.items():
            value = row.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                is_reached = value <= limit if mode == "min" and name not in COUNTERS else value >= limit
                if is_reached:
                    return True
        return False

    return should_stop


def _report(iteration: Iteration, trial: Mapping[str, Any], folder: RunFolder) -> None:
    """Tell Tune a line of metrics; not before there is a value of the metric that it looks at.

    With pbt, lines without a checkpoint are left out: what another trial goes on from is the newest line that Tune
    knows.
    """
    row = iteration.metrics
    value = row.get(trial["metric"])
    if iteration.summary is not None or not isinstance(value, int | float) or not math.isfinite(value):
        return
    if not trial["mutable"]:
        tune.report(dict(row))
        return
    latest = folder.latest_checkpoint()
    if latest is None or latest[1]["iteration"] != row["iteration"]:
        return
    with tempfile.TemporaryDirectory(prefix="themis-pbt-") as name:
        copy = Path(name)
        shutil.copytree(latest[0], copy / "checkpoints" / latest[0].name)
        for part in COPIED:
            if (folder.path / part).is_dir():
                shutil.copytree(folder.path / part, copy / part)
        (copy / SOURCE_FILE).write_text(json.dumps({"path": str(folder.path), **latest[1]}))
        tune.report(dict(row), checkpoint=tune.Checkpoint.from_directory(str(copy)))


def _take_over(path: Path, experiment: ExperimentConfig) -> bool:
    """Put the state of another trial into this one's folder if pbt says so; tell whether it did.

    A checkpoint of the trial's own stands for a restart: its folder holds at least as much.
    """
    checkpoint = tune.get_checkpoint()
    _finish_takeover(path)
    if checkpoint is None:
        return False
    with checkpoint.as_directory() as name:
        source = json.loads((Path(name) / SOURCE_FILE).read_text())
        if source["path"] == str(path):
            return False
        _prepare_takeover(path, Path(name), experiment)
    _finish_takeover(path)
    return True


def _prepare_takeover(path: Path, source: Path, experiment: ExperimentConfig) -> None:
    """Copy another trial's state beside this one's own, which it does not touch yet."""
    new = path / TAKEOVER
    shutil.rmtree(new, ignore_errors=True)
    for part in TAKEN_OVER:
        if (source / part).is_dir():
            shutil.copytree(source / part, new / part)
        else:
            (new / part).mkdir(parents=True)
    (new / "config.yaml").write_text(dump_config(resolve(experiment)[0]))
    about = json.loads((source / SOURCE_FILE).read_text())
    settings = experiment.model_dump(mode="json", include={"algorithm", "feedback", "reward"})
    row = {"from": about["path"], "num_env_steps": about["num_env_steps"], **settings}
    write_whole(new / SOURCE_FILE, json.dumps(row))


def _finish_takeover(path: Path) -> None:
    """Put a state that was copied as a whole in the place of the trial's own; however often it is interrupted."""
    new = path / TAKEOVER
    if not (new / SOURCE_FILE).is_file():
        shutil.rmtree(new, ignore_errors=True)
        return
    row = json.loads((new / SOURCE_FILE).read_text())
    for part in TAKEN_OVER:
        if (new / part).is_dir():  # else an earlier try put it in its place
            shutil.rmtree(path / part, ignore_errors=True)
            (new / part).rename(path / part)
            if not any((path / part).iterdir()):
                (path / part).rmdir()
    RunFolder(path).rewind_metrics(row["num_env_steps"])
    shutil.copyfile(new / "config.yaml", path / "config.yaml")
    with (path / "takeovers.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    (new / SOURCE_FILE).unlink()
    shutil.rmtree(new)
