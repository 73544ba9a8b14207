"""One table of environment families: which ids belong to one, and how it becomes something to learn from."""

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from themis_ray.envs.observations import MIN_IMAGE_SIDE
from themis_ray.envs.wrappers import ATARI_FRAME_SKIP, AnyEnv, stack_atari_frames

__all__ = ["FAMILIES", "MIN_IMAGE_SIDE", "Family", "find_family"]

NUM_PROBED_EPISODES = 8

# A Blackjack episode ends by itself: 20 hits on the smallest hand exceed 21. The cliff walks have no limit at all.
TOY_HORIZONS = {"Blackjack-v1": 20, "CliffWalking-v1": 200, "CliffWalkingSlippery-v1": 200}

# Their episodes last until the time limit whatever the policy does, so nothing has to be added at their end.
NEVER_END_EARLY = re.compile(r"(Pendulum|HalfCheetah|Reacher|Pusher|Swimmer|HumanoidStandup)-v\d+")

PYGAME_HEADLESS = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}


def spec_horizon(env: AnyEnv) -> int | None:
    """Returns the env steps per episode that the id is registered with, None where it has no limit."""
    return gym.spec(env.spec.id).max_episode_steps if env.spec is not None and env.spec.id in gym.registry else None


def toy_horizon(env: AnyEnv) -> int | None:
    """Returns the registered limit, or the one of `TOY_HORIZONS`."""
    return spec_horizon(env) or TOY_HORIZONS.get(env.spec.id if env.spec is not None else "")


def grid_horizon(env: AnyEnv) -> int | None:
    """Returns the limit a MiniGrid environment holds itself.

    BabyAI sets a limit at each reset, by the mission; the longest of eight seeded episodes is taken.
    """
    inner: Any = env.unwrapped
    horizon = int(inner.max_steps)
    if horizon == 0:
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints every mission it rejects.
            for seed in range(NUM_PROBED_EPISODES):
                env.reset(seed=seed)
                horizon = max(horizon, int(inner.max_steps))
    return horizon


def atari_horizon(env: AnyEnv) -> int | None:
    """Returns the emulator's own limit in env steps (108 000 screens, 4 a step)."""
    num_screens = env.spec.kwargs.get("max_num_frames_per_episode") if env.spec is not None else None
    return None if num_screens is None else int(num_screens) // ATARI_FRAME_SKIP


def observe_image_only(env: AnyEnv) -> AnyEnv:
    """Returns a MiniGrid environment that observes its (7, 7, 3) uint8 view, without direction and mission."""
    from minigrid.wrappers import ImgObsWrapper  # Slow to import and needed by two families only.

    wrapped: AnyEnv = ImgObsWrapper(env)
    return wrapped


def _same_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(kwargs)


def _atari_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves frame skipping of screens to `stack_atari_frames`, which pools the last two."""
    return dict(kwargs) if kwargs.get("obs_type") == "ram" else {"frameskip": 1, **kwargs}


@dataclass(frozen=True)
class Family:
    """What a set of environment ids has in common.

    Attributes:
        name: What `list_envs` and reports call it.
        pattern: A regular expression that matches the whole id.
        description: One line for people.
        module: Imported before an id is looked up, so that its ids are registered; None for gymnasium's own.
        extra: The extra of this package that installs it; None where the default install does.
        fixed_horizon: Whether episodes have a fixed horizon unless the config says otherwise.
        find_horizon: The env steps per episode of an environment made without time limit; None where unknown.
        wrappers: Applied in order to a new environment, before observations are standardised.
        prepare_kwargs: Adds what `wrappers` need to the kwargs of the user.
        headless_environment: Environment variables to set, if unset, before frames are drawn without a display.
    """

    name: str
    pattern: str
    description: str
    module: str | None = None
    extra: str | None = None
    fixed_horizon: bool = True
    find_horizon: Callable[[AnyEnv], int | None] = spec_horizon
    wrappers: tuple[Callable[[AnyEnv], AnyEnv], ...] = ()
    prepare_kwargs: Callable[[Mapping[str, Any]], dict[str, Any]] = _same_kwargs
    headless_environment: Mapping[str, str] = field(default_factory=dict)

    def matches(self, env_id: str) -> bool:
        """Tells whether `env_id` belongs to this family; the first match of `FAMILIES` counts."""
        return re.fullmatch(self.pattern, env_id) is not None


_ROWS = (
    Family(
        "classic",
        r"(CartPole|MountainCar|MountainCarContinuous|Pendulum|Acrobot)-v\d+",
        "classic control: small vectors, fast",
        headless_environment=PYGAME_HEADLESS,
    ),
    Family(
        "toy_text",
        r"(Blackjack|FrozenLake|FrozenLake8x8|CliffWalking|CliffWalkingSlippery|Taxi)-v\d+",
        "toy text: discrete states as one-hot vectors",
        find_horizon=toy_horizon,
        headless_environment=PYGAME_HEADLESS,
    ),
    Family(
        "box2d",
        r"(LunarLander|LunarLanderContinuous|BipedalWalker|BipedalWalkerHardcore|CarRacing)-v\d+",
        "Box2D: landing, walking, racing",
        headless_environment=PYGAME_HEADLESS,
    ),
    Family(
        "mujoco",
        r"(Reacher|Pusher|InvertedPendulum|InvertedDoublePendulum|HalfCheetah|Hopper|Swimmer|Walker2d|Ant|Humanoid"
        r"|HumanoidStandup)-v\d+",
        "MuJoCo: continuous control",
        headless_environment={"MUJOCO_GL": "egl"},
    ),
    Family(
        "atari",
        r"ALE/.+",
        "Atari 2600: four stacked gray 84x84 frames, or the RAM",
        module="ale_py",
        fixed_horizon=False,
        find_horizon=atari_horizon,
        wrappers=(stack_atari_frames,),
        prepare_kwargs=_atari_kwargs,
    ),
    Family(
        "minigrid",
        r"MiniGrid-.+",
        "MiniGrid: 7x7x3 views of a grid world",
        module="minigrid",
        find_horizon=grid_horizon,
        wrappers=(observe_image_only,),
    ),
    Family(
        "babyai",
        r"BabyAI-.+",
        "BabyAI: MiniGrid levels with missions, the mission not observed",
        module="minigrid",
        find_horizon=grid_horizon,
        wrappers=(observe_image_only,),
    ),
    Family(
        "other",
        r".+",
        "any other registered id, module:Class and module:id",
        fixed_horizon=False,
    ),
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in _ROWS}


def find_family(env_id: str) -> Family:
    """Returns the family of an id; `other` where no row claims it."""
    return next(family for family in FAMILIES.values() if family.matches(env_id))
