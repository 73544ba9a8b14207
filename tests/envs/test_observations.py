import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from themis_ray.envs import (
    EnvConfig,
    FixedHorizon,
    ImagePart,
    MixedBox,
    get_env_spec,
    image_parts,
    infer_observation_kind,
    make_env,
    observation_scale,
)
from themis_ray.envs.observations import convert_space
from themis_ray.envs.wrappers import standardise_observations
from themis_ray.errors import ConfigError

BYTES = spaces.Box(0, 255, (40, 48, 3), np.uint8)
CELLS = spaces.Box(0, 255, (7, 7, 3), np.uint8)


class Observing(gym.Env[Any, Any]):
    """Observes samples of a space and terminates after three steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.num_left = 3
        return self.observation_space.sample(), {}

    def step(self, action):
        self.num_left -= 1
        return self.observation_space.sample(), 1.0, self.num_left == 0, False, {}


def convert(space: spaces.Space[Any], observation: Any) -> tuple[spaces.Box, np.ndarray]:
    conversion = convert_space(space)
    assert conversion is not None
    converted = conversion.convert(observation)
    assert converted.dtype == conversion.space.dtype
    assert conversion.space.contains(converted)
    return conversion.space, converted


def test_images_come_first_in_their_order_and_all_other_parts_behind_in_theirs() -> None:
    space = spaces.Dict(a=spaces.Discrete(3), b=BYTES, c=spaces.Box(-2.0, 2.0, (2,)), d=CELLS, e=spaces.MultiBinary(2))
    observation = space.sample()
    mixed, flat = convert(space, observation)
    assert isinstance(mixed, MixedBox)
    assert mixed.layout == (
        ImagePart(0, 5760, (40, 48, 3), "image"),
        ImagePart(5760, 5907, (7, 7, 3), "grid"),
    )
    assert (mixed.shape, mixed.dtype, mixed.num_pixels) == ((5907 + 7,), np.float32, 5907)
    np.testing.assert_allclose(flat[:5760].reshape(40, 48, 3), observation["b"] / 255, rtol=1e-6)
    np.testing.assert_allclose(flat[5760:5907].reshape(7, 7, 3), observation["d"] / 10, rtol=1e-6)
    one_hot = np.eye(3)[observation["a"]]
    np.testing.assert_allclose(flat[5907:], [*one_hot, *observation["c"], *observation["e"]])
    np.testing.assert_array_equal(mixed.low[5907:], [0, 0, 0, -2, -2, 0, 0])
    assert (mixed.low[:5907].max(), mixed.high[:5760].max(), mixed.high[5760:5907].max()) == (0, 1, 25.5)


def test_parts_of_parts_are_found() -> None:
    inner = spaces.Tuple((spaces.Box(-1.0, 1.0, (2,)), BYTES))
    space = spaces.Dict(z=spaces.Dict(y=inner), a=spaces.Discrete(2, start=4))
    observation = space.sample()
    mixed, flat = convert(space, observation)
    assert image_parts(mixed) == (ImagePart(0, 5760, (40, 48, 3), "image"),)
    np.testing.assert_allclose(flat[:5760], observation["z"]["y"][1].ravel() / 255, rtol=1e-6)
    np.testing.assert_allclose(flat[5760:], [*observation["z"]["y"][0], *np.eye(2)[observation["a"] - 4]])


@pytest.mark.parametrize(
    ("space", "number", "expected"),
    [
        (spaces.Box(-1.0, 1.0, (36, 36, 1)), 0.5, 0.75),
        (spaces.Box(0, 255, (36, 36, 1), np.float64), 51, 0.2),
        (spaces.Box(0, 1, (36, 36, 1), np.uint8), 1, 1.0),
        (spaces.Box(0, 65535, (36, 36, 1), np.uint16), 65535, 1.0),
        (spaces.Box(-1.0, 1.0, (36, 36, 1)), 7.0, 1.0),  # beyond its own bounds
        (spaces.Box(-np.inf, np.inf, (36, 36, 1)), -3.0, -3.0),
        (spaces.Box(-3.4e38, 3.4e38, (36, 36, 1)), 3.0, 3.0),
        (spaces.Box(-1e300, 1e300, (36, 36, 1), np.float64), 3.0, 3.0),
        (spaces.Box(0.0, 5.0, (7, 7, 1)), 4.0, 4.0),
        (spaces.Box(0, 255, (7, 7, 1), np.uint8), 7, 0.7),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_images_with_bounds_are_stretched_from_zero_to_one_and_bytes_of_grids_are_tenths(space, number, expected):
    whole = spaces.Tuple((space, spaces.Discrete(2)))
    _, flat = convert(whole, (np.full(space.shape, number, space.dtype), 0))
    np.testing.assert_allclose(flat[:-2], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((36, 50), np.uint8, (36, 50, 1)),
        ((3, 36, 40), np.uint8, (36, 40, 3)),
        ((4, 84, 84), np.float32, (84, 84, 4)),
        ((36, 40, 3), np.uint8, (36, 40, 3)),
        ((7, 7, 3), np.uint8, (7, 7, 3)),
        ((3, 7, 7), np.uint8, (3, 7, 7)),
        ((50, 7, 50), np.uint8, (50, 7, 50)),
        ((4, 36, 40, 3), np.uint8, (36, 40, 12)),
        ((4, 3, 36, 40), np.uint8, (36, 40, 12)),
        ((4, 36, 40, 1), np.float64, (36, 40, 4)),
        ((36, 35), np.uint8, None),
        ((50, 50), np.float32, None),
        ((40, 40), np.int64, None),
        ((4, 7, 7, 3), np.uint8, None),
        ((2, 2, 40, 40, 3), np.uint8, None),
    ],
)
def test_which_boxes_are_pictures(shape, dtype, expected) -> None:
    space = spaces.Box(0, 255, shape, dtype)
    for nested in (space, spaces.Dict(only=space)):
        env = standardise_observations(Observing(nested))
        size = int(np.prod(shape))
        assert env.observation_space.shape == (expected or (size,))
        kept = np.uint8 if dtype == np.uint8 and expected else np.float32
        assert env.observation_space.dtype == kept
        assert env.observation_space.contains(env.reset(seed=0)[0])
    mixed, _ = convert(spaces.Tuple((space, spaces.Discrete(2))), (space.sample(), 1))
    assert [part.shape for part in image_parts(mixed)] == ([expected] if expected else [])


def test_channels_and_frames_go_last_and_the_newest_frame_is_at_the_end() -> None:
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 256, (4, 36, 40, 3), np.uint8)
    _, picture = convert(spaces.Box(0, 255, stack.shape, np.uint8), stack)
    for frame in range(4):
        np.testing.assert_array_equal(picture[..., 3 * frame : 3 * frame + 3], stack[frame])
    first = np.moveaxis(stack, -1, 1)
    np.testing.assert_array_equal(convert(spaces.Box(0, 255, first.shape, np.uint8), first)[1], picture)
    np.testing.assert_array_equal(
        convert(spaces.Box(0, 255, (3, 36, 40), np.uint8), first[0])[1], stack[0], "channels first"
    )
    np.testing.assert_array_equal(
        convert(spaces.Box(0, 255, (36, 40), np.uint8), stack[0, ..., 0])[1][..., 0], stack[0, ..., 0]
    )


def test_a_nested_space_of_one_part_is_that_part() -> None:
    observation = BYTES.sample()
    space, converted = convert(spaces.Dict(a=spaces.Tuple((BYTES,))), {"a": (observation,)})
    assert space == BYTES
    np.testing.assert_array_equal(converted, observation)
    space, converted = convert(spaces.Dict(state=spaces.Discrete(3)), {"state": 1})
    np.testing.assert_array_equal(converted, [0, 1, 0])


@pytest.mark.parametrize("is_only_vectors", [False, True])
def test_without_images_parts_are_one_vector_in_gymnasiums_order(is_only_vectors: bool) -> None:
    space = spaces.Dict(b=spaces.Box(0, 1, (2, 2)), a=spaces.Discrete(3))
    observation = space.sample()
    flat_space, flat = convert(space, observation)
    assert type(flat_space) is spaces.Box
    np.testing.assert_array_equal(flat, spaces.flatten(space, observation))


def test_a_mixed_space_survives_copies_and_is_no_plain_box() -> None:
    mixed, _ = convert(spaces.Tuple((BYTES, spaces.Discrete(2))), (BYTES.sample(), 0))
    plain = spaces.Box(mixed.low, mixed.high, dtype=np.float32)
    for copied in (pickle.loads(pickle.dumps(mixed)), copy.deepcopy(mixed), copy.copy(mixed)):
        assert copied == mixed
        assert image_parts(copied) == image_parts(mixed)
        assert infer_observation_kind(copied) == "mixed"
    assert mixed != plain
    assert plain != mixed
    assert mixed != MixedBox(mixed.low, mixed.high, [ImagePart(0, 5760, (48, 40, 3), "image")])
    assert repr(mixed) == "MixedBox(image (40, 48, 3), vector (2,), float32)"
    assert mixed.contains(mixed.sample())
    assert image_parts(plain) == ()
    assert infer_observation_kind(plain) == "vector"


@pytest.mark.parametrize("parts", [[(1, 5)], [(0, 3), (4, 6)], [(0, 9)], []])
def test_a_layout_with_gaps_or_without_images_is_refused(parts: list[tuple[int, int]]) -> None:
    layout = [ImagePart(start, stop, (1, 1, stop - start), "grid") for start, stop in parts]
    with pytest.raises(ValueError, match="must follow each other from 0 to at most 8"):
        MixedBox(np.zeros(8, np.float32), np.ones(8, np.float32), layout)


def test_a_fixed_horizon_puts_its_mark_behind_the_vector_part() -> None:
    space = spaces.Dict(picture=BYTES, speed=spaces.Box(1.0, 2.0, (2,)))
    inner = standardise_observations(Observing(space))
    env = FixedHorizon(inner, 6)
    assert image_parts(env.observation_space) == image_parts(inner.observation_space) != ()
    assert env.observation_space.shape == (5760 + 3,)
    first, _ = env.reset(seed=0)
    assert first[-1] == 0
    seen = [env.step(0)[0] for _ in range(6)]
    assert all(env.observation_space.contains(observation) for observation in (first, *seen))
    assert [observation[-1] for observation in seen] == [0, 0, 1, 1, 1, 1]
    assert not seen[-1][:-1].any()


def test_the_spec_says_where_images_are() -> None:
    config = EnvConfig(id="tests.rllib.camera:Camera", horizon=20, fixed_horizon=True)
    spec = get_env_spec(config)
    assert spec.observation_kind == "mixed"
    assert spec.observation_space == make_env(config).observation_space
    assert image_parts(spec.observation_space) == (ImagePart(0, 4800, (40, 40, 3), "image"),)
    assert spec.observation_space.shape == (4800 + 5 + 1,)


@pytest.mark.parametrize(
    ("space", "told"),
    [
        (spaces.Text(5), "Text has no fixed-size vector"),
        (spaces.Dict(view=BYTES, mission=spaces.Text(5)), "its part 'mission', Text has no fixed-size vector"),
        (
            spaces.Dict(a=spaces.Tuple((BYTES, spaces.Sequence(spaces.Discrete(2))))),
            "its part 'a.1', Sequence has no fixed-size vector",
        ),
    ],
)
def test_an_unsupported_part_is_named(space: spaces.Space[Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert_space(space)
    assert told in str(caught.value)
    assert "Supported: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these." in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "scale"),
    [
        (BYTES, 1 / 255),
        (CELLS, 0.1),
        (spaces.Box(0.0, 1.0, (40, 40, 3)), 1.0),
        (spaces.Box(0.0, 10.0, (7, 7, 3)), 1.0),
        (spaces.Box(0.0, 255.0, (40, 40, 3)), 1 / 255),
        (spaces.Box(-1.0, 1.0, (4,)), 1.0),
    ],
)
def test_only_bytes_are_scaled_by_networks(space: spaces.Box, scale: float) -> None:
    assert observation_scale(space, infer_observation_kind(space)) == scale
