"""Clips with an explanation, and who was shown them, whatever database the label store is kept in."""

import pytest
from label_stores import CLIP_NAMES, answer, each_store, join, make_study, new_query

from themis_ray.labeling.store import WrongError
from themis_ray.labeling.study import StudyConfig
from themis_ray.wire import NewSide

store = each_store

NAME = "reward-kernel_shap"
ARMS = [{"name": "plain"}, {"name": "explained", "overlay": NAME}]


def explained_query(name, overlays=((NAME, NAME),), **changes):
    """A query whose left and right have these overlays; their clips are each other's plain ones."""
    sides = {}
    for side, names, clip, other in (
        ("left", overlays[0], *CLIP_NAMES),
        ("right", overlays[-1], *CLIP_NAMES[::-1]),
    ):
        names = [names] if isinstance(names, str) else names
        values = {"segment_id": f"{side}-{name}", "clip": clip, "num_frames": 4}
        sides[side] = NewSide.model_validate(values | {"overlays": dict.fromkeys(names, other)})
    return new_query(name, **sides, **changes)


def people_by_arm(store, study_id):
    people = [store.people.get(join(store, study_id)) for _ in range(2)]
    return {person.arm: person for person in people}


def test_overlays_come_back_as_they_were_sent_on_the_side_where_the_segment_is_shown(store):
    study_id = make_study(store, 0, arms=ARMS, overlap=2, queries_per_annotator=20)
    queries = [explained_query(number) for number in range(8)]
    assert store.studies.add_queries(study_id, [*queries, new_query("plain")], "tests") == 9
    row = store.studies.query(study_id, "q-0")
    assert (row.left_overlays, row.right_overlays) == ({NAME: CLIP_NAMES[1]}, {NAME: CLIP_NAMES[0]})
    row = store.studies.query(study_id, "q-plain")
    assert (row.left_overlays, row.right_overlays) == (None, None)
    person = join(store, study_id)
    shown = store.work.desk(person, 9).assignments
    assert len({assignment.left.segment_id[:4] for assignment in shown}) == 2, "sides are not flipped"
    for assignment in shown:
        for clip in (assignment.left, assignment.right):
            is_left = clip.segment_id.startswith("left")
            expected = {} if assignment.query_id == "q-plain" else {NAME: CLIP_NAMES[is_left]}
            assert dict(clip.overlays) == expected
    again = store.work.desk(person, 9).assignments
    assert [row.left.overlays for row in again] == [row.left.overlays for row in shown]


def test_an_answer_says_which_explanation_was_shown(store):
    study_id = make_study(store, 0, arms=ARMS, overlap=2)
    store.studies.add_queries(study_id, [explained_query("with"), new_query("without")], "tests")
    for person in people_by_arm(store, study_id).values():
        for assignment in store.work.desk(person.id, 2).assignments:
            answer(store, person.id, assignment)
    rows = {(row.arm, row.query_id): row.overlay for row in store.work.answers(study_id).answers}
    assert rows == {
        ("plain", "q-with"): "",
        ("plain", "q-without"): "",
        ("explained", "q-with"): NAME,
        ("explained", "q-without"): "",
    }


@pytest.mark.parametrize(
    ("overlays", "message"),
    [
        (("action",), "overlay 'action', which no arm of .* shows. Its arms show reward-kernel_shap"),
        ((NAME, []), f"overlay '{NAME}' on one side only"),
        (([], NAME), f"overlay '{NAME}' on one side only"),
    ],
)
def test_overlays_that_make_no_sense_are_refused(store, overlays, message):
    study_id = make_study(store, 0, arms=ARMS)
    with pytest.raises(WrongError, match=message):
        store.studies.add_queries(study_id, [explained_query(0, overlays)], "tests")
    assert store.studies.queries(study_id) == []


def test_a_clip_of_an_overlay_has_to_be_there(store):
    study_id = make_study(store, 0, arms=ARMS)
    query = explained_query(0).model_dump()
    query["right"]["overlays"] = {NAME: "0" * 32 + ".webm"}
    with pytest.raises(WrongError, match="1 clips are not in study"):
        store.studies.add_queries(study_id, [type(explained_query(0)).model_validate(query)], "tests")


@pytest.mark.parametrize("overlay", ["saliency", "reward-saliancy", "reward-", "rewards", "reward-tracin_cp_fast"])
def test_an_arm_that_shows_what_there_is_not_is_refused_when_the_study_is_made(store, overlay):
    config = StudyConfig(id="unknown", title="T", arms=[{"name": "a", "overlay": overlay}])
    with pytest.raises(WrongError, match=r"arm 'a' shows .*action, value, reward, preference.*kernel_shap") as caught:
        store.studies.create(config, "tests")
    assert "\n" not in str(caught.value)
    assert "unknown" not in {row.id for row in store.studies.all()}


def test_demonstrations_are_not_explained(store):
    arms = [{"name": "a", "overlay": "action"}]
    config = StudyConfig(id="acting", title="T", feedback="demonstration", env_id="CartPole-v1", arms=arms)
    with pytest.raises(WrongError, match="demonstrations have no clips"):
        store.studies.create(config, "tests")
