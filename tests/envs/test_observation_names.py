import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from themis_ray.envs import EnvConfig, action_names, find_family, list_envs, make_env, observation_names

WITH_NAMES = [
    *(env_id for family in ("classic", "toy_text", "mujoco") for env_id in list_envs(family)),
    *(env_id for env_id in list_envs("box2d") if not env_id.startswith("CarRacing")),
]


def names_of(env_id: str, **settings: object) -> tuple[str, ...] | None:
    config = EnvConfig(id=env_id, **settings)
    env = make_env(config)
    try:
        return observation_names(env, env_id, find_family(env_id.rpartition(":")[2]).name)
    finally:
        env.close()


class Nested(gym.Env):
    """Observes a bit of everything."""

    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "arm_position": spaces.Box(-1, 1, (3,)),
                "height": spaces.Box(-1, 1, (1,)),
                "mode": spaces.Discrete(2, start=1),
                "wheel": spaces.MultiDiscrete([2, 3]),
                "map": spaces.Box(0, 1, (2, 2)),
            }
        )

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


class Plain(Nested):
    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("env_id", WITH_NAMES)
def test_every_input_of_the_default_families_has_a_name_of_its_own(env_id: str) -> None:
    env = make_env(EnvConfig(id=env_id))
    family = find_family(env_id).name
    names = observation_names(env, env_id, family)
    assert names is not None
    assert env.observation_space.shape == (len(names),)
    assert len(set(names)) == len(names)
    assert all(name == name.strip() and name for name in names)
    if family == "mujoco":
        motors = action_names(env, env_id, family)
        assert motors is not None
        assert env.action_space.shape == (len(motors),)
        assert len(set(motors)) == len(motors)
    env.close()


def test_names_of_joints_stand_where_their_numbers_are() -> None:
    """A joint is moved by hand, and the number of its name, and no other, changes."""
    env = make_env(EnvConfig(id="Humanoid-v5", fixed_horizon=False))
    names = observation_names(env, "Humanoid-v5", "mujoco")
    assert names is not None
    inner = env.unwrapped
    inner.reset(seed=0)
    for joint in ("abdomen_z", "left_knee"):
        before = inner._get_obs()
        inner.data.qpos[inner.model.joint(joint).qposadr[0]] += 0.1
        changed = np.flatnonzero(inner._get_obs() != before)
        assert [names[row] for row in changed] == [f"{joint} angle".replace("_", " ")]
        before = inner._get_obs()
        inner.data.qvel[inner.model.joint(joint).dofadr[0]] += 0.1
        changed = np.flatnonzero(inner._get_obs() != before)
        assert [names[row] for row in changed] == [f"{joint} velocity".replace("_", " ")]
    before = inner._get_obs()
    inner.data.cfrc_ext[inner.model.body("pelvis").id, 5] += 1.0
    changed = np.flatnonzero(inner._get_obs() != before)
    assert [names[row] for row in changed] == ["pelvis contact force z"]
    env.close()


def test_positions_that_are_not_left_out_have_names() -> None:
    short = names_of("HalfCheetah-v5")
    whole = names_of("HalfCheetah-v5", kwargs={"exclude_current_positions_from_observation": False})
    assert short is not None
    assert whole == ("rootx position", *short)


def test_motors_are_called_after_their_joints() -> None:
    env = make_env(EnvConfig(id="Walker2d-v5"))
    assert action_names(env, "Walker2d-v5", "mujoco") == (
        *("thigh", "leg", "foot"),
        *("thigh left", "leg left", "foot left"),
    )
    env.close()


def test_the_mark_of_a_fixed_horizon_has_a_name() -> None:
    plain = names_of("CartPole-v1", fixed_horizon=False)
    assert plain == ("cart position", "cart velocity", "pole angle", "pole velocity")
    assert names_of("CartPole-v1", fixed_horizon=True) == (*plain, "episode is over")


def test_stacked_observations_say_how_old_they_are() -> None:
    names = names_of("Pendulum-v1", frame_stack=3)
    assert names is not None
    assert names[0] == "cos angle, 2 ago"
    assert names[3] == "cos angle, 1 ago"
    assert names[6:] == ("cos angle", "sin angle", "angular velocity")
    assert names_of("Pendulum-v1", normalize_observations=True) == names[6:]


def test_one_hot_states_and_bytes_are_counted() -> None:
    names = names_of("FrozenLake-v1", fixed_horizon=False)
    assert names == tuple(f"state {number}" for number in range(16))
    names = names_of("ALE/Pong-v5", kwargs={"obs_type": "ram"})
    assert names == tuple(f"byte {number}" for number in range(128))


def test_parts_of_a_dict_are_called_by_key_and_index() -> None:
    names = names_of(f"{__name__}:Nested")
    env = make_env(EnvConfig(id=f"{__name__}:Nested"))
    assert names is not None
    assert env.observation_space.shape == (len(names),)
    # As gymnasium flattens it.
    space = env.unwrapped.observation_space
    sample = space.sample()
    sample["map"] = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    sample["arm_position"] = np.array([0.5, 0.6, 0.7], np.float32)
    sample["mode"], sample["wheel"] = 2, np.array([0, 2])
    told = dict(zip(names, spaces.flatten(space, sample), strict=True))
    assert told["arm position 2"] == pytest.approx(0.7)
    assert told["map 1 0"] == pytest.approx(0.3)
    assert (told["mode 1"], told["mode 2"]) == (0, 1)
    assert (told["wheel 0 is 0"], told["wheel 1 is 2"], told["wheel 1 is 0"]) == (1, 1, 0)
    assert "height" in names


@pytest.mark.parametrize("env_id", ["CarRacing-v3", "ALE/Pong-v5", "MiniGrid-Empty-5x5-v0", f"{__name__}:Plain"])
def test_what_is_not_known_has_no_names(env_id: str) -> None:
    assert names_of(env_id) is None
