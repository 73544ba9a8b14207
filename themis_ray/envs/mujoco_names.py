"""What the numbers of a MuJoCo model are called: its joints, bodies and motors, as the model names them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["actuator_names", "mujoco_names"]

XYZ = ("x", "y", "z")
# mjtJoint: how many numbers a joint has, and what they are called.
POSITIONS: dict[int, tuple[str, ...]] = {
    0: (*XYZ, *(f"quaternion {part}" for part in "wxyz")),
    1: tuple(f"quaternion {part}" for part in "wxyz"),
    2: ("position",),
    3: ("angle",),
}
VELOCITIES: dict[int, tuple[str, ...]] = {
    0: (*(f"velocity {axis}" for axis in XYZ), *(f"spin {axis}" for axis in XYZ)),
    1: tuple(f"spin {axis}" for axis in XYZ),
    2: ("velocity",),
    3: ("velocity",),
}
TORQUE_AND_FORCE = (*(f"contact torque {axis}" for axis in XYZ), *(f"contact force {axis}" for axis in XYZ))
PER_BODY = {
    "cinert": (*(f"inertia {number}" for number in range(6)), *(f"mass offset {axis}" for axis in XYZ), "mass"),
    "cvel": (*(f"spin {axis}" for axis in XYZ), *(f"velocity {axis}" for axis in XYZ)),
    "cfrc_ext": TORQUE_AND_FORCE,
}
# What follows positions and velocities in environments of version 4, which do not say so themselves.
LATER_PARTS: tuple[tuple[str, ...], ...] = ((), ("cfrc_ext",), ("cinert", "cvel", "qfrc_actuator", "cfrc_ext"))


def mujoco_names(inner: Any, num_inputs: int) -> tuple[str, ...] | None:
    """Returns the names of an observation made of positions, velocities and what the simulator adds.

    Args:
        inner: One of gymnasium's MuJoCo environments without its wrappers.
        num_inputs: How many numbers it observes.

    Returns:
        One name for each, None where these parts do not add up to `num_inputs`.
    """
    if not {"model", "data"} <= vars(inner).keys():
        return None
    parts = _part_names(inner.model)
    for counts in _structures(inner, parts):
        # A part that is not observed whole lacks its first numbers: where the body is, or those of the world.
        names = [name for part, count in counts.items() for name in _last_names(parts, part, count)]
        if len(names) == num_inputs:
            return tuple(names)
    return None


def actuator_names(model: Any) -> tuple[str, ...]:
    """Returns the names of a model's motors; one without a name is called after the joint that it moves."""
    return tuple(_actuator_name(model, number) for number in range(model.nu))


def _structures(inner: Any, parts: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, int]]:
    """Yields how many numbers of each part may be observed: as the environment says, else as version 4 has it."""
    told = vars(inner).get("observation_structure")
    if told is not None:
        yield {part: count for part, count in told.items() if part != "skipped_qpos"}
        return
    # Their totals differ, so that the number of inputs tells which one it is.
    for num_skipped, later in itertools.product(range(3), LATER_PARTS):
        yield {
            "qpos": len(parts["qpos"]) - num_skipped,
            "qvel": len(parts["qvel"]),
            **{part: len(parts[part]) for part in later},
        }


def _last_names(parts: Mapping[str, tuple[str, ...]], part: str, count: int) -> tuple[str, ...]:
    names = parts.get(part) or tuple(f"{_readable(part)} {number}" for number in range(count))
    return names[max(len(names) - count, 0) :]


def _part_names(model: Any) -> dict[str, tuple[str, ...]]:
    joints = [(_joint_name(model, number), int(model.jnt_type[number])) for number in range(model.njnt)]
    bodies = [_readable(model.body(number).name) or f"body {number}" for number in range(model.nbody)]
    positions = tuple(f"{joint} {part}" for joint, kind in joints for part in POSITIONS[kind])
    velocities = tuple(f"{joint} {part}" for joint, kind in joints for part in VELOCITIES[kind])
    moved = tuple(re.sub(" velocity$", "", name) for name in velocities)
    return {
        "qpos": positions,
        "qvel": velocities,
        "qfrc_actuator": tuple(f"{name} motor force" for name in moved),
        **{part: tuple(f"{body} {name}" for body in bodies for name in names) for part, names in PER_BODY.items()},
    }


def _actuator_name(model: Any, number: int) -> str:
    name = _readable(model.actuator(number).name)
    joint = int(model.actuator_trnid[number][0])
    is_joint = int(model.actuator_trntype[number]) == 0
    return name or (_joint_name(model, joint) if is_joint else f"motor {number}")


def _joint_name(model: Any, number: int) -> str:
    return _readable(model.joint(number).name) or f"joint {number}"


def _readable(name: str) -> str:
    """Returns "leg left" of "leg_left_joint"."""
    return name.removesuffix("_joint").replace("_", " ").strip()
