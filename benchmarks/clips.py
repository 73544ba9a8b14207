"""What clips cost: drawing their frames and encoding them. `python -m benchmarks.clips`, or `make bench-clips`.

Prints two tables and writes benchmarks/out/clips.json. All times are CPU time of this process, so that other work on
the machine counts little; encoding takes one thread. Clips have 50 frames of an agent that acts at random.

* clips_per_s: by codec and environment, clips that `write_clip` writes in a second on one core, name and file included,
  at 256x256: larger frames are shrunk, smaller ones get a dark border.
* families: by environment, ms per `env.render()` of an env step (median; stepping is not in it), the size of a frame,
  and ms to encode one as VP9 and as H.264 at that size.

`--picture` draws docs/images/clips.png as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import av
import cv2
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from themis_ray.clips import CODECS, draw_actions, draw_caption, write_clip
from themis_ray.envs import EnvConfig, make_env

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out" / "clips.json"
PICTURE = ROOT / "docs" / "images" / "clips.png"
ENVS = {
    "classic": "Pendulum-v1",
    "toy_text": "FrozenLake-v1",
    "box2d": "LunarLander-v3",
    "mujoco": "HalfCheetah-v5",
    "atari": "ALE/Pong-v5",
    "minigrid": "MiniGrid-DoorKey-8x8-v0",
    "babyai": "BabyAI-GoToLocal-v0",
}
NUM_FRAMES, SIDE = 50, 256
MIN_REPEATS = 5
MIN_CLIPS_PER_S = 20
MUST_REACH = ("classic", "minigrid", "atari")

# The picture: frames of three families, this many env steps apart.
PICTURED: dict[str, list[str] | None] = {
    "atari": ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"],
    "minigrid": ["left", "right", "forward", "pick up", "drop", "toggle", "done"],
    "mujoco": None,
}
PICTURED_STEPS = (8, 16, 24, 32)
PICTURE_GAP = 10

Frames = NDArray[np.uint8]


class Recording(NamedTuple):
    """What an agent that acts at random did and looked like."""

    frames: Frames
    actions: NDArray[Any]
    action_space: spaces.Space[Any]
    render_ms: float


def record(env_id: str, num_frames: int) -> Recording:
    """Step an environment at random and time how its frames are drawn."""
    env = make_env(EnvConfig(id=env_id), render_mode="rgb_array")
    env.action_space.seed(0)
    env.reset(seed=0)
    frames, actions, times = [], [], []
    for i in range(num_frames + 1):
        start = time.process_time()
        frame = env.render()
        elapsed = time.process_time() - start
        action = env.action_space.sample()
        _, _, is_terminated, is_truncated, _ = env.step(action)
        if is_terminated or is_truncated:
            env.reset()
        if i:  # The first frame opens windows and loads fonts.
            frames.append(np.array(frame, np.uint8))
            actions.append(action)
            times.append(elapsed)
    env.close()
    return Recording(np.stack(frames), np.array(actions), env.action_space, 1e3 * statistics.median(times))


def to_square(frames: Frames) -> Frames:
    """Return frames as 256x256, shrunk or with a dark border."""
    shrink = min(1.0, SIDE / max(frames.shape[1:3]))
    height, width = (round(side * shrink) for side in frames.shape[1:3])
    square = np.zeros((len(frames), SIDE, SIDE, 3), np.uint8)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    for target, frame in zip(square, frames, strict=True):
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        target[top : top + height, left : left + width] = small
    return square


def measure_writing(frames: Frames, num_repeats: int) -> dict[str, float]:
    """Write a clip with every codec in turn and return the median seconds of each."""
    times: dict[str, list[float]] = {codec: [] for codec in CODECS}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(num_repeats + 1):
            for codec, values in times.items():
                start = time.process_time()
                path = write_clip(frames, folder, codec=codec)
                elapsed = time.process_time() - start
                path.unlink()
                if i:  # The first round warms up.
                    values.append(elapsed)
    return {codec: statistics.median(values) for codec, values in times.items()}


def draw_picture(recordings: dict[str, Recording]) -> None:
    """Write a sheet with a row of frames for each pictured family."""
    rows = []
    for family, names in PICTURED.items():
        recording = recordings[family]
        frames = to_square(recording.frames)
        frames = draw_actions(draw_caption(frames, ENVS[family]), recording.actions, recording.action_space, names)
        rows.append(np.concatenate([_with_gap(frames[step]) for step in PICTURED_STEPS], axis=1))
    sheet = np.concatenate(rows)[PICTURE_GAP // 2 : -PICTURE_GAP // 2, PICTURE_GAP // 2 : -PICTURE_GAP // 2]
    image = Image.fromarray(sheet).quantize(128, dither=Image.Dither.NONE)
    image.save(PICTURE, optimize=True)
    print(f"Wrote {PICTURE.relative_to(ROOT)}, {PICTURE.stat().st_size / 1000:.0f} kB")


def _with_gap(frame: Frames) -> Frames:
    side = PICTURE_GAP // 2
    return np.pad(frame, ((side, side), (side, side), (0, 0)), constant_values=255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help=f"timed repetitions, at least {MIN_REPEATS}")
    parser.add_argument("--picture", action="store_true", help=f"draw {PICTURE.relative_to(ROOT)} as well")
    arguments = parser.parse_args()
    repeats = max(MIN_REPEATS, arguments.repeats)
    cv2.setNumThreads(1)
    recordings: dict[str, Recording] = {}
    squares: dict[str, dict[str, float]] = {}
    families: dict[str, dict[str, Any]] = {}
    for family, env_id in track(ENVS.items(), description="environments", transient=True):
        recording = recordings[family] = record(env_id, NUM_FRAMES)
        squares[family] = {c: 1 / s for c, s in measure_writing(to_square(recording.frames), repeats).items()}
        encode_ms = {c: 1e3 * s / NUM_FRAMES for c, s in measure_writing(recording.frames, repeats).items()}
        height, width = recording.frames.shape[1:3]
        families[family] = {
            "env_id": env_id,
            "frame_size": [width, height],
            "render_ms": recording.render_ms,
            "encode_ms": encode_ms,
        }
    result = {
        "clips_per_s": {codec: {family: rates[codec] for family, rates in squares.items()} for codec in CODECS},
        "families": families,
        "num_frames": NUM_FRAMES,
        "num_repeats": repeats,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "av": av.__version__},
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print_tables(squares, families)
    slowest = min(squares[family]["vp9"] for family in MUST_REACH)
    print(f"vp9, slowest of {', '.join(MUST_REACH)}: {slowest:.0f} clips/s (at least {MIN_CLIPS_PER_S})")
    print(f"Wrote {OUT.relative_to(ROOT)}")
    if arguments.picture:
        draw_picture(recordings)


def print_tables(squares: dict[str, dict[str, float]], families: dict[str, dict[str, Any]]) -> None:
    table = Table(title=f"Clips of {NUM_FRAMES} frames of {SIDE}x{SIDE} per second and core", title_justify="left")
    for column in ("family", "environment", *CODECS):
        table.add_column(column, justify="right" if column in CODECS else "left")
    for family, rates in squares.items():
        table.add_row(family, ENVS[family], *(f"{rates[codec]:.1f}" for codec in CODECS))
    Console().print(table)
    table = Table(title="ms of CPU time per frame", title_justify="left")
    for column in ("family", "environment", "frame", "rendered", *(f"encoded, {codec}" for codec in CODECS)):
        table.add_column(column, justify="left" if column in ("family", "environment") else "right")
    for family, row in families.items():
        width, height = row["frame_size"]
        times = [f"{row['encode_ms'][codec]:.2f}" for codec in CODECS]
        table.add_row(family, row["env_id"], f"{width}x{height}", f"{row['render_ms']:.2f}", *times)
    Console().print(table)


if __name__ == "__main__":
    main()
