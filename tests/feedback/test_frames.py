import numpy as np
import pytest

from themis_ray.data import Segment
from themis_ray.envs import EnvConfig, make_env
from themis_ray.errors import ConfigError
from themis_ray.feedback.frames import TILE_SIZE, FrameRenderer, check_frames, segment_frames

CLASSIC = ["Pendulum-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"]
GRIDS = ["MiniGrid-DoorKey-5x5-v0", "MiniGrid-Dynamic-Obstacles-6x6-v0", "BabyAI-GoToLocal-v0"]


def record(config: EnvConfig, num_steps: int, seed: int = 0, draw=lambda env: env.render()):
    """Acts at random; returns the segment, actions in [-1, 1] where they are numbers, and what `draw` saw each step."""
    env = make_env(config, render_mode="rgb_array")
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    observations, actions, frames = [], [], []
    for _ in range(num_steps):
        observations.append(observation)
        frames.append(np.array(draw(env)))
        is_discrete = hasattr(env.action_space, "n")
        action = int(rng.integers(env.action_space.n)) if is_discrete else rng.uniform(-1, 1, env.action_space.shape)
        actions.append(np.asarray(action, np.int64 if is_discrete else np.float32))
        scaled = action if is_discrete else (action * env.action_space.high).astype(np.float32)
        observation = env.step(scaled)[0]
    env.close()
    rewards = np.zeros(num_steps, np.float32)
    segment = Segment.create(config.id, "e", 0, np.array(observations), np.array(actions), rewards)
    return segment, np.array(frames)


def segment_of(observations: np.ndarray) -> Segment:
    num_steps = len(observations)
    return Segment.create("Test-v0", "e", 0, observations, np.zeros((num_steps, 1), np.float32), np.zeros(num_steps))


@pytest.mark.parametrize("env_id", CLASSIC)
@pytest.mark.parametrize("fixed_horizon", [True, False])
def test_classic_control_looks_as_it_did(env_id: str, fixed_horizon: bool) -> None:
    """Only pixels at edges may differ, as observations are rounded to 32 bits."""
    config = EnvConfig(id=env_id, fixed_horizon=fixed_horizon)
    segment, rendered = record(config, 8)
    drawn = segment_frames(segment, config)
    assert drawn.dtype == np.uint8
    assert drawn.shape == rendered.shape
    differs = (drawn != rendered).any(axis=-1)
    assert differs.mean(axis=(1, 2)).max() < 0.002, differs.mean(axis=(1, 2))
    # The claim is no empty one: the agent moved, and more than that.
    assert (rendered[0] != rendered[-1]).any(axis=-1).mean() > 2 * differs.mean()


@pytest.mark.parametrize("env_id", GRIDS)
def test_grids_look_as_minigrids_own_view(env_id: str) -> None:
    config = EnvConfig(id=env_id)
    segment, rendered = record(config, 12, draw=lambda env: env.unwrapped.get_pov_render(TILE_SIZE))
    drawn = segment_frames(segment, config)
    assert drawn.shape == (12, 7 * TILE_SIZE, 7 * TILE_SIZE, 3)
    is_over = ~segment.observations.any(axis=(1, 2, 3))
    np.testing.assert_array_equal(drawn[~is_over], rendered[~is_over])
    assert not is_over.all()


def test_a_carried_key_is_seen() -> None:
    config = EnvConfig(id="MiniGrid-DoorKey-5x5-v0")
    env = make_env(config, render_mode="rgb_array")
    env.reset(seed=0)
    inner = env.unwrapped
    from minigrid.core.world_object import Key

    inner.carrying = Key("yellow")
    observation = inner.gen_obs()["image"]
    drawn = segment_frames(segment_of(observation[None]), config)
    np.testing.assert_array_equal(drawn[0], inner.get_pov_render(TILE_SIZE))


def test_torque_of_the_action_before_is_drawn_and_no_other() -> None:
    config = EnvConfig(id="Pendulum-v1")
    segment, _ = record(config, 3)
    strong = Segment.create("Pendulum-v1", "e", 0, segment.observations, np.full((3, 1), 1.0, np.float32), np.zeros(3))
    weak = Segment.create("Pendulum-v1", "e", 0, segment.observations, np.full((3, 1), 0.1, np.float32), np.zeros(3))
    frames = [segment_frames(one, config) for one in (strong, weak)]
    np.testing.assert_array_equal(frames[0][0], frames[1][0])
    assert (frames[0][1:] != frames[1][1:]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MiniGrid-Empty-5x5-v0"])
def test_absorbing_states_are_black(env_id: str) -> None:
    config = EnvConfig(id=env_id, fixed_horizon=True)
    env = make_env(config)
    first, _ = env.reset(seed=0)
    absorbing = np.zeros_like(first)
    if absorbing.ndim == 1:
        absorbing[-1] = 1
    frames = segment_frames(segment_of(np.stack([first, absorbing])), config)
    assert frames[0].any()
    assert not frames[1].any()
    assert frames[0].shape == frames[1].shape


@pytest.mark.parametrize(("num_channels", "chosen"), [(1, [0] * 3), (3, [0, 1, 2]), (4, [3] * 3), (12, [9, 10, 11])])
def test_images_are_the_newest_of_their_stack(num_channels: int, chosen: list[int]) -> None:
    observations = np.random.default_rng(0).integers(0, 256, (5, 40, 48, num_channels), np.uint8)
    frames = segment_frames(segment_of(observations), EnvConfig(id="CarRacing-v3"))
    np.testing.assert_array_equal(frames, observations[..., chosen])


def test_brightness_becomes_bytes() -> None:
    shares = np.linspace(0, 1, 2 * 40 * 40, dtype=np.float32).reshape(2, 40, 40, 1)
    frames = segment_frames(segment_of(shares), EnvConfig(id="CarRacing-v3"))
    np.testing.assert_array_equal(frames[..., 0], np.rint(shares[..., 0] * 255))
    frames = segment_frames(segment_of(shares * 255), EnvConfig(id="CarRacing-v3"))
    np.testing.assert_array_equal(frames[..., 0], np.rint(shares[..., 0] * 255))


def test_chosen_steps_are_those_of_the_whole() -> None:
    config = EnvConfig(id="Pendulum-v1")
    segment, _ = record(config, 6)
    renderer = FrameRenderer(config)
    np.testing.assert_array_equal(renderer.frames(segment, [5, 0, 3]), segment_frames(segment, config)[[5, 0, 3]])
    renderer.close()


@pytest.mark.parametrize("env_id", [*CLASSIC, *GRIDS, "CarRacing-v3", "ALE/Pong-v5"])
def test_environments_that_work_are_accepted(env_id: str) -> None:
    check_frames(EnvConfig(id=env_id))


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "LunarLander-v3", "FrozenLake-v1"])
def test_others_are_refused_with_those_that_work(env_id: str) -> None:
    with pytest.raises(ConfigError, match=f"{env_id}.*images.*MiniGrid.*Pendulum") as raised:
        check_frames(EnvConfig(id=env_id))
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=env_id):
        segment_frames(segment_of(np.zeros((2, 17), np.float32)), EnvConfig(id=env_id))
