"""How inputs get their share of a prediction: Captum's methods under one name each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from captum.attr import Deconvolution, GuidedBackprop
from numpy.typing import NDArray
from torch import Tensor

from themis_ray.errors import ConfigError, lookup
from themis_ray.explain.ablation import (
    feature_ablation,
    kernel_shap,
    occlusion,
    permutation_importance,
    shapley_sampling,
)
from themis_ray.explain.baselines import baseline_inputs
from themis_ray.explain.gradients import (
    gradient_shap,
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from themis_ray.explain.job import Job
from themis_ray.explain.layer_methods import (
    deep_lift,
    deep_lift_shap,
    guided,
    guided_grad_cam,
    lrp,
    needs_convolution,
    needs_network_output,
    needs_relu,
)
from themis_ray.explain.seeding import seeded_globals
from themis_ray.explain.subject import Rows, Subject

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Attribution",
    "Method",
    "attribute",
    "attribute_rows",
    "check_method",
    "fitting_methods",
]

DEFAULT_METHOD = "integrated_gradients"
ROWS_PER_CALL = 64


@dataclass(frozen=True)
class Attribution:
    """What each input of N rows is due.

    Attributes:
        method: A key of `METHODS`.
        subject: Name of what is explained.
        observations: (N, *observation_shape) float32.
        actions: (N, A) float32, of the encoded action; None where the subject does not read it.
        values: (N,) float32, the explained numbers.
        baseline_values: (N,) float32, the same function at the baseline.
    """

    method: str
    subject: str
    observations: NDArray[np.float32]
    actions: NDArray[np.float32] | None
    values: NDArray[np.float32]
    baseline_values: NDArray[np.float32]

    @property
    def totals(self) -> NDArray[np.float64]:
        """Sum of what all inputs of a row are due, (N,); of a complete method the difference to the baseline."""
        totals: NDArray[np.float64] = self.observations.reshape(len(self.observations), -1).sum(
            axis=1, dtype=np.float64
        )
        return totals if self.actions is None else totals + self.actions.sum(axis=1, dtype=np.float64)


Attribute = Callable[[Job], tuple[Tensor, ...]]
Requirement = Callable[[Subject], str | None]


@dataclass(frozen=True)
class Method:
    """A way to attribute.

    Attributes:
        attribute: Rows in, attributions of the shape of the inputs out.
        summary: One line for people, with the source.
        is_complete: Whether attributions add up to the difference to the baseline.
        is_signed: Whether an attribution says up or down.
        misfit: Why it does not fit a subject; None where it does.
    """

    attribute: Attribute
    summary: str
    is_complete: bool = False
    is_signed: bool = True
    misfit: Requirement = lambda _: None


METHODS: dict[str, Method] = {
    "integrated_gradients": Method(
        integrated_gradients, "Mean gradient on the way from the baseline (Sundararajan et al. 2017).", is_complete=True
    ),
    "kernel_shap": Method(
        kernel_shap, "Shapley values of groups of inputs by least squares (Lundberg and Lee 2017).", is_complete=True
    ),
    "saliency": Method(saliency, "Magnitude of the gradient (Simonyan et al. 2014).", is_signed=False),
    "smooth_grad": Method(
        smooth_grad, "Magnitude of the gradient, mean over noisy copies (Smilkov et al. 2017).", is_signed=False
    ),
    "input_x_gradient": Method(input_x_gradient, "Input times gradient (Shrikumar et al. 2016)."),
    "guided_backprop": Method(
        guided(GuidedBackprop),
        "Gradient along positive paths through ReLU (Springenberg et al. 2015).",
        misfit=needs_relu,
    ),
    "deconvolution": Method(
        guided(Deconvolution), "Gradient with ReLU applied on the way back (Zeiler and Fergus 2014).", misfit=needs_relu
    ),
    "guided_grad_cam": Method(
        guided_grad_cam,
        "Guided gradients where the last convolution responds (Selvaraju et al. 2017).",
        misfit=needs_convolution,
    ),
    "lrp": Method(
        lrp, "Layer-wise relevance propagation, epsilon rule (Bach et al. 2015).", misfit=needs_network_output
    ),
    "deep_lift": Method(
        deep_lift, "Differences of activations to those of the baseline (Shrikumar et al. 2017).", is_complete=True,
        misfit=needs_network_output,
    ),
    "deep_lift_shap": Method(
        deep_lift_shap, "DeepLift over several stored steps as baselines (Lundberg and Lee 2017).",
        misfit=needs_network_output,
    ),
    "gradient_shap": Method(
        gradient_shap, "Gradients at random points towards stored steps (Lundberg and Lee 2017)."
    ),
    "feature_ablation": Method(feature_ablation, "What is lost when a group of inputs takes its baseline value."),
    "occlusion": Method(occlusion, "What is lost when a sliding window is at its baseline (Zeiler and Fergus 2014)."),
    "shapley_sampling": Method(
        shapley_sampling, "Shapley values of groups over random orders (Castro et al. 2009).", is_complete=True
    ),
    "permutation_importance": Method(
        permutation_importance, "What is lost when a group is taken from another step (Breiman 2001)."
    ),
}  # fmt: skip


def fitting_methods(subject: Subject) -> list[str]:
    """Returns the keys of `METHODS` that fit a subject."""
    return [name for name, method in METHODS.items() if method.misfit(subject) is None]


def check_method(name: str, subject: Subject) -> Method:
    """Returns the method of a name.

    Raises:
        UnknownNameError: There is no such method.
        ConfigError: It does not fit the subject; the message says why and which methods do.
    """
    method = lookup("method", name, METHODS)
    reason = method.misfit(subject)
    if reason is not None:
        raise ConfigError(
            f"{name} cannot explain the {subject.meaning} here: {reason}. Use {', '.join(fitting_methods(subject))}."
        )
    return method


def attribute_rows(method: Method, job: Job, on_rows: Callable[[int], None] = lambda _: None) -> tuple[Tensor, ...]:
    """Returns what each input of the rows of a job is due, in the shapes of the inputs.

    Args:
        method: One that fits the subject.
        job: With any number of rows.
        on_rows: Called with the number of rows done.
    """
    parts = []
    with seeded_globals(job.rng):
        for start in range(0, len(job.rows), ROWS_PER_CALL):
            rows = job.rows.take(slice(start, start + ROWS_PER_CALL))
            parts.append(method.attribute(replace(job, rows=rows)))
            on_rows(start + len(rows))
    return tuple(torch.cat(pieces).float() for pieces in zip(*parts, strict=True))


def attribute(
    subject: Subject,
    observations: NDArray[Any],
    actions: NDArray[Any],
    *,
    method: str = DEFAULT_METHOD,
    references: tuple[NDArray[Any], NDArray[Any]],
    rng: np.random.Generator,
    baseline: str = "auto",
    on_rows: Callable[[int], None] = lambda _: None,
) -> Attribution:
    """Returns what each input of N steps is due.

    Steps go through a method together, 64 at a time; nothing of it is a loop over steps in Python.

    Args:
        subject: What is explained.
        observations: (N, *observation_shape), as stored.
        actions: (N, *action_shape), as stored.
        method: A key of `METHODS`.
        references: Observations and actions of stored steps, to compare with.
        rng: For methods that draw.
        baseline: A key of `BASELINES`.
        on_rows: Called with the number of steps done.

    Raises:
        UnknownNameError, ConfigError: As in `check_method`.
    """
    chosen = check_method(method, subject)
    rows, compared = subject.read(observations, actions), subject.read(*references)
    nothing = baseline_inputs(subject, compared, baseline)
    job = Job(subject, rows, nothing, compared, rng)
    inputs = [part.numpy() for part in attribute_rows(chosen, job, on_rows)]
    baselines = tuple(part.expand(len(rows), *part.shape[1:]) for part in nothing)
    return Attribution(
        method=method,
        subject=subject.name,
        observations=inputs[0],
        actions=inputs[1] if len(inputs) > 1 else None,
        values=subject.evaluate(rows).numpy(),
        baseline_values=subject.evaluate(Rows(baselines, rows.context)).numpy(),
    )
