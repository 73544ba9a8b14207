"""Methods that leave groups of inputs out and see what is lost, through Captum but for KernelSHAP."""

from __future__ import annotations

from dataclasses import replace

import torch
from captum.attr import FeatureAblation, FeaturePermutation, Occlusion, ShapleyValueSampling
from torch import Tensor

from themis_ray.explain.features import spread_over_groups
from themis_ray.explain.job import Job
from themis_ray.explain.kernel_shap import shapley_values

__all__ = ["feature_ablation", "kernel_shap", "occlusion", "permutation_importance", "shapley_sampling"]

NUM_PERMUTATIONS = 16


def kernel_shap(job: Job) -> tuple[Tensor, ...]:
    """Returns what `shapley_values` gives each group, divided among its inputs."""
    groups = job.groups
    return spread_over_groups(shapley_values(job.subject, job.rows, job.baseline, groups, job.rng), groups)


def shapley_sampling(job: Job) -> tuple[Tensor, ...]:
    """Returns Shapley values of groups from random orders, divided among their inputs."""
    method = ShapleyValueSampling(job.subject.function)
    groups = job.groups
    return _shared(job.call(method, baselines=job.baselines, feature_mask=groups, n_samples=NUM_PERMUTATIONS), groups)


def feature_ablation(job: Job) -> tuple[Tensor, ...]:
    """Returns what is lost when a group takes its baseline value, divided among its inputs."""
    groups = job.groups
    method = FeatureAblation(job.subject.function)
    return _shared(job.call(method, baselines=job.baselines, feature_mask=groups), groups)


def permutation_importance(job: Job) -> tuple[Tensor, ...]:
    """Returns what is lost when a group is taken from another of the rows, divided among its inputs.

    A row that is alone takes it from a stored row.
    """
    num_rows, groups = len(job.rows), job.groups
    if num_rows == 1:
        job = replace(job, rows=job.rows.followed_by(job.references))
    parts = _shared(job.call(FeaturePermutation(job.subject.function), feature_mask=groups), groups)
    return tuple(part[:num_rows] for part in parts)


def occlusion(job: Job) -> tuple[Tensor, ...]:
    """Slides a window over pictures, half of itself at a time; every other number is left out by itself."""
    windows, strides = [], []
    for part in job.rows.inputs:
        if part.ndim == 4:
            sides = [max(1, -(-side // 8)) for side in part.shape[1:3]]
            windows.append((*sides, part.shape[3]))
            strides.append((*(max(1, side // 2) for side in sides), part.shape[3]))
        else:
            windows.append((1,) * (part.ndim - 1))
            strides.append((1,) * (part.ndim - 1))
    return job.call(
        Occlusion(job.subject.function),
        sliding_window_shapes=tuple(windows),
        strides=tuple(strides),
        baselines=job.baselines,
    )


def _shared(parts: tuple[Tensor, ...], groups: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns attributions that Captum gives every input of a group, divided among them, so that they add up."""
    sizes = torch.bincount(torch.cat([part.reshape(-1) for part in groups]))
    return tuple(part / sizes[group] for part, group in zip(parts, groups, strict=True))
