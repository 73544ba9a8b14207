"""Where candidate segments come from: the newest episodes, kept in a bounded pool."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from themis_ray.data.segments import Origin, Query, Segment, check_steps
from themis_ray.errors import TooFewSegmentsError

NUM_RETURNS_KEPT = 100
NUM_REDRAWS = 16
# The origin of an episode that goes on for longer is forgotten: 4 million discrete actions, 250 000 of 17 joints.
MAX_HISTORY_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class EpisodeChunk:
    """Consecutive steps of one episode, as a learner collects them.

    Attributes:
        episode_id: Id of the episode.
        start_step: Env steps of the episode before the first step of the chunk.
        observations: (T, *observation_shape), T >= 1, what the agent saw before each action.
        actions: (T, *action_shape).
        true_rewards: (T,) rewards of the environment; become float32.
        is_done: Whether the episode ends with the last step, terminated or truncated.
        num_absorbing_steps: How many of the last steps began in the absorbing state that fills an episode up to a
            fixed horizon. Nothing happens in them.
        reset_seed: What the environment was reset with, known with the first steps of an episode; None where it is
            not known.

    Raises:
        ValueError: As for `Segment`; or there are more absorbing steps than steps.
    """

    episode_id: str
    start_step: int
    observations: NDArray[Any]
    actions: NDArray[Any]
    true_rewards: NDArray[np.float32]
    is_done: bool
    num_absorbing_steps: int = 0
    reset_seed: int | None = None

    def __post_init__(self) -> None:
        if self.start_step < 0:
            raise ValueError(f"start_step must be at least 0, not {self.start_step}")
        if not 0 <= self.num_absorbing_steps <= len(self.true_rewards):
            raise ValueError(f"num_absorbing_steps is {self.num_absorbing_steps} of {len(self.true_rewards)} steps")
        object.__setattr__(self, "true_rewards", np.asarray(self.true_rewards, dtype=np.float32))
        check_steps(self.observations, self.actions, self.true_rewards)

    def __len__(self) -> int:
        return len(self.true_rewards)


class _History:
    """All actions of an episode since its reset, whichever pieces of it are still there."""

    def __init__(self, reset_seed: int, actions: NDArray[Any]) -> None:
        self.reset_seed = reset_seed
        self._actions = np.array(actions)
        self._length = len(actions)

    @staticmethod
    def after(history: _History | None, chunk: EpisodeChunk) -> _History | None:
        """Returns the history with the chunk's actions added; None where the actions before are not all known."""
        if chunk.start_step == 0:
            return None if chunk.reset_seed is None else _History(chunk.reset_seed, chunk.actions)
        if history is None or history._length != chunk.start_step:
            return None
        stop = history._length + len(chunk)
        if stop * history._actions[:1].nbytes > MAX_HISTORY_BYTES:
            return None
        history._actions = _extended(history._actions, history._length, chunk.actions, chunk.is_done)
        history._length = stop
        return history

    def origin(self, step: int) -> Origin:
        earlier = self._actions[:step]
        earlier.flags.writeable = False
        return Origin(self.reset_seed, earlier)

    def get_state(self) -> dict[str, Any]:
        return {"reset_seed": self.reset_seed, "actions": self._actions[: self._length]}


class _Piece:
    """Steps of one episode without a gap, in arrays that grow by doubling.

    Rows that are filled are never written again, so views of them stay valid.
    """

    def __init__(self, chunk: EpisodeChunk, history: _History | None = None) -> None:
        self.history = history
        self.episode_id = chunk.episode_id
        self.start_step = chunk.start_step
        self.is_done = chunk.is_done
        self.arrays = [np.array(array) for array in (chunk.observations, chunk.actions, chunk.true_rewards)]
        self.length = len(chunk)
        self.num_absorbing_steps = chunk.num_absorbing_steps

    @property
    def stop_step(self) -> int:
        return self.start_step + self.length

    def extend(self, chunk: EpisodeChunk) -> None:
        for i, new in enumerate((chunk.observations, chunk.actions, chunk.true_rewards)):
            self.arrays[i] = _extended(self.arrays[i], self.length, new, chunk.is_done)
        self.length += len(chunk)
        self.num_absorbing_steps += chunk.num_absorbing_steps
        self.is_done = chunk.is_done

    def num_starts(self, length: int) -> int:
        """Segments of `length` steps that begin before the absorbing state; they may reach into it."""
        return max(0, min(self.length - length + 1, self.length - self.num_absorbing_steps))

    def read_only(self, start: int, stop: int) -> list[NDArray[Any]]:
        views = [array[start:stop] for array in self.arrays]
        for view in views:
            view.flags.writeable = False
        return views


class EpisodePool:
    """Keeps the newest episodes of one environment and cuts segments out of them.

    Steps that follow each other are joined by episode id; a gap starts a new piece, and no
    segment reaches over a gap or an episode's end. When a limit is passed, the pieces that
    went longest without a new step are dropped whole, never the newest one. An episode that
    alone would fill half of the pool goes on in a new piece, so that an endless one stays
    within the limits too. Observations keep their dtype: uint8 frames stay uint8.

    Args:
        env_id: Id of the environment, part of every segment.
        max_num_env_steps: Most env steps kept.
        max_bytes: Most bytes of filled rows kept. Arrays of unfinished episodes grow by
            doubling and may take twice their share.

    Raises:
        ValueError: A limit is below 1.
    """

    def __init__(self, env_id: str, max_num_env_steps: int, max_bytes: int = 2**30) -> None:
        if max_num_env_steps < 1 or max_bytes < 1:
            raise ValueError(f"both limits must be at least 1, not {max_num_env_steps} steps and {max_bytes} bytes")
        self.env_id = env_id
        self.max_num_env_steps = max_num_env_steps
        self.max_bytes = max_bytes
        self._clear()

    def _clear(self) -> None:
        self._pieces: dict[int, _Piece] = {}  # by number, the one extended last at the end
        self._open: dict[str, int] = {}  # number of the piece that an episode goes on in
        # True return and env steps so far of each unfinished episode whose every step was seen; pieces may be dropped.
        self._running: dict[str, tuple[float, int]] = {}
        self._next_number = 0
        self._num_env_steps = 0
        self._layout: list[tuple[Any, ...]] | None = None
        self._bytes_per_step = 0
        self._returns: deque[tuple[float, int]] = deque(maxlen=NUM_RETURNS_KEPT)

    @property
    def num_env_steps(self) -> int:
        """Env steps in the pool."""
        return self._num_env_steps

    @property
    def num_episodes(self) -> int:
        """Pieces of episodes in the pool; an episode without gaps is one piece."""
        return len(self._pieces)

    def add(self, chunk: EpisodeChunk) -> None:
        """Stores a chunk and drops the oldest pieces while a limit is passed.

        Raises:
            ValueError: Observations or actions differ in shape or dtype from those before.
        """
        self._check_layout(chunk)
        number = self._open.pop(chunk.episode_id, None)
        piece = None if number is None else self._pieces[number]
        follows = piece is not None and chunk.start_step == piece.stop_step
        if number is not None and piece is not None and follows and self._has_room(piece, chunk):
            del self._pieces[number]
            piece.history = _History.after(piece.history, chunk)
            piece.extend(chunk)
        else:
            number = self._next_number
            self._next_number += 1
            history = _History.after(piece.history if piece is not None and follows else None, chunk)
            piece = _Piece(chunk, history)
        self._pieces[number] = piece
        self._num_env_steps += len(chunk)
        if not chunk.is_done:
            self._open[chunk.episode_id] = number
        self._count_return(chunk)
        self._drop_oldest()

    def _count_return(self, chunk: EpisodeChunk) -> None:
        """Adds a chunk to the return of its episode, which is remembered at the end; a gap forgets it."""
        true_return, num_steps = self._running.pop(chunk.episode_id, (0.0, 0))
        if chunk.start_step == 0:
            true_return, num_steps = 0.0, 0
        if chunk.start_step != num_steps:
            return
        true_return += float(chunk.true_rewards.sum(dtype=np.float64))
        if chunk.is_done:
            self._returns.append((true_return, num_steps + len(chunk)))
        else:
            self._running[chunk.episode_id] = (true_return, num_steps + len(chunk))

    def num_starts(self, length: int) -> int:
        """Counts the segments of `length` steps in the pool, those of unfinished episodes too.

        A segment may end in the absorbing state but does not begin there: two segments in which nothing happens
        teach nothing, and most steps of an early failure are such.

        Raises:
            ValueError: `length` is below 1.
        """
        return int(self._num_starts_per_piece(length).sum())

    def sample_segments(self, n: int, length: int, rng: np.random.Generator) -> list[Segment]:
        """Draws `n` segments with replacement, uniformly over all valid starts.

        Returns:
            Segments whose arrays are read-only views of the pool.

        Raises:
            TooFewSegmentsError: No episode has `length` steps.
            ValueError: `length` is below 1.
        """
        counts = self._num_starts_per_piece(length)
        if n and not counts.any():
            raise TooFewSegmentsError(self._too_little(1, length))
        return self._cut(rng.integers(max(counts.sum(), 1), size=n), counts, length)

    def sample_queries(
        self, n: int, length: int, rng: np.random.Generator, newest_num_episodes: int | None = None
    ) -> list[Query]:
        """Draws `n` queries: left uniformly over all starts, right over those that differ.

        Segments of different episodes or times can have the same content and thus the same
        id; such a pair is never returned.

        Args:
            n: How many queries.
            length: Env steps per segment.
            rng: Draws them.
            newest_num_episodes: Draw from this many episodes only, those that were extended last of the ones that
                hold a segment; from more of them while these hold fewer than two distinct segments. None draws from
                the whole pool.

        Raises:
            TooFewSegmentsError: The pool holds fewer than two distinct segments of `length` steps.
            ValueError: `length` or `newest_num_episodes` is below 1.
        """
        counts = self._num_starts_per_piece(length)
        if newest_num_episodes is None:
            return self._draw_queries(n, length, rng, counts)
        if newest_num_episodes < 1:
            raise ValueError(f"newest_num_episodes must be at least 1, not {newest_num_episodes}")
        num_with_start = int(np.count_nonzero(counts))
        while newest_num_episodes < num_with_start:
            newest = counts.copy()
            newest[: np.flatnonzero(counts)[-newest_num_episodes]] = 0
            try:
                return self._draw_queries(n, length, rng, newest)
            except TooFewSegmentsError:
                newest_num_episodes *= 2
        return self._draw_queries(n, length, rng, counts)

    def _draw_queries(self, n: int, length: int, rng: np.random.Generator, counts: NDArray[np.int64]) -> list[Query]:
        """Draws from pieces with `counts` starts each."""
        num_starts = int(counts.sum())
        if n and num_starts < 2:
            raise TooFewSegmentsError(self._too_little(2, length))
        lefts = rng.integers(max(num_starts, 1), size=n)
        # One step to all others round the circle: uniform, and never the same start.
        rights = (lefts + rng.integers(1, max(num_starts, 2), size=n)) % max(num_starts, 1)
        pairs = zip(self._cut(lefts, counts, length), self._cut(rights, counts, length), strict=True)
        return [
            Query(left, right if right.id != left.id else self._draw_other(left, counts, rng)) for left, right in pairs
        ]

    def recent_returns(self, n: int = 10) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """True returns and lengths of the last `n` finished episodes, the newest last.

        Only episodes whose every step was seen count. The last 100 are remembered, also
        after the pool has dropped their steps.

        Returns:
            Two arrays of shape (at most n,): undiscounted returns, and lengths in env steps.
        """
        last = list(self._returns)[-n:] if n > 0 else []
        returns = np.array([true_return for true_return, _ in last], dtype=np.float64)
        return returns, np.array([length for _, length in last], dtype=np.int64)

    def get_state(self) -> dict[str, Any]:
        """Returns all that `set_state` needs to go on bit-equally; it can be pickled."""
        histories = {id(piece.history): piece.history.get_state() for piece in self._pieces.values() if piece.history}
        pieces = [
            {
                "episode_id": piece.episode_id,
                "start_step": piece.start_step,
                "arrays": piece.read_only(0, piece.length),
                "is_done": piece.is_done,
                "num_absorbing_steps": piece.num_absorbing_steps,
                "is_open": self._open.get(piece.episode_id) == number,
                "history": histories.get(id(piece.history)),
            }
            for number, piece in self._pieces.items()
        ]
        return {
            "env_id": self.env_id,
            "pieces": pieces,
            "returns": list(self._returns),
            "running": dict(self._running),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Replaces the content by that of `state`, from `get_state` of a pool of the same environment.

        Raises:
            ValueError: The state is of another environment.
        """
        if state["env_id"] != self.env_id:
            raise ValueError(f"the state is of environment {state['env_id']!r}, the pool of {self.env_id!r}")
        self._clear()
        self._returns.extend(state["returns"])
        histories: dict[int, _History] = {}  # pieces of one episode share theirs
        for number, stored in enumerate(state["pieces"]):
            observations, actions, true_rewards = stored["arrays"]
            chunk = EpisodeChunk(
                stored["episode_id"],
                stored["start_step"],
                observations,
                actions,
                true_rewards,
                stored["is_done"],
                stored["num_absorbing_steps"],
            )
            self._check_layout(chunk)
            history = stored.get("history")
            if history is not None and id(history) not in histories:
                histories[id(history)] = _History(**history)
            self._pieces[number] = piece = _Piece(chunk, histories.get(id(history)))
            self._num_env_steps += len(chunk)
            if stored["is_open"]:
                self._open[chunk.episode_id] = number
                if stored.get("true_return") is not None:  # Earlier checkpoints kept it with the piece.
                    self._running[chunk.episode_id] = (stored["true_return"], piece.stop_step)
        self._running |= state.get("running", {})
        self._next_number = len(self._pieces)
        self._drop_oldest()

    def _check_layout(self, chunk: EpisodeChunk) -> None:
        layout = [(array.shape[1:], array.dtype) for array in (chunk.observations, chunk.actions)]
        if self._layout is None:
            self._layout = layout
            arrays = (chunk.observations, chunk.actions, chunk.true_rewards)
            self._bytes_per_step = sum(array[0].nbytes for array in arrays)
        if layout != self._layout:
            raise ValueError(f"shapes and dtypes of a step must stay {self._layout}, not become {layout}")

    def _has_room(self, piece: _Piece, chunk: EpisodeChunk) -> bool:
        length = piece.length + len(chunk)
        return 2 * length <= self.max_num_env_steps and 2 * length * self._bytes_per_step <= self.max_bytes

    def _drop_oldest(self) -> None:
        while len(self._pieces) > 1 and (
            self._num_env_steps > self.max_num_env_steps or self._num_env_steps * self._bytes_per_step > self.max_bytes
        ):
            number = next(iter(self._pieces))
            piece = self._pieces.pop(number)
            self._num_env_steps -= piece.length
            if self._open.get(piece.episode_id) == number:
                del self._open[piece.episode_id]

    def _num_starts_per_piece(self, length: int) -> NDArray[np.int64]:
        if length < 1:
            raise ValueError(f"a segment needs at least 1 step, not {length}")
        return np.fromiter((piece.num_starts(length) for piece in self._pieces.values()), np.int64, len(self._pieces))

    def _cut(self, starts: NDArray[np.int64], counts: NDArray[np.int64], length: int) -> list[Segment]:
        """Cuts the segments numbered `starts`, counting all valid starts of all pieces in order."""
        ends = np.cumsum(counts)
        rows = np.searchsorted(ends, starts, side="right")
        pieces = list(self._pieces.values())
        segments = []
        for row, start in zip(rows, starts, strict=True):
            piece, offset = pieces[row], int(start - ends[row] + counts[row])
            observations, actions, true_rewards = piece.read_only(offset, offset + length)
            step = piece.start_step + offset
            origin = None if piece.history is None else piece.history.origin(step)
            segments.append(
                Segment.create(self.env_id, piece.episode_id, step, observations, actions, true_rewards, origin)
            )
        return segments

    def _draw_other(self, left: Segment, counts: NDArray[np.int64], rng: np.random.Generator) -> Segment:
        """Draws uniformly among the starts whose content differs from `left`."""
        num_starts = int(counts.sum())
        # A few plain draws nearly always do; where they do not, looking at every start in a
        # random order has the same distribution and ends.
        for start in rng.integers(num_starts, size=NUM_REDRAWS):
            (other,) = self._cut(np.array([start]), counts, len(left))
            if other.id != left.id:
                return other
        for start in rng.permutation(num_starts):
            (other,) = self._cut(np.array([start]), counts, len(left))
            if other.id != left.id:
                return other
        raise TooFewSegmentsError(self._too_little(2, len(left)))

    def _too_little(self, num_needed: int, length: int) -> str:
        return (
            f"{num_needed} distinct segments of {length} steps are needed, but the pool's {self.num_env_steps} "
            f"env steps in {self.num_episodes} episodes hold fewer; collect more steps or shorten segment_length"
        )


def _extended(array: NDArray[Any], length: int, new: NDArray[Any], is_last: bool) -> NDArray[Any]:
    """Returns the array with rows from `length` on filled; it may be a larger copy, and is cut to size if last."""
    stop = length + len(new)
    if stop > len(array):
        grown = np.empty((stop if is_last else max(stop, 2 * len(array)), *new.shape[1:]), new.dtype)
        grown[:length] = array[:length]
        array = grown
    elif is_last:
        array = array[:stop].copy()
    array[length:stop] = new
    return array
