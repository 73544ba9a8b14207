"""What every environment looks like: one row each, made by making it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from gymnasium import spaces

from themis_ray.envs import FAMILIES, EnvConfig, EnvSpec, get_env_spec
from themis_ray.errors import ThemisError

__all__ = ["describe_actions", "describe_env", "describe_observations", "list_rows"]

CHUNK_SIZE = 8


def describe_observations(spec: EnvSpec) -> str:
    """Returns kind and shape of the observations, such as `image 84x84x4`."""
    shape = "x".join(map(str, spec.observation_space.shape))
    return f"{spec.observation_kind} {shape}"


def describe_actions(space: spaces.Space[Any]) -> str:
    """Returns the type and size of an action space, such as `Discrete 6` or `Box 6`."""
    if isinstance(space, spaces.Discrete):
        return f"Discrete {space.n}"
    if isinstance(space, spaces.MultiDiscrete):
        return f"MultiDiscrete {'x'.join(map(str, space.nvec))}"
    return f"{type(space).__name__} {'x'.join(map(str, space.shape or ()))}"


def describe_env(env_id: str) -> dict[str, Any]:
    """Returns the row of an environment: id, family, observation, action, horizon, is_fixed_horizon, extra, error.

    An environment that cannot be made has a row too, with the reason as `error` and nothing else known.
    """
    row: dict[str, Any] = {"id": env_id, "family": None, "observation": None, "action": None, "horizon": None}
    row |= {"is_fixed_horizon": None, "extra": None, "error": None}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some packages greet
            spec = get_env_spec(EnvConfig(id=env_id))
    except ThemisError as error:
        return row | {"error": str(error)}
    return row | {
        "family": spec.family,
        "observation": describe_observations(spec),
        "action": describe_actions(spec.action_space),
        "horizon": spec.horizon,
        "is_fixed_horizon": spec.is_fixed_horizon,
        "extra": FAMILIES[spec.family].extra,
    }


def list_rows(env_ids: Sequence[str], num_jobs: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of environments in their order, made in `num_jobs` processes."""
    if num_jobs == 1:
        yield from map(describe_env, env_ids)
        return
    with ProcessPoolExecutor(num_jobs, get_context("spawn")) as pool:
        yield from pool.map(describe_env, env_ids, chunksize=CHUNK_SIZE)
