"""Methods that follow the gradient of a subject, through Captum."""

from __future__ import annotations

import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from torch import Tensor

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
    """Returns the magnitude of the gradient, mean over copies with noise of a tenth of the span of stored steps."""
    spans = tuple(float(part.amax() - part.amin()) for part in job.references.inputs)
    stdevs = tuple(NOISE_SHARE * max(span, 1e-6) for span in spans)
    method = NoiseTunnel(Saliency(job.subject.function))
    return job.call(method, nt_type="smoothgrad", nt_samples=NUM_NOISY_COPIES, nt_samples_batch_size=4, stdevs=stdevs)


def gradient_shap(job: Job) -> tuple[Tensor, ...]:
    """Returns (input - baseline) * gradient at random points between both, mean over stored steps."""
    references = job.some_references(NUM_SHAP_BASELINES)
    return job.call(GradientShap(job.subject.function), baselines=references, n_samples=NUM_NOISY_COPIES)
