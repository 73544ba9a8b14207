"""Folders where every machine reaches them: S3, Google Cloud Storage, Azure or a disk, all through pyarrow.fs."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from themis_ray.errors import ConfigError, RunFolderError
from themis_ray.files import whole

__all__ = ["Mirror", "Storage", "is_uri"]

logger = logging.getLogger("themis_ray")

SCHEMES = "s3://BUCKET/PATH, gs://BUCKET/PATH, abfs://CONTAINER@ACCOUNT/PATH or file:///PATH"
MARK_FILE = "mirror.id"
TEMPORARY = ".tmp"
# A file up to this size is read as a whole before anything in a storage is replaced by it.
WHOLE_BYTES = 2**26
# Whoever finds one of these files finds all that belongs to it: written last.
LAST_FILES = ("themis.json", "snapshot.json", "summary.json", "stopped.json")


def is_uri(text: object) -> bool:
    """Tell whether something names a place outside this machine's folders."""
    return "://" in str(text)


class Storage:
    """A folder in a file system of pyarrow's.

    Args:
        uri: Such as `s3://bucket/runs`; after a question mark come pyarrow's options, as in `?endpoint_override=HOST`.

    Raises:
        ConfigError: It is no URI that pyarrow knows.
    """

    def __init__(self, uri: str) -> None:
        try:
            if not is_uri(uri):
                raise ValueError("no scheme")
            self._fs, root = fs.FileSystem.from_uri(uri)
            if not root.strip("/"):
                raise ValueError("no path")
        except (ValueError, OSError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"storage_path={uri} is not allowed ({reason}). Give {SCHEMES}.") from None
        self.uri = uri
        self._root = root.rstrip("/")

    def child(self, name: str) -> Storage:
        """Return the folder `name`, of any characters, below this one."""
        head, mark, options = self.uri.partition("?")
        return Storage(f"{head.rstrip('/')}/{quote(name)}{mark}{options}")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def files(self) -> list[str]:
        """Return the path of every whole file below, with slashes; none where nothing is."""
        selector = fs.FileSelector(self._root, allow_not_found=True, recursive=True)
        paths = [info.path[len(self._root) + 1 :] for info in self._fs.get_file_info(selector) if info.is_file]
        return [path for path in paths if not path.endswith(TEMPORARY)]

    def read(self, name: str) -> bytes | None:
        """Return a file; None where it is not."""
        try:
            with self._fs.open_input_file(self._path(name)) as file:
                content: bytes = file.read()
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which is there as a whole or not at all."""
        self._write(name, lambda file: file.write(content))

    def upload(self, source: Path, name: str) -> None:
        """Write a file of this machine's, which is there as a whole or not at all."""
        with source.open("rb") as content:
            # An object store takes what was written when reading fails for the whole.
            first = content.read(WHOLE_BYTES)

            def fill(file: pa.NativeFile) -> None:
                file.write(first)
                shutil.copyfileobj(content, file, 2**20)

            self._write(name, fill)

    def _write(self, name: str, fill: Callable[[pa.NativeFile], object]) -> None:
        path = self._path(name)
        # Object stores show a file once it is complete; disks show it as it grows.
        is_disk = isinstance(self._fs, fs.LocalFileSystem)
        if is_disk:
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}{TEMPORARY}" if is_disk else path
        try:
            with self._fs.open_output_stream(temporary) as file:
                fill(file)
            if is_disk:
                self._fs.move(temporary, path)
        except BaseException:
            if is_disk:
                with contextlib.suppress(OSError):
                    self._fs.delete_file(temporary)
            raise

    def download(self, name: str, target: Path) -> None:
        """Read a file into this machine's `target`, which is there as a whole or not at all."""
        source = self._fs.open_input_stream(self._path(name))
        with source as content, whole(target) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(content, file, 2**20)

    def delete(self, name: str) -> None:
        """Delete a file, which may be gone already, as after a deletion whose answer was lost."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._path(name))

    def clear(self) -> None:
        """Delete all that is below."""
        self._fs.delete_dir_contents(self._root, missing_dir_ok=True)

    def pull(self, folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> list[str]:
        """Read all files that are wanted into `folder`, over those that it has, and return their names.

        Raises:
            RunFolderError: The storage cannot be read.
        """
        try:
            found = sorted(filter(wanted, self.files()), key=_order)
            for name in found:
                self.download(name, folder / name)
        except OSError as error:
            raise RunFolderError(
                f"{self.uri} cannot be read ({str(error).splitlines()[0]}). Check its name and what you may read."
            ) from None
        return found


class Mirror:
    """Keeps one folder of this machine's the same in a storage.

    Whoever works in the folder claims it first: a folder that another machine has worked in since is replaced by what
    the storage holds, one that was last worked in here is at least as new as the storage and stays.

    Args:
        folder: Here.
        storage: There.
    """

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.folder = folder
        self.storage = storage
        self._mark: bytes | None = None
        self._sent: dict[str, tuple[int, int]] = {}
        self._may_be_there: set[str] = set()

    def claim(self) -> None:
        """Make the folder what it is in the storage, unless it is newer here, and work in it from now on.

        Raises:
            RunFolderError: The storage cannot be read.
        """
        here = self.folder / MARK_FILE
        there = self.storage.read(MARK_FILE)
        if there is not None and (not here.is_file() or here.read_bytes() != there):
            shutil.rmtree(self.folder, ignore_errors=True)
            # Without the mark, which would vouch for a folder that is not whole if this is interrupted.
            self.storage.pull(self.folder, lambda name: name != MARK_FILE)
            _drop_torn_checkpoints(self.folder)
        mark = uuid.uuid4().hex.encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        here.write_bytes(mark)
        self.storage.write(MARK_FILE, mark)
        self._mark = mark
        self._may_be_there = set(self.storage.files()) - {MARK_FILE}

    def push(self) -> None:
        """Write what has changed since the last call, then delete what is gone here.

        Raises:
            OSError: The storage cannot be written.
            RunFolderError: Another process has claimed the storage since.
        """
        if self._mark is not None and self.storage.read(MARK_FILE) != self._mark:
            raise RunFolderError(
                f"{self.storage.uri} belongs to another process that goes on with it, or was deleted. This one stops; "
                f"what it has done since is in {self.folder}."
            )
        found = dict(self._files())
        for name in sorted(found, key=_order):
            if self._sent.get(name) != found[name]:
                try:
                    self.storage.upload(self.folder / name, name)
                except FileNotFoundError:
                    # Dropped meanwhile, as old checkpoints are.
                    found.pop(name)
                    continue
                self._sent[name] = found[name]
                self._may_be_there.add(name)
        # A checkpoint loses its mark first, so that nobody takes what is left of it for one.
        for name in sorted(self._may_be_there - set(found), key=_order, reverse=True):
            self.storage.delete(name)
            self._sent.pop(name, None)
            self._may_be_there.discard(name)

    def try_to_push(self) -> None:
        """Push; where the storage cannot be reached for now, say so and leave it to the next push.

        Raises:
            RunFolderError: Another process has claimed the storage since.
        """
        try:
            self.push()
        except OSError as error:
            logger.warning("%s cannot be written (%s). Trying again later.", self.storage.uri, error)

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for top, folders, names in os.walk(self.folder):
            folders[:] = [folder for folder in folders if folder[0] != "."]
            for name in names:
                path = Path(top, name)
                if name[0] == "." or name == MARK_FILE:
                    continue
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                yield path.relative_to(self.folder).as_posix(), (status.st_size, status.st_mtime_ns)


def _order(name: str) -> tuple[bool, str]:
    return (name.rpartition("/")[2] in LAST_FILES, name)


def _drop_torn_checkpoints(folder: Path) -> None:
    """Delete checkpoints whose last file had not got to the storage when its machine was lost."""
    for checkpoint in (folder / "checkpoints").glob("checkpoint_*"):
        if not (checkpoint / "themis.json").is_file():
            shutil.rmtree(checkpoint)
