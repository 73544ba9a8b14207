import os
import pickle
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from themis_ray.data import Choice, PreferenceDataset
from themis_ray.data.exchange import ArraySpec, EnvLayout, foreign, import_dataset
from themis_ray.data.exchange.foreign import read_bpref
from themis_ray.errors import DataError


def assert_refused(run: Callable[[], Any], *fragments: str) -> None:
    with pytest.raises(DataError) as caught:
        run()
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)


# ---------------------------------------------------------------- B-Pref


PENDULUM = EnvLayout(
    "Pendulum-v1",
    ArraySpec((3,), np.dtype("f4")),
    ArraySpec((1,), np.dtype("f4")),
    action_bounds=(np.array([-2.0]), np.array([2.0])),
)
CARTPOLE = EnvLayout(
    "CartPole-v1", ArraySpec((4,), np.dtype("f4")), ArraySpec((), np.dtype("i4")), has_mark=True, num_choices=(2,)
)


def bpref_arrays(num_pairs: int = 6, width: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sides = rng.uniform(-1, 1, (2, num_pairs, 5, width)).astype(np.float32)
    labels = np.resize([0, 1, -1, 0.5], num_pairs).astype(np.float32)[:, None]
    return {"buffer_seg1": sides[0], "buffer_seg2": sides[1], "buffer_label": labels}


def save_bpref(folder: Path, arrays: dict[str, Any], kind: str) -> Path:
    folder.mkdir()
    path = folder / f"labels.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    elif kind == "pt":
        torch.save({name: torch.as_tensor(value) for name, value in arrays.items()}, path)
    elif kind == "pkl":
        path.write_bytes(pickle.dumps(arrays))
    else:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return folder
    return path


@pytest.mark.parametrize("kind", ["npz", "pt", "pkl", "npy"])
@pytest.mark.parametrize("format_name", ["auto", "bpref"])
def test_bpref_buffers_become_preferences(tmp_path: Path, kind: str, format_name: str) -> None:
    arrays = bpref_arrays()
    source = save_bpref(tmp_path / "bpref", arrays, kind)
    counts = import_dataset(source, tmp_path / "out", format_name, PENDULUM)
    dataset = PreferenceDataset(tmp_path / "out")
    expected = [Choice.LEFT, Choice.RIGHT, Choice.EQUAL, Choice.EQUAL, Choice.LEFT, Choice.RIGHT]
    assert [preference.choice for preference in dataset.preferences] == expected
    assert (counts.num_segments, counts.num_queries, counts.num_left_out) == (12, 6, 0)
    for i, preference in enumerate(dataset.preferences):
        assert preference.teacher == "bpref"
        for name, segment_id in (("buffer_seg1", preference.left_id), ("buffer_seg2", preference.right_id)):
            segment = dataset.segment(segment_id)
            np.testing.assert_array_equal(segment.observations, arrays[name][i, :, :3])
            np.testing.assert_allclose(segment.actions, arrays[name][i, :, 3:] / 2, rtol=1e-6)
            assert np.isnan(segment.true_rewards).all()
            assert segment.env_id == "Pendulum-v1"


def test_labels_agree_with_bprefs_own_rule(tmp_path: Path) -> None:
    # B-Pref: label = 1 * (return of segment 1 < return of segment 2), -1 where they are equal.
    arrays = bpref_arrays(40)
    returns = np.random.default_rng(1).integers(0, 3, (40, 2))
    arrays["buffer_label"] = np.where(returns[:, 0] == returns[:, 1], -1, 1 * (returns[:, 0] < returns[:, 1]))[:, None]
    import_dataset(save_bpref(tmp_path / "bpref", arrays, "npz"), tmp_path / "out", "auto", PENDULUM)
    for preference, (first, second) in zip(PreferenceDataset(tmp_path / "out").preferences, returns, strict=True):
        better = Choice.EQUAL if first == second else Choice.LEFT if first > second else Choice.RIGHT
        assert preference.choice is better


@pytest.mark.parametrize(("is_full", "expected"), [(False, 4), (True, 6)])
@pytest.mark.parametrize("kind", ["npz", "pkl", "npy", "pt"])
def test_rows_of_a_buffer_that_are_not_filled_are_left_out(
    tmp_path: Path, kind: str, is_full: bool, expected: int
) -> None:
    arrays = {**bpref_arrays(), "buffer_index": 4, "buffer_full": is_full}
    arrays["buffer_label"][4:] = 0 if is_full else 7e30
    source = save_bpref(tmp_path / "bpref", arrays, kind)
    assert import_dataset(source, tmp_path / "out", "auto", PENDULUM).num_queries == expected


@pytest.mark.parametrize("is_one_hot", [True, False])
def test_discrete_actions_and_the_mark_of_absorbing_states(tmp_path: Path, is_one_hot: bool) -> None:
    arrays = bpref_arrays(width=4 + (2 if is_one_hot else 1))
    actions = np.random.default_rng(2).integers(0, 2, (2, 6, 5))
    for name, side in zip(("buffer_seg1", "buffer_seg2"), actions, strict=True):
        arrays[name][:, :, 4:] = np.eye(2)[side] if is_one_hot else side[..., None]
    import_dataset(save_bpref(tmp_path / "bpref", arrays, "npz"), tmp_path / "out", "auto", CARTPOLE)
    dataset = PreferenceDataset(tmp_path / "out")
    for i, preference in enumerate(dataset.preferences):
        segment = dataset.segment(preference.left_id)
        assert segment.actions.dtype == np.int32
        assert segment.actions.tolist() == actions[0, i].tolist()
        assert segment.observations.shape == (5, 5)
        assert not segment.observations[:, 4].any()
        np.testing.assert_array_equal(segment.observations[:, :4], arrays["buffer_seg1"][i, :, :4])


CHOICES = EnvLayout(
    "Made-v0",
    ArraySpec((4,), np.dtype("f4")),
    ArraySpec((), np.dtype("i4")),
    num_choices=(3,),
    first_choices=(5,),
)
MANY_CHOICES = EnvLayout(
    "Made-v0",
    ArraySpec((4,), np.dtype("f4")),
    ArraySpec((2,), np.dtype("i4")),
    num_choices=(3, 2),
    first_choices=(1, -1),
)


def test_choices_in_the_units_of_an_environment_that_counts_from_elsewhere() -> None:
    assert CHOICES.to_actions(np.array([5, 7, 6])).tolist() == [0, 2, 1]
    assert CHOICES.to_actions(np.array([[1, 0, 0], [0, 0, 1]])).tolist() == [0, 2]
    assert MANY_CHOICES.to_actions(np.array([[1, -1], [3, 0]])).tolist() == [[0, 0], [2, 1]]


@pytest.mark.parametrize(
    ("layout", "actions", "message"),
    [
        (CHOICES, [4, 5], "actions of Made-v0 are 5 to 7, not 4 to 5"),
        (CHOICES, [[1.0, 1.0, 0.0]], "must be one-hot"),
        (CARTPOLE, [[0.3, -0.8]], "must be one-hot"),
        (MANY_CHOICES, [[1, -1], [4, 0]], "are 1 to 3 at place 0, not 1 to 4"),
        (MANY_CHOICES, [[1, -1], [3, -2]], "are -1 to 0 at place 1, not -2 to -1"),
    ],
)
def test_actions_that_are_no_choice_are_refused(layout: EnvLayout, actions: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout.to_actions(np.array(actions))


def test_a_fragment_in_many_pairs_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = bpref_arrays(2)
    arrays = {name: np.repeat(value[:1], 300, axis=0) for name, value in arrays.items()}
    (batch,) = read_bpref(save_bpref(tmp_path / "same", arrays, "npz"), PENDULUM)
    assert (len(batch.segments), len(batch.preferences), batch.share) == (2, 300, 1.0)
    num_bytes = batch.segments[0].observations.nbytes + batch.segments[0].actions.nbytes
    monkeypatch.setattr(foreign, "BATCH_BYTES", 4 * num_bytes)
    batches = list(read_bpref(save_bpref(tmp_path / "different", bpref_arrays(5), "npz"), PENDULUM))
    assert [len(batch.segments) for batch in batches] == [4, 4, 2]
    assert [batch.share for batch in batches] == [0.4, 0.8, 1.0]


def test_a_batch_ends_after_so_many_answers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "BATCH_NUM_ANSWERS", 2)
    arrays = {name: np.repeat(value[:1], 5, axis=0) for name, value in bpref_arrays(2).items()}
    source = save_bpref(tmp_path / "same", arrays, "npz")
    assert [len(batch.preferences) for batch in read_bpref(source, PENDULUM)] == [2, 2, 1]
    counts = import_dataset(source, tmp_path / "out", "bpref", PENDULUM)
    assert (counts.num_segments, counts.num_queries) == (2, 5)
    assert PreferenceDataset(tmp_path / "out").num_queries == 5


@pytest.mark.parametrize("offset", [-400, -200, -60])
def test_a_damaged_npz_is_refused_in_one_line(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "labels.npz"
    np.savez_compressed(path, **bpref_arrays(200))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 + offset
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    assert_refused(lambda: import_dataset(path, tmp_path / "out", "auto", PENDULUM), "cannot be read as arrays")


@pytest.mark.parametrize(
    ("name", "change", "fragments"),
    [
        ("buffer_label", lambda labels: labels + 0.25, ("pair 0", "label is 0.25", "draw choices")),
        ("buffer_label", lambda labels: labels * np.nan, ("pair 0", "label is nan")),
        ("buffer_label", lambda labels: labels[1:], ("(N, 1)",)),
        ("buffer_index", lambda _: [1, 2], ("buffer_index must be one number",)),
        ("buffer_seg1", lambda steps: steps[:, 1:], ("(N, L, observation + action)",)),
        ("buffer_seg1", lambda steps: steps[0], ("(N, L, observation + action)",)),
        ("buffer_seg1", lambda steps: steps.astype(str), ("must be an array of numbers",)),
    ],
)
def test_buffers_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, change: Any, fragments: tuple[str, ...]
) -> None:
    arrays = bpref_arrays()
    arrays[name] = change(arrays.get(name))
    source = save_bpref(tmp_path / "bpref", arrays, "npz")
    assert_refused(lambda: import_dataset(source, tmp_path / "out", "auto", PENDULUM), *fragments)
    assert not (tmp_path / "out").exists()


def test_observations_of_more_dimensions_are_flattened_as_runs_do(tmp_path: Path, imitation: Any) -> None:
    lefts, rights = make_fragments(imitation, 0), make_fragments(imitation, 1)
    square = [
        [imitation.fragment(f.obs.reshape(6, 3, 1), f.acts, f.infos, f.terminal, f.rews) for f in side]
        for side in (lefts, rights)
    ]
    for name, sides in (("flat", (lefts, rights)), ("square", square)):
        source = tmp_path / "preferences.pkl"
        source.write_bytes(pickle.dumps((*sides, np.ones(4))))
        import_dataset(source, tmp_path / name, "auto", PENDULUM)
    flat, other = (PreferenceDataset(tmp_path / name).preferences for name in ("flat", "square"))
    assert [preference.query_id for preference in flat] == [preference.query_id for preference in other]


def test_the_environment_must_be_given_and_must_fit(tmp_path: Path) -> None:
    source = save_bpref(tmp_path / "bpref", bpref_arrays(), "npz")
    assert_refused(lambda: import_dataset(source, tmp_path / "out"), "Give --env")
    assert_refused(
        lambda: import_dataset(source, tmp_path / "out", "auto", CARTPOLE), "a step has 4 numbers", "5 or 6", "--env"
    )


@pytest.mark.parametrize("name", ["labels.npz", "labels.pt", "labels.pkl", "labels.npy"])
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x93NUMPY nothing of the kind")
    assert_refused(lambda: import_dataset(path, tmp_path / "out", "bpref", PENDULUM), name)


@pytest.mark.parametrize("change", ["requires_grad_", "bfloat16", "half", "double"])
def test_tensors_of_any_real_kind_are_imported(tmp_path: Path, change: str) -> None:
    arrays = {name: torch.as_tensor(value) for name, value in bpref_arrays().items()}
    arrays = {name: getattr(tensor, change)() for name, tensor in arrays.items()}
    torch.save(arrays, tmp_path / "labels.pt")
    import_dataset(tmp_path / "labels.pt", tmp_path / "out", "auto", PENDULUM)
    dataset = PreferenceDataset(tmp_path / "out")
    segment = dataset.segment(dataset.preferences[3].left_id)
    np.testing.assert_array_equal(segment.observations, arrays["buffer_seg1"][3, :, :3].detach().float().numpy())


def test_tensors_that_numpy_cannot_hold_are_refused(tmp_path: Path) -> None:
    arrays = {name: torch.as_tensor(value) for name, value in bpref_arrays().items()}
    for change, fragment in (("to_sparse", "buffer_seg2 is sparse"), ("cfloat", "array of numbers")):
        path = tmp_path / "labels.pt"
        torch.save({**arrays, "buffer_seg2": getattr(arrays["buffer_seg2"], change)()}, path)
        assert_refused(lambda path=path: import_dataset(path, tmp_path / "out", "auto", PENDULUM), fragment)


def test_tensors_of_more_numbers_than_the_file_has_are_refused(tmp_path: Path) -> None:
    arrays = {name: torch.as_tensor(value[:1]) for name, value in bpref_arrays().items()}
    path = tmp_path / "labels.pt"
    torch.save({name: tensor.expand(10**12, *tensor.shape[1:]) for name, tensor in arrays.items()}, path)
    assert path.stat().st_size < 4096
    message = "buffer_seg1 shows the same numbers many times, save what clone() returns"
    assert_refused(lambda: import_dataset(path, tmp_path / "out", "auto", PENDULUM), str(path), message)
    torch.save({name: tensor.expand(3, *tensor.shape[1:]).clone() for name, tensor in arrays.items()}, path)
    assert import_dataset(path, tmp_path / "out", "auto", PENDULUM).num_queries == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize(("column", "name"), [(1, "observations"), (3, "actions")])
def test_numbers_that_are_not_finite_as_stored_are_refused(
    tmp_path: Path, value: float, column: int, name: str
) -> None:
    arrays = bpref_arrays()
    arrays["buffer_seg2"] = arrays["buffer_seg2"].astype(np.float64)
    arrays["buffer_seg2"][4, 2, column] = value
    source = save_bpref(tmp_path / "bpref", arrays, "npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_refused(lambda: import_dataset(source, tmp_path / "out", "auto", PENDULUM), "pair 4", f"{name} must")


@pytest.mark.parametrize("value", [np.nan, 1e300, 2.0**32 + 1, 2])
@pytest.mark.parametrize("is_one_hot", [True, False])
def test_discrete_actions_that_are_none_are_refused(tmp_path: Path, value: float, is_one_hot: bool) -> None:
    arrays = {name: array.astype(np.float64) for name, array in bpref_arrays(width=4 + 1 + is_one_hot).items()}
    for name in ("buffer_seg1", "buffer_seg2"):
        arrays[name][:, :, 4:] = np.eye(2)[0] if is_one_hot else 0
    arrays["buffer_seg1"][1, 0, 4] = np.nan if is_one_hot else value
    source = save_bpref(tmp_path / "bpref", arrays, "npz")
    assert_refused(lambda: import_dataset(source, tmp_path / "out", "auto", CARTPOLE), "pair 1", "actions")


def test_actions_outside_the_bounds_of_a_box_are_kept(tmp_path: Path) -> None:
    arrays = bpref_arrays()
    arrays["buffer_seg1"][:, :, 3] = 3.0
    import_dataset(save_bpref(tmp_path / "bpref", arrays, "npz"), tmp_path / "out", "auto", PENDULUM)
    dataset = PreferenceDataset(tmp_path / "out")
    assert dataset.segment(dataset.preferences[0].left_id).actions.tolist() == [[1.5]] * 5


@pytest.mark.parametrize("name", ["buffer_seg1", "buffer_label", "buffer_index"])
def test_nested_lists_are_not_taken_for_arrays(tmp_path: Path, name: str) -> None:
    nested: list[Any] = [1.0]
    for _ in range(60):
        nested = [nested, nested]
    for value in (nested, [10**400, 1.5]):
        path = tmp_path / "labels.pkl"
        path.write_bytes(pickle.dumps({**bpref_arrays(), name: value}))
        assert_refused(lambda path=path: import_dataset(path, tmp_path / "out", "bpref", PENDULUM), f"{name} ")


@pytest.mark.parametrize("name", ["labels.npz", "labels.pt", "labels.pkl", "labels.npy"])
def test_files_that_name_a_program_run_nothing(tmp_path: Path, name: str) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(path, buffer_seg1=np.array([Evil()]))
    elif name.endswith("npy"):
        np.save(path, np.array([Evil()]), allow_pickle=True)
    elif name.endswith("pt"):
        torch.save({"buffer_seg1": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"buffer_seg1": Evil()}))
    for format_name in ("auto", "bpref", "imitation"):
        assert_refused(lambda f=format_name: import_dataset(path, tmp_path / "out", f, PENDULUM), name)
    assert not (tmp_path / "marker").exists()


# ---------------------------------------------------------------- imitation


def make_fragments(imitation: types.SimpleNamespace, seed: int, num: int = 4, length: int = 5) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        imitation.fragment(
            obs=rng.normal(size=(length + 1, 3)),
            acts=rng.uniform(-2, 2, (length, 1)).astype(np.float32),
            infos=np.array([{"step": i} for i in range(length)]),
            terminal=False,
            rews=rng.normal(size=length),
        )
        for _ in range(num)
    ]


def save_imitation(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "preferences.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("is_tuple", [True, False])
@pytest.mark.parametrize("format_name", ["auto", "imitation"])
def test_imitations_preferences_become_ours(
    tmp_path: Path, imitation: types.SimpleNamespace, is_tuple: bool, format_name: str
) -> None:
    lefts, rights = make_fragments(imitation, 0), make_fragments(imitation, 1)
    labels = np.array([1, 0, 0.5, 1], np.float32)
    content = (lefts, rights, labels) if is_tuple else imitation.dataset(lefts, rights, labels)
    counts = import_dataset(save_imitation(tmp_path, content), tmp_path / "out", format_name, PENDULUM)
    assert (counts.num_segments, counts.num_queries) == (8, 4)
    dataset = PreferenceDataset(tmp_path / "out")
    expected = [Choice.LEFT, Choice.RIGHT, Choice.EQUAL, Choice.LEFT]
    assert [preference.choice for preference in dataset.preferences] == expected
    for i, preference in enumerate(dataset.preferences):
        for fragment, segment_id in ((lefts[i], preference.left_id), (rights[i], preference.right_id)):
            segment = dataset.segment(segment_id)
            np.testing.assert_array_equal(segment.observations, fragment.obs[:-1].astype(np.float32))
            np.testing.assert_allclose(segment.actions, fragment.acts / 2, rtol=1e-6)
            np.testing.assert_array_equal(segment.true_rewards, fragment.rews.astype(np.float32))
    assert len(dataset.labelled_pairs()) == 4


def test_a_pair_of_a_fragment_with_itself_is_left_out_and_counted(
    tmp_path: Path, imitation: types.SimpleNamespace
) -> None:
    lefts, rights = make_fragments(imitation, 0), make_fragments(imitation, 1)
    rights[2] = lefts[2]
    source = save_imitation(tmp_path, imitation.dataset(lefts, rights, np.zeros(4)))
    counts = import_dataset(source, tmp_path / "out", "auto", PENDULUM)
    assert (counts.num_queries, counts.num_left_out) == (3, 1)


def test_fragments_that_do_not_fit_are_refused(tmp_path: Path, imitation: types.SimpleNamespace) -> None:
    lefts, rights = make_fragments(imitation, 0), make_fragments(imitation, 1)
    one = np.ones(4)

    def refused(content: Any, *fragments: str, layout: EnvLayout = PENDULUM) -> None:
        source = save_imitation(tmp_path, content)
        assert_refused(lambda: import_dataset(source, tmp_path / "out", "imitation", layout), *fragments)

    refused((lefts, rights, one * 0.7), "pair 0", "label is 0.7")
    refused((lefts, rights[1:], one), "4 and 3 fragments and 4 preferences")
    refused((lefts, rights), "fragments1, fragments2, preferences")
    refused({"a": 1}, "fragments1, fragments2, preferences")
    refused(([1, 2, 3, 4], rights, one), "pair 0", "no trajectory")
    refused((lefts, rights, one), "observations of a step have shape (3,)", "(4,)", layout=CARTPOLE)
    refused((lefts, make_fragments(imitation, 1, length=4), one), "same length")
    broken = [imitation.fragment(f.obs[:-1], f.acts, None, False, f.rews) for f in lefts]
    refused((broken, rights, one), "obs must have one step more")
    objects = [imitation.fragment(np.full((6, 3), None), f.acts, None, False, f.rews) for f in lefts]
    refused((objects, rights, one), "obs must be an array of numbers")
    flat = [imitation.fragment(np.float64(1) + np.zeros(()), f.acts, None, False, f.rews) for f in lefts]
    refused((flat, rights, one), "pair 0")
    empty = [imitation.fragment(np.ones((1, 2)), np.ones((0, 1)), None, False, np.ones(0)) for _ in lefts]
    refused((empty, rights, one), "pair 0")
    endless = [imitation.fragment(np.ones((2**40 + 1, 0)), np.ones((2**40, 0)), None, False, None) for _ in lefts]
    for fragment in endless:
        object.__delattr__(fragment, "rews")
    refused((endless, rights, one), "observations of a step have shape (0,)")
    unpaid = make_fragments(imitation, 0)
    unpaid[1].rews[2] = np.nan
    refused((unpaid, rights, one), "pair 1", "rewards must be finite, not nan")
    longer = make_fragments(imitation, 2, num=1, length=6)
    refused((lefts + longer, rights + make_fragments(imitation, 3, 1, 6), np.ones(5)), "mixes segments")
    assert [path.name for path in tmp_path.iterdir()] == ["preferences.pkl"]


def test_a_pickle_is_told_from_the_other_kind_by_its_content(tmp_path: Path, imitation: types.SimpleNamespace) -> None:
    source = save_imitation(
        tmp_path, imitation.dataset(make_fragments(imitation, 0), make_fragments(imitation, 1), [1] * 4)
    )
    import_dataset(source, tmp_path / "first", "auto", PENDULUM)
    source.write_bytes(pickle.dumps(bpref_arrays()))
    import_dataset(source, tmp_path / "second", "auto", PENDULUM)
    teachers = [PreferenceDataset(tmp_path / name).preferences[0].teacher for name in ("first", "second")]
    assert teachers == ["imitation", "bpref"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_pickle_is_imported_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, imitation: types.SimpleNamespace, data: st.DataObject
) -> None:
    pairs = imitation.dataset(make_fragments(imitation, 0, 2, 3), make_fragments(imitation, 1, 2, 3), np.ones(2))
    whole = bytearray(pickle.dumps(data.draw(st.sampled_from([pairs, bpref_arrays(2)]))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "data.pkl").write_bytes(bytes(whole))
    try:
        import_dataset(folder / "data.pkl", folder / "out", "auto", PENDULUM)
    except DataError:
        assert not (folder / "out").exists()
