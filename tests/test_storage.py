"""Folders in a storage: S3 as a server of this machine speaks it, and a disk."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from themis_ray.errors import ConfigError, RunFolderError
from themis_ray.storage import Mirror, Storage


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Yield the URI of an empty bucket, with a mark where a path is to go."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "nobody"),
            ("AWS_SECRET_ACCESS_KEY", "nothing"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            patch.setenv(name, value)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        options = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        fs.FileSystem.from_uri(f"s3://any{options}&allow_bucket_creation=true")[0].create_dir("runs")
        yield f"s3://runs/PATH{options}"
        server.stop()


@pytest.fixture(params=["s3", "disk"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage(f"file://{tmp_path / 'storage'}")
    return Storage(request.getfixturevalue("s3").replace("PATH", tmp_path.name))


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "mirror.id")
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


RUN = {
    "config.yaml": "seed: 0",
    "metrics.jsonl": "{}\n",
    "preferences/part-000000.parquet": "answers",
    "checkpoints/checkpoint_000000100/state": "weights",
    "checkpoints/checkpoint_000000100/themis.json": "{}",
}


def test_files_are_written_read_listed_and_deleted(storage: Storage) -> None:
    assert storage.files() == []
    assert storage.read("nothing") is None
    storage.child("sweep").write("a/b.txt", b"text")
    assert storage.files() == ["sweep/a/b.txt"]
    assert storage.read("sweep/a/b.txt") == b"text"
    storage.delete("sweep/a/b.txt")
    assert storage.files() == []
    storage.write("c", b"")
    storage.clear()
    assert storage.files() == []
    storage.clear()


@pytest.mark.parametrize("name", ["my sweep", "größe/s0", "a%b", "a+b", "x=1,y", "a?b#c"])
def test_names_may_have_any_characters(storage: Storage, name: str) -> None:
    child = storage.child(name)
    child.write("a", b"text")
    assert storage.files() == [f"{name}/a"]
    # As it is told to other processes.
    assert Storage(child.uri).files() == ["a"]
    assert Storage(child.uri).read("a") == b"text"


def test_another_machine_goes_on_from_what_the_first_has_kept(storage: Storage, tmp_path: Path) -> None:
    first, second = (Mirror(tmp_path / name, storage) for name in ("first", "second"))
    first.claim()
    write(first.folder, RUN)
    first.push()
    write(first.folder, {"preferences/part-000001.parquet": "never kept"})
    second.claim()
    assert contents(second.folder) == RUN
    write(second.folder, {"metrics.jsonl": "{}\n{}\n"})
    second.push()
    # Back on the first machine, what it has is old, although some of it was written later.
    Mirror(first.folder, storage).claim()
    assert contents(first.folder) == {**RUN, "metrics.jsonl": "{}\n{}\n"}


def test_who_was_superseded_changes_nothing_and_stops(storage: Storage, tmp_path: Path) -> None:
    first, second = (Mirror(tmp_path / name, storage) for name in ("first", "second"))
    first.claim()
    write(first.folder, RUN)
    first.push()
    second.claim()
    write(second.folder, {"metrics.jsonl": "{}\n{}\n", "checkpoints/checkpoint_000000200/themis.json": "{}"})
    second.push()
    kept = sorted(storage.files())
    write(first.folder, {"metrics.jsonl": "of a process that was taken for dead"})
    (first.folder / "config.yaml").unlink()
    for push in (first.push, first.try_to_push):
        with pytest.raises(RunFolderError, match=r"belongs to another process .* is in .*first\.$"):
            push()
    assert sorted(storage.files()) == kept
    assert storage.read("metrics.jsonl") == b"{}\n{}\n"
    second.push()


def test_the_same_machine_keeps_what_it_had_not_sent_yet(storage: Storage, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "run", storage)
    mirror.claim()
    write(mirror.folder, RUN)
    mirror.push()
    newer = {**RUN, "preferences/part-000001.parquet": "answered before the process died"}
    write(mirror.folder, newer)
    again = Mirror(mirror.folder, storage)
    again.claim()
    assert contents(again.folder) == newer
    again.push()
    other = Mirror(tmp_path / "other", storage)
    other.claim()
    assert contents(other.folder) == newer


def test_what_could_not_be_read_as_a_whole_replaces_nothing(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Mirror(tmp_path / "first", storage)
    first.claim()
    write(first.folder, RUN)
    first.push()
    download = Storage.download

    def fail_at_answers(self: Storage, name: str, target: Path) -> None:
        if name.startswith("preferences"):
            raise OSError("connection lost")
        download(self, name, target)

    second = Mirror(tmp_path / "second", storage)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "download", fail_at_answers)
        with pytest.raises(RunFolderError, match="connection lost"):
            second.claim()
    # As Tune's next try on the same machine does.
    again = Mirror(second.folder, storage)
    again.claim()
    assert contents(again.folder) == RUN
    again.push()
    assert {*RUN} <= {*storage.files()}


def test_a_file_that_cannot_be_read_leaves_the_old_one(storage: Storage, tmp_path: Path) -> None:
    storage.write("a", b"old, whole")
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "nothing", "a")

    def fill(file: object) -> None:
        raise OSError("disk full")

    if storage.uri.startswith("file:"):
        with pytest.raises(OSError, match="disk full"):
            storage._write("a", fill)
        assert [path.name for path in (tmp_path / "storage").iterdir()] == ["a"], "no litter"
    (tmp_path / "storage").mkdir(exist_ok=True)
    storage.write("b.12345678.tmp", b"half of a file that another process writes")
    assert storage.files() == ["a"]
    assert storage.read("a") == b"old, whole"


def test_what_is_gone_already_is_deleted(storage: Storage, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "run", storage)
    mirror.claim()
    write(mirror.folder, RUN)
    mirror.push()
    (mirror.folder / "config.yaml").unlink()
    storage.delete("config.yaml")
    mirror.push()
    mirror.push()
    assert "config.yaml" not in storage.files()


def test_what_is_dropped_here_is_dropped_there(storage: Storage, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "run", storage)
    mirror.claim()
    write(mirror.folder, RUN)
    mirror.push()
    for name in ("state", "themis.json"):
        (mirror.folder / "checkpoints/checkpoint_000000100" / name).unlink()
    mirror.push()
    assert not any("checkpoint" in name for name in storage.files())
    # A process that starts anew knows of none of this, and drops the same.
    again = Mirror(mirror.folder, storage)
    again.claim()
    (again.folder / "metrics.jsonl").unlink()
    again.push()
    assert "metrics.jsonl" not in storage.files()


def test_a_checkpoint_that_was_not_sent_in_full_is_none(storage: Storage, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "run", storage)
    mirror.claim()
    write(mirror.folder, {**RUN, "checkpoints/checkpoint_000000200/state": "weights"})
    mirror.push()
    other = Mirror(tmp_path / "other", storage)
    other.claim()
    assert contents(other.folder) == RUN


def test_only_what_changed_is_sent(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    upload = Storage.upload

    def note(self: Storage, source: Path, name: str) -> None:
        sent.append(name)
        upload(self, source, name)

    monkeypatch.setattr(Storage, "upload", note)
    mirror = Mirror(tmp_path / "run", storage)
    mirror.claim()
    write(mirror.folder, RUN)
    mirror.push()
    assert sorted(sent) == sorted(RUN)
    assert sent[-1].endswith("themis.json")
    sent.clear()
    mirror.push()
    write(mirror.folder, {"metrics.jsonl": "{}\n{}\n", ".metrics.jsonl.tmp": "half"})
    mirror.push()
    assert sent == ["metrics.jsonl"]


def test_a_storage_that_is_away_is_told_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = Mirror(tmp_path / "run", Storage(f"file://{tmp_path / 'storage'}"))
    mirror.claim()
    write(mirror.folder, RUN)
    kept = tmp_path / "storage"
    kept.rename(tmp_path / "away")
    kept.write_text("a file where the folder was")
    with caplog.at_level("WARNING", logger="themis_ray"):
        mirror.try_to_push()
    assert "cannot be written" in caplog.text
    with pytest.raises(OSError, match="storage"):
        mirror.push()
    kept.unlink()
    (tmp_path / "away").rename(kept)
    mirror.try_to_push()
    assert set(RUN) < set(mirror.storage.files())


@pytest.mark.parametrize("uri", ["", "runs", "/runs", "nope://runs", "s3://", "file://a b"])
def test_what_is_no_uri_is_refused_in_one_line(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"storage_path=.* is not allowed .*\. Give s3://BUCKET/PATH"):
        Storage(uri)


def test_a_storage_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("no folder")
    with pytest.raises(RunFolderError, match=r"storage cannot be read .*\. Check"):
        Storage(f"file://{tmp_path / 'storage'}").pull(tmp_path / "here")
