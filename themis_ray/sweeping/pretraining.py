"""Unsupervised exploration, once for all trials that differ in labels only."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from themis_ray.config import ExperimentConfig, resolve
from themis_ray.snapshots import check_snapshot, make_pretraining_config, open_snapshot
from themis_ray.storage import Storage
from themis_ray.sweeping.trials import Trial, bundles_of, name_of_env

__all__ = ["SharedExploration", "fetch_snapshot", "is_made", "share_exploration", "start_from"]

# What nobody has used by the end of exploration, or what leaves no trace in a snapshot.
_LABELS = ("teacher", "feedback", "reward", "preset", "learn_reward")
_BOOKKEEPING = ("tracking", "num_evaluation_episodes", "checkpoint_interval", "num_checkpoints_kept", "resources")


@dataclass(frozen=True)
class SharedExploration:
    """One snapshot to be made, and the trials that start from it."""

    path: Path
    config: ExperimentConfig
    names: tuple[str, ...]

    def as_trial(self) -> Trial:
        """Return the run that makes the snapshot."""
        config = self.config.model_copy(update={"learn_reward": False})
        return Trial(f"{self.path.parent.name}/{self.path.name}", config, bundles_of(config), {})


def share_exploration(trials: Sequence[Trial], snapshots: Path) -> list[SharedExploration]:
    """Return the snapshots that pay: of exploration that two trials or more would do alike.

    Trials without exploration or reward model, and those that start from a policy that exists, are left alone.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        config = trial.config
        if config.exploration.num_env_steps and config.has_reward_model and config.snapshot is None:
            key = config.model_dump_json(exclude={*_LABELS, *_BOOKKEEPING})
            groups.setdefault(key, []).append(trial)
    shared: list[SharedExploration] = []
    for group in groups.values():
        if len(group) < 2 or group[0].config.algorithm.reference is not None:
            continue
        config = group[0].config
        name = f"{name_of_env(config.env.id)}-{config.algorithm.name}-s{config.seed}"
        num_before = sum(other.path.name.partition("+")[0] == name for other in shared)
        path = snapshots / (f"{name}+{num_before + 1}" if num_before else name)
        shared.append(SharedExploration(path, make_pretraining_config(config), tuple(trial.name for trial in group)))
    return shared


def start_from(trial: Trial, shared: SharedExploration) -> Trial:
    """Return the trial with the snapshot to start from, checked like `themis train --from`."""
    config, spec = resolve(trial.config.model_copy(update={"snapshot": str(shared.path.resolve())}))
    check_snapshot(config, spec, open_snapshot(shared.path))
    return replace(trial, config=config)


def is_made(shared: SharedExploration) -> bool:
    """Tell whether the snapshot is there, which it is as a whole or not at all."""
    return (shared.path / "snapshot.json").is_file()


def fetch_snapshot(path: Path, root: Path, storage: Storage) -> None:
    """Read the snapshot at `path`, below `root`, from a sweep's storage, if it is there and not yet here."""
    if (path / "snapshot.json").is_file():
        return
    source = storage.child(path.relative_to(root).as_posix())
    if source.read("snapshot.json") is None:
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    source.pull(temporary)
    try:
        temporary.replace(path)
    except OSError:
        # Another trial of this machine was faster.
        shutil.rmtree(temporary)
