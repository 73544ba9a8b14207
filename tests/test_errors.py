import pytest

from themis_ray import errors
from themis_ray.errors import ThemisError, UnknownNameError, lookup

SAMPLERS = {"uniform": 1, "disagreement": 2, "entropy": 3}


def test_lookup_returns_the_value_of_a_known_name():
    assert lookup("sampler", "disagreement", SAMPLERS) == 2


def test_a_misspelt_name_gets_the_closest_known_one():
    with pytest.raises(UnknownNameError) as caught:
        lookup("sampler", "disagrement", SAMPLERS)
    assert str(caught.value) == (
        "no sampler 'disagrement'. Did you mean 'disagreement'? Known: disagreement, entropy, uniform."
    )


def test_a_name_close_to_none_gets_the_known_ones_only():
    with pytest.raises(UnknownNameError) as caught:
        lookup("sampler", "zzz", SAMPLERS)
    assert str(caught.value) == "no sampler 'zzz'. Known: disagreement, entropy, uniform."


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "lookup"])
def test_every_error_is_a_themis_error_told_in_one_line(name):
    error = getattr(errors, name)("first line\n  second line")
    assert isinstance(error, ThemisError)
    assert str(error) == "first line second line"
