import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from themis_ray.data import Query, Segment

DTYPES = st.sampled_from(["uint8", "int8", "int64", "float16", "float32", "float64", "bool"])


def make_segment(value=0.0, length=3, **changes):
    fields = {
        "env_id": "Pendulum-v1",
        "episode_id": "e",
        "start_step": 4,
        "observations": np.full((length, 2), value, np.float32),
        "actions": np.zeros((length, 1), np.float32),
        "true_rewards": np.arange(length, dtype=np.float32),
    } | changes
    return Segment.create(**fields)


@st.composite
def segments(draw):
    length = draw(st.integers(1, 5))

    def array(max_dims):
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=max_dims, max_side=4))
        return draw(hnp.arrays(draw(DTYPES), (length, *shape)))

    rewards = draw(hnp.arrays("float32", length, elements=st.floats(-1e6, 1e6, width=32)))
    return make_segment(observations=array(3), actions=array(1), true_rewards=rewards)


def test_arrays_are_copied_and_read_only():
    observations = np.zeros((3, 2), np.float32)
    segment = make_segment(observations=observations)
    observations[:] = 1
    assert not segment.observations.any()
    for array in (segment.observations, segment.actions, segment.true_rewards):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_read_only_arrays_are_not_copied():
    observations = np.zeros((3, 2), np.float32)
    observations.flags.writeable = False
    assert make_segment(observations=observations).observations is observations


def test_frames_stay_uint8():
    frames = np.zeros((3, 8, 8, 4), np.uint8)
    assert make_segment(observations=frames).observations.dtype == np.uint8


def test_true_return_is_the_undiscounted_sum():
    assert make_segment(true_rewards=[1, 2.5, -1]).true_return == 2.5
    assert make_segment(true_rewards=[1, 2.5, -1]).true_rewards.dtype == np.float32


@given(segments())
def test_the_id_is_32_hexadecimal_digits_and_depends_on_content_only(segment):
    assert len(bytes.fromhex(segment.id)) == 16
    other = make_segment(
        episode_id="other",
        start_step=99,
        observations=np.asfortranarray(segment.observations),
        actions=segment.actions,
        true_rewards=segment.true_rewards,
    )
    assert other.id == segment.id
    assert other == segment
    assert hash(other) == hash(segment)


@pytest.mark.parametrize(
    "changes",
    [
        {"env_id": "Reacher-v5"},
        {"observations": np.ones((3, 2), np.float32)},
        {"observations": np.zeros((3, 2), np.float64)},
        {"observations": np.zeros((3, 2, 1), np.float32)},
        {"actions": np.ones((3, 1), np.float32)},
        {"true_rewards": np.zeros(3)},
    ],
)
def test_every_part_of_the_content_changes_the_id(changes):
    assert make_segment(**changes).id != make_segment().id


@given(segments())
def test_pickling_keeps_all_and_stays_read_only(segment):
    loaded = pickle.loads(pickle.dumps(segment))
    assert loaded == segment
    for name in ("observations", "actions", "true_rewards"):
        array = getattr(loaded, name)
        assert not array.flags.writeable
        assert array.dtype == getattr(segment, name).dtype
        assert array.tobytes() == getattr(segment, name).tobytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((2, 2))}, "as many steps"),
        ({"actions": np.zeros(())}, "as many steps"),
        ({"length": 0}, "at least one step"),
        ({"true_rewards": np.zeros((3, 1))}, "at least one step"),
        ({"start_step": -1}, "start_step"),
        ({"observations": np.array(["a", "b", "c"])}, "numbers or booleans"),
        ({"actions": np.zeros(3, ">f4" if np.little_endian else "<f4")}, "native byte order"),
    ],
)
def test_wrong_shapes_and_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_segment(**changes)


def test_swapping_a_query_gives_another_id():
    query = Query(make_segment(0), make_segment(1))
    swapped = Query(query.right, query.left)
    assert len(bytes.fromhex(query.id)) == 16
    assert query.id == Query(make_segment(0), make_segment(1)).id
    assert query.id != swapped.id
    assert query != swapped


def test_a_query_of_a_segment_with_itself_is_refused():
    with pytest.raises(ValueError, match="two different segments"):
        Query(make_segment(), make_segment(episode_id="other"))


def test_a_query_of_different_lengths_is_refused():
    with pytest.raises(ValueError, match="same length"):
        Query(make_segment(length=3), make_segment(length=4))
