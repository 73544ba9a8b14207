"""Frames become a video file that browsers play, named by what is in it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from themis_ray.clips.pictures import checked_frames
from themis_ray.errors import ConfigError, DataError, lookup
from themis_ray.files import whole

__all__ = ["CODECS", "Codec", "clip_name", "read_clip", "write_clip"]

NAME_BYTES = 16
MIN_CLIP_FPS, MAX_CLIP_FPS = 0.1, 240.0
PIXEL_FORMAT = "yuv420p"
# A browser that seeks decodes from the key frame before: these many frames at most.
KEY_FRAME_INTERVAL = 50
CHUNK_BYTES = 1 << 22

# Rows U and V of BT.601 in limited range, the last column an offset: what players take for granted in small videos.
CHROMA = np.array(
    [
        [-37.797 / 255, -74.203 / 255, 112.0 / 255, 128.0],
        [112.0 / 255, -93.786 / 255, -18.214 / 255, 128.0],
    ],
    np.float32,
)


@dataclass(frozen=True)
class Codec:
    """A way to store a clip.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        container: FFmpeg's name of the format, and the suffix of the file.
        options: Options of the encoder.
        container_options: Options of the format.
    """

    encoder: str
    container: str
    options: dict[str, str]
    container_options: dict[str, str]


# The encoders' fast settings, where no frame waits for later ones, at a constant quality at which the ball of an Atari
# game leaves no trace behind (at a crf of 30 VP9's does). Files hold no dates and no random numbers.
CODECS: dict[str, Codec] = {
    "vp9": Codec(
        "libvpx-vp9",
        "webm",
        {
            "deadline": "realtime",
            "cpu-used": "8",
            "row-mt": "1",
            "lag-in-frames": "0",
            "auto-alt-ref": "0",
            "crf": "22",
            "b": "0",
            "g": str(KEY_FRAME_INTERVAL),
        },
        {"cues_to_front": "1", "fflags": "+bitexact"},
    ),
    "h264": Codec(
        "libx264",
        "mp4",
        {"preset": "veryfast", "tune": "zerolatency", "crf": "20", "g": str(KEY_FRAME_INTERVAL)},
        {"movflags": "+faststart", "fflags": "+bitexact"},
    ),
}


def write_clip(frames: NDArray[np.uint8], folder: str | Path, *, codec: str = "vp9", clip_fps: float = 15.0) -> Path:
    """Writes frames as a video file and returns its path.

    The file is named by its content, see `clip_name`. A file of that name is taken as it is; otherwise the video is
    written beside it under a hidden name and renamed when it is whole, so that no reader sees half a clip and two
    writers do no harm. Encoding takes one thread.

    Where a side has an odd number of pixels, which video cannot have, its last row or column is doubled.

    Args:
        frames: (N, H, W, 3) uint8, RGB; one frame at least.
        folder: Where to; made if it is missing.
        codec: A key of `CODECS`.
        clip_fps: Frames shown per second, from 0.1 to 240.

    Raises:
        DataError: The frames have another dtype or shape, there is none, or the file cannot be written.
        UnknownNameError: There is no such codec.
        ConfigError: `clip_fps` is out of range.
    """
    path = Path(folder) / clip_name(frames, codec=codec, clip_fps=clip_fps)
    if path.exists():
        return path
    try:
        with whole(path) as temporary:
            _encode(frames, temporary, CODECS[codec], _frame_rate(clip_fps))
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}). Make room for it.") from error
    return path


def clip_name(frames: NDArray[np.uint8], *, codec: str = "vp9", clip_fps: float = 15.0) -> str:
    """Returns the name of the file that `write_clip` makes of the same arguments.

    That is the BLAKE2b hash (128 bits) of everything that decides what is in the file: the shape and bytes of the
    frames, frames per second, and the codec with its options. The suffix is that of the codec's format.

    Raises:
        DataError: As in `write_clip`.
        UnknownNameError: As in `write_clip`.
        ConfigError: As in `write_clip`.
    """
    chosen = lookup("codec", str(codec), CODECS)
    rate = _frame_rate(clip_fps)
    frames = np.ascontiguousarray(checked_frames(frames))
    about = [frames.shape, str(rate), chosen.encoder, chosen.container, chosen.options, chosen.container_options]
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=NAME_BYTES)
    digest.update(frames.reshape(-1).data)
    return f"{digest.hexdigest()}.{chosen.container}"


def read_clip(path: str | Path) -> NDArray[np.uint8]:
    """Returns the frames of a video file, (N, H, W, 3) uint8, RGB.

    Raises:
        DataError: There is no such file, or no video in it.
    """
    if not Path(path).is_file():
        raise DataError(f"there is no clip {path}. Give the path of a video file, such as write_clip returns.")
    try:
        with av.open(str(path)) as container:
            frames = [
                frame.to_ndarray(format="rgb24", src_colorspace=Colorspace.ITU601)
                for frame in container.decode(video=0)
            ]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} cannot be read as a video ({error}). Write it again with write_clip.") from error
    if not frames:
        raise DataError(f"{path} has no frame. Write it again with write_clip.")
    return np.stack(frames)


def _frame_rate(clip_fps: float) -> Fraction:
    if not math.isfinite(clip_fps) or not MIN_CLIP_FPS <= clip_fps <= MAX_CLIP_FPS:
        raise ConfigError(
            f"clip_fps {clip_fps} is no speed of a clip. Give frames per second from {MIN_CLIP_FPS} to {MAX_CLIP_FPS}."
        )
    return Fraction(clip_fps).limit_denominator(1001)


def _encode(frames: NDArray[np.uint8], path: Path, codec: Codec, rate: Fraction) -> None:
    frames = _even_sides(frames)
    with av.open(str(path), "w", format=codec.container, options=codec.container_options) as container:
        stream = container.add_stream(codec.encoder, rate=rate, options=codec.options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = PIXEL_FORMAT
        stream.codec_context.thread_count = 1
        stream.codec_context.colorspace = Colorspace.SMPTE170M
        stream.codec_context.color_range = ColorRange.MPEG
        for number, planes in enumerate(_planes(frames)):
            picture = av.VideoFrame.from_ndarray(planes, format=PIXEL_FORMAT)
            picture.pts, picture.duration, picture.time_base = number, 1, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _even_sides(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(frames)


def _planes(frames: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yields each frame as brightness and colour, (3 * H / 2, W) uint8, as FFmpeg's yuv420p has them.

    OpenCV does it in a sixth of swscale's time, several frames at once as one tall image, but takes the colour of one
    pixel in four. Here colour is the mean of the four, which keeps thin lines and small text.
    """
    height, width = frames.shape[1:3]
    chunk_length = max(1, CHUNK_BYTES // frames[0].size)
    for start in range(0, len(frames), chunk_length):
        chunk = frames[start : start + chunk_length]
        tall = chunk.reshape(-1, width, 3)
        brightness = cv2.cvtColor(tall, cv2.COLOR_RGB2YUV_I420)[: len(tall)]
        means = cv2.resize(tall, (width // 2, len(tall) // 2), interpolation=cv2.INTER_AREA)
        colours = cv2.split(cv2.transform(means, CHROMA))
        parts = [plane.reshape(len(chunk), -1) for plane in (brightness, *colours)]
        yield from np.concatenate(parts, axis=1).reshape(len(chunk), height * 3 // 2, width)
