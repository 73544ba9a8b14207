"""An episode that people act is its seed and its actions, whoever steps it."""

import base64

import cv2
import numpy as np
import pytest
from conftest import answer, new_query
from label_stores import Clock, check_counts

from themis_ray.envs import EnvConfig
from themis_ray.errors import ConfigError
from themis_ray.labeling.demonstrations import OpenEpisodes
from themis_ray.labeling.store import WrongError

CART = EnvConfig(id="CartPole-v1")


def test_an_episode_that_is_open_and_one_acted_again_are_the_same() -> None:
    here, elsewhere = OpenEpisodes(), OpenEpisodes()
    for length in range(6):
        actions = [0, 1, 1, 0, 1][:length]
        step_by_step = here.act(CART, "a", 7, actions)
        at_once = elsewhere.act(CART, f"b{length}", 7, actions)
        np.testing.assert_array_equal(step_by_step.frame, at_once.frame)
        assert step_by_step.action_names == ("left", "right")
    # Sent again, and started again.
    np.testing.assert_array_equal(here.act(CART, "a", 7, actions).frame, step_by_step.frame)
    np.testing.assert_array_equal(here.act(CART, "a", 7, []).frame, elsewhere.act(CART, "b0", 7, []).frame)
    here.close()
    elsewhere.close()


def test_few_episodes_stay_open() -> None:
    episodes = OpenEpisodes(num_open=2)
    for number in range(5):
        episodes.act(CART, f"a{number}", 0, [])
    assert len(episodes._open) == 2


def test_an_episode_ends() -> None:
    episodes, falling = OpenEpisodes(), EnvConfig(id="CartPole-v1", fixed_horizon=False)
    view = episodes.act(falling, "a", 0, [])
    actions: list[int] = []
    while not view.is_over:
        actions.append(0)
        view = episodes.act(falling, "a", 0, actions)
    assert 5 < len(actions) < 20
    with pytest.raises(WrongError, match="over"):
        episodes.act(falling, "a", 0, [*actions, 0])


@pytest.mark.parametrize("action", [-1, 2])
def test_an_action_that_is_none(action: int) -> None:
    with pytest.raises(WrongError, match="from 0 to 1"):
        OpenEpisodes().act(CART, "a", 0, [action])


def test_actions_have_to_be_discrete() -> None:
    with pytest.raises(ConfigError, match="Discrete"):
        OpenEpisodes().act(EnvConfig(id="Pendulum-v1"), "a", 0, [])


def test_the_frame_is_a_picture_for_a_page() -> None:
    view = OpenEpisodes().act(CART, "a", 0, [])
    kind, _, data = view.frame_address.partition(",")
    assert kind == "data:image/png;base64"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(picture[..., ::-1], view.frame)


# ---------------------------------------------------------------- over the API


def acting(lab, num_queries=1, **settings):
    """Somebody in a study of demonstrations; returns their browser and what is on their desk."""
    settings = {"env_id": "CartPole-v1", **settings}
    program = lab.program(lab.study(num_queries=0, feedback="demonstration", **settings))
    queries = [new_query(i, feedback="demonstration", right=None) for i in range(num_queries)]
    assert program.post("/api/v1/studies/cart/queries", json={"queries": queries}).status_code == 200
    person = lab.annotator()
    return person, person.get("/api/v1/assignments").json()["assignments"]


def test_a_demonstration_is_kept_as_long_as_somebody_acts(lab) -> None:
    actions = []
    with Clock().used() as clock:
        person, (first, second) = acting(lab, num_queries=2, lease_s=60)
        request = {"assignment_id": first["assignment_id"], "reset_seed": 7}
        for _ in range(4):
            clock.advance(40)
            actions.append(len(actions) % 2)
            shown = person.post("/api/v1/demonstrations", json=request | {"actions": actions})
            assert shown.status_code == 200, shown.text
        bob = lab.annotator()
        held = bob.get("/api/v1/assignments").json()["assignments"]
        assert len(held) == 1  # the second, on which nobody acted
        late = person.post("/api/v1/demonstrations", json={"assignment_id": second["assignment_id"]})
        assert late.status_code == 409
        other = bob.post("/api/v1/demonstrations", json=request)
        assert other.status_code == 404
        assert answer(person, first, choice=None, actions=actions, reset_seed=7).status_code == 200
        check_counts(lab.service.store, "cart")


@pytest.mark.parametrize(
    ("action", "env_id", "status"),
    [
        (1, "CartPole-v1", 200),
        (2, "CartPole-v1", 422),
        (-1, "CartPole-v1", 422),
        (2, "NotHere-v0", 200),
        (2**31 - 1, "NotHere-v0", 200),
        (2**31, "NotHere-v0", 422),
    ],
)
def test_a_demonstration_has_actions_of_its_environment(lab, action, env_id, status) -> None:
    person, (assignment,) = acting(lab, env_id=env_id)
    given = answer(person, assignment, choice=None, actions=[0, action], reset_seed=7)
    assert given.status_code == status, given.text
    shown = person.post("/api/v1/demonstrations", json={"assignment_id": assignment["assignment_id"]})
    assert shown.status_code < 500
