"""Snapshots: what a run has learned and seen by the end of unsupervised exploration, for many runs to start from.

A snapshot is a folder: RLlib's checkpoint, config.yaml, and snapshot.json, which names seed, env steps and the SHA-256
of every file. Nobody was asked anything by then, so teacher, sampler, budget and reward settings are free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from themis_ray.config import MAX_SEED_STEPS, ExperimentConfig, dump_config, load_config
from themis_ray.envs import EnvSpec, get_env_spec, resolve_env
from themis_ray.errors import CheckpointError, ConfigError, RunFolderError
from themis_ray.files import drop_leftovers, whole

__all__ = [
    "Snapshot",
    "adopt_settings",
    "check_snapshot",
    "make_pretraining_config",
    "open_snapshot",
    "prepare_snapshot_folder",
    "write_snapshot",
]

SNAPSHOT_FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """A snapshot whose files are as they were written.

    Attributes:
        path: Its folder.
        config: Resolved configuration of the run that made it.
        num_env_steps: Env steps that it stands for.
    """

    path: Path
    config: ExperimentConfig
    num_env_steps: int

    @property
    def checkpoint_path(self) -> Path:
        """RLlib's checkpoint."""
        return self.path / "checkpoint"


# ---------------------------------------------------------------- writing


def make_pretraining_config(config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration with a run long enough for the exploration that was asked for.

    A longer one is left as it is: how many steps are drawn at random depends on its length.
    """
    num_exploration_steps, num_seed_steps = config.exploration.num_env_steps or 0, config.exploration.num_seed_steps
    least = min(MAX_SEED_STEPS, config.num_env_steps // 20) if num_seed_steps is None else num_seed_steps
    if config.num_env_steps > least + num_exploration_steps:
        return config
    most = MAX_SEED_STEPS if num_seed_steps is None else num_seed_steps
    return config.model_copy(update={"num_env_steps": most + num_exploration_steps + 1})


def prepare_snapshot_folder(path: Path) -> None:
    """Refuse a folder that cannot take a snapshot, before any work is done.

    Raises:
        RunFolderError: It holds something, it cannot be written, or it is the one this program works in.
    """
    if path.resolve() == Path.cwd():
        raise RunFolderError(f"{path} is the folder you are in, which a snapshot cannot replace. Give another --out.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_empty = not any(path.iterdir())
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written ({error.strerror}). Give an --out folder that you may write to."
        ) from None
    if not is_empty:
        raise RunFolderError(f"{path} is not empty. Give another --out, or delete it.")


def write_snapshot(path: Path, algorithm: Any, config: ExperimentConfig) -> Snapshot:
    """Save `algorithm` and its resolved configuration as a whole.

    Raises:
        RunFolderError: The folder cannot be written, or holds something by now.
    """
    drop_leftovers(path)
    try:
        return _write_snapshot(path, algorithm, config)
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written ({error.strerror or error}). Give an --out folder with room that is empty."
        ) from error


def _write_snapshot(path: Path, algorithm: Any, config: ExperimentConfig) -> Snapshot:
    with whole(path) as temporary:
        temporary.mkdir()
        algorithm.save_to_path(str((temporary / "checkpoint").resolve()))
        (temporary / "config.yaml").write_text(dump_config(config))
        about = {
            "format": SNAPSHOT_FORMAT,
            "env_id": config.env.id,
            "algorithm": config.algorithm.name,
            "seed": config.seed,
            "num_env_steps": algorithm.env_steps,
            "files": dict(_digests(temporary)),
        }
        (temporary / "snapshot.json").write_text(json.dumps(about, indent=2) + "\n")
    return Snapshot(path, config, algorithm.env_steps)


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / "snapshot.json":
            with path.open("rb") as file:
                yield path.relative_to(folder).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- reading


def open_snapshot(path: Path) -> Snapshot:
    """Return the snapshot at `path`, after comparing every file with its digest.

    Raises:
        CheckpointError: There is none, it is of another format, or it is damaged.
    """
    if not (path / "snapshot.json").is_file():
        raise CheckpointError(f"{path} is no snapshot (no snapshot.json). Give a folder that themis pretrain wrote.")
    try:
        about = json.loads((path / "snapshot.json").read_text())
        version, num_env_steps, digests = about["format"], int(about["num_env_steps"]), dict(about["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path / 'snapshot.json'} is broken. Make the snapshot anew with themis pretrain."
        ) from None
    if version != SNAPSHOT_FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this program reads format {SNAPSHOT_FORMAT}. Make the snapshot anew with "
            "themis pretrain."
        )
    found = dict(_digests(path))
    damaged = [name for name, digest in digests.items() if found.get(name) != digest]
    if damaged or not digests:
        raise CheckpointError(
            f"{path} is damaged: {', '.join(damaged[:3]) or 'it lists no files'}. Make the snapshot anew with themis "
            "pretrain."
        )
    return Snapshot(path, load_config(path / "config.yaml"), num_env_steps)


def adopt_settings(config: ExperimentConfig, snapshot: Snapshot) -> ExperimentConfig:
    """Return the unresolved `config` with the snapshot's settings where it leaves open what must be the same."""
    theirs = snapshot.config
    algorithm, exploration = config.algorithm, config.exploration
    update: dict[str, Any] = {}
    if algorithm.name == "auto":
        update["name"] = theirs.algorithm.name
    if algorithm.hidden_sizes is None:
        update["hidden_sizes"] = theirs.algorithm.hidden_sizes
    explored = {
        name: value
        for name, value in theirs.exploration.model_dump().items()
        if name not in exploration.model_fields_set or getattr(exploration, name) is None
    }
    return config.model_copy(
        update={
            "snapshot": str(snapshot.path.resolve()),
            "algorithm": algorithm.model_copy(update=update),
            "exploration": exploration.model_copy(update=explored),
        }
    )


def check_snapshot(config: ExperimentConfig, spec: EnvSpec, snapshot: Snapshot) -> None:
    """Refuse a resolved configuration to which the snapshot does not fit.

    Raises:
        ConfigError: A setting of the environment or exploration, the learner or its hidden sizes differ, or the run
            ends with the snapshot.
    """
    theirs = snapshot.config
    our_env, their_env = resolve_env(config.env, spec), resolve_env(theirs.env, get_env_spec(theirs.env))
    wanted: dict[str, tuple[Any, Any]] = {
        f"env.{name}": (value, getattr(their_env, name)) for name, value in our_env.model_dump().items()
    }
    for name in ("name", "hidden_sizes"):
        wanted[f"algorithm.{name}"] = (getattr(config.algorithm, name), getattr(theirs.algorithm, name))
    for name, value in config.exploration.model_dump().items():
        wanted[f"exploration.{name}"] = (value, getattr(theirs.exploration, name))
    for name, (here, there) in wanted.items():
        if here != there:
            raise ConfigError(
                f"the snapshot {snapshot.path} does not fit: {name} is {_show(here)} here and {_show(there)} there. "
                "Use the snapshot's value, or make another with themis pretrain."
            )
    if snapshot.num_env_steps >= config.num_env_steps:
        raise ConfigError(
            f"num_env_steps={config.num_env_steps} was given, but the snapshot {snapshot.path} counts "
            f"{snapshot.num_env_steps} env steps already. Give more."
        )


def _show(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
