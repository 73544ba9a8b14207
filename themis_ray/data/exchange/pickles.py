"""Reads other people's pickles without running anything that they name.

A pickle is a program: it names functions of any module and calls them. Here each name is looked up in one table, and
what stands there is never the real thing but a stand-in that keeps plain numbers. That holds for numpy's own functions
too: a dtype with forged flags makes `ndarray.__setstate__` read raw bytes as pointers.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from themis_ray.data.segments import NUMERIC_KINDS
from themis_ray.errors import DataError

__all__ = ["Fragment", "FragmentPairs", "StoredArray", "read_pickle"]


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
        self.byte_order = {"<": "<", ">": ">", "=": "=", "|": "="}[state[1]]

    @property
    def is_numeric(self) -> bool:
        """Whether arrays of it hold booleans, integers or real numbers."""
        return self.code[:1] in NUMERIC_KINDS and self.code[1:].isdecimal()

    def to_numpy(self) -> np.dtype[Any]:
        """Returns the real dtype of the same kind, size and byte order."""
        return np.dtype(self.byte_order + self.code)


class StoredArray(StandIn):
    """Stands in for numpy.ndarray.

    Attributes:
        values: The numbers in native byte order; None where the array holds anything else, such as objects.
    """

    # A pickle makes objects by __new__ and never calls __init__.
    values: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        """Takes what ndarray.__reduce__ gives: (version, shape, dtype, is Fortran order, bytes or a list)."""
        shape, dtype, is_fortran, content = state[-4:]
        self._fill(content, dtype, shape, "F" if is_fortran else "C")

    def _fill(self, content: Any, dtype: Any, shape: Any, order: Any) -> None:
        if not isinstance(dtype, StoredDtype):
            raise TypeError("an array without a dtype")
        if dtype.is_numeric:
            flat = np.frombuffer(content, dtype.to_numpy()) if len(content) else np.empty(0, dtype.to_numpy())
            values = flat.reshape(shape, order=order)
            self.values = values.astype(values.dtype.newbyteorder("="), copy=False)


class Reconstruct(StandIn):
    """Stands in for numpy's _reconstruct: an empty array whose content follows as its state."""

    def __new__(cls, kind: Any, shape: Any, code: Any) -> StoredArray:  # type: ignore[misc]
        """Returns the array; the arguments are always the same."""
        del kind, shape, code
        return StoredArray()


class FromBuffer(StandIn):
    """Stands in for numpy's _frombuffer, which pickle protocol 5 uses for contiguous arrays."""

    def __new__(cls, buffer: Any, dtype: Any, shape: Any, order: Any) -> StoredArray:  # type: ignore[misc]
        """Returns the filled array."""
        array = StoredArray()
        array._fill(buffer, dtype, shape, order)
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
            raise ValueError(f"encoding {encoding}")
        return text.encode("latin1")


class NoBytes(StandIn):
    """Stands in for bytes, by which protocols before 3 write empty bytes. bytes(n) would fill the memory."""

    def __new__(cls) -> bytes:  # type: ignore[misc]
        """Returns no bytes."""
        return b""


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
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "frozenset"): frozenset,
    ("collections", "OrderedDict"): dict,
}


# The one in C makes its table of objects as long as a damaged index says, up to 64 GiB; Python's has a dict.
class _SafeUnpickler(pickle._Unpickler):
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
        raise DataError(f"it refers to an object outside the pickle ({str(pid)[:40]!r})")


def read_pickle(path: Path) -> Any:
    """Reads a pickle of built-in containers, numbers, text, numpy arrays and imitation's preference data.

    Arrays come as `StoredArray`, trajectories as `Fragment`, imitation's dataset as `FragmentPairs`. The whole file is
    read into memory.

    Raises:
        DataError: It cannot be read, is no pickle, or names anything that is not in `ALLOWED`.
    """
    try:
        with path.open("rb") as file:
            return _SafeUnpickler(file).load()
    except DataError as error:
        raise DataError(f"{path} is refused: {error}. Nothing of it was run. Save plain arrays instead.") from None
    # A damaged pickle can fail in any way: whatever it says, the file is at fault.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is no pickle that can be read ({reason}); bring it back from a copy.") from error
