"""Clips with an explanation: people of an arm that shows it get them, and nobody else does."""

import pytest
from conftest import CLIP_BYTES, answer, clip_name, new_query

from themis_ray.labeling.export import read_answers
from themis_ray.labeling.signing import check_clip
from themis_ray.labeling.transfer import export_study, import_study

NAME = "reward-kernel_shap"
ARMS = [{"name": "plain"}, {"name": "explained", "overlay": NAME}]
EXPLAINED = {"left": clip_name(2), "right": clip_name(3)}


def explained_query(number):
    query = new_query(number)
    return query | {side: query[side] | {"overlays": {NAME: name}} for side, name in EXPLAINED.items()}


def make_lab(lab, study_id="cart"):
    """A study with two explained queries and a plain one; returns a program with its token."""
    program = lab.program(lab.study(study_id, num_queries=0, arms=ARMS, overlap=2))
    for name in EXPLAINED.values():
        assert program.put(f"/api/v1/studies/{study_id}/clips/{name}", content=CLIP_BYTES).status_code == 200
    queries = {"queries": [explained_query(0), explained_query(1), new_query(2)]}
    assert program.post(f"/api/v1/studies/{study_id}/queries", json=queries).json()["num_new"] == 3
    return program


def by_arm(lab):
    people = {}
    for _ in range(2):
        person = lab.annotator()
        people[person.get("/api/v1/me").json()["arm"]] = person
    return people


def clip_of(address):
    return address.partition("?")[0].rpartition("/")[2]


def test_people_of_the_arm_get_the_addresses_and_others_do_not(lab):
    make_lab(lab)
    people = by_arm(lab)
    desks = {arm: person.get("/api/v1/assignments").json()["assignments"] for arm, person in people.items()}
    assert len(desks["plain"]) == len(desks["explained"]) == 3
    for assignment in desks["plain"]:
        assert assignment["overlay"] == ""
        assert [assignment[side]["overlay_url"] for side in ("left", "right")] == [None, None]
    shown = [assignment for assignment in desks["explained"] if assignment["overlay"]]
    assert len(shown) == 2
    pairs = {clip_name(0): clip_name(2), clip_name(1): clip_name(3)}
    for assignment in shown:
        assert assignment["overlay"] == NAME
        for side in ("left", "right"):
            view = assignment[side]
            assert clip_of(view["overlay_url"]) == pairs[clip_of(view["url"])], "of another segment"
    (plain,) = [assignment for assignment in desks["explained"] if not assignment["overlay"]]
    assert plain["left"]["overlay_url"] is None


def test_an_explained_clip_is_as_closed_as_any_other(lab):
    make_lab(lab)
    other = lab.program(lab.study("boat"))
    assert other.get(f"/api/v1/studies/cart/clips/{EXPLAINED['left']}").status_code == 404
    assert other.get(f"/api/v1/studies/boat/clips/{EXPLAINED['left']}").status_code == 404
    (shown, *_) = [
        row for row in by_arm(lab)["explained"].get("/api/v1/assignments").json()["assignments"] if row["overlay"]
    ]
    address, _, query = shown["left"]["overlay_url"].partition("?")
    study, name = address.split("/")[-2:]
    parts = dict(part.split("=") for part in query.split("&"))
    secret = lab.service.settings.secret
    assert check_clip(secret, study, name, parts["until"], parts["signature"], 0.0)
    assert not check_clip(secret, "boat", name, parts["until"], parts["signature"], 0.0)
    assert not check_clip(secret, study, clip_name(9), parts["until"], parts["signature"], 0.0)
    query = {"queries": [explained_query(7) | {"id": "q7"}]}
    refused = other.post("/api/v1/studies/boat/queries", json=query)
    assert refused.status_code == 422, "clips of another study"
    assert "2 clips are not in study 'boat'" in refused.json()["error"]


def test_experimenters_see_the_explained_clips_of_a_query(lab):
    program = make_lab(lab)
    sides = program.get("/api/v1/studies/cart/queries/q0").json()
    assert clip_of(sides["left"]["overlays"][NAME]) == EXPLAINED["left"]
    assert program.get("/api/v1/studies/cart/queries/q2").json()["left"]["overlays"] == {}
    assert "explained by reward-kernel_shap" in lab.member().get("/studies/cart/queries/q0").text


@pytest.mark.parametrize("name", ["saliency", "reward-shap", "../x"])
def test_an_overlay_that_there_is_not_is_refused_in_one_line(lab, name):
    program = make_lab(lab)
    query = explained_query(5)
    query["left"]["overlays"] = {name: EXPLAINED["left"]}
    response = program.post("/api/v1/studies/cart/queries", json={"queries": [query]})
    assert response.status_code == 422
    assert "kernel_shap" in response.json()["error"], "it says what there is"
    assert "\n" not in response.json()["error"]


def test_exposure_and_dwell_are_logged_reported_and_exported(lab, tmp_path):
    program = make_lab(lab)
    for arm, person in by_arm(lab).items():
        times = iter((3000, 5000))
        for row in person.get("/api/v1/assignments").json()["assignments"]:
            assert answer(person, row, overlay_ms=next(times) if row["overlay"] else 0).status_code == 200, arm
    rows = program.get("/api/v1/studies/cart/answers").json()["answers"]
    assert sorted((row["arm"], row["overlay"], row["overlay_ms"]) for row in rows) == [
        ("explained", "", 0),
        ("explained", NAME, 3000),
        ("explained", NAME, 5000),
        *[("plain", "", 0)] * 3,
    ]
    arms = program.get("/api/v1/studies/cart/report").json()["arms"]
    # The query without an explanation is no time of 0.
    assert [(arm["num_explained"], arm["median_overlay_s"]) for arm in arms] == [(0, None), (2, 4.0)]
    assert "4.0 s" in lab.member().get("/studies/cart").text

    path = tmp_path / "answers.parquet"
    export_study(lab.service.store, "cart", path, "parquet")
    exported = list(read_answers(path))
    assert sorted((row.overlay, row.overlay_ms) for row in exported if row.overlay) == [(NAME, 3000), (NAME, 5000)]

    # The same queries elsewhere, without explained clips: what was shown is known still.
    lab.study("boat", num_queries=3)
    renamed = [
        row.model_copy(
            update={"study": "boat"} | {name: f"n-{getattr(row, name)}" for name in ("annotator_id", "answer_id")}
        )
        for row in exported
    ]
    copy = tmp_path / "copy.jsonl"
    copy.write_text("".join(row.model_dump_json() + "\n" for row in renamed))
    assert import_study(lab.service.store, "boat", copy, "test").num_new == 6
    stored = lab.service.store.work.answers("boat").answers
    assert sorted(row.overlay for row in stored) == ["", "", "", "", NAME, NAME]
