import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_ray.randomness import RandomStreams, seed_python

NAMES = st.text(min_size=1, max_size=20)


@given(seed=st.integers(0, 2**63), name=NAMES)
def test_same_seed_and_name_same_stream(seed: int, name: str) -> None:
    assert RandomStreams(seed)[name].random() == RandomStreams(seed)[name].random()


@given(seed=st.integers(0, 1000), names=st.lists(NAMES, min_size=2, max_size=6, unique=True), data=st.data())
def test_streams_do_not_depend_on_the_order_of_first_use(seed: int, names: list[str], data: st.DataObject) -> None:
    one, other = RandomStreams(seed), RandomStreams(seed)
    drawn = {name: one[name].random(3).tolist() for name in names}
    for name in data.draw(st.permutations(names)):
        assert other[name].random(3).tolist() == drawn[name]


def test_seeds_and_names_give_different_streams() -> None:
    draws = [
        RandomStreams(seed)[name].random() for seed in range(20) for name in ("teacher", "sampler", "fit", "env", "a")
    ]
    assert len(set(draws)) == len(draws)


def test_streams_are_uncorrelated() -> None:
    streams = RandomStreams(0)
    draws = np.stack([streams[name].random(4000) for name in ("teacher", "sampler", "replay", "heldout")])
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.06


def test_a_stream_goes_on_where_it_was() -> None:
    streams = RandomStreams(1)
    assert streams["fit"] is streams["fit"]
    first, second = streams["fit"].random(), streams["fit"].random()
    assert [first, second] == RandomStreams(1)["fit"].random(2).tolist()


def test_draw_seed_is_an_int_in_range() -> None:
    streams = RandomStreams(2)
    seeds = [streams.draw_seed("fit") for _ in range(200)]
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == 200


def test_state_round_trip_goes_on_alike() -> None:
    streams = RandomStreams(3)
    streams["a"].normal(size=7)
    streams["b"].integers(10, size=3, dtype=np.int32)  # leaves half a word behind, which is state too
    state = streams.get_state()
    expected = [streams["a"].normal(size=5).tolist(), streams["b"].integers(10, size=5, dtype=np.int32).tolist()]
    for restored in (streams, RandomStreams(3), RandomStreams(99)):
        restored.set_state(state)
        assert restored["a"].normal(size=5).tolist() == expected[0]
        assert restored["b"].integers(10, size=5, dtype=np.int32).tolist() == expected[1]


def test_set_state_forgets_streams_that_had_not_been_used() -> None:
    streams = RandomStreams(4)
    state = streams.get_state()
    first = streams["late"].random()
    streams.set_state(state)
    assert streams["late"].random() == first


def test_state_is_a_snapshot() -> None:
    streams = RandomStreams(5)
    streams["a"].random()
    state = streams.get_state()
    kept = repr(state)
    streams["a"].random(10)
    assert repr(state) == kept


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_seed_python_seeds_both_legacy_generators(seed: int) -> None:
    draws = []
    for _ in range(2):
        seed_python(seed)
        draws.append((random.random(), np.random.random()))  # noqa: NPY002
    assert draws[0] == draws[1]
