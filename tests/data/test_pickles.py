import contextlib
import copyreg
import os
import pickle
import struct
import tracemalloc
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from themis_ray.data.exchange.pickles import ALLOWED, Fragment, FragmentPairs, StoredArray, read_pickle
from themis_ray.errors import DataError


def written(tmp_path: Path, content: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    path = tmp_path / "data.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


class Calls:
    """An object whose pickle calls a function with arguments."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def assert_refused(path: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        read_pickle(path)
    assert "\n" not in str(caught.value)
    for part in (str(path), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda marker: Calls(os.system, f"touch {marker}"), "system"),
        (lambda marker: Calls(exec, f"open({str(marker)!r}, 'w').close()"), "exec"),
        (lambda marker: Calls(eval, f"open({str(marker)!r}, 'w').close()"), "eval"),
        (lambda marker: Calls(getattr, os, "system"), "getattr"),
        (lambda marker: [1, {"infos": [Calls(os.system, f"touch {marker}")]}], "system"),
        (lambda marker: Calls(copyreg._reconstructor, object, object, None), "_reconstructor"),  # type: ignore[attr-defined]
    ],
    ids=["system", "exec", "eval", "getattr", "deep inside", "reconstructor"],
)
def test_a_pickle_that_names_a_function_is_refused_and_runs_nothing(
    tmp_path: Path, make: Any, name: str, protocol: int
) -> None:
    marker = tmp_path / "marker"
    try:
        path = written(tmp_path, make(marker), protocol)
    except TypeError:  # `os` itself cannot be pickled; its name is what counts.
        path = written(tmp_path, Calls(getattr, "os", "system"), protocol)
    assert_refused(path, name, "Nothing of it was run")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.Popen", "numpy.load", "numpy.ndarray.tofile", "torch.load", "pickle.loads"]
)
def test_names_with_dots_and_of_known_packages_are_refused_too(tmp_path: Path, name: str) -> None:
    for split in range(1, name.count(".") + 1):
        words = name.split(".")
        module, rest = ".".join(words[:split]), ".".join(words[split:])
        content = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, rest)) + b"\x93."
        assert_refused(written(tmp_path, content), name)


def test_the_table_holds_stand_ins_only() -> None:
    for stand_in in ALLOWED.values():
        assert stand_in.__module__ == "themis_ray.data.exchange.pickles"


def test_stand_ins_cannot_be_changed_by_a_pickle(tmp_path: Path) -> None:
    # GLOBAL pushes the class itself, BUILD sets a state or attributes on it.
    for (module, name), stand_in in ALLOWED.items():
        before = dict(vars(stand_in))
        for state in ({"fields": 1}, (None, {"fields": 1})):
            content = b"\x80\x02c" + f"{module}\n{name}\n".encode() + pickle.dumps(state, 2)[2:-1] + b"b."
            assert_refused(written(tmp_path, content))
        assert dict(vars(stand_in)) == before


def test_forged_flags_of_a_dtype_do_not_turn_bytes_into_pointers(tmp_path: Path) -> None:
    dtype = Calls(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))
    forged = Calls(
        np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        np.ndarray,
        (0,),
        b"b",
        state=(1, (1,), dtype, False, b"\x41" * 8),
    )
    found = read_pickle(written(tmp_path, forged))
    assert isinstance(found, StoredArray)
    assert found.values is None


@pytest.mark.parametrize("protocol", range(2, 6))
@settings(max_examples=40)
@given(st.data())
def test_arrays_come_back_bit_equal(
    tmp_path_factory: pytest.TempPathFactory, protocol: int, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(["?", "u1", "i4", ">i8", "f2", "<f4", ">f4", "f8"]))
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    found = read_pickle(written(tmp_path_factory.mktemp("pickle"), {"a": array, "b": [array[...]]}, protocol))
    for stored in (found["a"], found["b"][0]):
        assert stored.values.shape == array.shape
        assert stored.values.dtype == array.dtype.newbyteorder("=")
        assert stored.values.dtype.isnative
        assert stored.values.tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_values_come_back(tmp_path: Path, protocol: int) -> None:
    value = {"a": [1, 2.5, None, True, "word", b"bytes", b""], "b": ({1, 2}, frozenset({3}))}
    assert read_pickle(written(tmp_path, value, protocol)) == value
    assert read_pickle(written(tmp_path, [np.float32(1.5), np.int64(-3), np.bool_(True)], protocol)) == [1.5, -3, True]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_imitations_dataset_comes_as_stand_ins(tmp_path: Path, imitation: types.SimpleNamespace, protocol: int) -> None:
    infos = np.array([{"a": np.ones(2)}, {"TimeLimit.truncated": np.bool_(False)}, {}])
    fragment = imitation.fragment(np.ones((4, 2)), np.zeros((3, 1)), infos, True, np.arange(3.0))
    dataset = imitation.dataset([fragment], [fragment], np.array([1.0]))
    found = read_pickle(written(tmp_path, dataset, protocol))
    assert isinstance(found, FragmentPairs)
    (first,) = found.fields["fragments1"]
    assert isinstance(first, Fragment)
    assert sorted(first.fields) == ["acts", "obs", "rews"]
    assert first.fields["rews"].values.tolist() == [0, 1, 2]
    assert found.fields["preferences"].values.tolist() == [1]


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_pickle_is_refused_in_one_line_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "b": [np.float32(1), {2}, "x"]}))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.mktemp("pickle"), bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    with contextlib.suppress(DataError):
        read_pickle(path)


# A tuple in which each level holds the one below twice: 2^60 parts to hash or to print, in a few hundred bytes.
DOUBLED = b")" + b"".join(b"\x94h" + bytes([level]) + b"\x86" for level in range(60))
NAMED = {"encode": b"c_codecs\nencode\n", "set": b"cbuiltins\nset\n", "dict": b"ccollections\nOrderedDict\n"}


@pytest.mark.parametrize(
    "content",
    [
        b"\x8f(" + DOUBLED + b"\x90",
        b"(" + DOUBLED + b"\x91",
        b"}" + DOUBLED + b"Ns",
        b"}(" + DOUBLED + b"Nu",
        b"(" + DOUBLED + b"Nd",
        NAMED["set"] + b"(" + DOUBLED + b"l\x85R",
        NAMED["dict"] + b"(" + DOUBLED + b"N\x86l\x85R",
        NAMED["encode"] + b"X\x01\x00\x00\x00a" + DOUBLED + b"\x86R",
        b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85RN" + DOUBLED + b"\x86b",
        DOUBLED + b"Q",
    ],
    ids=["set", "frozenset", "item", "items", "dict", "set called", "dict called", "encoding", "byte order", "outside"],
)
def test_nested_tuples_are_neither_hashed_nor_printed(tmp_path: Path, content: bytes) -> None:
    assert_refused(written(tmp_path, b"\x80\x04" + content + b"."))


@pytest.mark.parametrize("opcode", [pickle.BYTEARRAY8, pickle.BINBYTES8, pickle.BINUNICODE8, pickle.FRAME])
def test_a_length_that_the_file_does_not_have_takes_no_memory(tmp_path: Path, opcode: bytes) -> None:
    path = written(tmp_path, b"\x80\x05" + opcode + struct.pack("<Q", 10**9) + b".")
    tracemalloc.start()
    try:
        assert_refused(path, "larger than the file")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "call",
    [
        NAMED["encode"] + b"h\x00X\x06\x00\x00\x00latin1\x86R",
        NAMED["encode"] + b"h\x00X\x06\x00\x00\x00latin1\x86\x81",
        b"(" + NAMED["encode"] + b"h\x00X\x06\x00\x00\x00latin1o",
    ],
    ids=["reduce", "newobj", "obj"],
)
def test_one_long_text_cannot_be_copied_again_and_again(tmp_path: Path, call: bytes) -> None:
    text = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"\x94"
    assert_refused(written(tmp_path, b"\x80\x04]" + text + b"0(" + call * 1000 + b"e."))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_bytearrays_sets_and_ordered_dicts_come_back(tmp_path: Path, protocol: int) -> None:
    value = [
        bytearray(b"ab" * 5000),
        {("x", 1), "y"},
        OrderedDict(a=1),
        {("x", 1): [(1, (2, (3,)))]},
        set(),
        bytearray(),
    ]
    if protocol < 5:  # Before 5 a bytearray is a call of bytearray, which the table does not have.
        value = value[1:-1]
    assert read_pickle(written(tmp_path, value, protocol)) == value


@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 0, 2), (2, 1, 0), (0, 1, 2)])
@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_with_other_orders_of_axes_come_back(tmp_path: Path, protocol: int, axes: tuple[int, ...]) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(axes)
    np.testing.assert_array_equal(read_pickle(written(tmp_path, [array], protocol))[0].values, array)


def test_a_missing_file_and_no_pickle_at_all_are_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.pkl", "No such file")
    assert_refused(written(tmp_path, b"hello"))
    assert_refused(written(tmp_path, b""))
