"""Files and folders that are there as a whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from themis_ray.files import drop_leftovers, whole, write_whole


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_whole(path, "old ü")
    assert path.read_text(encoding="utf-8") == "old ü"
    with whole(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_text(encoding="utf-8") == "old ü"
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file.txt"]


def test_a_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with whole(path) as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "file").write_text("content")
        assert not any(path.iterdir())
    assert (path / "deep" / "file").read_text() == "content"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path, is_folder: bool) -> None:
    path = tmp_path / "thing"
    path.write_text("old")

    def write() -> None:
        with whole(path) as temporary:
            (temporary.mkdir if is_folder else temporary.touch)()
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["thing"]


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "precious").write_text("mine")
    with pytest.raises(OSError, match="not empty"), whole(path) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["folder"]
    assert (path / "precious").read_text() == "mine"


def test_a_killed_writer_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    program = """
import os, signal, sys
from pathlib import Path
from themis_ray.files import whole
with whole(Path(sys.argv[1])) as temporary:
    temporary.write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_whole(path, "newer")
    assert path.read_text() == "newer"


def test_everything_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, events, sync, replace = tmp_path / "folder", [], os.fsync, Path.replace

    def noting_sync(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def noting_replace(source: Path, target: Path) -> Path:
        events.append("replaced")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    with whole(path) as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "file").touch()
        (temporary / "other").touch()
    inside = [file.stat().st_ino for file in (path / "deep" / "file", path / "deep", path / "other", path)]
    assert sorted(events[:4]) == sorted(inside)
    assert events[4:] == ["replaced", tmp_path.stat().st_ino]


def test_a_link_keeps_leading_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "file")
    write_whole(link, "through")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_text() == "through"


def test_what_killed_programs_left_can_be_dropped(tmp_path: Path) -> None:
    (tmp_path / ".run_1.12345678.tmp").mkdir()
    (tmp_path / ".run_2.12345678.tmp").touch()
    (tmp_path / ".other.12345678.tmp").touch()
    drop_leftovers(tmp_path / "run_*")
    assert names(tmp_path) == [".other.12345678.tmp"]
