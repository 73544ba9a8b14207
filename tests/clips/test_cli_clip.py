"""`themis clip` on a real run: six files that a browser plays."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from clips.browser import IS_SKIPPED, WHY_SKIPPED, play

from themis_ray.cli import main
from themis_ray.clips import read_clip, spread_segments
from themis_ray.data import PreferenceDataset

QUICK = ("num_env_steps=1200", "feedback.budget=20", "feedback.segment_length=30", "reward.num_epochs=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    path = tmp_path_factory.mktemp("clip") / "run"
    done = CliRunner().invoke(main, ["train", "env.id=LunarLander-v3", *QUICK, "--out", str(path)])
    assert done.exit_code == 0, done.output
    return path


def clip(*arguments: str):
    return CliRunner().invoke(main, ["clip", *arguments])


@pytest.mark.ray
@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_six_files_with_a_page(run: Path, tmp_path: Path, codec: str) -> None:
    out = tmp_path / "clips"
    done = clip(str(run), "--segments", "6", "--out", str(out), "--codec", codec)
    assert done.exit_code == 0, done.output
    files = sorted(path for path in out.iterdir() if path.suffix in (".webm", ".mp4"))
    assert len(files) == 6
    page = (out / "index.html").read_text()
    for path in files:
        assert path.name in page
        assert len(read_clip(path)) == 30
    again = clip(str(run), "--segments", "6", "--out", str(out), "--codec", codec)
    assert again.exit_code == 0
    assert sorted(path for path in out.iterdir() if path.suffix in (".webm", ".mp4")) == files


@pytest.mark.ray
@pytest.mark.skipif(IS_SKIPPED, reason=WHY_SKIPPED)
@pytest.mark.parametrize("codec", ["vp9", "h264"])
def test_a_browser_plays_all_six(run: Path, tmp_path: Path, codec: str) -> None:
    assert clip(str(run), "--segments", "6", "--out", str(tmp_path), "--codec", codec).exit_code == 0
    results = play(sorted(path for path in tmp_path.iterdir() if path.suffix in (".webm", ".mp4")), tmp_path)
    assert len(results) == 6
    for result in results:
        assert result["error"] is None
        assert result["duration"] == pytest.approx(2.0, abs=0.01)
        assert result["num_distinct_frames"] == 2


@pytest.mark.ray
def test_what_cannot_be_shown_is_told_in_one_line(run: Path, tmp_path: Path) -> None:
    assert clip(str(tmp_path)).exit_code == 2
    assert "Give 1 or more" in clip(str(run), "--segments", "0").output
    assert "Known: " in clip(str(run), "--codec", "gif").output
    slow = clip(str(run), "--fps", "0", "--out", str(tmp_path / "slow"))
    assert slow.exit_code == 2
    assert not list((tmp_path / "slow").glob("*.webm"))


@pytest.mark.ray
def test_segments_are_spread_over_the_run(run: Path) -> None:
    stored = PreferenceDataset(run).segments
    assert all(segment.origin is not None for segment in stored)
    chosen = spread_segments(stored, 5)
    assert (chosen[0], chosen[-1], len(chosen)) == (stored[0], stored[-1], 5)
    assert len(spread_segments(stored, 10_000)) == len(stored)
    assert spread_segments((), 3) == []
