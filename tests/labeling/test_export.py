"""Answers out and in: every format exact, nothing about people, and twice is as once."""

import json
import re
import sqlite3
import time
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import answer, clip_name, new_query
from label_stores import check_counts
from test_report import make_answer

from themis_ray.errors import DataError, UnknownNameError
from themis_ray.labeling.export import ANSWER_FORMATS, SCHEMA, AnswerRow, answer_rows, read_answers, write_answers
from themis_ray.labeling.routes import exports
from themis_ray.labeling.store import LabelStore, NotFoundError, StoreError, WrongError
from themis_ray.labeling.store.places import free_expired
from themis_ray.labeling.study import Arm, StudyConfig
from themis_ray.labeling.transfer import export_study, import_study
from themis_ray.wire import NewQuery

STUDY = StudyConfig(id="walker", title="Which walks better?", arms=(Arm(name="map", overlay="reward-saliency"),))
ABOUT = {
    "env_id": "Walker2d-v5",
    "run": "r3",
    "checkpoint": 12,
    "reward_version": 4,
    "seed": 7,
    "num_env_steps": 10_000,
}
PATHS = [f"answers{suffix}" for suffix in ANSWER_FORMATS.values()] + ["folder"]


def format_of(name):
    return {suffix: key for key, suffix in ANSWER_FORMATS.items()}.get(Path(name).suffix, "huggingface")


def make_rows():
    queries = {
        "q1": NewQuery.model_validate(new_query(1, id="q1", about=ABOUT)),
        "q2": NewQuery.model_validate(new_query(2, id="q2", kind="gold", gold_choice="left", about={"seed": "b"})),
        "q3": NewQuery.model_validate(new_query(3, id="q3") | {"right": None, "feedback": "steps"}),
    }
    answers = [
        make_answer(
            1,
            "q1",
            arm="map",
            is_flipped=True,
            response_ms=1234,
            overlay="reward-saliency",
            overlay_ms=99,
            speed=0.1 + 0.2,
        ),
        make_answer(2, "q2", "a2", "equal", kind="gold"),
        make_answer(3, "q1", "a1", "skip", repeat=1, answered_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)),
        make_answer(4, "q3", "a2", None, feedback="steps", steps=(1, 0, -1)),
        make_answer(5, "q3", "a3", None, feedback="demonstration", actions=(), reset_seed=2**40),
        make_answer(6, "q3", "a4", None, feedback="rating", rating=1 / 3),
        make_answer(7, "q1", "a5", is_undone=True),
        make_answer(8, "q1", "a6", kind="practice"),
    ]
    return list(answer_rows(answers, queries, STUDY, {"a1": 0.25}))


def test_a_row_leads_back_to_where_the_answer_comes_from():
    row = make_rows()[0]
    assert (row.left_id, row.right_id) == ("left-1", "right-1")
    assert (row.left_clip, row.right_clip) == (clip_name(0), clip_name(1))
    assert (row.arm, row.overlay, row.is_flipped, row.weight) == ("map", "reward-saliency", True, 0.25)
    assert (row.env_id, row.run, row.checkpoint, row.reward_version, row.seed) == ("Walker2d-v5", "r3", "12", 4, 7)
    assert json.loads(row.about) == ABOUT
    assert make_rows()[1].seed is None
    assert json.loads(make_rows()[1].about) == {"seed": "b"}


@pytest.mark.parametrize("name", PATHS)
def test_a_query_about_which_much_or_nothing_is_said_comes_back(tmp_path, name):
    about = {"env_id": "", "run": None, "checkpoint": "", "words": "x" * 200_000}
    query = NewQuery.model_validate(new_query(1, id="q1", about=about))
    rows = list(answer_rows([make_answer(1, "q1")], {"q1": query}, STUDY))
    write_answers(rows, tmp_path / name, format_of(name), STUDY)
    assert list(read_answers(tmp_path / name)) == rows
    assert json.loads(rows[0].about) == about


def test_practice_and_undone_answers_stay():
    assert [row.answer_id for row in make_rows()] == [f"answer-{number}" for number in range(1, 7)]


@pytest.mark.parametrize("name", PATHS)
def test_every_format_is_exact(tmp_path, name):
    rows = make_rows()
    assert write_answers(rows, tmp_path / name, format_of(name), STUDY) == 6
    assert list(read_answers(tmp_path / name)) == rows
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", PATHS)
def test_no_answers_are_a_file_too(tmp_path, name):
    assert write_answers([], tmp_path / name, format_of(name), STUDY) == 0
    assert list(read_answers(tmp_path / name)) == []


def test_columns_have_types(tmp_path):
    write_answers(make_rows(), tmp_path / "a.parquet", "parquet", STUDY)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.equals(SCHEMA)
    assert str(table.schema.field("answered_at").type) == "timestamp[us, tz=UTC]"
    assert table.column("reset_seed").to_pylist()[4] == 2**40


def test_the_card_of_the_dataset_says_what_is_in_it(tmp_path):
    write_answers(make_rows(), tmp_path / "hub", "huggingface", STUDY)
    _, header, text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    features = {row["name"]: row.get("dtype", row.get("sequence")) for row in card["dataset_info"]["features"]}
    assert list(features) == SCHEMA.names
    assert (features["rating"], features["steps"], features["is_flipped"]) == ("float64", "int32", "bool")
    assert "splits" not in card["dataset_info"]  # `datasets` refuses them without num_bytes.
    assert "6 answers" in text
    write_answers(make_rows(), tmp_path / "hub.zip", "huggingface", STUDY)
    with zipfile.ZipFile(tmp_path / "hub.zip") as archive:
        assert archive.namelist() == ["README.md", "data/train-00000-of-00001.parquet"]


def test_what_is_there_is_not_written_over(tmp_path):
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(DataError, match="there already"):
        write_answers([], tmp_path / "a.csv", "csv", STUDY)
    with pytest.raises(UnknownNameError, match="Did you mean 'parquet'"):
        write_answers([], tmp_path / "a.parquet", "parket", STUDY)

    def failing():
        yield make_rows()[0]
        raise RuntimeError("in the middle")

    for name in PATHS[:2] + PATHS[3:]:
        with pytest.raises(RuntimeError):
            write_answers(failing(), tmp_path / name, format_of(name), STUDY)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_number_that_is_too_large_for_a_column_is_told_in_one_line(tmp_path):
    row = make_rows()[4].model_copy(update={"actions": (2**31,)})
    for name in ("a.parquet", "a.zip"):
        with pytest.raises(DataError, match=r"2147483648.*Export as jsonl or csv"):
            write_answers([row], tmp_path / name, format_of(name), STUDY)
    assert write_answers([row], tmp_path / "a.jsonl", "jsonl", STUDY) == 1


def test_damaged_files_are_refused_with_the_place(tmp_path):
    rows = [json.loads(row.model_dump_json()) for row in make_rows()]
    rows[1]["choice"] = "up"
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=r"row 2: choice: "):
        list(read_answers(tmp_path / "a.jsonl"))
    (tmp_path / "b.jsonl").write_text('{"study": ')
    (tmp_path / "c.parquet").write_text("no parquet")
    (tmp_path / "d.zip").write_text("no zip")
    (tmp_path / "e.csv").write_text("study,answer_id\nwalker")
    (tmp_path / "f.txt").write_text("")
    (tmp_path / "g").mkdir()
    for name in ("b.jsonl", "c.parquet", "d.zip", "e.csv", "f.txt", "g", "nosuch.csv"):
        with pytest.raises(DataError, match=name):
            list(read_answers(tmp_path / name))


# ---------------------------------------------------------------- a service


def fill(lab, study="cart", num_people=3, **settings):
    """A study in which some people have answered everything; returns its token."""
    token = lab.study(study, num_queries=4, overlap=num_people, queries_per_annotator=4, **settings)
    for number in range(num_people):
        client = lab.annotator(study, PROLIFIC_PID=f"person-{number}")
        work = client.get("/api/v1/assignments").json()
        while work["assignments"]:
            work = answer(client, work["assignments"][0], ("left", "right", "equal")[number]).json()["work"]
    return token


PANEL = {"kind": "prolific", "code_complete": "C1"}


@pytest.mark.parametrize("name", PATHS)
def test_an_export_holds_nothing_that_a_panel_says(lab, tmp_path, name):
    fill(lab, panel=PANEL)
    assert export_study(lab.service.store, "cart", tmp_path / name, format_of(name)) == 12
    files = [path for path in [tmp_path / name, *(tmp_path / name).rglob("*")] if path.is_file()]
    assert all(b"person-" not in path.read_bytes() for path in files)
    assert all("person-" not in row.model_dump_json() for row in read_answers(tmp_path / name))


def test_queries_that_are_added_and_answered_during_an_export_are_in_the_next_one(lab, tmp_path, monkeypatch):
    fill(lab, num_people=1)
    store, read = lab.service.store, lab.service.store.studies.queries

    def read_and_go_on(*args, **kwargs):
        rows = read(*args, **kwargs)
        monkeypatch.setattr(store.studies, "queries", read)
        assert store.studies.add_queries("cart", [NewQuery.model_validate(new_query(9))], "test") == 1
        client = lab.annotator()
        assert answer(client, client.get("/api/v1/assignments").json()["assignments"][0]).status_code == 200
        return rows

    monkeypatch.setattr(store.studies, "queries", read_and_go_on)
    assert export_study(store, "cart", tmp_path / "a.jsonl", "jsonl") == 4
    assert export_study(store, "cart", tmp_path / "b.jsonl", "jsonl") == 5


def test_an_export_and_its_import_are_the_same_study(lab, tmp_path):
    fill(lab)
    store = lab.service.store
    export_study(store, "cart", tmp_path / "a.parquet", "parquet")
    rows = list(read_answers(tmp_path / "a.parquet"))
    assert {row.study for row in rows} == {"cart"}
    other = second_service(lab, tmp_path)
    counts = import_study(other, "cart", tmp_path / "a.parquet", "me")
    assert (counts.num_new, counts.num_known) == (12, 0)
    again = import_study(other, "cart", tmp_path / "a.parquet", "me")
    assert (again.num_new, again.num_known) == (0, 12)
    export_study(other, "cart", tmp_path / "b.parquet", "parquet")
    assert list(read_answers(tmp_path / "b.parquet")) == rows
    assert other.studies.counts("cart") == replace(store.studies.counts("cart"), num_done=3)
    assert other.studies.counts("cart").num_waiting == 0
    other.close()


def second_service(lab, tmp_path, overlap=3):
    """Another store with the same study and queries."""
    store = LabelStore(f"sqlite:///{tmp_path}/other.db")
    store.studies.create(StudyConfig(id="cart", title="Carts", overlap=overlap, queries_per_annotator=4), "test")
    for number in range(2):
        store.studies.add_clip("cart", clip_name(number), 3)
    store.studies.add_queries("cart", [NewQuery.model_validate(new_query(number)) for number in range(4)], "test")
    return store


@pytest.mark.parametrize("state", ["leased", "expired"])
def test_a_backup_takes_answers_to_what_was_on_desks_when_it_was_made(lab, tmp_path, state):
    lab.study("cart", num_queries=4, overlap=2, queries_per_annotator=4)
    store, client = lab.service.store, lab.annotator()
    held = client.get("/api/v1/assignments").json()["assignments"]
    with sqlite3.connect(tmp_path / "labels.db") as source, sqlite3.connect(tmp_path / "backup.db") as copy:
        source.backup(copy)
    for assignment in held[:2]:
        answer(client, assignment)
    export_study(store, "cart", tmp_path / "a.parquet", "parquet")
    backup = LabelStore(f"sqlite:///{tmp_path}/backup.db")
    if state == "expired":
        with backup.database.write() as connection:
            assert free_expired(connection, "cart", time.time() + 1e6)
    for expected in ((2, 0), (0, 2)):
        counts = import_study(backup, "cart", tmp_path / "a.parquet", "me")
        assert (counts.num_new, counts.num_known) == expected
        check_counts(backup, "cart")
    export_study(backup, "cart", tmp_path / "b.parquet", "parquet")
    assert list(read_answers(tmp_path / "b.parquet")) == list(read_answers(tmp_path / "a.parquet"))
    desk = backup.work.desk(client.annotator_id, 4)
    assert {row.id for row in desk.assignments} >= {held[2]["assignment_id"]}
    assert (desk.progress.num_answered, len(desk.assignments)) == (2, 2)
    for assignment in client.get("/api/v1/assignments").json()["assignments"]:
        answer(client, assignment)
    export_study(store, "cart", tmp_path / "c.parquet", "parquet")
    import_study(backup, "cart", tmp_path / "c.parquet", "me")
    assert backup.work.desk(client.annotator_id, 3).stage == "done"
    check_counts(backup, "cart")
    backup.close()


def test_more_answers_than_were_wanted_are_wanted_from_then_on(lab, tmp_path):
    fill(lab)
    export_study(lab.service.store, "cart", tmp_path / "a.csv", "csv")
    other = second_service(lab, tmp_path, overlap=1)
    import_study(other, "cart", tmp_path / "a.csv", "me")
    row = other.studies.query("cart", "q0")
    assert (row.overlap, row.num_taken, row.num_answers) == (3, 3, 3)
    other.close()


def test_who_has_withdrawn_stays_withdrawn(lab, tmp_path):
    fill(lab)
    store = lab.service.store
    export_study(store, "cart", tmp_path / "a.jsonl", "jsonl")
    rows = list(read_answers(tmp_path / "a.jsonl"))
    store.people.withdraw(rows[0].annotator_id, "test")
    assert export_study(store, "cart", tmp_path / "b.jsonl", "jsonl") == 8
    counts = import_study(store, "cart", tmp_path / "a.jsonl", "me")
    assert (counts.num_new, counts.num_known, counts.num_withdrawn) == (0, 8, 4)
    assert export_study(store, "cart", tmp_path / "c.jsonl", "jsonl") == 8


def test_answers_that_do_not_belong_to_a_study_are_refused(lab, tmp_path):
    fill(lab)
    lab.study("pole", num_queries=4)
    lab.study("empty", num_queries=0)
    store = lab.service.store
    export_study(store, "cart", tmp_path / "a.parquet", "parquet")
    with pytest.raises(WrongError, match=r"is of study 'cart'. Give a file of 'pole'"):
        import_study(store, "pole", tmp_path / "a.parquet", "me")
    rows = list(read_answers(tmp_path / "a.parquet"))
    for study, refusal in (("pole", "is in study 'cart' already"), ("empty", "has no query")):
        renamed = [row.model_copy(update={"study": study}) for row in rows]
        write_answers(renamed, tmp_path / f"{study}.jsonl", "jsonl", STUDY)
        with pytest.raises(StoreError, match=refusal):
            import_study(store, study, tmp_path / f"{study}.jsonl", "me")
    with pytest.raises(NotFoundError, match="no study"):
        import_study(store, "nosuch", tmp_path / "a.parquet", "me")
    assert store.studies.counts("pole").num_answers == 0


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"response_ms": 2**70}, 400, "row 1: response_ms"),
        ({"reset_seed": 2**64}, 400, "row 1: reset_seed"),
        ({"speed": float("nan")}, 400, "row 1: speed"),
        ({"speed": -1}, 400, "row 1: speed"),
        ({"arm": "a\0"}, 400, "row 1: arm"),
        ({"choice": None, "rating": 7}, 400, "row 1: rating"),
        ({"rating": float("nan")}, 400, "row 1: rating"),
        ({"steps": [2]}, 400, "row 1: steps"),
        ({"actions": [2**31]}, 400, "row 1: actions"),
        ({"answered_at": "9999-12-31T23:59:59-23:00"}, 400, "row 1: answered_at: .* from 1970 to 3000"),
        ({"assigned_at": "0001-01-01T00:00:00+23:00"}, 400, "row 1: assigned_at"),
        ({"choice": None}, 422, "answer a-new: an answer to a query of kind pairwise was expected"),
        ({"rating": 0.5}, 422, "answer a-new: an answer to a query of kind pairwise was expected"),
        ({"study": "pole"}, 422, "is of study 'pole'"),
    ],
)
def test_an_answer_that_could_not_be_given_is_not_imported(lab, change, status, message):
    program = lab.program(fill(lab, num_people=1))
    row = json.loads(program.get("/api/v1/studies/cart/export?format=jsonl").text.splitlines()[0])
    row |= {"answer_id": "a-new", "annotator_id": "new"}
    body = json.dumps(row | change)
    refused = program.post("/api/v1/studies/cart/import?format=jsonl", content=body)
    assert refused.status_code == status, refused.text
    assert re.search(message, refused.json()["error"])
    assert lab.service.store.studies.counts("cart").num_answers == 4
    taken = program.post("/api/v1/studies/cart/import?format=jsonl", content=json.dumps(row))
    assert taken.json()["num_new"] == 1


def test_a_time_without_a_zone_is_one_of_utc(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        row = json.loads(make_rows()[0].model_dump_json())
        for given in ("2026-01-02T03:04:05", "2026-01-02T04:04:05+01:00", "2026-01-02T03:04:05Z"):
            (tmp_path / "a.jsonl").write_text(json.dumps(row | {"answered_at": given}))
            (read,) = read_answers(tmp_path / "a.jsonl")
            assert read.answered_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.fixture
def api(lab):
    if not any(getattr(route, "path", "").endswith("/export") for route in lab.app.routes):
        lab.app.include_router(exports.router, prefix="/api/v1")
    return lab


@pytest.mark.parametrize("format_name", ANSWER_FORMATS)
def test_files_go_over_the_api_and_back(api, tmp_path, format_name):
    program = api.program(fill(api))
    response = program.get(f"/api/v1/studies/cart/export?format={format_name}")
    assert response.status_code == 200
    suffix = ANSWER_FORMATS[format_name]
    assert f'filename="cart{suffix}"' in response.headers["content-disposition"]
    path = tmp_path / f"got{suffix}"
    path.write_bytes(response.content)
    assert len(list(read_answers(path))) == 12
    back = program.post(f"/api/v1/studies/cart/import?format={format_name}", content=response.content)
    assert back.json() == {"num_new": 0, "num_known": 12, "num_withdrawn": 0}
    broken = program.post(f"/api/v1/studies/cart/import?format={format_name}", content=b"\x00nothing")
    assert broken.status_code == 400
    assert "/tmp" not in broken.text


def test_files_are_for_those_of_the_study(api):
    api.study("pole")
    token = fill(api)
    assert api.nobody().get("/api/v1/studies/cart/export").status_code == 401
    assert api.program(token).get("/api/v1/studies/pole/export").status_code == 404
    assert api.annotator().get("/api/v1/studies/cart/export").status_code == 401
    assert api.program(token).get("/api/v1/studies/cart/export?format=xls").status_code == 422
    assert api.nobody().post("/api/v1/studies/cart/import", content=b"").status_code == 401


def test_the_documentation_names_all_columns():
    page = (Path(__file__).parents[2] / "docs" / "labelling-quality.md").read_text()
    table = page.split("| columns |")[1].split("\n\n")[0]
    first = "".join(line.split(" | ")[0] for line in table.splitlines()[2:])
    assert re.findall(r"`(\w+)`", first) == SCHEMA.names


def test_a_row_has_no_place_for_anything_else():
    assert not {"panel", "number", "is_undone", "token"} & set(AnswerRow.model_fields)
