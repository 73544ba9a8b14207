import os
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from themis_ray.data import Choice, LabelledPairs, Preference, PreferenceDataset, Query, Segment, parquet
from themis_ray.errors import DataError

NOW = datetime(2025, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)


def make_segment(value, length=3, shape=(2,), dtype=np.float32):
    return Segment.create(
        "Pendulum-v1",
        f"e{value}",
        int(value),
        np.full((length, *shape), value, dtype),
        np.full((length, 1), value, np.float32),
        np.full(length, value),
    )


def answer(query, choice=Choice.LEFT, session=0):
    return Preference(
        query.id,
        query.left.id,
        query.right.id,
        choice,
        "oracle",
        session,
        1000,
        NOW,
        NOW + timedelta(seconds=2),
    )


def append(dataset, pairs, choices=None, session=0, **kinds):
    queries = [Query(make_segment(left, **kinds), make_segment(right, **kinds)) for left, right in pairs]
    choices = choices or [Choice.LEFT] * len(queries)
    dataset.append(queries, [answer(query, choice, session) for query, choice in zip(queries, choices, strict=True)])
    return queries


def names(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def assert_same_arrays(ours, theirs):
    for name in ("observations", "actions", "true_rewards"):
        array, other = getattr(ours, name), getattr(theirs, name)
        assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes())


def assert_refused(root, *fragments):
    with pytest.raises(DataError) as caught:
        PreferenceDataset(root)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_an_empty_folder_is_an_empty_dataset(tmp_path):
    dataset = PreferenceDataset(tmp_path / "absent")
    assert (dataset.num_queries, dataset.num_preferences, dataset.preferences) == (0, 0, ())
    assert len(dataset.labelled_pairs()) == 0
    assert not (tmp_path / "absent").exists()


def test_what_was_appended_is_there_after_loading(tmp_path):
    dataset = PreferenceDataset(tmp_path)
    first = append(dataset, [(0, 1), (2, 0)], [Choice.RIGHT, Choice.SKIP])
    second = append(dataset, [(3, 1)], [Choice.EQUAL], session=1)
    loaded = PreferenceDataset(tmp_path)
    for store in (dataset, loaded):
        assert (store.num_queries, store.num_preferences) == (3, 2)
        assert [p.choice for p in store.preferences] == [Choice.RIGHT, Choice.SKIP, Choice.EQUAL]
        assert store.preferences[2] == answer(second[0], Choice.EQUAL, session=1)
        assert store.preferences[0].asked_at.tzinfo is UTC
        for query in first + second:
            for segment in (query.left, query.right):
                stored = store.segment(segment.id)
                assert (stored.env_id, stored.episode_id, stored.start_step) == (
                    segment.env_id,
                    segment.episode_id,
                    segment.start_step,
                )
                assert_same_arrays(stored, segment)


DTYPES = st.sampled_from(["uint8", "int8", "int64", "float16", "float32", "float64", "bool"])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_arrays_of_every_dtype_and_shape_come_back_bit_equal(tmp_path_factory, data):
    length = data.draw(st.integers(1, 4))
    shapes = [(length, *data.draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))) for _ in range(2)]
    dtypes = [data.draw(DTYPES) for _ in range(2)]
    arrays = [[data.draw(hnp.arrays(d, s)) for d, s in zip(dtypes, shapes, strict=True)] for _ in range(2)]
    # Different rewards make the segments differ whatever the other arrays are.
    left, right = (Segment.create("Test-v0", "e", 0, *arrays[i], np.full(length, i)) for i in range(2))
    root = tmp_path_factory.mktemp("dataset")
    query = Query(left, right)
    PreferenceDataset(root).append([query], [answer(query)])
    loaded = PreferenceDataset(root)
    assert_same_arrays(loaded.segment(left.id), left)
    assert_same_arrays(loaded.segment(right.id), right)


def test_images_stay_uint8(tmp_path):
    append(PreferenceDataset(tmp_path), [(0, 1)], shape=(8, 8, 4), dtype=np.uint8)
    table = pq.read_table(tmp_path / "segments" / "part-00000.parquet")
    assert table.schema.field("observations").type.value_type == pa.uint8()
    assert PreferenceDataset(tmp_path).labelled_pairs().observations.dtype == np.uint8


def test_many_row_groups_read_as_one_part(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 100)
    queries = append(PreferenceDataset(tmp_path), [(i, i + 1) for i in range(9)])
    assert pq.ParquetFile(tmp_path / "segments" / "part-00000.parquet").num_row_groups == 5
    loaded = PreferenceDataset(tmp_path)
    for query in queries:
        assert_same_arrays(loaded.segment(query.right.id), query.right)


def test_a_segment_is_stored_once(tmp_path):
    dataset = PreferenceDataset(tmp_path)
    append(dataset, [(0, 1), (1, 2)])
    append(dataset, [(2, 3)], session=1)
    append(dataset, [(3, 0)], session=2)
    assert names(tmp_path) == [
        "preferences/part-00000.parquet",
        "preferences/part-00001.parquet",
        "preferences/part-00002.parquet",
        "segments/part-00000.parquet",
        "segments/part-00001.parquet",
    ]
    rows = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "segments").iterdir())]
    assert rows == [3, 1]


def test_a_stored_part_is_never_rewritten(tmp_path):
    dataset = PreferenceDataset(tmp_path)
    append(dataset, [(0, 1)])
    before = {name: ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns) for name in names(tmp_path)}
    append(dataset, [(2, 3)], session=1)
    append(PreferenceDataset(tmp_path), [(4, 5)], session=2)
    for name, state in before.items():
        assert ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns) == state


def test_two_programs_that_write_do_not_overwrite_each_other(tmp_path):
    ours, theirs = PreferenceDataset(tmp_path), PreferenceDataset(tmp_path)
    append(ours, [(0, 1)])
    with pytest.raises(DataError, match=r"part-00000\.parquet was written by another program"):
        append(theirs, [(2, 3)])
    assert PreferenceDataset(tmp_path).preferences == ours.preferences


def test_any_program_can_read_it(tmp_path):
    append(PreferenceDataset(tmp_path), [(0, 1), (2, 3)], [Choice.EQUAL, Choice.SKIP])
    (tmp_path / "preferences" / ".part-00001.parquet.7.tmp").write_bytes(b"half a part")
    preferences = pyarrow.dataset.dataset(tmp_path / "preferences").to_table()
    assert preferences["choice"].to_pylist() == ["equal", "skip"]
    assert preferences["asked_at"].to_pylist() == [NOW, NOW]
    assert preferences.schema.field("asked_at").type == pa.timestamp("us", tz="UTC")
    assert preferences.schema.metadata[b"themis_schema_version"] == b"1"
    segments = pyarrow.dataset.dataset(tmp_path / "segments").to_table().to_pylist()
    assert [row["observations"] for row in segments] == [[float(i)] * 6 for i in range(4)]
    assert segments[0]["observation_shape"] == [2]
    assert segments[0]["observation_dtype"] == "float32"
    assert segments[0]["length"] == 3
    assert [row["true_rewards"] for row in segments] == [[float(i)] * 3 for i in range(4)]


class Crash(BaseException):
    """The process ends; no handler of ordinary errors runs."""


def test_a_crash_between_the_two_parts_loses_only_that_session(tmp_path, monkeypatch):
    append(PreferenceDataset(tmp_path), [(0, 1)])
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "preference_table", lambda preferences: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            append(PreferenceDataset(tmp_path), [(2, 3)], session=1)
    assert "segments/part-00001.parquet" in names(tmp_path)
    resumed = PreferenceDataset(tmp_path)
    assert resumed.num_queries == 1
    append(resumed, [(2, 3)], session=1)
    append(resumed, [(4, 5)], session=2)
    assert PreferenceDataset(tmp_path).num_queries == 3
    assert len(names(tmp_path)) == 6


@pytest.mark.parametrize("failing", [(parquet, "write"), (os, "fsync")], ids=["write", "sync"])
def test_a_failed_write_leaves_no_part_and_can_be_tried_again(tmp_path, monkeypatch, failing):
    dataset = PreferenceDataset(tmp_path)

    def fail(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*failing, fail)
        with pytest.raises(DataError, match="cannot be written"):
            append(dataset, [(0, 1)])
    assert names(tmp_path) == []
    append(dataset, [(0, 1)])
    assert PreferenceDataset(tmp_path).num_queries == 1


def test_left_over_temporary_files_are_ignored(tmp_path):
    append(PreferenceDataset(tmp_path), [(0, 1)])
    for kind in ("segments", "preferences"):
        (tmp_path / kind / ".part-00001.parquet.1.tmp").write_bytes(b"half a part")
    append(PreferenceDataset(tmp_path), [(2, 3)], session=1)
    assert PreferenceDataset(tmp_path).num_queries == 2


PARTS = pytest.mark.parametrize("name", ["segments/part-00000.parquet", "preferences/part-00000.parquet"])


@PARTS
@pytest.mark.parametrize("num_bytes", [0, 4, 100, -1])
def test_a_truncated_part_is_refused(tmp_path, name, num_bytes):
    append(PreferenceDataset(tmp_path), [(0, 1)])
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert_refused(tmp_path, name, "cannot be read")


@PARTS
def test_damage_anywhere_is_refused_or_harmless(tmp_path, name):
    queries = append(PreferenceDataset(tmp_path), [(0, 1), (2, 3)], [Choice.LEFT, Choice.RIGHT])
    expected = PreferenceDataset(tmp_path).preferences
    path = tmp_path / name
    content = path.read_bytes()
    num_refused = 0
    positions = np.random.default_rng(0).choice(len(content), 150, replace=False)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            loaded = PreferenceDataset(tmp_path)
        except DataError:
            assert_refused(tmp_path, name)
            num_refused += 1
        else:
            # The byte was in statistics, an offset index or other notes nobody needs.
            assert loaded.preferences == expected
            for query in queries:
                assert_same_arrays(loaded.segment(query.left.id), query.left)
    assert num_refused > 0


@PARTS
def test_a_file_that_is_no_parquet_is_refused(tmp_path, name):
    append(PreferenceDataset(tmp_path), [(0, 1)])
    (tmp_path / name).write_text("not\nparquet")
    assert_refused(tmp_path, name, "cannot be read")


@PARTS
@pytest.mark.parametrize("version", [b"2", None])
def test_another_schema_version_is_refused(tmp_path, name, version):
    append(PreferenceDataset(tmp_path), [(0, 1)])
    table = pq.read_table(tmp_path / name)
    metadata = {b"themis_schema_version": version} if version else None
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / name)
    found = version.decode() if version else "none"
    assert_refused(tmp_path, name, f"has schema version {found}, this themis_ray reads version 1")


def rewrite(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


@PARTS
@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns([table.column_names[-1]]),
        lambda table: table.set_column(5, table.column_names[5], pa.array([{"a": 1}] * table.num_rows)),
        lambda table: table.rename_columns([f"{name}_" for name in table.column_names]),
        lambda table: table.set_column(0, table.column_names[0], pa.nulls(table.num_rows, pa.string())),
    ],
)
def test_other_columns_and_empty_values_are_refused(tmp_path, name, change):
    append(PreferenceDataset(tmp_path), [(0, 1)])
    rewrite(tmp_path / name, change)
    assert_refused(tmp_path, name, "cannot be read")


def test_segments_whose_content_is_not_their_id_are_refused(tmp_path):
    append(PreferenceDataset(tmp_path), [(0, 1)])
    path = tmp_path / "segments" / "part-00000.parquet"
    rewrite(path, lambda table: table.set_column(1, "env_id", pa.array(["Other-v0"] * 2)))
    assert_refused(tmp_path, "segments/part-00000.parquet", "has changed")


def test_a_choice_that_is_none_is_refused(tmp_path):
    append(PreferenceDataset(tmp_path), [(0, 1)])
    path = tmp_path / "preferences" / "part-00000.parquet"
    rewrite(path, lambda table: table.set_column(3, "choice", pa.array(["both"])))
    assert_refused(tmp_path, "preferences/part-00000.parquet", "both")


def test_a_preference_without_its_segment_is_refused(tmp_path):
    queries = append(PreferenceDataset(tmp_path), [(0, 1)])
    (tmp_path / "segments" / "part-00000.parquet").unlink()
    assert_refused(tmp_path, "preferences/part-00000.parquet", queries[0].left.id)


def test_a_missing_part_is_refused(tmp_path):
    dataset = PreferenceDataset(tmp_path)
    for session in range(3):
        append(dataset, [(2 * session, 2 * session + 1)], session=session)
    (tmp_path / "preferences" / "part-00001.parquet").unlink()
    assert_refused(tmp_path, "preferences/part-00001.parquet", "is missing")


def test_an_unknown_segment_is_refused(tmp_path):
    with pytest.raises(DataError, match="no segment abc"):
        PreferenceDataset(tmp_path).segment("abc")


def test_answers_to_other_queries_are_refused(tmp_path):
    dataset = PreferenceDataset(tmp_path)
    query = Query(make_segment(0), make_segment(1))
    swapped = Query(query.right, query.left)
    with pytest.raises(ValueError, match="was asked"):
        dataset.append([query], [answer(swapped)])
    with pytest.raises(ValueError, match="one preference"):
        dataset.append([query], [])
    assert names(tmp_path) == []


@pytest.mark.parametrize("kinds", [{"length": 4}, {"shape": (3,)}, {"dtype": np.float64}])
def test_segments_of_another_kind_are_refused(tmp_path, kinds):
    dataset = PreferenceDataset(tmp_path)
    append(dataset, [(0, 1)])
    with pytest.raises(ValueError, match="segments must have"):
        append(dataset, [(2, 3)], **kinds)
    assert len(names(tmp_path)) == 2


def test_an_empty_session_writes_nothing(tmp_path):
    PreferenceDataset(tmp_path).append([], [])
    assert names(tmp_path) == []


def test_stored_segments_do_not_hold_on_to_a_pool(tmp_path):
    pool = np.zeros((1000, 3, 2), np.float32) + np.arange(1000)[:, None, None].astype(np.float32)
    pool.flags.writeable = False
    zeros = np.zeros((3, 1))
    query = Query(*(Segment.create("Test-v0", "e", i, pool[i], zeros, np.zeros(3)) for i in range(2)))
    assert np.shares_memory(query.left.observations, pool)
    dataset = PreferenceDataset(tmp_path)
    dataset.append([query], [answer(query)])
    assert not np.shares_memory(dataset.segment(query.left.id).observations, pool)


def test_labelled_pairs_bind_labels_to_segments(tmp_path):
    dataset = PreferenceDataset(tmp_path)
    choices = [Choice.LEFT, Choice.RIGHT, Choice.SKIP, Choice.EQUAL]
    append(dataset, [(0, 1), (1, 2), (7, 8), (2, 0)], choices)
    for store in (dataset, PreferenceDataset(tmp_path)):
        pairs = store.labelled_pairs()
        assert len(pairs) == 3
        assert pairs.labels.tolist() == [1, 0, 0.5]
        assert (pairs.labels.dtype, pairs.left.dtype, pairs.right.dtype) == (np.float32, np.int64, np.int64)
        # Each segment once, those of skipped queries not at all.
        assert pairs.observations.shape == (3, 3, 2)
        assert pairs.actions.shape == (3, 3, 1)
        assert pairs.observations[pairs.left, 0, 0].tolist() == [0, 1, 2]
        assert pairs.observations[pairs.right, 0, 0].tolist() == [1, 2, 0]
        assert pairs.actions[pairs.right, 0, 0].tolist() == [1, 2, 0]
        assert store.labelled_pairs(label_margin=0.25).labels.tolist() == [0.75, 0.25, 0.5]


def test_labelled_pairs_can_stop_early(tmp_path):
    dataset = PreferenceDataset(tmp_path)
    append(dataset, [(0, 1), (1, 2), (2, 0)], [Choice.SKIP, Choice.LEFT, Choice.RIGHT])
    assert [len(dataset.labelled_pairs(upto=upto)) for upto in (0, 1, 2, 3, 9)] == [0, 0, 1, 2, 2]
    with pytest.raises(ValueError, match="upto"):
        dataset.labelled_pairs(upto=-1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from(list(Choice))), min_size=1, max_size=8),
    st.floats(0, 0.49),
)
def test_swapping_every_query_and_answer_mirrors_every_label(tmp_path_factory, rows, margin):
    rows = [row for row in rows if row[0] != row[1]]
    mirror = {Choice.LEFT: Choice.RIGHT, Choice.RIGHT: Choice.LEFT}
    given_, swapped = (PreferenceDataset(tmp_path_factory.mktemp("dataset")) for _ in range(2))
    append(given_, [(left, right) for left, right, _ in rows], [choice for *_, choice in rows])
    append(swapped, [(right, left) for left, right, _ in rows], [mirror.get(choice, choice) for *_, choice in rows])
    ours, theirs = given_.labelled_pairs(margin), swapped.labelled_pairs(margin)
    np.testing.assert_allclose(ours.labels + theirs.labels, 1, atol=1e-6)
    if len(ours):
        np.testing.assert_array_equal(ours.observations[ours.left], theirs.observations[theirs.right])


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": np.zeros((3, 3, 1))},
        {"left": np.array([0, 1])},
        {"right": np.array([2])},
        {"left": np.array([-1])},
        {"labels": np.array([1.1], np.float32)},
        {"labels": np.array([np.nan], np.float32)},
        {"weights": np.ones(2, np.float32)},
        {"weights": np.array([-1], np.float32)},
        {"weights": np.array([np.inf], np.float32)},
    ],
)
def test_labelled_pairs_that_do_not_fit_together_are_refused(changes):
    fields = {
        "observations": np.zeros((2, 3, 2)),
        "actions": np.zeros((2, 3, 1)),
        "left": np.array([0]),
        "right": np.array([1]),
        "labels": np.ones(1, np.float32),
    }
    assert len(LabelledPairs(**fields)) == 1
    with pytest.raises(ValueError, match="must"):
        LabelledPairs(**(fields | changes))


def test_weights_are_ones_unless_a_function_of_the_preference_gives_them(tmp_path):
    dataset = PreferenceDataset(tmp_path)
    choices = [Choice.LEFT, Choice.SKIP, Choice.RIGHT]
    append(dataset, [(0, 1), (2, 3)], choices[:2])
    append(dataset, [(1, 2)], choices[2:], session=1)
    pairs = dataset.labelled_pairs()
    assert pairs.weights.tolist() == [1, 1]
    assert pairs.weights.dtype == np.float32
    weighted = dataset.labelled_pairs(weight=lambda preference: 0.25 + preference.feedback_session)
    assert weighted.weights.tolist() == [0.25, 1.25]
    with pytest.raises(ValueError, match="weights must be at least 0"):
        dataset.labelled_pairs(weight=lambda _: -1.0)
