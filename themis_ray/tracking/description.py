"""What a tracker calls a run: its name, its group, its tags and its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from themis_ray.config import ExperimentConfig

__all__ = ["RunDescription", "describe_run", "find_sweep", "without_password"]

# The file by which a sweep's folder is known; themis_ray.sweeping writes it.
SWEEP_FILE = "sweep.yaml"
# W&B takes no longer ones.
MAX_NAME_LENGTH, MAX_TAG_LENGTH = 128, 64


@dataclass(frozen=True)
class RunDescription:
    """How a run is found among others.

    Attributes:
        name: Readable, such as pendulum/mistake/disagreement/s3.
        group: Of the runs that differ from it in the seed only; None when it stands alone.
        job_type: What kind of run it is: train or report.
        tags: Words to filter by.
        settings: Nested, as in config.yaml; of a training run also `method`, by which a dashboard compares.
    """

    name: str
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name[-MAX_NAME_LENGTH:])
        object.__setattr__(self, "group", self.group[-MAX_NAME_LENGTH:] if self.group else None)
        tags = dict.fromkeys(tag.strip()[:MAX_TAG_LENGTH] for tag in self.tags)
        object.__setattr__(self, "tags", tuple(tag for tag in tags if tag))


def describe_run(path: Path, config: ExperimentConfig) -> RunDescription:
    """Return the description of the run in a folder.

    Below a sweep its name is the path from there, and its group that path without the last part, the seed; else the
    name of its folder. `tracking.run_name` and `tracking.wandb_group` win.
    """
    path, sweep = path.resolve(), find_sweep(path)
    own_name = path.name if sweep is None else path.relative_to(sweep).as_posix()
    own_group = own_name.rpartition("/")[0] or None
    tracking = config.tracking
    teacher, sampler = _method(config)
    preset = () if config.preset == "default" else (config.preset,)
    learner = (config.env.id, config.algorithm.name)
    return RunDescription(
        name=tracking.run_name or own_name,
        group=tracking.wandb_group or own_group,
        job_type="train",
        tags=(*learner, teacher, sampler, *preset, *([sweep.name] if sweep else []), *tracking.wandb_tags),
        settings={**config.model_dump(mode="json"), "method": {"teacher": teacher, "sampler": sampler or "none"}},
    )


def find_sweep(path: Path) -> Path | None:
    """Return the folder of the sweep that a folder is below of, or None."""
    return next((parent for parent in path.resolve().parents if (parent / SWEEP_FILE).is_file()), None)


def _method(config: ExperimentConfig) -> tuple[str, str]:
    """Return who pays the learner and who chooses the queries; nobody does where none are asked."""
    if not config.learn_reward:
        return "true-reward", ""
    if config.feedback.dataset is not None:
        return f"answers of {Path(config.feedback.dataset).name}", ""
    return config.teacher.teacher_name, config.feedback.sampler


def without_password(text: str) -> str:
    """Return a text without the names and passwords that addresses in it may hold."""
    # A password may hold an @ itself: the last one before the path ends it.
    return re.sub(r"(?<!/)//(?!/)[^/\s]*@", "//", text)
