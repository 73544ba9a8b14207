"""Teachers of one's own: functions of two segments that return left, right, equal or skip.

Try one from the repository's folder:

    themis train env.id=CartPole-v1 teacher.kind=scripted teacher.function=examples.teachers:keep_pole_upright

A segment has `observations` (L, ...), `actions` (L, ...) and `true_rewards` (L,); the arrays are read-only. The first
observation is what the agent saw before the first action.
"""

import numpy as np
from numpy.typing import NDArray

from themis_ray.data import Choice, Segment

MAX_POLE_ANGLE = np.radians(6.0)
MAX_UPRIGHT_ANGLE = np.radians(30.0)


def keep_pole_upright(left: Segment, right: Segment) -> Choice:
    """CartPole: the better segment keeps the pole within 6 degrees for more steps.

    Of segments with as many such steps, the one whose cart is nearer the centre in them is better.
    """
    is_left_upright, is_right_upright = _is_upright(left), _is_upright(right)
    num_left, num_right = int(is_left_upright.sum()), int(is_right_upright.sum())
    if num_left != num_right:
        return Choice.LEFT if num_left > num_right else Choice.RIGHT
    if num_left == 0:
        # Nothing good is seen on either side.
        return Choice.SKIP
    left_distance = np.abs(left.observations[is_left_upright, 0]).mean()
    right_distance = np.abs(right.observations[is_right_upright, 0]).mean()
    return _smaller(float(left_distance), float(right_distance))


def stay_upright(left: Segment, right: Segment) -> Choice:
    """Pendulum: the better segment stays within 30 degrees of upright for more steps, or is closer to it on average."""
    left_angles, right_angles = _pendulum_angles(left), _pendulum_angles(right)
    num_left, num_right = (int((angles <= MAX_UPRIGHT_ANGLE).sum()) for angles in (left_angles, right_angles))
    if num_left != num_right:
        return Choice.LEFT if num_left > num_right else Choice.RIGHT
    return _smaller(float(left_angles.mean()), float(right_angles.mean()))


def _is_upright(segment: Segment) -> NDArray[np.bool_]:
    """Returns (L,) whether the pole is within its angle; after a fall it is not."""
    # With a fixed horizon CartPole's observation has a fifth number, 1 once the episode is over.
    is_over = segment.observations[:, 4:].any(axis=1)
    is_upright: NDArray[np.bool_] = (np.abs(segment.observations[:, 2]) <= MAX_POLE_ANGLE) & ~is_over
    return is_upright


def _pendulum_angles(segment: Segment) -> NDArray[np.floating]:
    """Returns (L,) distances from upright in radians, from 0 to pi."""
    angles: NDArray[np.floating] = np.abs(np.arctan2(segment.observations[:, 1], segment.observations[:, 0]))
    return angles


def _smaller(left: float, right: float) -> Choice:
    if left == right:
        return Choice.EQUAL
    return Choice.LEFT if left < right else Choice.RIGHT
