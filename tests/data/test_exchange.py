import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from themis_ray.data import Choice, Preference, PreferenceDataset, Query, Segment
from themis_ray.data.exchange import (
    EXPORT_FORMATS,
    ArraySpec,
    DatasetCounts,
    EnvLayout,
    export_dataset,
    import_dataset,
    parts,
)
from themis_ray.errors import DataError, UnknownNameError

NOW = datetime(2025, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
DTYPES = ("uint8", "int8", "int64", "uint64", "float16", "float32", "float64", "bool")
SIZES = {"max_examples": 40, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def make_segment(value: float, env_id: str = "Pendulum-v1", length: int = 3) -> Segment:
    return Segment.create(
        env_id,
        f"e{value}",
        int(value),
        np.full((length, 2), value, np.float32),
        np.full((length, 1), value, np.float32),
        np.full(length, value),
    )


def answer(query: Query, choice: Choice = Choice.LEFT, session: int = 0) -> Preference:
    times = (NOW, NOW + timedelta(seconds=session))
    return Preference(query.id, query.left.id, query.right.id, choice, "anna", session, 10 * session, *times)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset of two feedback sessions with one answer of each kind."""
    dataset = PreferenceDataset(tmp_path / "run")
    for session, (pairs, choices) in enumerate(
        [([(0, 1), (2, 0)], [Choice.RIGHT, Choice.SKIP]), ([(3, 1), (1, 3)], [Choice.EQUAL, Choice.LEFT])]
    ):
        queries = [Query(make_segment(left), make_segment(right)) for left, right in pairs]
        dataset.append(queries, [answer(q, c, session) for q, c in zip(queries, choices, strict=True)])
    return tmp_path / "run"


def assert_same_dataset(one: Path, other: Path) -> None:
    ours, theirs = PreferenceDataset(one), PreferenceDataset(other)
    assert ours.preferences == theirs.preferences
    for segment_id in {id_ for p in ours.preferences for id_ in (p.left_id, p.right_id)}:
        a, b = ours.segment(segment_id), theirs.segment(segment_id)
        assert (a.env_id, a.episode_id, a.start_step) == (b.env_id, b.episode_id, b.start_step)
        for x, y in ((a.observations, b.observations), (a.actions, b.actions), (a.true_rewards, b.true_rewards)):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_refused(run: Callable[[], Any], *fragments: str) -> None:
    with pytest.raises(DataError) as caught:
        run()
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("format_name", EXPORT_FORMATS)
@pytest.mark.parametrize("is_named", [True, False], ids=["named", "auto"])
def test_a_dataset_comes_back_equal(root: Path, tmp_path: Path, format_name: str, is_named: bool) -> None:
    shares: list[float] = []
    there = export_dataset(root, tmp_path / "there", format_name, shares.append)
    back = import_dataset(
        tmp_path / "there", tmp_path / "back", format_name if is_named else "auto", None, shares.append
    )
    assert_same_dataset(root, tmp_path / "back")
    expected = DatasetCounts({"Pendulum-v1"}, 4, dict.fromkeys(Choice, 1))
    assert there == back == expected
    assert there.num_queries == 4
    assert shares[-1] == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize("format_name", EXPORT_FORMATS)
@settings(**SIZES)  # type: ignore[arg-type]
@given(data=st.data())
def test_arrays_of_every_dtype_and_shape_come_back_bit_equal(
    tmp_path_factory: pytest.TempPathFactory, format_name: str, data: st.DataObject
) -> None:
    length = data.draw(st.integers(1, 4))
    shapes = [(length, *data.draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))) for _ in range(2)]
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in range(2)]
    segments = [
        Segment.create(
            "Test-v0",
            data.draw(st.text(min_size=1, max_size=5, alphabet=st.characters(codec="utf-8"))),
            data.draw(st.integers(0, 2**40)),
            *(data.draw(hnp.arrays(d, s)) for d, s in zip(dtypes, shapes, strict=True)),
            data.draw(hnp.arrays("float32", length)),
        )
        for _ in range(4)
    ]
    pairs = [(a, b) for a in segments for b in segments if a.id != b.id]
    if not pairs:
        return
    queries = [Query(*pair) for pair in pairs]
    folder = tmp_path_factory.mktemp("exchange")
    answers = [answer(query, data.draw(st.sampled_from(list(Choice))), i) for i, query in enumerate(queries)]
    PreferenceDataset(folder / "data").append(queries, answers)
    export_dataset(folder / "data", folder / "there", format_name)
    import_dataset(folder / "there", folder / "back")
    assert_same_dataset(folder / "data", folder / "back")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_jsonl_keeps_numbers_that_are_not_finite_to_the_bit(tmp_path: Path, dtype: str) -> None:
    numbers = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).tiny, np.finfo(dtype).max], dtype)
    bits = numbers.view(f"uint{8 * numbers.itemsize}")
    bits[1] |= 1  # A NaN with a payload.
    left = Segment.create("Test-v0", "e", 0, numbers, np.zeros(7), np.full(7, np.nan))
    right = Segment.create("Test-v0", "e", 0, np.zeros(7, dtype), np.zeros(7), np.zeros(7))
    query = Query(left, right)
    PreferenceDataset(tmp_path / "data").append([query], [answer(query)])
    export_dataset(tmp_path / "data", tmp_path / "there", "jsonl")
    row = json.loads((tmp_path / "there" / "segments.jsonl").read_text().splitlines()[0])
    assert row["observations"][0] == "nan"
    assert row["observations"][1].startswith("nan:")
    assert row["observations"][2:4] == ["inf", "-inf"]
    import_dataset(tmp_path / "there", tmp_path / "back")
    assert_same_dataset(tmp_path / "data", tmp_path / "back")


def test_any_program_can_read_the_jsonl(root: Path, tmp_path: Path) -> None:
    export_dataset(root, tmp_path / "there", "jsonl")
    rows, answers = (
        [json.loads(line) for line in (tmp_path / "there" / name).read_text().splitlines()]
        for name in ("segments.jsonl", "preferences.jsonl")
    )
    dataset = PreferenceDataset(root)
    assert [row["choice"] for row in answers] == ["right", "skip", "equal", "left"]
    assert datetime.fromisoformat(answers[3]["answered_at"]) == NOW + timedelta(seconds=1)
    assert len(rows) == 4
    for row in rows:
        array = np.array(row["observations"], row["observation_dtype"]).reshape(
            row["length"], *row["observation_shape"]
        )
        np.testing.assert_array_equal(array, dataset.segment(row["segment_id"]).observations)


def test_a_large_dataset_is_read_and_written_in_pieces(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SEGMENT_PART_BYTES", 100)
    monkeypatch.setattr(parts, "PREFERENCE_PART_ROWS", 3)
    export_dataset(root, tmp_path / "hub", "huggingface")
    assert files(tmp_path / "hub") == [
        "README.md",
        "data/preferences-00000-of-00002.parquet",
        "data/preferences-00001-of-00002.parquet",
        *(f"data/segments-0000{i}-of-00002.parquet" for i in range(2)),
    ]
    import_dataset(tmp_path / "hub", tmp_path / "back")
    assert len(files(tmp_path / "back")) == 4
    assert_same_dataset(root, tmp_path / "back")


def test_an_imported_dataset_can_be_appended_to(root: Path, tmp_path: Path) -> None:
    import_dataset(root, tmp_path / "copy")
    query = Query(make_segment(8), make_segment(9))
    PreferenceDataset(tmp_path / "copy").append([query], [answer(query)])
    assert PreferenceDataset(tmp_path / "copy").num_queries == 5


def test_the_card_describes_the_files_that_are_there(root: Path, tmp_path: Path) -> None:
    export_dataset(root, tmp_path / "hub", "huggingface")
    text = (tmp_path / "hub" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    card = yaml.safe_load(header)
    assert [config["config_name"] for config in card["configs"]] == ["preferences", "segments"]
    assert [config.get("default", False) for config in card["configs"]] == [True, False]
    for config, info in zip(card["configs"], card["dataset_info"], strict=True):
        (data_files,) = config["data_files"]
        assert data_files["split"] == "train"
        (path,) = (tmp_path / "hub").glob(data_files["path"])
        table = pq.read_table(path)
        assert info["config_name"] == config["config_name"]
        assert [feature["name"] for feature in info["features"]] == table.schema.names
        # `datasets` refuses splits without num_bytes, which are those in its own memory.
        assert "splits" not in info
    features = {feature["name"]: feature for info in card["dataset_info"] for feature in info["features"]}
    assert features["observations"] == {"name": "observations", "sequence": "float32"}
    assert features["observation_shape"] == {"name": "observation_shape", "sequence": "int32"}
    assert features["asked_at"] == {"name": "asked_at", "dtype": "timestamp[us, tz=UTC]"}
    assert "4 answers" in body
    assert "Pendulum-v1" in body


# ---------------------------------------------------------------- JSONL made by hand


def jsonl_rows(count: int = 2) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    segments = [
        {
            "segment_id": f"s{i}",
            "env_id": "Pendulum-v1",
            "episode_id": "e",
            "start_step": i,
            "length": 2,
            "observations": [0.5 * i, 1, 2, 3],
            "observation_shape": [2],
            "observation_dtype": "float32",
            "actions": [0, i],
            "action_shape": [],
            "action_dtype": "int64",
            "true_rewards": ["nan", 1.0],
        }
        for i in range(count)
    ]
    preference = {
        "left_id": "s0",
        "right_id": "s1",
        "choice": "right",
        "teacher": "anna",
        "feedback_session": 0,
        "num_env_steps": 0,
        "asked_at": "2025-03-01T12:30:15+01:00",
        "answered_at": "2025-03-01T11:30:16Z",
    }
    return segments, [preference]


def write_rows(folder: Path, segments: list[Any], preferences: list[Any]) -> Path:
    folder.mkdir()
    for name, rows in (("segments", segments), ("preferences", preferences)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_jsonl_made_by_hand_may_name_its_segments_freely(tmp_path: Path) -> None:
    import_dataset(write_rows(tmp_path / "hand", *jsonl_rows()), tmp_path / "out")
    dataset = PreferenceDataset(tmp_path / "out")
    (preference,) = dataset.preferences
    query = Query(dataset.segment(preference.left_id), dataset.segment(preference.right_id))
    assert preference.query_id == query.id
    assert query.right.observations.tolist() == [[0.5, 1], [2, 3]]
    assert query.right.actions.dtype == np.int64
    assert np.isnan(query.left.true_rewards[0])
    assert preference.asked_at == datetime(2025, 3, 1, 11, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("field", "value", "fragment"),
    [
        ("observations", [1.0, 2.0], "reshape"),
        ("observations", [1.0, 2.0, 3.0, "four"], "'four' is no number"),
        ("observations", [1.0, 2.0, 3.0, None], "is no number"),
        ("observations", [[1.0, 2.0], [3.0, 4.0]], "is no number"),
        ("observations", "1 2 3 4", "flat lists"),
        ("observations", [1.0, 2.0, 3.0, "nan:zz"], "non-hexadecimal"),
        ("observation_dtype", "complex64", "'complex64' is none of"),
        ("observation_dtype", "int8", "no int"),
        ("actions", [0, 2**70], "int"),
        ("actions", [0.5, 1], "no int"),
        ("start_step", -1, "start_step"),
        ("start_step", "one", "start_step must be a whole number"),
        ("start_step", 0.5, "start_step must be a whole number"),
        ("observation_shape", [-1], "observation_shape must be a list of whole numbers"),
        ("true_rewards", [1e300, 0], "too large for float32"),
        ("episode_id", "\ud800", "surrogates"),
        ("env_id", "", "must be text"),
        ("segment_id", "0" * 32, "has changed"),
        ("length", 3, "reshape"),
        ("sort", "x", "unknown field 'sort'"),
    ],
)
def test_a_damaged_segment_line_is_named(tmp_path: Path, field: str, value: Any, fragment: str) -> None:
    segments, preferences = jsonl_rows()
    segments[1][field] = value
    folder = write_rows(tmp_path / "hand", segments, preferences)
    assert_refused(lambda: import_dataset(folder, tmp_path / "out"), "segments.jsonl line 2", fragment)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hand"]


@pytest.mark.parametrize(
    ("field", "value", "fragment"),
    [
        ("left_id", "s9", "'s9' is not in segments.jsonl"),
        ("left_id", "s1", "two different segments"),
        ("choice", "both", "'both'"),
        ("asked_at", "yesterday", "yesterday"),
        ("asked_at", "2025-03-01T12:30:15", "UTC"),
        ("asked_at", "2026-03-01T12:30:15Z", "must not be before"),
        ("feedback_session", -1, "feedback_session"),
        ("num_env_steps", "many", "num_env_steps must be a whole number"),
        ("feedback_session", 2**31, "feedback_session must be a whole number"),
        ("teacher", None, "teacher"),
    ],
)
def test_a_damaged_preference_line_is_named(tmp_path: Path, field: str, value: Any, fragment: str) -> None:
    segments, preferences = jsonl_rows()
    preferences[0][field] = value
    folder = write_rows(tmp_path / "hand", segments, preferences)
    assert_refused(lambda: import_dataset(folder, tmp_path / "out"), "preferences.jsonl line 1", fragment)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[1]", "", "\x00", '{"segment_id": "s0"}'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, text: str) -> None:
    folder = write_rows(tmp_path / "hand", *jsonl_rows())
    (folder / "segments.jsonl").write_text(f"{text}\n")
    assert_refused(lambda: import_dataset(folder, tmp_path / "out"), "segments.jsonl line 1")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_stands_in_a_field_it_is_imported_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    segments, preferences = jsonl_rows()
    row = data.draw(st.sampled_from([segments[1], preferences[0]]))
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(JSON)
    folder = tmp_path_factory.mktemp("json")
    write_rows(folder / "hand", segments, preferences)
    try:
        import_dataset(folder / "hand", folder / "out")
    except DataError:
        assert not (folder / "out").exists()
    else:
        assert PreferenceDataset(folder / "out").num_queries == 1


def test_a_changed_number_in_an_export_is_noticed(root: Path, tmp_path: Path) -> None:
    export_dataset(root, tmp_path / "there", "jsonl")
    path = tmp_path / "there" / "segments.jsonl"
    path.write_text(path.read_text().replace("2.0", "2.5", 1))
    assert_refused(lambda: import_dataset(tmp_path / "there", tmp_path / "out"), "line", "has changed")


def test_a_missing_file_is_named(root: Path, tmp_path: Path) -> None:
    export_dataset(root, tmp_path / "lines", "jsonl")
    (tmp_path / "lines" / "preferences.jsonl").unlink()
    assert_refused(lambda: import_dataset(tmp_path / "lines", tmp_path / "out"), "preferences.jsonl is missing")
    export_dataset(root, tmp_path / "hub", "huggingface")
    (tmp_path / "hub" / "data" / "segments-00000-of-00001.parquet").unlink()
    assert_refused(lambda: import_dataset(tmp_path / "hub", tmp_path / "out"), "segments-00000-of-N.parquet")


@pytest.mark.parametrize("format_name", ["parquet", "huggingface"])
def test_a_damaged_parquet_file_is_named(root: Path, tmp_path: Path, format_name: str) -> None:
    export_dataset(root, tmp_path / "there", format_name)
    path = next((tmp_path / "there").rglob("segments*/part-*.parquet" if format_name == "parquet" else "segments-*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(bytes(content))
    assert_refused(lambda: import_dataset(tmp_path / "there", tmp_path / "out"), path.name)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what is refused


def test_the_folder_one_is_in_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(lambda: export_dataset(root, Path(), "jsonl"), "the folder you are in")
    assert_refused(lambda: import_dataset(root, Path()), "the folder you are in")


def test_nothing_is_overwritten(root: Path, tmp_path: Path) -> None:
    before = {name: (root / name).read_bytes() for name in files(root)}
    (tmp_path / "file").write_text("x")
    for out in (root, tmp_path / "file"):
        assert_refused(lambda out=out: export_dataset(root, out, "jsonl"), str(out), "holds something already")
        assert_refused(lambda out=out: import_dataset(root, out), str(out), "holds something already")
    assert {name: (root / name).read_bytes() for name in files(root)} == before
    (tmp_path / "empty").mkdir()
    import_dataset(root, tmp_path / "empty")
    assert_same_dataset(root, tmp_path / "empty")


def test_a_folder_that_cannot_be_written_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "out", Path("/proc/themis-out")):
        assert_refused(lambda out=out: export_dataset(root, out, "jsonl"), str(out), "cannot be written")


def test_sources_without_preferences_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(lambda: export_dataset(tmp_path / "empty", tmp_path / "out", "jsonl"), "holds no preferences")
    assert_refused(lambda: export_dataset(tmp_path / "none", tmp_path / "out", "jsonl"), "holds no preferences")
    assert_refused(lambda: import_dataset(tmp_path / "none", tmp_path / "out"), "does not exist")
    assert_refused(lambda: import_dataset(tmp_path / "empty", tmp_path / "out"), "no dataset that is known", "jsonl")
    with pytest.raises(UnknownNameError, match="no dataset format 'json'"):
        import_dataset(root, tmp_path / "out", "json")
    with pytest.raises(UnknownNameError, match="no export format 'imitation'"):
        export_dataset(root, tmp_path / "out", "imitation")
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_another_environment_or_of_mixed_segments_is_refused(root: Path, tmp_path: Path) -> None:
    layout = EnvLayout("CartPole-v1", ArraySpec((4,), np.dtype("f4")), ArraySpec((), np.dtype("i8")))
    assert_refused(lambda: import_dataset(root, tmp_path / "out", layout=layout), "of Pendulum-v1, not of CartPole-v1")
    other = PreferenceDataset(tmp_path / "other")
    query = Query(make_segment(1, length=5), make_segment(2, length=5))
    other.append([query], [answer(query)])
    for kind in ("segments", "preferences"):
        shutil.copy(tmp_path / "other" / kind / "part-00000.parquet", root / kind / "part-00002.parquet")
    assert_refused(lambda: import_dataset(root, tmp_path / "out"), "mixes segments", "(3,", "(5,")


def test_a_preference_about_a_segment_that_is_not_there_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "segments" / "part-00001.parquet").unlink()
    assert_refused(lambda: import_dataset(root, tmp_path / "out"), "which is not there")
    (root / "preferences" / "part-00000.parquet").unlink()
    assert_refused(lambda: import_dataset(root, tmp_path / "out"), "part-00000.parquet is missing")
