"""Reads other people's pickles without running anything that they name.

A pickle is a program: it names functions of any module and calls them. Here each name is looked up in one table, and
what stands there is never the real thing but a stand-in that keeps plain numbers. That holds for numpy's own functions
too: a dtype with forged flags makes `ndarray.__setstate__` read raw bytes as pointers.
"""

from __future__ import annotations

import os
import pickle
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, BinaryIO, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from themis_ray.data.segments import NUMERIC_KINDS
from themis_ray.errors import DataError

__all__ = ["Fragment", "FragmentPairs", "StoredArray", "read_pickle"]

# What keys of a dict and members of a set may be, and how many of them in a tuple.
PLAIN = (str, bytes, bool, int, float, NoneType)
MAX_KEY_PARTS = 16
# What the standard library does at each opcode.
STANDARD: Mapping[int, Callable[[Any], None]] = pickle._Unpickler.dispatch


class StandIn:
    """Base of what stands in for a class or function; a pickle that sets a state where none belongs is refused."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"{type(self).__name__} takes no state")


class StoredDtype(StandIn):
    """Stands in for numpy.dtype.

    Args:
        code: As numpy pickles it: the kind and the bytes of an item, such as "f4".
        rest: Whether to align and copy; not used.
    """

    def __init__(self, code: str, *rest: Any) -> None:
        del rest
        self.code = code
        self.byte_order = "="

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order, the second of numpy's values; fields, flags and sizes are not believed."""
        if state[1] not in ("<", ">", "=", "|"):
            raise ValueError("a dtype without a byte order")
        self.byte_order = state[1].replace("|", "=")

    @property
    def is_numeric(self) -> bool:
        """Whether arrays of it hold booleans, integers or real numbers."""
        return self.code[:1] in NUMERIC_KINDS and self.code[1:].isdecimal()

    def to_numpy(self) -> np.dtype[Any]:
        """Returns the real dtype of the same kind, size and byte order."""
        return np.dtype(self.byte_order + self.code)


class StoredArray(StandIn):
    """Stands in for numpy.ndarray."""

    # A pickle makes objects by __new__ and never calls __init__.
    _stored: NDArray[Any] | None = None

    @property
    def values(self) -> NDArray[Any] | None:
        """The numbers in native byte order; None where the array holds anything else, such as objects."""
        # Not when it is read: many arrays of one pickle may be views of the same bytes.
        stored = self._stored
        return None if stored is None else stored.astype(stored.dtype.newbyteorder("="), copy=False)

    def __setstate__(self, state: Any) -> None:
        """Takes what ndarray.__reduce__ gives: (version, shape, dtype, is Fortran order, bytes or a list)."""
        shape, dtype, is_fortran, content = state[-4:]
        self._fill(content, dtype, shape, "F" if is_fortran else "C")

    def _fill(self, content: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> None:
        if not isinstance(dtype, StoredDtype):
            raise TypeError("an array without a dtype")
        if dtype.is_numeric:
            flat = np.frombuffer(content, dtype.to_numpy()) if len(content) else np.empty(0, dtype.to_numpy())
            array = flat.reshape(shape, order=order)
            self._stored = array if axis_order is None else array.transpose(axis_order)


class Reconstruct(StandIn):
    """Stands in for numpy's _reconstruct: an empty array whose content follows as its state."""

    def __new__(cls, kind: Any, shape: Any, code: Any) -> StoredArray:  # type: ignore[misc]
        """Returns the array; the arguments are always the same."""
        del kind, shape, code
        return StoredArray()


class FromBuffer(StandIn):
    """Stands in for numpy's _frombuffer, which pickle protocol 5 uses for contiguous arrays."""

    def __new__(  # type: ignore[misc]
        cls, buffer: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None
    ) -> StoredArray:
        """Returns the filled array; numpy 2.4 and later name the order of axes in which others are contiguous."""
        array = StoredArray()
        array._fill(buffer, dtype, shape, "C" if order == "K" else order, axis_order)
        return array


class Scalar(StandIn):
    """Stands in for numpy's scalar."""

    def __new__(cls, dtype: StoredDtype, content: Any = b"") -> Any:
        """Returns the number as one of Python's; None where it is no number."""
        return np.frombuffer(content, dtype.to_numpy())[0].item() if dtype.is_numeric else None


class Latin1Bytes(StandIn):
    """Stands in for _codecs.encode, by which protocols before 3 write bytes as text."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        """Returns the bytes."""
        if encoding != "latin1":
            raise ValueError("text that stands for bytes must be latin1")
        return text.encode("latin1")


class NoBytes(StandIn):
    """Stands in for bytes, by which protocols before 3 write empty bytes. bytes(n) would fill the memory."""

    def __new__(cls) -> bytes:  # type: ignore[misc]
        """Returns no bytes."""
        return b""


class PlainSet(StandIn):
    """Stands in for set: makes a set of plain members."""

    def __new__(cls, members: Any = ()) -> set[Any]:  # type: ignore[misc]
        """Returns the set."""
        return set(_checked_keys(members))


class PlainFrozenSet(StandIn):
    """Stands in for frozenset: makes a frozenset of plain members."""

    def __new__(cls, members: Any = ()) -> frozenset[Any]:  # type: ignore[misc]
        """Returns the frozenset."""
        return frozenset(_checked_keys(members))


class PlainDict(StandIn):
    """Stands in for OrderedDict: makes a dict with plain keys."""

    def __new__(cls, items: Any = ()) -> dict[Any, Any]:  # type: ignore[misc]
        """Returns the dict."""
        pairs = [(key, value) for key, value in items]
        return dict(zip(_checked_keys([key for key, _ in pairs]), (value for _, value in pairs), strict=True))


class Fragment(StandIn):
    """Stands in for the trajectories of imitation. What is in `infos` is dropped.

    Attributes:
        fields: obs (L + 1, ...), acts (L, ...) and, if there are true rewards, rews (L,).
    """

    fields: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Takes the attributes of the dataclass."""
        self.fields = {name: state[name] for name in ("obs", "acts", "rews") if name in state}


class FragmentPairs(StandIn):
    """Stands in for the PreferenceDataset of imitation.

    Attributes:
        fields: fragments1 and fragments2, lists of N `Fragment`, and preferences (N,), p(first preferred).
    """

    fields: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Takes the attributes of the object."""
        self.fields = {name: state[name] for name in ("fragments1", "fragments2", "preferences")}


# numpy 2 renamed its module; pickles of both kinds are around.
_NUMPY = {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", Reconstruct),
        ("multiarray", "scalar", Scalar),
        ("numeric", "_frombuffer", FromBuffer),
    )
}
_IMITATION = {
    ("imitation.data.types", "Trajectory"): Fragment,
    ("imitation.data.types", "TrajectoryWithRew"): Fragment,
    ("imitation.algorithms.preference_comparisons", "PreferenceDataset"): FragmentPairs,
}
# (module, name) in the pickle -> what is used in its place. Nothing else can be named.
ALLOWED: Mapping[tuple[str, str], type] = {
    **_NUMPY,
    **_IMITATION,
    ("numpy", "ndarray"): StoredArray,
    ("numpy", "dtype"): StoredDtype,
    ("_codecs", "encode"): Latin1Bytes,
    ("builtins", "bytes"): NoBytes,
    ("__builtin__", "bytes"): NoBytes,
    ("builtins", "set"): PlainSet,
    ("__builtin__", "set"): PlainSet,
    ("builtins", "frozenset"): PlainFrozenSet,
    ("__builtin__", "frozenset"): PlainFrozenSet,
    ("collections", "OrderedDict"): PlainDict,
}


def _checked_keys(keys: Iterable[Any]) -> list[Any]:
    """Returns keys that are hashed in the time of their length: a tuple in which tuples repeat takes forever."""
    keys = list(keys)
    for key in keys:
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) > MAX_KEY_PARTS or not all(isinstance(part, PLAIN) for part in parts):
            raise ValueError("a key or a member of a set is no plain value or short tuple of them")
    return keys


class _BoundedFile:
    """A file that is never asked for more bytes than it has: forged lengths would take the memory first."""

    def __init__(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else sys.maxsize
        self.readline = file.readline
        self._file = file

    def read(self, n: int = -1, /) -> bytes:
        """Returns at most `n` bytes."""
        if n > self.size:
            raise ValueError("a length in it is larger than the file")
        return self._file.read(n)


# The one in C makes its table of objects as long as a damaged index says, up to 64 GiB; Python's has a dict.
class _SafeUnpickler(pickle._Unpickler):
    """Looks names up in the table, and makes nothing that takes far more memory or time than the file has bytes."""

    # What stands after the last mark, or all objects where there is none.
    stack: list[Any]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(STANDARD)

    def __init__(self, file: _BoundedFile) -> None:
        super().__init__(file)
        self._num_left = file.size

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in of a name.

        Raises:
            DataError: The table has none.
        """
        if (module, name) not in ALLOWED:
            raise DataError(f"it names {module}.{name}, which is not read, as pickles can run any program")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuses references to objects outside the pickle."""
        name = f" ({str(pid)[:40]!r})" if isinstance(pid, PLAIN) else ""
        raise DataError(f"it refers to an object outside the pickle{name}")

    def load_bytearray8(self) -> None:
        """Reads a bytearray; the one of the standard library fills it with zeros before it looks at the file."""
        num_bytes = int.from_bytes(self.read(8), "little")
        content = bytearray(self.read(num_bytes))
        if len(content) < num_bytes:
            raise EOFError("it ends too early")
        self.stack.append(content)

    def load_setitem(self) -> None:
        """Sets an item of a dict."""
        _checked_keys(self.stack[-2:-1])
        STANDARD[pickle.SETITEM[0]](self)

    def load_setitems(self) -> None:
        """Sets items of a dict."""
        _checked_keys(self.stack[::2])
        STANDARD[pickle.SETITEMS[0]](self)

    def load_dict(self) -> None:
        """Makes a dict."""
        _checked_keys(self.stack[::2])
        STANDARD[pickle.DICT[0]](self)

    def load_additems(self) -> None:
        """Adds members to a set."""
        _checked_keys(self.stack)
        STANDARD[pickle.ADDITEMS[0]](self)

    def load_frozenset(self) -> None:
        """Makes a frozenset."""
        _checked_keys(self.stack)
        STANDARD[pickle.FROZENSET[0]](self)

    def load_reduce(self) -> None:
        """Calls a stand-in. Calls copy their argument, and the same one may be given again and again."""
        argument = next(iter(self.stack[-1]), None)
        self._num_left -= len(argument) if isinstance(argument, str | list | tuple | set | frozenset | dict) else 0
        if self._num_left < 0:
            raise ValueError("it copies more than the file has bytes")
        STANDARD[pickle.REDUCE[0]](self)

    def load_newobj(self) -> None:
        """Makes an object of a stand-in, whose state follows."""
        if self.stack[-1] != ():
            raise ValueError("an object is made with arguments")
        STANDARD[pickle.NEWOBJ[0]](self)

    def load_old_object(self) -> NoReturn:
        """Refuses other ways to make objects, which no pickle that we read has."""
        raise ValueError("it makes objects in a way that is not read")

    dispatch.update(
        {
            pickle.BYTEARRAY8[0]: load_bytearray8,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.DICT[0]: load_dict,
            pickle.ADDITEMS[0]: load_additems,
            pickle.FROZENSET[0]: load_frozenset,
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_newobj,
            pickle.NEWOBJ_EX[0]: load_old_object,
            pickle.INST[0]: load_old_object,
            pickle.OBJ[0]: load_old_object,
        }
    )


def read_pickle(path: Path) -> Any:
    """Reads a pickle of built-in containers, numbers, text, numpy arrays and imitation's preference data.

    Arrays come as `StoredArray`, trajectories as `Fragment`, imitation's dataset as `FragmentPairs`. The whole file is
    read into memory.

    Raises:
        DataError: It cannot be read, is no pickle, or names anything that is not in `ALLOWED`.
    """
    try:
        with path.open("rb") as file:
            return _SafeUnpickler(_BoundedFile(file)).load()
    except DataError as error:
        raise DataError(f"{path} is refused: {error}. Nothing of it was run. Save plain arrays instead.") from None
    # A damaged pickle can fail in any way: whatever it says, the file is at fault.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is no pickle that can be read ({reason}); bring it back from a copy.") from error
