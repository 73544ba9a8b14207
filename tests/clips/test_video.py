import math
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from themis_ray.clips import CODECS, clip_name, read_clip, video, write_clip
from themis_ray.errors import ConfigError, DataError, UnknownNameError

CODEC_NAMES = sorted(CODECS)


def moving_square(num_frames: int = 12, height: int = 64, width: int = 80) -> np.ndarray:
    """Returns frames of a coloured square that moves over a shaded ground."""
    ground = np.linspace(20, 200, width).astype(np.uint8)
    frames = np.broadcast_to(ground[None, None, :, None], (num_frames, height, width, 3)).copy()
    for i, frame in enumerate(frames):
        frame[16:32, 2 * i : 2 * i + 16] = (220, 60, 30)
    return frames


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


# ---------------------------------------------------------------- what is in the file


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_what_is_read_looks_like_what_was_written(codec: str, tmp_path: Path) -> None:
    frames = moving_square()
    read = read_clip(write_clip(frames, tmp_path, codec=codec))
    assert read.shape == frames.shape
    assert read.dtype == np.uint8
    assert min(psnr(*pair) for pair in zip(read, frames, strict=True)) > 35
    # And each frame is where it was: it looks like no other.
    for i, frame in enumerate(read):
        assert np.argmax([psnr(frame, other) for other in frames]) == i


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_what_has_passed_leaves_no_trace(codec: str, tmp_path: Path) -> None:
    """A white ball of 2x4 pixels, as in Pong."""
    frames = np.full((50, 210, 160, 3), (144, 72, 17), np.uint8)
    for i, frame in enumerate(frames):
        top, left = 40 + 3 * i % 130, 10 + 7 * i % 140
        frame[top : top + 4, left : left + 2] = (236, 236, 236)
    read = read_clip(write_clip(frames, tmp_path, codec=codec))
    is_ball = (frames == 236).all(axis=-1)
    is_near = np.array([cv2.dilate(ball.astype(np.uint8), np.ones((17, 17), np.uint8)) > 0 for ball in is_ball])
    light = np.abs(read.astype(np.float64) - frames) @ (0.299, 0.587, 0.114)
    assert light[~is_near].max() < 4
    assert read[is_ball].mean() > 200


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (210, 180, 30)])
def test_colours_stay(codec: str, colour: tuple[int, int, int], tmp_path: Path) -> None:
    frames = np.full((2, 32, 32, 3), colour, np.uint8)
    np.testing.assert_allclose(read_clip(write_clip(frames, tmp_path, codec=codec)), frames, atol=4)


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("clip_fps", [0.5, 10, 29.97, 60.0])
@pytest.mark.parametrize("num_frames", [1, 7])
def test_a_clip_lasts_as_long_as_its_frames(codec: str, clip_fps: float, num_frames: int, tmp_path: Path) -> None:
    """WebM counts in whole milliseconds."""
    path = write_clip(moving_square(num_frames), tmp_path, codec=codec, clip_fps=clip_fps)
    with av.open(str(path)) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(num_frames / clip_fps, abs=1.01e-3)
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(num_frames) / clip_fps, atol=1.01e-3)


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 33, 51), (2, 7, 20), (2, 20, 7)])
def test_odd_sides_grow_by_one(codec: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    frames = np.full((*shape, 3), (180, 90, 40), np.uint8)
    read = read_clip(write_clip(frames, tmp_path, codec=codec))
    num_frames, height, width = shape
    assert read.shape == (num_frames, height + height % 2, width + width % 2, 3)
    np.testing.assert_allclose(read[:, :height, :width], frames, atol=4)
    np.testing.assert_allclose(read[:, -1, -1], frames[:, -1, -1], atol=4)


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_players_can_seek(codec: str, tmp_path: Path) -> None:
    """The index stands before the frames, and a key frame is never far."""
    path = write_clip(moving_square(3 * video.KEY_FRAME_INTERVAL), tmp_path, codec=codec)
    with av.open(str(path)) as container:
        is_key = np.array([packet.is_keyframe for packet in container.demux(video=0) if packet.size])
    assert is_key[0]
    assert np.diff([*np.flatnonzero(is_key), len(is_key)]).max() <= video.KEY_FRAME_INTERVAL
    content = path.read_bytes()
    index, frames = {"vp9": (b"\x1c\x53\xbb\x6b", b"\x1f\x43\xb6\x75"), "h264": (b"moov", b"mdat")}[codec]
    assert 0 < content.index(index) < content.rindex(frames)


def test_every_player_knows_the_pixel_format(tmp_path: Path) -> None:
    for codec in CODEC_NAMES:
        with av.open(str(write_clip(moving_square(), tmp_path, codec=codec))) as container:
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_frames_of_any_layout_are_the_same_file(codec: str, tmp_path: Path) -> None:
    frames = moving_square()
    mirrored_twice = frames[:, :, ::-1].copy()[:, :, ::-1]
    frames.flags.writeable = False
    assert not mirrored_twice.flags.c_contiguous
    first, second = (
        write_clip(same, tmp_path / folder, codec=codec) for same, folder in ((mirrored_twice, "a"), (frames, "b"))
    )
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_many_frames_are_converted_as_one_is() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 300, 500, 3), np.uint8)
    assert frames.nbytes < video.CHUNK_BYTES
    together = list(video._planes(frames))
    for frame, planes in zip(frames, together, strict=True):
        np.testing.assert_array_equal(planes, next(video._planes(frame[None])))


def test_colour_is_the_mean_of_four_pixels() -> None:
    """BT.601 written out."""
    frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    red, green, blue = np.moveaxis(frame / 255.0, -1, 0)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    colours = [(blue - light) / 1.772, (red - light) / 1.402]
    means = [128 + 224 * plane.reshape(4, 2, 4, 2).mean(axis=(1, 3)) for plane in colours]
    expected = np.concatenate([(16 + 219 * light).ravel(), *(mean.ravel() for mean in means)])
    np.testing.assert_allclose(next(video._planes(frame[None])).ravel(), expected, atol=1.01)


# ---------------------------------------------------------------- names


def test_the_name_is_the_content() -> None:
    frames = moving_square()
    name = clip_name(frames)
    stem, _, suffix = name.partition(".")
    assert len(stem) == 32
    assert set(stem) <= set("0123456789abcdef")
    assert suffix == "webm"
    assert clip_name(frames.copy()) == name
    assert clip_name(frames, codec="vp9", clip_fps=15) == name
    changed = frames.copy()
    changed[5, 6, 7, 1] ^= 1
    others = [
        clip_name(changed),
        clip_name(frames[:-1]),
        clip_name(frames[::-1]),
        clip_name(frames.reshape(12, 80, 64, 3)),
        clip_name(frames, clip_fps=16),
        clip_name(frames, codec="h264"),
    ]
    assert len({name.partition(".")[0] for name in (name, *others)}) == 7
    assert others[-1].endswith(".mp4")


def test_other_options_of_the_encoder_are_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = clip_name(moving_square())
    monkeypatch.setitem(CODECS["vp9"].options, "crf", "31")
    assert clip_name(moving_square()) != before


def test_a_clip_that_is_there_is_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(moving_square(), tmp_path / "new" / "folder")
    assert path.parent == tmp_path / "new" / "folder"
    assert path.name == clip_name(moving_square())
    monkeypatch.setattr(video, "_encode", lambda *_: pytest.fail("encoded again"))
    assert write_clip(moving_square(), path.parent) == path


# ---------------------------------------------------------------- whole files or none


def test_a_crash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = video._planes
    seen = []

    def break_down(frames: np.ndarray) -> Any:
        for number, plane in enumerate(planes(frames)):
            if number == 6:
                seen.extend(tmp_path.iterdir())
                raise MemoryError("no more")
            yield plane

    monkeypatch.setattr(video, "_planes", break_down)
    with pytest.raises(MemoryError):
        write_clip(moving_square(), tmp_path)
    assert len(seen) == 1, "it was being written"
    assert seen[0].name.startswith(".")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(read_clip(write_clip(moving_square(), tmp_path))) == 12


def test_writers_of_the_same_clip_do_no_harm(tmp_path: Path) -> None:
    frames = moving_square(40)
    barrier = threading.Barrier(4)
    paths = []

    def write() -> None:
        barrier.wait()
        paths.append(write_clip(frames, tmp_path))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(tmp_path.iterdir()) == [paths[0]]
    assert set(paths) == {paths[0]}
    assert len(paths) == 4
    assert len(read_clip(paths[0])) == 40


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 3), np.int64),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 0, 8, 3), np.uint8),
        [[[[0, 0, 0]]]],
    ],
    ids=lambda frames: f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else "list",
)
def test_what_are_no_frames_is_refused(frames: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="frames"):
        write_clip(frames, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", ["vp8", "VP9", "", math.nan, None])
def test_other_codecs_are_refused(codec: Any, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"no codec .* Known: h264, vp9\."):
        write_clip(moving_square(), tmp_path, codec=codec)


@pytest.mark.parametrize("clip_fps", [0, -1, 0.09, 241, math.inf, math.nan])
def test_speeds_out_of_range_are_refused(clip_fps: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clip_fps .* from 0\.1 to 240"):
        write_clip(moving_square(), tmp_path, clip_fps=clip_fps)


def test_the_ends_of_the_range_are_allowed() -> None:
    assert video._frame_rate(0.1) == Fraction(1, 10)
    assert video._frame_rate(240) == 240


def test_what_is_no_clip_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no clip"):
        read_clip(tmp_path / "missing.webm")
    (tmp_path / "text.webm").write_text("no video")
    with pytest.raises(DataError, match="cannot be read"):
        read_clip(tmp_path / "text.webm")
