"""Preferences of other programs: imitation's pickles, and the label buffers of B-Pref and its descendants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.data.exchange.batches import BATCH_BYTES, Batch
from themis_ray.data.exchange.pickles import Fragment, FragmentPairs, StoredArray, read_pickle
from themis_ray.data.preferences import Choice, Preference
from themis_ray.data.segments import NUMERIC_KINDS, Query, Segment
from themis_ray.errors import DataError

__all__ = ["ArraySpec", "EnvLayout", "find_buffer", "read_bpref", "read_imitation"]

BUFFERS = ("buffer_seg1", "buffer_seg2", "buffer_label")
# How far B-Pref has filled its buffers: the rows after are not initialised.
BUFFER_ENDS = ("buffer_index", "buffer_full")
# A batch ends here too, as pairs may be about the same few segments.
BATCH_NUM_ANSWERS = 2**16
SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle")

IMITATION_CHOICES = {1.0: Choice.LEFT, 0.0: Choice.RIGHT, 0.5: Choice.EQUAL}
BPREF_CHOICES = {0.0: Choice.LEFT, 1.0: Choice.RIGHT, 0.5: Choice.EQUAL, -1.0: Choice.EQUAL}


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one step."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Numbers a step."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class EnvLayout:
    """What a run stores of an environment, which foreign data is brought into.

    Attributes:
        env_id: Id of the environment.
        observations: An observation of the environment itself.
        actions: An action.
        has_mark: Whether runs append a number to vectors that is 1 in absorbing states; imported steps get a 0.
        action_bounds: Lowest and highest action of a bounded Box, which runs store as -1 and 1; None leaves actions as
            they are.
        num_choices: How many values each whole number of an action can take, (A,), as runs store it; None for Box.
        first_choices: The lowest value of each in the environment's own units, which runs store as 0.
    """

    env_id: str
    observations: ArraySpec
    actions: ArraySpec
    has_mark: bool = False
    action_bounds: tuple[NDArray[Any], NDArray[Any]] | None = None
    num_choices: tuple[int, ...] | None = None
    first_choices: tuple[int, ...] = (0,)

    def to_observations(self, array: NDArray[Any]) -> NDArray[Any]:
        """Returns observations (L, ...) as runs store them.

        Raises:
            ValueError: They are of another size, or their numbers are not finite or do not fit the dtype.
        """
        observations = _to_spec("observations", array, self.observations, self.env_id)
        if self.has_mark:
            zeros = np.zeros((len(observations), 1), observations.dtype)
            observations = np.concatenate([observations, zeros], axis=1)
        return observations

    def to_actions(self, array: NDArray[Any]) -> NDArray[Any]:
        """Returns actions (L, ...) in the environment's own units as runs store them.

        Actions of a Box may lie outside its bounds: policies exceed them, and what they said is stored.

        Raises:
            ValueError: As in `to_observations`; or a whole number is not among the environment's choices.
        """
        _check_finite("actions", array)
        if self.num_one_hot is not None and array.shape[1:] == (self.num_one_hot,):
            if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
                raise ValueError(f"actions of {self.env_id} with {self.num_one_hot} numbers a step must be one-hot")
            array = array.argmax(axis=1) + self.first_choices[0]
        if self.actions.dtype.kind == "i" and array.dtype.kind == "f" and not (np.trunc(array) == array).all():
            raise ValueError(f"actions must be whole numbers, as those of {self.env_id} are")
        dtype = np.result_type(array, np.float32) if self.actions.dtype.kind == "f" else self.actions.dtype
        actions = _to_spec(
            "actions", _to_dtype("actions", array, dtype), ArraySpec(self.actions.shape, dtype), self.env_id
        )
        if self.num_choices is not None:
            actions = self._from_own_choices(actions)
        if self.action_bounds is not None:
            low, high = self.action_bounds
            # RLlib's normalize_action; runs store what the policy says, which RLlib stretches for the environment.
            with np.errstate(over="ignore"):
                actions = 2.0 * (actions - low) / np.where(high > low, high - low, 1.0) - 1.0
        return _to_dtype("actions", actions, self.actions.dtype)

    @property
    def num_one_hot(self) -> int | None:
        """Numbers of a one-hot action; None where actions are no single choice among several."""
        is_single = self.num_choices is not None and self.actions.shape == () and self.num_choices[0] > 1
        return self.num_choices[0] if is_single and self.num_choices is not None else None

    def _from_own_choices(self, actions: NDArray[Any]) -> NDArray[Any]:
        first, num = np.array(self.first_choices), np.array(self.num_choices)
        own = actions.reshape(len(actions), -1)
        outside = ((own < first) | (own >= first + num)).any(axis=0)
        if outside.any():
            i = int(outside.argmax())
            raise ValueError(
                f"actions of {self.env_id} are {first[i]} to {first[i] + num[i] - 1}"
                f"{f' at place {i}' if len(num) > 1 else ''}, not {own[:, i].min()} to {own[:, i].max()}"
            )
        zero_based: NDArray[Any] = (own - first).reshape(actions.shape)
        return zero_based


def read_imitation(path: Path, layout: EnvLayout, content: Any = None) -> Iterator[Batch]:
    """Reads what imitation's PreferenceDataset.save writes, or a pickled (fragments1, fragments2, preferences).

    A preference is p(first preferred): 1 is left, 0 right, 0.5 equal.

    Args:
        path: The pickle.
        layout: What to make of observations and actions.
        content: What `read_pickle` returned for it; None reads it.

    Raises:
        DataError: It is something else or damaged, a fragment does not fit the environment, or a preference is a
            probability that no choice stands for.
    """
    content = read_pickle(path) if content is None else content
    parts = tuple(content.fields.values()) if isinstance(content, FragmentPairs) else content
    if not isinstance(parts, tuple) or len(parts) != 3 or not all(isinstance(part, list | tuple) for part in parts[:2]):
        raise DataError(f"{path} holds no (fragments1, fragments2, preferences) of imitation. Give --format.")
    lefts, rights, preferences = parts
    labels = _numbers(preferences, f"preferences in {path}").reshape(-1)
    if not len(lefts) == len(rights) == len(labels):
        raise DataError(f"{path} holds {len(lefts)} and {len(rights)} fragments and {len(labels)} preferences.")

    stem = _stem(path)

    def make_side(fragment: Any, name: str) -> Segment:
        if not isinstance(fragment, Fragment) or not {"obs", "acts"} <= fragment.fields.keys():
            raise ValueError("it is no trajectory of imitation")
        obs, acts = (_numbers(fragment.fields[key], key) for key in ("obs", "acts"))
        if not obs.ndim or not acts.ndim or len(obs) != len(acts) + 1:
            raise ValueError(f"obs must have one step more than acts, not shapes {obs.shape} and {acts.shape}")
        rews = _numbers(fragment.fields["rews"], "rews") if "rews" in fragment.fields else None
        return _make_segment(layout, name, obs[:-1], acts, rews)

    def make_pair(i: int) -> tuple[Segment, Segment, Choice]:
        sides = (make_side(fragments[i], f"{stem}-{i}-{side}") for fragments, side in _sides(lefts, rights))
        return *sides, _choice(labels[i], IMITATION_CHOICES)  # type: ignore[return-value]

    return _batches(path, len(labels), make_pair, "imitation")


def read_bpref(path: Path, layout: EnvLayout, content: Any = None) -> Iterator[Batch]:
    """Reads the label buffers of B-Pref's reward model.

    buffer_seg1 and buffer_seg2 are (N, L, observation + action), buffer_label is (N, 1): 0 is left, 1 right, -1 or 0.5
    equal. Actions are in the environment's own units; a Discrete action is one number or one-hot. True rewards are not
    stored and become NaN. If buffer_index is there and buffer_full is not true, later rows are left out.

    Args:
        path: A .npz, .pt or pickle with the arrays under these names, or a folder with a file for each.
        layout: What to make of observations and actions.
        content: What `read_pickle` returned for it; None reads it.

    Raises:
        DataError: An array is missing, damaged or of another shape, or a label is none of these.
    """
    stored = _read_mapping(path) if content is None else content
    if not isinstance(stored, Mapping) or not set(BUFFERS) <= set(stored):
        found = ", ".join(map(str, stored)) if isinstance(stored, Mapping) else type(stored).__name__
        raise DataError(f"{path} must hold {', '.join(BUFFERS)}, not {found[:200] or 'nothing'}. Give --format.")
    lefts, rights, labels = (_numbers(stored[name], f"{name} in {path}") for name in BUFFERS)
    if lefts.ndim != 3 or lefts.shape != rights.shape or labels.size != len(lefts):
        raise DataError(
            f"{path}: buffer_seg1 and buffer_seg2 must be (N, L, observation + action) and buffer_label (N, 1), not "
            f"{lefts.shape}, {rights.shape} and {labels.shape}."
        )
    index, is_full = (_single(stored[name], name) if name in stored else None for name in BUFFER_ENDS)
    num_pairs = len(lefts) if index is None or is_full else min(len(lefts), int(index))
    labels = labels.reshape(-1)
    width = layout.observations.size
    widths = {width + layout.actions.size, width + (layout.num_one_hot or layout.actions.size)}
    if lefts.shape[2] not in widths:
        raise DataError(
            f"{path}: a step has {lefts.shape[2]} numbers, but observation and action of {layout.env_id} have "
            f"{' or '.join(str(size) for size in sorted(widths))}. Give the environment the data comes from as --env."
        )

    stem = _stem(path)

    def make_side(steps: NDArray[Any], name: str) -> Segment:
        actions = steps[:, width:]
        if actions.shape[1] == layout.actions.size:
            actions = actions.reshape(len(steps), *layout.actions.shape)
        observations = steps[:, :width].reshape(len(steps), *layout.observations.shape)
        return _make_segment(layout, name, observations, actions, None)

    def make_pair(i: int) -> tuple[Segment, Segment, Choice]:
        sides = (make_side(np.array(steps[i]), f"{stem}-{i}-{side}") for steps, side in _sides(lefts, rights))
        return *sides, _choice(labels[i], BPREF_CHOICES)  # type: ignore[return-value]

    return _batches(path, num_pairs, make_pair, "bpref")


def find_buffer(folder: Path, name: str) -> Path | None:
    """Returns the file of a buffer in a folder, None where there is none."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def _stem(path: Path) -> str:
    return path.stem.encode(errors="replace").decode()  # Names of files need not be text.


def _sides(lefts: Any, rights: Any) -> tuple[tuple[Any, str], tuple[Any, str]]:
    return (lefts, "left"), (rights, "right")


def _batches(
    path: Path, num_pairs: int, make_pair: Callable[[int], tuple[Segment, Segment, Choice]], teacher: str
) -> Iterator[Batch]:
    """Makes pairs into batches; a pair is the answer to a query at the time when the source was written."""
    time = datetime.fromtimestamp(max(0, int(path.stat().st_mtime)), UTC)
    segments: dict[str, Segment] = {}  # A fragment may be in many pairs.
    answers: list[Preference] = []
    num_left_out = 0
    for i in range(num_pairs):
        try:
            left, right, choice = make_pair(i)
            if left.id == right.id:
                num_left_out += 1
            else:
                query = Query(left, right)
                answers.append(Preference(query.id, left.id, right.id, choice, teacher, 0, 0, time, time))
                segments |= {left.id: left, right.id: right}
        except (ValueError, DataError) as error:
            raise DataError(f"{path}: pair {i} cannot be imported ({error}).") from error
        num_bytes = len(segments) * (left.observations.nbytes + left.actions.nbytes)
        if num_bytes >= BATCH_BYTES or len(answers) >= BATCH_NUM_ANSWERS or i == num_pairs - 1:
            yield Batch(list(segments.values()), answers, (i + 1) / num_pairs, num_left_out)
            segments, answers, num_left_out = {}, [], 0


def _make_segment(
    layout: EnvLayout, name: str, observations: NDArray[Any], actions: NDArray[Any], rewards: NDArray[Any] | None
) -> Segment:
    observations, actions = layout.to_observations(observations), layout.to_actions(actions)
    if rewards is None:  # Not known.
        stored = np.full(len(actions), np.nan, np.float32)
    else:
        stored = _to_dtype("rewards", rewards, np.dtype(np.float32))
    return Segment.create(layout.env_id, name, 0, observations, actions, stored)


def _to_spec(name: str, array: NDArray[Any], spec: ArraySpec, env_id: str) -> NDArray[Any]:
    if array.shape[1:] != spec.shape and len(spec.shape) == 1 and math.prod(array.shape[1:]) == spec.size:
        array = array.reshape(len(array), *spec.shape)  # Runs flatten every Box that is no image.
    if array.shape[1:] != spec.shape:
        raise ValueError(f"{name} of a step have shape {array.shape[1:]}, those of {env_id} have {spec.shape}")
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise ValueError(f"{name} are {array.dtype}, those of {env_id} are {spec.dtype}")
    return _to_dtype(name, array, spec.dtype)


def _to_dtype(name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns the numbers as they are stored, all of them finite.

    Raises:
        ValueError: One is not finite, or too large for the dtype.
    """
    _check_finite(name, array)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = array.astype(dtype)
    if not (np.isfinite(stored).all() if dtype.kind == "f" else np.array_equal(stored, array)):
        raise ValueError(f"{name} must fit {dtype}, but {array.min():g} to {array.max():g} do not")
    return stored


def _check_finite(name: str, array: NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, not {array[~np.isfinite(array)].flat[0]}")


def _choice(label: Any, choices: Mapping[float, Choice]) -> Choice:
    if float(label) not in choices:
        raise ValueError(
            f"its label is {float(label):g}; allowed are {', '.join(f'{known:g}' for known in choices)}, "
            "so draw choices from probabilities first"
        )
    return choices[float(label)]


def _numbers(value: Any, name: str) -> NDArray[Any]:
    """Returns an array, or the content of its stand-in."""
    array = value.values if isinstance(value, StoredArray) else value
    # Not lists of lists: the same few can be nested so that they stand for any number of numbers.
    if isinstance(array, bool | int | float | list):
        numbers = array if isinstance(array, list) else [array]
        try:
            array = np.asarray(array) if all(isinstance(number, bool | int | float) for number in numbers) else None
        except (ValueError, OverflowError):
            array = None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in NUMERIC_KINDS:
        raise DataError(f"{name} must be an array of numbers or a flat list of them")
    return array


def _single(value: Any, name: str) -> Any:
    array = _numbers(value, name)
    if array.size != 1 or not np.isfinite(array).all():
        raise DataError(f"{name} must be one number")
    return array.item()


def _read_mapping(path: Path) -> Any:
    """Returns the arrays of a file or folder by name; those of .npy and .pt files stay on disk until used."""
    if path.is_dir():
        files = {name: find_buffer(path, name) for name in (*BUFFERS, *BUFFER_ENDS)}
        return {name: _read_single(file) for name, file in files.items() if file is not None}
    return _read_file(path)


def _read_single(path: Path) -> Any:
    content = _read_file(path)
    if isinstance(content, Mapping) and len(content) == 1:
        (content,) = content.values()
    return content


def _read_file(path: Path) -> Any:
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path)
    if path.suffix not in (".npy", ".npz"):
        return read_pickle(path)
    try:
        stored = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        return dict(stored) if isinstance(stored, Mapping) else stored
    # numpy, zipfile and zlib report damage in many ways.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as arrays ({reason}); bring it back from a copy.") from error


def _read_torch(path: Path) -> Any:
    import torch  # Slow to import and needed here only.

    def to_numpy(name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.layout is not torch.strided:
            raise ValueError(f"{name} is sparse, save what to_dense() returns")
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError(f"{name} shows the same numbers many times, save what clone() returns")
        return (value.float() if value.dtype is torch.bfloat16 else value).detach().numpy()

    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(stored, Mapping):
            return {name: to_numpy(str(name), value) for name, value in stored.items()}
        return to_numpy("the tensor", stored)
    # torch reports damage and refused names in many ways; no code of the file was run.
    except Exception as error:
        reason = " ".join(str(error).split(". ")[0].split()) or type(error).__name__
        raise DataError(f"{path} is refused: only tensors, numbers and containers are read ({reason}).") from error
