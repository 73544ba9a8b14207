"""Whether steps of one environment mean the same in another, where their spaces are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from themis_ray.envs.registry import EnvConfig, EnvSpec, resolve_env
from themis_ray.errors import DataError

__all__ = ["differing_meanings", "read_env_config"]

# What changes the meaning of an observation or an action while spaces may stay the same.
MEANINGS = ("family_wrappers", "wrappers", "frame_stack", "normalize_observations")
# Means and standard deviations are measured on these.
MEASURED_ON = ("id", "kwargs", "horizon")


def differing_meanings(here: EnvConfig, there: EnvConfig, spec: EnvSpec) -> dict[str, tuple[Any, Any]]:
    """Returns values here and there of the settings that give equal spaces another meaning, where they differ."""
    ours, theirs = resolve_env(here, spec), resolve_env(there, spec)
    are_measured = ours.normalize_observations and theirs.normalize_observations
    pairs = {
        f"env.{name}": (getattr(ours, name), getattr(theirs, name))
        for name in (*MEANINGS, *(MEASURED_ON if are_measured else ()))
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def read_env_config(folder: Path) -> EnvConfig | None:
    """Returns the environment in config.yaml of a run or snapshot; None where there is no such file.

    Raises:
        DataError: It cannot be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        return EnvConfig.model_validate(yaml.safe_load(path.read_text())["env"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"the environment in {path} cannot be read ({type(error).__name__}). Mend that file.") from None
