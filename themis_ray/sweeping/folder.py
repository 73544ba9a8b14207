"""The folder of a sweep: its settings, and a run folder for each trial."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from themis_ray.errors import RunFolderError
from themis_ray.files import write_whole
from themis_ray.locks import held
from themis_ray.storage import Storage, is_uri
from themis_ray.sweeping.settings import SweepSettings, dump_sweep, load_sweep
from themis_ray.tracking import STOPPED_FILE, RunFolder

__all__ = ["Outcome", "SweepFolder"]

Status = Literal["finished", "stopped", "failed", "unfinished"]
SETTINGS_FILE, SUGGESTIONS_FILE, SNAPSHOTS, LOCK_FILE = "sweep.yaml", "suggestions.jsonl", ".snapshots", ".lock"
ERROR_FILE = "error.txt"
# In a storage: which of all sweeps that had this place it is, so that none goes on from what machines hold of another.
ID_FILE = "sweep.id"
# Of what storage holds of a trial, what tables and reports are made of.
SHOWN_FILES = frozenset(
    ("config.yaml", "metrics.jsonl", "summary.json", "plot.png", "takeovers.jsonl", STOPPED_FILE, ERROR_FILE)
)


@dataclass(frozen=True)
class Outcome:
    """What is known of one trial from its run folder.

    Args:
        name: Of the trial.
        status: finished: it has a summary; stopped: a scheduler ended it; failed: its last start ended in an error.
        true_return: Of the final evaluation; of the last line of metrics where there was none; NaN without one.
        true_return_std: Over the episodes of the final evaluation; NaN without one.
        num_labels: Queries asked.
        num_env_steps: Env steps done.
        wall_s: Seconds of training.
        message: Last line of the error of a trial that failed.
    """

    name: str
    status: Status
    true_return: float = math.nan
    true_return_std: float = math.nan
    num_labels: int = 0
    num_env_steps: int = 0
    wall_s: float = 0.0
    message: str = ""


class SweepFolder:
    """Where a sweep is written: sweep.yaml, `NAME/` for each trial, .snapshots/, and .tune/ while it runs.

    With `storage_path` all of it is in the storage, and the folder holds what tables and reports are made of.

    Args:
        path: The folder; made by `create`, expected by `open`.
        storage_path: Of the sweep's settings.

    Attributes:
        storage: Where everything is kept; None: in the folder.
    """

    def __init__(self, path: Path, storage_path: str | None = None) -> None:
        self.path = path
        self.storage = None if storage_path is None else Storage(storage_path).child(path.resolve().name)
        self.suggestions_path = path / SUGGESTIONS_FILE

    @cached_property
    def work_path(self) -> Path:
        """Below it trials work; with a storage, a folder of whichever machine runs one.

        Raises:
            RunFolderError: The storage cannot be read.
        """
        if self.storage is None:
            return self.path.resolve()
        try:
            return _scratch(self.storage.uri.encode() + (self.storage.read(ID_FILE) or b""))
        except OSError as error:
            raise RunFolderError(
                f"{self.storage.uri} cannot be read ({str(error).splitlines()[0]}). Check its name and your rights."
            ) from None

    @property
    def snapshots_path(self) -> Path:
        """Where trials find what they share."""
        return self.work_path / SNAPSHOTS

    @property
    def tune_path(self) -> str:
        """What Tune writes while it runs."""
        return str(self.path.resolve() / ".tune") if self.storage is None else self.storage.child(".tune").uri

    def clear_tune(self) -> None:
        """Delete what Tune wrote."""
        if self.storage is None:
            shutil.rmtree(self.tune_path, ignore_errors=True)
        else:
            self.storage.child(".tune").clear()

    @classmethod
    def create(cls, path: Path, settings: SweepSettings) -> SweepFolder:
        """Make the folder and write sweep.yaml.

        Raises:
            RunFolderError: It holds something, or it cannot be written.
        """
        folder = cls(path, settings.storage_path)
        try:
            if path.exists() and any(path.iterdir()):
                raise RunFolderError(
                    f"{path} is not empty. Continue a sweep with --resume {path}, or give another --out."
                )
            if folder.storage is not None:
                folder._claim_storage(folder.storage, dump_sweep(settings))
            path.mkdir(parents=True, exist_ok=True)
            (path / SETTINGS_FILE).write_text(dump_sweep(settings))
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be written ({error.strerror}). Give an --out folder that you may write to."
            ) from None
        return folder

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes of this machine from running the sweep, while the block runs.

        Raises:
            RunFolderError: One runs it now.
        """
        return held(
            self.path / LOCK_FILE,
            RunFolderError(f"another themis sweep works in {self.path}. Wait for it or end it, then --resume."),
        )

    def discard(self) -> None:
        """Delete a sweep of which nothing has run; one that holds anything else stays."""
        found = {item.name for item in self.path.iterdir()} | {*(self.storage.files() if self.storage else ())}
        if found <= {SETTINGS_FILE, LOCK_FILE, ID_FILE}:
            if self.storage is not None:
                self.storage.delete(SETTINGS_FILE)
                self.storage.delete(ID_FILE)
            shutil.rmtree(self.path)

    def _claim_storage(self, storage: Storage, settings: str) -> None:
        """Write the sweep's settings where nothing is yet, which also shows that the storage can be written."""
        try:
            is_taken = bool(storage.files())
            if not is_taken:
                storage.write(SETTINGS_FILE, settings.encode())
                storage.write(ID_FILE, uuid.uuid4().hex.encode())
        except OSError as error:
            raise RunFolderError(
                f"{storage.uri} cannot be written ({str(error).splitlines()[0]}). Check its name and your rights."
            ) from None
        if is_taken:
            raise RunFolderError(
                f"{storage.uri} is not empty. Continue a sweep with --resume {storage.uri}, or give another --out."
            )

    @classmethod
    def open(cls, place: Path | str, path: Path | None = None) -> tuple[SweepFolder, SweepSettings]:
        """Return an existing sweep and its settings.

        Args:
            place: Its folder, or its URI in a storage.
            path: With a URI: the folder that shows it here; default: runs/NAME.

        Raises:
            RunFolderError: There is no sweep.
        """
        if is_uri(place):
            head, mark, options = str(place).partition("?")
            parent, _, quoted = head.rstrip("/").rpartition("/")
            name = unquote(quoted)
            try:
                settings_text = Storage(str(place)).read(SETTINGS_FILE)
            except OSError as error:
                raise RunFolderError(
                    f"{place} cannot be read ({str(error).splitlines()[0]}). Give the URI of a sweep's folder."
                ) from None
            if settings_text is None:
                raise RunFolderError(f"{place} holds no sweep (no {SETTINGS_FILE}). Give the URI of a sweep.")
            path = path or Path("runs") / name
            _refuse_another(path, settings_text)
            if path.resolve().name != name:
                raise RunFolderError(f"{path} would show the sweep {name}. Give an --out that ends in {name}.")
            path.mkdir(parents=True, exist_ok=True)
            (path / SETTINGS_FILE).write_bytes(settings_text)
            settings = load_sweep(path / SETTINGS_FILE)
            # A storage may have moved since.
            settings = settings.model_copy(update={"storage_path": f"{parent}{mark}{options}"})
        else:
            path = Path(place)
            if not (path / SETTINGS_FILE).is_file():
                raise RunFolderError(f"{path} holds no sweep (no {SETTINGS_FILE}). Give the folder of a sweep.")
            settings = load_sweep(path / SETTINGS_FILE)
        folder = cls(path, settings.storage_path)
        folder.refresh()
        return folder, settings

    def refresh(self, name: str | None = None) -> None:
        """Read what the storage shows of a trial, or of all trials.

        Raises:
            RunFolderError: The storage cannot be read.
        """
        if self.storage is not None and name is not None:
            self.storage.child(name).pull(self.path / name, lambda file: file in SHOWN_FILES)
        elif self.storage is not None:
            self.storage.pull(self.path, is_shown)

    def is_over(self, name: str) -> bool:
        """Tell whether a trial needs no more: it finished, or a scheduler ended it."""
        return (self.path / name / "summary.json").is_file() or (self.path / name / STOPPED_FILE).is_file()

    def mark_stopped(self, name: str, by: str) -> None:
        """Note that a scheduler ended a trial, so that it is not run on when the sweep is resumed."""
        text = json.dumps({"by": by}) + "\n"
        (self.path / name).mkdir(parents=True, exist_ok=True)
        (self.path / name / STOPPED_FILE).write_text(text)
        if self.storage is not None:
            self.storage.child(name).write(STOPPED_FILE, text.encode())

    def note_error(self, name: str, error: Exception | None) -> None:
        """Keep why a trial failed where its own process could not."""
        path = self.path / name / ERROR_FILE
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{str(error).strip() or 'its process died'}\n")

    def add_suggestion(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep what Optuna said, before a trial runs with it; an unfinished line, left by a crash, goes."""
        text = self.suggestions_path.read_text() if self.suggestions_path.exists() else ""
        row = json.dumps({"name": name, "values": dict(values)}) + "\n"
        write_whole(self.suggestions_path, text[: text.rfind("\n") + 1] + row)
        if self.storage is not None:
            self.storage.upload(self.suggestions_path, SUGGESTIONS_FILE)

    def outcome(self, name: str) -> Outcome:
        """Return what a trial reached."""
        path = self.path / name
        rows = RunFolder(path).read_metrics()
        last: dict[str, Any] = rows[-1] if rows else {}
        common: dict[str, Any] = {
            "num_labels": int(last.get("queries_asked") or 0),
            "num_env_steps": int(last.get("num_env_steps") or 0),
            "wall_s": float(last.get("wall_s") or 0.0),
        }
        if (path / "summary.json").is_file():
            summary = json.loads((path / "summary.json").read_text())
            mean, std = _number(summary["true_return_mean"]), _number(summary["true_return_std"])
            return Outcome(name, "finished", mean, std, **common)
        true_return = _number(last.get("true_return_mean"))
        if (path / STOPPED_FILE).is_file():
            return Outcome(name, "stopped", true_return, **common)
        error = path / ERROR_FILE
        if error.is_file():
            lines = error.read_text(errors="replace").strip().splitlines() or [f"{ERROR_FILE} is empty"]
            return Outcome(name, "failed", true_return, message=lines[-1], **common)
        return Outcome(name, "unfinished", true_return, **common)


def _refuse_another(path: Path, settings: bytes) -> None:
    """Refuse a folder that holds something else than the sweep with these settings."""
    if path.is_dir() and any(path.iterdir()):
        file = path / SETTINGS_FILE
        if not file.is_file() or file.read_bytes() != settings:
            raise RunFolderError(f"{path} holds something else. Give --out a folder of the same name elsewhere.")


def is_shown(file: str) -> bool:
    """Tell whether tables and reports are made of a file of a sweep's, by its path."""
    *folders, name = file.split("/")
    is_hidden = any(folder[0] == "." for folder in folders)
    return not is_hidden and name in {*SHOWN_FILES, SUGGESTIONS_FILE} and not {"wandb", "checkpoint"} & {*folders}


def _scratch(identity: bytes) -> Path:
    """Return where trials of a sweep in storage work, the same on all machines."""
    digest = hashlib.sha256(identity).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"themis-ray-{os.getuid()}" / digest


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
