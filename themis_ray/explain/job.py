"""What a method is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from themis_ray.explain.features import feature_groups
from themis_ray.explain.subject import Rows, Subject

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """What a method is given.

    Attributes:
        subject: What is explained.
        rows: Some rows of it.
        baseline: One row of inputs that stands for "nothing".
        references: Stored rows, for methods that compare with several.
        rng: For methods that draw.
    """

    subject: Subject
    rows: Rows
    baseline: tuple[Tensor, ...]
    references: Rows
    rng: np.random.Generator

    @property
    def baselines(self) -> tuple[Tensor, ...]:
        """The baseline once for each row."""
        return tuple(part.expand(len(self.rows), *part.shape[1:]) for part in self.baseline)

    @property
    def groups(self) -> tuple[Tensor, ...]:
        """See `feature_groups`."""
        return feature_groups(self.subject, self.rows)

    def call(self, method: Any, **options: Any) -> tuple[Tensor, ...]:
        """Returns what a method of Captum attributes to the inputs of the rows."""
        inputs = tuple(part.clone().requires_grad_() for part in self.rows.inputs)
        result = method.attribute(inputs, additional_forward_args=self.rows.context or None, **options)
        return tuple(part.detach() for part in result)

    def some_references(self, count: int) -> tuple[Tensor, ...]:
        """Returns inputs of at most `count` stored steps, drawn without order, with an action that says nothing."""
        num_drawn = min(count, len(self.references))
        chosen = torch.from_numpy(self.rng.choice(len(self.references), num_drawn, replace=False))
        observations = self.references.inputs[0][chosen]
        return (observations, *(part.expand(num_drawn, -1) for part in self.baseline[1:]))
