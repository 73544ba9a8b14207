"""Names of overlays: what a study takes is what can be drawn."""

import re

import pytest

from themis_ray.errors import ConfigError, UnknownNameError
from themis_ray.explain import METHODS
from themis_ray.explaining import SUBJECTS, Explanation
from themis_ray.wire import EXPLAINED, EXPLANATION_METHODS, OVERLAY_PATTERN


def test_the_service_knows_the_same_names():
    assert set(EXPLAINED) == set(SUBJECTS)
    assert set(EXPLANATION_METHODS) == set(METHODS)


@pytest.mark.parametrize("of", SUBJECTS)
def test_a_name_is_what_is_explained_and_how(of):
    assert Explanation.parse(of) == Explanation(of)
    for method in METHODS:
        name = f"{of}-{method}"
        assert Explanation.parse(name) == Explanation(of, method)
        assert re.fullmatch(OVERLAY_PATTERN, name)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("rewards", UnknownNameError, "no subject 'rewards'. Did you mean 'reward'"),
        ("reward-kernel_shape", UnknownNameError, "Did you mean 'kernel_shap'"),
        ("reward-", UnknownNameError, "no method ''"),
        ("", UnknownNameError, "no subject ''"),
        ("reward-tracin_cp_fast", ConfigError, "draws nothing on a clip. Give .*kernel_shap"),
    ],
)
def test_a_name_that_is_none_is_told_in_one_line(name, error, message):
    with pytest.raises(error, match=message) as caught:
        Explanation.parse(name)
    assert "\n" not in str(caught.value)
    assert not re.fullmatch(OVERLAY_PATTERN, name)
