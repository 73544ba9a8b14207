"""Weights & Biases."""

from __future__ import annotations

import contextlib
import math
import netrc
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from themis_ray.tracking.artifacts import Artifacts
from themis_ray.tracking.description import RunDescription
from themis_ray.tracking.metrics import Row, finite
from themis_ray.tracking.progress_mark import read_mark, write_mark

__all__ = ["WandbLogger", "has_wandb_key"]

# What a table of runs shows of a metric beside its last value.
BEST = ("true_return_mean", "heldout_accuracy", "fresh_accuracy", "reward_correlation")
# A run that is over does not wait longer for a network that is gone; what is missing can be synced.
FINISH_TIMEOUT_S = 300.0


class WandbLogger:
    """Logs to Weights & Biases; offline, to be synced later, when there is no key.

    Args:
        folder: Where W&B keeps its files, in wandb/.
        about: What the run is called.
        project: W&B's.

    Attributes:
        num_env_steps: Of the newest line that it knows of.
        place: The run's address, or its folder when it is offline.
    """

    def __init__(self, folder: Path, about: RunDescription, project: str) -> None:
        import wandb

        is_settled = bool(os.environ.get("WANDB_MODE")) or has_wandb_key()
        self._wandb: Any = wandb
        self._own = folder.resolve() / "wandb"
        self._run = wandb.init(
            dir=str(folder.resolve()),
            project=project,
            group=about.group,
            job_type=about.job_type,
            name=about.name,
            tags=list(about.tags),
            config=dict(about.settings),
            mode=None if is_settled else "offline",  # None: WANDB_MODE, or online.
            id=_wandb_id(self._own),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, finish_timeout=FINISH_TIMEOUT_S),
        )
        self._run.define_metric("num_env_steps", summary="max")
        self._run.define_metric("*", step_metric="num_env_steps")
        for name in BEST:
            self._run.define_metric(name, step_metric="num_env_steps", summary="max,last")
        self.is_offline = str(self._run.settings.mode) in ("offline", "dryrun")
        self._is_disabled = str(self._run.settings.mode) == "disabled"
        # What waits here is not there, and what one project has another has not.
        mode, entity = "offline" if self.is_offline else "online", os.environ.get("WANDB_ENTITY", "")
        self._mark = f"{mode} {entity}/{project}"
        self.num_env_steps = -1 if self._is_disabled else read_mark(self._own, self._mark)
        self.place = self._place()

    def _place(self) -> str:
        if self._is_disabled:
            return "nowhere, because WANDB_MODE is disabled"
        return str(Path(self._run.dir).parent) if self.is_offline else str(self._run.url)

    def log(self, row: Row) -> None:
        """Log one line against env steps; W&B takes none twice."""
        step = int(row["num_env_steps"])
        if step <= self.num_env_steps:
            return
        self._run.log({name: value for name, value in row.items() if _is_shown(value)}, step=step)
        self.num_env_steps = step

    def add(self, artifacts: Artifacts) -> None:
        """Log pictures, clips, tables and pages at the newest line, and the bundles as artifacts of their own."""
        wandb = self._wandb
        with self._staging():
            shown: dict[str, Any] = {}
            for key, files in artifacts.pictures.items():
                shown[key] = [wandb.Image(str(file), caption=file.stem) for file in files]
            for key, files in artifacts.clips.items():
                shown[key] = [wandb.Video(str(file), caption=file.stem) for file in files]
            for key, table in artifacts.tables.items():
                shown[f"tables/{key}"] = wandb.Table(
                    columns=list(table.columns), data=[list(row) for row in table.rows], allow_mixed_types=True
                )
            for key, page in artifacts.pages.items():
                shown[key] = wandb.Html(str(page), inject=False)
            if shown:
                self._run.log({"num_env_steps": max(0, self.num_env_steps), **shown})
            for kind, files_of in artifacts.bundles.items():
                artifact = wandb.Artifact(f"{kind}-{self._run.id}", type=kind)
                for name, file in files_of.items():
                    artifact.add_file(str(file), name=name, skip_cache=True)
                self._run.log_artifact(artifact)

    def close(self, summary: Row | None) -> None:
        """Put the summary beside the run, under final/, and finish it."""
        if summary is not None:
            self._run.summary.update({f"final/{key}": value for key, value in finite(summary).items()})
        self._run.finish(exit_code=0 if summary is not None else 1)
        if not self._is_disabled:  # Nothing was sent, and a later start has to.
            write_mark(self._own, self.num_env_steps, self._mark)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[None]:
        """Have files that wait for `wandb sync` lie in the run's own folder rather than in the user's home."""
        if not self.is_offline or "WANDB_DATA_DIR" in os.environ:
            yield
            return
        os.environ["WANDB_DATA_DIR"] = str(self._own)
        try:
            yield
        finally:
            del os.environ["WANDB_DATA_DIR"]


def has_wandb_key() -> bool:
    """Tell whether W&B would know who sends a run: from its variables, its settings or a netrc file.

    `wandb.login` would tell too, but it starts W&B's service, and that waits for a network that may not be there.
    """
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    host = urlsplit(str(settings.base_url)).hostname or ""
    paths = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in paths:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(Path(path).expanduser()).authenticators(host) is not None:
                return True
    return False


def _is_shown(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _wandb_id(own: Path) -> str:
    """Return the id under which W&B knows the run, drawn at its first start: a resumed run is the same."""
    path = own / "run_id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(uuid.uuid4().hex[:8])
    return re.sub(r"\W", "", path.read_text())
