"""What feedback is about: pieces of episodes, and ordered pairs of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ID_BYTES = 16
NUMERIC_KINDS = "biuf"


@dataclass(frozen=True, eq=False)
class Origin:
    """How to come to the first step of a segment again: reset the environment with this seed, then act like this.

    Attributes:
        reset_seed: What the environment was reset with when the episode began.
        earlier_actions: (start_step, *action_shape), the actions before the segment.
    """

    reset_seed: int
    earlier_actions: NDArray[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "earlier_actions", _read_only(self.earlier_actions))


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive steps of one episode; immutable, and named by its content.

    Two segments are equal when their ids are. Arrays that can be written to are copied,
    read-only ones are kept as they are, so that segments cut from a pool or read from a
    file cost no memory. Rewards become float32; everything else keeps its dtype.

    Attributes:
        id: 32 hexadecimal digits, see `create`.
        env_id: Id of the environment the steps come from.
        episode_id: Id of the episode.
        start_step: Env steps of the episode before the first step of the segment.
        observations: (L, *observation_shape), what the agent saw before each action.
        actions: (L, *action_shape).
        true_rewards: (L,) float32, rewards of the environment. Teachers may see them, the
            learner never does.
        origin: How to come to its first step again; None where that is not known. It is not
            pickled, as it may be much larger than the segment.

    Raises:
        ValueError: The arrays have no step, different numbers of steps or no numeric dtype
            in native byte order, `start_step` is negative, or the origin is that of another step.
    """

    id: str
    env_id: str
    episode_id: str
    start_step: int
    observations: NDArray[Any]
    actions: NDArray[Any]
    true_rewards: NDArray[np.float32]
    origin: Origin | None = None

    def __post_init__(self) -> None:
        if self.start_step < 0:
            raise ValueError(f"start_step must be at least 0, not {self.start_step}")
        if self.origin is not None and len(self.origin.earlier_actions) != self.start_step:
            num_actions = len(self.origin.earlier_actions)
            raise ValueError(f"the origin of step {self.start_step} needs as many actions, not {num_actions}")
        true_rewards = np.asarray(self.true_rewards, dtype=np.float32)
        check_steps(self.observations, self.actions, true_rewards)
        object.__setattr__(self, "observations", _read_only(self.observations))
        object.__setattr__(self, "actions", _read_only(self.actions))
        object.__setattr__(self, "true_rewards", _read_only(true_rewards))

    @classmethod
    def create(
        cls,
        env_id: str,
        episode_id: str,
        start_step: int,
        observations: NDArray[Any],
        actions: NDArray[Any],
        true_rewards: ArrayLike,
        origin: Origin | None = None,
    ) -> Segment:
        """Makes a segment and gives it the id of its content.

        The id is the BLAKE2b hash (128 bits) of the environment's id and of the dtype,
        shape and bytes of the three arrays. The episode is no part of it: steps that look
        the same, act the same and pay the same are one segment, stored once.
        """
        rewards = np.asarray(true_rewards, dtype=np.float32)
        return cls(
            content_id(env_id, observations, actions, rewards),
            env_id,
            episode_id,
            start_step,
            observations,
            actions,
            rewards,
            origin,
        )

    @property
    def true_return(self) -> float:
        """The undiscounted sum of the true rewards."""
        return float(self.true_rewards.sum(dtype=np.float64))

    def __len__(self) -> int:
        return len(self.true_rewards)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Segment) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickled arrays can be written to; going through __init__ freezes them again.
        fields = (self.env_id, self.episode_id, self.start_step, self.observations, self.actions, self.true_rewards)
        return Segment, (self.id, *fields)


@dataclass(frozen=True)
class Query:
    """An ordered pair of segments put to a teacher: which one is better?

    Raises:
        ValueError: Both sides are the same segment, or their lengths differ.
    """

    left: Segment
    right: Segment

    def __post_init__(self) -> None:
        if self.left.id == self.right.id:
            raise ValueError(f"a query needs two different segments, not {self.left.id} twice")
        if len(self.left) != len(self.right):
            raise ValueError(f"both segments need the same length, not {len(self.left)} and {len(self.right)} steps")

    @property
    def id(self) -> str:
        """32 hexadecimal digits; the same pair the other way round has another id."""
        return query_id(self.left.id, self.right.id)


def query_id(left_id: str, right_id: str) -> str:
    """Returns the 32 hexadecimal digits that name the query (left, right)."""
    return _digest(f"{left_id}|{right_id}".encode())


def content_id(
    env_id: str, observations: NDArray[Any], actions: NDArray[Any], true_rewards: NDArray[np.float32]
) -> str:
    """Returns the 32 hexadecimal digits that name a segment of this content."""
    arrays = [np.ascontiguousarray(array) for array in (observations, actions, true_rewards)]
    header = json.dumps([env_id, *([array.dtype.str, array.shape] for array in arrays)])
    return _digest(header.encode(), *arrays)


def check_steps(observations: NDArray[Any], actions: NDArray[Any], true_rewards: NDArray[np.float32]) -> None:
    """Checks that three arrays describe the same steps, at least one.

    Raises:
        ValueError: They do not, or an array is not numeric.
    """
    for name, array in (("observations", observations), ("actions", actions)):
        if array.dtype.kind not in NUMERIC_KINDS or not array.dtype.isnative:
            raise ValueError(f"{name} must be numbers or booleans in native byte order, not {array.dtype}")
    if true_rewards.ndim != 1 or not len(true_rewards):
        raise ValueError(f"true_rewards must have shape (steps,) with at least one step, not {true_rewards.shape}")
    if not observations.shape[:1] == actions.shape[:1] == true_rewards.shape:
        shapes = f"{observations.shape}, {actions.shape} and {true_rewards.shape}"
        raise ValueError(f"observations, actions and true_rewards must have as many steps, not shapes {shapes}")


def _digest(*parts: bytes | NDArray[Any]) -> str:
    digest = hashlib.blake2b(digest_size=ID_BYTES)
    for part in parts:
        # hashlib takes buffers of rank 1 only.
        digest.update(part if isinstance(part, bytes) else part.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array
