"""One table of environment families: which ids belong to one, and how it becomes something to learn from."""

import contextlib
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym

from themis_ray.envs.display import Renderer
from themis_ray.envs.seeding import RenewWorld, RestoreSimulator, SeedGoal
from themis_ray.envs.wrappers import AnyEnv, prepare_atari

__all__ = ["FAMILIES", "Family", "find_family"]

NUM_PROBED_EPISODES = 8

# A Blackjack episode ends by itself: 20 hits on the smallest hand exceed 21. The cliff walks have no limit at all.
TOY_HORIZONS = {"Blackjack-v1": 20, "CliffWalking-v1": 200, "CliffWalkingSlippery-v1": 200}

# For those that name no limit: most tasks of dm_control last so long, and 200 decisions drive past all there is.
DM_CONTROL_HORIZON, HIGHWAY_HORIZON = 1000, 200

# Episodes of these ids last until the time limit whatever the policy does, so nothing has to be added at their end.
NEVER_END_EARLY = re.compile(
    r"(Pendulum|HalfCheetah|Reacher|Pusher|Swimmer|HumanoidStandup)-v\d+|(Fetch|HandManipulate|HandReach)\w+-v\d+"
    r"|Meta-World/.+"
)

# The 62 games of ale_py's ids from before `ALE/`.
LEGACY_GAMES = (
    "Adventure|AirRaid|Alien|Amidar|Assault|Asterix|Asteroids|Atlantis|BankHeist|BattleZone|BeamRider|Berzerk|Bowling"
    "|Boxing|Breakout|Carnival|Centipede|ChopperCommand|CrazyClimber|Defender|DemonAttack|DoubleDunk|ElevatorAction"
    "|Enduro|FishingDerby|Freeway|Frostbite|Gopher|Gravitar|Hero|IceHockey|Jamesbond|JourneyEscape|Kangaroo|Krull"
    "|KungFuMaster|MontezumaRevenge|MsPacman|NameThisGame|Phoenix|Pitfall|Pong|Pooyan|PrivateEye|Qbert|Riverraid"
    "|RoadRunner|Robotank|Seaquest|Skiing|Solaris|SpaceInvaders|StarGunner|Tennis|TimePilot|Tutankham|UpNDown|Venture"
    "|VideoPinball|WizardOfWor|YarsRevenge|Zaxxon"
)
MUJOCO_BODIES = (
    "Reacher|Pusher|InvertedPendulum|InvertedDoublePendulum|HalfCheetah|Hopper|Swimmer|Walker2d|Ant|Humanoid"
    "|HumanoidStandup"
)


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
    """Returns the emulator's own limit in env steps (108 000 screens, most often 4 a step)."""
    num_screens = env.spec.kwargs.get("max_num_frames_per_episode") if env.spec is not None else None
    if num_screens is None:
        return None
    inner: Any = env.unwrapped
    skipped = inner._frameskip  # ale_py has no public way to it
    least = skipped[0] if isinstance(skipped, tuple) else skipped  # of a pair, a number is drawn for each step
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.AtariPreprocessing):
            least *= layer.frame_skip
        layer = layer.env
    return int(num_screens) // int(least)


def dm_control_horizon(env: AnyEnv) -> int | None:
    """Returns the limit of a suite task in steps, or that of a locomotion task in seconds over a step's seconds.

    The two LQR tasks have none and get that of the others.
    """
    inner: Any = env.unwrapped
    task: Any = inner._env  # shimmy has no public way to it
    steps = vars(task).get("_step_limit")
    if steps is None:  # locomotion
        steps = task._time_limit / task.control_timestep()
    return math.ceil(float(steps)) if math.isfinite(steps) else DM_CONTROL_HORIZON


def metaworld_horizon(env: AnyEnv) -> int | None:
    """Returns the limit that a Meta-World task holds itself."""
    inner: Any = env.unwrapped
    return int(inner.max_path_length)


def highway_horizon(env: AnyEnv) -> int | None:
    """Returns the seconds of an episode times decisions per second, 200 decisions where it names no seconds."""
    inner: Any = env.unwrapped
    seconds = inner.config.get("duration")
    return HIGHWAY_HORIZON if seconds is None else math.ceil(float(seconds * inner.config["policy_frequency"]))


def register_metaworld_tasks() -> None:
    """Registers each of the fifty tasks as `Meta-World/TASK` too, so that an id alone names a task."""
    import metaworld

    for name in metaworld.ALL_V3_ENVIRONMENTS:
        if f"Meta-World/{name}" not in gym.registry:
            gym.register(f"Meta-World/{name}", partial(gym.make, "Meta-World/MT1", env_name=name))


def observe_image_only(env: AnyEnv) -> AnyEnv:
    """Returns a MiniGrid environment that observes its (7, 7, 3) uint8 view, without direction and mission."""
    from minigrid.wrappers import ImgObsWrapper  # Slow to import and needed by two families only.

    wrapped: AnyEnv = ImgObsWrapper(env)
    return wrapped


def _same_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(kwargs)


def _atari_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves frame skipping of screens to `prepare_atari`, which pools the last two."""
    return dict(kwargs) if kwargs.get("obs_type") == "ram" else {"frameskip": 1, **kwargs}


def _metaworld_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a task's fifty goals the same in every process."""
    return {"seed": 0, **kwargs}


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
        frame_stack: How many images are joined unless the config says otherwise; other observations never are.
        prepare_kwargs: Adds what `wrappers` need to the kwargs of the user.
        register: Called after the import of `module`, for ids that it does not register itself.
        is_animated: Whether frames hold what is no part of the state and moves on with each frame that is drawn, such
            as sparks or the direction a taxi faces, so that every frame since the reset has to be drawn.
        renderer: What draws its frames, which decides what has to be set where there is no display.
    """

    name: str
    pattern: str
    description: str
    module: str | None = None
    extra: str | None = None
    fixed_horizon: bool = True
    find_horizon: Callable[[AnyEnv], int | None] = spec_horizon
    wrappers: tuple[Callable[[AnyEnv], AnyEnv], ...] = ()
    frame_stack: int = 1
    prepare_kwargs: Callable[[Mapping[str, Any]], dict[str, Any]] = _same_kwargs
    register: Callable[[], None] | None = None
    is_animated: bool = False
    renderer: Renderer | None = None

    def matches(self, env_id: str) -> bool:
        """Tells whether `env_id` belongs to this family; the first match of `FAMILIES` counts."""
        return re.fullmatch(self.pattern, env_id) is not None


_ROWS = (
    Family(
        "classic",
        r"(CartPole|MountainCar|MountainCarContinuous|Pendulum|Acrobot)-v\d+",
        "classic control: small vectors, fast",
        renderer="pygame",
    ),
    Family(
        "toy_text",
        r"(Blackjack|FrozenLake|FrozenLake8x8|CliffWalking|CliffWalkingSlippery|Taxi)-v\d+",
        "toy text: discrete states as one-hot vectors",
        find_horizon=toy_horizon,
        is_animated=True,
        renderer="pygame",
    ),
    Family(
        "box2d",
        r"(LunarLander|LunarLanderContinuous|BipedalWalker|BipedalWalkerHardcore|CarRacing)-v\d+",
        "Box2D: landing, walking, racing",
        wrappers=(RenewWorld,),
        is_animated=True,
        renderer="pygame",
    ),
    Family(
        "mujoco",
        rf"({MUJOCO_BODIES})-v\d+",
        "MuJoCo: continuous control",
        renderer="mujoco",
    ),
    Family(
        "atari",
        rf"ALE/.+|({LEGACY_GAMES})(NoFrameskip)?-v[04]",
        "Atari 2600: four stacked gray 84x84 frames, or the RAM",
        module="ale_py",
        fixed_horizon=False,
        find_horizon=atari_horizon,
        wrappers=(prepare_atari,),
        frame_stack=4,
        prepare_kwargs=_atari_kwargs,
    ),
    Family(
        "minigrid",
        r"MiniGrid-.+",
        "MiniGrid: 7x7x3 views of a grid world",
        module="minigrid",
        find_horizon=grid_horizon,
        wrappers=(observe_image_only,),
        renderer="pygame",
    ),
    Family(
        "babyai",
        r"BabyAI-.+",
        "BabyAI: MiniGrid levels with missions, the mission not observed",
        module="minigrid",
        find_horizon=grid_horizon,
        wrappers=(observe_image_only,),
        renderer="pygame",
    ),
    Family(
        "robotics",
        r"(Fetch|HandManipulate|HandReach|AdroitHand|PointMaze_|AntMaze_|FrankaKitchen)\w*-v\d+",
        "gymnasium-robotics: Fetch, Shadow hand, Adroit, mazes, kitchen",
        module="gymnasium_robotics",
        extra="robotics",
        wrappers=(RestoreSimulator,),
        renderer="mujoco",
    ),
    Family(
        "dm_control",
        r"dm_control/.+",
        "dm_control through shimmy: the suite that B-Pref uses, and locomotion",
        module="shimmy",
        extra="dm-control",
        find_horizon=dm_control_horizon,
        renderer="mujoco",
    ),
    Family(
        "metaworld",
        r"Meta-World/.+",
        "Meta-World: fifty manipulation tasks, each an id",
        module="metaworld",
        extra="metaworld",
        find_horizon=metaworld_horizon,
        wrappers=(SeedGoal,),
        prepare_kwargs=_metaworld_kwargs,
        register=register_metaworld_tasks,
        renderer="mujoco",
    ),
    Family(
        "highway",
        r"(highway|highway-fast|exit|intersection|intersection-multi-agent|lane-keeping|merge|merge-generic|parking"
        r"|parking-ActionRepeat|parking-parked|racetrack|racetrack-large|racetrack-oval|roundabout|roundabout-generic"
        r"|two-way|u-turn)-v\d+",
        "highway-env: decisions in traffic",
        module="highway_env",
        extra="highway",
        find_horizon=highway_horizon,
        renderer="pygame",
    ),
    Family(
        "other",
        r"(?s:.*)",
        "any other registered id, module:Class and module:id",
        fixed_horizon=False,
    ),
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in _ROWS}


def find_family(env_id: str) -> Family:
    """Returns the family of an id; `other` where no row claims it."""
    return next(family for family in FAMILIES.values() if family.matches(env_id))
