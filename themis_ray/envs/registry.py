"""Makes environments from one config and tells what they are like."""

import contextlib
import difflib
import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from pydantic import BaseModel, ConfigDict, Field

from themis_ray.envs.display import prepare_drawing, prepare_import
from themis_ray.envs.families import FAMILIES, NEVER_END_EARLY, Family, find_family
from themis_ray.envs.observations import ObservationKind, infer_observation_kind
from themis_ray.envs.options import apply_wrappers, normalize_observations, stack_frames
from themis_ray.envs.wrappers import AnyEnv, FixedHorizon, standardise_actions, standardise_observations
from themis_ray.errors import ConfigError, UnknownNameError, lookup

__all__ = ["EnvConfig", "EnvSpec", "get_env_spec", "list_envs", "make_env", "resolve_env"]

MAX_SUGGESTIONS = 5

MUJOCO_PY_IDS = (
    r"(Reacher|Pusher|Inverted(Double)?Pendulum|HalfCheetah|Hopper|Swimmer|Walker2d|Ant|Humanoid(Standup)?)-v[23]"
)

# Registered ids that no install makes: JAX, the old gym, mujoco_py, mujoco<3, data missing in the wheel; and sets of
# Meta-World tasks, which are vectors of environments or want more than an id; and the names that RLlib's env runners
# give to whatever they run.
NOT_MAKEABLE = re.compile(
    r"rllib-(single|multi)-agent-env-v0|(phys2d|tabular)/.+|GymV\d+Environment-v0|Pusher-v4|MiniGrid-WFC-.+|"
    + MUJOCO_PY_IDS
    + r"|Fetch\w+-v1|Hand(Manipulate|Reach)\w*-v0|dm_control/compatibility-env-v0"
    + r"|Meta-World/(M[TL]\d+.*|custom-.+|goal_.+)"
)

# Published true-reward returns of trained agents, deterministic policy: (mean return, where it comes from). All from
# the table of DLR-RM/rl-baselines3-zoo, benchmark.md; later versions of an environment are not comparable.
REFERENCE_RETURNS: dict[str, tuple[float, str]] = {
    "Acrobot-v1": (-73.506, "PPO 1M steps, rl-baselines3-zoo"),
    "BipedalWalker-v3": (297.668, "SAC 500k steps, rl-baselines3-zoo"),
    "CartPole-v1": (500.0, "PPO 100k steps, rl-baselines3-zoo"),
    "MountainCar-v0": (-100.849, "DQN 120k steps, rl-baselines3-zoo"),
    "MountainCarContinuous-v0": (94.679, "SAC 50k steps, rl-baselines3-zoo"),
    "Pendulum-v1": (-156.995, "SAC 20k steps, rl-baselines3-zoo"),
}


class EnvConfig(BaseModel):
    """Which environment, and how its episodes end."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    id: str = Field(min_length=1, description="A gymnasium id, module:id, or module:Class of an environment.")
    kwargs: dict[str, Any] = Field(default={}, description="Keyword arguments of the environment itself.")
    fixed_horizon: bool | None = Field(
        default=None, description="Whether every episode lasts `horizon` env steps; None: by family."
    )
    horizon: int | None = Field(
        default=None, ge=1, description="Most env steps per episode; None: the environment's own limit."
    )
    family_wrappers: bool = Field(
        default=True, description="Whether the family's preparation is applied, such as Atari's gray 84x84 screens."
    )
    wrappers: tuple[str, ...] = Field(
        default=(), description="Import paths module:Name of wrappers that are applied after those of the family."
    )
    frame_stack: int | None = Field(
        default=None, ge=1, description="Observations joined into one; None: 4 for Atari's screens, else 1."
    )
    normalize_observations: bool = Field(
        default=False, description="Whether vectors get mean 0 and standard deviation 1 of a thousand random steps."
    )


@dataclass(frozen=True)
class EnvSpec:
    """What a learner and a reward model need to know about an environment made by `make_env`.

    Attributes:
        id: The id of the config.
        family: Name of its family.
        observation_space: A Box: rank 1 float32, which is a MixedBox where it holds images, or rank 3.
        action_space: Box, Discrete that starts at 0, or MultiDiscrete.
        observation_kind: Which network fits the observations.
        horizon: Most env steps per episode; None where there is no limit or it is not known.
        is_fixed_horizon: Whether every episode lasts exactly `horizon` env steps.
        reference_return: A good true-reward return; None where no source is at hand.
        reference_source: Where that number comes from; empty without one.
    """

    id: str
    family: str
    observation_space: spaces.Box
    action_space: spaces.Box | spaces.Discrete[Any] | spaces.MultiDiscrete
    observation_kind: ObservationKind
    horizon: int | None
    is_fixed_horizon: bool
    reference_return: float | None
    reference_source: str

    @property
    def action_dtype(self) -> np.dtype[Any]:
        """What a run stores actions in: RLlib hands those of a policy over in 32 bits, whatever the space says."""
        return np.dtype(np.float32 if isinstance(self.action_space, spaces.Box) else np.int32)


def list_envs(family: str | None = None) -> list[str]:
    """Lists the registered ids that the installed packages can make.

    Args:
        family: Only ids of this family; None for all that are installed.

    Raises:
        UnknownNameError: There is no such family.
        ConfigError: The family asked for is not installed.
    """
    if family is None:
        families = installed_families()
    else:
        families = [lookup("environment family", family, FAMILIES)]
        _import_family(families[0])
    names = {row.name for row in families}
    return sorted(
        env_id for env_id in gym.registry if find_family(env_id).name in names and not NOT_MAKEABLE.fullmatch(env_id)
    )


def installed_families() -> list[Family]:
    """Returns the families whose packages can be imported, and imports these, so that their ids are registered."""
    found = []
    for family in FAMILIES.values():
        with contextlib.suppress(ConfigError):
            _import_family(family)
            found.append(family)
    return found


def make_env(config: EnvConfig, *, render_mode: str | None = None) -> AnyEnv:
    """Makes an environment whose observations are a Box and whose rewards are the true ones.

    Args:
        config: Which one.
        render_mode: As in gymnasium, e.g. "rgb_array"; None renders nothing.

    Raises:
        UnknownNameError: No environment has this id.
        ConfigError: A package is missing, the kwargs are refused, a space is not supported, or a fixed horizon is
            asked for where no horizon is known.
    """
    return _make(config, render_mode)[0]


def get_env_spec(config: EnvConfig) -> EnvSpec:
    """Describes what `make_env(config)` returns, by making one and closing it.

    Raises:
        UnknownNameError: As in `make_env`.
        ConfigError: As in `make_env`.
    """
    env, family, horizon, is_fixed_horizon = _make(config, None)
    observation_space, action_space = env.observation_space, env.action_space
    _close(env)
    assert isinstance(observation_space, spaces.Box), observation_space
    assert isinstance(action_space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete), action_space
    reference_return, reference_source = REFERENCE_RETURNS.get(config.id, (None, ""))
    return EnvSpec(
        id=config.id,
        family=family.name,
        observation_space=observation_space,
        action_space=action_space,
        observation_kind=infer_observation_kind(observation_space),
        horizon=horizon,
        is_fixed_horizon=is_fixed_horizon,
        reference_return=reference_return,
        reference_source=reference_source,
    )


def resolve_env(config: EnvConfig, spec: EnvSpec) -> EnvConfig:
    """Returns the config with choices that were left open filled in, as in the environment that `spec` describes."""
    num_frames = _num_stacked_frames(config, FAMILIES[spec.family], spec.observation_kind)
    chosen = {"fixed_horizon": spec.is_fixed_horizon, "horizon": spec.horizon, "frame_stack": num_frames}
    is_open = {name: value for name, value in chosen.items() if getattr(config, name) is None}
    return config.model_copy(update=is_open)


def _num_stacked_frames(config: EnvConfig, family: Family, kind: ObservationKind) -> int:
    return config.frame_stack or (family.frame_stack if kind == "image" else 1)


def _make(config: EnvConfig, render_mode: str | None) -> tuple[AnyEnv, Family, int | None, bool]:
    """Returns the wrapped environment, its family, its horizon, and whether that is fixed."""
    family, target = _find_target(config.id)
    if render_mode not in (None, "human"):
        prepare_drawing(family.renderer)
    env = _create(config, family, target, render_mode)
    try:
        horizon = family.find_horizon(env) if config.horizon is None else config.horizon
        is_fixed_horizon = family.fixed_horizon if config.fixed_horizon is None else config.fixed_horizon
        env = _observed(env, config, family)
        if is_fixed_horizon:
            if horizon is None:
                raise ConfigError(
                    f"environment {config.id!r} has no time limit of its own, so a fixed horizon has no length. "
                    "Set horizon to a number of env steps, or fixed_horizon to false."
                )
            # A wrapper of the user may end episodes of any environment.
            never_ends_early = NEVER_END_EARLY.fullmatch(config.id) is not None and not config.wrappers
            env = gym.wrappers.TimeLimit(env, horizon) if never_ends_early else FixedHorizon(env, horizon)
        elif horizon is not None:
            env = gym.wrappers.TimeLimit(env, horizon)
    except ConfigError:
        _close(env)
        raise
    return env, family, horizon, is_fixed_horizon


def _observed(env: AnyEnv, config: EnvConfig, family: Family) -> AnyEnv:
    """Returns the environment with standard observations and actions, stacked and normalised as asked for."""
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env, name, None), spaces.Space):
            raise ConfigError(
                f"environment {config.id!r} has no {name}. Set it in its constructor, to a space of gymnasium."
            )
    env = standardise_actions(standardise_observations(env))
    env = stack_frames(env, _num_stacked_frames(config, family, infer_observation_kind(env.observation_space)))
    if not config.normalize_observations:
        return env
    plain = config.model_copy(update={"normalize_observations": False, "fixed_horizon": False})
    return normalize_observations(env, plain.model_dump_json(), lambda: make_env(plain))


def _create(config: EnvConfig, family: Family, target: str | Callable[..., AnyEnv], render_mode: str | None) -> AnyEnv:
    """Makes the environment with its family's wrappers and without a time limit."""
    if isinstance(target, str) and "max_episode_steps" in config.kwargs:
        raise ConfigError(
            f"env.kwargs.max_episode_steps={config.kwargs['max_episode_steps']} would end episodes before their "
            "horizon. Set env.horizon instead, a number of env steps."
        )
    kwargs = family.prepare_kwargs(config.kwargs) if config.family_wrappers else dict(config.kwargs)
    construct = target if callable(target) else partial(gym.make, target, max_episode_steps=-1)
    try:
        env = _construct(construct, kwargs, render_mode)
        for wrapper in family.wrappers if config.family_wrappers else ():
            env = wrapper(env)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ConfigError(f"environment {config.id!r} needs a package that is not here: {error}") from error
    except Exception as error:  # The environment's own code: whatever it says, the user chose the id and the kwargs.
        raise ConfigError(
            f"environment {config.id!r} cannot be made with kwargs {config.kwargs}: {type(error).__name__}: {error}. "
            "Check kwargs against its documentation."
        ) from error
    if not isinstance(env, gym.Env):
        raise ConfigError(
            f"{config.id!r} makes a {type(env).__name__}. Give a class or a function that makes a gymnasium.Env."
        )
    return apply_wrappers(env, config.wrappers)


def _construct(construct: Callable[..., AnyEnv], kwargs: dict[str, Any], render_mode: str | None) -> AnyEnv:
    """Makes the environment, and sets its render mode where it draws without letting its constructor be told."""
    if render_mode is None:
        return construct(**kwargs)
    try:
        return construct(**kwargs, render_mode=render_mode)
    except TypeError as error:
        if "unexpected keyword argument 'render_mode'" not in str(error):
            raise
    env = construct(**kwargs)
    inner: Any = env.unwrapped
    inner.render_mode = render_mode
    return env


def _find_target(env_id: str) -> tuple[Family, str | Callable[..., AnyEnv]]:
    """Returns the family, and a registered id or the class or function that `module:Class` names."""
    module_name, colon, name = env_id.rpartition(":")
    family = find_family(name)
    _import_family(family)
    if not colon:
        if env_id not in gym.registry:
            raise _unknown_id(env_id, env_id, gym.registry)
        return family, env_id
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"environment {env_id!r}: module {module_name!r} cannot be imported ({error}). "
            "Install its package with pip install, or put its folder on PYTHONPATH."
        ) from error
    except Exception as error:  # the user's own code, or a name that no module can have
        raise ConfigError(
            f"environment {env_id!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}). "
            "Write an id, module:id or module:Class of a module that can be."
        ) from error
    if name in gym.registry:
        return family, name
    if name not in vars(module):
        public_names = [known for known in vars(module) if not known.startswith("_")]
        raise _unknown_id(env_id, name, [*gym.registry, *public_names])
    target: Callable[..., AnyEnv] = vars(module)[name]
    if not callable(target):
        raise ConfigError(
            f"{env_id!r} is a {type(target).__name__}. Give a class or a function that makes a gymnasium.Env."
        )
    return FAMILIES["other"], target


def _unknown_id(env_id: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Returns an error with the closest known ids; there are too many to list."""
    installed_families()
    close = difflib.get_close_matches(name, list(known), n=MAX_SUGGESTIONS)
    suggestion = f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
    return UnknownNameError(
        f"no environment {env_id!r}.{suggestion} Known: see gymnasium.registry; for an id that another package "
        "registers, write module:id."
    )


def _import_family(family: Family) -> None:
    """Imports the module that registers a family's ids."""
    if family.module is None:
        return
    prepare_import(family.renderer)
    try:
        importlib.import_module(family.module)
    except ImportError as error:
        extra = f"[{family.extra}]" if family.extra else ""
        raise ConfigError(
            f"{family.name} environments need {family.module!r}, which cannot be imported ({error}). "
            f"Install with: pip install 'themis-ray{extra}'."
        ) from error
    if family.register is not None:
        family.register()


def _close(env: AnyEnv) -> None:
    env.close()  # type: ignore[no-untyped-call]
