"""Lets frames be drawn on a machine without a display, a sound card or a graphics card."""

import ctypes
import os
import sys
from typing import Literal

from themis_ray.errors import ConfigError

__all__ = ["Renderer", "prepare_drawing", "prepare_import"]

Renderer = Literal["pygame", "mujoco"]

# What mujoco calls a way to draw without a display, and the library that it needs.
OPENGL_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
DEBIAN_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri (EGL), or libosmesa6 (OSMesa, slower)"


def prepare_import(renderer: Renderer | None) -> None:
    """Chooses how mujoco draws, before a package is imported that makes its own choice for good (dm_control).

    What the user has set stays. EGL comes first, OSMesa where there is none.
    """
    if renderer != "mujoco" or _has_display() or "MUJOCO_GL" in os.environ:
        return
    for name, library in OPENGL_LIBRARIES.items():
        if _can_load(library):
            os.environ["MUJOCO_GL"] = name
            return


def prepare_drawing(renderer: Renderer | None) -> None:
    """Sets what the renderer needs where there is no display; what the user has set stays.

    Raises:
        ConfigError: Nothing on this machine can draw for mujoco.
    """
    if _has_display():
        return
    if renderer == "pygame":
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if renderer == "mujoco":
        prepare_import(renderer)
        if "MUJOCO_GL" not in os.environ:
            raise ConfigError(
                "frames of MuJoCo cannot be drawn: there is no display, and neither EGL nor OSMesa is installed. "
                f"Install with: apt-get install {DEBIAN_PACKAGES}."
            )


def _has_display() -> bool:
    return sys.platform != "linux" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
