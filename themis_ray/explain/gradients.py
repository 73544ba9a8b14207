"""Methods that follow the gradient of a subject, through Captum."""

from __future__ import annotations

import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, Saliency
from torch import Tensor

from themis_ray.envs import image_parts
from themis_ray.explain.job import Job
from themis_ray.explain.subject import Rows, Subject

__all__ = [
    "NUM_SHAP_BASELINES",
    "gradient_shap",
    "input_x_gradient",
    "integrated_gradients",
    "path_gradients",
    "saliency",
    "smooth_grad",
]

# What may miss of the difference to the baseline before more steps are taken, as a share of the sum of magnitudes. In a
# picture, where a path costs a thousand times as much as in a vector, nobody sees a twentieth.
TOLERANCE, PICTURE_TOLERANCE = 0.0025, 0.05
# Of the numbers themselves: a smaller difference between them is noise.
ROUNDING = 1e-6
TINY = 1e-30
PATH_STEPS = (16, 32, 64, 128, 256, 512)
# Gradients of networks of ReLU jump along the path; equal steps then err less than Gauss-Legendre's.
PATH_RULE = "riemann_middle"
PATH_ROWS_PER_PASS = 128
NUM_NOISY_COPIES = 16
NOISE_SHARE = 0.1
MIN_SPAN = 1e-6
COPIES_PER_PASS = 4
NUM_SHAP_BASELINES = 8


def integrated_gradients(job: Job) -> tuple[Tensor, ...]:
    """Returns mean gradients along the path times the way, with more steps for those rows that do not add up yet.

    What is then left of the difference to the baseline is divided among the inputs by their magnitudes.
    """
    subject, rows = job.subject, job.rows
    nothing = subject.evaluate(Rows(job.baselines, rows.context))
    numbers = subject.evaluate(rows)
    difference = numbers - nothing
    rounding = ROUNDING * (numbers.abs() + nothing.abs())
    result = [torch.zeros_like(part) for part in rows.inputs]
    tolerance = TOLERANCE if subject.split is None else PICTURE_TOLERANCE
    left = torch.arange(len(rows))
    for num_steps in PATH_STEPS:
        part = rows.take(left)
        shares = path_gradients(subject, part, job.baseline, num_steps)
        flat = torch.cat([share.flatten(1) for share in shares], dim=1)
        missing, magnitude = difference[left] - flat.sum(dim=1), flat.abs().sum(dim=1)
        added = missing / magnitude.clamp_min(TINY)
        for whole, share in zip(result, shares, strict=True):
            whole[left] = share + added.view(-1, *(1 for _ in share.shape[1:])) * share.abs()
        is_open = missing.abs() > torch.maximum(tolerance * magnitude, rounding[left])
        left = left[is_open]
        if not len(left):
            break
    return tuple(result)


def path_gradients(subject: Subject, rows: Rows, baseline: tuple[Tensor, ...], num_steps: int) -> tuple[Tensor, ...]:
    """Returns (input - baseline) * mean gradient along the straight path between them.

    Behind an affine stem the path is straight too, so that the mean gradient is taken there, and goes through the stem
    once.
    """
    baselines = tuple(part.expand(len(rows), *part.shape[1:]) for part in baseline)
    options = {"n_steps": num_steps, "method": PATH_RULE, "additional_forward_args": rows.context or None}
    if subject.split is None:
        method = IntegratedGradients(subject.function)
        size = max(PATH_ROWS_PER_PASS, len(rows))
        return tuple(method.attribute(rows.inputs, baselines, internal_batch_size=size, **options))
    stem, tail = subject.split
    inputs = tuple(part.clone().requires_grad_() for part in rows.inputs)
    hidden = stem(*inputs)
    with torch.no_grad():
        nothing = stem(*baselines)
    method = IntegratedGradients(tail, multiply_by_inputs=False)
    size = max(PATH_ROWS_PER_PASS, len(rows))
    ends = tuple(part.detach() for part in hidden)
    gradients = method.attribute(ends, nothing, internal_batch_size=size, **options)
    passed = torch.autograd.grad(hidden, inputs, gradients)
    return tuple((given - start) * slope for given, start, slope in zip(rows.inputs, baselines, passed, strict=True))


def saliency(job: Job) -> tuple[Tensor, ...]:
    """Returns the magnitude of the gradient."""
    return job.call(Saliency(job.subject.function))


def input_x_gradient(job: Job) -> tuple[Tensor, ...]:
    """Returns input times gradient."""
    return job.call(InputXGradient(job.subject.function))


def smooth_grad(job: Job) -> tuple[Tensor, ...]:
    """Returns the magnitude of the gradient, mean over copies with noise of a tenth of the span of stored steps.

    Captum's own has one span for all inputs; here each number of a vector has its own, since their units differ.
    """
    stdevs = [NOISE_SHARE * span.clamp_min(MIN_SPAN) for span in _spans(job.subject, job.references)]
    method = Saliency(job.subject.function)
    copies, context = (
        tuple(part.repeat_interleave(COPIES_PER_PASS, dim=0) for part in parts)
        for parts in (job.rows.inputs, job.rows.context)
    )
    totals = [torch.zeros_like(part) for part in job.rows.inputs]
    for _ in range(NUM_NOISY_COPIES // COPIES_PER_PASS):
        noisy = tuple(
            (part + torch.normal(0.0, stdev.expand_as(part))).requires_grad_()
            for part, stdev in zip(copies, stdevs, strict=True)
        )
        for total, part in zip(totals, method.attribute(noisy, additional_forward_args=context or None), strict=True):
            total += part.detach().unflatten(0, (-1, COPIES_PER_PASS)).sum(dim=1)
    return tuple(total / NUM_NOISY_COPIES for total in totals)


def _spans(subject: Subject, references: Rows) -> tuple[Tensor, ...]:
    """Returns largest minus smallest stored value: of each number of a vector, of a whole picture, of all actions."""
    observations, *actions = references.inputs
    whole = tuple(part.amax() - part.amin() for part in actions)
    if subject.observation_kind in ("image", "grid"):
        return observations.amax() - observations.amin(), *whole
    spans = observations.amax(dim=0) - observations.amin(dim=0)
    for picture in image_parts(subject.observation_space):
        pixels = observations[:, picture.start : picture.stop]
        spans[picture.start : picture.stop] = pixels.amax() - pixels.amin()
    return spans, *whole


def gradient_shap(job: Job) -> tuple[Tensor, ...]:
    """Returns (input - baseline) * gradient at random points between both, mean over stored steps."""
    references = job.some_references(NUM_SHAP_BASELINES)
    return job.call(GradientShap(job.subject.function), baselines=references, n_samples=NUM_NOISY_COPIES)
